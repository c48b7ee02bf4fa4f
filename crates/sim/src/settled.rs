//! What must be true some time after the faults have stopped.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_store::Store;
use serde_json::Value;

use crate::node::{is_ready, text};

/// The objects of one kind, by key.
type Objects = BTreeMap<String, Value>;

/// What is not yet as it should be; empty when all is.
pub fn unsettled(store: &Store) -> Vec<String> {
    let read = |prefix: &str| -> Objects {
        let page = store.range(prefix, None, 0, None);
        let entries = page.map(|page| page.entries).unwrap_or_default();
        let parse = |value: &[u8]| serde_json::from_slice(value).unwrap_or(Value::Null);
        entries.iter().map(|entry| (entry.key[prefix.len()..].to_owned(), parse(&entry.value))).collect()
    };
    let world = World {
        namespaces: read("/registry/core/namespaces/"),
        deployments: read("/registry/apps/deployments/"),
        sets: read("/registry/apps/replicasets/"),
        stateful: read("/registry/apps/statefulsets/"),
        jobs: read("/registry/batch/jobs/"),
        pods: read("/registry/core/pods/"),
        services: read("/registry/core/services/"),
        slices: read("/registry/discovery.k8s.io/endpointslices/"),
    };
    let mut faults = Vec::new();
    world.going(&mut faults);
    world.deployments(&mut faults);
    world.sets(&mut faults);
    world.stateful(&mut faults);
    world.pods(&mut faults);
    world.services(&mut faults);
    faults
}

struct World {
    namespaces: Objects,
    deployments: Objects,
    sets: Objects,
    stateful: Objects,
    jobs: Objects,
    pods: Objects,
    services: Objects,
    slices: Objects,
}

impl World {
    fn going(&self, faults: &mut Vec<String>) {
        let all =
            [&self.namespaces, &self.deployments, &self.sets, &self.stateful, &self.jobs, &self.pods, &self.services];
        for (key, object) in all.into_iter().flatten() {
            if object["metadata"]["deletionTimestamp"].is_string() {
                faults.push(format!("{key} is still being deleted, finalizers {}", object["metadata"]["finalizers"]));
            }
        }
        for key in self.deployments.keys().chain(self.sets.keys()).chain(self.pods.keys()).chain(self.services.keys()) {
            let namespace = key.split('/').next().unwrap_or_default();
            if !self.namespaces.contains_key(namespace) {
                faults.push(format!("{key} is in a namespace that does not exist"));
            }
        }
    }

    fn deployments(&self, faults: &mut Vec<String>) {
        for (key, object) in &self.deployments {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let status = &object["status"];
            for field in ["replicas", "updatedReplicas", "availableReplicas"] {
                let found = status[field].as_i64().unwrap_or(0);
                if found != wanted {
                    faults.push(format!("deployment {key}: {field} is {found}, should be {wanted}"));
                }
            }
            let (seen, generation) = (&status["observedGeneration"], &object["metadata"]["generation"]);
            if seen != generation {
                faults.push(format!("deployment {key}: generation {generation}, observed {seen}"));
            }
        }
    }

    fn sets(&self, faults: &mut Vec<String>) {
        let owners: BTreeSet<String> = self.deployments.values().map(uid).collect();
        for (key, object) in &self.sets {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let id = uid(object);
            let pods = self.pods.values().filter(|pod| owner(pod).as_ref() == Some(&id)).count() as i64;
            let told = object["status"]["replicas"].as_i64().unwrap_or(0);
            if pods != wanted || told != wanted {
                faults.push(format!("replica set {key}: {pods} pods, status says {told}, should be {wanted}"));
            }
            if owner(object).is_some_and(|owner| !owners.contains(&owner)) {
                faults.push(format!("replica set {key}: its deployment is gone"));
            }
        }
    }

    fn stateful(&self, faults: &mut Vec<String>) {
        for (key, object) in &self.stateful {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let id = uid(object);
            let pods: BTreeSet<&str> = self
                .pods
                .iter()
                .filter(|(_, pod)| owner(pod).as_ref() == Some(&id))
                .map(|(key, _)| key.as_str())
                .collect();
            let names: Vec<String> = (0..wanted).map(|ordinal| format!("{key}-{ordinal}")).collect();
            if pods != names.iter().map(String::as_str).collect() {
                faults.push(format!("stateful set {key}: pods {pods:?}, should be {names:?}"));
            }
            let status = &object["status"];
            for field in ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"] {
                let found = status[field].as_i64().unwrap_or(0);
                if found != wanted {
                    faults.push(format!("stateful set {key}: {field} is {found}, should be {wanted}"));
                }
            }
            if status["observedGeneration"] != object["metadata"]["generation"] {
                faults.push(format!("stateful set {key}: observed {}", status["observedGeneration"]));
            }
        }
    }

    fn pods(&self, faults: &mut Vec<String>) {
        let all = self.sets.values().chain(self.stateful.values()).chain(self.jobs.values());
        let owners: BTreeSet<String> = all.map(uid).collect();
        for (key, object) in &self.pods {
            if text(&object["spec"]["nodeName"]).is_empty() {
                faults.push(format!("pod {key} is on no node: {}", object["status"]["conditions"]));
            } else if !is_ready(object) && !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                faults.push(format!("pod {key} is not ready"));
            }
            if owner(object).is_some_and(|owner| !owners.contains(&owner)) {
                faults.push(format!("pod {key}: what made it is gone"));
            }
        }
    }

    fn services(&self, faults: &mut Vec<String>) {
        let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, slice) in &self.slices {
            let namespace = key.split('/').next().unwrap_or_default();
            let service = text(&slice["metadata"]["labels"]["kubernetes.io/service-name"]);
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            let ready = endpoints.filter(|e| e["conditions"]["ready"] == true).map(|e| text(&e["addresses"][0]));
            told.entry(format!("{namespace}/{service}")).or_default().extend(ready);
        }
        for (key, service) in &self.services {
            let Some(selector) = service["spec"]["selector"].as_object() else { continue };
            let namespace = key.split('/').next().unwrap_or_default();
            let matches = |pod: &Value| selector.iter().all(|(k, v)| &pod["metadata"]["labels"][k] == v);
            let wanted: BTreeSet<String> = (self.pods.iter())
                .filter(|(pod_key, pod)| pod_key.split('/').next() == Some(namespace) && matches(pod) && is_ready(pod))
                .map(|(_, pod)| text(&pod["status"]["podIP"]))
                .collect();
            let found = told.get(key).cloned().unwrap_or_default();
            if found != wanted {
                faults.push(format!("service {key}: endpoints {found:?}, should be {wanted:?}"));
            }
        }
        for key in told.keys().filter(|key| key.starts_with("ns-") && !self.services.contains_key(*key)) {
            faults.push(format!("endpoint slices of {key}: the service is gone"));
        }
    }
}

fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"])
}

fn owner(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true).map(|owner| text(&owner["uid"]))
}
