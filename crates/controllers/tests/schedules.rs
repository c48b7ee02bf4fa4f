//! CronJobs and disruption budgets against the real API server, on virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Cluster, DEPLOYMENTS, PODS, count};
use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

const CRONS: &str = "/apis/batch/v1/namespaces/default/cronjobs";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

fn cron(name: &str, image: &str, more: Value) -> Value {
    let mut cron = json!({"metadata": {"name": name}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec":
        {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": image}]}}}}}});
    for (key, value) in more.as_object().unwrap() {
        cron["spec"][key] = value.clone();
    }
    cron
}

async fn jobs_of(cluster: &Cluster, cron: &str) -> Vec<Value> {
    let jobs = cluster.items(JOBS).await;
    jobs.into_iter().filter(|job| job["metadata"]["ownerReferences"][0]["name"] == cron).collect()
}

#[tokio::test(start_paused = true)]
async fn cron_jobs_fire_keep_their_history_and_mind_those_that_run() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let berlin = json!({"timeZone": "Europe/Berlin", "successfulJobsHistoryLimit": 2});
    cluster.post(CRONS, cron("brief", "exit-0", berlin)).await;
    cluster.post(CRONS, cron("forbid", "v1", json!({"concurrencyPolicy": "Forbid"}))).await;
    cluster.post(CRONS, cron("replace", "v1", json!({"concurrencyPolicy": "Replace"}))).await;
    cluster.post(CRONS, cron("allow", "v1", json!({}))).await;
    cluster.post(CRONS, cron("asleep", "v1", json!({"suspend": true}))).await;
    sleep(Duration::from_secs(250)).await;
    let brief = jobs_of(&cluster, "brief").await;
    assert_eq!(brief.len(), 2, "the history's limit");
    let minute = "2026-01-01T00:04:00Z".parse::<jiff::Timestamp>().unwrap().as_second() / 60;
    assert_eq!(brief[1]["metadata"]["name"], format!("brief-{minute}"));
    let stamp = &brief[1]["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(stamp, "2026-01-01T01:04:00+01:00");
    let status = cluster.get(&format!("{CRONS}/brief")).await.unwrap()["status"].clone();
    assert_eq!(status["lastScheduleTime"], "2026-01-01T00:04:00Z");
    assert!(status["lastSuccessfulTime"].is_string() && status["active"].is_null(), "{status}");
    assert_eq!(jobs_of(&cluster, "forbid").await.len(), 1);
    assert_eq!(jobs_of(&cluster, "allow").await.len(), 4);
    assert_eq!(jobs_of(&cluster, "asleep").await.len(), 0);
    let replaced = jobs_of(&cluster, "replace").await;
    assert_eq!(replaced.len(), 1);
    assert_eq!(replaced[0]["metadata"]["name"], format!("replace-{minute}"));
    let reasons = cluster.reasons().await;
    for told in [
        "JobAlreadyActive Not starting job because prior execution is running and concurrency policy is Forbid",
        "SuccessfulCreate Created job brief-",
        "SuccessfulDelete Deleted job replace-",
        "SawCompletedJob Saw completed job: brief-",
    ] {
        assert!(reasons.iter().any(|reason| reason.starts_with(told)), "{told} not in {reasons:?}");
    }
    cluster.delete(&format!("{CRONS}/allow"), "Background").await;
    cluster.until("its jobs", async |c| jobs_of(c, "allow").await.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn missed_times_are_made_up_for_once_and_within_the_deadline() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    for (name, deadline) in [("late", 200), ("tight", 5)] {
        let asleep = json!({"suspend": true, "startingDeadlineSeconds": deadline});
        cluster.post(CRONS, cron(name, "exit-0", asleep)).await;
    }
    sleep(Duration::from_secs(150)).await;
    for name in ["late", "tight"] {
        cluster.patch(&format!("{CRONS}/{name}"), json!({"spec": {"suspend": false}})).await;
    }
    sleep(Duration::from_secs(5)).await;
    let late = jobs_of(&cluster, "late").await;
    let minute = "2026-01-01T00:02:00Z".parse::<jiff::Timestamp>().unwrap().as_second() / 60;
    assert_eq!(late.iter().map(|job| &job["metadata"]["name"]).collect::<Vec<_>>(), [&json!(format!("late-{minute}"))]);
    assert_eq!(jobs_of(&cluster, "tight").await.len(), 0);
    sleep(Duration::from_secs(35)).await;
    assert_eq!(jobs_of(&cluster, "tight").await.len(), 1);
    assert_eq!(jobs_of(&cluster, "late").await.len(), 2);
}

async fn evict(cluster: &Cluster, pod: &str) -> Result<Value, kube::Error> {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}});
    cluster.call(Method::POST, &format!("{PODS}/{pod}/eviction"), Some(&eviction)).await
}

#[tokio::test(start_paused = true)]
async fn evictions_stay_within_the_budget() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}}}});
    cluster.post(DEPLOYMENTS, web).await;
    let budget = |name: &str, more: Value| {
        let mut budget = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
        for (key, value) in more.as_object().unwrap() {
            budget["spec"][key] = value.clone();
        }
        budget
    };
    cluster.post(BUDGETS, budget("web", json!({"maxUnavailable": 1}))).await;
    let path = format!("{BUDGETS}/web");
    let status = async |c: &Cluster| c.get(&path).await.unwrap()["status"].clone();
    cluster.until("one may go", async |c| count(&status(c).await["disruptionsAllowed"]) == 1).await;
    let now = status(&cluster).await;
    assert_eq!(
        (&now["expectedPods"], &now["desiredHealthy"], &now["currentHealthy"]),
        (&json!(3), &json!(2), &json!(3))
    );
    assert_eq!(now["conditions"][0]["reason"], "SufficientPods");
    let names: Vec<String> = {
        let pods = cluster.items(PODS).await;
        pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    evict(&cluster, &names[0]).await.unwrap();
    let Err(kube::Error::Api(refused)) = evict(&cluster, &names[1]).await else { panic!("a second eviction") };
    assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let causes = refused.details.unwrap().causes;
    assert_eq!(causes[0].reason, "DisruptionBudget");
    assert!(causes[0].message.starts_with("The disruption budget web needs 2 healthy pods and has "), "{causes:?}");
    cluster.until("replaced", async |c| count(&status(c).await["disruptionsAllowed"]) == 1).await;
    assert!(cluster.get(&format!("{PODS}/{}", names[0])).await.is_none());
    cluster.post(BUDGETS, budget("twice", json!({"minAvailable": "50%"}))).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.get(&format!("{BUDGETS}/twice")).await.unwrap()["status"]["desiredHealthy"], 2);
    let Err(kube::Error::Api(refused)) = evict(&cluster, &names[1]).await else { panic!("two budgets") };
    assert!(refused.message.starts_with("This pod has more than one PodDisruptionBudget"), "{}", refused.message);
    cluster.delete(&format!("{BUDGETS}/twice"), "Background").await;
    // Pods that never become ready: only one policy lets them go.
    cluster.patch(&format!("{DEPLOYMENTS}/web"), json!({"spec": {"replicas": 0}})).await;
    let strict = json!({"spec": {"maxUnavailable": null, "minAvailable": 1}});
    cluster.patch(&path, strict).await;
    cluster.until("none", async |c| status(c).await["expectedPods"] == 0).await;
    assert_eq!(status(&cluster).await["conditions"][0]["reason"], "InsufficientPods");
}
