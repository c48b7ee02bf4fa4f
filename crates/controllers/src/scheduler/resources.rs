//! Amounts of resources: what nodes offer, what pods ask for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container without a request counts as when nodes are compared, so that idle-looking pods spread too.
const ASSUMED_CPU_MILLI: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 << 20;

/// An amount of every resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of ephemeral storage.
    pub storage: i64,
    /// Everything else, by name.
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list. `pods` is not an amount that pods ask for, and is left out.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut all = Self::default();
        for (name, amount) in list.iter().filter(|(name, _)| *name != "pods") {
            *all.entry(name) = amount_of(name, amount);
        }
        all
    }

    fn entry(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu_milli,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.storage,
            other => self.extended.entry(other.to_owned()).or_default(),
        }
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = with(self.cpu_milli, other.cpu_milli);
        self.memory = with(self.memory, other.memory);
        self.storage = with(self.storage, other.storage);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes another amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

/// A quantity in the unit its resource is counted in: thousandths of cores, or whole units.
pub fn amount_of(name: &str, amount: &Quantity) -> i64 {
    let Ok(parsed) = amount.0.parse::<mycelium_api::quantity::Quantity>() else { return 0 };
    let value = if name == "cpu" { parsed.milli_value() } else { parsed.value() };
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    resources.and_then(|r| r.requests.as_ref()).map(Resources::from_list).unwrap_or_default()
}

/// As requested, or, where cpu or memory is not, an assumption.
fn assumed(resources: Option<&ResourceRequirements>) -> Resources {
    let list = resources.and_then(|r| r.requests.as_ref());
    let has = |name: &str| list.is_some_and(|list| list.contains_key(name));
    let mut all = requests(resources);
    if !has("cpu") {
        all.cpu_milli = ASSUMED_CPU_MILLI;
    }
    if !has("memory") {
        all.memory = ASSUMED_MEMORY;
    }
    all
}

/// What a pod takes of its node, and the same with assumptions for what is not requested. While it is being resized,
/// the more of what it has and what it is to have.
pub fn of_live_pod(pod: &Pod, spec: &PodSpec) -> (Resources, Resources) {
    let held = while_resized(pod, spec);
    let spec = held.as_ref().unwrap_or(spec);
    (total(spec, requests), total(spec, assumed))
}

/// The spec with what the containers hold, if that is not what it says.
fn while_resized(pod: &Pod, spec: &PodSpec) -> Option<PodSpec> {
    let status = pod.status.as_ref()?;
    let infeasible =
        status.conditions.iter().flatten().any(|condition| {
            condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
        });
    let mut held: Option<PodSpec> = None;
    let lists = [(false, &status.container_statuses), (true, &status.init_container_statuses)];
    for (init, shown) in lists.into_iter().flat_map(|(init, list)| list.iter().flatten().map(move |s| (init, s))) {
        let list = if init { spec.init_containers.as_deref().unwrap_or_default() } else { &spec.containers };
        let Some(index) = list.iter().position(|c| c.name == shown.name) else { continue };
        let wanted = list[index].resources.as_ref().and_then(|r| r.requests.as_ref());
        let has = shown.resources.as_ref().and_then(|r| r.requests.as_ref());
        let allocated = shown.allocated_resources.as_ref();
        if shown.resources.is_none() || has == wanted && allocated.is_none_or(|allocated| Some(allocated) == wanted) {
            continue;
        }
        let mut most = has.cloned().unwrap_or_default();
        raise(&mut most, allocated);
        raise(&mut most, wanted.filter(|_| !infeasible));
        let spec = held.get_or_insert_with(|| spec.clone());
        let list = if init { spec.init_containers.as_mut() } else { Some(&mut spec.containers) };
        if let Some(container) = list.and_then(|list| list.get_mut(index)) {
            container.resources.get_or_insert_default().requests = Some(most);
        }
    }
    held
}

fn raise(amounts: &mut BTreeMap<String, Quantity>, floor: Option<&BTreeMap<String, Quantity>>) {
    for (name, amount) in floor.into_iter().flatten() {
        if amounts.get(name).is_none_or(|held| amount_of(name, held) < amount_of(name, amount)) {
            amounts.insert(name.clone(), amount.clone());
        }
    }
}

/// What a pod needs at most at any time: its containers together, or an init container beside the sidecars
/// started before it, whichever is more; plus overhead.
fn total(spec: &PodSpec, of: impl Fn(Option<&ResourceRequirements>) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut most = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container.resources.as_ref());
        if is_sidecar(container) {
            running.add(&needed);
            sidecars.add(&needed);
            needed = sidecars.clone();
        } else {
            needed.add(&sidecars);
        }
        most.raise_to(&needed);
    }
    running.raise_to(&most);
    for (name, amount) in spec.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
        *running.entry(name) = amount_of(name, amount);
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_list(overhead));
    }
    running
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}
