//! The targets. Each takes any bytes.

use jiff::Timestamp;
use mycelium_api::names;
use mycelium_api::quantity::Quantity;
use mycelium_api::selector::{FieldSelector, Selector};
use mycelium_apimachinery::apply::{self, FieldSet, Operation, RESET_STATUS};
use mycelium_apimachinery::decode::{self, Limits};
use mycelium_apimachinery::schema::{Type, from_crd_schema, types};
use mycelium_apimachinery::{openapi, patch};
use serde_json::Value;

/// A target: its name, what it does with bytes, and inputs to start from.
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// The function under test.
    pub run: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: &'static [&'static [u8]],
}

const POD: &[u8] = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"},"finalizers":["x/y"]},
"spec":{"containers":[{"name":"a","image":"x:1","ports":[{"containerPort":80}],"env":[{"name":"A","value":"1"}],
"resources":{"limits":{"cpu":"500m","memory":1024}}}],"volumes":[{"name":"v","emptyDir":{}}]}}"#;

const TWO: &[u8] = b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\",\"finalizers\":[\"a\",\"b\"]},\
\"spec\":{\"containers\":[{\"name\":\"a\",\"env\":[{\"name\":\"A\",\"value\":\"1\"}]},{\"name\":\"b\"}]}}\
\0{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\",\"$deleteFromPrimitiveList/finalizers\":[\"a\"]},\
\"spec\":{\"$setElementOrder/containers\":[{\"name\":\"b\"},{\"name\":\"a\"}],\"containers\":[{\"name\":\"a\",\"$patch\":\"delete\"},\
{\"name\":\"b\",\"$retainKeys\":[\"name\",\"image\"],\"image\":\"x\"}]}}";

const JSON_PATCH: &[u8] = b"{\"a\":[1,{\"b\":2}]}\0[{\"op\":\"add\",\"path\":\"/a/-\",\"value\":{\"c\":[1]}},{\"op\":\"copy\",\
\"from\":\"/a\",\"path\":\"/b\"},{\"op\":\"test\",\"path\":\"/a/0\",\"value\":1},{\"op\":\"move\",\"from\":\"/b/1\",\"path\":\"/a/0\"},\
{\"op\":\"remove\",\"path\":\"/a/1\"},{\"op\":\"replace\",\"path\":\"/a\",\"value\":null}]";

const FIELDS: &[u8] = br#"{"f:metadata":{"f:labels":{".":{},"f:a":{}},"f:finalizers":{"v:\"x\"":{}}},
"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{}}},"f:args":{"i:0":{}}}}"#;

const YAML: &[u8] =
    b"# c\n---\na: &x [1, yes, ~, 0x1f, 1e3]\nb: *x\nc: {d: |\n  t\n, e: >-\n  u}\n---\n- a\n- 'b'\n- \"\\u00e9\"\n";

const CRD: &[u8] = br#"{"type":"object","properties":{"spec":{"type":"object","properties":{"size":{"type":"integer","default":1},
"list":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["a"],"items":{"type":"object",
"properties":{"a":{"type":"string"}}}},"m":{"type":"object","additionalProperties":{"x-kubernetes-int-or-string":true}}}}}}"#;

const VM: &[u8] =
    br#"{"apiVersion":"mycelium.network/v1","kind":"EndophyteVM","metadata":{"name":"a"},"spec":{"vmSpec":
{"cpuCores":4,"memorySize":"8Gi","networkConfig":{"attachment":"tap:br0,name=a","mac":"52:54:00:00:00:01"}},
"distributedRAM":{"throttleThreshold":0.7,"throttlingCurve":"linear"},"backupStrategy":{"nodes":["10.0.0.2:7400"]}}}"#;

/// A zero page, a difference and a page packed with lz4, all in the first shard.
#[cfg(feature = "vm")]
const PAGES: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0, 0, 47, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 1, 1, 9, 0, 9, 1, 2, 3, 4, 4, 3, 2, 7, 7, 1, 26,
    31, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 246, 80, 7, 7, 7, 7, 7, 0,
    0, 0, 0, 0, 0, 0, 0,
];

#[cfg(feature = "vm")]
const FRAME: &[u8] = b"MYEF\x01\0\0\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\
\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\00123456789abcdefv";

#[cfg(feature = "vm")]
const ARP: &[u8] = b"\xff\xff\xff\xff\xff\xff\x52\x54\0\0\0\x01\x08\x06\0\x01\x08\0\x06\x04\0\x01\x52\x54\0\0\0\x01\
\x0a\0\0\x02\0\0\0\0\0\0\x0a\0\0\x01";

/// Client flags, GO with block sizes, then a write's header.
#[cfg(feature = "vm")]
const NBD: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\0\0\x01\0\x03\x25\x60\x95\x13\0\x01\0\x01\
\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\x02\0";

/// Hashes of two blocks and a run of zeroes.
#[cfg(feature = "vm")]
const SYNC_HASHES: &[u8] = b"\x02\x05\0\0\0\0\0\0\0\x01abcdefghijklmnopabcdefghijklmnop\0\x07\0\0\0\0\0\0\0\
\x01ABCDEFGHIJKLMNOPABCDEFGHIJKLMNOP";

#[cfg(feature = "vm")]
const SYNC_PLAN: &[u8] = b"\x01\0\0\x10\0\0\0\0\0lineagelineage16\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0";

/// Data and zeroes; the checksum is the target's to add.
#[cfg(feature = "vm")]
const DISK_EPOCH: &[u8] = b"\x01\x09\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\
\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x01abc";

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "json", run: json, seeds: &[POD] },
    Target { name: "yaml", run: yaml, seeds: &[YAML, POD] },
    Target { name: "object", run: object, seeds: &[POD] },
    Target { name: "strategic", run: strategic, seeds: &[TWO] },
    Target { name: "json_patch", run: json_patch, seeds: &[JSON_PATCH] },
    Target { name: "apply", run: apply, seeds: &[TWO] },
    Target { name: "fields", run: fields, seeds: &[FIELDS] },
    Target { name: "crd", run: crd, seeds: &[CRD] },
    Target {
        name: "selector",
        run: selector,
        seeds: &[b"a=b,c in (d,e),!f,g notin (h),i>1", b"status.phase!=Running,a.b=c\\,d"],
    },
    Target { name: "quantity", run: quantity, seeds: &[b"1.5Gi", b"-100m", b"1e-3", b"12E"] },
    Target { name: "vm_document", run: vm_document, seeds: &[VM] },
    #[cfg(feature = "vm")]
    Target { name: "pages", run: pages, seeds: &[PAGES] },
    #[cfg(feature = "vm")]
    Target { name: "frame", run: frame, seeds: &[FRAME] },
    #[cfg(feature = "vm")]
    Target { name: "learned", run: learned, seeds: &[ARP] },
    #[cfg(feature = "vm")]
    Target { name: "nbd", run: nbd, seeds: &[NBD] },
    #[cfg(feature = "vm")]
    Target { name: "disk_sync", run: disk_sync, seeds: &[SYNC_HASHES, SYNC_PLAN] },
    #[cfg(feature = "vm")]
    Target { name: "disk_epoch", run: disk_epoch, seeds: &[DISK_EPOCH] },
    Target { name: "names", run: names, seeds: &[b"example.com/name", b"a-b.c"] },
    #[cfg(feature = "vm")]
    Target {
        name: "link_frame",
        run: link_frame,
        seeds: &[
            b"\x01\x01\x09\0\x05\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x0c\0\0\0",
            b"\x02\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
            b"MYRZ\x01\x00sixteen-bytes-ok\0\0\0\x04\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\x80\0\0\0\0\xd0\x07\0\0",
        ],
    },
    #[cfg(feature = "engine")]
    Target {
        name: "protobuf",
        run: protobuf,
        seeds: &[b"k8s\0\n\t\n\x02v1\x12\x03Pod\x12\x0b\n\t\n\x01p\x12\0\x1a\0\"\0"],
    },
    #[cfg(feature = "engine")]
    Target {
        name: "request",
        run: request,
        seeds: &[b"/apis/apps/v1/namespaces/a/deployments/b/scale?watch=1&limit=5&x=%41"],
    },
    #[cfg(feature = "engine")]
    Target {
        name: "reference",
        run: reference,
        seeds: &[
            b"registry.example:5000/a/b:tag@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            b"nginx",
        ],
    },
];

fn pod() -> &'static Type {
    types().for_gvk("", "v1", "Pod").expect("a built-in type")
}

fn parse(bytes: &[u8]) -> Option<Value> {
    decode::json(bytes, Limits::default()).ok().map(|(value, _)| value)
}

/// Two values, separated by a zero byte.
fn two(bytes: &[u8]) -> Option<(Value, Value)> {
    let at = bytes.iter().position(|b| *b == 0)?;
    Some((parse(&bytes[..at])?, parse(&bytes[at + 1..])?))
}

/// What is accepted can be written and read again.
fn json(bytes: &[u8]) {
    if let Some(value) = parse(bytes) {
        assert_eq!(parse(value.to_string().as_bytes()), Some(value));
    }
}

fn yaml(bytes: &[u8]) {
    let _ = decode::yaml(bytes, Limits::default());
    if let Ok(text) = str::from_utf8(bytes) {
        for document in decode::yaml_documents(text) {
            assert!(document.line <= text.lines().count());
            let _ = decode::yaml(document.text.as_bytes(), Limits::default());
        }
    }
}

/// Everything that happens to a new object before it is stored.
fn object(bytes: &[u8]) {
    let Some(mut value) = parse(bytes) else { return };
    let unknown = decode::check_strict(pod(), &value);
    let typed = decode::check_types(pod(), &value);
    decode::prune(pod(), &mut value);
    assert_eq!(decode::check_strict(pod(), &value), Vec::<String>::new(), "{unknown:?}");
    if typed.is_err() || !value.is_object() {
        return;
    }
    let kind = mycelium_kinds::kind("", "Pod");
    kind.default("v1", &mut value);
    kind.prepare_create(&mut value);
    let _ = kind.validate_create(&value);
    let _ = kind.row(&value, Timestamp::UNIX_EPOCH);
}

/// A patch that fails changes nothing.
fn strategic(bytes: &[u8]) {
    let Some((original, change)) = two(bytes) else { return };
    let mut value = original.clone();
    if patch::strategic(pod(), &mut value, &change).is_err() {
        assert_eq!(value, original);
    }
    patch::merge(&mut value, &change);
}

fn json_patch(bytes: &[u8]) {
    let Some((original, change)) = two(bytes) else { return };
    let mut value = original.clone();
    if patch::json(&mut value, &change).is_err() {
        assert_eq!(value, original);
    }
}

/// Applying the same again changes nothing.
fn apply(bytes: &[u8]) {
    let Some((live, config)) = two(bytes) else { return };
    let operation =
        Operation { manager: "m", force: true, now: Timestamp::UNIX_EPOCH, subresource: "", reset: RESET_STATUS };
    let mut live = live;
    decode::prune(pod(), &mut live);
    if let Ok(once) = apply::apply(pod(), Some(&live), &config, &operation) {
        let twice = apply::apply(pod(), Some(&once), &config, &operation).expect("what was applied can be applied");
        assert_eq!(once, twice);
    }
    let mut new = config;
    apply::update_managed(pod(), Some(&live), &mut new, &operation);
    apply::update_managed(pod(), None, &mut new, &operation);
}

/// What is accepted can be written and read again.
fn fields(bytes: &[u8]) {
    if let Some(set) = parse(bytes).as_ref().and_then(FieldSet::from_fields_v1) {
        assert_eq!(FieldSet::from_fields_v1(&set.clone().into_fields_v1()), Some(set.clone()));
        assert_eq!(set.clone().difference(&set), FieldSet::default());
        assert_eq!(set.clone().union(set.clone()), set);
        let _ = set.paths();
    }
}

fn crd(bytes: &[u8]) {
    let Some(schema) = parse(bytes) else { return };
    let ty = from_crd_schema(Some(&schema), false);
    let mut object =
        serde_json::json!({"apiVersion": "a/v1", "kind": "A", "spec": {"size": "x", "list": [{"a": 1}], "m": {}}});
    let _ = decode::check_strict(&ty, &object);
    decode::prune(&ty, &mut object);
    if schema.is_object() {
        let custom = openapi::Custom {
            group: "a",
            version: "v1",
            kind: "A",
            list_kind: "AList",
            plural: "as",
            namespaced: true,
            schema: Some(&schema),
            status: true,
            scale: true,
        };
        let _ = openapi::v3_document("a", "v1", &[custom]);
    }
}

fn selector(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(selector) = Selector::parse(text) {
        let _ = selector.matches_value(&serde_json::json!({"a": "b", "i": "2"}));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.matches(|_| None);
    }
    if let Some(value) = parse(bytes) {
        let _ = Selector::from_value(&value);
    }
}

/// The canonical form is stable and denotes the same quantity.
fn quantity(bytes: &[u8]) {
    if let Some(quantity) = str::from_utf8(bytes).ok().and_then(|text| text.parse::<Quantity>().ok()) {
        let canonical = quantity.to_string();
        let again: Quantity = canonical.parse().expect("the canonical form parses");
        assert_eq!(again, quantity);
        assert_eq!(again.to_string(), canonical);
        let _ = (quantity.value(), quantity.milli_value());
    }
}

/// An accepted document is accepted again as it prints itself.
fn vm_document(bytes: &[u8]) {
    use mycelium_api::endophyte::EndophyteVM;
    let Some(Ok(vm)) = parse(bytes).map(|value| EndophyteVM::from_value(&value)) else { return };
    let printed = serde_json::to_value(&vm).expect("a document prints itself");
    assert_eq!(EndophyteVM::from_value(&printed), Ok(vm));
}

/// Whatever a section says, it stays inside memory and its bound.
#[cfg(feature = "vm")]
fn pages(bytes: &[u8]) {
    use mycelium_endophyte::codec::{PAGE, PageDecoder, PageSink};
    struct Memory(Vec<[u8; PAGE]>);
    impl PageSink for Memory {
        fn pages(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
            *into = self.0[index as usize];
        }
        fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
            self.0[index as usize] = *from;
        }
    }
    let Ok(decoded) = PageDecoder::new(300, 1 << 20).decode(bytes) else { return };
    assert!(decoded.unpacked_bytes() <= 1 << 20);
    let _ = decoded.apply(&mut Memory(vec![[0; PAGE]; 300]));
}

#[cfg(feature = "vm")]
fn frame(bytes: &[u8]) {
    use mycelium_endophyte::codec::{EpochFrame, Header};
    let Ok(header) = Header::read(bytes) else { return };
    let _ = EpochFrame::open(&bytes.to_vec().into(), &header.id);
}

#[cfg(feature = "vm")]
fn learned(bytes: &[u8]) {
    use mycelium_endophyte::egress::Learned;
    let mut learned = Learned::from_bytes(bytes).unwrap_or_default();
    learned.observe(bytes);
}

<<<<<<< HEAD
/// A client's bytes, cut as the server would cut them.
#[cfg(feature = "vm")]
fn nbd(bytes: &[u8]) {
    use mycelium_endophyte::disk::nbd::proto::{self, Negotiation, Next, OptionHeader, PAYLOAD_MAX, Request};
    let Some((flags, mut rest)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(negotiation) = Negotiation::new(1 << 30, u32::from_be_bytes(*flags)) else { return };
    loop {
        let Some((header, after)) = rest.split_first_chunk::<{ proto::OPTION_LEN }>() else { return };
        let Ok(header) = OptionHeader::decode(header) else { return };
        let Some((data, after)) = after.split_at_checked(header.len as usize) else { return };
        rest = after;
        let mut reply = Vec::new();
        match negotiation.option(header.option, data, &mut reply) {
            Ok(Next::Option) => assert!(!reply.is_empty()),
            Ok(Next::Transmission) => break,
            Ok(Next::Hangup) | Err(_) => return,
        }
    }
    while let Some((header, after)) = rest.split_first_chunk::<{ proto::REQUEST_LEN }>() {
        rest = after;
        let Ok(request) = Request::decode(header) else { return };
        let writes = matches!(request.command, proto::Command::Write { .. });
        assert!(!writes || request.len <= PAYLOAD_MAX);
        let inside = u128::from(request.offset) + u128::from(request.len) <= 1 << 30;
        assert!(inside || !writes || request.check(1 << 30).is_err());
    }
}

#[cfg(feature = "vm")]
fn disk_sync(bytes: &[u8]) {
    use mycelium_endophyte::disk::sync::Message;
    let Ok(message) = Message::decode(bytes.to_vec().into()) else { return };
    assert_eq!(Message::decode(message.encode()), Ok(message));
}

#[cfg(feature = "vm")]
fn disk_epoch(bytes: &[u8]) {
    use mycelium_endophyte::disk::DiskEpoch;
    let _ = DiskEpoch::decode(bytes.to_vec().into());
    let sealed = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    let Ok(epoch) = DiskEpoch::decode(sealed.clone().into()) else { return };
    assert_eq!(epoch.to_bytes(), sealed);
    assert!(epoch.data_bytes() <= bytes.len() as u64);
}

=======
/// What is accepted can be written and read again.
#[cfg(feature = "vm")]
fn link_frame(bytes: &[u8]) {
    use mycelium_rhizomorph::frame::{Frame, Greeting, GreetingKind};
    if let Ok(Some((frame, length))) = Frame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(again, bytes[..length]);
    }
    if let Ok(greeting) = Greeting::decode(bytes)
        && greeting.kind != GreetingKind::Version
    {
        assert_eq!(greeting.encode(), bytes);
    }
}

>>>>>>> 8aa26bc (rhizomorph: joining is for the opener only, hostile chunks, fuzz target, figures)
fn names(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let label = names::is_dns1123_label(text).is_empty();
    assert!(!label || names::is_dns1123_subdomain(text).is_empty());
    let _ = names::is_qualified_name(text);
    let _ = names::is_label_value(text);
    let _ = names::is_port_name(text);
    let _ = names::is_env_var_name(text);
    let _ = names::is_percent(text);
}

#[cfg(feature = "engine")]
fn protobuf(bytes: &[u8]) {
    let _ = mycelium_apiserver::protobuf::decode(bytes);
}

#[cfg(feature = "engine")]
fn request(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let _ = mycelium_apiserver::request::parse_path(path);
    let query = mycelium_apiserver::request::Query::parse(Some(query));
    let _ = (query.flag("watch"), query.number("limit").is_ok());
}

/// An accepted reference has a name that means the same.
#[cfg(feature = "engine")]
fn reference(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<mycelium_image::Reference>() {
        let again: mycelium_image::Reference = reference.name().parse().expect("the full name parses");
        assert_eq!(again.name(), reference.name());
    }
}
