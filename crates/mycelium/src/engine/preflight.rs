//! What the machine must have, and what to do when it has not.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Error, Result, anyhow};
use mycelium_net::NetError;

/// One thing that was looked for.
struct Finding {
    fault: String,
    remedy: Cow<'static, str>,
}

/// The oldest kernel on which everything the engine uses is known to be there.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Fails with everything that is missing, each with its remedy.
pub fn check() -> Result<()> {
    let mut findings = Vec::new();
    if !rustix::process::geteuid().is_root() {
        findings.push(Finding {
            fault: "not run as root".to_owned(),
            remedy: "run it with sudo: pods need namespaces, cgroups and network interfaces".into(),
        });
    }
    findings.extend(kernel());
    findings.extend(file_systems(&std::fs::read_to_string("/proc/filesystems").unwrap_or_default()));
    findings.extend(cgroups());
    findings.extend(tool("nft", "install it: apt-get install nftables"));
    if findings.is_empty() { Ok(()) } else { Err(not_ready(&findings)) }
}

fn not_ready(findings: &[Finding]) -> Error {
    let list: Vec<String> = findings.iter().map(|f| format!("  - {}; {}", f.fault, f.remedy)).collect();
    anyhow!("this machine is not ready for an engine:\n{}", list.join("\n"))
}

/// Why the pod network could not be set up: what the kernel lacks, where that is the reason. Trying everything takes a
/// while, so that it is done only after a failure. Blocking.
pub fn network(error: NetError) -> Error {
    let missing = match error {
        NetError::Netlink { .. } | NetError::Io { .. } | NetError::Nft(_) => mycelium_net::check(),
        _ => Vec::new(),
    };
    let findings: Vec<Finding> = missing
        .into_iter()
        .map(|missing| Finding { fault: format!("it lacks {}", missing.what), remedy: missing.remedy.into() })
        .collect();
    let error = Error::new(error).context("the pod network cannot be set up");
    if findings.is_empty() { error } else { error.context(not_ready(&findings)) }
}

fn kernel() -> Option<Finding> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next()?, parts.next()?);
    (version < KERNEL_MIN).then(|| Finding {
        fault: format!("the kernel is {}", release.trim()),
        remedy: "boot Linux 5.15 or newer (Debian 12 has 6.1)".into(),
    })
}

fn file_systems(known: &str) -> Option<Finding> {
    let has = |name: &str| known.lines().any(|line| line.split_whitespace().last() == Some(name));
    // A module that is not loaded yet is not listed; the directory tells that it can be.
    let loadable = Path::new("/sys/module/overlay").exists() || overlay_module_installed();
    (!has("overlay") && !loadable).then(|| Finding {
        fault: "the kernel has no overlay file system".to_owned(),
        remedy: "load it (modprobe overlay) or boot a kernel with CONFIG_OVERLAY_FS".into(),
    })
}

fn overlay_module_installed() -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    std::fs::read_to_string(modules).is_ok_and(|text| text.contains("/overlay.ko"))
}

fn cgroups() -> Option<Finding> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(2);
        let kind = fields.next();
        let options = fields.next().unwrap_or_default();
        kind == Some("cgroup") && options.split(',').any(|o| o == "memory")
            || kind == Some("cgroup2") && line.contains(" /sys/fs/cgroup ")
    });
    (!mounted).then(|| Finding {
        fault: "no cgroup hierarchy with the memory controller is mounted".to_owned(),
        remedy: "mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup".into(),
    })
}

fn tool(name: &str, remedy: &'static str) -> Option<Finding> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin".into(), "/sbin".into()];
    let found = std::env::split_paths(&path).chain(extra).any(|dir| dir.join(name).is_file());
    (!found).then(|| Finding { fault: format!("the tool `{name}` is missing"), remedy: remedy.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_comes_with_its_remedy() {
        let finding = tool("no-such-tool-at-all", "install it").unwrap();
        assert!(finding.fault.contains("no-such-tool-at-all"));
        assert!(tool("sh", "").is_none());
    }

    #[test]
    fn overlay_is_found_when_listed() {
        assert!(file_systems("nodev\tproc\nnodev\toverlay\n").is_none());
    }
}
