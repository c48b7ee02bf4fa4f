//! `GET /stats/summary`: what the node and its containers use, in the form of the kubelet's summary.
//!
//! Rates need two looks at a counter. For a minute after a question looks go on, so that the next is answered with what happened
//! just before it: an autoscaler asks every 15 s, and should hear of a load that is younger. The first question looks twice, a second
//! apart. Nothing is measured while nobody asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::Response;
use jiff::Timestamp;
use mycelium_linux::cgroup::{Hierarchies, Usage};
use serde_json::{Value, json};

use super::{Body, full};
use crate::node::Inner;
use crate::pod::sandbox;
use crate::register::meminfo;

/// A rate is taken over this time at least, if there was a look so long ago.
const WINDOW_MIN: f64 = 5.0;
/// An older look tells nothing about now.
const WINDOW_MAX: f64 = 60.0;
/// Between looks while somebody asks.
const LOOK_EVERY: Duration = Duration::from_millis(2500);
/// Between the two looks of a first question.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// The node's own name among the counters.
const NODE: &str = "";
/// Clock ticks of `/proc/stat` in a second (`USER_HZ`, the same on every Linux).
const TICK_NS: u64 = 10_000_000;

/// Looks at counters of processor time, by what they count.
#[derive(Default)]
pub(crate) struct Looks {
    counters: Mutex<BTreeMap<String, VecDeque<(Timestamp, u64)>>>,
    /// The last question, while looks go on for the next.
    asked: Mutex<Option<Timestamp>>,
}

impl Looks {
    /// Notes a look, and tells the rate since an earlier one: nanoseconds per second, and over how many seconds.
    fn rate(&self, name: &str, now: Timestamp, counter: u64) -> Option<(u64, f64)> {
        let mut all = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = all.entry(name.to_owned()).or_default();
        let age = |at: Timestamp| now.duration_since(at).as_secs_f64();
        looks.retain(|(at, before)| age(*at) <= WINDOW_MAX && *before <= counter);
        let long_enough = looks.iter().rev().find(|(at, _)| age(*at) >= WINDOW_MIN);
        let base = long_enough.or(looks.front()).copied().filter(|(at, _)| age(*at) > 0.0);
        if looks.back().is_none_or(|(at, _)| age(*at) >= WINDOW_MIN / 2.0) {
            looks.push_back((now, counter));
        }
        base.map(|(at, before)| (((counter - before) as f64 / age(at)) as u64, age(at)))
    }

    /// Whether something was looked at that is not forgotten yet.
    fn are_fresh(&self, now: Timestamp) -> bool {
        let all = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.get(NODE).and_then(|looks| looks.back());
        last.is_some_and(|(at, _)| now.duration_since(*at).as_secs_f64() <= WINDOW_MAX)
    }

    /// Notes a question; whether looks have to begin for it.
    fn ask(&self, now: Timestamp) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).replace(now).is_none()
    }

    /// Whether looks go on; they end a while after the last question.
    fn go_on(&self, now: Timestamp) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = asked.filter(|at| now.duration_since(*at).as_secs_f64() <= WINDOW_MAX);
        asked.is_some()
    }

    fn keep(&self, known: impl Fn(&str) -> bool) {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| known(name));
    }
}

/// A container that runs.
struct Running {
    pod: (String, String, String),
    name: String,
    id: String,
    since: Timestamp,
    usage: Usage,
}

/// Answers.
pub async fn serve(inner: &Arc<Inner>) -> Response<Body> {
    if !inner.looks.are_fresh(inner.ctx.env.now()) {
        let _ = summary(inner);
        tokio::time::sleep(FIRST_WINDOW).await;
    }
    if inner.looks.ask(inner.ctx.env.now()) {
        tokio::spawn(look_on(Arc::downgrade(inner)));
    }
    let mut response = Response::new(full(summary(inner).to_string()));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Looks until nobody asks any more.
async fn look_on(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        if !inner.looks.go_on(inner.ctx.env.now()) {
            return;
        }
        let _ = summary(&inner);
    }
}

fn summary(inner: &Inner) -> Value {
    let now = inner.ctx.env.now();
    let running = running(inner);
    inner.looks.keep(|name| name == NODE || running.iter().any(|container| container.id == name));
    let mut pods: BTreeMap<&(String, String, String), Vec<Value>> = BTreeMap::new();
    for container in &running {
        let Usage { cpu_ns, memory_bytes, working_set_bytes } = container.usage;
        let rate = inner.looks.rate(&container.id, now, cpu_ns);
        pods.entry(&container.pod).or_default().push(json!({
            "name": container.name, "startTime": container.since.to_string(), "cpu": cpu(now, cpu_ns, rate),
            "memory": {"time": now.to_string(), "usageBytes": memory_bytes, "workingSetBytes": working_set_bytes},
        }));
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|((namespace, name, uid), containers)| {
            json!({"podRef": {"namespace": namespace, "name": name, "uid": uid}, "containers": containers})
        })
        .collect();
    let (busy, used) = of_node(inner);
    let available = meminfo("MemTotal").saturating_sub(used);
    json!({
        "node": {
            "nodeName": inner.name(),
            "cpu": cpu(now, busy, inner.looks.rate(NODE, now, busy)),
            "memory": {"time": now.to_string(), "availableBytes": available,
                "workingSetBytes": used},
        },
        "pods": pods,
    })
}

/// Processor time and memory: the machine's for the first node, what its pods use for another.
fn of_node(inner: &Inner) -> (u64, u64) {
    if inner.ctx.number > 1 {
        let usage = Hierarchies::get().usage(&inner.ctx.cgroup());
        return usage.map_or((0, 0), |usage| (usage.cpu_ns, usage.working_set_bytes));
    }
    let busy = busy_ns(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
    (busy, meminfo("MemTotal").saturating_sub(meminfo("MemAvailable")))
}

/// `windowSeconds` is ours: over which time the rate was taken.
fn cpu(now: Timestamp, total: u64, rate: Option<(u64, f64)>) -> Value {
    let mut cpu = json!({"time": now.to_string(), "usageCoreNanoSeconds": total});
    if let Some((rate, window)) = rate {
        cpu["usageNanoCores"] = json!(rate);
        cpu["windowSeconds"] = json!(window);
    }
    cpu
}

fn running(inner: &Inner) -> Vec<Running> {
    let mut found = Vec::new();
    for handle in inner.workers().values() {
        let shared = handle.shared.borrow();
        let meta = &shared.pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        for (name, view) in &shared.containers {
            let Some(run) = &view.current else { continue };
            let Some(since) = run.running() else { continue };
            let group = format!("{}/{}", sandbox::pod_cgroup(&inner.ctx, &shared.pod), run.record.id);
            let Some(usage) = Hierarchies::get().usage(&group) else { continue };
            let pod = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
            found.push(Running { pod, name: name.clone(), id: run.record.id.clone(), since, usage });
        }
    }
    found
}

/// The time that all processors together have worked (proc(5), `/proc/stat`): all but idle and waiting for I/O. Guests'
/// time is part of the first two numbers.
fn busy_ns(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
    let busy = ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum::<u64>();
    busy * TICK_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_over_a_while_and_forgotten() {
        let looks = Looks::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(looks.rate("a", at(100), 5_000_000_000), None);
        assert_eq!(looks.rate("a", at(101), 5_500_000_000), Some((500_000_000, 1.0)));
        assert_eq!(looks.rate("a", at(115), 8_000_000_000), Some((200_000_000, 15.0)));
        // The newest look that is old enough counts, and a counter that began anew has no past.
        assert_eq!(looks.rate("a", at(126), 19_000_000_000), Some((1_000_000_000, 11.0)));
        assert_eq!(looks.rate("a", at(127), 1), None);
        assert_eq!(looks.rate("a", at(300), 9), None);
    }

    #[test]
    fn looks_go_on_for_a_while_after_the_last_question() {
        let looks = Looks::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert!(looks.ask(at(100)) && !looks.ask(at(110)), "one task looks");
        assert!(looks.go_on(at(170)) && !looks.go_on(at(171)));
        assert!(looks.ask(at(172)), "it begins anew");
    }

    #[test]
    fn idle_processors_do_not_count() {
        assert_eq!(busy_ns("cpu  10 1 5 1000 200 1 2 3 10 0\ncpu0 1 1 1 1\n"), 22 * TICK_NS);
    }
}
