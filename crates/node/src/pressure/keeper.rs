//! The task that keeps the node out of trouble, and what others ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use mycelium_linux::cgroup::Hierarchies;
use tokio::sync::watch;

use super::Condition;
use super::config::{Config, Threshold};
use super::disk::{self, DiskUse, Place};
use super::plan::{self, ContainerUse, Memory, PodUse};
use super::signals::{Level, Machine, Meter, Signal};
use crate::events::Kind;
use crate::image::Collect;
use crate::node::Inner;
use crate::pod::handle::{Handle, Message, images_of};
use crate::pod::sandbox;
use crate::spec::resources::{Qos, qos, request, requests_of_pod};

/// A pod that is evicted at once gets this long.
const GRACE_SECS_HARD: i64 = 1;
/// An evicted pod is waited for this long before another one goes.
const CLEANUP: Duration = Duration::from_secs(30);
const CLEANUP_STEP: Duration = Duration::from_millis(200);

/// The node's pressure, as others see it.
pub struct Pressure {
    config: Config,
    meter: Arc<dyn Meter>,
    active: watch::Sender<BTreeSet<Condition>>,
}

impl Pressure {
    /// Nothing is known yet. The machine is measured at `data_dir` unless the configuration brings a meter.
    pub fn new(config: Config, data_dir: &std::path::Path) -> Self {
        let machine = || Arc::new(Machine { data_dir: data_dir.to_owned() }) as Arc<dyn Meter>;
        let meter = config.meter.clone().unwrap_or_else(machine);
        Self { config, meter, active: watch::Sender::default() }
    }

    /// The node's conditions, as they change.
    pub fn conditions(&self) -> watch::Receiver<BTreeSet<Condition>> {
        self.active.subscribe()
    }

    /// Why a pod may not start here now.
    pub fn refusal(&self, pod: &Pod) -> Option<String> {
        let best_effort = pod.spec.as_ref().is_none_or(|spec| qos(spec) == Qos::BestEffort);
        plan::refusal(pod, &self.active.borrow(), best_effort)
    }

    /// Between how full a disk images are removed.
    pub fn images(&self) -> Collect {
        let (high, low) = self.config.image_percents;
        Collect::Percent { high, low }
    }
}

/// Looks, plans and acts, for ever.
pub(crate) async fn run(inner: Arc<Inner>) {
    let pressure = &inner.ctx.pressure;
    let mut keeper = Keeper { inner: inner.clone(), memory: Memory::default(), evicted: BTreeSet::new() };
    loop {
        keeper.look().await;
        tokio::time::sleep(pressure.config.every).await;
    }
}

struct Keeper {
    inner: Arc<Inner>,
    memory: Memory,
    /// Pods that were told to go.
    evicted: BTreeSet<String>,
}

impl Keeper {
    async fn look(&mut self) {
        let pressure = &self.inner.ctx.pressure;
        let sample = pressure.meter.sample();
        let outlook = plan::judge(&mut self.memory, &pressure.config, &sample, self.inner.ctx.env.now());
        pressure.active.send_if_modified(|active| {
            let changed = *active != outlook.conditions;
            active.clone_from(&outlook.conditions);
            changed
        });
        let known: BTreeSet<String> = self.inner.workers().keys().cloned().collect();
        self.evicted.retain(|uid| known.contains(uid));
        if self.enforce_limits().await {
            return;
        }
        if let Some((threshold, level)) = outlook.act {
            self.relieve(threshold, level).await;
        }
    }

    /// The pods that may go, by uid.
    fn pods(&self) -> BTreeMap<String, Handle> {
        let candidate = |uid: &String, handle: &Handle| {
            let shared = handle.shared.borrow();
            let phase = shared.pod.status.as_ref().and_then(|s| s.phase.as_deref());
            !self.evicted.contains(uid) && !matches!(phase, Some("Succeeded" | "Failed")) && shared.pid > 0
        };
        self.inner.workers().iter().filter(|(uid, h)| candidate(uid, h)).map(|(u, h)| (u.clone(), h.clone())).collect()
    }

    /// Evicts pods that exceed the limits of their disk. Returns whether some did.
    async fn enforce_limits(&mut self) -> bool {
        let mut pods = self.pods();
        pods.retain(|_, handle| disk::has_limits(&handle.shared.borrow().pod));
        if pods.is_empty() {
            return false;
        }
        let places: Vec<(String, Place)> = pods.iter().map(|(uid, handle)| (uid.clone(), place(handle))).collect();
        let look = move || {
            let over = |(uid, place): &(String, Place)| {
                Some((uid.clone(), disk::exceeded(&place.pod, &disk::measure(place))?))
            };
            places.iter().filter_map(over).collect::<Vec<_>>()
        };
        let over = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        for (uid, message) in &over {
            if let Some(handle) = pods.get(uid) {
                self.evict(uid, handle, message.clone(), GRACE_SECS_HARD).await;
            }
        }
        !over.is_empty()
    }

    /// Frees what nobody uses; if that is not enough, one pod goes.
    async fn relieve(&mut self, threshold: Threshold, level: Level) {
        let inner = self.inner.clone();
        let node = ObjectReference {
            kind: Some("Node".into()),
            name: Some(inner.name().to_owned()),
            uid: Some(inner.name().to_owned()),
            ..ObjectReference::default()
        };
        let resource = threshold.signal.resource();
        inner.ctx.events.about(
            node,
            Kind::Warning,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {resource}"),
        );
        if threshold.signal.condition() == Condition::Disk {
            let used: Vec<String> = inner.workers().values().flat_map(|h| images_of(&h.shared.borrow())).collect();
            inner.ctx.images.collect(&used, Collect::All).await;
            let now = inner.ctx.pressure.meter.sample().get(&threshold.signal).copied();
            if now.is_some_and(|now| now.available >= threshold.below.of(now.capacity)) {
                return;
            }
        }
        let pods = self.pods();
        let mut uses = self.uses(threshold.signal, &pods).await;
        plan::rank(threshold.signal, &mut uses);
        let victim = uses.iter().find_map(|used| {
            let handle = pods.get(&used.uid)?;
            (!plan::is_critical(&handle.shared.borrow().pod)).then_some((used, handle))
        });
        let Some((used, handle)) = victim else {
            tracing::warn!(resource, "the node is short of it, and no pod may be evicted");
            return;
        };
        let grace_secs = match threshold.grace {
            None => GRACE_SECS_HARD,
            Some(_) => inner.ctx.pressure.config.max_grace_secs,
        };
        self.evict(&used.uid, handle, plan::message(&threshold, level, used), grace_secs).await;
    }

    async fn evict(&mut self, uid: &str, handle: &Handle, message: String, grace_secs: i64) {
        tracing::warn!(pod = uid, message, "evicting a pod");
        self.evicted.insert(uid.to_owned());
        let _ = handle.tell.send(Message::Evict { message, grace_secs });
        let grace = Duration::from_secs(u64::try_from(grace_secs).unwrap_or(0));
        let gone = async {
            while handle.shared.borrow().pid > 0 {
                tokio::time::sleep(CLEANUP_STEP).await;
            }
        };
        let _ = tokio::time::timeout(grace + CLEANUP, gone).await;
    }

    async fn uses(&self, signal: Signal, pods: &BTreeMap<String, Handle>) -> Vec<PodUse> {
        if signal.condition() != Condition::Disk {
            return pods.iter().map(|(uid, handle)| self.held(signal, uid, handle)).collect();
        }
        let places: Vec<(String, Place)> = pods.iter().map(|(uid, handle)| (uid.clone(), place(handle))).collect();
        let look = move || places.into_iter().map(|(uid, place)| on_disk(signal, uid, &place)).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Memory or processes of a pod, from its groups.
    fn held(&self, signal: Signal, uid: &str, handle: &Handle) -> PodUse {
        let shared = handle.shared.borrow();
        let group = sandbox::pod_cgroup(&self.inner.ctx, &shared.pod);
        let groups = Hierarchies::get();
        let mut held = PodUse { uid: uid.to_owned(), priority: plan::priority(&shared.pod), ..PodUse::default() };
        if signal == Signal::Pid {
            held.used = groups.processes(&group);
            return held;
        }
        let used = |group: &str| groups.usage(group).map_or(0, |usage| usage.working_set_bytes);
        held.used = used(&group);
        let Some(spec) = &shared.pod.spec else { return held };
        held.requested = u64::try_from(requests_of_pod(spec, "memory")).unwrap_or(0);
        held.containers = spec
            .containers
            .iter()
            .filter_map(|container| {
                let run = shared.containers.get(&container.name)?.current.as_ref()?;
                Some(container_use(container, "memory", used(&format!("{group}/{}", run.record.id))))
            })
            .collect();
        held
    }
}

fn container_use(container: &Container, resource: &str, used: u64) -> ContainerUse {
    let requested = request(container.resources.as_ref(), resource).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let text = container.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
    ContainerUse {
        name: container.name.clone(),
        used,
        requested,
        request: text.map_or_else(|| "0".to_owned(), |text| text.0.clone()),
    }
}

fn place(handle: &Handle) -> Place {
    let shared = handle.shared.borrow();
    let runs = shared
        .containers
        .iter()
        .filter_map(|(name, view)| Some((name.clone(), view.current.as_ref()?.record.id.clone())));
    Place { pod: shared.pod.clone(), dir: handle.dir.clone(), runs: runs.collect() }
}

fn on_disk(signal: Signal, uid: String, place: &Place) -> PodUse {
    const RESOURCE: &str = "ephemeral-storage";
    let measured = disk::measure(place);
    let (DiskUse { containers, .. }, total) = (&measured, measured.total());
    let priority = plan::priority(&place.pod);
    if matches!(signal, Signal::NodeFsInodes | Signal::ImageFsInodes) {
        return PodUse { uid, priority, used: total.files, ..PodUse::default() };
    }
    let spec = place.pod.spec.as_ref();
    let requested = spec.map_or(0, |spec| requests_of_pod(spec, RESOURCE));
    let of = |name: &str| containers.iter().find(|(used, _)| used == name).map_or(0, |(_, size)| size.bytes);
    let containers = spec.into_iter().flat_map(|spec| &spec.containers);
    PodUse {
        uid,
        priority,
        used: total.bytes,
        requested: u64::try_from(requested).unwrap_or(0),
        containers: containers.map(|c| container_use(c, RESOURCE, of(&c.name))).collect(),
    }
}
