//! An engine per test: own directory, port, ranges; gone without a trace at the end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub use crate::common::{command, eventually, output, run};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running (or stopped) engine under test.
pub struct Engine {
    dir: tempfile::TempDir,
    ranges: (String, String),
    child: Option<Child>,
    /// Further arguments of `up`.
    pub options: Vec<String>,
    /// What `up` printed until it was ready.
    pub greeting: String,
}

/// The binary under test.
pub fn mycelium() -> &'static str {
    env!("CARGO_BIN_EXE_mycelium")
}

/// The example service, built beside it.
pub fn platform_binary() -> PathBuf {
    let path = Path::new(mycelium()).with_file_name("symphainy-platform");
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first (make test does)", path.display());
    path
}

/// Where `scripts/setup.sh` keeps what it has made for tests.
pub fn cache() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mycelium")
}

impl Engine {
    /// A directory and ranges of its own; nothing is started yet.
    pub fn prepare() -> Self {
        // What a run that was killed has left behind is passed over.
        let taken = run(command("ip").args(["-4", "-o", "addr"]));
        let mut slots = (0..100).map(|_| (std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed)) % 100);
        let slot = slots.find(|slot| !taken.contains(&format!(" 10.{}.", 50 + slot))).expect("a free range");
        let ranges = (format!("10.{}.0.0/16", 50 + slot), format!("10.{}.0.0/16", 150 + slot));
        let dir = tempfile::Builder::new().prefix("mycelium-test-").tempdir().expect("temporary directory");
        Self { dir, ranges, child: None, options: Vec::new(), greeting: String::new() }
    }

    /// A running engine.
    pub fn start() -> Self {
        let mut engine = Self::prepare();
        engine.up();
        engine
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("admin.kubeconfig")
    }

    /// The command line of `up`, for tests that expect it to fail.
    pub fn up_command(&self) -> Command {
        let mut command = command(mycelium());
        command.args(["up", "--listen", "127.0.0.1:0", "--node-name", "host-1"]);
        command.arg("--data-dir").arg(self.dir());
        command.args(["--ingress-http", "127.0.0.1:0", "--ingress-https", "127.0.0.1:0"]);
        command.args(["--pod-cidr", &self.ranges.0, "--service-cidr", &self.ranges.1]).args(&self.options);
        command
    }

    /// Starts the engine and waits until it says that it is ready.
    pub fn up(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir().join("test.log")).expect("log");
        let mut child = self.up_command().stdout(Stdio::piped()).stderr(log).spawn().expect("mycelium up");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        self.greeting.clear();
        for line in lines.by_ref() {
            let line = line.expect("text");
            self.greeting.push_str(&line);
            self.greeting.push('\n');
            if line.starts_with("ready in") {
                // Keeps the pipe open and empty.
                std::thread::spawn(move || lines.for_each(drop));
                self.child = Some(child);
                return;
            }
        }
        let log = std::fs::read_to_string(self.dir().join("test.log")).unwrap_or_default();
        panic!("the engine did not become ready: {:?}\n{}{log}", child.wait(), self.greeting);
    }

    /// The engine's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// `kill -9`: the engine is gone at once, its pods are not.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// SIGTERM, and waits for a clean exit.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().expect("running");
        run(command("kill").args(["-TERM", &child.id().to_string()]));
        let status = child.wait().expect("wait");
        assert!(status.success(), "the engine ended with {status}");
    }

    /// `mycelium down`.
    pub fn down(&mut self) -> String {
        let text = run(command(mycelium()).arg("down").arg("--data-dir").arg(self.dir()));
        if let Some(mut child) = self.child.take() {
            child.wait().expect("wait");
        }
        text
    }

    /// The command `kubectl ARGS` against this engine.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = command("kubectl");
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir()).args(args);
        command
    }

    /// Runs kubectl and returns its output; panics if it fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        run(&mut self.kubectl_command(args))
    }

    /// Runs kubectl, which must fail, and returns what it says on stderr.
    pub fn kubectl_fails(&self, args: &[&str]) -> String {
        let output = output(&mut self.kubectl_command(args));
        assert!(!output.status.success(), "kubectl {args:?} was expected to fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `kubectl apply` of a manifest given as text.
    pub fn apply(&self, manifest: &str) -> String {
        let file = tempfile::NamedTempFile::new_in(self.dir()).expect("file");
        // The marker keeps kubectl from taking a flow mapping for JSON.
        std::fs::write(file.path(), format!("---\n{manifest}")).expect("write");
        self.kubectl(&["apply", "-f", &file.path().display().to_string()])
    }

    /// One value of an object, by JSONPath.
    pub fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "--ignore-not-found", "-o", &format!("jsonpath={path}")])
    }

    /// Waits until the JSONPath of an object has the value.
    pub fn wait_value(&self, object: &str, path: &str, expected: &str) {
        eventually(&format!("{object} {path} = {expected}"), || {
            let output = output(&mut self.kubectl_command(&["get", object, "-o", &format!("jsonpath={path}")]));
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            if found == expected {
                return Ok(());
            }
            let described = self.kubectl_command(&["describe", object]).output().map(|o| o.stdout).unwrap_or_default();
            Err(format!("is {found:?}\n{}", String::from_utf8_lossy(&described)))
        });
    }

    /// Runs `mycelium ARGS` with this engine's data directory in the environment of kubeconfig.
    pub fn mycelium(&self, args: &[&str]) -> String {
        run(command(mycelium()).env("KUBECONFIG", self.kubeconfig()).args(args))
    }

    /// Imports an image of one static binary.
    pub fn import_binary(&self, binary: &Path, name: &str) {
        let dir = self.dir().display().to_string();
        self.mycelium(&["image", "import", "--data-dir", &dir, "--binary", &binary.display().to_string(), name]);
    }

    /// Makes the image `busybox:test`: Debian's static busybox with a link for every applet.
    pub fn import_busybox(&self) {
        let root = tempfile::tempdir().expect("temporary directory");
        let bin = root.path().join("bin");
        std::fs::create_dir_all(&bin).expect("bin");
        for folder in ["etc", "tmp", "var"] {
            std::fs::create_dir(root.path().join(folder)).expect("folder");
        }
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
            .expect("passwd");
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for applet in run(command("/bin/busybox").arg("--list")).lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("link");
        }
        let tar = self.dir().join("busybox.tar");
        run(command("tar").arg("-C").arg(root.path()).arg("-cf").arg(&tar).arg("."));
        let dir = self.dir().display().to_string();
        let tar = tar.display().to_string();
        self.mycelium(&["image", "import", "--data-dir", &dir, "--cmd", "/bin/sh", &tar, "busybox:test"]);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir().join("test.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- engine log\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        // Also after a failure: a test leaves nothing behind.
        let _ = command(mycelium()).arg("down").arg("--data-dir").arg(self.dir()).output();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
