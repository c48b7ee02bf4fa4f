//! What a StatefulSet needs, as a pure function of it, its pods, revisions and claims.
//!
//! ```text
//!  ordinals   start ............ end    beyond
//!             [living replicas]         [condemned]
//!  1. make and keep the living, lowest first    2. take away the condemned, highest first
//!  3. replace pods of an old revision, highest first, down to the partition
//! ```
//!
//! With the ordered policy each step waits until the one before has come to rest; in parallel, none waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};

use super::claims;
use super::pods::{self, is_available, is_going, is_running_and_ready, ordinal, revision_of};
use crate::claim::claim;
use crate::history::{self, Latest};
use crate::labels::Matcher;
use crate::objects::{is_controlled_by, is_terminal, name, scaled};

/// The label that carries the hash of a revision.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// What the plan is made from.
pub struct View<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// Its pods, and those nobody manages.
    pub pods: &'a [Arc<Pod>],
    /// Its revisions, and those nobody manages.
    pub revisions: &'a [Arc<ControllerRevision>],
    /// The claims of its namespace, by name.
    pub claims: &'a BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// The time.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Create a pod, and before it the claims it lacks.
    Create {
        /// The pod.
        pod: Box<Pod>,
        /// Claims to create first.
        claims: Vec<PersistentVolumeClaim>,
    },
    /// Create the claims that a waiting pod lacks.
    Claims {
        /// The pod.
        pod: Arc<Pod>,
        /// Its claims.
        claims: Vec<PersistentVolumeClaim>,
    },
    /// Delete a pod.
    Delete(Arc<Pod>),
    /// Give a pod back its identity.
    Repair(Arc<Pod>, Box<Pod>),
    /// Say whose end is a claim's end.
    Own(Arc<PersistentVolumeClaim>, Box<PersistentVolumeClaim>),
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
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Revisions to delete.
    pub forget: Vec<Arc<ControllerRevision>>,
}

impl Plan {
    /// Whether anything is made or deleted because of what the set says.
    pub fn acts_for_set(&self) -> bool {
        !self.steps.is_empty() || !self.adopt.is_empty() || self.revise.is_some()
    }
}

/// The revision that pods have, and the one they should get.
#[derive(Clone, Debug)]
pub struct Revisions {
    /// What the set had before the update that is under way.
    pub current: Arc<ControllerRevision>,
    /// What its template says.
    pub update: Arc<ControllerRevision>,
}

/// The spec of a set; an empty one if it has none.
pub fn spec(set: &StatefulSet) -> std::borrow::Cow<'_, StatefulSetSpec> {
    set.spec.as_ref().map_or_else(Default::default, std::borrow::Cow::Borrowed)
}

fn selector(set: &StatefulSet) -> Matcher {
    Matcher::optional(set.spec.as_ref().map(|spec| &spec.selector))
}

/// The pods that belong to the set; what to adopt and release goes into the plan.
pub fn members(set: &StatefulSet, pods: &[Arc<Pod>], plan: &mut Plan) -> Vec<Arc<Pod>> {
    let (named, others): (Vec<_>, Vec<_>) = pods.iter().cloned().partition(|pod| ordinal(set, pod).is_some());
    let claims = claim(set, &selector(set), &named);
    plan.adopt = claims.adopt;
    plan.release = claims.release;
    if set.metadata.deletion_timestamp.is_none() {
        let uid = set.metadata.uid.as_deref();
        plan.release.extend(others.into_iter().filter(|pod| is_controlled_by(&pod.metadata, uid)));
    }
    claims.mine
}

/// The revisions of the set in order, and those to adopt.
fn history(view: &View<'_>) -> (Vec<Arc<ControllerRevision>>, Vec<Arc<ControllerRevision>>) {
    let claims = claim(view.set, &selector(view.set), view.revisions);
    (history::sorted(claims.mine), claims.adopt)
}

fn template(set: &StatefulSet) -> PodTemplateSpec {
    set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default()
}

/// How often a revision's name was taken.
pub fn collisions(set: &StatefulSet) -> i32 {
    set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
}

/// The revisions that count now, if the history is up to date.
pub fn revisions(view: &View<'_>) -> Result<Revisions, Latest> {
    let (known, _) = history(view);
    let latest = history::latest(view.set, &template(view.set), &known, collisions(view.set), HASH_LABEL);
    let Latest::Known(update) = latest else { return Err(latest) };
    let held = view.set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = known.iter().find(|revision| revision.metadata.name.as_deref() == held);
    Ok(Revisions { current: current.unwrap_or(&update).clone(), update })
}

/// Makes the plan.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mine = members(view.set, view.pods, &mut plan);
    let (known, adopt) = history(view);
    plan.adopt_revisions = adopt;
    if view.set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let revisions = match revisions(view) {
        Ok(revisions) => revisions,
        Err(latest) => {
            plan.revise = Some(latest);
            return plan;
        }
    };
    plan.forget = forgotten(view.set, &mine, &known, &revisions);
    let mut draft = Draft::new(view, &mine, revisions);
    draft.work();
    plan.steps = draft.steps;
    plan
}

fn forgotten(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    known: &[Arc<ControllerRevision>],
    revisions: &Revisions,
) -> Vec<Arc<ControllerRevision>> {
    let mut used: BTreeSet<&str> = pods.iter().filter_map(|pod| revision_of(pod)).collect();
    used.insert(name(&revisions.current.metadata));
    used.insert(name(&revisions.update.metadata));
    history::surplus(known, &used, spec(set).revision_history_limit.unwrap_or(10))
}

/// A replica that should be: there, or still to be made.
enum Replica {
    There(Arc<Pod>),
    Made(i32),
}

/// Whether to go on within this look.
#[derive(PartialEq)]
enum Flow {
    On,
    Wait,
}

struct Draft<'a> {
    view: &'a View<'a>,
    spec: &'a StatefulSetSpec,
    revisions: Revisions,
    ordered: bool,
    living: Vec<Replica>,
    /// Highest ordinal first.
    condemned: Vec<Arc<Pod>>,
    steps: Vec<Step>,
}

impl<'a> Draft<'a> {
    fn new(view: &'a View<'a>, mine: &[Arc<Pod>], revisions: Revisions) -> Self {
        static NONE: std::sync::LazyLock<StatefulSetSpec> = std::sync::LazyLock::new(StatefulSetSpec::default);
        let spec = view.set.spec.as_ref().unwrap_or(&NONE);
        let range = pods::range(view.set);
        let by_ordinal: BTreeMap<i32, &Arc<Pod>> =
            mine.iter().filter_map(|pod| Some((ordinal(view.set, pod)?, pod))).collect();
        let replica = |number: i32| match by_ordinal.get(&number) {
            Some(pod) => Replica::There(Arc::clone(pod)),
            None => Replica::Made(number),
        };
        let beyond = by_ordinal.iter().rev().filter(|(number, _)| !range.contains(number));
        Self {
            spec,
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            condemned: beyond.map(|(_, pod)| Arc::clone(pod)).collect(),
            living: range.map(replica).collect(),
            steps: Vec::new(),
            view,
            revisions,
        }
    }

    fn work(&mut self) {
        for index in 0..self.living.len() {
            if self.keep(index) == Flow::Wait && self.ordered {
                return;
            }
        }
        for pod in self.condemned.clone() {
            self.own_claims(&pod, true);
        }
        for index in 0..self.condemned.len() {
            if self.condemn(index) == Flow::Wait && self.ordered {
                return;
            }
        }
        self.update();
    }

    /// Makes a replica, or sees that it is well.
    fn keep(&mut self, index: usize) -> Flow {
        let pod = match &self.living[index] {
            Replica::Made(number) => return self.make(*number),
            Replica::There(pod) => pod.clone(),
        };
        if is_terminal(&pod) {
            if !is_going(&pod) {
                self.steps.push(Step::Delete(pod));
            }
            return Flow::Wait;
        }
        if crate::objects::phase(&pod) == "Pending" && !is_going(&pod) {
            let claims = claims::missing(self.view.set, &pod, self.view.claims);
            if !claims.is_empty() {
                self.steps.push(Step::Claims { pod: pod.clone(), claims });
            }
        }
        if self.ordered && !(is_running_and_ready(&pod) && self.available(&pod) && !is_going(&pod)) {
            return Flow::Wait;
        }
        if let Some(repaired) = pods::repaired(self.view.set, &pod) {
            self.steps.push(Step::Repair(pod.clone(), Box::new(repaired)));
        }
        self.own_claims(&pod, false);
        Flow::On
    }

    fn make(&mut self, number: i32) -> Flow {
        let set = self.view.set;
        let revision = if self.wants_current(number) { &self.revisions.current } else { &self.revisions.update };
        let template = history::template(revision).unwrap_or_else(|| template(set));
        let pod = pods::new(set, &template, number, name(&revision.metadata));
        // A claim that belongs to the pod's predecessor is about to be deleted: the new pod would lose it.
        if !claims::stale(set, &pod, self.view.claims) {
            let claims = claims::missing(set, &pod, self.view.claims);
            self.steps.push(Step::Create { pod: Box::new(pod), claims });
        }
        Flow::Wait
    }

    /// Below the partition pods come back as they were.
    fn wants_current(&self, number: i32) -> bool {
        let Some(strategy) = &self.spec.update_strategy else { return false };
        if strategy.type_.as_deref().is_some_and(|type_| type_ != "RollingUpdate") {
            return false;
        }
        let below = match &strategy.rolling_update {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None => self.view.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0),
        };
        number < pods::start(self.view.set) + below
    }

    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.view.now)
    }

    fn own_claims(&mut self, pod: &Arc<Pod>, condemned: bool) {
        let changed = claims::owned(self.view.set, pod, condemned, self.view.claims);
        self.steps.extend(changed.into_iter().map(|(old, new)| Step::Own(old, Box::new(new))));
    }

    /// Takes away a pod beyond the range: in order, only once all before it are well or it is the sick one itself.
    fn condemn(&mut self, index: usize) -> Flow {
        let pod = self.condemned[index].clone();
        if is_going(&pod) {
            return Flow::Wait;
        }
        let well = is_running_and_ready(&pod) && self.available(&pod);
        if self.ordered && !well && !self.is_first_unhealthy(&pod) {
            return Flow::Wait;
        }
        self.steps.push(Step::Delete(pod));
        Flow::Wait
    }

    fn is_first_unhealthy(&self, pod: &Arc<Pod>) -> bool {
        let well = |pod: &Arc<Pod>| is_running_and_ready(pod) && !is_going(pod);
        let living_well = self.living.iter().all(|r| matches!(r, Replica::There(pod) if well(pod)));
        let first = self.condemned.iter().rev().find(|pod| !well(pod));
        living_well && first.is_some_and(|first| Arc::ptr_eq(first, pod))
    }

    /// Replaces pods of an old revision, as many at once as may be unavailable. One that is unavailable already costs nothing.
    fn update(&mut self) {
        let strategy = self.spec.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let total = i32::try_from(self.living.len()).unwrap_or(i32::MAX);
        let most = rolling.max_unavailable.as_ref().map_or(1, |max| scaled(Some(max), total, true)).max(1);
        let pods = self.living.iter().map(|replica| match replica {
            Replica::There(pod) => Some(pod.clone()),
            Replica::Made(_) => None,
        });
        let pods: Vec<Option<Arc<Pod>>> = pods.collect();
        let usable = |pod: &Arc<Pod>| is_running_and_ready(pod) && self.available(pod) && !is_going(pod);
        let mut unavailable = pods.iter().filter(|pod| !pod.as_ref().is_some_and(usable)).count();
        let least = usize::try_from(rolling.partition.unwrap_or(0)).unwrap_or(0);
        let old = |pod: &&Arc<Pod>| revision_of(pod) != self.revisions.update.metadata.name.as_deref();
        let mut steps = Vec::new();
        for pod in pods.iter().skip(least).rev().flatten().filter(old).filter(|pod| !is_going(pod)) {
            if usable(pod) {
                if unavailable >= usize::try_from(most).unwrap_or(1) {
                    break;
                }
                unavailable += 1;
            }
            steps.push(Step::Delete(pod.clone()));
        }
        self.steps.extend(steps);
    }
}
