//! Decoding, from case files, and its robustness against any bytes.

mod common;

use common::{cases, type_of};
use mycelium_apimachinery::decode::{self, DecodeError, Limits};
use mycelium_apimachinery::schema::{from_crd_schema, types};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn syntax_errors_are_those_of_go() {
    cases("syntax", |case| {
        let text = case["text"].as_str().expect("a text");
        let result = decode::json(text.as_bytes(), Limits::default());
        match case.get("error") {
            Some(error) => assert_eq!(&json!(result.expect_err("malformed").to_string()), error, "{text}"),
            None => {
                let (value, warnings) = result.expect("well formed");
                let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
                assert_eq!((&value, &json!(warnings)), (&case["value"], &case["warnings"]), "{text}");
            }
        }
    });
}

#[test]
fn unknown_fields_and_wrong_types_are_named_as_kubernetes_names_them() {
    cases("strict", |case| {
        let (ty, object) = (type_of(case), &case["object"]);
        let unknown: Vec<Value> = decode::check_strict(ty, object).into_iter().map(Value::from).collect();
        assert_eq!(&Value::Array(unknown), case.get("unknown").unwrap_or(&json!([])));
        let wrong = decode::check_types(ty, object).err().map(|error| Value::from(error.to_string()));
        assert_eq!(wrong.as_ref(), case.get("wrong"));
        if let Some(pruned) = case.get("pruned") {
            let mut object = object.clone();
            decode::prune(ty, &mut object);
            assert_eq!(&object, pruned, "{object:#}");
        }
    });
}

#[test]
fn custom_resources_keep_what_their_schema_says() {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer"},
            "port": {"x-kubernetes-int-or-string": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "nothing": {"type": "string", "nullable": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        }},
    }});
    let ty = from_crd_schema(Some(&schema), false);
    let mut object = json!({
        "apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": "x", "other": 1},
        "spec": {"size": 1, "port": "http", "free": {"b": 1}, "nothing": null, "list": [{"a": "1", "b": 2}], "more": 1},
    });
    let unknown = decode::check_strict(&ty, &object);
    assert_eq!(
        unknown,
        ["unknown field \"metadata.other\"", "unknown field \"spec.list[0].b\"", "unknown field \"spec.more\""]
    );
    decode::prune(&ty, &mut object);
    assert_eq!(
        object,
        json!({
            "apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": "x"},
            "spec": {"size": 1, "port": "http", "free": {"b": 1}, "nothing": null, "list": [{"a": "1"}]},
        })
    );
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let limits = Limits::default();
    assert!(decode::json(nested(limits.depth).as_bytes(), limits).is_ok());
    let error = decode::json(nested(limits.depth + 1).as_bytes(), limits).expect_err("too deep");
    assert_eq!(error, DecodeError::TooDeep);
    assert!(decode::json(nested(1_000_000).as_bytes(), limits).is_err());
    assert!(decode::yaml(nested(100_000).as_bytes(), limits).is_err());
}

#[test]
fn yaml_is_read_as_kubectl_reads_it() {
    let read = |text: &str| decode::yaml(text.as_bytes(), Limits::default());
    let (value, warnings) =
        read("a: 1\nb: yes\nc: 'yes'\nd: 0644\ne: 1.5\nf: null\n1: x\nh: |\n  t\n  u\ni: 1e3").expect("valid");
    let expected =
        json!({"a": 1, "b": true, "c": "yes", "d": 420, "e": 1.5, "f": null, "1": "x", "h": "t\nu\n", "i": 1e3});
    assert_eq!((value, warnings.len()), (expected, 0));
    let (value, warnings) = read("a: 1\nb: 2\na: 3").expect("valid");
    assert_eq!(value, json!({"a": 3, "b": 2}));
    assert_eq!(warnings[0].0, "yaml: unmarshal errors:\n  line 3: key \"a\" already set in map");
    assert!(read("a: [1, 2").is_err());
    assert!(read("a: b: c").is_err());
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(b'b'..=b'j')
            .map(|c| {
                let (name, last) = (char::from(c), char::from(c - 1));
                format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(","))
            })
            .collect::<String>();
    assert!(read(&bomb).is_err());
}

#[test]
fn a_stream_has_documents_with_lines() {
    let documents = decode::yaml_documents("# nothing\n---\na: 1\n---\n---\nb: |\n  x\n  ---x\n--- # last\nc: 3\n");
    let found: Vec<(usize, &str)> = documents.iter().map(|d| (d.line, d.text.trim())).collect();
    assert_eq!(found, [(2, "a: 1"), (5, "b: |\n  x\n  ---x"), (9, "# last\nc: 3")]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode::json(&bytes, Limits::default());
        let _ = decode::yaml(&bytes, Limits::default());
    }

    #[test]
    fn near_json_never_panics_and_agrees_with_serde(text in "[\\[\\]{}\",:0-9eE.+\\-\\\\u a-bdn\u{e9}tflrs]{0,24}") {
        let ours = decode::json(text.as_bytes(), Limits::default());
        if let Ok(theirs) = serde_json::from_str::<Value>(&text) {
            prop_assert_eq!(ours.expect("well formed").0, theirs);
        }
        let _ = decode::yaml_documents(&text);
    }

    #[test]
    fn what_is_written_is_read(value in any_value()) {
        let (read, warnings) = decode::json(value.to_string().as_bytes(), Limits::default()).expect("well formed");
        prop_assert_eq!(&read, &value);
        prop_assert!(warnings.is_empty());
        let ty = types().for_gvk("", "v1", "Pod").expect("known");
        let mut pruned = read;
        let unknown = decode::check_strict(ty, &pruned);
        decode::prune(ty, &mut pruned);
        prop_assert_eq!(decode::check_strict(ty, &pruned), Vec::<String>::new(), "{:?}", unknown);
        let _ = decode::check_types(ty, &pruned);
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let keys = "spec|metadata|labels|containers|name|resources|limits|.{0,4}";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(keys, inner, 0..5).prop_map(|m| json!(m)),
        ]
    })
}
