//! A drain of the node that PostgreSQL runs on, while clients write: it moves with its data, they find it again, and nothing
//! that they were told is lost.

use std::collections::BTreeSet;

use crate::databases::{manifest, sql};
use crate::software::import_root;
use crate::support::{Engine, eventually};

/// Where the clients are; PostgreSQL is kept off it.
const APART: &str = "host-1-3";

const BUDGET: &str = "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: postgres}, \
    spec: {minAvailable: 1, selector: {matchLabels: {app: postgres}}}}";

const TABLES: &str = "create table accounts (id int primary key, balance bigint not null); \
    insert into accounts select n, 0 from generate_series(1, 8) n; \
    create table ledger (id text primary key, amount bigint not null)";

#[test]
fn postgresql_is_drained_off_its_node_under_load() {
    let mut engine = Engine::prepare();
    engine.options = vec!["--nodes=3".to_owned()];
    engine.up();
    import_root(&engine, "servers:debian", &["--cmd", "/bin/sh"]);
    engine.kubectl(&["cordon", APART]);
    engine.apply(&only(&["Secret", "Service", "NetworkPolicy", "StatefulSet"], &manifest("postgres.yaml")));
    engine.apply(BUDGET);
    engine.kubectl(&["rollout", "status", "statefulset/postgres", "--timeout=180s"]);
    engine.kubectl(&["uncordon", APART]);
    engine.apply(&only(&["Pod"], &manifest("writers.yaml").replace("NODE", APART)));
    engine.kubectl(&["cordon", APART]);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/writers", "--timeout=120s"]);
    // The writers try until there is something to write to.
    sql(&engine, "postgres", "create database app");
    sql(&engine, "app", TABLES);
    all_write(&engine, "at first");

    // A budget that allows nothing holds the drain up, and the database is not touched.
    let before = engine.value("pod/postgres-0", "{.metadata.uid} {.spec.nodeName}");
    let node = before.split(' ').nth(1).expect("it has a node").to_owned();
    let drain = |timeout| ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", timeout];
    let refused = engine.kubectl_fails(&drain("--timeout=6s"));
    assert!(refused.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{refused}");
    assert_eq!(engine.value("pod/postgres-0", "{.metadata.uid} {.spec.nodeName}"), before);
    assert_eq!(engine.value("pod/postgres-0", "{.metadata.deletionTimestamp}"), "");
    all_write(&engine, "while the drain is refused");

    engine.kubectl(&["patch", "pdb", "postgres", "-p", r#"{"spec":{"minAvailable":0}}"#]);
    engine.wait_value("pdb/postgres", "{.status.disruptionsAllowed}", "1");
    let sessions = told(&engine).iter().map(|id| session(id)).max().expect("something was written");
    let said = engine.kubectl(&drain("--timeout=150s"));
    assert!(said.contains(&format!("node/{node} drained")), "{said}");
    engine.kubectl(&["rollout", "status", "statefulset/postgres", "--timeout=180s"]);
    let after = engine.value("pod/postgres-0", "{.spec.nodeName}");
    assert!(after != node && after != APART, "{before} -> {after}");
    assert_eq!(
        engine.kubectl(&["get", "pods", "--field-selector", &format!("spec.nodeName={node}"), "-o", "name"]),
        ""
    );
    eventually("every writer has found it again", || {
        let told = told(&engine);
        let again: BTreeSet<&str> =
            told.iter().filter(|id| session(id) > sessions).filter_map(|id| id.split('-').next()).collect();
        if again.len() == 4 { Ok(()) } else { Err(format!("{again:?}")) }
    });
    all_write(&engine, "after the move");
    nothing_is_lost(&engine);
}

/// The documents of a manifest that are of these kinds.
fn only(kinds: &[&str], manifest: &str) -> String {
    let wanted = |document: &&str| kinds.iter().any(|kind| document.contains(&format!("\nkind: {kind}\n")));
    manifest.split("\n---\n").filter(wanted).collect::<Vec<_>>().join("\n---\n")
}

/// What the writers were told has been written: `writer-session-number`.
fn told(engine: &Engine) -> Vec<String> {
    let text = engine.kubectl(&["exec", "writers", "--", "/bin/sh", "-c", "cat /tmp/told-* 2>/dev/null || true"]);
    text.lines().map(str::to_owned).collect()
}

fn session(id: &str) -> u32 {
    id.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Each of the four writers gets on.
fn all_write(engine: &Engine, when: &str) {
    let counts = || {
        let count = "for n in 1 2 3 4; do touch /tmp/told-$n; wc -l < /tmp/told-$n; done";
        let text = engine.kubectl(&["exec", "writers", "--", "/bin/sh", "-c", count]);
        text.lines().map(|line| line.trim().parse().expect("a number")).collect::<Vec<u64>>()
    };
    let begun = counts();
    eventually(&format!("all write {when}"), || {
        let now = counts();
        let ahead = now.iter().zip(&begun).all(|(now, begun)| *now >= begun + 20);
        if ahead { Ok(()) } else { Err(format!("{begun:?} {now:?}")) }
    });
}

fn nothing_is_lost(engine: &Engine) {
    engine.kubectl(&["exec", "writers", "--", "/bin/sh", "-c", "touch /tmp/stop"]);
    eventually("the writers end", || {
        let found = engine.kubectl(&["exec", "writers", "--", "/bin/sh", "-c", "ls /tmp"]);
        if found.matches("done-").count() == 4 { Ok(()) } else { Err(found) }
    });
    let (told, ledger) = (told(engine), sql(engine, "app", "select id from ledger"));
    let there: BTreeSet<&str> = ledger.lines().collect();
    let missing: Vec<&String> = told.iter().filter(|id| !there.contains(id.as_str())).collect();
    assert!(missing.is_empty(), "{} of {} were acknowledged and lost: {missing:?}", missing.len(), told.len());
    assert!(told.len() >= 240, "{}", told.len());
    // Each transaction is there whole or not at all.
    assert_eq!(sql(engine, "app", "select sum(balance) from accounts").trim(), "0");
    let moved = "select (select sum(balance) from accounts where id > 4) = (select sum(amount) from ledger)";
    assert_eq!(sql(engine, "app", moved).trim(), "t");
}
