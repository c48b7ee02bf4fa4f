//! The OCI runtime specification of a container: a pure function of the pod, the image and what was resolved before.

use std::collections::BTreeSet;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use serde_json::{Value, json};

use super::expand::expand;
use super::users::User;
use super::{resources, seccomp};
use crate::image::ImageConfig;
use crate::shim::DEFAULT_PATH;

/// Capabilities of an ordinary container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability, in the order of its bit (capabilities(7)).
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A folder or file of the machine that the container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the machine (in the shim's view of it).
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// Not writable from inside.
    pub read_only: bool,
    /// Mounts that appear on the machine later appear inside as well.
    pub follow: bool,
}

/// What the machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Capabilities that this process may pass on, as a bit set.
    pub capabilities: u64,
    /// Whether control groups are version 2.
    pub unified_cgroups: bool,
    /// Device nodes for privileged containers: path, kind, major, minor.
    pub devices: Vec<(String, char, u32, u32)>,
}

/// Everything the specification depends on.
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// Variables that the pod sets, in order.
    pub env: &'a [(String, String)],
    /// Folders and files to bind, any order.
    pub binds: &'a [Bind],
    /// Who it runs as.
    pub user: &'a User,
    /// Its cgroup.
    pub cgroup: String,
    /// The process that holds the pod's process namespace, if containers share one.
    pub pause: Option<i32>,
    /// A profile read from the machine, for `seccompProfile.type: Localhost`.
    pub local_seccomp: Option<Value>,
    /// The machine.
    pub machine: &'a Machine,
}

/// Why there is no specification.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the pod nor the image says what to run.
    #[error("failed to generate container spec: no command specified")]
    NoCommand,
    /// A capability nobody knows.
    #[error("unknown capability \"{0}\"")]
    Capability(String),
}

/// Builds the specification.
pub fn build(input: &Input<'_>) -> Result<Value, SpecError> {
    let context = input.container.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let env = environment(input);
    let args = command(input)?;
    let capabilities = capabilities(context, privileged, input.machine)?;
    let cwd = [input.container.working_dir.as_deref(), Some(input.image.working_dir.as_str()), Some("/")];
    let cwd = cwd.into_iter().flatten().find(|dir| !dir.is_empty()).unwrap_or("/");
    let sets: Vec<&String> = capabilities.iter().collect();
    let mut process = json!({
        "terminal": input.container.tty.unwrap_or(false),
        "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": {"bounding": sets, "effective": sets, "permitted": sets},
    });
    // Left out when false: a profile must then be loaded before the capabilities go.
    if context.and_then(|c| c.allow_privilege_escalation) == Some(false) {
        process["noNewPrivileges"] = true.into();
    }
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": input.cgroup,
        "resources": resources::to_oci(input.container.resources.as_ref(), privileged),
    });
    let unmasked = context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    if !privileged && !unmasked {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READONLY_PATHS);
    }
    if let Some(profile) = seccomp_profile(input, privileged, &capabilities) {
        linux["seccomp"] = profile;
    }
    if privileged {
        linux["devices"] = devices(input.machine);
    }
    Ok(json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false)},
        "mounts": mounts(input, privileged),
        "process": process,
        "linux": linux,
    }))
}

/// The image's variables, overridden and followed by the pod's.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let own = input.image.env.iter().filter_map(|e| e.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (key, value) in own.chain(input.env.iter().cloned()) {
        match env.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => env.push((key, value)),
        }
    }
    if !env.iter().any(|(key, _)| key == "PATH") {
        env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    if input.container.tty == Some(true) && !env.iter().any(|(key, _)| key == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn command(input: &Input<'_>) -> Result<Vec<String>, SpecError> {
    let lookup = |name: &str| input.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let given = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, lookup)).collect()
    };
    let (command, args) = (given(&input.container.command), given(&input.container.args));
    let mut words = if command.is_empty() { input.image.entrypoint.clone() } else { command.clone() };
    if args.is_empty() && command.is_empty() {
        words.extend(input.image.cmd.iter().cloned());
    }
    words.extend(args);
    if words.is_empty() { Err(SpecError::NoCommand) } else { Ok(words) }
}

fn capabilities(
    context: Option<&SecurityContext>,
    privileged: bool,
    machine: &Machine,
) -> Result<BTreeSet<String>, SpecError> {
    let mut set: BTreeSet<String> = if privileged {
        ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    } else {
        DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    };
    // Without the device controller of version 1, the ability to make device nodes would open the machine's disks.
    if machine.unified_cgroups && !privileged {
        set.remove("CAP_MKNOD");
    }
    if let Some(wanted) = context.and_then(|c| c.capabilities.as_ref()).filter(|_| !privileged) {
        let (add, drop) = (wanted.add.iter().flatten(), wanted.drop.iter().flatten());
        let drop: Vec<String> = drop.map(|c| canonical(c)).collect::<Result<_, _>>()?;
        let add: Vec<String> = add.map(|c| canonical(c)).collect::<Result<_, _>>()?;
        if add.iter().any(|c| c == "ALL") {
            set.extend(ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()));
        }
        if drop.iter().any(|c| c == "ALL") {
            set.clear();
        }
        set.extend(add.into_iter().filter(|c| c != "ALL"));
        drop.iter().for_each(|c| {
            set.remove(c);
        });
    }
    set.retain(|name| {
        ALL_CAPABILITIES.iter().position(|c| c == name).is_some_and(|bit| machine.capabilities & (1 << bit) != 0)
    });
    Ok(set)
}

fn canonical(name: &str) -> Result<String, SpecError> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(upper);
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if ALL_CAPABILITIES.contains(&full.as_str()) { Ok(full) } else { Err(SpecError::Capability(name.to_owned())) }
}

/// Network, IPC and host name belong to the shim already: what is not listed is inherited.
fn namespaces(input: &Input<'_>) -> Value {
    let mut list = vec![json!({"type": "mount"})];
    let host_pid = input.pod.spec.as_ref().and_then(|s| s.host_pid).unwrap_or(false);
    match (host_pid, input.pause) {
        (true, _) => {}
        (false, Some(pid)) => list.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        (false, None) => list.push(json!({"type": "pid"})),
    }
    if input.machine.unified_cgroups {
        list.push(json!({"type": "cgroup"}));
    }
    list.into()
}

fn seccomp_profile(input: &Input<'_>, privileged: bool, capabilities: &BTreeSet<String>) -> Option<Value> {
    if privileged {
        return None;
    }
    let own = input.container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let pod =
        input.pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.seccomp_profile.as_ref());
    match own.or(pod).map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => Some(seccomp::default_profile(capabilities)),
        Some("Localhost") => input.local_seccomp.clone(),
        _ => None,
    }
}

fn devices(machine: &Machine) -> Value {
    let device = |(path, kind, major, minor): &(String, char, u32, u32)| json!({"path": path, "type": kind.to_string(), "major": major, "minor": minor});
    machine.devices.iter().map(device).collect()
}

fn mounts(input: &Input<'_>, privileged: bool) -> Vec<Value> {
    let mount = |kind: &str, target: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let access = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
    ];
    // Of version 1 the shim makes a view, which is among the binds.
    if input.machine.unified_cgroups {
        list.push(mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", access]));
    }
    let mut binds: Vec<&Bind> = input.binds.iter().collect();
    // A folder before what lies in it.
    binds.sort_by_key(|bind| bind.target.trim_end_matches('/').matches('/').count());
    for bind in binds {
        list.retain(|m| m["destination"] != bind.target.as_str() || bind.target == "/dev");
        let propagation = if bind.follow { "rslave" } else { "rprivate" };
        let access = if bind.read_only { "ro" } else { "rw" };
        list.push(json!({"destination": bind.target, "type": "bind", "source": bind.source,
                         "options": ["rbind", propagation, access]}));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { capabilities: (1 << 41) - 1, unified_cgroups: false, devices: Vec::new() }
    }

    fn spec(container: Value, image: ImageConfig, env: &[(String, String)]) -> Result<Value, SpecError> {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container]}})).expect("a pod");
        let container = pod.spec.as_ref().expect("a spec").containers[0].clone();
        build(&Input {
            pod: &pod,
            container: &container,
            image: &image,
            env,
            binds: &[],
            user: &User::default(),
            cgroup: "/c".into(),
            pause: None,
            local_seccomp: None,
            machine: &machine(),
        })
    }

    #[test]
    fn command_and_arguments_combine_as_kubernetes_says() {
        let image = ImageConfig { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..Default::default() };
        let env = [("X".to_owned(), "1".to_owned())];
        for (container, expected) in [
            (json!({"name": "a"}), json!(["/e", "c"])),
            (json!({"name": "a", "args": ["$(X)"]}), json!(["/e", "1"])),
            (json!({"name": "a", "command": ["/b"]}), json!(["/b"])),
            (json!({"name": "a", "command": ["/b"], "args": ["$$(X)"]}), json!(["/b", "$(X)"])),
        ] {
            assert_eq!(spec(container, image.clone(), &env).expect("a spec")["process"]["args"], expected);
        }
        assert_eq!(spec(json!({"name": "a"}), ImageConfig::default(), &[]), Err(SpecError::NoCommand));
    }

    #[test]
    fn capabilities_are_added_dropped_and_bounded_by_the_machine() {
        let caps = |capabilities: Value, privileged: bool| {
            let context = json!({"capabilities": capabilities, "privileged": privileged});
            let container: SecurityContext = serde_json::from_value(context).expect("a context");
            capabilities_of(&container, privileged)
        };
        fn capabilities_of(context: &SecurityContext, privileged: bool) -> Result<BTreeSet<String>, SpecError> {
            capabilities(
                Some(context),
                privileged,
                &Machine { capabilities: !(1 << 24), unified_cgroups: true, devices: vec![] },
            )
        }
        let only = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(
            caps(json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}), false),
            Ok(only(&["CAP_NET_BIND_SERVICE"]))
        );
        let all = caps(json!({"add": ["ALL"], "drop": ["CAP_NET_RAW"]}), false).expect("known");
        assert!(!all.contains("CAP_NET_RAW") && !all.contains("CAP_SYS_RESOURCE") && all.contains("CAP_SYS_ADMIN"));
        assert!(!caps(json!({}), false).expect("known").contains("CAP_MKNOD"));
        assert_eq!(caps(json!({"add": ["NOPE"]}), false), Err(SpecError::Capability("NOPE".into())));
    }

    #[test]
    fn privileges_are_as_the_pod_asks() {
        let image = ImageConfig { entrypoint: vec!["/e".into()], ..Default::default() };
        let tight = spec(
            json!({"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                   "seccompProfile": {"type": "RuntimeDefault"}}}),
            image.clone(),
            &[],
        )
        .expect("a spec");
        assert_eq!(tight["process"]["noNewPrivileges"], true);
        assert_eq!(tight["root"]["readonly"], true);
        assert!(tight["linux"]["seccomp"].is_object() && tight["linux"]["maskedPaths"].is_array());
        let loose = spec(json!({"name": "a", "securityContext": {"privileged": true}}), image, &[]).expect("a spec");
        assert!(loose["linux"]["seccomp"].is_null() && loose["linux"]["maskedPaths"].is_null());
        assert!(loose["process"]["noNewPrivileges"].is_null());
    }
}
