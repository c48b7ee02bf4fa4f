//! The autoscaler's arithmetic: what metrics ask for, and how far and fast replicas may go.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;
use k8s_openapi::api::core::v1::Pod;
use mycelium_controllers::autoscaler::limits::{Past, limit};
use mycelium_controllers::autoscaler::plan::{Failure, Proposal, decide, without_metrics};
use mycelium_controllers::autoscaler::replicas::{Sample, Target, Tolerance, by_pod, of_whole};
use proptest::prelude::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("a time")
}

fn pod(name: &str, phase: &str, ready: &str) -> Arc<Pod> {
    let pod = json!({"metadata": {"name": name}, "status": {"phase": phase, "startTime": "1970-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:01Z"}]}});
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn samples(values: &[(&str, i64)]) -> BTreeMap<String, Sample> {
    let sample = |milli| Sample { milli, at: at(0), window: SignedDuration::from_secs(60) };
    values.iter().map(|(name, milli)| ((*name).to_owned(), sample(*milli))).collect()
}

fn spec(more: Value) -> HorizontalPodAutoscalerSpec {
    let mut spec =
        json!({"minReplicas": 1, "maxReplicas": 100, "scaleTargetRef": {"kind": "Deployment", "name": "web"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).expect("a spec")
}

#[test]
fn use_against_requests_decides() {
    let pods: Vec<_> = ["a", "b", "c"].into_iter().map(|name| pod(name, "Running", "True")).collect();
    let requests: BTreeMap<_, _> = ["a", "b", "c"].into_iter().map(|name| (name.to_owned(), 1000)).collect();
    let target = Target::Utilization(50, requests);
    let replicas = |values: &[(&str, i64)], pods: &[Arc<Pod>]| {
        by_pod(3, pods, samples(values), &target, Tolerance::default(), true, at(0)).map(|answer| answer.replicas)
    };
    assert_eq!(replicas(&[("a", 900), ("b", 900), ("c", 900)], &pods), Ok(6), "90 % of 50 % for three");
    assert_eq!(replicas(&[("a", 540), ("b", 520), ("c", 500)], &pods), Ok(3), "within the tolerance");
    assert_eq!(replicas(&[("a", 100), ("b", 100), ("c", 100)], &pods), Ok(1));
    // A pod that tells nothing is taken for idle when more are asked for, and for busy when fewer are.
    assert_eq!(replicas(&[("a", 900), ("b", 900)], &pods), Ok(4));
    assert_eq!(replicas(&[("a", 100), ("b", 100)], &pods), Ok(3));
    let starting = [pods[0].clone(), pods[1].clone(), pod("c", "Pending", "False")];
    assert_eq!(replicas(&[("a", 900), ("b", 900)], &starting), Ok(4));
    assert_eq!(
        replicas(&[("a", 900)], &[]),
        Err("no pods returned by selector while calculating replica count".into())
    );
    let none = replicas(&[], &pods);
    assert_eq!(none, Err("did not receive metrics for targeted pods (pods might be unready)".into()));
    let average = by_pod(
        3,
        &pods,
        samples(&[("a", 30_000), ("b", 10_000), ("c", 50_000)]),
        &Target::Average(10_000),
        Tolerance::default(),
        false,
        at(0),
    );
    assert_eq!(average.map(|answer| (answer.replicas, answer.average_milli)), Ok((9, 30_000)));
    let whole = |value, per_replica| of_whole(3, 3, 3, value, 1000, per_replica, Tolerance::default()).replicas;
    assert_eq!((whole(2000, false), whole(1050, false), whole(6000, true), whole(3100, true)), (6, 3, 6, 3));
}

#[test]
fn bounds_stabilisation_and_rates_hold_replicas_back() {
    let mut past = Past::default();
    let plain = spec(json!({}));
    let up = limit(&plain, 3, 50, &mut past, at(0));
    assert_eq!((up.replicas, up.limited.1), (6, "ScaleUpLimit"), "at most twice as many, or four");
    let down = limit(&plain, 40, 5, &mut past, at(60));
    assert_eq!((down.replicas, down.able.1), (50, "ScaleDownStabilized"), "the recent peak counts");
    let later = limit(&plain, 40, 5, &mut past, at(400));
    assert_eq!((later.replicas, later.able.1, later.limited.1), (5, "ReadyForNewScale", "DesiredWithinRange"));

    let behaved = spec(json!({"behavior": {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]}}}));
    let mut past = Past::default();
    assert_eq!(limit(&behaved, 1, 90, &mut past, at(0)).replicas, 5);
    past.scaled(at(0), 4);
    assert_eq!(limit(&behaved, 5, 90, &mut past, at(5)).replicas, 5, "the period's share is used up");
    assert_eq!(limit(&behaved, 5, 90, &mut past, at(20)).replicas, 10);
    let down = limit(&behaved, 10, 1, &mut past, at(120));
    assert_eq!((down.replicas, down.limited.1), (8, "ScaleDownLimit"));
    let frozen =
        spec(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"}}}));
    assert_eq!(limit(&frozen, 10, 1, &mut Past::default(), at(0)).replicas, 10);
}

#[test]
fn the_largest_proposal_counts_and_silence_never_shrinks() {
    let plain = spec(json!({}));
    let propose = |replicas| Ok(Proposal { replicas, name: format!("metric {replicas}") });
    let broken = || Err(Failure { reason: "FailedGetPodsMetric", message: "away".into() });
    let decision = decide(&plain, 4, &[propose(3), propose(5)], &mut Past::default(), at(0));
    assert_eq!((decision.replicas, decision.reason.as_str()), (Some(5), "metric 5 above target"));
    let decision = decide(&plain, 4, &[propose(2), broken()], &mut Past::default(), at(0));
    assert_eq!(decision.replicas, None);
    assert_eq!((decision.told[0].type_, decision.told[0].reason.as_str()), ("ScalingActive", "FailedGetPodsMetric"));
    assert_eq!(decision.complaint.as_deref(), Some("invalid metrics (1 invalid out of 2), first error is: away"));
    assert_eq!(decide(&plain, 4, &[propose(6), broken()], &mut Past::default(), at(0)).replicas, Some(6));
    assert_eq!(without_metrics(&plain, 0).map(|d| d.told[0].reason.clone()), Some("ScalingDisabled".into()));
    assert_eq!(without_metrics(&plain, 120).and_then(|decision| decision.replicas), Some(100));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_stay_within_bounds_and_rates(
        least in 1..10_i32, room in 0..50_i32, window in 0..400_i32, pods in 1..10_i32,
        asked in prop::collection::vec(0..200_i32, 1..40),
    ) {
        let most = least + room;
        let spec = spec(json!({"minReplicas": least, "maxReplicas": most, "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": pods, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": window, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}]}}}));
        let (mut past, mut current) = (Past::default(), least);
        let mut history: Vec<(i64, i32, i32)> = Vec::new();
        for (step, asked) in asked.into_iter().enumerate() {
            let now = i64::try_from(step).expect("few") * 15;
            let next = limit(&spec, current, asked, &mut past, at(now)).replicas;
            prop_assert!((least..=most).contains(&next));
            let grown: i32 = history.iter().filter(|(then, ..)| now - then < 60).map(|(_, by, _)| *by).sum();
            prop_assert!(next <= current || grown + next - current <= pods, "grew too fast");
            let peak = history.iter().filter(|(then, ..)| now - then < i64::from(window)).map(|(.., asked)| *asked).max();
            prop_assert!(next >= current || peak.is_none_or(|peak| next >= peak.min(current)), "shrank below a recent peak");
            if next != current {
                past.scaled(at(now), next - current);
            }
            history.push((now, next - current, asked));
            current = next;
        }
    }
}
