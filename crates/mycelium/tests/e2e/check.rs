//! `mycelium check`, and its findings when manifests are applied.

use std::path::{Path, PathBuf};

use crate::support::{Engine, command, mycelium, output};

/// A Service that selects nothing beside a pod, and a ServiceAccount that only the cluster has.
const SHOP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  serviceAccountName: robot
  nodeSelector: {never: here}
  containers: [{name: web, image: "busybox:test"}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: wbe}
  ports: [{port: 80}]
"#;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../check/tests/corpus")
}

/// Exit code, standard output, standard error of a command.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = output(command(mycelium()).args(args).current_dir(corpus()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

#[test]
fn exit_codes_and_output() {
    let (code, text, _) = run(&["check", "good/web.yaml"]);
    assert!(code == 0 && text.starts_with("no faults found: "), "{code} {text}");
    let (code, text, _) = run(&["check", "bad/zones.yaml", "--nodes", "2"]);
    assert!(code == 0 && text.contains("bad/zones.yaml:15: warning: "), "{code} {text}");
    assert_eq!(run(&["check", "bad/zones.yaml", "--nodes", "2", "--strict"]).0, 1);
    assert_eq!(run(&["check", "bad/zones.yaml", "--nodes", "3", "--strict"]).0, 0);
    let (code, text, _) = run(&["check", "bad/services.yaml", "-o", "json"]);
    let findings: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(code == 1 && findings[0]["code"] == "service-selects-nothing" && findings[0]["line"] == 18, "{text}");
    let (code, text, _) = run(&["check", "-k", "kustomize/nested/kubernetes/overlays/development"]);
    assert!(code == 1 && text.contains("overlays/development/kustomization.yaml:4: error: "), "{text}");
    assert_eq!(run(&["check", "kustomize/repaired/overlays/dev"]).0, 0);
    let (code, _, error) = run(&["check", "nowhere.yaml"]);
    assert!(code == 2 && error.contains("nowhere.yaml cannot be read"), "{error}");
    assert_eq!(run(&["check"]).0, 2);
}

#[test]
fn apply_warns_and_goes_on() {
    let engine = Engine::start();
    engine.kubectl(&["create", "serviceaccount", "robot"]);
    let file = engine.dir().join("shop.yaml");
    std::fs::write(&file, SHOP).expect("manifest");
    let (file, kubeconfig) = (file.display().to_string(), engine.kubeconfig().display().to_string());
    let (code, said, warned) = run(&["apply", "--kubeconfig", &kubeconfig, "-f", &file]);
    assert!(code == 0 && said.contains("service/web created"), "{said}{warned}");
    for part in [":14: Service default/web: ", "[service-selects-nothing]", ":7: Pod default/web: ", "[no-node-fits]"] {
        assert!(warned.contains(part), "{part} in {warned}");
    }
    assert!(!warned.contains("service account"), "{warned}");
    let (_, _, quiet) = run(&["apply", "--kubeconfig", &kubeconfig, "--no-check", "-f", &file]);
    assert_eq!(quiet, "");
    let (_, text, _) = run(&["check", &file]);
    assert!(text.contains("[missing-service-account]"), "{text}");
    let (_, text, error) = run(&["check", "--against-cluster", "--kubeconfig", &kubeconfig, &file]);
    assert!(!text.contains("[missing-service-account]") && text.contains("[service-selects-nothing]"), "{text}{error}");
}
