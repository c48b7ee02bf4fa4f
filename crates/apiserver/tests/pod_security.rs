//! Pod Security labels: refused, warned of, and what is there already.
#![allow(missing_docs)]

mod common;

use common::local;
use serde_json::{Value, json};

fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(mode, level)| (format!("pod-security.kubernetes.io/{mode}"), json!(level))).collect();
    json!({"metadata": {"name": name, "labels": labels}})
}

#[tokio::test]
async fn levels_are_enforced_and_warned_of() {
    let api = local().await;
    let wrong = api.post("/api/v1/namespaces", &namespace("wrong", &[("enforce", "strict")])).await;
    assert_eq!(
        wrong.message(),
        "Namespace \"wrong\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \
         \"strict\": must be one of privileged, baseline, restricted"
    );
    let labels = [("enforce", "baseline"), ("warn", "restricted"), ("warn-version", "v1.30")];
    api.post("/api/v1/namespaces", &namespace("tight", &labels)).await.expect(201);
    let account = json!({"metadata": {"name": "default"}});
    let _ = api.post("/api/v1/namespaces/tight/serviceaccounts", &account).await;
    let pods = "/api/v1/namespaces/tight/pods";
    let pod = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "a", "image": "a"}]);
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let refused = api.post(pods, &pod("host", json!({"hostNetwork": true}))).await;
    assert_eq!(
        refused.message(),
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    refused.expect(403);
    let warned = api.post(pods, &pod("plain", json!({}))).await;
    assert!(
        warned.warnings()[0].starts_with("299 - \"would violate PodSecurity \\\"restricted:v1.30\\\": allowPrivilege"),
        "{:?}",
        warned.warnings()
    );
    warned.expect(201);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": template}});
    let made = api.post("/apis/apps/v1/namespaces/tight/deployments", &deployment).await;
    assert!(made.warnings()[0].contains("would violate PodSecurity"), "{:?}", made.warnings());
    made.expect(201);
    let stricter = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let stricter = api.patch("/api/v1/namespaces/tight", "merge", &stricter).await;
    let warnings = stricter.warnings();
    assert!(warnings[0].contains("existing pods in namespace"), "{warnings:?}");
    assert!(warnings[1].contains("plain: allowPrivilegeEscalation != false, unrestricted"), "{warnings:?}");
}
