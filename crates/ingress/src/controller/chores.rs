//! What is written for Ingresses: their class, their addresses, certificates that they ask for, and events that say what is
//! wrong.
//!
//! It works from the latest picture only, and never holds up the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Secret};
use k8s_openapi::api::networking::v1::{Ingress as ApiIngress, IngressClass};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mycelium_api::env::Env;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::listeners::Bound;
use super::{HTTP, HTTPS};
use crate::Options;
use crate::certificates::{ISSUED, Pair, Wanted, secret_data};
use crate::rules::compile::{CLASS, CONTROLLER, Note};
use crate::rules::model::{Ingress, ObjectName};

const COMPONENT: &str = "mycelium-ingress";
/// What may pass by itself is told after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often certificates are looked at: clocks are set, and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);
/// Events that are remembered, so that none is written twice.
const TOLD_MAX: usize = 4096;

/// What there is to do.
#[derive(Default)]
pub struct Work {
    /// The Ingresses that are served.
    pub served: BTreeMap<ObjectName, Arc<Ingress>>,
    /// What has to be told.
    pub notes: BTreeSet<Note>,
    /// Certificates that are asked for.
    pub wanted: Vec<Wanted>,
    /// What their Secrets hold.
    pub held: BTreeMap<ObjectName, Arc<Pair>>,
    /// Where the proxy listens.
    pub listening: Bound,
}

/// The one who does it.
pub struct Chores {
    client: Client,
    env: Env,
    options: Options,
    class_is_there: bool,
    shown: Option<Bound>,
    /// Since when a note has been there.
    since: BTreeMap<Note, Instant>,
    told: BTreeSet<String>,
}

/// When to look again, if nothing changes before.
#[derive(Default)]
struct Again(Option<Instant>);

impl Again {
    fn at(&mut self, time: Instant) {
        self.0 = Some(self.0.map_or(time, |known| known.min(time)));
    }

    fn after(&mut self, wait: Duration) {
        self.at(Instant::now() + wait);
    }
}

impl Chores {
    pub fn new(client: Client, env: Env, options: Options) -> Self {
        let (since, told) = (BTreeMap::new(), BTreeSet::new());
        Self { client, env, options, class_is_there: false, shown: None, since, told }
    }

    /// Does what there is to do, for ever.
    pub async fn keep(mut self, mut given: watch::Receiver<Arc<Work>>) {
        loop {
            let work = given.borrow_and_update().clone();
            let again = self.once(&work).await;
            let waiting = async {
                match again.0 {
                    Some(time) => tokio::time::sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = given.changed() => if changed.is_err() { return },
                () = waiting => {}
            }
        }
    }

    async fn once(&mut self, work: &Work) -> Again {
        let mut again = Again::default();
        if !self.class(&work.listening).await {
            again.after(RETRY);
        }
        let addresses = self.addresses(&work.listening);
        for (name, ingress) in &work.served {
            if ingress.addresses != addresses && !self.status(name, &addresses).await {
                again.after(RETRY);
            }
        }
        let mut refused = BTreeSet::new();
        for wanted in &work.wanted {
            again.after(LOOK);
            match self.certificate(wanted, work.held.get(&wanted.secret).map(Arc::as_ref)).await {
                Ok(()) => {}
                Err(message) => {
                    let (ingress, reason) = (wanted.ingress.clone(), "CertificateRefused");
                    refused.insert(Note { ingress, reason, message, may_pass: false });
                    again.after(LOOK.min(RETRY * 6));
                }
            }
        }
        self.tell(work, refused, &mut again).await;
        again
    }

    /// Makes our class if it is not there, and writes down where we listen.
    async fn class(&mut self, listening: &Bound) -> bool {
        let classes: Api<IngressClass> = Api::all(self.client.clone());
        if !self.class_is_there {
            let class = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
                "metadata": {"name": CLASS, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
                "spec": {"controller": CONTROLLER},
            });
            let Ok(class) = serde_json::from_value(class) else { return true };
            match classes.create(&PostParams::default(), &class).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                Err(error) => return failed("our IngressClass could not be made", &error),
            }
            self.class_is_there = true;
        }
        if self.shown.as_ref() == Some(listening) {
            return true;
        }
        let text = |all: &[std::net::SocketAddr]| match all {
            [] => Value::Null,
            all => json!(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        };
        let annotations = json!({HTTP: text(&listening.http), HTTPS: text(&listening.https)});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        match classes.patch_metadata(CLASS, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // Somebody does not want it.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return failed("where we listen could not be written down", &error),
        }
        self.shown = Some(listening.clone());
        true
    }

    /// What the status of an Ingress shows.
    fn addresses(&self, listening: &Bound) -> Vec<String> {
        let node = std::net::IpAddr::V4(self.options.node_ip);
        let ips = listening.http.iter().chain(&listening.https).map(std::net::SocketAddr::ip);
        let mut ips: Vec<_> = ips.map(|ip| if ip.is_unspecified() { node } else { ip }).collect();
        if ips.contains(&node) {
            ips = vec![node];
        }
        ips.sort_unstable();
        ips.dedup();
        ips.iter().map(ToString::to_string).collect()
    }

    async fn status(&self, name: &ObjectName, addresses: &[String]) -> bool {
        let points: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": points}}}));
        let api: Api<ApiIngress> = Api::namespaced(self.client.clone(), &name.0);
        match api.patch_status(&name.1, &PatchParams::default(), &patch).await {
            Err(error) if !is_gone(&error) => failed("the address of an Ingress could not be written", &error),
            _ => true,
        }
    }

    /// Makes a certificate if that is due. An error is what to tell its Ingress.
    async fn certificate(&self, wanted: &Wanted, held: Option<&Pair>) -> Result<(), String> {
        if !wanted.is_due(held, &self.options.authority, self.env.now())
            || wanted.of_cert_manager && self.has_cert_manager().await
        {
            return Ok(());
        }
        let hosts = wanted.hosts.join(", ");
        let made =
            (self.options.issue)(&wanted.hosts).map_err(|why| format!("no certificate is made for {hosts}: {why}"))?;
        let (namespace, name) = &wanted.secret;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name, "labels": {ISSUED: "true"}, "annotations": {
                "mycelium.network/hosts": hosts, "mycelium.network/ingress": wanted.ingress.1,
            }},
            "stringData": secret_data(&made.cert, &made.key, &self.options.authority),
        });
        let written = match held {
            // Whoever was faster keeps it.
            None => match serde_json::from_value(secret) {
                Ok(secret) => api.create(&PostParams::default(), &secret).await.map(drop),
                Err(_) => return Ok(()),
            },
            Some(_) => api.patch(name, &PatchParams::default(), &Patch::Merge(secret)).await.map(drop),
        };
        match written {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(format!("the Secret {name} for the certificate cannot be written: {error}")),
            Ok(()) => Ok(()),
        }
    }

    /// Where cert-manager is installed, what asks for it is its work.
    async fn has_cert_manager(&self) -> bool {
        self.client
            .list_api_groups()
            .await
            .is_ok_and(|all| all.groups.iter().any(|group| group.name == "cert-manager.io"))
    }

    /// Writes an event for each note that lasts, once.
    async fn tell(&mut self, work: &Work, refused: BTreeSet<Note>, again: &mut Again) {
        let notes: BTreeSet<&Note> = work.notes.iter().chain(&refused).collect();
        self.since.retain(|note, _| notes.contains(note));
        let now = Instant::now();
        for note in notes {
            let since = *self.since.entry(note.clone()).or_insert(now);
            let from = if note.may_pass { since + PATIENCE } else { since };
            let Some(ingress) = work.served.get(&note.ingress) else { continue };
            let key = format!("{} {} {} {}", ingress.uid, ingress.generation, note.reason, note.message);
            if self.told.contains(&key) {
                continue;
            }
            if now < from {
                again.at(from);
                continue;
            }
            if !self.event(note, ingress, &key).await {
                again.after(RETRY);
                continue;
            }
            if self.told.len() >= TOLD_MAX {
                self.told.clear();
            }
            self.told.insert(key);
        }
    }

    async fn event(&self, note: &Note, ingress: &Ingress, key: &str) -> bool {
        let (namespace, name) = &note.ingress;
        let id = Sha256::digest(key);
        let id = id[..8].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        let now = self.env.now_rfc3339();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            // One name for one event: after a restart it is not written again.
            "metadata": {"name": format!("{name}.{id:016x}"), "namespace": namespace},
            "involvedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "namespace": namespace,
                "name": name, "uid": ingress.uid},
            "type": "Warning", "reason": note.reason, "message": note.message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": "",
        });
        let Ok(event) = serde_json::from_value::<Event>(event) else { return true };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code < 500 => true,
            Err(error) => failed("an event could not be written", &error),
        }
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn failed(what: &str, error: &kube::Error) -> bool {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
    false
}
