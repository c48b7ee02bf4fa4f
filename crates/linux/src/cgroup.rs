//! Control groups, where version 1 (also hybrid) and version 2 differ from each other.
//!
//! A group is named by its path from the root of every hierarchy: `/mycelium-1a2b3c/burstable/pod…`. On version 1
//! the same path is used below each controller's mount point; on version 2 there is one tree.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Controllers bound to it; empty for a named hierarchy without controllers.
    pub controllers: BTreeSet<String>,
    /// Whether this is the unified hierarchy of version 2.
    pub unified: bool,
}

/// Every cgroup hierarchy of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies(Vec<Hierarchy>);

/// Limits of a group above containers (a pod, a quality-of-service class).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight in the scale of version 1 (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time per 100 ms.
    pub cpu_quota_us: Option<i64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

const CPU_PERIOD_US: i64 = 100_000;
const CONTROLLERS_V1: [&str; 10] =
    ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "perf_event"];

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since it was made, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that it has now, file cache included.
    pub memory_bytes: u64,
    /// Of these, what the kernel cannot take back at once: without the file cache that was not used of late.
    pub working_set_bytes: u64,
}

impl Hierarchies {
    /// Those of this machine, read once.
    pub fn get() -> &'static Self {
        static FOUND: OnceLock<Hierarchies> = OnceLock::new();
        FOUND.get_or_init(|| Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
    }

    /// Reads a `mountinfo` file (proc(5)).
    pub fn parse(mountinfo: &str) -> Self {
        let mut found = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(mount), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
            let options = right.split(' ').nth(2).unwrap_or_default();
            let unified = kind == "cgroup2";
            if !unified && kind != "cgroup" {
                continue;
            }
            let controllers =
                options.split(',').filter(|o| CONTROLLERS_V1.contains(o)).map(str::to_owned).collect::<BTreeSet<_>>();
            found.push(Hierarchy { mount: PathBuf::from(mount), controllers, unified });
        }
        Self(found)
    }

    /// Whether version 2 carries the controllers, that is, no version 1 hierarchy has any.
    pub fn unified(&self) -> bool {
        self.0.iter().all(|h| h.unified || h.controllers.is_empty())
    }

    fn of(&self, controller: &str) -> Option<&Hierarchy> {
        if self.unified() {
            self.0.iter().find(|h| h.unified)
        } else {
            self.0.iter().find(|h| h.controllers.contains(controller))
        }
    }

    /// The hierarchies that hold groups of ours: those with controllers, or the unified one.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        let unified = self.unified();
        self.0.iter().filter(move |h| if unified { h.unified } else { !h.controllers.is_empty() })
    }

    /// The folder of `group` in the hierarchy of `controller`.
    pub fn dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        self.of(controller).map(|h| h.mount.join(group.trim_start_matches('/')))
    }

    /// Every `cgroup.procs` file of `group` that exists.
    pub fn procs_files(&self, group: &str) -> Vec<PathBuf> {
        let group = group.trim_start_matches('/');
        self.used().map(|h| h.mount.join(group).join("cgroup.procs")).filter(|p| p.exists()).collect()
    }

    /// Creates `group` and sets its limits.
    pub fn create(&self, group: &str, limits: &Limits) -> io::Result<()> {
        let unified = self.unified();
        for controller in ["cpu", "memory"] {
            let Some(hierarchy) = self.of(controller) else { continue };
            if unified {
                enable_down_to(&hierarchy.mount, group)?;
            } else {
                fs::create_dir_all(hierarchy.mount.join(group.trim_start_matches('/')))?;
            }
        }
        self.set(group, limits)
    }

    /// Sets the limits of a group that exists.
    pub fn set(&self, group: &str, limits: &Limits) -> io::Result<()> {
        for (controller, file, value) in limit_files(limits, self.unified()) {
            if let Some(dir) = self.dir(controller, group) {
                fs::write(dir.join(file), value)?;
            }
        }
        Ok(())
    }

    /// How many processes of `group` the kernel has killed for want of memory.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let file = if self.unified() { "memory.events" } else { "memory.oom_control" };
        let Some(dir) = self.dir("memory", group) else { return 0 };
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        counter(&text, "oom_kill")
    }

    /// What `group` has used so far, if it is there.
    pub fn usage(&self, group: &str) -> Option<Usage> {
        let read = |controller: &str, file: &str| fs::read_to_string(self.dir(controller, group)?.join(file)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok();
        let unified = self.unified();
        let cpu_ns = if unified {
            counter(&read("cpu", "cpu.stat")?, "usage_usec") * 1000
        } else {
            number(read("cpuacct", "cpuacct.usage")?)?
        };
        let (file, idle) = if unified {
            ("memory.current", "inactive_file")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file")
        };
        let memory_bytes = number(read("memory", file)?)?;
        let idle_bytes = counter(&read("memory", "memory.stat")?, idle);
        Some(Usage { cpu_ns, memory_bytes, working_set_bytes: memory_bytes.saturating_sub(idle_bytes) })
    }

    /// How many processes and threads `group` and what is below it have.
    pub fn processes(&self, group: &str) -> u64 {
        let read = |dir: PathBuf| fs::read_to_string(dir.join("pids.current")).ok()?.trim().parse().ok();
        self.dir("pids", group).and_then(read).unwrap_or(0)
    }

    /// Process ids in `group` itself.
    pub fn pids(&self, group: &str) -> Vec<i32> {
        let Some(dir) = self.dir("pids", group).or_else(|| self.dir("memory", group)) else { return Vec::new() };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Kills every process in `group` and below it.
    pub fn kill(&self, group: &str) {
        let Some(dir) = self.dir("pids", group).or_else(|| self.dir("memory", group)) else { return };
        if self.unified() && fs::write(dir.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        kill_below(&dir);
    }

    /// Removes `group` and every group below it, in every hierarchy. Waits a little for processes that are dying.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        let group = group.trim_start_matches('/');
        if group.is_empty() {
            return Ok(());
        }
        // Also where there are no controllers: a service manager's own hierarchy may hold processes of the group.
        for hierarchy in &self.0 {
            remove_tree(&hierarchy.mount.join(group))?;
        }
        Ok(())
    }

    /// Creates `group` in every hierarchy with controllers, without limits. Returns the names that containers know the
    /// hierarchies by (`cpu,cpuacct`), each with the group's folder.
    pub fn create_everywhere(&self, group: &str) -> io::Result<Vec<(String, PathBuf)>> {
        let group = group.trim_start_matches('/');
        let mut folders = Vec::new();
        for hierarchy in self.used() {
            let folder = hierarchy.mount.join(group);
            fs::create_dir_all(&folder)?;
            let name = hierarchy.mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
            folders.push((name, folder));
        }
        Ok(folders)
    }

    /// Moves this process to `group` wherever a service manager put it into the group of a service or session, so that
    /// stopping the service does not end it. `membership` is the content of `/proc/self/cgroup`.
    pub fn leave_service(&self, membership: &str, group: &str) -> io::Result<()> {
        let group = group.trim_start_matches('/');
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            if !path.split('/').any(|part| part.ends_with(".service") || part.ends_with(".scope")) {
                continue;
            }
            let first = controllers.split(',').next().unwrap_or_default();
            let named = first.strip_prefix("name=");
            let found = self.0.iter().find(|h| match named {
                Some(name) => h.controllers.is_empty() && !h.unified && h.mount.ends_with(name),
                None if first.is_empty() => h.unified,
                None => h.controllers.contains(first),
            });
            if let Some(hierarchy) = found {
                let folder = hierarchy.mount.join(group);
                fs::create_dir_all(&folder)?;
                fs::write(folder.join("cgroup.procs"), "0")?;
            }
        }
        Ok(())
    }
}

fn limit_files(limits: &Limits, unified: bool) -> Vec<(&'static str, &'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        if unified {
            files.push(("cpu", "cpu.weight", weight(shares).to_string()));
        } else {
            files.push(("cpu", "cpu.shares", shares.to_string()));
        }
    }
    if let Some(quota) = limits.cpu_quota_us {
        if unified {
            files.push(("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}")));
        } else {
            files.push(("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
            files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
        }
    }
    if let Some(bytes) = limits.memory_bytes {
        files.push(("memory", if unified { "memory.max" } else { "memory.limit_in_bytes" }, bytes.to_string()));
    }
    files
}

/// Version 1's shares (2 to 262144) in version 2's scale (1 to 10000).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The number after `name` in a file of `name number` lines.
fn counter(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name))
        .and_then(|(_, n)| n.trim().parse().ok())
        .unwrap_or(0)
}

fn enable_down_to(mount: &Path, group: &str) -> io::Result<()> {
    let mut dir = mount.to_owned();
    for part in group.trim_start_matches('/').split('/') {
        for controller in ["cpu", "memory", "pids", "cpuset", "io"] {
            // A controller that is missing shows when a limit that needs it is written.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn kill_below(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            kill_below(&entry.path());
        }
    }
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.trim().parse::<i32>().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let mut wait = Duration::from_micros(200);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Busy: its processes are dead or dying, but not yet reaped.
            Err(error) if wait > Duration::from_millis(200) => return Err(error),
            Err(_) => {
                kill_below(dir);
                std::thread::sleep(wait);
                wait *= 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_version_1_hybrid_from_version_2() {
        let hybrid = Hierarchies::parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert!(!hybrid.unified());
        assert_eq!(hybrid.dir("cpuacct", "/a/b"), Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a/b")));
        assert_eq!(hybrid.used().count(), 2);
        let pure = Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n");
        assert!(pure.unified());
        assert_eq!(pure.dir("memory", "/a"), Some(PathBuf::from("/sys/fs/cgroup/a")));
    }

    #[test]
    fn a_process_leaves_the_group_of_a_service_only() {
        let dir = std::env::temp_dir().join(format!("cgroup-test-{}", std::process::id()));
        let hierarchy = |name: &str, controllers: &[&str], unified| Hierarchy {
            mount: dir.join(name),
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
            unified,
        };
        let all = Hierarchies(vec![hierarchy("memory", &["memory"], false), hierarchy("systemd", &[], false)]);
        let membership = "2:memory:/user\n1:name=systemd:/system.slice/mycelium.service\n";
        all.leave_service(membership, "/mycelium-1/shims").expect("moves");
        assert!(dir.join("systemd/mycelium-1/shims/cgroup.procs").exists());
        assert!(!dir.join("memory").exists());
        fs::remove_dir_all(dir).expect("removes");
    }

    #[test]
    fn weights_span_the_whole_scale() {
        assert_eq!((weight(0), weight(2), weight(1024), weight(262_144), weight(u64::MAX)), (1, 1, 39, 10_000, 10_000));
        assert_eq!(counter("low 0\noom 3\noom_kill 2\n", "oom_kill"), 2);
    }
}
