//! What a DaemonSet needs, as a pure function of it, its pods and the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::nodes::{self, Wanted, is_updated, target};
use crate::claim::claim;
use crate::events::Type;
use crate::history::{self, Latest, REVISION_LABEL, label};
use crate::labels::Matcher;
use crate::objects::{available_at, is_ready, name, node_name, phase, scaled};

/// At most this many pods are created or deleted in one go.
const BURST: usize = 250;

/// What the plan is made from.
pub struct View<'a> {
    /// The set.
    pub set: &'a DaemonSet,
    /// Its pods, and those nobody manages.
    pub pods: &'a [Arc<Pod>],
    /// Its revisions, and those nobody manages.
    pub revisions: &'a [Arc<ControllerRevision>],
    /// All nodes.
    pub nodes: &'a [Arc<Node>],
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Orphans to take over.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods to let go.
    pub release: Vec<Arc<Pod>>,
    /// Revisions to take over.
    pub adopt_revisions: Vec<Arc<ControllerRevision>>,
    /// The history must be brought up to date before anything else.
    pub revise: Option<Latest>,
    /// Pods to create.
    pub create: Vec<Pod>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that ended although they should not, with what to tell of it.
    pub ended: Vec<(Type, &'static str, String, Arc<Pod>)>,
    /// Revisions to delete.
    pub forget: Vec<Arc<ControllerRevision>>,
}

impl Plan {
    /// Whether anything is made or deleted because of what the set says.
    pub fn acts_for_set(&self) -> bool {
        !(self.adopt.is_empty() && self.create.is_empty() && self.delete.is_empty() && self.ended.is_empty())
            || self.revise.is_some()
    }
}

fn spec(set: &DaemonSet) -> DaemonSetSpec {
    set.spec.clone().unwrap_or_default()
}

/// How often a revision's name was taken.
pub fn collisions(set: &DaemonSet) -> i32 {
    set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
}

struct Draft<'a> {
    view: &'a View<'a>,
    spec: DaemonSetSpec,
    /// The pods on each node, oldest first; with a place for each node that should have one.
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    wanted: BTreeMap<&'a str, Wanted>,
    hash: String,
    plan: Plan,
}

/// Makes the plan.
pub fn plan(view: &View<'_>) -> Plan {
    let selector = Matcher::optional(view.set.spec.as_ref().map(|spec| &spec.selector));
    let pods = claim(view.set, &selector, view.pods);
    let revisions = claim(view.set, &selector, view.revisions);
    let mut plan =
        Plan { adopt: pods.adopt, release: pods.release, adopt_revisions: revisions.adopt, ..Plan::default() };
    if view.set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let known = history::sorted(revisions.mine);
    let latest = match latest(view.set, &known) {
        Latest::Known(latest) => latest,
        other => {
            plan.revise = Some(other);
            return plan;
        }
    };
    let mut draft = Draft::new(view, pods.mine, label(&latest.metadata, REVISION_LABEL).unwrap_or_default());
    draft.plan = plan;
    draft.manage();
    if !(draft.plan.acts_for_set()) {
        draft.roll();
    }
    draft.plan.forget = draft.forgotten(&known, &latest);
    draft.plan.create.truncate(BURST);
    draft.plan.delete.truncate(BURST);
    draft.plan
}

fn latest(set: &DaemonSet, known: &[Arc<ControllerRevision>]) -> Latest {
    history::latest(set, &spec(set).template, known, collisions(set), REVISION_LABEL)
}

/// The pod of the present template and the one of an old template on a node.
type Pair = (Option<Arc<Pod>>, Option<Arc<Pod>>);

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Oldest first, and of equals those on a node.
fn age(pod: &Arc<Pod>) -> (bool, Option<Timestamp>, Option<String>) {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (node_name(pod).is_none(), created, pod.metadata.name.clone())
}

impl<'a> Draft<'a> {
    fn new(view: &'a View<'a>, mine: Vec<Arc<Pod>>, hash: &str) -> Self {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in mine {
            if let Some(node) = target(&pod) {
                by_node.entry(node.to_owned()).or_default().push(pod);
            }
        }
        by_node.values_mut().for_each(|pods| pods.sort_by_key(age));
        let wanted: BTreeMap<&str, Wanted> =
            view.nodes.iter().map(|node| (name(&node.metadata), nodes::wanted(view.set, node))).collect();
        for (node, _) in wanted.iter().filter(|(_, wanted)| wanted.run) {
            by_node.entry((*node).to_owned()).or_default();
        }
        Self { spec: spec(view.set), by_node, wanted, hash: hash.to_owned(), plan: Plan::default(), view }
    }

    fn is_available(&self, pod: &Pod) -> bool {
        available_at(pod, self.spec.min_ready_seconds.unwrap_or(0)).is_some_and(|at| at <= self.view.now)
    }

    /// How many pods may be on their node beside the old one, and how many may be unavailable, during an update.
    fn limits(&self) -> (usize, usize) {
        let total = self.wanted.values().filter(|wanted| wanted.run).count();
        let total = i32::try_from(total).unwrap_or(i32::MAX);
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
        let rolling = rolling.unwrap_or_default();
        let surge = scaled(rolling.max_surge.as_ref(), total, true);
        let unavailable = rolling.max_unavailable.as_ref().map_or(1, |max| scaled(Some(max), total, true));
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        (usize::try_from(surge).unwrap_or(0), usize::try_from(unavailable).unwrap_or(0))
    }

    fn rolls(&self) -> bool {
        let type_ = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        type_.is_none_or(|type_| type_ == "RollingUpdate")
    }

    /// A pod on each node that should have one, none elsewhere, and none that has ended.
    fn manage(&mut self) {
        let surges = self.rolls() && self.limits().0 > 0;
        for (node, pods) in self.by_node.clone() {
            let nowhere = Wanted { run: false, stay: false };
            let wanted = self.wanted.get(node.as_str()).copied().unwrap_or(nowhere);
            if pods.is_empty() {
                if wanted.run {
                    self.plan.create.push(nodes::new(self.view.set, &node, &self.hash));
                }
            } else if wanted.stay {
                self.tidy(&node, &pods, surges);
            } else {
                self.plan.delete.extend(pods.into_iter().filter(|pod| !is_going(pod)));
            }
        }
    }

    fn tidy(&mut self, node: &str, pods: &[Arc<Pod>], surges: bool) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|pod| !is_going(pod)) {
            let about = format!("daemon pod {}/{} on node {node}", self.namespace(), name(&pod.metadata));
            match phase(pod) {
                "Failed" => {
                    let message = format!("Found failed {about}, will try to kill it");
                    self.plan.ended.push((Type::Warning, "FailedDaemonPod", message, pod.clone()));
                }
                "Succeeded" => {
                    let message = format!("Found succeeded {about}, will try to delete it");
                    self.plan.ended.push((Type::Normal, "SucceededDaemonPod", message, pod.clone()));
                }
                _ => running.push(pod.clone()),
            }
        }
        if running.len() < 2 {
            return;
        }
        if !surges {
            self.plan.delete.extend(running.into_iter().skip(1));
            return;
        }
        let (mut new, mut old) = (None, None);
        for pod in running {
            let slot = if is_updated(self.view.set, &pod, &self.hash) { &mut new } else { &mut old };
            match slot {
                None => *slot = Some(pod),
                Some(_) => self.plan.delete.push(pod),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!is_ready(&old) || self.is_available(&new))
        {
            self.plan.delete.push(old);
        }
    }

    fn namespace(&self) -> &str {
        self.view.set.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod of the present template and the one of an old template on a node; nothing if there are several of either.
    fn pair(&self, pods: &[Arc<Pod>]) -> Option<Pair> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|pod| !is_going(pod)) {
            let slot = if is_updated(self.view.set, pod, &self.hash) { &mut new } else { &mut old };
            if slot.replace(pod.clone()).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// Takes an update a step further.
    fn roll(&mut self) {
        if !self.rolls() {
            return;
        }
        match self.limits() {
            (0, unavailable) => self.replace(unavailable),
            (surge, _) => self.surge(surge),
        }
    }

    /// Deletes old pods; the next look creates new ones.
    fn replace(&mut self, most: usize) {
        let (mut unavailable, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for pods in self.by_node.values() {
            match self.pair(pods) {
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(&new)),
                // One that serves nobody can go at once.
                Some((None, Some(old))) if !self.is_available(&old) => {
                    unavailable += 1;
                    broken.push(old);
                }
                Some((None, Some(old))) => candidates.push(old),
                // The node has no pod at the moment, or the next look tidies up.
                _ => unavailable += 1,
            }
        }
        self.plan.delete.extend(broken);
        self.plan.delete.extend(candidates.into_iter().take(most.saturating_sub(unavailable)));
    }

    /// Creates new pods beside old ones, and deletes old ones whose successor is available.
    fn surge(&mut self, most: usize) {
        let (mut surging, mut needed, mut candidates, mut over) = (0, Vec::new(), Vec::new(), Vec::new());
        for (node, pods) in &self.by_node {
            match self.pair(pods) {
                None => surging += 1,
                Some((_, None)) => {}
                Some((None, Some(old))) if !self.is_available(&old) => needed.push(node.clone()),
                Some((None, Some(_))) => candidates.push(node.clone()),
                Some((Some(new), Some(old))) if self.is_available(&new) => over.push(old),
                Some((Some(_), Some(_))) => surging += 1,
            }
        }
        let room = most.saturating_sub(surging);
        let nodes = needed.into_iter().chain(candidates.into_iter().take(room));
        self.plan.create.extend(nodes.map(|node| nodes::new(self.view.set, &node, &self.hash)));
        self.plan.delete.extend(over);
    }

    fn forgotten(
        &self,
        known: &[Arc<ControllerRevision>],
        latest: &ControllerRevision,
    ) -> Vec<Arc<ControllerRevision>> {
        let hashes: BTreeSet<&str> =
            self.by_node.values().flatten().filter_map(|pod| label(&pod.metadata, REVISION_LABEL)).collect();
        let in_use = |revision: &&Arc<ControllerRevision>| {
            revision.metadata.name == latest.metadata.name
                || label(&revision.metadata, REVISION_LABEL).is_some_and(|hash| hashes.contains(hash))
        };
        let used = known.iter().filter(in_use).map(|revision| name(&revision.metadata)).collect();
        history::surplus(known, &used, self.spec.revision_history_limit.unwrap_or(10))
    }

    fn status(&self) -> (DaemonSetStatus, Option<Duration>) {
        let mut status = DaemonSetStatus {
            observed_generation: self.view.set.metadata.generation,
            collision_count: self.view.set.status.as_ref().and_then(|status| status.collision_count),
            conditions: self.view.set.status.as_ref().and_then(|status| status.conditions.clone()),
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available, mut next) = (0, 0, None::<Timestamp>);
        for (node, wanted) in &self.wanted {
            let oldest = self.by_node.get(*node).and_then(|pods| pods.first());
            match (wanted.run, oldest) {
                (true, None) => status.desired_number_scheduled += 1,
                (false, Some(_)) => status.number_misscheduled += 1,
                (false, None) => {}
                (true, Some(pod)) => {
                    status.desired_number_scheduled += 1;
                    status.current_number_scheduled += 1;
                    status.number_ready += i32::from(is_ready(pod));
                    available += i32::from(self.is_available(pod));
                    updated += i32::from(is_updated(self.view.set, pod, &self.hash));
                    let settles = available_at(pod, self.spec.min_ready_seconds.unwrap_or(0));
                    next = next.into_iter().chain(settles.filter(|at| *at > self.view.now)).min();
                }
            }
        }
        let some = |count: i32| (count != 0).then_some(count);
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        let wait = next.map(|at| Duration::try_from(at.duration_since(self.view.now)).unwrap_or_default());
        (status, wait.map(|wait| wait + Duration::from_millis(1)))
    }
}

/// The status as it should be, and when it changes by itself; none while the history is not up to date.
pub fn status(view: &View<'_>) -> Option<(DaemonSetStatus, Option<Duration>)> {
    let selector = Matcher::optional(view.set.spec.as_ref().map(|spec| &spec.selector));
    let known = history::sorted(claim(view.set, &selector, view.revisions).mine);
    let Latest::Known(latest) = latest(view.set, &known) else { return None };
    let mine = claim(view.set, &selector, view.pods).mine;
    Some(Draft::new(view, mine, label(&latest.metadata, REVISION_LABEL).unwrap_or_default()).status())
}
