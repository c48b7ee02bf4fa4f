//! Defaults of pod specs, and of what only pods (not templates) get.

use serde_json::{Value, json};

use super::{CONTAINER_LISTS, image_tag};
use crate::value::{
    at, canonical_quantity, canonical_resources, each, ensure_object, fill, fill_in, fill_zero, flag, has, int,
    object_at, text, within,
};

/// Fills in a pod, at the top of the object.
pub fn pod(pod: &mut Value) {
    ensure_object(pod, &["spec"]);
    within(pod, &["spec"], |spec| {
        pod_spec(spec);
        for containers in ["containers", "initContainers"] {
            each(spec, &[containers], requests_from_limits);
        }
        super::resources::default_pod_level(spec);
        fill(spec, "enableServiceLinks", true);
        if flag(spec, &["hostNetwork"]) {
            for containers in ["containers", "initContainers"] {
                each(spec, &[containers], |container| each(container, &["ports"], host_port_from_container_port));
            }
        }
    });
}

/// Fills in the pod template at `template` below this value.
pub fn template(holder: &mut Value) {
    if ensure_object(holder, &["template"]).is_some() {
        ensure_object(holder, &["template", "metadata"]);
        ensure_object(holder, &["template", "spec"]);
        within(holder, &["template", "spec"], pod_spec);
    }
}

/// Fills in a pod spec, as in every object that holds one.
pub fn pod_spec(spec: &mut Value) {
    each(spec, &["volumes"], volume);
    for containers in CONTAINER_LISTS {
        each(spec, &[containers], container);
    }
    fill_zero(spec, "dnsPolicy", "ClusterFirst");
    fill_zero(spec, "restartPolicy", "Always");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill_zero(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    canonical_resources(spec, &["overhead"]);
    canonical_resources(spec, &["resources", "limits"]);
    canonical_resources(spec, &["resources", "requests"]);
}

/// The old field name `serviceAccount` says the same as `serviceAccountName`.
pub fn mirror_service_account(spec: &mut Value) {
    let Some(object) = spec.as_object_mut() else { return };
    let given = |key: &str| object.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned);
    let Some(name) = given("serviceAccountName").or_else(|| given("serviceAccount")) else { return };
    object.insert("serviceAccountName".to_owned(), name.clone().into());
    object.insert("serviceAccount".to_owned(), name.into());
}

fn container(container: &mut Value) {
    let pull = if image_tag(text(container, &["image"])) == "latest" { "Always" } else { "IfNotPresent" };
    fill_zero(container, "imagePullPolicy", pull);
    fill_zero(container, "terminationMessagePath", "/dev/termination-log");
    fill_zero(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    canonical_resources(container, &["resources", "limits"]);
    canonical_resources(container, &["resources", "requests"]);
    each(container, &["ports"], |port| fill_zero(port, "protocol", "TCP"));
    each(container, &["env"], |variable| {
        within(variable, &["valueFrom", "fieldRef"], |field| fill_zero(field, "apiVersion", "v1"));
        within(variable, &["valueFrom", "resourceFieldRef"], divisor);
        within(variable, &["valueFrom", "fileKeyRef"], |reference| fill(reference, "optional", false));
    });
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        within(container, &[key], probe);
    }
    for hook in ["postStart", "preStop"] {
        within(container, &["lifecycle", hook, "httpGet"], http_get);
    }
}

fn probe(probe: &mut Value) {
    fill_zero(probe, "timeoutSeconds", 1);
    fill_zero(probe, "periodSeconds", 10);
    fill_zero(probe, "successThreshold", 1);
    fill_zero(probe, "failureThreshold", 3);
    within(probe, &["httpGet"], http_get);
    within(probe, &["grpc"], |grpc| fill(grpc, "service", ""));
}

fn http_get(action: &mut Value) {
    fill_zero(action, "path", "/");
    fill_zero(action, "scheme", "HTTP");
}

fn divisor(reference: &mut Value) {
    fill(reference, "divisor", "0");
    canonical_quantity(reference, "divisor");
}

fn volume(volume: &mut Value) {
    let Some(object) = volume.as_object_mut() else { return };
    if object.iter().all(|(key, value)| key == "name" || value.is_null()) {
        object.insert("emptyDir".to_owned(), json!({}));
    }
    within(volume, &["emptyDir"], |source| canonical_quantity(source, "sizeLimit"));
    for source in ["secret", "configMap"] {
        within(volume, &[source], |source| fill(source, "defaultMode", 0o644));
    }
    within(volume, &["hostPath"], |source| fill(source, "type", ""));
    within(volume, &["downwardAPI"], |source| {
        fill(source, "defaultMode", 0o644);
        each(source, &["items"], downward_item);
    });
    within(volume, &["projected"], |source| {
        fill(source, "defaultMode", 0o644);
        each(source, &["sources"], projection);
    });
    within(volume, &["image"], |source| {
        let pull = if image_tag(text(source, &["reference"])) == "latest" { "Always" } else { "IfNotPresent" };
        fill_zero(source, "pullPolicy", pull);
    });
    within(volume, &["ephemeral", "volumeClaimTemplate", "spec"], crate::kinds::claim_spec_defaults);
    within(volume, &["iscsi"], |source| fill_zero(source, "iscsiInterface", "default"));
    within(volume, &["rbd"], |source| {
        fill_zero(source, "pool", "rbd");
        fill_zero(source, "user", "admin");
        fill_zero(source, "keyring", "/etc/ceph/keyring");
    });
}

fn projection(source: &mut Value) {
    within(source, &["serviceAccountToken"], |token| fill(token, "expirationSeconds", 3600));
    within(source, &["downwardAPI"], |downward| each(downward, &["items"], downward_item));
}

fn downward_item(item: &mut Value) {
    within(item, &["fieldRef"], |field| fill_zero(field, "apiVersion", "v1"));
    within(item, &["resourceFieldRef"], divisor);
}

fn requests_from_limits(container: &mut Value) {
    if !has(container, &["resources", "limits"]) {
        return;
    }
    let limits = at(container, &["resources", "limits"]).clone();
    ensure_object(container, &["resources", "requests"]);
    let Some(requests) = object_at(container, &["resources", "requests"]) else { return };
    for (resource, limit) in limits.as_object().into_iter().flatten() {
        fill_in(requests, resource, limit.clone());
    }
}

fn host_port_from_container_port(port: &mut Value) {
    if let Some(container_port) = int(port, &["containerPort"]) {
        fill_zero(port, "hostPort", container_port);
    }
}
