//! Clients that behave badly: memory stays bounded and others are served. One test, since it reads the process's memory.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CMS: &str = "/api/v1/namespaces/default/configmaps";
/// The store keeps 16 MiB of history, and lets a watch fall behind by 32; allocators keep some of what was freed.
const GROWTH_MAX_MIB: i64 = 96;

/// Resident memory of this process, in MiB.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: i64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * 4096 / (1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_others_are_served() {
    let api = local().await;
    a_definition_in_a_hot_loop(&api).await;
    a_watch_that_is_never_read(&api).await;
    schemas_that_are_too_much(&api).await;
}

/// A definition with a schema of about 60 KB; the text makes each generation another.
fn definition(text: &str) -> Value {
    let field = |n: usize| {
        (format!("field{n}"), json!({"type": "string", "description": text, "maxLength": 100, "pattern": "^[a-z]*$"}))
    };
    let fields: serde_json::Map<String, Value> = (0..400).map(field).collect();
    let spec = json!({"type": "object", "properties": fields});
    let schema = json!({"type": "object", "properties": {"spec": spec}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "hots.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "hots", "kind": "Hot"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

async fn a_definition_in_a_hot_loop(api: &Local) {
    api.post(CRDS, &definition("first")).await.expect(201);
    let path = format!("{CRDS}/hots.example.com");
    let mut begun = 0;
    for round in 0..200 {
        api.patch(&path, "merge", &definition(&format!("this is generation {round}"))).await.expect(200);
        // Somebody uses it: the schema is compiled.
        let hot = json!({"apiVersion": "example.com/v1", "kind": "Hot", "metadata": {"name": format!("a{round}")}, "spec": {"field1": "a"}});
        api.post("/apis/example.com/v1/namespaces/default/hots", &hot).await.expect(201);
        // What the process needs once is there by now.
        if round == 40 {
            begun = resident();
        }
    }
    let grown = resident() - begun;
    assert!(grown < GROWTH_MAX_MIB, "{grown} MiB more after 160 generations");
    let wrong =
        json!({"apiVersion": "example.com/v1", "kind": "Hot", "metadata": {"name": "b"}, "spec": {"field1": "A"}});
    assert_eq!(api.post("/apis/example.com/v1/namespaces/default/hots", &wrong).await.code, 422);
    api.delete(&path).await.expect(200);
}

/// One client never reads, one does: the second misses nothing, the first is told that it is too late.
async fn a_watch_that_is_never_read(api: &Local) {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "busy"}});
    let made = api.post(CMS, &config).await.expect(201);
    let from = made["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let path = format!("{CMS}?watch=1&resourceVersion={from}");
    let idle = api.open(&api.who, "GET", &path, &[], "").await;
    let reader = api.open(&api.who, "GET", &path, &[], "").await;
    const ROUNDS: usize = 4000;
    let reading = tokio::spawn(async move {
        let (mut body, mut seen, mut rest) = (reader.into_body().into_data_stream(), 0, Vec::new());
        while seen < ROUNDS {
            rest.extend_from_slice(&body.next().await.expect("more").expect("bytes"));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Value = serde_json::from_slice(&rest[..end]).expect("an event");
                assert_eq!(line["type"], "MODIFIED", "{line}");
                rest.drain(..=end);
                seen += 1;
            }
        }
    });
    let (begun, text) = (resident(), "x".repeat(40_000));
    for round in 0..ROUNDS {
        let change = json!({"data": {"round": round.to_string(), "text": text}});
        api.patch(&format!("{CMS}/busy"), "merge", &change).await.expect(200);
    }
    reading.await.expect("every change was seen");
    let grown = resident() - begun;
    assert!(grown < GROWTH_MAX_MIB, "{grown} MiB more");
    // Now it reads: first what was kept for it, then that the rest is gone.
    let bytes = idle.into_body().collect().await.expect("the watch ends").to_bytes();
    let last = bytes.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).expect("a line");
    let last: Value = serde_json::from_slice(last).expect("an event");
    assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(410)), "{last}");
}

/// Schemas that are enormous, deep or nonsense are refused, or taken and bounded; the server goes on.
async fn schemas_that_are_too_much(api: &Local) {
    let with = |schema: Value| {
        let mut definition = definition("x");
        definition["metadata"]["name"] = json!("bads.example.com");
        definition["spec"]["names"] = json!({"plural": "bads", "kind": "Bad"});
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
        definition
    };
    let mut deep = json!({"type": "string"});
    for _ in 0..40 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let wide: serde_json::Map<String, Value> = (0..60_000)
        .map(|n| (format!("field-with-a-long-name-{n}"), json!({"type": "string", "description": "d"})))
        .collect();
    for (what, schema, codes) in [
        ("deep", deep, &[201_u16][..]),
        ("more than 3 MiB", json!({"type": "object", "properties": wide}), &[413]),
        ("no type", json!({"properties": {"a": {"type": "string"}}}), &[422]),
        ("a reference", json!({"type": "object", "properties": {"a": {"$ref": "#/definitions/a"}}}), &[422]),
        (
            "a pattern that is none",
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            &[422],
        ),
        ("not a schema", json!(["a"]), &[400, 422]),
        (
            "a default that does not fit",
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            &[422],
        ),
    ] {
        let reply = api.post(CRDS, &with(schema)).await;
        assert!(
            codes.contains(&reply.code.as_u16()),
            "{what}: {} {}",
            reply.code,
            &reply.text()[..reply.text().len().min(500)]
        );
        api.delete(&format!("{CRDS}/bads.example.com")).await;
    }
    api.get(CMS).await.expect(200);
}
