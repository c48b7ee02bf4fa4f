//! Network policies between real pods, with kubectl.

use crate::support::{Engine, eventually, output};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "mkdir -p /www && echo hello > /www/index.html && (nc -ll -p 9000 -e cat &) && exec httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: echo, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {role: friend}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
---
# Keeps one connection to the echo server: what is written to the pipe is sent, what comes back is in the file.
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "mkfifo /tmp/in; sleep 100000 > /tmp/in & until nc web 9000 < /tmp/in > /tmp/out; do sleep 1; done"]
"#;

const DENY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
"#;

const ALLOW: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: http}]}]
"#;

const DNS_ONLY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns-only}
spec:
  podSelector: {matchLabels: {role: friend}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
"#;

/// What a pod's shell prints, and whether it succeeded.
fn sh(engine: &Engine, pod: &str, script: &str) -> (bool, String) {
    let output = output(&mut engine.kubectl_command(&["exec", pod, "--", "sh", "-c", script]));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn fetches(engine: &Engine, pod: &str, wanted: bool) {
    eventually(&format!("{pod} fetches: {wanted}"), || {
        let (success, text) = sh(engine, pod, "timeout 3 wget -qO- http://web");
        if success == wanted { Ok(()) } else { Err(text) }
    });
}

#[test]
fn policies_deny_allow_and_cut() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(PODS);
    engine.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/web",
        "pod/friend",
        "pod/stranger",
        "pod/talker",
        "--timeout=120s",
    ]);
    fetches(&engine, "stranger", true);
    fetches(&engine, "friend", true);

    let mut number = 0;
    let mut answered = || {
        number += 1;
        sh(&engine, "talker", &format!("timeout 2 sh -c 'echo {number}. > /tmp/in'; sleep 1"));
        sh(&engine, "talker", "cat /tmp/out").1.contains(&format!("{number}."))
    };
    eventually("the connection", || if answered() { Ok(()) } else { Err("no echo".to_owned()) });

    engine.apply(DENY);
    fetches(&engine, "stranger", false);
    eventually("the cut", || if answered() { Err("still echoes".to_owned()) } else { Ok(()) });

    engine.apply(ALLOW);
    fetches(&engine, "friend", true);
    fetches(&engine, "stranger", false);
    engine.kubectl(&["label", "pod", "stranger", "role=friend"]);
    fetches(&engine, "stranger", true);
    engine.kubectl(&["label", "pod", "stranger", "role-"]);
    fetches(&engine, "stranger", false);
    // The node's probes were never in the way.
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[0].ready}"), "true");

    engine.apply(DNS_ONLY);
    fetches(&engine, "friend", false);
    let (resolved, text) = sh(&engine, "friend", "nslookup web.default.svc.cluster.local");
    assert!(resolved, "DNS stays reachable: {text}");

    engine.kubectl(&["delete", "networkpolicy", "--all"]);
    fetches(&engine, "stranger", true);
    fetches(&engine, "friend", true);
}
