//! Services and DNS between real pods.

use std::collections::BTreeSet;

use crate::support::{Engine, command, eventually, output, run};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outward}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8099, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
"#;

#[test]
fn services_and_names_work_between_pods() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(WEB);
    engine.kubectl(&["rollout", "status", "deploy/web", "--timeout=120s"]);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]);
    let sh = |script: &str| engine.kubectl(&["exec", "client", "--", "sh", "-c", script]);

    let names = |url: &str| -> BTreeSet<String> {
        sh(&format!("for i in $(seq 40); do wget -qO- {url}; done")).lines().map(str::to_owned).collect()
    };
    eventually("both backends behind the name", || {
        let seen = names("http://web");
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(names("http://web.default.svc.cluster.local").len(), 2);
    assert_eq!(names("http://sticky").len(), 1, "session affinity keeps one backend");
    let addresses = sh("nslookup direct.default.svc.cluster.local");
    assert_eq!(addresses.matches("Address: ").count(), 2, "{addresses}");
    let refused = output(&mut engine.kubectl_command(&["exec", "client", "--", "wget", "-qO-", "http://empty"]));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("refused"),
        "a service without endpoints refuses at once"
    );
    hairpin(&engine);
    from_the_host(&engine);
    api_from_a_pod(&engine);
}

/// A pod reaches itself through the service it serves.
fn hairpin(engine: &Engine) {
    engine.kubectl(&["scale", "deploy/web", "--replicas=1"]);
    eventually("one endpoint", || {
        let slices = engine.kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "jsonpath={.items[*].endpoints[*].addresses[0]}",
        ]);
        if slices.split_whitespace().count() == 1 { Ok(()) } else { Err(slices) }
    });
    let own = engine.kubectl(&["exec", "deploy/web", "--", "sh", "-c", "wget -qO- http://web; hostname"]);
    let lines: Vec<&str> = own.lines().collect();
    assert_eq!(lines.len(), 2, "{own}");
    assert_eq!(lines[0], lines[1]);
}

fn from_the_host(engine: &Engine) {
    let curl = |url: String| run(command("curl").args(["-fsS", "--max-time", "5", &url]));
    let address = engine.value("service/web", "{.spec.clusterIP}");
    assert!(curl(format!("http://{address}")).starts_with("web-"));
    let port = engine.value("service/web", "{.spec.ports[0].nodePort}");
    let node = engine.value("node/host-1", "{.status.addresses[?(@.type==\"InternalIP\")].address}");
    assert!(curl(format!("http://{node}:{port}")).starts_with("web-"));
    engine.wait_value("service/outward", "{.status.loadBalancer.ingress[0].ip}", &node);
    assert!(curl(format!("http://{node}:8099")).starts_with("web-"));
}

/// The mounted token and CA are enough to talk to the API from inside, and RBAC says what is allowed.
fn api_from_a_pod(engine: &Engine) {
    let script = "T=/var/run/secrets/kubernetes.io/serviceaccount; test -s $T/token && test -s $T/ca.crt && cat $T/namespace; \
                  echo; nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached";
    assert_eq!(engine.kubectl(&["exec", "client", "--", "sh", "-c", script]), "default\nreached\n");
    let token = engine.kubectl(&["create", "token", "default"]);
    let server = engine.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let ask = |path: &str| {
        let header = format!("Authorization: Bearer {}", token.trim());
        run(command("curl").args(["-sSk", "-H", &header, &format!("{server}{path}")]))
    };
    let denied = ask("/api/v1/namespaces/default/secrets");
    assert!(
        denied.contains("User \\\"system:serviceaccount:default:default\\\" cannot list resource \\\"secrets\\\""),
        "{denied}"
    );
    let anonymous = run(command("curl").args(["-sSk", &format!("{server}/api/v1/namespaces")]));
    assert!(anonymous.contains("Forbidden") || anonymous.contains("Unauthorized"), "{anonymous}");
    assert!(run(command("curl").args(["-sSk", &format!("{server}/version")])).contains("v1.35"));
}
