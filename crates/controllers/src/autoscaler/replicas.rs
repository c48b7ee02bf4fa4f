//! How many replicas a metric asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::objects::{name, phase, pod_condition};

/// A pod that started less than this ago is not yet judged by its use of the processor.
const CPU_WARM_UP: SignedDuration = SignedDuration::from_mins(5);
/// A pod that was never ready by this time after its start is not judged either.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What was measured of a pod, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The value.
    pub milli: i64,
    /// When it was measured.
    pub at: Timestamp,
    /// Over how long.
    pub window: SignedDuration,
}

/// By how much use may differ from its target, as a share, before anything happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Above.
    pub up: f64,
    /// Below.
    pub down: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

impl Tolerance {
    fn allows(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// The target of a metric that is measured by pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A share of what each pod has asked for, in percent; with the requests in thousandths.
    Utilization(i64, BTreeMap<String, i64>),
    /// An average, in thousandths.
    Average(i64),
}

/// How a metric stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Replicas that are asked for.
    pub replicas: i32,
    /// The average, in thousandths.
    pub average_milli: i64,
    /// The share of what was asked for, in percent.
    pub utilization: Option<i32>,
}

/// The pods of a target, sorted by what can be said of them.
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], samples: &mut BTreeMap<String, Sample>, cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new() };
    for pod in pods {
        let pod_name = name(&pod.metadata).to_owned();
        if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
            samples.remove(&pod_name);
        } else if phase(pod) == "Pending" {
            samples.remove(&pod_name);
            groups.unready.insert(pod_name);
        } else if let Some(sample) = samples.get(&pod_name) {
            if cpu && is_unready(pod, sample, now) {
                samples.remove(&pod_name);
                groups.unready.insert(pod_name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(pod_name);
        }
    }
    groups
}

/// Whether what the processor did for this pod is not yet worth counting.
fn is_unready(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let Some((condition, started)) = pod_condition(pod, "Ready").zip(started) else { return true };
    let unready = condition.status == "False";
    let changed = condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    if now.duration_since(started) < CPU_WARM_UP {
        unready || sample.at < changed.checked_add(sample.window).unwrap_or(Timestamp::MAX)
    } else {
        unready && changed.duration_since(started) < FIRST_READINESS
    }
}

/// Use against the target: 1 is exactly as wanted.
fn ratio(samples: &BTreeMap<String, Sample>, target: &Target) -> Result<(f64, Option<i32>), String> {
    let total: i64 = samples.values().map(|sample| sample.milli).sum();
    match target {
        Target::Average(wanted) => Ok((total as f64 / samples.len() as f64 / *wanted as f64, None)),
        Target::Utilization(percent, requests) => {
            let asked: i64 = samples.keys().filter_map(|pod| requests.get(pod)).sum();
            if asked == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let used = i32::try_from(total * 100 / asked).unwrap_or(i32::MAX);
            Ok((f64::from(used) / *percent as f64, Some(used)))
        }
    }
}

/// What a missing pod is taken to use: as much as is wanted when there is too little, nothing when there is too much.
fn assumed(pod: &str, ratio: f64, target: &Target) -> i64 {
    match target {
        _ if ratio > 1.0 => 0,
        Target::Average(wanted) => *wanted,
        Target::Utilization(percent, requests) => requests.get(pod).copied().unwrap_or(0) * (*percent).max(100) / 100,
    }
}

fn ceil(value: f64) -> i32 {
    // Beyond any number of pods it does not matter; the cast saturates.
    value.ceil() as i32
}

/// Replicas for a metric measured by pod. `cpu`: it is the processor's use, which says little of a pod that starts.
pub fn by_pod(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: BTreeMap<String, Sample>,
    target: &Target,
    tolerance: Tolerance,
    cpu: bool,
    now: Timestamp,
) -> Result<Answer, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    samples.retain(|pod, _| pods.iter().any(|held| name(&held.metadata) == pod));
    let groups = group(pods, &mut samples, cpu, now);
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let (first, utilization) = ratio(&samples, target)?;
    let total: i64 = samples.values().map(|sample| sample.milli).sum();
    let average_milli = total / i64::try_from(samples.len()).unwrap_or(1);
    let answer = |replicas| Ok(Answer { replicas, average_milli, utilization });
    let with_unready = !groups.unready.is_empty() && first > 1.0;
    if !with_unready && groups.missing.is_empty() {
        return answer(if tolerance.allows(first) { current } else { ceil(first * groups.ready as f64) });
    }
    let blank = |milli| Sample { milli, at: now, window: SignedDuration::ZERO };
    for pod in groups.missing.iter().filter(|_| first != 1.0) {
        samples.insert(pod.clone(), blank(assumed(pod, first, target)));
    }
    for pod in groups.unready.iter().filter(|_| with_unready) {
        samples.insert(pod.clone(), blank(0));
    }
    let (second, _) = ratio(&samples, target)?;
    // What is assumed must never turn the direction around.
    if tolerance.allows(second) || (first < 1.0) != (second < 1.0) {
        return answer(current);
    }
    let wanted = ceil(second * samples.len() as f64);
    let turned = (second < 1.0 && wanted > current) || (second > 1.0 && wanted < current);
    answer(if turned { current } else { wanted })
}

/// Replicas for a metric of one thing as a whole: so much in all, or so much for each replica.
pub fn of_whole(
    current: i32,
    observed: i32,
    ready: usize,
    value_milli: i64,
    target_milli: i64,
    per_replica: bool,
    tolerance: Tolerance,
) -> Answer {
    let share = value_milli as f64 / target_milli as f64;
    let replicas = if per_replica {
        let ratio = share / f64::from(observed.max(1));
        if observed > 0 && tolerance.allows(ratio) { observed } else { ceil(share) }
    } else if current == 0 {
        ceil(share)
    } else if tolerance.allows(share) {
        current
    } else {
        ceil(share * ready as f64)
    };
    let average_milli = if per_replica {
        (value_milli + i64::from(observed.max(1)) - 1) / i64::from(observed.max(1))
    } else {
        value_milli
    };
    Answer { replicas, average_milli, utilization: None }
}
