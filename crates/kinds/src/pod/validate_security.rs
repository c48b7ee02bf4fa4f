//! What is wrong with the security settings of a pod and its containers.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::outside;
use serde_json::Value;

use crate::Errors;
use crate::check::{descending_path, optional_one_of, too_long};
use crate::value::{at, flag, has, int, list, text, texts};

/// Users and groups are 32-bit numbers.
const ID_MAX: i64 = 0xffff_ffff;

fn check_id(holder: &Value, key: &str, path: &Path, errors: &mut Errors) {
    if let Some(id) = int(holder, &[key]).filter(|id| !(0..=ID_MAX).contains(id)) {
        errors.push(FieldError::invalid(&path.child(key), id, outside(0, ID_MAX)));
    }
}

/// The settings of the pod.
pub fn check_pod(spec: &Value, path: &Path, errors: &mut Errors) {
    let context = &spec["securityContext"];
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        check_id(context, key, path, errors);
    }
    for (index, group) in list(context, &["supplementalGroups"]).iter().enumerate() {
        if let Some(id) = group.as_i64().filter(|id| !(0..=ID_MAX).contains(id)) {
            errors.push(FieldError::invalid(&path.child("supplementalGroups").index(index), id, outside(0, ID_MAX)));
        }
    }
    if flag(spec, &["shareProcessNamespace"]) && flag(spec, &["hostPID"]) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, detail));
    }
    check_sysctls(spec, &path.child("sysctls"), errors);
    let change = text(context, &["fsGroupChangePolicy"]);
    optional_one_of(errors, &path.child("fsGroupChangePolicy"), change, &["Always", "OnRootMismatch"]);
    let groups = text(context, &["supplementalGroupsPolicy"]);
    optional_one_of(errors, &path.child("supplementalGroupsPolicy"), groups, &["Merge", "Strict"]);
    let relabel = text(context, &["seLinuxChangePolicy"]);
    optional_one_of(errors, &path.child("seLinuxChangePolicy"), relabel, &["MountOption", "Recursive"]);
    check_profiles(context, path, errors);
}

/// The settings of a container.
pub fn check_container(container: &Value, host_users: bool, path: &Path, errors: &mut Errors) {
    let context = &container["securityContext"];
    if context.is_null() {
        return;
    }
    for key in ["runAsUser", "runAsGroup"] {
        check_id(context, key, path, errors);
    }
    let mount = text(context, &["procMount"]);
    optional_one_of(errors, &path.child("procMount"), mount, &["Default", "Unmasked"]);
    if host_users && mount == "Unmasked" {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&path.child("procMount"), mount, detail));
    }
    if at(context, &["allowPrivilegeEscalation"]).as_bool() == Some(false) {
        if flag(context, &["privileged"]) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
        if texts(context, &["capabilities", "add"]).any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), detail));
        }
    }
    check_profiles(context, path, errors);
}

/// Profiles of seccomp and AppArmor.
fn check_profiles(context: &Value, path: &Path, errors: &mut Errors) {
    const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
    for (key, system) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = &context[key];
        if profile.is_null() {
            continue;
        }
        let path = path.child(key);
        let local_path = path.child("localhostProfile");
        let local = text(profile, &["localhostProfile"]);
        match text(profile, &["type"]) {
            "" => {
                let detail = format!("type is required when {key} is set");
                errors.push(FieldError::required(&path.child("type"), detail));
            }
            "Localhost" if local.is_empty() => {
                let detail = format!("must be set when {system} type is Localhost");
                errors.push(FieldError::required(&local_path, detail));
            }
            "Localhost" if system == "seccomp" => descending_path(errors, &local_path, local),
            "Localhost" if local.trim() != local => {
                errors.push(FieldError::invalid(&local_path, local, "must not be padded with whitespace"));
            }
            "Localhost" if local.len() > 4095 => too_long(errors, &local_path, 4095),
            "Localhost" => {}
            kind => {
                optional_one_of(errors, &path.child("type"), kind, TYPES);
                if has(profile, &["localhostProfile"]) {
                    let shown = if system == "seccomp" { profile.clone() } else { local.into() };
                    let detail = format!("can only be set when {system} type is Localhost");
                    errors.push(FieldError::invalid(&local_path, shown, detail));
                }
            }
        }
    }
}

fn check_sysctls(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in list(spec, &["securityContext", "sysctls"]).iter().enumerate() {
        let path = path.index(index).child("name");
        let name = text(sysctl, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl_name(name) {
            let part = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let detail = format!("must have at most 253 characters and match regex ^({part}[\\./])*{part}$");
            errors.push(FieldError::invalid(&path, name, detail));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|byte| edge(*byte))
                && bytes.last().is_some_and(|byte| edge(*byte))
                && bytes.iter().all(|byte| edge(*byte) || b"-_".contains(byte))
        })
}

/// Users of their own and namespaces of the host do not go together.
pub fn check_host_users(spec: &Value, path: &Path, errors: &mut Errors) {
    if at(spec, &["hostUsers"]).as_bool() != Some(false) {
        return;
    }
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if flag(spec, &[key]) {
            errors.push(FieldError::forbidden(&path.child(shown), "when `hostUsers` is false"));
        }
    }
}
