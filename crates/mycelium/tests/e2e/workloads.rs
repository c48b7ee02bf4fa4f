//! StatefulSets, Jobs, DaemonSets and disruption budgets with real pods and the real kubectl.

use crate::support::{Engine, eventually};

const DATABASE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: "busybox:test", command: [sleep, "100000"], env: [{name: VERSION, value: one}]}
"#;

#[test]
fn a_stateful_set_is_scaled_updated_to_its_partition_and_deleted() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(DATABASE);
    engine.kubectl(&["rollout", "status", "sts/db", "--timeout=120s"]);
    assert_eq!(engine.kubectl(&["exec", "db-1", "--", "hostname"]), "db-1\n");
    let found = engine.kubectl(&["exec", "db-0", "--", "nslookup", "db-1.db.default.svc.cluster.local"]);
    assert!(found.contains(&engine.value("pod/db-1", "{.status.podIP}")), "{found}");
    engine.kubectl(&["scale", "sts/db", "--replicas=3"]);
    engine.kubectl(&["rollout", "status", "sts/db", "--timeout=120s"]);
    let partition = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}"#;
    engine.kubectl(&["patch", "sts", "db", "-p", partition]);
    engine.kubectl(&["set", "env", "sts/db", "VERSION=two"]);
    let told = engine.kubectl(&["rollout", "status", "sts/db", "--timeout=120s"]);
    assert!(told.contains("partitioned roll out complete: 1 new pods have been updated"), "{told}");
    let versions = || engine.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}"]);
    assert_eq!(versions(), "one one two");
    engine.kubectl(&["patch", "sts", "db", "-p", &partition.replace('2', "0")]);
    engine.kubectl(&["rollout", "status", "sts/db", "--timeout=120s"]);
    assert_eq!(versions(), "two two two");
    engine.kubectl(&["rollout", "undo", "sts/db"]);
    engine.kubectl(&["rollout", "status", "sts/db", "--timeout=120s"]);
    assert_eq!(versions(), "one one one");
    engine.kubectl(&["delete", "sts", "db", "--cascade=foreground", "--timeout=120s"]);
    assert_eq!(engine.kubectl(&["get", "pods,controllerrevisions", "-o", "name"]), "");
}

const JOBS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: many}
spec:
  completions: 4
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:test", command: [sh, -c, "echo done"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completionMode: Indexed
  completions: 3
  parallelism: 3
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:test", command: [sh, -c, "echo I am $JOB_COMPLETION_INDEX on $(hostname)"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: failing}
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:test", command: [sh, -c, "exit 3"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: fatal}
spec:
  podFailurePolicy:
    rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:test", command: [sh, -c, "exit 42"]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: yearly}
spec:
  schedule: "@yearly"
  timeZone: Europe/Berlin
  jobTemplate:
    spec:
      ttlSecondsAfterFinished: 1
      template:
        spec:
          restartPolicy: OnFailure
          containers: [{name: main, image: "busybox:test", command: [sh, -c, "echo by hand"]}]
"#;

#[test]
fn jobs_complete_fail_and_expire() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(JOBS);
    engine.kubectl(&["create", "job", "--from=cronjob/yearly", "now"]);
    engine.kubectl(&["wait", "--for=condition=complete", "job/many", "job/indexed", "--timeout=180s"]);
    assert_eq!(engine.value("job/many", "{.status.succeeded} {.status.failed}"), "4 ");
    assert_eq!(engine.value("job/indexed", "{.status.completedIndexes}"), "0-2");
    let said = engine.kubectl(&["logs", "-l", "batch.kubernetes.io/job-completion-index=1"]);
    assert_eq!(said, "I am 1 on indexed-1\n");
    engine.kubectl(&["wait", "--for=condition=failed", "job/failing", "job/fatal", "--timeout=180s"]);
    assert_eq!(engine.value("job/failing", "{.status.failed}"), "2");
    let reason = "{.status.conditions[?(@.type==\"Failed\")].reason}";
    assert_eq!(engine.value("job/failing", reason), "BackoffLimitExceeded");
    assert_eq!(engine.value("job/fatal", reason), "PodFailurePolicy");
    let described = engine.kubectl(&["describe", "job", "many"]);
    assert!(described.contains("Completed") && described.contains("job-controller  Job completed"), "{described}");
    eventually("the job made by hand is gone after its time", || {
        let left = engine.kubectl(&["get", "jobs,pods", "-o", "name"]);
        if left.contains("/now") { Err(left) } else { Ok(()) }
    });
    engine.kubectl(&["delete", "jobs", "--all", "--timeout=60s"]);
    eventually("their pods go with them", || {
        let left = engine.kubectl(&["get", "pods", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

const GUARDED: &str = r#"
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
      containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
"#;

/// On the only node, what is drained finds no other place: the budget lets one pod go, and keeps the other.
#[test]
fn a_drain_stops_at_the_budget_and_leaves_daemons() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(GUARDED);
    engine.kubectl(&["rollout", "status", "deploy/web", "--timeout=120s"]);
    engine.kubectl(&["rollout", "status", "ds/agent", "--timeout=120s"]);
    engine.wait_value("pdb/web", "{.status.disruptionsAllowed}", "1");
    let refused = engine.kubectl_fails(&["drain", "host-1", "--ignore-daemonsets", "--timeout=8s"]);
    assert!(refused.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{refused}");
    assert_eq!(engine.value("pdb/web", "{.status.currentHealthy} {.status.disruptionsAllowed}"), "1 0");
    assert_eq!(engine.value("ds/agent", "{.status.numberReady}"), "1");
    engine.kubectl(&["uncordon", "host-1"]);
    engine.wait_value("pdb/web", "{.status.disruptionsAllowed}", "1");
}
