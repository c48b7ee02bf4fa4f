//! Targets of the engine: what arrives at the API server, the node and the network, and what comes from its own file.

use std::sync::LazyLock;

use hickory_proto::op::Message;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use mycelium_api::env::Env;
use mycelium_apiserver::auth::tokens::{Bound, Tokens};
use mycelium_apiserver::measured::exposition::Exposition;
use mycelium_apiserver::media::{self, Accept};
use mycelium_apiserver::read::options::ListOptions;
use mycelium_apiserver::request::{self, Query};
use mycelium_apiserver::{Pki, protobuf};
use mycelium_image::unpack::{self, Limits};
use mycelium_image::{Credentials, Reference};
use mycelium_ingress::annotations;
use mycelium_net::NetConfig;
use mycelium_net::cluster::Cluster;
use mycelium_net::dns::Zone;
use mycelium_net::resolv::Host;
use mycelium_node::service::spdy::{Decoder, Encoder, Frame, Headers};
use mycelium_store::{Record, RecordKind, decode_record, encode_record};

use super::Target;

const ENVELOPE: &[u8] = b"k8s\0\n\t\n\x02v1\x12\x03Pod\x12\x0b\n\t\n\x01p\x12\0\x1a\0\"\0";

const DNS: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x0akubernetes\x07default\x03svc\x07cluster\x05local\
\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";

const REFERENCE: &[u8] =
    b"registry.example:5000/a/b:tag@sha256:0000000000000000000000000000000000000000000000000000000000000000";

pub const TARGETS: [Target; 13] = [
    Target::new(
        "ingress",
        ingress,
        &[
            b"rewrite-target=/$2?x=$arg_y\nproxy-read-timeout=1m 30s\nproxy-body-size=8m\nlimit-rps=10",
            b"/a//../%2e%2e/b",
            b"whitelist-source-range=10.0.0.0/8, ::1\naffinity=cookie",
        ],
    ),
    Target::new(
        "crd-schema",
        crd_schema,
        &[b"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"^a$\",\"default\":\"a\"}},\"x-kubernetes-validations\":[{\"rule\":\"self.a == 'a'\"}]}\0{\"a\":\"b\"}"],
    ),
    Target { written: samples, ..Target::new("protobuf", protobuf, &[ENVELOPE]) },
    Target::new(
        "request",
        request,
        &[
            b"/apis/apps/v1/namespaces/a/deployments/b/scale?watch=1&limit=5&x=%41",
            b"/api/v1/pods?resourceVersion=5&resourceVersionMatch=Exact&continue=eyJydiI6NX0",
            b"/api/v1/watch/namespaces/a/services/https:b:c/proxy/x//y?z",
        ],
    ),
    Target::new(
        "exposition",
        exposition,
        &[b"# TYPE a_total counter\na_total{b=\"c \\\"d\\\"\\n\",e=\"\"} 1.5e3 17\n# TYPE f histogram\nf_count 2 # {g=\"h\"} 1\n"],
    ),
    Target::new(
        "media",
        media_types,
        &[b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json; q=0.5, */*", b"application/yaml"],
    ),
    Target { written: || vec![TOKENS.1.clone().into_bytes()], cost: 10, ..Target::new("token", token, &[b"a.b.c"]) },
    Target::new("reference", reference, &[REFERENCE, b"nginx"]),
    Target::new(
        "credentials",
        credentials,
        &[br#"{"auths":{"https://r.example/v1/":{"auth":"dTpw"},"b":{"username":"u","password":"p"}}}"#],
    ),
    Target { written: || vec![layer_sample()], cost: 20, ..Target::new("layer", layer, &[]) },
    Target { written: || vec![spdy_sample()], ..Target::new("spdy", spdy, &[]) },
    Target { written: || vec![record_sample()], ..Target::new("record", record, &[]) },
    Target { cost: 2, ..Target::new("dns", dns, &[DNS, b"nameserver 10.0.0.1\nsearch a b\noptions ndots:5\n"]) },
];

/// Annotations, a line each; and a path.
fn ingress(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let annotations = pairs.map(|(name, value)| (format!("{}{name}", annotations::PREFIX), value.to_owned())).collect();
    let _ = annotations::read(&annotations);
    if let Some(path) = mycelium_ingress::rules::path::normal(text) {
        assert!(path.starts_with('/'));
    }
}

fn env() -> Env {
    Env::new(|| Timestamp::UNIX_EPOCH, || 7)
}

/// The objects that the decoder's own test reads.
fn samples() -> Vec<Vec<u8>> {
    let lines = include_str!("../../../crates/apiserver/tests/data/protobuf.jsonl").lines();
    let parsed = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    parsed.map(|sample| base64(sample["protobuf"].as_str().expect("text"))).collect()
}

fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter_map(|b| LETTERS.iter().position(|l| *l == b));
    let bits: Vec<bool> = digits.flat_map(|d| (0..6).rev().map(move |bit| d >> bit & 1 == 1)).collect();
    bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

/// What is decoded can be written as JSON.
fn protobuf(bytes: &[u8]) {
    if let Ok(value) = protobuf::decode(bytes) {
        assert!(value.to_string().starts_with('{'));
    }
}

/// Every series that is read is a number with a name.
fn exposition(bytes: &[u8]) {
    let found = Exposition::parse(&String::from_utf8_lossy(bytes));
    for series in &found.series {
        assert!(series.value.is_finite() && !series.name.is_empty());
        assert!(found.sum(&series.name, |_| true).is_some());
    }
}

fn request(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let _ = request::parse_path(path);
    let query = Query::parse(Some(query));
    let _ = (query.flag("watch"), query.number("limit").is_ok());
    for watch in [false, true] {
        let _ = ListOptions::parse(&query, watch);
    }
}

fn media_types(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    for name in ["accept", "content-type"] {
        headers.insert(HeaderName::from_static(name), value.clone());
    }
    let _ = (Accept::parse(&headers), media::body_format(&headers), media::patch_format(&headers));
}

static TOKENS: LazyLock<(Tokens, String)> = LazyLock::new(|| {
    let pki = Pki::in_memory(env(), &[]).expect("keys");
    let tokens = Tokens::new(env(), pki.service_account_key()).expect("a signer");
    let bound = serde_json::from_value::<Bound>(serde_json::json!({"namespace": "a",
        "serviceaccount": {"name": "b", "uid": "c"}}));
    let (token, _) = tokens.issue(&[], 60, bound.expect("claims")).expect("a token");
    (tokens, token)
});

/// Nothing is accepted but what was signed.
fn token(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(claims) = TOKENS.0.verify(text) {
        assert_eq!(claims.sub, "system:serviceaccount:a:b");
    }
}

/// An accepted reference has a name that means the same.
fn reference(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let again: Reference = reference.name().parse().expect("the full name parses");
        assert_eq!(again.name(), reference.name());
    }
}

fn credentials(bytes: &[u8]) {
    let _ = Credentials::none().add_docker_config(bytes);
    let _ = Credentials::none().add_docker_cfg(bytes);
}

fn layer_sample() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, link) in [
        ("d/", tar::EntryType::Directory, ""),
        ("d/f", tar::EntryType::Regular, ""),
        ("d/s", tar::EntryType::Symlink, "../../../../up"),
        ("h", tar::EntryType::Link, "d/f"),
        ("d/.wh.x", tar::EntryType::Regular, ""),
        ("d/.wh..wh..opq", tar::EntryType::Regular, ""),
        ("d/s/through", tar::EntryType::Regular, ""),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        let file = kind == tar::EntryType::Regular && !name.contains(".wh.");
        header.set_size(if file { 5 } else { 0 });
        let content: &[u8] = if file { b"hello" } else { b"" };
        let written = match link {
            "" => tar.append_data(&mut header, name, content),
            link => tar.append_link(&mut header, name, link),
        };
        written.expect("writing to memory");
    }
    tar.into_inner().expect("writing to memory")
}

/// Whatever a layer says, nothing appears outside of its directory.
fn layer(bytes: &[u8]) {
    let outer = tempfile::tempdir().expect("a temporary directory");
    let root = outer.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    if let Ok(content) = unpack::decompress(bytes) {
        let _ = unpack::unpack(content, &root, &[], &Limits { bytes: 1 << 20, entries: 64 });
    }
    let beside = std::fs::read_dir(outer.path()).expect("a directory").count();
    assert_eq!(beside, 1, "something was written beside the layer");
}

fn spdy_sample() -> Vec<u8> {
    let headers: Headers = vec![("streamtype".into(), "data".into()), ("port".into(), "80".into())];
    let mut encoder = Encoder::default();
    [
        Frame::Open { stream: 1, headers: headers.clone(), last: true },
        Frame::Reply { stream: 1, headers },
        Frame::Data { stream: 1, bytes: b"hello".to_vec(), last: true },
        Frame::Ping(7),
        Frame::Reset { stream: 1 },
        Frame::GoAway,
    ]
    .iter()
    .flat_map(|frame| encoder.encode(frame))
    .collect()
}

/// Frames up to the first error, from bytes that arrive in pieces.
fn frames(bytes: &[u8], step: usize) -> Vec<Frame> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

/// In which pieces bytes arrive does not matter, and what was read can be written and read again.
fn spdy(bytes: &[u8]) {
    let whole = frames(bytes, bytes.len());
    assert_eq!(frames(bytes, 3), whole);
    let kept: Vec<Frame> = whole.into_iter().filter(|frame| *frame != Frame::Other).collect();
    let mut encoder = Encoder::default();
    let again: Vec<u8> = kept.iter().flat_map(|frame| encoder.encode(frame)).collect();
    assert_eq!(frames(&again, again.len()), kept);
}

/// A table key with its length before it, and a table value.
fn record_sample() -> Vec<u8> {
    let sample = Record { revision: 9, key: "/registry/a", kind: RecordKind::Put, create_revision: 3, value: b"{}" };
    let (key, value) = encode_record(&sample);
    [&[key.len() as u8], key.as_slice(), &value].concat()
}

/// What decodes encodes to the same bytes, and one changed bit is noticed.
fn record(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else { return };
    if let Ok(record) = decode_record(key, value) {
        assert_eq!(encode_record(&record), (key.to_vec(), value.to_vec()));
    }
    let Ok(text) = str::from_utf8(key) else { return };
    let made = Record { revision: 5, key: text, kind: RecordKind::Put, create_revision: 5, value };
    let (key, mut value) = encode_record(&made);
    assert_eq!(decode_record(&key, &value), Ok(made));
    let at = usize::from(*length) % value.len();
    value[at] ^= 1 << (length % 8);
    assert!(decode_record(&key, &value).is_err());
}

/// Questions about any name are answered.
fn dns(bytes: &[u8]) {
    let _ = Host::parse(&String::from_utf8_lossy(bytes));
    let net = |text: &str| text.parse().expect("a network");
    let zone = Zone::new(&NetConfig::new("abcdef", net("10.1.0.0/16"), net("10.2.0.0/16")));
    let Ok(message) = Message::from_vec(bytes) else { return };
    for question in &message.queries {
        let _ = zone.lookup(&Cluster::default(), question.name(), question.query_type());
    }
}

/// A schema, and an object to judge by it.
fn crd_schema(bytes: &[u8]) {
    use mycelium_apiserver::custom::{rules, structural, validate};
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let mut next = || serde_json::from_slice::<serde_json::Value>(parts.next().unwrap_or_default()).ok();
    let (Some(schema), Some(mut object)) = (next(), next()) else { return };
    let definition = serde_json::json!({"metadata": {"name": "a.b.c"}, "spec": {"group": "b.c", "scope": "Cluster",
        "names": {"plural": "a", "kind": "A"}, "versions": [{"name": "v1", "storage": true, "served": true,
            "schema": {"openAPIV3Schema": schema}}]}});
    let _ = structural::check_definition(&definition, None);
    validate::fill_defaults(&schema, &mut object);
    let _ = validate::check(&schema, &validate::Patterns::of(&schema), &object, None);
    if let Some(rules) = rules::Rules::of(&schema) {
        let _ = rules.check(&object, Some(&object));
    }
}
