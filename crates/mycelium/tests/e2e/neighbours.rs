//! Clients that behave badly towards a real engine: an operator that updates in a hot loop, watches that nobody reads, a
//! webhook that hangs under many requests. The engine's memory stays bounded, and everybody else is served.

use std::process::{Child, Stdio};

use crate::support::{Engine, command, eventually, run};

/// The store keeps 16 MiB of history, and lets a watch fall behind by 32; allocators keep some of what was freed.
const GROWTH_MAX_KIB: u64 = 128 << 10;
const WATCHES: usize = 10;
/// So many writes, of about 20 kB each: several hundred MiB if they were kept for each watch.
const WRITES: u64 = 3000;

const PEOPLE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: loud, labels: {hangs: "yes"}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: operator, namespace: loud}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: waiter, namespace: loud}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: edit, namespace: loud}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: ServiceAccount, name: operator, namespace: loud}, {kind: ServiceAccount, name: waiter, namespace: loud}]
"#;

const CALM: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: 2
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "mkdir /www; echo served > /www/index.html; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// A program that ends with the test.
struct Running(Child);

impl Running {
    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("a state").is_none()
    }

    /// Ends it as Ctrl-C does, and gives what it printed.
    fn interrupt(mut self) -> String {
        run(command("kill").args(["-INT", &self.0.id().to_string()]));
        let text = self.0.stdout.take().map(std::io::read_to_string).expect("piped").expect("text");
        let _ = self.0.wait();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `wrk` with so many connections as a service account of `loud`, the requests made by a script.
fn requests(engine: &Engine, account: &str, connections: &str, script: &str) -> Running {
    let file = engine.dir().join(format!("{account}.lua"));
    std::fs::write(&file, script).expect("a script");
    let token = engine.kubectl(&["create", "token", account, "-n", "loud"]);
    let server = engine.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let mut wrk = command("wrk");
    wrk.args(["-t1", "-c", connections, "-d600s", "--timeout", "60s", "-s"]).arg(file);
    wrk.args(["-H", &format!("Authorization: Bearer {}", token.trim())]).arg(server);
    Running(wrk.stdout(Stdio::piped()).spawn().expect("wrk"))
}

fn resident_kib(engine: &Engine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Somebody else brings up a web server and reaches it.
fn another_is_served(engine: &Engine, name: &str) {
    engine.apply(&CALM.replace("NAME", name));
    engine.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=180s"]);
    let url = format!("http://{}/", engine.value(&format!("service/{name}"), "{.spec.clusterIP}"));
    eventually("the service answers", || {
        let said = command("curl").args(["-sS", "--max-time", "5", &url]).output().expect("curl");
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        if text == "served\n" { Ok(()) } else { Err(format!("{text:?} {said:?}")) }
    });
}

/// Eight deployments without replicas, each with 20 kB of text, changed as fast as the engine takes it. Its controllers look
/// at each change, too.
const HOT: &str = r#"
local text, n = string.rep("x", 20000), 0
wrk.headers["Content-Type"] = "application/merge-patch+json"
function request()
  n = n + 1
  local path = "/apis/apps/v1/namespaces/loud/deployments/hot-" .. n % 8
  local body = string.format('{"metadata":{"annotations":{"round":"%d","text":"%s"}}}', n, text)
  return wrk.format("PATCH", path, nil, body)
end
"#;

#[test]
fn a_hot_loop_and_watches_that_nobody_reads_harm_nobody() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(PEOPLE);
    for number in 0..8 {
        let name = format!("hot-{number}");
        engine.kubectl(&["create", "deployment", &name, "-n", "loud", "--image=busybox:test", "--replicas=0"]);
    }
    let newest = || {
        let text = engine.kubectl(&["get", "--raw", "/apis/apps/v1/namespaces/loud/deployments?limit=1"]);
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        list["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok()).expect("a number")
    };
    let begun = (resident_kib(&engine), newest());
    let watch = "/apis/apps/v1/namespaces/loud/deployments?watch=1";
    let mut idle: Vec<Running> = (0..WATCHES)
        .map(|_| {
            let mut kubectl = engine.kubectl_command(&["get", "--raw", watch]);
            Running(kubectl.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kubectl"))
        })
        .collect();
    let mut hot = requests(&engine, "operator", "16", HOT);
    let mut most = 0;
    another_is_served(&engine, "calm");
    eventually("the loop turns", || {
        most = most.max(resident_kib(&engine));
        let written = newest() - begun.1;
        if written >= WRITES { Ok(()) } else { Err(format!("{written} writes")) }
    });
    another_is_served(&engine, "calmer");
    most = most.max(resident_kib(&engine));
    assert!(hot.is_alive() && idle.iter_mut().any(Running::is_alive), "they went on all the while");
    let report = hot.interrupt();
    assert!(report.contains("Requests/sec") && !report.contains("Non-2xx"), "{report}");
    let grown = most.saturating_sub(begun.0);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB more than the {} before, for {WATCHES} watches", begun.0);
}

const HANGING: &str = r#"
local n = 0
wrk.headers["Content-Type"] = "application/json"
function request()
  n = n + 1
  local body = string.format('{"metadata":{"name":"hung-%d"}}', n)
  return wrk.format("POST", "/api/v1/namespaces/loud/configmaps", nil, body)
end
"#;

/// More requests wait for a webhook that never answers than one client may have under way: the others do not wait with them.
#[test]
fn a_webhook_that_hangs_holds_up_only_those_who_need_it() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(PEOPLE);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (tell, told) = std::sync::mpsc::channel();
    // Takes every connection and says nothing.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if tell.send(stream).is_err() {
                return;
            }
        }
    });
    engine.apply(&format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{name: hang}}\n\
         webhooks:\n- name: hang.example.com\n  admissionReviewVersions: [v1]\n  sideEffects: None\n  timeoutSeconds: 30\n  \
         failurePolicy: Fail\n  namespaceSelector: {{matchLabels: {{hangs: 'yes'}}}}\n  \
         clientConfig: {{url: 'https://127.0.0.1:{port}/'}}\n  \
         rules: [{{apiGroups: [''], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}}]\n"
    ));
    let mut hanging = requests(&engine, "waiter", "300", HANGING);
    let mut held = Vec::new();
    eventually("many hang", || {
        held.extend(told.try_iter());
        if held.len() >= 100 { Ok(()) } else { Err(held.len().to_string()) }
    });
    another_is_served(&engine, "calm");
    engine.kubectl(&["create", "configmap", "elsewhere"]);
    assert!(hanging.is_alive());
    // Of those who wait each is told why at its end, as Kubernetes says it.
    let short = r#"[{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 1}]"#;
    engine.kubectl(&["patch", "validatingwebhookconfiguration", "hang", "--type=json", "-p", short]);
    let refused = engine.kubectl_fails(&["create", "configmap", "mine", "-n", "loud"]);
    assert!(
        refused
            .contains("failed calling webhook \"hang.example.com\": failed to call webhook: Post \"https://127.0.0.1:")
            && refused.contains("?timeout=1s\": context deadline exceeded"),
        "{refused}"
    );
    let ignore = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]"#;
    engine.kubectl(&["patch", "validatingwebhookconfiguration", "hang", "--type=json", "-p", ignore]);
    engine.kubectl(&["create", "configmap", "mine", "-n", "loud"]);
    drop(hanging);
}
