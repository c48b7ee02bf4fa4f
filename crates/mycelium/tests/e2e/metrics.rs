//! `metrics.k8s.io`: what nodes and pods use, as `kubectl top` shows it.

use crate::support::{Engine, eventually};

const BURNER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: burner, labels: { app: burner } }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - { name: loop, image: "busybox:test", command: [sh, -c, "while :; do :; done"], resources: { limits: { cpu: 200m } } }
    - { name: rest, image: "busybox:test", command: [sleep, "100000"] }
"#;

/// Millicores and mebibytes of a line such as `burner   198m   1Mi`.
fn numbers(line: &str) -> (u64, u64) {
    let mut fields = line.split_whitespace().rev();
    let mut number = |unit: &str| fields.next().and_then(|field| field.strip_suffix(unit)?.parse().ok());
    let (memory, cpu) = (number("Mi"), number("m"));
    (cpu.unwrap_or_else(|| panic!("{line:?}")), memory.unwrap_or_else(|| panic!("{line:?}")))
}

#[test]
fn kubectl_top_shows_what_pods_and_nodes_use() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(crate::pods::SLEEPER);
    engine.apply(BURNER);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "pod/burner", "--timeout=120s"]);
    eventually("the loop's processor time is seen", || {
        let busy = numbers(engine.kubectl(&["top", "pod", "burner", "--no-headers"]).trim()).0;
        // Its limit is 200; how much it gets is up to the machine.
        if (20..=260).contains(&busy) { Ok(()) } else { Err(format!("{busy}m")) }
    });
    let containers = engine.kubectl(&["top", "pods", "--containers", "--no-headers", "-l", "app=burner"]);
    let lines: Vec<&str> = containers.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("loop") && lines[1].contains("rest"), "{containers}");
    assert!(numbers(lines[0]).0 > numbers(lines[1]).0, "{containers}");
    let all = engine.kubectl(&["top", "pods", "-A", "--no-headers"]);
    assert!(all.contains("sleeper") && all.contains("burner"), "{all}");
    let node = engine.kubectl(&["top", "nodes", "--no-headers"]);
    assert!(node.contains('%') && !node.contains("unknown"), "{node}");
    let raw = engine.kubectl(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/burner"]);
    assert!(raw.contains(r#""kind":"PodMetrics""#) && raw.contains(r#""window":"#), "{raw}");
    let missing = engine.kubectl_fails(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/none"]);
    assert!(missing.contains("not found") || missing.contains("NotFound"), "{missing}");
}

const SCALED: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: busy }
spec:
  selector: { matchLabels: { app: busy } }
  template:
    metadata: { labels: { app: busy } }
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: loop
          image: busybox:test
          command: [sh, -c, "while [ ! -e /tmp/rest ]; do :; done; sleep 100000"]
          resources: { requests: { cpu: 10m }, limits: { cpu: 60m } }
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: { name: busy }
spec:
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: busy }
  minReplicas: 1
  maxReplicas: 3
  metrics:
    - { type: Resource, resource: { name: cpu, target: { type: Utilization, averageUtilization: 80 } } }
    - { type: ContainerResource, containerResource: { name: cpu, container: loop, target: { type: AverageValue, averageValue: 20m } } }
  behavior: { scaleDown: { stabilizationWindowSeconds: 0 } }
"#;

#[test]
fn an_autoscaler_follows_the_load_up_and_down() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(SCALED);
    engine.wait_value("deployment/busy", "{.spec.replicas}", "3");
    engine.kubectl(&["rollout", "status", "deployment/busy", "--timeout=120s"]);
    assert_eq!(
        engine.value("hpa/busy", r#"{.status.conditions[?(@.type=="ScalingActive")].reason}"#),
        "ValidMetricFound"
    );
    assert_eq!(engine.value("hpa/busy", "{.status.currentMetrics[*].type}"), "Resource ContainerResource");
    let events = engine.kubectl(&["get", "events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler"]);
    assert!(events.contains("SuccessfulRescale") && events.contains("above target"), "{events}");
    let pods = engine.kubectl(&["get", "pods", "-l", "app=busy", "-o", "jsonpath={.items[*].metadata.name}"]);
    for pod in pods.split_whitespace() {
        engine.kubectl(&["exec", pod, "--", "touch", "/tmp/rest"]);
    }
    engine.wait_value("deployment/busy", "{.spec.replicas}", "1");
}

/// A web server whose every answer counts, and which says so; and one who asks, until told to rest.
const COUNTED: &str = r##"
apiVersion: v1
kind: ConfigMap
metadata: { name: pages }
data:
  hit: |
    #!/bin/sh
    echo x >> /tmp/hits
    printf 'Content-Type: text/plain\r\n\r\nhello\n'
  metrics: |
    #!/bin/sh
    printf 'Content-Type: text/plain\r\n\r\n'
    echo '# TYPE http_requests_total counter'
    echo "http_requests_total{page=\"hit\"} $(wc -l < /tmp/hits)"
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata:
      labels: { app: web }
      annotations: { prometheus.io/path: /cgi-bin/metrics }
    spec:
      terminationGracePeriodSeconds: 0
      volumes: [{ name: pages, configMap: { name: pages, defaultMode: 0755 } }]
      containers:
        - name: web
          image: busybox:test
          command: [sh, -c, "touch /tmp/hits; exec httpd -f -p 8080 -h /www"]
          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { tcpSocket: { port: http }, periodSeconds: 1 }
          volumeMounts: [{ name: pages, mountPath: /www/cgi-bin }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80, targetPort: http }] }
---
apiVersion: v1
kind: Pod
metadata: { name: visitor }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: busybox:test
      command: [sh, -c, "while [ ! -e /tmp/rest ]; do wget -q -O /dev/null http://web/cgi-bin/hit || sleep 1; done; sleep 100000"]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: { name: web }
spec:
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: web }
  minReplicas: 1
  maxReplicas: 3
  metrics:
    - type: Pods
      pods: { metric: { name: http_requests_per_second }, target: { type: AverageValue, averageValue: 100m } }
    - type: Object
      object:
        describedObject: { apiVersion: v1, kind: Service, name: web }
        metric: { name: http_requests_per_second }
        target: { type: AverageValue, averageValue: 100m }
  behavior: { scaleDown: { stabilizationWindowSeconds: 0 } }
"##;

#[test]
fn an_autoscaler_follows_a_counter_of_the_pods_own() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(COUNTED);
    engine.wait_value("deployment/web", "{.spec.replicas}", "3");
    engine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    const API: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default";
    let pods = engine.kubectl(&["get", "--raw", &format!("{API}/pods/*/http_requests?labelSelector=app%3Dweb")]);
    assert!(pods.contains(r#""kind":"MetricValueList""#) && pods.contains(r#""windowSeconds""#), "{pods}");
    let service = engine.kubectl(&["get", "--raw", &format!("{API}/services/web/http_requests_per_second")]);
    assert!(service.contains(r#""kind":"Service""#) && !service.contains(r#""value":"0""#), "{service}");
    assert_eq!(engine.value("hpa/web", "{.status.currentMetrics[*].type}"), "Pods Object");
    let missing = engine.kubectl_fails(&["get", "--raw", &format!("{API}/pods/*/unheard_of")]);
    assert!(missing.contains("not found") || missing.contains("NotFound"), "{missing}");
    assert!(engine.kubectl(&["api-versions"]).contains("custom.metrics.k8s.io/v1beta2"));
    engine.kubectl(&["exec", "visitor", "--", "touch", "/tmp/rest"]);
    engine.wait_value("deployment/web", "{.spec.replicas}", "1");
    let events = engine.kubectl(&["get", "events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler"]);
    assert!(events.contains(" metric http_requests_per_second above target"), "{events}");
}
