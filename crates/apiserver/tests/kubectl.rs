//! The real kubectl against the server over TLS.
#![allow(missing_docs)]

mod common;

use common::start;

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: conf\ndata:\n  a: one\n";

#[test]
fn objects_come_and_go() {
    let server = start();
    assert!(server.kubectl(&["version"]).contains("v1.35.0+mycelium"));
    server.kubectl(&["create", "namespace", "shop"]);
    server.kubectl(&["create", "configmap", "cm", "--from-literal=a=b", "-n", "shop"]);
    assert!(server.kubectl(&["get", "cm", "-n", "shop"]).contains("cm"));
    assert_eq!(server.kubectl(&["get", "cm", "cm", "-n", "shop", "-o", "jsonpath={.data.a}"]), "b");
    server.kubectl(&["label", "cm", "cm", "-n", "shop", "x=y"]);
    server.kubectl(&["annotate", "cm", "cm", "-n", "shop", "note=text"]);
    assert!(server.kubectl(&["get", "cm", "-n", "shop", "-l", "x=y", "-o", "name"]).contains("configmap/cm"));
    assert_eq!(server.kubectl(&["get", "cm", "-n", "shop", "-l", "x=z", "-o", "name"]), "");
    let again = server.kubectl_with(&["create", "configmap", "cm", "-n", "shop"], "");
    assert!(!again.ok);
    assert!(again.err.contains("configmaps \"cm\" already exists"), "{}", again.err);
    server.kubectl(&["delete", "cm", "cm", "-n", "shop"]);
    let gone = server.kubectl_with(&["get", "cm", "cm", "-n", "shop"], "");
    assert!(gone.err.contains("configmaps \"cm\" not found"), "{}", gone.err);
    let nowhere = server.kubectl_with(&["create", "configmap", "cm", "-n", "nowhere"], "");
    assert!(nowhere.err.contains("namespaces \"nowhere\" not found"), "{}", nowhere.err);
}

#[test]
fn apply_works_both_ways() {
    let server = start();
    assert!(server.kubectl_in(&["apply", "-f", "-"], CONFIG).contains("configmap/conf created"));
    assert!(server.kubectl_in(&["apply", "-f", "-"], CONFIG).contains("configmap/conf unchanged"));
    let changed = CONFIG.replace("one", "two");
    assert!(server.kubectl_in(&["apply", "-f", "-"], &changed).contains("configmap/conf configured"));
    assert_eq!(server.kubectl(&["get", "cm", "conf", "-o", "jsonpath={.data.a}"]), "two");
    let diff = server.kubectl_with(&["diff", "-f", "-"], CONFIG);
    assert!(diff.out.contains("+  a: one"), "{}{}", diff.out, diff.err);

    let other = CONFIG.replace("conf", "served");
    assert!(server.kubectl_in(&["apply", "--server-side", "-f", "-"], &other).contains("serverside-applied"));
    let taken = server
        .kubectl_with(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &other.replace("one", "three"));
    assert!(!taken.ok);
    assert!(taken.err.contains("conflict with \"kubectl\": .data.a"), "{}", taken.err);
    server.kubectl_in(
        &["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"],
        &other.replace("one", "three"),
    );
    assert_eq!(server.kubectl(&["get", "cm", "served", "-o", "jsonpath={.data.a}"]), "three");
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node-1
  containers: [{name: web, image: 'nginx:1', ports: [{containerPort: 80}]}]
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec: {containers: [{name: shop, image: 'shop:1', env: [{name: A, value: b}]}]}
";

const EVENT: &str = "
apiVersion: v1
kind: Event
metadata: {name: web.1}
involvedObject: {apiVersion: v1, kind: Pod, namespace: default, name: web, uid: UID}
type: Normal
reason: Because
message: text of the event
count: 1
firstTimestamp: 2026-01-01T00:00:00Z
lastTimestamp: 2026-01-01T00:00:00Z
source: {component: test}
";

#[test]
fn people_see_tables() {
    let server = start();
    server.kubectl_in(&["apply", "-f", "-"], POD);
    server.kubectl_in(&["apply", "-f", "-"], DEPLOYMENT);
    let pods = server.kubectl(&["get", "pods", "-o", "wide"]);
    for word in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "NODE", "web", "0/1", "Pending", "node-1"] {
        assert!(pods.contains(word), "{word}: {pods}");
    }
    let all = server.kubectl(&["get", "all", "-A"]);
    assert!(all.contains("deployment.apps/shop") && all.contains("pod/web"), "{all}");
    assert!(server.kubectl(&["get", "ns"]).contains("kube-system"));
    assert!(server.kubectl(&["get", "pods", "--show-labels"]).contains("app=web"));
    assert!(server.kubectl(&["get", "pods", "--field-selector=spec.nodeName=node-1"]).contains("web"));
    let uid = server.kubectl(&["get", "pod", "web", "-o", "jsonpath={.metadata.uid}"]);
    let event = EVENT.replace("UID", &uid);
    server.kubectl_in(&["create", "-f", "-"], &event);
    let described = server.kubectl(&["describe", "pod", "web"]);
    assert!(described.contains("nginx:1") && described.contains("text of the event"), "{described}");
    assert!(server.kubectl(&["events", "--for", "pod/web"]).contains("text of the event"));
    assert!(server.kubectl(&["describe", "deployment", "shop"]).contains("2 desired"));
    assert!(server.kubectl(&["get", "pod", "web", "-o", "yaml"]).contains("serviceAccountName: default"));
    assert!(server.kubectl(&["explain", "pod.spec.containers.image"]).contains("FIELD: image <string>"));
    let resources = server.kubectl(&["api-resources"]);
    for line in ["deploy", "configmaps", "horizontalpodautoscalers", "storageclasses", "networkpolicies"] {
        assert!(resources.contains(line), "{line}: {resources}");
    }
    assert!(server.kubectl(&["api-versions"]).contains("apps/v1"));
    assert!(server.kubectl(&["cluster-info"]).contains(&server.url));
    assert_eq!(server.kubectl(&["auth", "can-i", "create", "pods"]).trim(), "yes");
    let no = server.kubectl_with(&["auth", "can-i", "create", "pods", "--as=ann"], "");
    assert_eq!(no.out.trim(), "no");
    assert!(server.kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
    let refused = server.kubectl_with(&["get", "pods", "--as=ann"], "");
    assert!(refused.err.contains("User \"ann\" cannot list resource \"pods\" in API group \"\""), "{}", refused.err);
}

#[test]
fn every_way_to_change() {
    let server = start();
    server.kubectl_in(&["create", "-f", "-"], DEPLOYMENT);
    let replicas = || server.kubectl(&["get", "deploy", "shop", "-o", "jsonpath={.spec.replicas}"]);
    server.kubectl(&["scale", "deploy/shop", "--replicas=5"]);
    assert_eq!(replicas(), "5");
    server.kubectl(&["patch", "deploy", "shop", "-p", r#"{"spec":{"replicas":6}}"#]);
    server.kubectl(&["patch", "deploy", "shop", "--type=merge", "-p", r#"{"spec":{"replicas":7}}"#]);
    assert_eq!(replicas(), "7");
    server.kubectl(&[
        "patch",
        "deploy",
        "shop",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":8}]"#,
    ]);
    assert_eq!(replicas(), "8");
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"side:1"}]}}}}"#;
    server.kubectl(&["patch", "deploy", "shop", "-p", strategic]);
    let images =
        || server.kubectl(&["get", "deploy", "shop", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]);
    assert_eq!(images(), "side:1 shop:1");
    server.kubectl(&["set", "image", "deploy/shop", "shop=shop:2"]);
    assert_eq!(images(), "side:1 shop:2");
    server.kubectl(&["rollout", "restart", "deploy/shop"]);
    server.kubectl(&["expose", "deploy", "shop", "--port=80"]);
    assert!(server.kubectl(&["get", "svc", "shop"]).contains("10."));
    server.kubectl(&["autoscale", "deploy", "shop", "--max=3"]);
    server.kubectl_in(&["replace", "-f", "-"], DEPLOYMENT);
    assert_eq!(replicas(), "2");
    let unknown = DEPLOYMENT.replace("replicas: 2", "replicaz: 2");
    let strict = server.kubectl_with(&["apply", "-f", "-"], &unknown);
    assert!(strict.err.contains("strict decoding error: unknown field \"spec.replicaz\""), "{}", strict.err);
    let wrong = DEPLOYMENT.replace("app: shop}}\n    spec", "app: other}}\n    spec");
    let refused = server.kubectl_with(&["create", "-f", "-"], &wrong.replace("name: shop}\nspec", "name: bad}\nspec"));
    assert!(refused.err.contains("`selector` does not match template `labels`"), "{}", refused.err);
    let dry = server.kubectl(&["create", "deploy", "dry", "--image=x", "--dry-run=server", "-o", "name"]);
    assert!(dry.contains("deployment.apps/dry"));
    assert!(!server.kubectl_with(&["get", "deploy", "dry"], "").ok);
}

#[test]
fn typed_creates_work() {
    let server = start();
    for line in [
        "create deployment zero --image=a --replicas=0",
        "create secret generic s --from-literal=a=b",
        "create serviceaccount robot",
        "create service clusterip c --tcp=80:8080",
        "create service nodeport n --tcp=80",
        "create job j --image=a",
        "create cronjob cj --image=a --schedule=*/5.*.*.*.*",
        "create quota q --hard=pods=3",
        "create role r --verb=get --resource=pods",
        "create rolebinding rb --role=r --serviceaccount=default:robot",
        "create clusterrole cr --verb=list --resource=nodes",
        "create clusterrolebinding crb --clusterrole=cr --user=ann",
        "create poddisruptionbudget pdb --selector=a=b --min-available=1",
        "create priorityclass pc --value=7",
        "create ingress i --rule=foo.com/bar=c:80",
        "create token robot",
        "run p --image=a --port=80",
    ] {
        let words: Vec<String> =
            line.split(' ').map(|w| if w.contains("schedule") { w.replace('.', " ") } else { w.into() }).collect();
        server.kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(server.kubectl(&["get", "deploy", "zero", "-o", "jsonpath={.spec.replicas}"]), "0");
    assert_eq!(server.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.a}"]), "Yg==");
    assert_eq!(server.kubectl(&["auth", "can-i", "list", "nodes", "--as=ann"]).trim(), "yes");
    server.kubectl(&["delete", "pod", "p", "--now"]);
    server.kubectl(&["delete", "deploy,svc,job", "--all"]);
    assert!(!server.kubectl_with(&["get", "svc", "c"], "").ok);
    assert!(server.kubectl(&["get", "events"]).is_empty());
}

#[test]
fn watches_and_waits() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let server = start();
    let mut child = server
        .kubectl_command(&["get", "cm", "--watch", "-o", "name", "-l", "seen=yes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    server.kubectl(&["create", "configmap", "unseen"]);
    server.kubectl_in(&["apply", "-f", "-"], &CONFIG.replace("name: conf", "name: conf\n  labels: {seen: 'yes'}"));
    assert_eq!(lines.next().expect("a line").expect("text"), "configmap/conf");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    server.kubectl(&["wait", "cm/conf", "--for=jsonpath={.data.a}=one", "--timeout=5s"]);
    server.kubectl(&["delete", "cm", "conf", "--wait=true", "--timeout=5s"]);
}
