//! The targets. Each takes any bytes.

#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "vm")]
mod vm;

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
#[derive(Clone, Copy)]
pub struct Target {
    /// Name.
    pub name: &'static str,
    /// The function under test.
    pub run: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: &'static [&'static [u8]],
    /// More of them, which take a program to write.
    pub written: fn() -> Vec<Vec<u8>>,
    /// How many times as long as the others a round takes.
    pub cost: u64,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]), seeds: &'static [&'static [u8]]) -> Self {
        Self { name, run, seeds, written: Vec::new, cost: 1 }
    }

    /// All inputs to start from.
    pub fn inputs(&self) -> Vec<Vec<u8>> {
        self.seeds.iter().map(|seed| seed.to_vec()).chain((self.written)()).collect()
    }
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

const KUSTOMIZATION: &[u8] = b"namespace: a\ncommonLabels: {b: c}\nresources: [b, app.yaml]\npatches:\n- {path: p.yaml, target: {kind: Pod}}\n\
configMapGenerator:\n- {name: m, behavior: merge, literals: [a=b]}\nimages: [{name: x, newTag: 2}]\nreplicas: [{name: w, count: 1}]\n";

const VM: &[u8] =
    br#"{"apiVersion":"mycelium.network/v1","kind":"EndophyteVM","metadata":{"name":"a"},"spec":{"vmSpec":
{"cpuCores":4,"memorySize":"8Gi","networkConfig":{"attachment":"tap:br0,name=a","mac":"52:54:00:00:00:01"}},
"distributedRAM":{"throttleThreshold":0.7,"throttlingCurve":"linear"},"backupStrategy":{"nodes":["10.0.0.2:7400"]}}}"#;

/// Every target.
pub fn all() -> Vec<Target> {
    let all = LIBRARY.into_iter();
    #[cfg(feature = "engine")]
    let all = all.chain(engine::TARGETS);
    #[cfg(feature = "vm")]
    let all = all.chain(vm::TARGETS);
    all.collect()
}

/// The target of that name.
pub fn named(name: &str) -> Option<Target> {
    all().into_iter().find(|target| target.name == name)
}

const LIBRARY: [Target; 14] = [
    Target::new("cel", cel, &[b"self.a.all(x, x > 1) && size(self.b) < 3 || self.?c.orValue('d').matches('^d')"]),
    Target::new("json", json, &[POD]),
    Target::new("yaml", yaml, &[YAML, POD]),
    Target::new("object", object, &[POD]),
    Target::new("strategic", strategic, &[TWO]),
    Target::new("json_patch", json_patch, &[JSON_PATCH]),
    Target::new("apply", apply, &[TWO]),
    Target::new("fields", fields, &[FIELDS]),
    Target::new("crd", crd, &[CRD]),
    Target::new("selector", selector, &[b"a=b,c in (d,e),!f,g notin (h),i>1", b"status.phase!=Running,a.b=c\\,d"]),
    Target::new("quantity", quantity, &[b"1.5Gi", b"-100m", b"1e-3", b"12E"]),
    Target::new("vm_document", vm_document, &[VM]),
    Target::new("names", names, &[b"example.com/name", b"a-b.c"]),
    Target { written: manifests, cost: 20, ..Target::new("check", check, &[KUSTOMIZATION, POD]) },
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
            schema: Some(bytes),
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

/// Manifests that are right, to begin with.
fn manifests() -> Vec<Vec<u8>> {
    let texts = [
        include_str!("../../crates/check/tests/corpus/good/web.yaml"),
        include_str!("../../crates/check/tests/corpus/good/database.yaml"),
    ];
    texts.iter().flat_map(|text| text.split("---\n")).map(|text| text.as_bytes().to_vec()).collect()
}

/// Each finding stands on a line of its file.
fn check(bytes: &[u8]) {
    use mycelium_check::{Context, Set, kustomize, parse, set};
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (documents, mut findings) = parse("f", text);
    let (objects, more) = set::objects(documents);
    findings.extend(more);
    findings.extend(mycelium_check::check(&Set::new(objects, Vec::new(), Context::default())));
    let built = kustomize::build(&OneText(text), std::path::Path::new("/a"));
    findings.extend(built.findings);
    findings.extend(mycelium_check::check(&Set::new(built.objects, Vec::new(), Context::default())));
    let lines = text.lines().count() + 1;
    assert!(findings.iter().all(|finding| (1..=lines).contains(&finding.line)), "{findings:?}");
}

/// A folder where every file has the same text.
struct OneText<'a>(&'a str);

impl mycelium_check::Source for OneText<'_> {
    fn read(&self, _: &std::path::Path) -> std::io::Result<String> {
        Ok(self.0.to_owned())
    }

    fn entry(&self, path: &std::path::Path) -> Option<mycelium_check::Entry> {
        path.extension().is_some_and(|extension| extension == "yaml").then_some(mycelium_check::Entry::File)
    }

    fn names(&self, _: &std::path::Path) -> Vec<String> {
        Vec::new()
    }

    fn show(&self, path: &std::path::Path) -> String {
        path.display().to_string()
    }
}

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

/// An expression, checked and evaluated within its budget.
fn cel(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(program) = mycelium_cel::Program::parse(text) else { return };
    let object = serde_json::json!({"a": [1, 2, 3], "b": "text", "m": {"k": 1.5, "l": null}});
    let declared = mycelium_cel::Declared { names: [("self".to_owned(), None)].into(), variables: Vec::new() };
    let _ = mycelium_cel::check(&program, &declared);
    let mut bindings = mycelium_cel::Bindings::default();
    bindings.set("self", mycelium_cel::Value::json(&object, None));
    let _ = program.run(&bindings, &mycelium_cel::Limits::new(100_000, 100_000));
}
