//! Making and removing a pod's sandbox: shim, network, volumes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use mycelium_linux::cgroup::Hierarchies;
use serde_json::{Value, json};

use super::files;
use crate::client::{Shim, ShimError, Watch};
use crate::context::Context;
use crate::events::Kind;
use crate::pod::environment::Objects;
use crate::shim::protocol::{Request, SANDBOX, Sandbox};
use crate::spec::resources::{pod_limits, qos};
use crate::volumes::payload::{Sources, TokenWish};
use crate::volumes::{self, ClaimFault, Fill, MountError};

/// A sandbox that is up.
pub struct Up {
    /// The shim's process id.
    pub pid: i32,
    /// The pod's addresses.
    pub ips: Vec<String>,
    /// The shim's state as it changes.
    pub watch: Watch,
    /// Whether it was there before.
    pub adopted: bool,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The shim or its namespaces.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The pod network.
    #[error("failed to setup network for sandbox: {0}")]
    Network(String),
    /// The folder or the cgroup.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// A volume.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A token and its times.
#[derive(Clone)]
struct Token {
    text: String,
    fetched: Timestamp,
    expires: Timestamp,
}

/// A pod's tokens: fetched when first wanted, again when four fifths of their time have passed.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<BTreeMap<TokenWish, Token>>>);

/// A token is renewed after this at the latest.
const TOKEN_AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

impl Tokens {
    fn stale(&self, wish: &TokenWish, now: Timestamp) -> bool {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(wish).is_none_or(|token| {
            let (age, life) = (now.duration_since(token.fetched), token.expires.duration_since(token.fetched));
            age > TOKEN_AGE_MAX || age * 5 > life * 4
        })
    }

    fn get(&self, wish: &TokenWish) -> Option<String> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(wish).map(|token| token.text.clone())
    }

    /// Fetches what is missing or old. A token that cannot be renewed stays as long as it is valid.
    async fn renew(&self, ctx: &Context, pod: &Pod, wishes: Vec<TokenWish>) -> Result<(), kube::Error> {
        let now = ctx.env.now();
        for wish in wishes {
            if !self.stale(&wish, now) {
                continue;
            }
            match request_token(ctx, pod, &wish).await {
                Ok(token) => {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(wish, token);
                }
                Err(error) if self.get(&wish).is_none() => return Err(error),
                Err(error) => tracing::warn!(%error, "cannot renew a service account's token; trying again later"),
            }
        }
        Ok(())
    }
}

async fn request_token(ctx: &Context, pod: &Pod, wish: &TokenWish) -> Result<Token, kube::Error> {
    let meta = &pod.metadata;
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).filter(|n| !n.is_empty());
    let audiences: Vec<&str> = if wish.audience.is_empty() { Vec::new() } else { vec![&wish.audience] };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": wish.expiration_secs,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid},
        },
    });
    let url = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        meta.namespace.as_deref().unwrap_or_default(),
        account.unwrap_or("default")
    );
    let request = http::Request::post(url)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    let answer: Value = ctx.client.request(request).await?;
    let now = ctx.env.now();
    let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse().ok());
    Ok(Token {
        text: answer["status"]["token"].as_str().unwrap_or_default().to_owned(),
        fetched: now,
        expires: expires.unwrap_or_else(|| now + SignedDuration::from_secs(wish.expiration_secs)),
    })
}

/// The pod's own cgroup.
pub fn pod_cgroup(ctx: &Context, pod: &Pod) -> String {
    let class = pod.spec.as_ref().map_or("besteffort", |spec| qos(spec).folder());
    format!("{}/{class}/pod{}", ctx.cgroup(), pod.metadata.uid.as_deref().unwrap_or_default())
}

fn describe(ctx: &Context, pod: &Pod, dir: &Path, attempt: u32) -> Sandbox {
    let spec = pod.spec.clone().unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (host, domain) = files::names(pod, &ctx.cluster_domain);
    let node_network = ctx.network.namespace().is_some();
    let hostname = match domain {
        // The node's own name, where it is not the machine's.
        _ if spec.host_network == Some(true) && node_network => text(&spec.node_name),
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{host}.{domain}"),
        _ => host,
    };
    let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.clone()).unwrap_or_default();
    Sandbox {
        uid: text(&pod.metadata.uid),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        hostname,
        host_network: spec.host_network == Some(true),
        node_network,
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
        memory_volumes: volumes::memory_volumes(pod, dir),
        cgroup: pod_cgroup(ctx, pod),
        attempt,
        created_at: ctx.env.now_rfc3339(),
        ips: Vec::new(),
    }
}

/// Reads the description of a pod's sandbox.
pub fn read(dir: &Path) -> Option<Sandbox> {
    serde_json::from_slice(&std::fs::read(dir.join(SANDBOX)).ok()?).ok()
}

/// Makes the sandbox, or takes up the one that is there. What does not depend on each other happens at the same time.
pub async fn start(ctx: &Context, pod: &Pod, dir: &Path, attempt: u32, tokens: &Tokens) -> Result<Up, SandboxError> {
    let fetch = async {
        let (_, _, wishes) = volumes::references(pod);
        let no_volume = |e: kube::Error| MountError::new("all", e);
        let (objects, renewed) =
            futures::future::join(ctx.objects(pod), tokens.renew(ctx, pod, wishes.into_iter().collect())).await;
        renewed.map_err(|e| MountError::new(token_volume(pod), format!("failed to fetch token: {e}")))?;
        objects.map_err(no_volume)
    };
    let (up, objects) = futures::future::join(shim_and_network(ctx, pod, dir, attempt), fetch).await;
    let up = up?;
    let filled = match objects {
        Ok(objects) => fill(ctx, pod, dir, up.pid, objects, tokens, &up.ips).await,
        Err(error) => Err(error),
    };
    filled?;
    write_files(ctx, pod, dir, &up.ips).map_err(|e| SandboxError::Io("cannot write the pod's files".into(), e))?;
    Ok(up)
}

fn token_volume(pod: &Pod) -> String {
    let wants = |v: &&k8s_openapi::api::core::v1::Volume| {
        v.projected.iter().flat_map(|p| p.sources.iter().flatten()).any(|s| s.service_account_token.is_some())
    };
    volumes::of(pod).iter().find(wants).map(|v| v.name.clone()).unwrap_or_default()
}

async fn shim_and_network(ctx: &Context, pod: &Pod, dir: &Path, attempt: u32) -> Result<Up, SandboxError> {
    let old = Shim::at(dir);
    let (mut watch, mut sandbox, adopted) = match (old.watch().await, read(dir)) {
        (Ok(watch), Some(sandbox)) => (watch, sandbox, true),
        _ => {
            let sandbox = describe(ctx, pod, dir, attempt);
            let limits = pod.spec.as_ref().map(pod_limits).unwrap_or_default();
            let (group, orphans) = (sandbox.cgroup.clone(), dir.join(SANDBOX).exists());
            let made = tokio::task::spawn_blocking(move || {
                let groups = Hierarchies::get();
                if orphans {
                    // The shim of an earlier sandbox is gone; its containers have nobody left who would end them.
                    groups.kill(&group);
                    groups.remove(&group)?;
                }
                groups.create(&group, &limits)
            })
            .await;
            made.unwrap_or_else(|e| Err(std::io::Error::other(e)))
                .map_err(|e| SandboxError::Io(format!("cannot make the cgroup {}", sandbox.cgroup), e))?;
            let (_, watch) = Shim::start_in(ctx.network.namespace(), dir, &sandbox, &ctx.shim).await?;
            (watch, sandbox, false)
        }
    };
    let first = watch.peek().await.map_err(ShimError::Gone)?;
    let pid = first.pid;
    if sandbox.ips.is_empty() && !sandbox.host_network {
        let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
        sandbox.ips = ctx.network.attach(&sandbox.uid, &namespace).await.map_err(SandboxError::Network)?;
        let bytes = serde_json::to_vec(&sandbox).unwrap_or_default();
        std::fs::write(dir.join(SANDBOX), bytes)
            .map_err(|e| SandboxError::Io("cannot write the pod's description".into(), e))?;
    }
    Ok(Up { pid, ips: sandbox.ips, watch, adopted })
}

/// Fills the volumes; also called again later, when something changed.
async fn fill(
    ctx: &Context,
    pod: &Pod,
    dir: &Path,
    pid: i32,
    objects: Objects,
    tokens: &Tokens,
    ips: &[String],
) -> Result<(), MountError> {
    let namespace = pod.metadata.namespace.clone();
    let (pod, dir, tokens, facts) = (pod.clone(), dir.to_owned(), tokens.clone(), ctx.facts(ips));
    let stamp = ctx.env.now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let work = move || {
        let shim = Shim::at(&dir);
        let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
        let sources = Sources {
            pod: &pod,
            objects: &objects,
            facts: &facts,
            tokens: &|wish| tokens.get(wish),
            group: group.and_then(|g| u32::try_from(g).ok()),
            user: volumes::common_user(&pod),
        };
        let inside = |path: &Path| shim.inside(pid, path);
        volumes::fill(&pod, &Fill { dir: &dir, inside: &inside, sources, stamp: &stamp })
    };
    let filled = tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(MountError::new("", e)));
    if let Err(MountError { claim: Some(fault), .. }) = &filled {
        tell_claim(ctx, namespace, fault);
    }
    filled
}

/// What is wrong with a volume is told on its claim too: that is where whoever owns the data looks.
fn tell_claim(ctx: &Context, namespace: Option<String>, fault: &ClaimFault) {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace,
        name: Some(fault.name.clone()),
        uid: Some(fault.uid.clone()),
        ..ObjectReference::default()
    };
    ctx.events.about(about, Kind::Warning, fault.reason, fault.message.clone());
}

/// Fetches and fills again.
pub async fn refresh(
    ctx: &Context,
    pod: &Pod,
    dir: &Path,
    pid: i32,
    tokens: &Tokens,
    ips: &[String],
) -> Result<(), String> {
    let (_, _, wishes) = volumes::references(pod);
    tokens.renew(ctx, pod, wishes.into_iter().collect()).await.map_err(|e| e.to_string())?;
    let objects = ctx.objects(pod).await.map_err(|e| e.to_string())?;
    fill(ctx, pod, dir, pid, objects, tokens, ips).await.map_err(|e| e.to_string())
}

fn write_files(ctx: &Context, pod: &Pod, dir: &Path, ips: &[String]) -> std::io::Result<()> {
    let etc = dir.join("etc");
    std::fs::create_dir_all(&etc)?;
    let Some(spec) = &pod.spec else { return Ok(()) };
    let host_network = spec.host_network == Some(true);
    let hosts = if host_network {
        files::hosts_of_machine(pod, &std::fs::read_to_string("/etc/hosts").unwrap_or_default())
    } else {
        files::hosts(pod, ips, &ctx.cluster_domain)
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let hostname = files::names(pod, &ctx.cluster_domain).0;
    let resolv_conf = ctx.network.resolv_conf(namespace, spec);
    for (name, text) in [("hosts", hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolv_conf)] {
        let path = etc.join(name);
        std::fs::write(&path, text)?;
        // Every user in the container reads them, whatever this process's mask is.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(())
}

/// Removes a sandbox and what is mounted, whatever state it is in. The folder with the logs stays.
pub async fn stop(ctx: &Context, dir: &Path, uid: &str, cgroup: &str) -> Result<(), String> {
    // The shim may be gone already; its processes are then found by their cgroup.
    let _ = Shim::at(dir).ask(&Request::Shutdown).await;
    let group = cgroup.to_owned();
    let removed = tokio::task::spawn_blocking(move || {
        Hierarchies::get().kill(&group);
        Hierarchies::get().remove(&group)
    });
    ctx.network.detach(uid).await?;
    let removed = removed.await.map_err(|e| e.to_string())?;
    removed.map_err(|e| format!("cannot remove the cgroup {cgroup}: {e}"))
}
