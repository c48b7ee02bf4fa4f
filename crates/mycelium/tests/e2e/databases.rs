//! Databases from Debian's packages, as people run them: PostgreSQL that is dumped on a schedule and restored, Redis with
//! replicas, a web server that is scaled by its load.

use std::path::Path;
use std::process::Stdio;

use crate::software::import_root;
use crate::support::{Engine, command, eventually, output, run};

/// A manifest of `tests/software`.
pub fn manifest(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/software").join(name);
    std::fs::read_to_string(file).expect("a manifest")
}

fn start() -> Engine {
    let engine = Engine::start();
    import_root(&engine, "servers:debian", &["--cmd", "/bin/sh"]);
    engine
}

const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";

/// What a statement gives, asked by the pod `client`.
pub fn sql(engine: &Engine, database: &str, statement: &str) -> String {
    engine.kubectl(&["exec", "client", "--", PSQL, "-d", database, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement])
}

/// A number that says what is in a database.
fn contents(engine: &Engine, database: &str) -> String {
    sql(engine, database, "select count(*), md5(string_agg(t::text, ',' order by id)) from numbers t")
}

#[test]
fn postgresql_is_dumped_on_a_schedule_and_restored() {
    let engine = start();
    engine.apply(&manifest("postgres.yaml"));
    engine.kubectl(&["rollout", "status", "statefulset/postgres", "--timeout=180s"]);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/stranger", "--timeout=120s"]);
    sql(&engine, "postgres", "create database app");
    let filled = "create table numbers (id int primary key, word text); \
                  insert into numbers select n, md5(n::text) from generate_series(1, 20000) n";
    sql(&engine, "app", filled);
    let before = contents(&engine, "app");
    assert!(before.starts_with("20000|"), "{before}");
    only_friends_get_through(&engine);

    // By hand, then by the clock.
    engine.kubectl(&["create", "job", "--from=cronjob/dump", "by-hand"]);
    engine.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=180s"]);
    restored(&engine, "by-hand", &before);
    engine.kubectl(&["patch", "cronjob", "dump", "-p", r#"{"spec":{"suspend":false}}"#]);
    let scheduled = eventually("a dump by schedule", || {
        let path = r#"jsonpath={.items[?(@.status.succeeded==1)].metadata.name}"#;
        let names = engine.kubectl(&["get", "jobs", "-o", path]);
        names.split(' ').find(|name| name.starts_with("dump-")).map(str::to_owned).ok_or(names)
    });
    engine.kubectl(&["patch", "cronjob", "dump", "-p", r#"{"spec":{"suspend":true}}"#]);
    restored(&engine, &scheduled, &before);

    // Its pod is another one, its data is not.
    let uid = engine.value("pod/postgres-0", "{.metadata.uid}");
    engine.kubectl(&["delete", "pod", "postgres-0"]);
    engine.kubectl(&["rollout", "status", "statefulset/postgres", "--timeout=180s"]);
    assert_ne!(engine.value("pod/postgres-0", "{.metadata.uid}"), uid);
    eventually("the name leads to the new pod", || {
        let ready = ["exec", "client", "--", PSQL, "-d", "app", "-XqAtc", "select 1"];
        let said = output(&mut engine.kubectl_command(&ready));
        if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
    });
    assert_eq!(contents(&engine, "app"), before);
}

fn only_friends_get_through(engine: &Engine) {
    let address = engine.value("pod/postgres-0", "{.status.podIP}");
    let ready = |pod: &str| {
        let ask = ["exec", pod, "--", "/usr/lib/postgresql/15/bin/pg_isready", "-t", "3", "-h", &address];
        String::from_utf8_lossy(&output(&mut engine.kubectl_command(&ask)).stdout).into_owned()
    };
    assert!(ready("client").contains("accepting connections"));
    assert!(ready("stranger").contains("no response"));
}

fn restored(engine: &Engine, dump: &str, expected: &str) {
    engine.apply(&manifest("restore.yaml").replace("DUMP", dump));
    engine.kubectl(&["wait", "--for=condition=complete", &format!("job/restore-{dump}"), "--timeout=180s"]);
    assert_eq!(contents(engine, dump), expected);
}

#[test]
fn redis_replicas_follow_their_primary() {
    let engine = start();
    engine.apply(&manifest("redis.yaml"));
    engine.kubectl(&["rollout", "status", "statefulset/redis", "--timeout=180s"]);
    let redis = |pod: &str, words: &[&str]| {
        let line = [&["exec", pod, "--", "/usr/bin/redis-cli"], words].concat();
        engine.kubectl(&line).trim().to_owned()
    };
    assert_eq!(redis("redis-0", &["set", "spore", "found"]), "OK");
    assert_eq!(redis("redis-0", &["wait", "2", "60000"]), "2");
    for replica in ["redis-1", "redis-2"] {
        assert_eq!(redis(replica, &["get", "spore"]), "found");
        assert!(redis(replica, &["set", "spore", "lost"]).contains("READONLY"));
    }
    // The primary comes back elsewhere, with what it had; its followers find it by its name.
    engine.kubectl(&["delete", "pod", "redis-0"]);
    engine.kubectl(&["rollout", "status", "statefulset/redis", "--timeout=180s"]);
    assert_eq!(redis("redis-0", &["get", "spore"]), "found");
    assert_eq!(redis("redis-0", &["set", "hypha", "grown"]), "OK");
    assert_eq!(redis("redis-0", &["wait", "2", "120000"]), "2");
    assert_eq!(redis("redis-2", &["mget", "spore", "hypha"]), "found\ngrown");
}

#[test]
fn a_web_server_is_scaled_by_its_load_and_back() {
    let engine = start();
    engine.apply(&manifest("scaled.yaml"));
    engine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let url = format!("http://{}/", engine.value("service/web", "{.spec.clusterIP}"));
    run(command("curl").args(["-fsS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", &url]));
    let sizes = Sizes::follow(&engine, "deployment/web");
    let mut wrk = command("wrk");
    wrk.args(["-t1", "-c4", "-d300s", "--timeout", "60s", "-H", "Accept-Encoding: gzip", "-H", "Connection: close"]);
    let load = wrk.arg(format!("{url}work")).stdout(Stdio::piped()).spawn();
    let mut load = load.expect("wrk");
    engine.wait_value("deployment/web", "{.status.readyReplicas}", "3");
    assert!(engine.kubectl(&["get", "hpa", "web", "--no-headers"]).contains("Deployment/web"));
    looks_again(&engine, 2);
    // The load ends: what it has reported is read.
    run(command("kill").args(["-INT", &load.id().to_string()]));
    let report = load.stdout.take().map(std::io::read_to_string).expect("piped").expect("text");
    load.wait().expect("wrk ends");
    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "requests were lost:\n{report}");
    engine.wait_value("deployment/web", "{.status.replicas}", "1");
    let events = engine.kubectl(&["get", "events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler"]);
    assert!(events.contains("above target") && events.contains("All metrics below target"), "{events}");
    // No flapping: it goes up while there is load, down when there is none, and turns round once.
    let sizes = sizes.stop();
    let top = sizes.iter().position(|size| *size == 3).expect("it reached three");
    let (up, down) = sizes.split_at(top);
    assert!(up.is_sorted() && down.iter().rev().is_sorted() && sizes.last() == Some(&1), "{sizes:?}");
}

/// Waits until what the autoscaler reads has been measured anew, and more of its periods have passed than `times`.
fn looks_again(engine: &Engine, times: i64) {
    const PERIOD_SECS: i64 = 15;
    let measured = || {
        let text = engine.kubectl(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"]);
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let times = list["items"].as_array().into_iter().flatten().filter_map(|pod| pod["timestamp"].as_str());
        times.filter_map(|time| time.parse::<jiff::Timestamp>().ok()).max().map_or(0, jiff::Timestamp::as_second)
    };
    let begun = measured();
    eventually("the autoscaler looks again", || {
        let passed = measured() - begun;
        if passed > times * PERIOD_SECS { Ok(()) } else { Err(format!("{passed} s")) }
    });
}

/// Follows how many replicas a deployment is asked to have.
struct Sizes(std::process::Child);

impl Sizes {
    fn follow(engine: &Engine, deployment: &str) -> Self {
        let path = "jsonpath={.spec.replicas}{\"\\n\"}";
        let mut watch = engine.kubectl_command(&["get", deployment, "--watch", "-o", path]);
        Self(watch.stdout(Stdio::piped()).spawn().expect("kubectl"))
    }

    fn stop(mut self) -> Vec<u32> {
        let _ = self.0.kill();
        let text = self.0.stdout.take().map(std::io::read_to_string).expect("piped").expect("text");
        let _ = self.0.wait();
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }
}

impl Drop for Sizes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
