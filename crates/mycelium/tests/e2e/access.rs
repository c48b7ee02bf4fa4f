//! What people may do, and what the cluster refuses: seen through kubectl.

use crate::support::{Engine, command, eventually, mycelium, output, run};

const TREES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: trees.forest.example.com}
spec:
  group: forest.example.com
  scope: Namespaced
  names: {plural: trees, kind: Tree}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations: [{rule: self.low <= self.high, message: low is over high}]
            properties: {low: {type: integer}, high: {type: integer}}
"#;

const LIMITS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/audit: restricted}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: small, namespace: shop}
spec: {hard: {count/configmaps: "2"}}
"#;

#[test]
fn access_and_refusals_through_kubectl() {
    let mut engine = Engine::prepare();
    let log = engine.dir().join("audit.log");
    engine.options = vec![format!("--audit-log={}", log.display())];
    engine.up();
    engine.apply(LIMITS);
    engine.apply(TREES);
    engine.kubectl(&["wait", "--for=condition=Established", "crd/trees.forest.example.com", "--timeout=30s"]);
    let tree = "apiVersion: forest.example.com/v1\nkind: Tree\nmetadata: {name: a}\nspec: {low: 2, high: 1}\n";
    assert!(refused(&engine, tree).contains("spec: Invalid value: \"object\": low is over high"));
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {hostPID: true, containers: [{name: a, image: a}]}\n";
    let refused = refused(&engine, host);
    assert!(refused.contains("violates PodSecurity \"baseline:latest\": host namespaces (hostPID=true)"), "{refused}");
    // A person with a role in one namespace.
    let file = engine.dir().join("ann.kubeconfig");
    let mut add = command(mycelium());
    add.args(["user", "add", "ann", "--role", "edit", "-n", "shop", "--data-dir"]).arg(engine.dir());
    add.arg("-o").arg(&file);
    assert!(run(&mut add).contains("user ann has the role edit in shop"));
    let ann = |line: &str| {
        let mut kubectl = command("kubectl");
        kubectl.env("HOME", engine.dir()).arg("--kubeconfig").arg(&file).args(line.split(' '));
        let said = output(&mut kubectl);
        (
            said.status.success(),
            String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr),
        )
    };
    let (_, list) = ann("auth can-i --list");
    assert!(list.contains("deployments.apps") && list.contains("pods/exec"), "{list}");
    assert!(ann("auth can-i create pods").0 && !ann("auth can-i create pods -n default").0);
    assert!(!ann("get nodes").0);
    // One configmap there is already, with the authority's certificate.
    engine.kubectl(&["wait", "--for=create", "configmap/kube-root-ca.crt", "-n", "shop", "--timeout=30s"]);
    assert!(ann("create configmap one").0);
    let (created, text) = ann("create configmap two");
    assert!(
        !created && text.contains("exceeded quota: small, requested: count/configmaps=1, used: count/configmaps=2, limited: count/configmaps=2"),
        "{text}"
    );
    secrets_are_unreadable_on_the_disk(&engine);
    requests_are_noted_down(&engine, &log);
}

/// What is in a Secret is nowhere in the state file, neither as it is nor encoded; other objects are.
fn secrets_are_unreadable_on_the_disk(engine: &Engine) {
    engine.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=key=underground-mycelium"]);
    engine.kubectl(&["create", "configmap", "shown", "--from-literal=key=overground-mushroom"]);
    let state = std::fs::read(engine.dir().join("state")).expect("the state file");
    let holds = |text: &str| state.windows(text.len()).any(|window| window == text.as_bytes());
    let encoded = engine.value("secret/hidden", "{.data.key}");
    assert_eq!(encoded, "dW5kZXJncm91bmQtbXljZWxpdW0=");
    assert!(holds("overground-mushroom"), "it is looked for where objects are");
    assert!(!holds("underground-mycelium") && !holds(&encoded), "a Secret is readable on the disk");
}

/// One line of JSON for each request: who, what, how it ended; and what a Pod Security label would have refused.
fn requests_are_noted_down(engine: &Engine, log: &std::path::Path) {
    engine.kubectl(&["run", "plain", "-n", "shop", "--image=busybox:test"]);
    let noted = |what: &str, wanted: &dyn Fn(&serde_json::Value) -> bool| {
        eventually(what, || {
            let text = std::fs::read_to_string(log).map_err(|error| error.to_string())?;
            let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            if lines.into_iter().any(|line: serde_json::Value| wanted(&line)) { Ok(()) } else { Err(text) }
        });
    };
    noted("a refusal", &|line| {
        line["user"]["username"] == "ann"
            && line["verb"] == "list"
            && line["objectRef"]["resource"] == "nodes"
            && line["responseStatus"]["code"] == 403
    });
    noted("what would be refused", &|line| {
        line["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().is_some_and(|text| {
            text.starts_with("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation")
        })
    });
}

/// What kubectl says about a manifest that is refused.
fn refused(engine: &Engine, manifest: &str) -> String {
    let file = engine.dir().join("refused.yaml");
    std::fs::write(&file, manifest).expect("a manifest");
    engine.kubectl_fails(&["apply", "-f", &file.display().to_string()])
}
