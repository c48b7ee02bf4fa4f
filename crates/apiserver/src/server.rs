//! The server's shared parts, and the way of a request through them.
//!
//! ```text
//!  TLS or in-process ─► identity ─► route ─► authorise ─► read │ write │ stream │ review ─► answer
//!                                                             └──────► store ◄──────┘
//! ```

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use http::{HeaderValue, Request, Response, header};
use ipnet::Ipv4Net;
use mycelium_api::env::Env;
use mycelium_kinds::admission::Patience;
use mycelium_store::{CommitError, Committed, Op, Store};
use tokio::sync::{OnceCell, watch};
use tower::util::BoxCloneSyncService;

use crate::audit::{AuditLog, Line, Trail};
use crate::auth::tokens::{TokenError, Tokens};
use crate::auth::{Identity, rbac, roles};
use crate::body::Body;
use crate::error::ApiError;
use crate::fairness::{self, Seats};
use crate::measured::scrape::Memory;
use crate::metrics::Metrics;
use crate::pki::Pki;
use crate::quota::{self, ChargeError, Limits, Quotas};
use crate::read::filter::Parsed;
use crate::resources::{Table, Tables};
use crate::write::expiry::Expiry;
use crate::{aggregation, bootstrap, custom, route};

const CLUSTER_ROLES: &str = "/registry/rbac.authorization.k8s.io/clusterroles/";

/// The node agent, which answers for the containers: logs, exec, attach, port-forward.
pub type NodeService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// What a server is made of.
#[derive(Clone)]
pub struct Config {
    /// Where objects are kept.
    pub store: Store,
    /// Clock and randomness.
    pub env: Env,
    /// Keys and certificates.
    pub pki: Pki,
    /// From which services get their addresses.
    pub service_cidr: Ipv4Net,
    /// From which services get their node ports, both ends included.
    pub node_ports: (u16, u16),
    /// Where requests are noted down, if anywhere.
    pub audit: Option<AuditLog>,
    /// How long pods may stay on nodes that are unwell, unless they say otherwise.
    pub patience: Patience,
    /// The node agent, if it is known already; see [`ApiServer::set_node`].
    pub node: Option<NodeService>,
    /// A folder for files without a name.
    pub scratch: PathBuf,
}

impl Config {
    /// A configuration with Kubernetes' usual ranges.
    pub fn new(store: Store, env: Env, pki: Pki) -> Self {
        let service_cidr = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12);
        let scratch = std::env::temp_dir();
        let (node_ports, patience) = ((30_000, 32_767), Patience::default());
        Self { store, env, pki, service_cidr, node_ports, audit: None, patience, node: None, scratch }
    }
}

/// Everything requests share.
pub struct Inner {
    pub(crate) store: Store,
    pub(crate) env: Env,
    pub(crate) pki: Pki,
    pub(crate) tokens: Tokens,
    pub(crate) tables: Tables,
    pub(crate) extensions: aggregation::Lists,
    pub(crate) rbac: rbac::Cache,
    pub(crate) parsed: Parsed,
    pub(crate) metrics: Metrics,
    pub(crate) expiry: Arc<Expiry>,
    pub(crate) quotas: Quotas,
    pub(crate) counters: Memory,
    pub(crate) seats: Arc<Seats>,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) node_ports: (u16, u16),
    pub(crate) scratch: PathBuf,
    pub(crate) patience: Patience,
    pub(crate) node: OnceLock<NodeService>,
    pub(crate) shutdown: watch::Sender<bool>,
    bootstrapped: OnceCell<()>,
}

impl Inner {
    /// Every resource there is now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.tables.get(&self.store)
    }

    /// Writes to the store what follows from something else: quotas count it, and do not refuse it.
    pub(crate) async fn commit(&self, ops: Vec<Op>) -> Result<Committed, CommitError> {
        match self.commit_within(ops, Limits::Counted).await {
            Ok(committed) => Ok(committed),
            Err(ChargeError::Commit(error)) => Err(error),
            Err(ChargeError::Refused(why)) => Err(CommitError::Invalid(why)),
        }
    }

    /// Writes to the store, and keeps what is derived from it current.
    pub(crate) async fn commit_within(&self, ops: Vec<Op>, limits: Limits) -> Result<Committed, ChargeError> {
        let touches = |prefix: &str| {
            ops.iter().any(|op| match op {
                Op::Put { key, .. } | Op::Delete { key, .. } => key.starts_with(prefix),
                Op::Check { .. } => false,
            })
        };
        let (access, definitions) = (touches(rbac::PREFIX), touches(custom::PREFIX));
        let roles = access && touches(CLUSTER_ROLES);
        let committed = quota::commit(self, ops, limits, false).await;
        if access && committed.is_ok() {
            self.rbac.invalidate();
        }
        // While the first objects are created, they follow together at the end.
        if roles && committed.is_ok() && self.bootstrapped.initialized() {
            roles::aggregate(self).await;
        }
        if definitions && committed.is_ok() {
            self.tables.invalidate();
        }
        if let Ok(committed) = &committed {
            self.expiry.note(&committed.entries);
        }
        committed
    }
}

/// What a failed commit means to a client, conflicts aside.
pub(crate) fn commit_failure(error: CommitError) -> ApiError {
    match error {
        CommitError::Closed => ApiError::Unavailable("the server is shutting down".into()),
        other => ApiError::internal(other),
    }
}

/// The API server. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
}

impl ApiServer {
    /// A server on a store. The first request, or [`ApiServer::bootstrap`], creates the objects that every cluster has.
    pub fn new(config: Config) -> Result<Self, TokenError> {
        let tokens = Tokens::new(config.env.clone(), config.pki.service_account_key())?;
        let node = OnceLock::new();
        if let Some(service) = config.node {
            let _ = node.set(service);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                store: config.store,
                env: config.env,
                pki: config.pki,
                tokens,
                tables: Tables::default(),
                extensions: aggregation::Lists::default(),
                rbac: rbac::Cache::default(),
                parsed: Parsed::default(),
                metrics: Metrics::default(),
                expiry: Arc::default(),
                quotas: Quotas::default(),
                counters: Memory::default(),
                seats: Arc::default(),
                audit: config.audit,
                service_cidr: config.service_cidr,
                node_ports: config.node_ports,
                scratch: config.scratch,
                patience: config.patience,
                node,
                shutdown: watch::Sender::new(false),
                bootstrapped: OnceCell::new(),
            }),
        })
    }

    /// Names the node agent, which is usually made after the server whose client it is. Later calls do nothing.
    pub fn set_node(&self, node: NodeService) {
        let _ = self.inner.node.set(node);
    }

    /// Creates namespaces, roles and priority classes that every cluster has, where they are missing.
    pub async fn bootstrap(&self) -> Result<(), ApiError> {
        self.inner
            .bootstrapped
            .get_or_try_init(|| async {
                bootstrap::run(self.inner.clone()).await?;
                self.inner.expiry.start(&self.inner);
                custom::ending::resume(&self.inner);
                Ok(())
            })
            .await
            .copied()
    }

    /// Ends all watches, and lets [`ApiServer::serve`] return once its connections are done.
    pub fn shut_down(&self) {
        self.inner.shutdown.send_replace(true);
    }

    /// Answers one request from outside, when it is its client's turn.
    pub async fn admit(&self, request: Request<Body>, who: Identity) -> Response<Body> {
        if fairness::is_long(&request) {
            return self.handle(request, who).await;
        }
        match self.inner.seats.take(&fairness::client(&request, &who)).await {
            Ok(_seat) => self.handle(request, who).await,
            Err(refusal) => refusal.response(),
        }
    }

    /// Answers one request. A panic in a handler becomes a 500.
    pub async fn handle(&self, request: Request<Body>, who: Identity) -> Response<Body> {
        let pretty = request
            .uri()
            .query()
            .is_some_and(|q| q.split('&').any(|p| matches!(p, "pretty=true" | "pretty=1" | "pretty")));
        let summary = self.inner.metrics.begin(request.method(), request.uri().path());
        let line = self.inner.audit.as_ref().map(|_| line(&request, &self.inner.env));
        let trail = line.is_some().then(Trail::default);
        let answer = AssertUnwindSafe(async {
            self.bootstrap().await?;
            route::dispatch(&self.inner, request, who, trail.as_ref()).await
        });
        let answer = answer.catch_unwind().await.unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(panic = text, "a request handler panicked");
            Err(ApiError::Internal("the server has met an unexpected condition".into()))
        });
        let mut response = answer.unwrap_or_else(|error| {
            if matches!(error, ApiError::Internal(_)) {
                tracing::warn!(%error, "a request failed");
            }
            error.response()
        });
        response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if let (Some(log), Some(trail), Some(line)) = (&self.inner.audit, &trail, &line) {
            let env = &self.inner.env;
            log.write(&trail.event(line, response.status().as_u16(), &env.now_rfc3339(), &env.uuid()));
        }
        self.inner.metrics.end(summary, response.status());
        if pretty { crate::answer::prettify(response).await } else { response }
    }
}

fn line(request: &Request<Body>, env: &Env) -> Line {
    let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    Line {
        method: request.method().to_string(),
        uri: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        agent: agent.unwrap_or_default().to_owned(),
        received: env.now_rfc3339(),
    }
}
