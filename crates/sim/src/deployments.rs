//! The rules for deployments, replica sets and their pods.
//!
//! Controllers act on copies that are a little old, so a limit is what the object allowed at any time within the last
//! `staleness`.
//!
//! * A replica set never has a pod created beyond its replicas.
//! * A replica set is never scaled up so that all sets of its deployment together exceed replicas plus surge.
//! * Without faults, no available pod is taken away so that fewer remain than replicas minus unavailable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::node::{is_ready, text};

/// A value over time: what it was at any moment of the recent past.
#[derive(Debug)]
struct Recent<T>(Vec<(Duration, T)>);

impl<T: Copy + PartialEq> Recent<T> {
    fn new(now: Duration, value: T) -> Self {
        Self(vec![(now, value)])
    }

    fn set(&mut self, now: Duration, value: T) {
        if self.current() != value {
            self.0.push((now, value));
        }
    }

    fn current(&self) -> T {
        self.0[self.0.len() - 1].1
    }

    /// The values it had at or after `since`.
    fn since(&self, since: Duration) -> impl Iterator<Item = T> {
        let first = self.0.partition_point(|(at, _)| *at < since).saturating_sub(1);
        self.0[first..].iter().map(|(_, value)| *value)
    }
}

/// How many pods a deployment may and must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    most: i64,
    least: i64,
}

struct Deployment {
    namespace: String,
    name: String,
    limits: Recent<Limits>,
    going: bool,
}

struct Set {
    name: String,
    owner: Option<String>,
    replicas: Recent<i64>,
}

struct Pod {
    name: String,
    owner: Option<String>,
    active: bool,
    available: bool,
}

/// Judges the objects of the workload.
pub struct Rules {
    calm: bool,
    staleness: Duration,
    /// The uid of each key.
    uids: BTreeMap<String, String>,
    deployments: BTreeMap<String, Deployment>,
    sets: BTreeMap<String, Set>,
    pods: BTreeMap<String, Pod>,
    going_namespaces: BTreeSet<String>,
}

impl Rules {
    /// Rules that know no object yet.
    pub fn new(calm: bool, staleness: Duration) -> Self {
        Self {
            calm,
            staleness,
            uids: BTreeMap::new(),
            deployments: BTreeMap::new(),
            sets: BTreeMap::new(),
            pods: BTreeMap::new(),
            going_namespaces: BTreeSet::new(),
        }
    }

    /// Takes in an object without judging.
    pub fn load(&mut self, now: Duration, key: &str, value: &[u8]) -> Result<(), String> {
        self.take(now, key, Some(value), false)
    }

    /// Takes in a change, and judges it.
    pub fn event(&mut self, now: Duration, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        self.take(now, key, value, true)
    }

    fn take(&mut self, now: Duration, key: &str, value: Option<&[u8]>, judge: bool) -> Result<(), String> {
        let parts: Vec<&str> = key.split('/').collect();
        let ["", "registry", group, resource, namespace, rest @ ..] = &parts[..] else { return Ok(()) };
        if !matches!((*group, *resource), ("apps", "deployments" | "replicasets") | ("core", "pods" | "namespaces")) {
            return Ok(());
        }
        let Some(value) = value else { return self.gone(now, key, namespace, rest.is_empty(), judge) };
        let object: Value = serde_json::from_slice(value).map_err(|error| format!("{key} holds no JSON: {error}"))?;
        if (*group, *resource) == ("core", "namespaces") {
            if object["metadata"]["deletionTimestamp"].is_string() {
                self.going_namespaces.insert((*namespace).to_owned());
            } else {
                self.going_namespaces.remove(*namespace);
            }
            return Ok(());
        }
        let uid = text(&object["metadata"]["uid"]);
        if let Some(old) = self.uids.insert(key.to_owned(), uid.clone())
            && old != uid
        {
            return Err(format!("{key} changed its uid from {old} to {uid}"));
        }
        match *resource {
            "deployments" => {
                self.deployment(now, &uid, &object);
                Ok(())
            }
            "replicasets" => self.set(now, &uid, &object, judge),
            _ => self.pod(now, &uid, &object, judge),
        }
    }

    fn gone(
        &mut self,
        now: Duration,
        key: &str,
        namespace: &str,
        is_namespace: bool,
        judge: bool,
    ) -> Result<(), String> {
        if is_namespace {
            self.going_namespaces.remove(namespace);
        }
        let Some(uid) = self.uids.remove(key) else { return Ok(()) };
        self.deployments.remove(&uid);
        self.sets.remove(&uid);
        match self.pods.remove(&uid) {
            Some(pod) if judge && pod.available => self.judge_loss(now, &pod),
            _ => Ok(()),
        }
    }

    fn deployment(&mut self, now: Duration, uid: &str, object: &Value) {
        let limits = limits(&object["spec"]);
        let entry = self.deployments.entry(uid.to_owned()).or_insert_with(|| Deployment {
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            limits: Recent::new(now, limits),
            going: false,
        });
        entry.limits.set(now, limits);
        entry.going = object["metadata"]["deletionTimestamp"].is_string();
    }

    fn set(&mut self, now: Duration, uid: &str, object: &Value, judge: bool) -> Result<(), String> {
        let replicas = object["spec"]["replicas"].as_i64().unwrap_or(1);
        let owner = controller(object);
        let before = self.sets.get(uid).map_or(0, |set| set.replicas.current());
        let set = self.sets.entry(uid.to_owned()).or_insert_with(|| Set {
            name: text(&object["metadata"]["name"]),
            owner: None,
            replicas: Recent::new(now, replicas),
        });
        set.replicas.set(now, replicas);
        set.owner = owner.clone();
        let Some(deployment) = owner.and_then(|owner| self.deployments.get(&owner)) else { return Ok(()) };
        if !judge || replicas <= before {
            return Ok(());
        }
        let owner = controller(object);
        let total: i64 = self.sets.values().filter(|set| set.owner == owner).map(|set| set.replicas.current()).sum();
        let since = now.saturating_sub(self.staleness);
        let most = deployment.limits.since(since).map(|limits| limits.most).max().unwrap_or(0);
        if total > most {
            let (name, namespace) = (&deployment.name, &deployment.namespace);
            return Err(format!(
                "deployment {namespace}/{name} may have {most} pods, its replica sets ask for {total}"
            ));
        }
        Ok(())
    }

    fn pod(&mut self, now: Duration, uid: &str, object: &Value, judge: bool) -> Result<(), String> {
        let going = object["metadata"]["deletionTimestamp"].is_string();
        let active = !going && !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let pod = Pod {
            name: text(&object["metadata"]["name"]),
            owner: controller(object),
            active,
            available: active && is_ready(object),
        };
        let lost = self.pods.get(uid).is_some_and(|before| before.available) && !active;
        let new = !self.pods.contains_key(uid);
        let owner = pod.owner.clone();
        self.pods.insert(uid.to_owned(), pod);
        if !judge {
            return Ok(());
        }
        if lost {
            return self.pods.get(uid).map_or(Ok(()), |pod| self.judge_loss(now, pod));
        }
        match owner.and_then(|owner| self.sets.get(&owner).map(|set| (owner, set))) {
            Some((owner, set)) if new => {
                let count = self.pods.values().filter(|p| p.active && p.owner.as_ref() == Some(&owner)).count() as i64;
                let most = set.replicas.since(now.saturating_sub(self.staleness)).max().unwrap_or(0);
                if count > most {
                    return Err(format!("replica set {} may have {most} pods, but got its {count}th", set.name));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An available pod is being taken away.
    fn judge_loss(&self, now: Duration, lost: &Pod) -> Result<(), String> {
        let set = lost.owner.as_ref().and_then(|uid| self.sets.get(uid));
        let owner = set.and_then(|set| set.owner.clone());
        let Some(deployment) = owner.as_ref().and_then(|uid| self.deployments.get(uid)) else { return Ok(()) };
        if !self.calm || deployment.going || self.going_namespaces.contains(&deployment.namespace) {
            return Ok(());
        }
        let of_deployment = |pod: &&Pod| {
            let set = pod.owner.as_ref().and_then(|uid| self.sets.get(uid));
            set.is_some_and(|set| set.owner == owner)
        };
        let available = self.pods.values().filter(of_deployment).filter(|pod| pod.available).count() as i64;
        let since = now.saturating_sub(self.staleness);
        let least = deployment.limits.since(since).map(|limits| limits.least).min().unwrap_or(0);
        if available < least {
            let (name, namespace) = (&deployment.name, &deployment.namespace);
            return Err(format!(
                "deployment {namespace}/{name} must keep {least} pods available; losing {} leaves {available}",
                lost.name
            ));
        }
        Ok(())
    }
}

fn limits(spec: &Value) -> Limits {
    let replicas = spec["replicas"].as_i64().unwrap_or(1);
    let strategy = &spec["strategy"];
    if strategy["type"] == "Recreate" {
        return Limits { most: replicas, least: 0 };
    }
    let rolling = &strategy["rollingUpdate"];
    let surge = resolve(&rolling["maxSurge"], replicas, true);
    let mut unavailable = resolve(&rolling["maxUnavailable"], replicas, false);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Limits { most: replicas + surge, least: (replicas - unavailable).max(0) }
}

fn resolve(value: &Value, of: i64, up: bool) -> i64 {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%')).and_then(|text| text.parse::<i64>().ok());
    match percent {
        Some(percent) if up => (of * percent + 99) / 100,
        Some(percent) => of * percent / 100,
        None => value.as_i64().unwrap_or(0),
    }
}

/// The uid of the controlling owner.
fn controller(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true).map(|owner| text(&owner["uid"]))
}

/// A few words about an object, for people.
pub fn describe(key: &str, value: &[u8]) -> String {
    let Ok(object) = serde_json::from_slice::<Value>(value) else { return String::new() };
    let (spec, status, meta) = (&object["spec"], &object["status"], &object["metadata"]);
    let going = if meta["deletionTimestamp"].is_string() { " going" } else { "" };
    if key.contains("/deployments/") || key.contains("/replicasets/") {
        let ready = status["availableReplicas"].as_i64().unwrap_or(0);
        let limits = limits(spec);
        let bounds =
            if key.contains("/deployments/") { format!(" {}..{}", limits.least, limits.most) } else { String::new() };
        return format!("replicas {}{bounds}, has {}, available {ready}{going}", spec["replicas"], status["replicas"]);
    }
    if key.contains("/pods/") {
        let ready = if is_ready(&object) { " ready" } else { "" };
        return format!("{} on {}{ready}{going}", text(&status["phase"]), text(&spec["nodeName"]));
    }
    going.to_owned()
}
