//! A bound on the processor time of some threads of a process, by a control group of their own.
//!
//! Version 1 takes threads as they are (`tasks`). On version 2 the process moves to a group, and the threads to a
//! *threaded* group below it. Either way other threads of the process, which have to answer while these are slowed, stay
//! without a bound.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{Hierarchies, Limits};

/// The kernel takes no less.
const QUOTA_MIN: Duration = Duration::from_millis(1);
const PERIOD_MIN: Duration = Duration::from_millis(1);
const PERIOD_MAX: Duration = Duration::from_secs(1);

/// Threads whose processor time can be bounded. Dropping it lifts the bound.
#[derive(Debug)]
pub struct CpuQuota {
    files: Files,
    group: String,
    folder: PathBuf,
}

#[derive(Debug)]
enum Files {
    V1 { quota: File, period: File, last_period: Duration },
    V2(File),
}

impl CpuQuota {
    /// Puts `threads` of process `pid` into the group of this name, which nobody else uses.
    pub fn create(hierarchies: &Hierarchies, group: &str, pid: i32, threads: &[i32]) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "no cgroup hierarchy has the cpu controller");
        let folder = hierarchies.dir("cpu", group).ok_or_else(none)?;
        let (folder, files) = if hierarchies.unified() {
            hierarchies.create(group, &Limits::default())?;
            fs::write(folder.join("cgroup.procs"), pid.to_string())?;
            let threaded = folder.join("vcpus");
            fs::create_dir_all(&threaded)?;
            fs::write(threaded.join("cgroup.type"), "threaded")?;
            fs::write(folder.join("cgroup.subtree_control"), "+cpu")?;
            join(&threaded.join("cgroup.threads"), threads)?;
            let files = Files::V2(open(&threaded.join("cpu.max"))?);
            (threaded, files)
        } else {
            fs::create_dir_all(&folder)?;
            join(&folder.join("tasks"), threads)?;
            let (quota, period) = (open(&folder.join("cpu.cfs_quota_us"))?, open(&folder.join("cpu.cfs_period_us"))?);
            (folder, Files::V1 { quota, period, last_period: Duration::ZERO })
        };
        Ok(Self { files, group: group.to_owned(), folder })
    }

    /// From now on the threads together may use `quota` of processor time in each `period`, beginning now.
    pub fn limit(&mut self, quota: Duration, period: Duration) -> io::Result<()> {
        let quota = quota.max(QUOTA_MIN).as_micros();
        let wanted = period.clamp(PERIOD_MIN, PERIOD_MAX);
        match &mut self.files {
            Files::V2(max) => put(max, &format!("{quota} {}", wanted.as_micros())),
            Files::V1 { quota: file, period, last_period } => {
                if *last_period != wanted {
                    put(period, &wanted.as_micros().to_string())?;
                    *last_period = wanted;
                }
                put(file, &quota.to_string())
            }
        }
    }

    /// The threads may use what there is.
    pub fn lift(&self) -> io::Result<()> {
        match &self.files {
            Files::V2(max) => put(max, "max"),
            Files::V1 { quota, .. } => put(quota, "-1"),
        }
    }

    /// Removes the group, once its threads have ended. Returns false while they have not.
    pub fn remove(&self, hierarchies: &Hierarchies) -> bool {
        fs::remove_dir(&self.folder).is_ok()
            && (!hierarchies.unified() || hierarchies.dir("cpu", &self.group).is_none_or(|d| fs::remove_dir(d).is_ok()))
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        // The group may be gone with the machine.
        let _ = self.lift();
        let _ = self.remove(Hierarchies::get());
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn put(file: &File, text: &str) -> io::Result<()> {
    file.write_at(text.as_bytes(), 0).map(|_| ())
}

fn join(file: &Path, threads: &[i32]) -> io::Result<()> {
    threads.iter().try_for_each(|thread| fs::write(file, thread.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_gets_a_threaded_group_and_both_numbers_in_one_write() {
        let dir = std::env::temp_dir().join(format!("cpu-quota-{}", std::process::id()));
        let vcpus = dir.join("vm/vcpus");
        fs::create_dir_all(&vcpus).expect("a folder");
        fs::write(vcpus.join("cpu.max"), "max 100000").expect("a file");
        let line = format!("30 23 0:26 / {} rw - cgroup2 cgroup2 rw\n", dir.display());
        let hierarchies = Hierarchies::parse(&line);
        let mut quota = CpuQuota::create(&hierarchies, "/vm", 7, &[8, 9]).expect("created");
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("written");
        assert_eq!((read("vm/cgroup.procs").as_str(), read("vm/vcpus/cgroup.type").as_str()), ("7", "threaded"));
        assert_eq!(read("vm/vcpus/cgroup.threads"), "9");
        quota.limit(Duration::from_micros(10), Duration::from_millis(20)).expect("written");
        assert!(read("vm/vcpus/cpu.max").starts_with("1000 20000"));
        quota.lift().expect("written");
        assert!(read("vm/vcpus/cpu.max").starts_with("max"));
        fs::remove_dir_all(dir).expect("removed");
    }
}
