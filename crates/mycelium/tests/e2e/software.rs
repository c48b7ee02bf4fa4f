//! Real software: nginx and Redis from Debian's packages as Deployments; a rolling update under load loses nothing.

use std::process::Stdio;

use crate::support::{Engine, cache, command, run};

/// Makes an image of the root file system that `scripts/setup.sh test` has made with mmdebstrap: Debian's nginx, Redis and
/// PostgreSQL with all they depend on.
pub fn import_root(engine: &Engine, name: &str, how: &[&str]) {
    let tar = cache().join("servers.tar");
    assert!(tar.exists(), "{} is missing: run `scripts/setup.sh test` first (make test does)", tar.display());
    let (dir, tar) = (engine.dir().display().to_string(), tar.display().to_string());
    engine.mycelium(&[&["image", "import", "--data-dir", &dir], how, &[tar.as_str(), name]].concat());
}

/// The same with an entry point.
pub fn import_servers(engine: &Engine, name: &str, entrypoint: &str) {
    import_root(engine, name, &["--entrypoint", entrypoint]);
}

const NGINX: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx}
data:
  nginx.conf: |
    daemon off; pid /tmp/nginx.pid; error_log /dev/stderr warn;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
      server { listen 8080; location / { return 200 "VERSION\n"; } location /healthz { return 200 "ok\n"; } }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: nginx
        image: nginx:debian
        args: ["-c", "/config/nginx.conf"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /healthz, port: http}}
        lifecycle: {preStop: {sleep: {seconds: 3}}}
        volumeMounts: [{name: config, mountPath: /config}]
      volumes: [{name: config, configMap: {name: nginx}}]
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec: {selector: {app: nginx}, ports: [{port: 80, targetPort: http}]}
"#;

#[test]
fn a_rolling_update_of_nginx_under_load_loses_no_request() {
    let engine = Engine::start();
    import_servers(&engine, "nginx:debian", "/usr/sbin/nginx");
    engine.apply(&NGINX.replace("VERSION", "one"));
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    let url = format!("http://{}/", engine.value("service/nginx", "{.spec.clusterIP}"));
    run(command("curl").args(["-fsS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", &url]));

    // A steady load, one connection a request: every request meets the rules anew.
    let load = command("wrk")
        .args(["-t1", "-c8", "-d40s", "-H", "Connection: close", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk");
    engine.kubectl(&["set", "env", "deploy/nginx", "ROLL=two"]);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    engine.kubectl(&["scale", "deploy/nginx", "--replicas=5"]);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    engine.kubectl(&["scale", "deploy/nginx", "--replicas=2"]);
    engine.wait_value("deploy/nginx", "{.status.replicas}", "2");
    let output = load.wait_with_output().expect("wrk");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("Requests/sec"), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "requests were lost:\n{report}");
}

const REDIS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: redis}
data: {redis.conf: "port 6379\nbind 0.0.0.0\nprotected-mode no\nsave \"\"\ndir /data\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: redis}}
    spec:
      securityContext: {runAsUser: 999, runAsNonRoot: true, fsGroup: 999}
      containers:
      - name: redis
        image: redis:debian
        args: [/config/redis.conf]
        ports: [{name: redis, containerPort: 6379}]
        readinessProbe: {exec: {command: [/usr/bin/redis-cli, ping]}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: redis}}
        volumeMounts: [{name: config, mountPath: /config}, {name: data, mountPath: /data}]
      volumes: [{name: config, configMap: {name: redis}}, {name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379, targetPort: redis}]}
"#;

#[test]
fn redis_serves_behind_a_service() {
    let engine = Engine::start();
    import_servers(&engine, "redis:debian", "/usr/bin/redis-server");
    engine.apply(REDIS);
    engine.kubectl(&["rollout", "status", "deploy/redis", "--timeout=120s"]);
    let address = engine.value("service/redis", "{.spec.clusterIP}");
    let cli = |args: &[&str]| run(command("redis-cli").args(["-h", &address]).args(args));
    assert_eq!(cli(&["set", "spore", "found"]).trim(), "OK");
    assert_eq!(engine.kubectl(&["exec", "deploy/redis", "--", "/usr/bin/redis-cli", "get", "spore"]).trim(), "found");
    let report =
        run(command("redis-benchmark").args(["-h", &address, "-n", "20000", "-c", "20", "-q", "-t", "set,get"]));
    assert!(report.contains("GET"), "{report}");
}
