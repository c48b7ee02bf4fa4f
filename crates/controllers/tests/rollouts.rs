//! Deployments and ReplicaSets against a toy cluster that carries out their plans in any order and with any delay.
//!
//! Whatever the order: never more pods than the surge allows, never fewer available than promised (as long as pods do
//! not fail on their own), and in the end exactly the pods asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use mycelium_controllers::objects::{controller_of, is_active, is_ready, name};
use mycelium_controllers::{children, deployment, replicaset};
use proptest::prelude::*;
use serde_json::json;

struct World {
    deployment: Arc<Deployment>,
    sets: BTreeMap<String, Arc<ReplicaSet>>,
    pods: BTreeMap<String, Arc<Pod>>,
    serial: u64,
    broken_image: bool,
}

#[derive(Clone, Debug)]
enum Step {
    SyncDeployment,
    SyncSet(usize),
    Ready(usize),
    Finish(usize),
}

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).expect("a time")
}

impl World {
    fn new(replicas: i32, surge: &str, unavailable: &str) -> Self {
        let number = |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |number| json!(number));
        let deployment = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "deployment", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "main", "image": "v1"}]}},
                "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 2,
            },
        }));
        Self {
            deployment: Arc::new(deployment.expect("a deployment")),
            sets: BTreeMap::new(),
            pods: BTreeMap::new(),
            serial: 0,
            broken_image: false,
        }
    }

    fn edit(&mut self, change: impl FnOnce(&mut Deployment)) {
        let deployment = Arc::make_mut(&mut self.deployment);
        change(deployment);
        deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
    }

    fn set_image(&mut self, image: &str) {
        let image = image.to_owned();
        self.edit(|d| {
            d.spec.as_mut().expect("a spec").template.spec.as_mut().expect("a pod").containers[0].image = Some(image)
        });
    }

    fn sync_deployment(&mut self) {
        let sets: Vec<_> = self.sets.values().cloned().collect();
        let pods: Vec<_> = self.pods.values().cloned().collect();
        let plan = deployment::plan::plan(&self.deployment, &sets, &pods, now());
        if let Some(mut set) = plan.create {
            self.serial += 1;
            set.metadata.uid = Some(format!("set-{}", self.serial));
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp =
                serde_json::from_value(json!(now() + jiff::SignedDuration::from_secs(self.serial as i64))).ok();
            self.sets.insert(name(&set.metadata).to_owned(), Arc::new(set));
        }
        for (old, mut new) in plan.update {
            if old.spec != new.spec {
                new.metadata.generation = new.metadata.generation.map(|generation| generation + 1);
            }
            self.sets.insert(name(&new.metadata).to_owned(), Arc::new(new));
        }
        for set in plan.delete {
            self.sets.remove(name(&set.metadata));
        }
        if let Some(deployment) = plan.deployment {
            self.deployment = Arc::new(deployment);
        }
    }

    fn sync_set(&mut self, index: usize) {
        let Some(set) = pick(&self.sets, index) else { return };
        let pods: Vec<_> = self.pods.values().cloned().collect();
        let plan = replicaset::plan::plan(&set, &pods, &pods, now());
        for _ in 0..plan.create {
            self.serial += 1;
            let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
            let mut pod = children::pod(&template, set.as_ref());
            pod.metadata.name = Some(format!("pod-{}", self.serial));
            pod.metadata.uid = pod.metadata.name.clone();
            self.pods.insert(name(&pod.metadata).to_owned(), Arc::new(pod));
        }
        for pod in plan.delete {
            let held = self.pods.get_mut(name(&pod.metadata)).expect("a known pod");
            Arc::make_mut(held).metadata.deletion_timestamp = serde_json::from_value(json!(now())).ok();
        }
        let pods: Vec<_> = self.pods.values().cloned().collect();
        let (status, _) = replicaset::plan::status(&set, &pods, None, now());
        let held = self.sets.get_mut(name(&set.metadata)).expect("a known set");
        Arc::make_mut(held).status = Some(status);
    }

    fn make_ready(&mut self, index: usize) {
        let Some(pod) = pick(&self.pods, index) else { return };
        let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        if !is_active(&pod) || self.broken_image && image.as_deref() == Some("v2") {
            return;
        }
        let pod = Arc::make_mut(self.pods.get_mut(name(&pod.metadata)).expect("a known pod"));
        pod.status = serde_json::from_value(json!({"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}))
        .ok();
    }

    fn finish(&mut self, index: usize) {
        if let Some(pod) = pick(&self.pods, index).filter(|pod| !is_active(pod)) {
            self.pods.remove(name(&pod.metadata));
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::SyncDeployment => self.sync_deployment(),
            Step::SyncSet(index) => self.sync_set(*index),
            Step::Ready(index) => self.make_ready(*index),
            Step::Finish(index) => self.finish(*index),
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let before = (self.deployment.clone(), self.sets.clone(), self.pods.clone());
            self.sync_deployment();
            (0..self.sets.len()).for_each(|index| self.sync_set(index));
            (0..self.pods.len()).for_each(|index| self.make_ready(index));
            (0..self.pods.len()).rev().for_each(|index| self.finish(index));
            if before == (self.deployment.clone(), self.sets.clone(), self.pods.clone()) {
                return;
            }
        }
    }

    fn active(&self) -> i32 {
        i32::try_from(self.pods.values().filter(|pod| is_active(pod)).count()).expect("few pods")
    }

    fn available(&self) -> i32 {
        i32::try_from(self.pods.values().filter(|pod| is_active(pod) && is_ready(pod)).count()).expect("few pods")
    }

    fn images(&self) -> Vec<&str> {
        let mut images: Vec<_> =
            self.pods.values().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.as_deref()).collect();
        images.dedup();
        images
    }

    fn reason(&self, type_: &str) -> Option<&str> {
        let conditions = self.deployment.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == type_)?.reason.as_deref()
    }
}

fn pick<K>(from: &BTreeMap<String, Arc<K>>, index: usize) -> Option<Arc<K>> {
    if from.is_empty() { None } else { from.values().nth(index % from.len()).cloned() }
}

fn limits() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just(("25%", "25%")),
        Just(("1", "0")),
        Just(("0", "1")),
        Just(("100%", "0")),
        Just(("2", "50%")),
        Just(("0", "10%")),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::SyncDeployment),
        3 => (0..4_usize).prop_map(Step::SyncSet),
        3 => (0..40_usize).prop_map(Step::Ready),
        1 => (0..40_usize).prop_map(Step::Finish),
    ]
}

fn bounds(replicas: i32, surge: &str, unavailable: &str) -> (i32, i32) {
    let share = |text: &str, up: bool| match text.strip_suffix('%') {
        None => text.parse().expect("a number"),
        Some(percent) => {
            let product = percent.parse::<i32>().expect("a percentage") * replicas;
            if up { (product + 99) / 100 } else { product / 100 }
        }
    };
    let (surge, mut unavailable) = (share(surge, true), share(unavailable, false));
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    (replicas + surge, replicas - unavailable.min(replicas))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rollout_keeps_its_limits(
        replicas in 0..12_i32,
        (surge, unavailable) in limits(),
        broken in any::<bool>(),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(replicas, surge, unavailable);
        world.settle();
        prop_assert_eq!(world.available(), replicas);
        prop_assert_eq!(world.reason("Progressing"), Some("NewReplicaSetAvailable"));
        world.broken_image = broken;
        world.set_image("v2");
        let (most, least) = bounds(replicas, surge, unavailable);
        for (index, step) in steps.iter().enumerate() {
            world.take(step);
            prop_assert!(world.active() <= most, "{} pods after step {index}", world.active());
            prop_assert!(world.available() >= least, "{} available after step {index}", world.available());
        }
        world.settle();
        prop_assert!(world.available() >= least);
        if broken {
            // The only way out is back.
            world.set_image("v1");
            world.settle();
        }
        prop_assert_eq!(world.available(), replicas);
        prop_assert_eq!(world.active(), replicas);
        prop_assert_eq!(world.pods.len(), usize::try_from(replicas).expect("few"));
        if replicas > 0 {
            prop_assert_eq!(world.images(), [if broken { "v1" } else { "v2" }]);
        }
        prop_assert_eq!(world.reason("Available"), Some("MinimumReplicasAvailable"));
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_converges(
        first in 1..10_i32,
        second in 0..15_i32,
        (surge, unavailable) in limits(),
        before in prop::collection::vec(step(), 0..60),
        after in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new(first, surge, unavailable);
        world.settle();
        world.set_image("v2");
        before.iter().for_each(|step| world.take(step));
        world.edit(|d| d.spec.as_mut().expect("a spec").replicas = Some(second));
        let most = bounds(first, surge, unavailable).0.max(bounds(second, surge, unavailable).0);
        for step in &after {
            world.take(step);
            prop_assert!(world.active() <= most);
        }
        world.settle();
        prop_assert_eq!(world.available(), second);
        prop_assert_eq!(world.active(), second);
        let status = world.deployment.status.clone().unwrap_or_default();
        prop_assert_eq!(status.updated_replicas.unwrap_or(0), second);
    }
}

#[test]
fn old_revisions_beyond_the_limit_are_deleted_and_undo_reuses_a_set() {
    let mut world = World::new(2, "1", "0");
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        world.set_image(image);
        world.settle();
    }
    assert_eq!(world.sets.len(), 3, "the current set and two old ones");
    let revision = |world: &World| {
        world
            .deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get("deployment.kubernetes.io/revision").cloned())
    };
    assert_eq!(revision(&world).as_deref(), Some("5"));
    world.set_image("v4");
    world.settle();
    assert_eq!(revision(&world).as_deref(), Some("6"));
    assert_eq!(world.sets.len(), 3);
    let reused = world.sets.values().find(|set| set.spec.as_ref().is_some_and(|spec| spec.replicas == Some(2)));
    let annotations = reused.and_then(|set| set.metadata.annotations.clone()).unwrap_or_default();
    assert_eq!(annotations.get("deployment.kubernetes.io/revision-history").map(String::as_str), Some("4"));
    assert!(world.pods.values().all(|pod| controller_of(&pod.metadata).is_some()));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(3, "1", "0");
    world.settle();
    world.edit(|d| d.spec.as_mut().expect("a spec").paused = Some(true));
    world.set_image("v2");
    world.edit(|d| d.spec.as_mut().expect("a spec").replicas = Some(5));
    world.settle();
    assert_eq!((world.available(), world.images()), (5, vec!["v1"]));
    world.edit(|d| d.spec.as_mut().expect("a spec").paused = Some(false));
    world.settle();
    assert_eq!((world.available(), world.images()), (5, vec!["v2"]));
}

#[test]
fn recreate_waits_until_the_last_old_pod_is_gone() {
    let mut world = World::new(3, "1", "0");
    world.edit(|d| {
        let strategy = json!({"type": "Recreate"});
        d.spec.as_mut().expect("a spec").strategy = serde_json::from_value(strategy).ok();
    });
    world.settle();
    world.set_image("v2");
    for _ in 0..20 {
        world.sync_deployment();
        (0..world.sets.len()).for_each(|index| world.sync_set(index));
    }
    assert_eq!((world.active(), world.images()), (0, vec!["v1"]), "old pods still terminate");
    world.settle();
    assert_eq!((world.available(), world.images()), (3, vec!["v2"]));
}
