//! What a kustomization changes in all objects: namespace, labels, images, replicas.

use std::collections::BTreeMap;

use mycelium_api::selector::Selector;
use serde_json::{Map, Value, json};

use super::{Builder, Kustomization};
use crate::finding::Severity;
use crate::near::nearest;
use crate::set::{Object, builtin_namespaced, is_builtin_group};
use crate::value::{flag, has, labels, list, show_selector, text};
use crate::workload;

type Labels = BTreeMap<String, String>;

impl Builder<'_> {
    pub(super) fn change(&mut self, of: &Kustomization, objects: &mut [Object]) {
        let affix = |field: &str| text(&of.value, &format!("/{field}")).to_owned();
        let (prefix, suffix) = (affix("namePrefix"), affix("nameSuffix"));
        if !prefix.is_empty() || !suffix.is_empty() {
            self.affixes.push((prefix, suffix));
        }
        self.images(of, objects);
        self.replicas(of, objects);
        let namespace = text(&of.value, "/namespace");
        if !namespace.is_empty() {
            self.namespace(of, namespace, objects);
        }
        let common = labels(&of.value, "/commonLabels");
        if !common.is_empty() {
            self.label(of, "commonLabels", &common, (true, true), objects);
        }
        for (index, entry) in list(&of.value, "/labels").iter().enumerate() {
            let selectors = flag(entry, "/includeSelectors");
            let templates = selectors || flag(entry, "/includeTemplates");
            self.label(of, &format!("labels[{index}]"), &labels(entry, "/pairs"), (selectors, templates), objects);
        }
    }

    fn images(&mut self, of: &Kustomization, objects: &mut [Object]) {
        for (index, image) in list(&of.value, "/images").iter().enumerate() {
            let name = text(image, "/name");
            let mut used: Vec<String> = Vec::new();
            let mut hit = false;
            for object in objects.iter_mut() {
                each_container(object, &mut |container| {
                    let own = text(container, "/image").to_owned();
                    let bare = bare_name(&own).to_owned();
                    if bare == name {
                        hit = true;
                        container["image"] = changed(image, &own).into();
                    }
                    used.push(bare);
                });
            }
            if !hit && !name.is_empty() {
                let message = format!("no container uses an image called {name}, so the change does nothing");
                let fix = nearest(name, used.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
                let field = format!("images[{index}].name");
                self.report.file(
                    Severity::Warning,
                    "kustomize-image",
                    &of.origin,
                    &field,
                    message,
                    fix.unwrap_or_default(),
                );
            }
        }
    }

    fn replicas(&mut self, of: &Kustomization, objects: &mut [Object]) {
        for (index, entry) in list(&of.value, "/replicas").iter().enumerate() {
            let name = text(entry, "/name");
            let is_scaled = |object: &Object| {
                matches!(object.kind.as_str(), "Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController")
            };
            let mut hit = false;
            for object in objects.iter_mut().filter(|object| is_scaled(object) && object.name == name) {
                hit = true;
                if object.value["spec"].is_object() {
                    object.value["spec"]["replicas"] = entry["count"].clone();
                }
            }
            if !hit && !objects.iter().any(|object| self.affixes_fit(&object.name, name)) {
                let message =
                    format!("no Deployment, StatefulSet or ReplicaSet is called {name}, and kustomize stops here");
                let known = objects.iter().filter(|object| is_scaled(object)).map(|object| object.name.as_str());
                let fix = nearest(name, known).map(|near| format!("did you mean {near}?")).unwrap_or_default();
                self.fault("kustomize-replicas", of, &format!("replicas[{index}].name"), message, fix);
            }
        }
    }

    fn affixes_fit(&self, own: &str, name: &str) -> bool {
        self.affixes.iter().any(|(prefix, suffix)| format!("{prefix}{own}{suffix}") == name)
    }

    fn namespace(&mut self, of: &Kustomization, namespace: &str, objects: &mut [Object]) {
        let accounts: Vec<String> =
            objects.iter().filter(|object| object.is("", "ServiceAccount")).map(|object| object.name.clone()).collect();
        for object in objects {
            if object.is("", "Namespace") {
                object.value["metadata"]["name"] = namespace.into();
                namespace.clone_into(&mut object.name);
            }
            if let Some(subjects) = object.value.get_mut("subjects").and_then(Value::as_array_mut) {
                for subject in subjects.iter_mut().filter(|subject| text(subject, "/kind") == "ServiceAccount") {
                    let name = text(subject, "/name").to_owned();
                    if name == "default" || accounts.contains(&name) {
                        subject["namespace"] = namespace.into();
                    }
                }
            }
            if !is_builtin_group(&object.group) && object.kind.starts_with("Cluster") {
                let message = format!(
                    "namespace: {namespace} is also given to {} {}, which belongs to the whole cluster",
                    object.kind, object.name
                );
                let fix = "keep it in a kustomization without namespace";
                self.report.file(Severity::Hint, "kustomize-cluster-kind", &of.origin, "namespace", message, fix);
                continue;
            }
            if builtin_namespaced(&object.group, &object.kind) != Some(false) && object.value["metadata"].is_object() {
                object.value["metadata"]["namespace"] = namespace.into();
                namespace.clone_into(&mut object.namespace);
            }
        }
    }

    fn label(
        &mut self,
        of: &Kustomization,
        field: &str,
        pairs: &Labels,
        (selectors, templates): (bool, bool),
        objects: &mut [Object],
    ) {
        if selectors {
            self.peers(of, field, pairs, objects);
        }
        for object in objects {
            add(&mut object.value, "/metadata", "labels", pairs);
            if templates {
                for holder in [
                    "/spec/template/metadata",
                    "/spec/jobTemplate/spec/template/metadata",
                    "/spec/jobTemplate/metadata",
                ] {
                    let parent = holder.trim_end_matches("/metadata");
                    if has(&object.value, parent) {
                        add(&mut object.value, parent, "metadata", &Labels::new());
                        add(&mut object.value, holder, "labels", pairs);
                    }
                }
            }
            if selectors {
                select(object, pairs);
            }
        }
    }

    /// Peers of network policies that are not of this kustomization, but get its labels.
    fn peers(&mut self, of: &Kustomization, field: &str, pairs: &Labels, objects: &[Object]) {
        let shown = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        for policy in objects.iter().filter(|object| object.is("networking.k8s.io", "NetworkPolicy")) {
            for (peer, path) in peers_of(policy) {
                let own = &peer["podSelector"];
                let fits = Selector::from_value(own).is_ok_and(|selector| {
                    objects
                        .iter()
                        .filter_map(workload::of)
                        .any(|workload| !selector.is_empty() && workload.matches(&selector))
                });
                let foreign = has(peer, "/podSelector/matchLabels") && !fits;
                if foreign && pairs.iter().any(|(key, value)| own["matchLabels"][key] != value.as_str()) {
                    let message = format!(
                        "{field} of {} adds {shown} to the peer {}, which then fits no pod",
                        of.origin.file,
                        show_selector(own)
                    );
                    let fix = "use labels with includeSelectors: false instead";
                    let path = format!("{path}.podSelector");
                    self.report.object(Severity::Warning, "kustomize-labels-in-peers", policy, path, message, fix);
                }
            }
        }
    }
}

fn peers_of(policy: &Object) -> Vec<(&Value, String)> {
    let mut found = Vec::new();
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        for (rule, value) in list(&policy.value, &format!("/spec/{direction}")).iter().enumerate() {
            for (index, peer) in list(value, &format!("/{side}")).iter().enumerate() {
                found.push((peer, format!("spec.{direction}[{rule}].{side}[{index}]")));
            }
        }
    }
    found
}

/// Adds entries to a map of texts below the object at a pointer.
fn add(value: &mut Value, pointer: &str, member: &str, pairs: &Labels) {
    let Some(holder) = value.pointer_mut(pointer).and_then(Value::as_object_mut) else { return };
    let slot = holder.entry(member).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    if let Some(slot) = slot.as_object_mut() {
        slot.extend(pairs.iter().map(|(key, value)| (key.clone(), json!(value))));
    }
}

/// Adds labels to the selectors of an object.
fn select(object: &mut Object, pairs: &Labels) {
    let value = &mut object.value;
    match (object.group.as_str(), object.kind.as_str()) {
        ("", "Service") if has(value, "/spec/selector") => add(value, "/spec", "selector", pairs),
        ("apps", _) => {
            add(value, "/spec", "selector", &Labels::new());
            add(value, "/spec/selector", "matchLabels", pairs);
        }
        ("policy", "PodDisruptionBudget") => add(value, "/spec/selector", "matchLabels", pairs),
        ("networking.k8s.io", "NetworkPolicy") => {
            add(value, "/spec/podSelector", "matchLabels", pairs);
            let pointers: Vec<String> = peers_of(object)
                .into_iter()
                .map(|(_, path)| format!("/{}/podSelector", path.replace(['.', '['], "/").replace(']', "")))
                .collect();
            for pointer in pointers {
                if has(&object.value, &format!("{pointer}/matchLabels")) {
                    add(&mut object.value, &pointer, "matchLabels", pairs);
                }
            }
        }
        _ => {}
    }
}

fn each_container(object: &mut Object, act: &mut dyn FnMut(&mut Value)) {
    for spec in ["/spec", "/spec/template/spec", "/spec/jobTemplate/spec/template/spec"] {
        for which in ["containers", "initContainers", "ephemeralContainers"] {
            let found = object.value.pointer_mut(&format!("{spec}/{which}")).and_then(Value::as_array_mut);
            found.into_iter().flatten().filter(|container| container.is_object()).for_each(&mut *act);
        }
    }
}

/// An image's name without tag and digest.
fn bare_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    match name.rfind(':') {
        Some(at) if !name[at..].contains('/') => &name[..at],
        _ => name,
    }
}

fn changed(image: &Value, own: &str) -> String {
    let name = match text(image, "/newName") {
        "" => bare_name(own),
        name => name,
    };
    let tag = image.get("newTag").map(|tag| tag.as_str().map_or_else(|| tag.to_string(), str::to_owned));
    match (tag, text(image, "/digest")) {
        (_, digest) if !digest.is_empty() => format!("{name}@{digest}"),
        (Some(tag), _) => format!("{name}:{tag}"),
        (None, _) => format!("{name}{}", &own[bare_name(own).len()..]),
    }
}
