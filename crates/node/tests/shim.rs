//! A real shim with real containers. Needs root, as the product does.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mycelium_linux::cgroup::Hierarchies;
use mycelium_node::client::{Shim, ShimCommand, Watch, pipe};
use mycelium_node::image::ImageConfig;
use mycelium_node::shim::protocol::{CONTAINERS, ContainerState, Create, Exec, Reply, Request, Root, Sandbox};
use mycelium_node::spec::oci;
use mycelium_node::spec::users::User;
use serde_json::json;

fn command() -> ShimCommand {
    Arc::from([env!("CARGO_BIN_EXE_mycelium-node-shim").into(), "shim".into()])
}

/// A root file system with busybox.
fn busybox(dir: &Path) -> PathBuf {
    let layer = dir.join("layer");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        std::fs::create_dir_all(layer.join(sub)).expect("creates");
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "echo", "sleep", "cat", "mount", "unshare", "id", "stty", "ls", "head", "tail"] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(name)).expect("links");
    }
    layer
}

struct Fixture {
    dir: tempfile::TempDir,
    shim: Shim,
    watch: Watch,
    cgroup: String,
}

impl Fixture {
    async fn new(sandbox: Sandbox) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let unique = dir.path().file_name().expect("a name").to_string_lossy().replace('.', "");
        let cgroup = format!("/mycelium-test-{unique}");
        let sandbox = Sandbox { cgroup: cgroup.clone(), hostname: "pod".into(), ..sandbox };
        let (shim, watch) = Shim::start(&dir.path().join("pod"), &sandbox, &command()).await.expect("the shim starts");
        Self { dir, shim, watch, cgroup }
    }

    fn write_bundle(&self, id: &str, container: serde_json::Value) {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container]}})).expect("a pod");
        let spec = pod.spec.as_ref().expect("a spec");
        let machine = oci::Machine {
            capabilities: capabilities(),
            unified_cgroups: Hierarchies::get().unified(),
            devices: vec![],
        };
        let config = oci::build(&oci::Input {
            pod: &pod,
            container: &spec.containers[0],
            image: &ImageConfig::default(),
            env: &[],
            binds: &[],
            user: &User::default(),
            cgroup: format!("{}/{id}", self.cgroup),
            pause: None,
            local_seccomp: None,
            machine: &machine,
        })
        .expect("a specification");
        let bundle = self.dir.path().join("pod").join(CONTAINERS).join(id);
        std::fs::create_dir_all(&bundle).expect("creates");
        std::fs::write(bundle.join("config.json"), config.to_string()).expect("writes");
    }

    async fn run(&self, id: &str, tty: bool, container: serde_json::Value) {
        self.write_bundle(id, container);
        let layer = self.dir.path().join("layer");
        let layer = if layer.exists() { layer } else { busybox(self.dir.path()) };
        let create = Create {
            id: id.into(),
            root: Root::Overlay(vec![layer]),
            log: self.log(id),
            tty,
            stdin: false,
            stdin_once: false,
            oom_score_adj: 1000,
            cgroups_writable: false,
        };
        self.shim.ask(&Request::Create(create)).await.expect("creates");
        self.shim.ask(&Request::Start { id: id.into() }).await.expect("starts");
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("pod/logs").join(id)
    }

    async fn until(&mut self, id: &str, done: impl Fn(&ContainerState) -> bool) -> ContainerState {
        let wait = async {
            loop {
                let snapshot = self.watch.next().await.expect("the shim lives");
                if let Some(state) = snapshot.containers.into_iter().find(|c| c.id == id && done(c)) {
                    return state;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time")
    }

    async fn exec(&self, id: &str, args: &[&str]) -> (i32, String) {
        let (read, write) = pipe().expect("a pipe");
        let exec = Exec {
            id: id.into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            tty: false,
            stdio: [false, true, true],
        };
        let fds = [write.as_fd(), write.as_fd()];
        let (mut connection, _) = self.shim.ask_with(&Request::Exec(exec), &fds).await.expect("runs");
        drop(write);
        let (reply, _) = connection.receive().await.expect("an end");
        let Reply::Exited(code) = reply else { panic!("{reply:?}") };
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).expect("reads");
        (code, text)
    }

    async fn finish(self) {
        self.shim.ask(&Request::Shutdown).await.expect("shuts down");
        assert!(Hierarchies::get().dir("memory", &self.cgroup).is_some_and(|d| !d.exists()), "cgroups are gone");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "no mount is left");
    }
}

fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|l| l.strip_prefix("CapPrm:")).expect("a line");
    u64::from_str_radix(line.trim(), 16).expect("a number")
}

fn texts(path: &Path) -> BTreeSet<String> {
    let log = std::fs::read_to_string(path).expect("a log");
    log.lines().map(|l| l.splitn(4, ' ').skip(1).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn a_container_runs_logs_and_ends_with_its_code() {
    let mut pod = Fixture::new(Sandbox::default()).await;
    pod.run("c1", false, json!({"name": "a", "command": ["sh", "-c", "echo out; echo err >&2; exit 7"]})).await;
    let state = pod.until("c1", ContainerState::exited).await;
    assert_eq!((state.exit_code, state.signal, state.oom_killed), (7, 0, false));
    assert_eq!(texts(&pod.log("c1")), BTreeSet::from(["stdout F out".to_owned(), "stderr F err".to_owned()]));
    pod.shim.ask(&Request::Remove { id: "c1".into() }).await.expect("removes");
    pod.finish().await;
}

#[tokio::test]
async fn a_container_is_confined_also_in_exec() {
    let mut pod = Fixture::new(Sandbox::default()).await;
    let tight = json!({"seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"add": ["SYS_CHROOT"]}});
    pod.run("c1", false, json!({"name": "a", "command": ["sleep", "1000"], "securityContext": tight})).await;
    pod.until("c1", ContainerState::running).await;
    let (code, text) = pod.exec("c1", &["cat", "/proc/self/status"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().any(|l| l.starts_with("Seccomp:") && l.ends_with('2')), "a filter is in force: {text}");
    assert!(text.lines().any(|l| l.starts_with("CapEff:") && !l.ends_with("1ffffffffff")), "{text}");
    let (code, text) = pod.exec("c1", &["unshare", "-U", "true"]).await;
    assert!(code != 0 && text.contains("not permitted"), "{text}");
    assert_eq!(pod.exec("c1", &["sh", "-c", "exit 3"]).await.0, 3);
    let (code, text) = pod.exec("c1", &["sh", "-c", "cat /proc/1/cmdline; ls /proc/self/fd"]).await;
    assert!(code == 0 && text.starts_with("sleep"), "{text}");
    pod.shim.ask(&Request::Signal { id: "c1".into(), signal: 9 }).await.expect("signals");
    let state = pod.until("c1", ContainerState::exited).await;
    assert_eq!((state.exit_code, state.signal), (137, 9));
    pod.finish().await;
}

#[tokio::test]
async fn running_out_of_memory_is_told_as_such() {
    let mut pod = Fixture::new(Sandbox::default()).await;
    let hog =
        json!({"name": "a", "command": ["sh", "-c", "tail /dev/zero"], "resources": {"limits": {"memory": "16Mi"}}});
    pod.run("c1", false, hog).await;
    let state = pod.until("c1", ContainerState::exited).await;
    assert!(state.oom_killed, "{state:?}");
    pod.finish().await;
}

#[tokio::test]
async fn a_missing_program_is_refused_and_leaves_nothing() {
    let pod = Fixture::new(Sandbox::default()).await;
    busybox(pod.dir.path());
    pod.write_bundle("c1", json!({"name": "a", "command": ["nope"]}));
    let create = Create {
        id: "c1".into(),
        root: Root::Overlay(vec![pod.dir.path().join("layer")]),
        log: pod.log("c1"),
        tty: false,
        stdin: false,
        stdin_once: false,
        oom_score_adj: 0,
        cgroups_writable: false,
    };
    let error = pod.shim.ask(&Request::Create(create)).await.expect_err("refused");
    assert_eq!(error.to_string(), "exec: \"nope\": executable file not found in $PATH");
    pod.finish().await;
}

#[tokio::test]
async fn a_terminal_is_one() {
    let mut pod = Fixture::new(Sandbox::default()).await;
    pod.run(
        "c1",
        true,
        json!({"name": "a", "tty": true, "command": ["sh", "-c", "test -t 0 && echo terminal; exit 5"]}),
    )
    .await;
    let state = pod.until("c1", ContainerState::exited).await;
    assert_eq!(state.exit_code, 5);
    assert!(texts(&pod.log("c1")).iter().any(|l| l.starts_with("stdout F terminal")), "{:?}", texts(&pod.log("c1")));
    pod.finish().await;
}

#[tokio::test]
async fn containers_share_what_the_pod_says() {
    let mut pod = Fixture::new(Sandbox { share_process_namespace: true, ..Sandbox::default() }).await;
    pod.run("c1", false, json!({"name": "a", "command": ["sh", "-c", "cat /proc/sys/kernel/hostname; sleep 1000"]}))
        .await;
    pod.until("c1", ContainerState::running).await;
    let (code, text) = pod.exec("c1", &["cat", "/proc/sys/kernel/hostname"]).await;
    assert_eq!((code, text.as_str()), (0, "pod\n"));
    pod.finish().await;
}
