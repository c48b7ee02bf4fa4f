//! Decides about pressure: a pure function of what was measured and when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use mycelium_api::quantity::{Format, Quantity};

use super::Condition;
use super::config::{Config, Threshold};
use super::signals::{Level, Sample, Signal};

/// Pods as important as this keep the node alive.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What is remembered between two looks.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Since when each threshold, by its index, is met.
    since: BTreeMap<usize, Timestamp>,
    /// When each condition was last seen.
    seen: BTreeMap<Condition, Timestamp>,
}

/// What follows from a look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// The node's conditions.
    pub conditions: BTreeSet<Condition>,
    /// The threshold to do something about now, and what was measured.
    pub act: Option<(Threshold, Level)>,
}

/// Judges a look.
pub fn judge(memory: &mut Memory, config: &Config, sample: &Sample, now: Timestamp) -> Outlook {
    let mut outlook = Outlook::default();
    let mut due: Vec<(Threshold, Level)> = Vec::new();
    for (index, threshold) in config.thresholds.iter().enumerate() {
        let Some(level) = sample.get(&threshold.signal).copied() else { continue };
        let mut bound = threshold.below.of(level.capacity);
        if memory.since.contains_key(&index) {
            bound += threshold.reclaim.map_or(0, |more| more.of(level.capacity));
        }
        if level.available >= bound {
            memory.since.remove(&index);
            continue;
        }
        let since = *memory.since.entry(index).or_insert(now);
        memory.seen.insert(threshold.signal.condition(), now);
        if threshold.grace.is_none_or(|grace| passed(since, now, grace)) {
            due.push((*threshold, level));
        }
    }
    memory.seen.retain(|_, seen| !passed(*seen, now, config.transition));
    outlook.conditions = memory.seen.keys().copied().collect();
    // Memory first: the kernel would act on its own soon. Then a hard one before a soft one.
    due.sort_by_key(|(threshold, _)| (threshold.signal, threshold.grace));
    outlook.act = due.first().copied();
    outlook
}

fn passed(since: Timestamp, now: Timestamp, time: Duration) -> bool {
    now.duration_since(since) >= SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}

/// What one container uses and asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// What it uses.
    pub used: u64,
    /// What it requested.
    pub requested: u64,
    /// The request as the pod has it.
    pub request: String,
}

/// What a pod uses of what is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Its unique id.
    pub uid: String,
    /// How important it is.
    pub priority: i32,
    /// What it uses.
    pub used: u64,
    /// What it requested.
    pub requested: u64,
    /// Each container, where that can be told apart.
    pub containers: Vec<ContainerUse>,
}

/// The order in which pods go: those beyond their requests, of these the least important, of these the furthest beyond.
/// Of process ids nothing is requested.
pub fn rank(signal: Signal, pods: &mut [PodUse]) {
    let beyond = |pod: &PodUse| pod.used.saturating_sub(pod.requested);
    match signal {
        Signal::Pid => pods.sort_by_key(|pod| (pod.priority, Reverse(pod.used))),
        _ => pods.sort_by_key(|pod| (pod.used <= pod.requested, pod.priority, Reverse(beyond(pod)))),
    }
}

/// Whether the node must not do without the pod.
pub fn is_critical(pod: &Pod) -> bool {
    let mirror = pod.metadata.annotations.iter().flatten().any(|(key, _)| key == "kubernetes.io/config.mirror");
    mirror || priority(pod) >= CRITICAL_PRIORITY
}

/// How important a pod is.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn bytes(amount: u64) -> String {
    Quantity::from_value(i64::try_from(amount).unwrap_or(i64::MAX), Format::BinarySi).to_string()
}

/// What an evicted pod is told.
pub fn message(threshold: &Threshold, level: Level, pod: &PodUse) -> String {
    let resource = threshold.signal.resource();
    let plain = |amount: u64| if matches!(resource, "inodes" | "pids") { amount.to_string() } else { bytes(amount) };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        plain(threshold.below.of(level.capacity)),
        plain(level.available)
    );
    for container in pod.containers.iter().filter(|c| c.used > c.requested) {
        let used = bytes(container.used);
        let ContainerUse { name, request, .. } = container;
        text +=
            &format!("Container {name} was using {used}, request is {request}, has larger consumption of {resource}. ");
    }
    text
}

/// Why a pod may not start on a node with these conditions.
pub fn refusal(pod: &Pod, conditions: &BTreeSet<Condition>, best_effort: bool) -> Option<String> {
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    if conditions.iter().all(|condition| *condition == Condition::Memory) && (!best_effort || tolerates_memory(pod)) {
        return None;
    }
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    Some(format!("The node had condition: [{}]. ", names.join(" ")))
}

fn tolerates_memory(pod: &Pod) -> bool {
    const KEY: &str = "node.kubernetes.io/memory-pressure";
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        let same = key == KEY && (exists || t.value.as_deref().unwrap_or_default().is_empty());
        (same || (key.is_empty() && exists)) && matches!(t.effect.as_deref(), None | Some("" | "NoSchedule"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::config::Amount;
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::new(1_000_000 + secs, 0).expect("a time")
    }

    fn threshold(signal: Signal, below: u64) -> Threshold {
        Threshold { signal, below: Amount::Absolute(below), grace: None, reclaim: None }
    }

    fn sample(memory: u64, disk: u64) -> Sample {
        let level = |available| Level { available, capacity: 1000 };
        Sample::from([(Signal::Memory, level(memory)), (Signal::NodeFs, level(disk))])
    }

    fn names(outlook: &Outlook) -> (Vec<&'static str>, Option<&'static str>) {
        let conditions = outlook.conditions.iter().map(|c| c.name()).collect();
        (conditions, outlook.act.map(|(threshold, _)| threshold.signal.name()))
    }

    #[test]
    fn hard_thresholds_act_at_once_and_conditions_linger() {
        let thresholds = vec![threshold(Signal::NodeFs, 100), threshold(Signal::Memory, 100)];
        let config = Config { thresholds, transition: Duration::from_secs(30), ..Config::default() };
        let mut memory = Memory::default();
        let mut look = |memory_left, disk_left, secs| {
            names(&judge(&mut memory, &config, &sample(memory_left, disk_left), at(secs)))
        };
        assert_eq!(look(100, 100, 0), (vec![], None));
        assert_eq!(look(99, 99, 10), (vec!["MemoryPressure", "DiskPressure"], Some("memory.available")));
        assert_eq!(look(100, 99, 20), (vec!["MemoryPressure", "DiskPressure"], Some("nodefs.available")));
        assert_eq!(look(100, 100, 39), (vec!["MemoryPressure", "DiskPressure"], None));
        assert_eq!(look(100, 100, 40), (vec!["DiskPressure"], None));
        assert_eq!(look(100, 100, 50), (vec![], None));
    }

    #[test]
    fn soft_thresholds_have_patience_and_reclaim_goes_further() {
        let soft = Threshold { grace: Some(Duration::from_secs(30)), ..threshold(Signal::Memory, 200) };
        let hard = Threshold { reclaim: Some(Amount::Absolute(50)), ..threshold(Signal::NodeFs, 100) };
        let config = Config { thresholds: vec![soft, hard], transition: Duration::ZERO, ..Config::default() };
        let mut memory = Memory::default();
        let mut look = |memory_left, disk_left, secs| {
            names(&judge(&mut memory, &config, &sample(memory_left, disk_left), at(secs))).1
        };
        assert_eq!(look(150, 500, 0), None);
        assert_eq!(look(150, 500, 29), None);
        assert_eq!(look(150, 500, 30), Some("memory.available"));
        assert_eq!(look(200, 140, 40), None, "it was never met");
        assert_eq!(look(200, 99, 50), Some("nodefs.available"));
        assert_eq!(look(200, 149, 60), Some("nodefs.available"), "not yet as much more as was asked");
        assert_eq!(look(200, 150, 70), None);
    }

    #[test]
    fn who_goes_first() {
        let pod = |uid: &str, priority, used, requested| PodUse {
            uid: uid.into(),
            priority,
            used,
            requested,
            containers: vec![],
        };
        let mut pods = [
            pod("within", 0, 90, 100),
            pod("important", 10, 500, 0),
            pod("little", 0, 20, 10),
            pod("much", 0, 300, 100),
        ];
        rank(Signal::Memory, &mut pods);
        assert_eq!(pods.clone().map(|pod| pod.uid), ["much", "little", "important", "within"]);
        rank(Signal::Pid, &mut pods);
        assert_eq!(pods.map(|pod| pod.uid), ["much", "within", "little", "important"]);
    }

    #[test]
    fn words_are_those_of_kubernetes() {
        let level = Level { available: 50 << 20, capacity: 1 << 30 };
        let container =
            |name: &str, used, requested| ContainerUse { name: name.into(), used, requested, request: "0".into() };
        let pod = PodUse { containers: vec![container("a", 123 << 10, 0), container("b", 1, 1)], ..PodUse::default() };
        assert_eq!(
            message(&threshold(Signal::Memory, 100 << 20), level, &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container a was using \
             123Ki, request is 0, has larger consumption of memory. "
        );
    }

    #[test]
    fn who_may_start_under_pressure() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": []}})).expect("a pod");
        let critical: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"priority": 2_000_000_000, "containers": []}}))
                .expect("a pod");
        let memory = BTreeSet::from([Condition::Memory]);
        let both = BTreeSet::from([Condition::Memory, Condition::Disk]);
        assert_eq!(refusal(&pod, &memory, false), None);
        assert_eq!(refusal(&pod, &memory, true).as_deref(), Some("The node had condition: [MemoryPressure]. "));
        let text = "The node had condition: [MemoryPressure DiskPressure]. ";
        assert_eq!(refusal(&pod, &both, false).as_deref(), Some(text));
        assert_eq!(refusal(&critical, &both, true), None);
    }
}
