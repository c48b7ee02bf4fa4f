//! The shell: follows the cluster, puts tables in place, opens listeners, and hands what has to be written to [`chores`].
//!
//! ```text
//!  Ingresses, classes ─► is one ours? ─ no ─► nothing listens, nothing else is watched
//!                              └─ yes ─► Services, EndpointSlices, Secrets ─► compile ─► table ─► chores
//! ```

mod chores;
mod listeners;
mod world;

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, select_all};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use mycelium_api::env::Env;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::Options;
use crate::proxy::Shared;
use crate::rules::compile::{Note, compile};
use crate::rules::table::Table;
use chores::{Chores, Work};
use listeners::Listeners;
use world::{Tracker, Update};

/// The annotation of our IngressClass that says where HTTP is served.
pub const HTTP: &str = "mycelium.network/ingress-http";
/// The same for HTTPS.
pub const HTTPS: &str = "mycelium.network/ingress-https";
/// Shortest time between two tables: what comes in between goes together.
const BURST: Duration = Duration::from_millis(10);
/// How often old connections are let go, and ports that somebody else has are tried again, while there are Ingresses.
const LOOK: Duration = Duration::from_secs(10);

type Updates = SelectAll<BoxStream<'static, Result<Update, watcher::Error>>>;

/// Serves the cluster's Ingresses until `shutdown` is ready; then lets what is under way end, for a while.
pub async fn run(client: Client, env: Env, options: Options, shutdown: impl Future<Output = ()>) {
    let shared = Shared::new(env.clone(), options.issue.clone());
    let (work, given) = watch::channel(Arc::new(Work::default()));
    let chores = Chores::new(client.clone(), env, options.clone()).keep(given);
    let mut follower = Follower {
        client: client.clone(),
        listeners: Listeners::new(shared.clone(), &options),
        shared,
        tracker: Tracker::default(),
        work,
        details: None,
        due: None,
        last: None,
        look: None,
    };
    tokio::select! {
        biased;
        () = shutdown => {}
        () = follower.follow() => {}
        () = chores => {}
    }
    follower.listeners.stop().await;
}

struct Follower {
    client: Client,
    shared: Arc<Shared>,
    listeners: Listeners,
    tracker: Tracker,
    work: watch::Sender<Arc<Work>>,
    /// What is watched only while there are Ingresses.
    details: Option<Updates>,
    /// When to compile next.
    due: Option<Instant>,
    last: Option<Instant>,
    look: Option<Instant>,
}

fn watched<K>(
    client: &Client,
    wrap: fn(watcher::Event<K>) -> Update,
) -> BoxStream<'static, Result<Update, watcher::Error>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    events.map(move |event| event.map(wrap)).boxed()
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn next(updates: &mut Option<Updates>) -> Option<Result<Update, watcher::Error>> {
    match updates {
        Some(updates) => updates.next().await,
        None => pending().await,
    }
}

impl Follower {
    async fn follow(&mut self) {
        let mut basics: Updates = select_all([
            watched::<Ingress>(&self.client, Update::Ingress),
            watched::<IngressClass>(&self.client, Update::Class),
        ]);
        loop {
            tokio::select! {
                biased;
                Some(update) = basics.next() => self.take(update),
                Some(update) = next(&mut self.details) => {
                    self.take(update);
                    while let Some(Some(update)) = self.details.as_mut().and_then(|all| all.next().now_or_never()) {
                        self.take(update);
                    }
                }
                () = at(self.due) => self.act(),
                () = at(self.look) => self.look_again(),
            }
        }
    }

    fn take(&mut self, update: Result<Update, watcher::Error>) {
        match update {
            Ok(update) => {
                if self.tracker.update(update) {
                    self.want();
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a watch of the ingress proxy was interrupted");
            }
        }
    }

    fn want(&mut self) {
        if self.due.is_none() {
            let now = Instant::now();
            self.due = Some(self.last.map_or(now, |last| now.max(last + BURST)));
        }
    }

    /// Brings table, listeners and what is to be written in line with the cluster.
    fn act(&mut self) {
        self.due = None;
        self.last = Some(Instant::now());
        if !self.tracker.knows_ingresses() {
            return;
        }
        if !self.tracker.has_work() {
            if self.details.take().is_some() {
                self.tracker.forget_details();
                self.listeners.close();
                self.shared.replace(Table::default());
            }
            self.look = None;
            return self.hand_out(Work::default());
        }
        if self.details.is_none() {
            self.details = Some(select_all([
                watched::<Service>(&self.client, Update::Service),
                watched::<EndpointSlice>(&self.client, Update::Slice),
                watched::<Secret>(&self.client, Update::Secret),
            ]));
        }
        if self.tracker.knows_details() {
            self.compile();
        }
    }

    fn compile(&mut self) {
        let compiled = compile(&self.tracker.world, &self.shared.table());
        self.shared.replace(compiled.table);
        self.listeners.open();
        self.look.get_or_insert_with(|| Instant::now() + LOOK);
        let mut notes = compiled.notes;
        for fault in self.listeners.faults() {
            notes.extend(compiled.served.iter().map(|ingress| Note {
                ingress: ingress.clone(),
                reason: "ListenFailed",
                message: fault.clone(),
                may_pass: true,
            }));
        }
        let world = &self.tracker.world;
        let served = compiled.served.iter().filter_map(|name| Some((name.clone(), world.ingresses.get(name)?.clone())));
        let held = compiled
            .wanted
            .iter()
            .filter_map(|wanted| Some((wanted.secret.clone(), world.secrets.get(&wanted.secret)?.clone())));
        self.hand_out(Work {
            served: served.collect(),
            notes,
            held: held.collect(),
            wanted: compiled.wanted,
            listening: self.listeners.bound(),
        });
    }

    fn hand_out(&self, work: Work) {
        self.work.send_replace(Arc::new(work));
    }

    fn look_again(&mut self) {
        self.look = Some(Instant::now() + LOOK);
        self.shared.upstreams.forget_old();
        if !self.listeners.faults().is_empty() {
            self.want();
        }
    }
}
