//! Several nodes on one machine: pods on all of them, and what happens when one is lost, drained, or nobody watches.

use std::collections::BTreeSet;

use crate::ingress::Front;
use crate::lifecycle::{nft_table_id, traces};
use crate::support::{Engine, command, eventually, output, run};

/// Seconds; far below the defaults, so that a lost node is noticed while the test looks.
const SOON: [&str; 3] = [
    "--node-monitor-grace-period=10s",
    "--default-unreachable-toleration-seconds=2",
    "--default-not-ready-toleration-seconds=2",
];

/// One pod per node that tells its node's name over HTTP.
const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox:test
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        command: [sh, -c, "mkdir /www; echo $NODE > /www/index.html; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {internalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
"#;

fn started(nodes: &str, more: &[&str]) -> Engine {
    let mut engine = Engine::prepare();
    engine.options = std::iter::once(format!("--nodes={nodes}")).chain(more.iter().map(|o| (*o).to_owned())).collect();
    engine.up();
    engine.import_busybox();
    engine
}

fn pods(engine: &Engine, selector: &str) -> Vec<(String, String, String)> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{\"\\n\"}{end}";
    let text = engine.kubectl(&["get", "pods", "-l", selector, "-o", path]);
    let word = |line: &str, at| line.split(' ').nth(at).unwrap_or_default().to_owned();
    text.lines().map(|line| (word(line, 0), word(line, 1), word(line, 2))).collect()
}

fn get(engine: &Engine, pod: &str, url: &str) -> Result<String, String> {
    let result = output(&mut engine.kubectl_command(&["exec", pod, "--", "timeout", "5", "wget", "-qO-", url]));
    match result.status.success() {
        true => Ok(String::from_utf8_lossy(&result.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&result.stderr).into_owned()),
    }
}

/// So many answers, one a line.
fn answers(engine: &Engine, pod: &str, url: &str, count: u32) -> String {
    let script = format!("for i in $(seq {count}); do timeout 5 wget -qO- {url}; done");
    engine.kubectl(&["exec", pod, "--", "sh", "-c", &script])
}

const ADDRESSES: &str = "jsonpath={.items[*].status.addresses[0].address}";

#[test]
fn pods_of_all_nodes_reach_each_other_and_the_cluster() {
    let mut engine = started("3", &[]);
    let nodes = engine.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert_eq!(nodes, "host-1 host-1-2 host-1-3");
    let zones =
        engine.kubectl(&["get", "nodes", "-o", r"jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}"]);
    assert_eq!(zones, "zone-1 zone-2 zone-3");
    engine.apply(WEB);
    engine.kubectl(&["rollout", "status", "daemonset/web", "--timeout=150s"]);
    let web = pods(&engine, "app=web");
    assert_eq!(web.len(), 3, "{web:?}");
    let node_port = engine.value("service/web", "{.spec.ports[0].nodePort}");

    for (pod, node, _) in &web {
        for (_, other, ip) in &web {
            assert_eq!(get(&engine, pod, &format!("http://{ip}:8080/")).as_ref(), Ok(other), "from {node} to {other}");
        }
        assert_eq!(get(&engine, pod, "http://near/").as_ref(), Ok(node), "a local service stays on its node");
        let seen = answers(&engine, pod, "http://web.default.svc.cluster.local/", 40);
        let distinct: BTreeSet<&str> = seen.lines().collect();
        assert_eq!(distinct.len(), 3, "the service on {node} leads to every node: {seen}");
        // The node port of every node leads to all of them, too, and the answers come back.
        for address in engine.kubectl(&["get", "nodes", "-o", ADDRESSES]).split(' ') {
            let seen = answers(&engine, pod, &format!("http://{address}:{node_port}/"), 8);
            assert_eq!(seen.lines().count(), 8, "from {node} to the port of {address}: {seen}");
        }
        let found = engine.kubectl(&["exec", pod, "--", "nslookup", "each.default.svc.cluster.local"]);
        assert!(web.iter().all(|(_, _, ip)| found.contains(ip)), "{found}");
        engine.kubectl(&["exec", pod, "--", "sh", "-c", "nc -w 5 $KUBERNETES_SERVICE_HOST 443 < /dev/null"]);
        assert_eq!(engine.kubectl(&["logs", pod]), "");
    }
    assert_eq!(engine.kubectl(&["top", "nodes", "--no-headers"]).lines().count(), 3);

    policy_holds_on_every_node(&engine, &web);
    nothing_is_left(&mut engine);
}

/// Pods of one node may be called by whom the policy names, on whatever node; their own node's probes go on.
fn policy_holds_on_every_node(engine: &Engine, web: &[(String, String, String)]) {
    engine.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: only-friends}, spec: \
         {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {friend: 'yes'}}}]}]}}",
    );
    engine.kubectl(&["label", "pod", &web[1].0, "friend=yes"]);
    let url = format!("http://{}:8080/", web[2].2);
    eventually("others are shut out", || match get(engine, &web[0].0, &url) {
        Ok(answer) => Err(answer),
        Err(_) => Ok(()),
    });
    eventually("friends are let in", || get(engine, &web[1].0, &url));
    an_ingress_reaches_every_node(engine);
    for (pod, ..) in web {
        assert_eq!(engine.value(&format!("pod/{pod}"), "{.status.containerStatuses[0].ready}"), "true");
    }
    engine.kubectl(&["delete", "networkpolicy", "only-friends"]);
}

/// The proxy speaks from the machine, which no policy judges, to pods on whatever node.
fn an_ingress_reaches_every_node(engine: &Engine) {
    engine.apply(
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: web}, spec: {rules: [{host: web.test, http: \
         {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}}",
    );
    let front = Front::of(engine);
    let mut seen = BTreeSet::new();
    eventually("the proxy leads to every node", || {
        seen.insert(front.curl("http://web.test/", &["-f"])?);
        if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    engine.kubectl(&["delete", "ingress", "web"]);
}

/// `down`, and then no interface, rule, cgroup or process of the engine.
fn nothing_is_left(engine: &mut Engine) {
    let id = nft_table_id(engine);
    assert!(run(command("ip").args(["-o", "link"])).contains(&format!("my{id}n03")), "the link of a node is seen");
    engine.down();
    assert_eq!(traces(&id), Vec::<String>::new());
    let dir = engine.dir().display().to_string();
    assert!(!run(command("ps").args(["-eo", "args"])).contains(&dir), "no process has the directory's name");
}

#[test]
fn eight_nodes_cost_little() {
    let mut engine = Engine::prepare();
    engine.options = vec!["--nodes=8".to_owned()];
    engine.up();
    let ranges = engine.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    let distinct: BTreeSet<&str> = ranges.split(' ').collect();
    assert_eq!(distinct.len(), 8, "{ranges}");
    let names = engine.mycelium(&["node", "list", "-o", "name"]);
    assert_eq!(names.lines().last(), Some("node/host-1-8"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid())).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib <= 90 << 10, "{kib} KiB with eight nodes");
}

const APPS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 3
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: app}}, nodeTaintsPolicy: Honor}
      containers: [{name: main, image: 'busybox:test', command: [sh, -c, "exec sleep 100000"]}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 100, podAffinityTerm: {topologyKey: topology.kubernetes.io/zone, labelSelector: {matchLabels: {app: db}}}}
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "echo here >> /data/log; exec sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
"#;

#[test]
fn a_lost_node_is_noticed_and_its_pods_move_or_wait() {
    let engine = started("3", &SOON);
    engine.apply(APPS);
    engine.kubectl(&["rollout", "status", "deployment/app", "--timeout=150s"]);
    engine.kubectl(&["rollout", "status", "statefulset/db", "--timeout=150s"]);
    let on = |selector: &str| pods(&engine, selector).into_iter().find(|(_, node, _)| node == "host-1-3");
    let (lost, ..) = on("app=app").expect("spread by host name");
    let (member, ..) = on("app=db").expect("spread by zone");
    let uid = engine.value(&format!("pod/{member}"), "{.metadata.uid}");

    engine.mycelium(&["node", "stop", "host-1-3"]);
    engine.wait_value("node/host-1-3", "{.status.conditions[?(@.type==\"Ready\")].reason}", "NodeStatusUnknown");
    engine.wait_value(
        "node/host-1-3",
        "{.spec.taints[?(@.effect==\"NoExecute\")].key}",
        "node.kubernetes.io/unreachable",
    );
    let table = engine.mycelium(&["node", "list"]);
    let row = table.lines().find(|line| line.starts_with("host-1-3 ")).expect("listed");
    assert!(row.contains("NotReady") && row.contains(" off "), "{table}");
    assert!(engine.kubectl_fails(&["logs", &lost]).contains("no route to host"));
    eventually("the deployment has its replicas elsewhere", || {
        let ready = engine.value("deployment/app", "{.status.readyReplicas}");
        if ready == "3" { Ok(()) } else { Err(ready) }
    });
    eventually("the member is told to go", || {
        let at = engine.value(&format!("pod/{member}"), "{.metadata.deletionTimestamp}");
        if at.is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    });
    assert_eq!(engine.value(&format!("pod/{member}"), "{.metadata.uid}"), uid, "it may still run: there is no second");

    // Back again: what was told to go goes, and the member starts anew with its data.
    engine.mycelium(&["node", "start", "host-1-3"]);
    eventually("the member is anew", || {
        let now = engine.value(&format!("pod/{member}"), "{.metadata.uid} {.status.phase}");
        if now.ends_with(" Running") && !now.starts_with(&uid) { Ok(()) } else { Err(now) }
    });
    assert_eq!(engine.kubectl(&["exec", &member, "--", "cat", "/data/log"]), "here\nhere\n");

    // Lost for good: whoever vouches for that by the taint gets the member back at once, elsewhere and with its data.
    let uid = engine.value(&format!("pod/{member}"), "{.metadata.uid}");
    let node = engine.value(&format!("pod/{member}"), "{.spec.nodeName}");
    engine.mycelium(&["node", "stop", &node]);
    engine.wait_value(&format!("node/{node}"), "{.status.conditions[?(@.type==\"Ready\")].status}", "Unknown");
    engine.kubectl(&["taint", "node", &node, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]);
    eventually("the member is elsewhere", || {
        let now = engine.value(&format!("pod/{member}"), "{.metadata.uid} {.spec.nodeName} {.status.phase}");
        let moved = now.ends_with(" Running") && !now.contains(&uid) && !now.contains(&format!(" {node} "));
        if moved { Ok(()) } else { Err(now) }
    });
    assert_eq!(engine.kubectl(&["exec", &member, "--", "cat", "/data/log"]), "here\nhere\nhere\n");
}

#[test]
fn a_drain_keeps_the_budget_and_a_killed_engine_finds_its_nodes() {
    let mut engine = started("3", &[]);
    engine.apply(WEB);
    engine.apply(APPS);
    engine.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: app}, spec: \
         {minAvailable: 2, selector: {matchLabels: {app: app}}}}",
    );
    engine.kubectl(&["rollout", "status", "daemonset/web", "--timeout=150s"]);
    engine.kubectl(&["rollout", "status", "deployment/app", "--timeout=150s"]);
    let identity = |engine: &Engine| {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
        engine.kubectl(&["get", "pods", "-l", "app=web", "-o", path])
    };
    let before = identity(&engine);
    let web = pods(&engine, "app=web");
    let urls: Vec<String> = web.iter().map(|(_, _, ip)| format!("http://{ip}:8080/")).collect();
    let from = web[1].0.clone();

    engine.kill();
    for url in &urls {
        run(command("curl").args(["-sf", "--max-time", "5", url]));
    }
    // The number of nodes is remembered.
    engine.options.clear();
    let refused = output(engine.up_command().args(["--nodes", "2"]));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there are 3 nodes"), "{refused:?}");
    engine.up();
    assert!(engine.greeting.contains("3 of 3 nodes Ready"), "{}", engine.greeting);
    for url in &urls {
        eventually("pods of all nodes answer", || get(&engine, &from, url));
    }
    assert_eq!(identity(&engine), before, "the same containers, at the same addresses");

    // Of three, one may be missing; the drained one starts elsewhere when the spread allows it.
    engine.kubectl(&["patch", "deployment", "app", "--type=json", "-p",
        r#"[{"op": "replace", "path": "/spec/template/spec/topologySpreadConstraints/0/whenUnsatisfiable", "value": "ScheduleAnyway"}]"#]);
    engine.kubectl(&["rollout", "status", "deployment/app", "--timeout=150s"]);
    let text = engine.mycelium(&["node", "drain", "host-1-2", "--timeout", "150"]);
    assert!(text.contains("node host-1-2 drained"), "{text}");
    let left: Vec<_> =
        pods(&engine, "app in (app, db)").into_iter().filter(|(_, node, _)| node == "host-1-2").collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(pods(&engine, "app=web").iter().any(|(_, node, _)| node == "host-1-2"), "the daemon stays");
    engine.mycelium(&["node", "uncordon", "host-1-2"]);
    nothing_is_left(&mut engine);
}

/// One on each node, whatever the revision; the second revision is ready when it is told so.
const ROLLED: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolled}
spec:
  replicas: 3
  progressDeadlineSeconds: 20
  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}
  selector: {matchLabels: {app: rolled}}
  template:
    metadata: {labels: {app: rolled, revision: one}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: rolled}}}
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "exec sleep 100000"]
        readinessProbe: {exec: {command: [sh, -c, "true"]}, periodSeconds: 1}
"#;

/// A rolling update is half done when a node is lost: what is wrong stands in conditions and events, nothing else is taken
/// down for it, and the update ends by itself when the node is back.
#[test]
fn a_node_lost_in_a_rolling_update_is_told_and_the_update_ends_when_it_is_back() {
    let engine = started("3", &SOON);
    engine.apply(ROLLED);
    engine.kubectl(&["rollout", "status", "deployment/rolled", "--timeout=150s"]);
    let second = ROLLED.replace("revision: one", "revision: two").replace("\"true\"", "\"test -e /tmp/go\"");
    engine.apply(&second);
    let first = eventually("the update has begun", || {
        let new = pods(&engine, "revision=two");
        if new.len() == 1 && !new[0].2.is_empty() { Ok(new[0].0.clone()) } else { Err(format!("{new:?}")) }
    });
    let old = pods(&engine, "revision=one");
    let (lost, node, _) =
        old.iter().find(|(_, node, _)| node != "host-1").expect("two of three nodes are not the first");
    engine.mycelium(&["node", "stop", node]);

    let condition = |type_: &str, part: &str| format!("{{.status.conditions[?(@.type==\"{type_}\")].{part}}}");
    engine.wait_value(&format!("node/{node}"), &condition("Ready", "reason"), "NodeStatusUnknown");
    engine.wait_value(&format!("pod/{lost}"), &condition("Ready", "status"), "False");
    engine.wait_value("deployment/rolled", &condition("Available", "reason"), "MinimumReplicasUnavailable");
    engine.wait_value("deployment/rolled", &condition("Progressing", "reason"), "ProgressDeadlineExceeded");
    let stuck = engine.kubectl_fails(&["rollout", "status", "deployment/rolled", "--timeout=60s"]);
    assert!(stuck.contains("exceeded its progress deadline"), "{stuck}");
    let told = |about: &str, reason: &str, words: &str| {
        eventually(&format!("{about}: {reason}, {words}"), || {
            let selector = format!("involvedObject.name={about},reason={reason}");
            let events = engine.kubectl(&["get", "events", "-A", "--field-selector", &selector]);
            if events.contains(words) { Ok(()) } else { Err(events) }
        });
    };
    told(node, "NodeNotReady", "status is now: NodeNotReady");
    told(lost, "NodeNotReady", "Node is not ready");
    told(lost, "TaintManagerEviction", "Marking for deletion Pod default/");
    // Of three one is lost and one is new; the third is left alone, since nothing more may be missing.
    let standing = old.iter().find(|(name, ..)| name != lost).expect("another").0.clone();
    assert_eq!(engine.value(&format!("pod/{standing}"), "{.metadata.deletionTimestamp}"), "");
    assert_eq!(engine.value(&format!("pod/{standing}"), &condition("Ready", "status")), "True");

    // The new one is ready. With the node away there is no place for the third, and that is said.
    engine.kubectl(&["exec", &first, "--", "touch", "/tmp/go"]);
    engine.wait_value(&format!("pod/{first}"), &condition("Ready", "status"), "True");
    engine.mycelium(&["node", "start", node]);
    engine.wait_value(&format!("node/{node}"), &condition("Ready", "status"), "True");
    eventually("the update ends", || {
        for (pod, ..) in pods(&engine, "revision=two") {
            output(&mut engine.kubectl_command(&["exec", &pod, "--", "touch", "/tmp/go"]));
        }
        let done = engine
            .value("deployment/rolled", "{.status.updatedReplicas} {.status.availableReplicas} {.status.replicas}");
        if done == "3 3 3" { Ok(()) } else { Err(done) }
    });
    engine.wait_value("deployment/rolled", &condition("Progressing", "reason"), "NewReplicaSetAvailable");
    engine.wait_value("deployment/rolled", &condition("Available", "reason"), "MinimumReplicasAvailable");
    let nodes: BTreeSet<String> = pods(&engine, "app=rolled").into_iter().map(|(_, node, _)| node).collect();
    assert_eq!(nodes.len(), 3, "one on each again: {nodes:?}");
    assert!(pods(&engine, "revision=one").is_empty());
}
