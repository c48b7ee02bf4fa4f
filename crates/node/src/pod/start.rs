//! Starting one run of a container: image, variables, user, files, bundle, program.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::api::Api;
use serde_json::Value;
use tokio::time::Instant;

use super::model::{Record, Role, describe};
use super::resize::Amounts;
use super::{disk, environment, sandbox};
use crate::client::Shim;
use crate::context::Context;
use crate::events::Kind;
use crate::image::{ImageConfig, ImageError, PodImage, PullSecret};
use crate::shim::protocol::{CGROUPS, ContainerState, Create, Request, Root, SHM};
use crate::spec::oci::{self, Bind};
use crate::spec::resources::{oom_score_adj, qos};
use crate::spec::users::{self, Accounts, User, Wishes};
use crate::volumes;

/// Accounts files larger than this are not read.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

/// What starting a run takes.
#[derive(Clone)]
pub struct Job {
    /// What every worker needs.
    pub ctx: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its container.
    pub container: Container,
    /// The list it stands in.
    pub role: Role,
    /// The container whose processes it is to see: its name, and its run.
    pub target: Option<(String, Option<String>)>,
    /// Number of the run.
    pub attempt: u32,
    /// Seconds that the next run must wait.
    pub backoff_secs: u32,
    /// The pod's folder.
    pub dir: PathBuf,
    /// The shim's process id.
    pub pid: i32,
    /// The pod's addresses.
    pub ips: Vec<String>,
}

/// Why a run was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// It came to nothing: the reason and message to wait with.
    Wait {
        /// `ErrImagePull` and the like.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// It counts as a run that failed at once.
    Failed(Box<Record>),
}

fn wait(reason: &'static str, message: impl Into<String>) -> StartError {
    StartError::Wait { reason, message: message.into() }
}

impl Job {
    /// Records an event about the container.
    pub fn event(&self, kind: Kind, reason: &'static str, message: impl Into<String>) {
        self.ctx.events.pod(&self.pod, Some((&self.container.name, self.role)), kind, reason, message.into());
    }

    fn config_error(&self, message: String) -> StartError {
        self.event(Kind::Warning, "Failed", format!("Error: {message}"));
        wait("CreateContainerConfigError", message)
    }

    fn id(&self) -> String {
        let env = &self.ctx.env;
        (0..4).map(|_| format!("{:016x}", env.random())).collect()
    }
}

/// Starts the run. `made` is told of it before the shim is asked, so that its news find a record.
pub async fn start(job: &Job, made: impl FnOnce(Record)) -> Result<Record, StartError> {
    let (image, env) = futures::future::join(find_image(job), variables(job)).await;
    let (image, env) = (image?, env?);
    let user = user_of(job, &image).map_err(|e| job.config_error(e))?;
    let mut record = Record {
        id: job.id(),
        name: job.container.name.clone(),
        attempt: job.attempt,
        image: image.name.clone(),
        image_id: image.id.clone(),
        backoff_secs: job.backoff_secs,
        resources: Some(Amounts::of(job.container.resources.as_ref())),
        stop_signal: stop_signal(job, &image.config),
        hook_done: job.container.lifecycle.as_ref().is_none_or(|l| l.post_start.is_none()),
        ..Record::default()
    };
    record.set_user(&user);
    let create = bundle(job, &record, &image, &env, &user)?;
    disk::save(&job.dir, &record).map_err(|e| wait("CreateContainerError", e.to_string()))?;
    made(record.clone());
    let shim = Shim::at(&job.dir);
    let result = match shim.ask(&Request::Create(create)).await {
        Ok(()) => {
            job.event(Kind::Normal, "Created", "Container created");
            shim.ask(&Request::Start { id: record.id.clone() }).await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => {
            job.event(Kind::Normal, "Started", "Container started");
            Ok(record)
        }
        Err(error) => {
            let message = format!("failed to create container: {error}");
            job.event(Kind::Warning, "Failed", format!("Error: {message}"));
            record.start_error = Some(message);
            record.failed_at = Some(job.ctx.env.now());
            let _ = disk::save(&job.dir, &record);
            Err(StartError::Failed(Box::new(record)))
        }
    }
}

fn pull_policy(container: &Container) -> &str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let last = image.rsplit('/').next().unwrap_or_default();
            let fixed = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
            if fixed { "IfNotPresent" } else { "Always" }
        }
    }
}

async fn find_image(job: &Job) -> Result<PodImage, StartError> {
    let name = job.container.image.as_deref().unwrap_or_default();
    let policy = pull_policy(&job.container);
    let found = job.ctx.images.resolve(name).await.map_err(|error| match &error {
        ImageError::InvalidName { .. } => {
            job.event(Kind::Warning, "InspectFailed", error.to_string());
            job.event(Kind::Warning, "Failed", "Error: InvalidImageName");
            wait("InvalidImageName", error.to_string())
        }
        _ => {
            let message = format!("Failed to inspect image \"{name}\": {error}");
            job.event(Kind::Warning, "InspectFailed", message.clone());
            wait("ImageInspectError", message)
        }
    })?;
    match (policy, found) {
        ("Never", None) => {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            job.event(Kind::Warning, "ErrImageNeverPull", message.clone());
            job.event(Kind::Warning, "Failed", "Error: ErrImageNeverPull");
            Err(wait("ErrImageNeverPull", message))
        }
        ("Always", local) => pull(job, name, local).await,
        (_, Some(image)) => {
            let text = format!("Container image \"{name}\" already present on machine and can be accessed by the pod");
            job.event(Kind::Normal, "Pulled", text);
            Ok(image)
        }
        (_, None) => pull(job, name, None).await,
    }
}

async fn pull(job: &Job, name: &str, local: Option<PodImage>) -> Result<PodImage, StartError> {
    job.event(Kind::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let begun = Instant::now();
    let secrets = pull_secrets(job).await;
    match (job.ctx.images.pull(name, &secrets).await, local) {
        (Ok(image), _) => {
            let took = go_duration(begun.elapsed());
            let text = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
                image.size
            );
            job.event(Kind::Normal, "Pulled", text);
            Ok(image)
        }
        (Err(ImageError::Pull { message, local_may_serve: true }), Some(image)) if image.loaded_by_hand => {
            let text = format!("Using the image \"{name}\" that was loaded on this machine: {message}");
            job.event(Kind::Warning, "UsingLocalImage", text);
            Ok(image)
        }
        (Err(error), _) => {
            job.event(Kind::Warning, "Failed", format!("Failed to pull image \"{name}\": {error}"));
            job.event(Kind::Warning, "Failed", "Error: ErrImagePull");
            Err(wait("ErrImagePull", error.to_string()))
        }
    }
}

/// As Go prints a duration, in milliseconds at best.
fn go_duration(time: Duration) -> String {
    if time.as_secs() == 0 {
        format!("{}ms", time.as_millis())
    } else {
        format!("{}s", time.as_millis() as f64 / 1000.0)
    }
}

async fn pull_secrets(job: &Job) -> Vec<PullSecret> {
    let namespace = job.pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(job.ctx.client.clone(), namespace);
    let mut logins = Vec::new();
    for reference in job.pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        // A secret that does not exist is no login; the registry says what it wants.
        let Ok(Some(secret)) = api.get_opt(&reference.name).await else { continue };
        let data = secret.data.unwrap_or_default();
        logins.extend(data.get(".dockerconfigjson").map(|d| PullSecret::Config(d.0.clone())));
        logins.extend(data.get(".dockercfg").map(|d| PullSecret::Cfg(d.0.clone())));
    }
    logins
}

async fn variables(job: &Job) -> Result<Vec<(String, String)>, StartError> {
    let (maps, secrets) = environment::references(&job.container);
    let needs = !maps.is_empty() || !secrets.is_empty();
    let objects = async { if needs { job.ctx.objects(&job.pod).await } else { Ok(environment::Objects::default()) } };
    let (objects, services) = futures::future::try_join(objects, job.ctx.services(&job.pod))
        .await
        .map_err(|e| job.config_error(format!("cannot reach the API: {e}")))?;
    let services = environment::for_services(&services, &job.pod);
    environment::build(&job.pod, &job.container, &objects, &services, &job.ctx.facts(&job.ips))
        .map_err(|e| job.config_error(e.to_string()))
}

fn user_of(job: &Job, image: &PodImage) -> Result<User, String> {
    let pod = describe(&job.pod);
    let wishes = Wishes {
        pod: &pod,
        container: &job.container.name,
        pod_context: job.pod.spec.as_ref().and_then(|s| s.security_context.as_ref()),
        context: job.container.security_context.as_ref(),
        image_user: &image.config.user,
    };
    let accounts = Accounts { passwd: read(image, "etc/passwd"), group: read(image, "etc/group") };
    users::resolve(&wishes, &accounts).map_err(|e| e.to_string())
}

/// A file of the image, from the topmost layer that has it.
fn read(image: &PodImage, path: &str) -> String {
    let is_file =
        |file: &PathBuf| fs::symlink_metadata(file).is_ok_and(|m| m.is_file() && m.len() <= ACCOUNTS_BYTES_MAX);
    let file = image.layers.iter().map(|layer| layer.join(path)).find(is_file);
    file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
}

fn stop_signal(job: &Job, image: &ImageConfig) -> i32 {
    let own = job.container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    let name = own.unwrap_or_else(|| image.stop_signal.clone()).to_ascii_uppercase();
    let full = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
    name.parse()
        .ok()
        .or_else(|| full.parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32))
        .unwrap_or(nix::sys::signal::Signal::SIGTERM as i32)
}

/// Writes the bundle of the run and says how to make it.
fn bundle(
    job: &Job,
    record: &Record,
    image: &PodImage,
    env: &[(String, String)],
    user: &User,
) -> Result<Create, StartError> {
    let spec = job.pod.spec.clone().unwrap_or_default();
    let folder = disk::bundle(&job.dir, &record.id);
    let failed = |e: std::io::Error| wait("CreateContainerError", e.to_string());
    fs::create_dir_all(&folder).map_err(failed)?;
    let binds = binds(job, record, env)?;
    let target = target_process(job)?;
    let cgroup = format!("{}/{}", sandbox::pod_cgroup(&job.ctx, &job.pod), record.id);
    let input = oci::Input {
        pod: &job.pod,
        container: &job.container,
        image: &image.config,
        env,
        binds: &binds,
        user,
        cgroup,
        pause: pause(&job.dir).or(target),
        local_seccomp: local_seccomp(job).map_err(|e| wait("CreateContainerError", e))?,
        machine: &job.ctx.machine,
    };
    let config = oci::build(&input).map_err(|e| {
        job.event(Kind::Warning, "Failed", format!("Error: {e}"));
        wait("CreateContainerError", e.to_string())
    })?;
    fs::write(folder.join("config.json"), config.to_string()).map_err(failed)?;
    Ok(Create {
        id: record.id.clone(),
        root: Root::Overlay(image.layers.clone()),
        log: disk::log(&job.dir, &record.name, record.attempt),
        tty: job.container.tty == Some(true),
        stdin: job.container.stdin == Some(true),
        stdin_once: job.container.stdin_once == Some(true),
        cgroups_writable: privileged(&job.container),
        oom_score_adj: oom_score_adj(qos(&spec), job.container.resources.as_ref(), job.ctx.memory_bytes),
    })
}

fn privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
}

fn pause(dir: &Path) -> Option<i32> {
    fs::read_to_string(dir.join("pause")).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The first process of the container whose processes this one is to see.
fn target_process(job: &Job) -> Result<Option<i32>, StartError> {
    let Some((name, run)) = &job.target else { return Ok(None) };
    let Some(run) = run else {
        return Err(job.config_error(format!("unable to find target container {name}")));
    };
    match disk::state(&job.dir, run).filter(ContainerState::running) {
        Some(state) => Ok(Some(state.pid)),
        None => Err(wait("CreateContainerError", format!("target container {name} is not running"))),
    }
}

fn local_seccomp(job: &Job) -> Result<Option<Value>, String> {
    let own = job.container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let pod = job.pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.seccomp_profile.as_ref());
    let Some(profile) = own.or(pod).filter(|p| p.type_ == "Localhost") else { return Ok(None) };
    let name = profile.localhost_profile.as_deref().unwrap_or_default();
    let path = job.ctx.seccomp.join(name);
    let text = fs::read(&path).map_err(|e| format!("cannot load seccomp profile {}: {e}", path.display()))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| format!("cannot load seccomp profile {}: {e}", path.display()))
}

fn binds(job: &Job, record: &Record, env: &[(String, String)]) -> Result<Vec<Bind>, StartError> {
    let (dir, container) = (&job.dir, &job.container);
    let shim = Shim::at(dir);
    let inside = |path: &Path| shim.inside(job.pid, path);
    let mut binds =
        volumes::binds(&job.pod, container, dir, &inside, env).map_err(|message| job.config_error(message))?;
    let taken = |target: &str, binds: &[Bind]| binds.iter().any(|b| b.target == target);
    let spec = job.pod.spec.as_ref();
    let writable = container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) != Some(true);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !taken(&target, &binds) {
            binds.push(Bind { source: dir.join("etc").join(name), target, read_only: !writable, follow: false });
        }
    }
    if !taken("/dev/shm", &binds) {
        let host_ipc = spec.and_then(|s| s.host_ipc) == Some(true);
        let source = if host_ipc { PathBuf::from("/dev/shm") } else { dir.join(SHM) };
        binds.push(Bind { source, target: "/dev/shm".into(), read_only: false, follow: false });
    }
    if !job.ctx.machine.unified_cgroups && !taken("/sys/fs/cgroup", &binds) {
        let source = disk::bundle(dir, &record.id).join(CGROUPS);
        fs::create_dir_all(&source).map_err(|e| wait("CreateContainerError", e.to_string()))?;
        binds.push(Bind { source, target: "/sys/fs/cgroup".into(), read_only: !privileged(container), follow: false });
    }
    let target = container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let target = target.unwrap_or("/dev/termination-log").to_owned();
    let source = disk::termination_log(dir, &record.id);
    fs::write(&source, "").map_err(|e| wait("CreateContainerError", e.to_string()))?;
    // Any user in the container may leave last words.
    let _ = fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o666));
    binds.push(Bind { source, target, read_only: false, follow: false });
    Ok(binds)
}
