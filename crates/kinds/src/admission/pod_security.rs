//! Pod Security: what the levels `baseline` and `restricted` forbid, by version of the standards, in Kubernetes' words.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use crate::Errors;
use crate::value::{at, entries, flag, int, list, text, texts};

const PREFIX: &str = "pod-security.kubernetes.io/";
/// The newest minor version whose standards are known.
const NEWEST: u32 = 35;

/// How much a pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Privileged,
    /// Nothing that is known to escalate privileges.
    Baseline,
    /// As hardened as pods can be.
    Restricted,
}

/// A level of one version of the standards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The level.
    pub level: Level,
    minor: u32,
    shown: String,
}

impl Policy {
    /// What a namespace's labels ask for in `enforce`, `audit` or `warn`. What they spell wrong asks for the most.
    pub fn of(namespace: &Value, mode: &str) -> Self {
        let label = |suffix: &str| text(namespace, &["metadata", "labels", &format!("{PREFIX}{mode}{suffix}")]);
        let (level, version) = (label(""), label("-version"));
        let (level, name) = match level {
            "" | "privileged" => (Level::Privileged, "privileged"),
            "baseline" => (Level::Baseline, "baseline"),
            _ => (Level::Restricted, "restricted"),
        };
        let minor = minor(version);
        let version = if minor.is_some() && !version.is_empty() { version } else { "latest" };
        Self { level, minor: minor.unwrap_or(NEWEST), shown: format!("{name}:{version}") }
    }

    /// The refusal, or warning without its first words, of a pod; none where it keeps to the policy.
    pub fn violation(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let found = self.violations(metadata, spec);
        (!found.is_empty()).then(|| format!("violate PodSecurity {:?}: {}", self.shown, join(&found, true)))
    }

    /// `restricted:latest`.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Which rules a pod breaks, without what breaks them.
    pub fn broken(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let found = self.violations(metadata, spec);
        (!found.is_empty()).then(|| join(&found, false))
    }

    fn violations(&self, metadata: &Value, spec: &Value) -> Vec<Violation> {
        if self.level == Level::Privileged {
            return Vec::new();
        }
        let pod = Pod::new(metadata, spec, self.minor);
        let restricted = self.level == Level::Restricted;
        let mut found = Vec::new();
        for (overlaps, check) in BASELINE {
            if !(restricted && *overlaps) {
                found.extend(check(&pod));
            }
        }
        if restricted {
            found.extend(RESTRICTED.iter().filter_map(|check| check(&pod)));
        }
        found
    }
}

fn minor(version: &str) -> Option<u32> {
    match version {
        "" | "latest" => Some(NEWEST),
        version => version.strip_prefix("v1.")?.parse().ok().map(|minor: u32| minor.min(NEWEST)),
    }
}

fn join(found: &[Violation], details: bool) -> String {
    let show = |(reason, detail): &Violation| match detail.is_empty() || !details {
        true => reason.clone(),
        false => format!("{reason} ({detail})"),
    };
    found.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// What is wrong with the labels of a namespace.
pub fn check_labels(namespace: &Value, errors: &mut Errors) {
    let path = Path::new("metadata").child("labels");
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        let level = at(namespace, &["metadata", "labels", &key]);
        if level.as_str().is_some_and(|level| !matches!(level, "privileged" | "baseline" | "restricted")) {
            let why = "must be one of privileged, baseline, restricted";
            errors.push(FieldError::invalid(&path.key(&key), level.clone(), why));
        }
        let key = format!("{PREFIX}{mode}-version");
        let version = at(namespace, &["metadata", "labels", &key]);
        if version.as_str().is_some_and(|version| version.is_empty() || minor(version).is_none()) {
            errors.push(FieldError::invalid(&path.key(&key), version.clone(), "must be \"latest\" or \"v1.x\""));
        }
    }
}

/// The pod template of a workload: its metadata and spec.
pub fn template<'a>(kind: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match kind {
        "PodTemplate" => &object["template"],
        "CronJob" => at(object, &["spec", "jobTemplate", "spec", "template"]),
        "ReplicationController" | "ReplicaSet" | "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
            at(object, &["spec", "template"])
        }
        _ => return None,
    };
    template.is_object().then(|| (&template["metadata"], &template["spec"]))
}

/// Reason and detail.
type Violation = (String, String);
type Check = fn(&Pod<'_>) -> Option<Violation>;

/// The checks of baseline; those marked are contained in one of restricted.
const BASELINE: &[(bool, Check)] = &[
    (false, app_armor),
    (true, capabilities_baseline),
    (false, host_namespaces),
    (true, host_path),
    (false, host_ports),
    (false, probe_hosts),
    (false, privileged),
    (false, proc_mount),
    (false, se_linux),
    (true, seccomp_baseline),
    (false, sysctls),
    (false, windows),
];
const RESTRICTED: &[Check] =
    &[privilege_escalation, capabilities_restricted, volumes, non_root, user_zero, seccomp_restricted];

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    containers: Vec<&'a Value>,
    minor: u32,
    windows: bool,
}

impl<'a> Pod<'a> {
    fn new(metadata: &'a Value, spec: &'a Value, minor: u32) -> Self {
        let kinds = ["initContainers", "containers", "ephemeralContainers"];
        let containers = kinds.iter().flat_map(|kind| list(spec, &[kind])).collect();
        let windows = text(spec, &["os", "name"]) == "windows" && minor >= 25;
        Self { metadata, spec, containers, minor, windows }
    }

    /// The names of the containers that are bad.
    fn bad(&self, is_bad: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers.iter().filter(|c| is_bad(c)).map(|c| text(c, &["name"])).collect()
    }

    /// Whether the pod's root is nobody on the node.
    fn user_namespace(&self) -> bool {
        self.minor >= 35 && at(self.spec, &["hostUsers"]) == &Value::Bool(false)
    }
}

fn fault(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some((reason.into(), detail.into()))
}

fn plural<'a>(one: &'a str, several: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { several }
}

fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("{:?}", name.as_ref())).collect::<Vec<_>>().join(", ")
}

fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: everyone who set something.
fn setters(pod: bool, names: &[&str]) -> Vec<String> {
    let pod = pod.then(|| "pod".to_owned());
    pod.into_iter().chain((!names.is_empty()).then(|| containers(names))).collect()
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let mut found = Vec::new();
    let kind = |holder: &Value| text(holder, &["securityContext", "appArmorProfile", "type"]).to_owned();
    let wrong = |kind: &str| !matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let bad = pod.bad(|container| wrong(&kind(container)));
    let who = setters(wrong(&kind(pod.spec)), &bad);
    if !who.is_empty() {
        let holders = std::iter::once(&pod.spec).chain(&pod.containers);
        let values: BTreeSet<String> = holders.map(|holder| kind(holder)).filter(|kind| wrong(kind)).collect();
        found.push(format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)));
    }
    for (key, value) in entries(pod.metadata, &["annotations"]) {
        let profile = value.as_str().unwrap_or_default();
        let allowed = profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed {
            found.push(format!("{key}={profile:?}"));
        }
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", found.len());
    (!found.is_empty()).then(|| (reason.to_owned(), found.join(", ")))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    texts(container, &["securityContext", "capabilities", "add"])
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn capabilities_baseline(pod: &Pod<'_>) -> Option<Violation> {
    let wrong = |name: &str| !DEFAULT_CAPABILITIES.contains(&name);
    let bad = pod.bad(|container| added(container).any(wrong));
    let names: BTreeSet<&str> = pod.containers.iter().flat_map(|c| added(c)).filter(|name| wrong(name)).collect();
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(names));
    fault("non-default capabilities", detail)
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| flag(pod.spec, &[field]))
        .map(|field| format!("{field}=true"))
        .collect();
    if set.is_empty() { None } else { fault("host namespaces", set.join(", ")) }
}

fn host_path(pod: &Pod<'_>) -> Option<Violation> {
    let volumes = list(pod.spec, &["volumes"]).iter().filter(|volume| volume["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(|volume| text(volume, &["name"])).collect();
    if names.is_empty() {
        return None;
    }
    fault("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let ports = |container: &Value| -> Vec<i64> {
        let ports = list(container, &["ports"]).iter();
        ports.filter_map(|port| int(port, &["hostPort"]).filter(|number| *number != 0)).collect()
    };
    let bad = pod.bad(|container| !ports(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let numbers: BTreeSet<String> = pod.containers.iter().flat_map(|c| ports(c)).map(|n| n.to_string()).collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&bad),
        plural("uses", "use", bad.len()),
        plural("hostPort", "hostPorts", numbers.len()),
        numbers.into_iter().collect::<Vec<_>>().join(", ")
    );
    fault("hostPort", detail)
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 34 {
        return None;
    }
    let hosts = |container: &Value| -> Vec<String> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].iter().map(|probe| &container[*probe]);
        let hooks = ["postStart", "preStop"].iter().map(|hook| at(container, &["lifecycle", hook]));
        let handlers = probes.chain(hooks).flat_map(|handler| ["httpGet", "tcpSocket"].map(|kind| &handler[kind]));
        handlers.map(|handler| text(handler, &["host"]).to_owned()).filter(|host| !host.is_empty()).collect()
    };
    let bad: BTreeSet<&str> = pod.bad(|container| !hosts(container).is_empty()).into_iter().collect();
    if bad.is_empty() {
        return None;
    }
    let names: BTreeSet<String> = pod.containers.iter().flat_map(|c| hosts(c)).collect();
    let bad: Vec<&str> = bad.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&bad),
        plural("uses", "use", bad.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", names.len()),
        quoted(names)
    );
    fault("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let bad = pod.bad(|container| flag(container, &["securityContext", "privileged"]));
    if bad.is_empty() {
        return None;
    }
    fault("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    let kind = |container: &Value| text(container, &["securityContext", "procMount"]).to_owned();
    let wrong = |kind: &str| !matches!(kind, "" | "Default");
    let bad = pod.bad(|container| wrong(&kind(container)));
    if bad.is_empty() || pod.user_namespace() {
        return None;
    }
    let values: BTreeSet<String> = pod.containers.iter().map(|c| kind(c)).filter(|kind| wrong(kind)).collect();
    fault("procMount", format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(values)))
}

fn se_linux(pod: &Pod<'_>) -> Option<Violation> {
    let options = |holder: &'_ Value| at(holder, &["securityContext", "seLinuxOptions"]).clone();
    let wrong_type = |options: &Value| {
        !matches!(
            text(options, &["type"]),
            "" | "container_t" | "container_init_t" | "container_kvm_t" | "container_engine_t"
        )
    };
    let set = |options: &Value, field: &str| !text(options, &[field]).is_empty();
    let wrong = |options: &Value| wrong_type(options) || set(options, "user") || set(options, "role");
    let bad = pod.bad(|container| wrong(&options(container)));
    let who = setters(wrong(&options(pod.spec)), &bad);
    if who.is_empty() {
        return None;
    }
    let all: Vec<Value> = std::iter::once(&pod.spec).chain(&pod.containers).map(|holder| options(holder)).collect();
    let types: BTreeSet<&str> = all.iter().filter(|o| wrong_type(o)).map(|o| text(o, &["type"])).collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|options| set(options, field)) {
            data.push(format!("{field} may not be set"));
        }
    }
    let detail = format!("{} set forbidden securityContext.seLinuxOptions: {}", who.join(" and "), data.join("; "));
    fault("seLinuxOptions", detail)
}

fn seccomp(holder: &Value) -> Option<&str> {
    let profile = at(holder, &["securityContext", "seccompProfile"]);
    profile.is_object().then(|| text(profile, &["type"]))
}

fn wrong_seccomp(kind: &str) -> bool {
    !matches!(kind, "Localhost" | "RuntimeDefault")
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 {
        return None;
    }
    let bad = pod.bad(|container| seccomp(container).is_some_and(wrong_seccomp));
    let who = setters(seccomp(pod.spec).is_some_and(wrong_seccomp), &bad);
    if who.is_empty() {
        return None;
    }
    let holders = std::iter::once(&pod.spec).chain(&pod.containers);
    let values: BTreeSet<&str> =
        holders.filter_map(|holder| seccomp(holder)).filter(|kind| wrong_seccomp(kind)).collect();
    let detail =
        format!("{} must not set securityContext.seccompProfile.type to {}", who.join(" and "), quoted(values));
    fault("seccompProfile", detail)
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 || pod.windows {
        return None;
    }
    let explicit = seccomp_baseline(pod);
    if explicit.is_some() {
        return explicit;
    }
    if seccomp(pod.spec).is_some() {
        return None;
    }
    let bad = pod.bad(|container| seccomp(container).is_none());
    if bad.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&bad)
    );
    fault("seccompProfile", detail)
}

/// Kernel parameters of a namespace's own, and the version since which they are allowed.
const SYSCTLS: [(u32, &str); 12] = [
    (0, "kernel.shm_rmid_forced"),
    (0, "net.ipv4.ip_local_port_range"),
    (0, "net.ipv4.tcp_syncookies"),
    (0, "net.ipv4.ping_group_range"),
    (0, "net.ipv4.ip_unprivileged_port_start"),
    (27, "net.ipv4.ip_local_reserved_ports"),
    (29, "net.ipv4.tcp_keepalive_time"),
    (29, "net.ipv4.tcp_fin_timeout"),
    (29, "net.ipv4.tcp_keepalive_intvl"),
    (29, "net.ipv4.tcp_keepalive_probes"),
    (32, "net.ipv4.tcp_rmem"),
    (32, "net.ipv4.tcp_wmem"),
];

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |name: &str| SYSCTLS.iter().any(|(since, known)| *known == name && pod.minor >= *since);
    let set = list(pod.spec, &["securityContext", "sysctls"]).iter().map(|sysctl| text(sysctl, &["name"]));
    let bad: Vec<&str> = set.filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { fault("forbidden sysctls", bad.join(", ")) }
}

fn windows(pod: &Pod<'_>) -> Option<Violation> {
    let host = |holder: &Value| flag(holder, &["securityContext", "windowsOptions", "hostProcess"]);
    let bad = pod.bad(host);
    let who = setters(host(pod.spec), &bad);
    if who.is_empty() {
        return None;
    }
    fault("hostProcess", format!("{} must not set securityContext.windowsOptions.hostProcess=true", who.join(" and ")))
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 8 || pod.windows {
        return None;
    }
    let bad = pod.bad(|c| at(c, &["securityContext", "allowPrivilegeEscalation"]) != &Value::Bool(false));
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    fault("allowPrivilegeEscalation != false", detail)
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 22 || pod.windows {
        return None;
    }
    let keeps = |c: &Value| !texts(c, &["securityContext", "capabilities", "drop"]).any(|name| name == "ALL");
    let wrong = |name: &&str| *name != "NET_BIND_SERVICE";
    let keeping = pod.bad(keeps);
    let adding = pod.bad(|c| added(c).any(|name| wrong(&name)));
    let names: BTreeSet<&str> = pod.containers.iter().flat_map(|c| added(c)).filter(wrong).collect();
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let who = containers(&adding);
        details.push(format!("{who} must not include {} in securityContext.capabilities.add", quoted(names)));
    }
    if details.is_empty() { None } else { fault("unrestricted capabilities", details.join("; ")) }
}

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    let kind = |volume: &Value| -> String {
        let members = entries(volume, &[]).find(|(key, value)| *key != "name" && !value.is_null());
        members.map_or_else(|| "unknown".to_owned(), |(key, _)| key.clone())
    };
    let wrong: Vec<&Value> =
        list(pod.spec, &["volumes"]).iter().filter(|v| !VOLUMES.contains(&kind(v).as_str())).collect();
    if wrong.is_empty() {
        return None;
    }
    let names: Vec<&str> = wrong.iter().map(|volume| text(volume, &["name"])).collect();
    let kinds: BTreeSet<String> = wrong.iter().map(|volume| kind(volume)).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(kinds)
    );
    fault("restricted volume types", detail)
}

fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.user_namespace() {
        return None;
    }
    let given = |holder: &Value| at(holder, &["securityContext", "runAsNonRoot"]).as_bool();
    let explicit = pod.bad(|container| given(container) == Some(false));
    let who = setters(given(pod.spec) == Some(false), &explicit);
    if !who.is_empty() {
        return fault(REASON, format!("{} must not set securityContext.runAsNonRoot=false", who.join(" and ")));
    }
    let implicit = pod.bad(|container| given(container).is_none() && given(pod.spec).is_none());
    if implicit.is_empty() {
        return None;
    }
    fault(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)))
}

fn user_zero(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 23 || pod.user_namespace() {
        return None;
    }
    let root = |holder: &Value| int(holder, &["securityContext", "runAsUser"]) == Some(0);
    let who = setters(root(pod.spec), &pod.bad(root));
    if who.is_empty() { None } else { fault("runAsUser=0", format!("{} must not set runAsUser=0", who.join(" and "))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(level: &str, version: &str) -> Policy {
        Policy::of(
            &json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level,
            "pod-security.kubernetes.io/enforce-version": version}}}),
            "enforce",
        )
    }

    fn judged(level: &str, spec: Value) -> String {
        policy(level, "latest").violation(&Value::Null, &spec).unwrap_or_default()
    }

    #[test]
    fn levels_forbid_in_the_words_of_kubernetes() {
        let plain = json!({"containers": [{"name": "a"}]});
        assert_eq!(judged("baseline", plain.clone()), "");
        assert_eq!(
            judged("restricted", plain),
            "violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"a\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"a\" must set \
             securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"a\" must set \
             securityContext.runAsNonRoot=true), seccompProfile (pod or container \"a\" must set \
             securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let hardened = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}}}]});
        assert_eq!(judged("restricted", hardened), "");
    }

    #[test]
    fn each_rule_of_baseline_is_found() {
        let container = |context: Value| json!({"containers": [{"name": "a", "securityContext": context}]});
        for (spec, wanted) in [
            (json!({"hostPID": true, "hostNetwork": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
            (
                container(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                container(json!({"capabilities": {"add": ["NET_ADMIN"]}})),
                "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                container(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]}),
                "hostPort (container \"a\" uses hostPort 80)",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"type": "x"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\")",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
            ),
        ] {
            assert_eq!(judged("baseline", spec), format!("violate PodSecurity \"baseline:latest\": {wanted}"));
        }
        let old = json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]});
        assert_eq!(policy("baseline", "v1.20").violation(&Value::Null, &old), None);
    }

    #[test]
    fn labels_are_checked() {
        let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/warn": "strict",
            "pod-security.kubernetes.io/audit-version": "1.20"}}});
        let mut errors = Errors::new();
        check_labels(&namespace, &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"1.20\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            ]
        );
    }
}
