//! Roles and bindings.

use jiff::Timestamp;
use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::{is_dns1123_subdomain, is_path_segment};
use serde_json::Value;

use crate::check::refuse;
use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{each, fill_zero, has, list, same, text, texts, within};
use crate::{Errors, Kind};

/// The API group of everything here.
const GROUP: &str = "rbac.authorization.k8s.io";

pub static ROLE: Kind = Kind {
    has_status: false,
    name_rule: is_path_segment,
    check: |role, errors| check_rules(role, true, errors),
    check_update: |new, _, _, errors| check_rules(new, true, errors),
    ..Kind::new(GROUP, "Role", true)
};

pub static CLUSTER_ROLE: Kind = Kind {
    has_status: false,
    name_rule: is_path_segment,
    check: check_cluster_role,
    check_update: |new, _, _, errors| check_cluster_role(new, errors),
    ..Kind::new(GROUP, "ClusterRole", false)
};

pub static ROLE_BINDING: Kind = Kind {
    has_status: false,
    name_rule: is_path_segment,
    defaults: |_, binding| fill_binding(binding),
    check: |binding, errors| check_binding(binding, true, errors),
    check_update: |new, old, _, errors| {
        check_binding(new, true, errors);
        check_same_role(new, old, errors);
    },
    columns: BINDING_COLUMNS,
    cells: binding_cells,
    ..Kind::new(GROUP, "RoleBinding", true)
};

pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    has_status: false,
    name_rule: is_path_segment,
    defaults: |_, binding| fill_binding(binding),
    check: |binding, errors| check_binding(binding, false, errors),
    check_update: |new, old, _, errors| {
        check_binding(new, false, errors);
        check_same_role(new, old, errors);
    },
    columns: BINDING_COLUMNS,
    cells: binding_cells,
    ..Kind::new(GROUP, "ClusterRoleBinding", false)
};

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    Column::text("Role", "Role that is given."),
    AGE_COLUMN,
    Column::text("Users", "Users that have it.").wide(),
    Column::text("Groups", "Groups that have it.").wide(),
    Column::text("ServiceAccounts", "Service accounts that have it.").wide(),
];

fn binding_cells(binding: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let of_kind = list(binding, &["subjects"]).iter().filter(|subject| text(subject, &["kind"]) == kind);
        let shown = of_kind.map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, &["namespace"]), text(subject, &["name"])),
            _ => text(subject, &["name"]).to_owned(),
        });
        Value::from(shown.collect::<Vec<_>>().join(", "))
    };
    vec![
        name(binding),
        format!("{}/{}", text(binding, &["roleRef", "kind"]), text(binding, &["roleRef", "name"])).into(),
        age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn fill_binding(binding: &mut Value) {
    within(binding, &["roleRef"], |role| fill_zero(role, "apiGroup", GROUP));
    each(binding, &["subjects"], |subject| {
        if matches!(text(subject, &["kind"]), "User" | "Group") {
            fill_zero(subject, "apiGroup", GROUP);
        }
    });
}

fn check_cluster_role(role: &Value, errors: &mut Errors) {
    check_rules(role, false, errors);
    if has(role, &["aggregationRule"]) {
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = list(role, &["aggregationRule", "clusterRoleSelectors"]);
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(FieldError::required(&path, detail));
        }
        for (index, selector) in selectors.iter().enumerate() {
            crate::meta::check_selector(selector, &path.index(index), errors);
        }
    }
}

fn check_rules(role: &Value, namespaced: bool, errors: &mut Errors) {
    for (index, rule) in list(role, &["rules"]).iter().enumerate() {
        let path = Path::new("rules").index(index);
        let given = |key: &str| texts(rule, &[key]).next().is_some();
        let mut require = |key: &str, detail: &str| {
            if !given(key) {
                errors.push(FieldError::required(&path.child(key), detail));
            }
        };
        require("verbs", "verbs must contain at least one value");
        if given("nonResourceURLs") {
            let urls = rule["nonResourceURLs"].clone();
            let urls_path = path.child("nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&urls_path, urls.clone(), detail));
            }
            if given("apiGroups") || given("resources") || given("resourceNames") {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&urls_path, urls, detail));
            }
            continue;
        }
        require("apiGroups", "resource rules must supply at least one api group");
        require("resources", "resource rules must supply at least one resource");
    }
}

fn check_binding(binding: &Value, namespaced: bool, errors: &mut Errors) {
    let path = Path::new("roleRef");
    let role = &binding["roleRef"];
    let group = text(role, &["apiGroup"]);
    if group != GROUP {
        errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let kind = text(role, &["kind"]);
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported(&path.child("kind"), kind, kinds));
    }
    match text(role, &["name"]) {
        "" => errors.push(FieldError::required(&path.child("name"), "")),
        name => refuse(errors, &path.child("name"), name, is_path_segment(name)),
    }
    for (index, subject) in list(binding, &["subjects"]).iter().enumerate() {
        check_subject(subject, namespaced, &Path::new("subjects").index(index), errors);
    }
}

fn check_subject(subject: &Value, namespaced: bool, path: &Path, errors: &mut Errors) {
    let name = text(subject, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    let group = text(subject, &["apiGroup"]);
    match text(subject, &["kind"]) {
        "ServiceAccount" => {
            if !name.is_empty() {
                refuse(errors, &path.child("name"), name, is_dns1123_subdomain(name));
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, &["namespace"]).is_empty() {
                errors.push(FieldError::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
        }
        "User" | "Group" => {}
        other => {
            let kinds = &["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(&path.child("kind"), other, kinds));
        }
    }
}

fn check_same_role(new: &Value, old: &Value, errors: &mut Errors) {
    if !same(&new["roleRef"], &old["roleRef"]) {
        errors.push(FieldError::invalid(&Path::new("roleRef"), new["roleRef"].clone(), "cannot change roleRef"));
    }
}
