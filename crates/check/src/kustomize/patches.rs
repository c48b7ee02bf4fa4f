//! Patches, and the objects they are for.

use mycelium_api::selector::Selector;
use mycelium_apimachinery::patch;
use mycelium_apimachinery::schema::types;
use serde_json::Value;

use super::{Builder, Kustomization};
use crate::document::{self, Document};
use crate::finding::Severity;
use crate::near::nearest;
use crate::positions::Origin;
use crate::set::Object;
use crate::value::{has, list, text};

/// A patch as a kustomization lists it.
struct Entry<'a> {
    /// A path.
    path: Option<&'a str>,
    /// The text of the patch.
    inline: Option<&'a str>,
    /// Which objects it is for; null if the patch says it itself.
    target: &'a Value,
    field: String,
}

impl Builder<'_> {
    pub(super) fn patches(&mut self, of: &Kustomization, objects: &mut Vec<Object>) {
        for entry in entries(&of.value) {
            for document in self.patch_documents(of, &entry) {
                if document.value.is_array() || entry.target.is_object() {
                    self.targeted(of, &entry, document, objects);
                } else {
                    self.strategic(document, objects);
                }
            }
        }
    }

    fn patch_documents(&mut self, of: &Kustomization, entry: &Entry<'_>) -> Vec<Document> {
        let (documents, findings) = if let Some(text) = entry.inline {
            let (line, _) = of.origin.positions.line(&entry.field);
            document::parse_at(&of.origin.file, text, line + 1)
        } else {
            let field = format!("{}.path", entry.field);
            let field = if of.origin.positions.line(&field).1 { field } else { entry.field.clone() };
            let Some(path) = self.file(of, entry.path.unwrap_or_default(), &field) else { return Vec::new() };
            let shown = self.source.show(&path);
            let Some(text) = self.text(&path, &shown) else { return Vec::new() };
            document::parse(&shown, &text)
        };
        self.report.extend(findings);
        documents
    }

    /// A patch that names its object itself.
    fn strategic(&mut self, document: Document, objects: &mut Vec<Object>) {
        let Some(named) = Object::new(document.value, vec![document.origin]) else {
            return;
        };
        let alike: Vec<usize> = (0..objects.len())
            .filter(|at| objects[*at].is(&named.group, &named.kind) && self.is_called(&objects[*at].name, &named.name))
            .collect();
        let exact = alike.iter().copied().find(|at| same_namespace(&objects[*at].namespace, &named.namespace));
        match (exact, alike.first()) {
            (Some(at), _) => apply(&mut objects[at], &named.value, &named.origins),
            (None, Some(at)) => {
                let there = objects[*at].namespace.clone();
                self.wrong_namespace(&named, &there);
                apply(&mut objects[*at], &named.value, &named.origins);
            }
            (None, None) => self.no_target(&named, objects),
        }
        objects.retain(|object| object.value["$patch"] != "delete");
    }

    fn wrong_namespace(&mut self, named: &Object, there: &str) {
        let said = match named.namespace.as_str() {
            "" => "names no namespace".to_owned(),
            other => format!("names namespace {other}"),
        };
        let message = format!(
            "the patch for {} {} {said}, and the object is in {}: kustomize does not find it",
            named.kind,
            named.name,
            if there.is_empty() { "none" } else { there }
        );
        let fix = match there {
            "" => "leave the namespace out of the patch".to_owned(),
            there => format!("add namespace: {there} to the patch's metadata"),
        };
        let field = if has(&named.value, "/metadata/namespace") { "metadata.namespace" } else { "metadata.name" };
        self.report.object(Severity::Error, "kustomize-patch-namespace", named, field, message, fix);
    }

    fn no_target(&mut self, named: &Object, objects: &[Object]) {
        let message = format!("there is no {} {} for this patch", named.kind, named.name);
        let kinds = objects.iter().filter(|object| object.kind == named.kind);
        let other = objects.iter().find(|object| object.kind == named.kind && object.name == named.name);
        let fix = match (other, nearest(&named.name, kinds.map(|object| object.name.as_str()))) {
            (Some(object), _) => format!("write apiVersion: {}, as the object has it", object.api_version()),
            (None, Some(near)) => format!("did you mean {near}?"),
            (None, None) => "add the object to resources, or take the patch out".to_owned(),
        };
        self.report.object(Severity::Error, "kustomize-patch-target", named, "metadata.name", message, fix);
    }

    /// A patch with a target in the kustomization.
    fn targeted(&mut self, of: &Kustomization, entry: &Entry<'_>, document: Document, objects: &mut Vec<Object>) {
        let target = entry.target;
        let chosen: Vec<usize> = (0..objects.len()).filter(|at| self.is_target(&objects[*at], target)).collect();
        let field = format!("{}.target", entry.field);
        if chosen.is_empty() {
            let shown = format!("{} {}", text(target, "/kind"), text(target, "/name"));
            let message = format!("no object is the target ({}) of this patch", shown.trim());
            let kinds = objects.iter().filter(|object| object.kind == text(target, "/kind"));
            let near = nearest(text(target, "/name"), kinds.map(|object| object.name.as_str()));
            let fix = near.map(|near| format!("did you mean {near}?")).unwrap_or_default();
            return self.fault("kustomize-patch-target", of, &field, message, fix);
        }
        for at in chosen {
            if !document.value.is_array() {
                apply(&mut objects[at], &document.value, std::slice::from_ref(&document.origin));
            } else if let Err(error) = patch::json(&mut objects[at].value, &document.value) {
                let message = format!("the patch does not fit {}: {error}", objects[at]);
                return self.fault("kustomize-patch-failed", of, &entry.field, message, "");
            }
        }
        objects.retain(|object| object.value["$patch"] != "delete");
    }

    fn is_target(&self, object: &Object, target: &Value) -> bool {
        let fits = |field: &str, own: &str| {
            let wanted = text(target, &format!("/{field}"));
            wanted.is_empty() || expression_fits(wanted, own)
        };
        let selects = |field: &str, member: &str| {
            let wanted = text(target, &format!("/{field}"));
            wanted.is_empty()
                || Selector::parse(wanted)
                    .is_ok_and(|selector| selector.matches_value(&object.value["metadata"][member]))
        };
        let name = text(target, "/name");
        (fits("name", &object.name) || self.is_called(&object.name, name))
            && fits("group", &object.group)
            && fits("version", &object.version)
            && fits("kind", &object.kind)
            && fits("namespace", &object.namespace)
            && selects("labelSelector", "labels")
            && selects("annotationSelector", "annotations")
    }

    /// Whether a name is meant, with or without prefixes and suffixes of the kustomizations below.
    fn is_called(&self, own: &str, name: &str) -> bool {
        own == name || self.affixes.iter().any(|(prefix, suffix)| format!("{prefix}{own}{suffix}") == name)
    }
}

fn entries(value: &Value) -> Vec<Entry<'_>> {
    let mut found = Vec::new();
    for (index, entry) in list(value, "/patchesStrategicMerge").iter().enumerate() {
        let entry = entry.as_str().unwrap_or_default();
        let inline = entry.contains('\n').then_some(entry);
        let path = inline.is_none().then_some(entry);
        found.push(Entry { path, inline, target: &Value::Null, field: format!("patchesStrategicMerge[{index}]") });
    }
    for field in ["patches", "patchesJson6902"] {
        for (index, entry) in list(value, &format!("/{field}")).iter().enumerate() {
            found.push(Entry {
                path: entry.get("path").and_then(Value::as_str),
                inline: entry.get("patch").and_then(Value::as_str),
                target: &entry["target"],
                field: format!("{field}[{index}]"),
            });
        }
    }
    found.retain(|entry| entry.path.is_some() || entry.inline.is_some());
    found
}

/// No namespace is the default one, as kustomize sees it.
pub(super) fn same_namespace(a: &str, b: &str) -> bool {
    let effective = |name: &str| if name.is_empty() { "default".to_owned() } else { name.to_owned() };
    effective(a) == effective(b)
}

/// Changes an object by a patch; what names it stays.
fn apply(object: &mut Object, change: &Value, origins: &[Origin]) {
    let mut change = change.clone();
    if let Some(fields) = change.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
        if fields.get("$patch").is_some_and(|patch| patch == "delete") {
            object.value["$patch"] = "delete".into();
            return;
        }
    }
    if let Some(metadata) = change.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("name");
        metadata.remove("namespace");
    }
    let ty = types().for_gvk(&object.group, &object.version, &object.kind);
    let merged = ty.is_some_and(|ty| patch::strategic(ty, &mut object.value, &change).is_ok());
    if !merged {
        patch::merge(&mut object.value, &change);
    }
    object.origins.extend_from_slice(origins);
}

/// Whether a name fits an expression, which must fit all of it. Of expressions, `.*` is understood; what has more in it is
/// taken to fit.
fn expression_fits(wanted: &str, own: &str) -> bool {
    if wanted == own {
        return true;
    }
    let wanted = wanted.trim_start_matches('^').trim_end_matches('$');
    let parts: Vec<&str> = wanted.split(".*").collect();
    if parts.iter().any(|part| part.contains(['*', '+', '?', '[', '(', '{', '|', '\\'])) {
        return true;
    }
    let [first, middle @ .., last] = &parts[..] else { return wanted == own };
    let Some(rest) = own.strip_prefix(first) else { return false };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    middle.iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_names() {
        for (wanted, own, fits) in [
            ("web", "web", true),
            ("web", "web-2", false),
            ("web.*", "web-2", true),
            (".*", "anything", true),
            ("^a.*b.*c$", "a-b-c", true),
            ("a.*x.*c", "a-b-c", false),
            ("a|b", "b", true),
        ] {
            assert_eq!(expression_fits(wanted, own), fits, "{wanted} {own}");
        }
    }
}
