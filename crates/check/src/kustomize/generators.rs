//! ConfigMaps and Secrets that a kustomization makes.

use serde_json::{Map, Value, json};

use super::patches::same_namespace;
use super::{Builder, Kustomization};
use crate::near::nearest;
use crate::set::Object;
use crate::value::{list, text};

impl Builder<'_> {
    pub(super) fn generators(&mut self, of: &Kustomization, objects: &mut Vec<Object>) {
        for (field, kind) in [("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")] {
            for (index, generator) in list(&of.value, &format!("/{field}")).iter().enumerate() {
                let field = format!("{field}[{index}]");
                let name = text(generator, "/name");
                if name.is_empty() {
                    self.fault("kustomize-generator", of, &field, format!("the {kind} that is made has no name"), "");
                    continue;
                }
                let data = self.data(of, generator, &field);
                self.generate(of, (kind, generator, &field), data, objects);
            }
        }
    }

    fn generate(
        &mut self,
        of: &Kustomization,
        (kind, generator, field): (&str, &Value, &str),
        data: Map<String, Value>,
        objects: &mut Vec<Object>,
    ) {
        let (name, namespace) = (text(generator, "/name"), text(generator, "/namespace"));
        let behaviour = text(generator, "/behavior");
        let named: Vec<usize> =
            (0..objects.len()).filter(|at| objects[*at].is("", kind) && objects[*at].name == name).collect();
        let exact = named.iter().copied().find(|at| same_namespace(&objects[*at].namespace, namespace));
        match (behaviour, exact.or(named.first().copied())) {
            ("" | "create", Some(_)) if exact.is_some() => {
                let message = format!("{kind} {name} is already there, and a generator makes a new one by default");
                let fix = "write behavior: merge (add keys) or replace";
                self.fault("kustomize-generator", of, field, message, fix);
            }
            ("merge" | "replace", Some(at)) => {
                if exact.is_none() {
                    let there = objects[at].namespace.clone();
                    let said = if namespace.is_empty() { "none".to_owned() } else { namespace.to_owned() };
                    let message = format!(
                        "the generator is to {behaviour} {kind} {name}, which is in namespace {there}, and names {said}: kustomize does not find it"
                    );
                    self.fault(
                        "kustomize-generator-namespace",
                        of,
                        field,
                        message,
                        format!("add namespace: {there} to the generator"),
                    );
                }
                overwrite(&mut objects[at], behaviour == "replace", data);
                objects[at].origins.push(of.origin_of(field));
            }
            ("merge" | "replace", None) => {
                let message = format!("there is no {kind} {name} to {behaviour}");
                let kinds = objects.iter().filter(|object| object.is("", kind)).map(|object| object.name.as_str());
                let fix = match nearest(name, kinds) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "leave behavior out to make a new one".to_owned(),
                };
                self.fault("kustomize-generator-target", of, field, message, fix);
            }
            _ => {
                let mut metadata = json!({ "name": name });
                if !namespace.is_empty() {
                    metadata["namespace"] = namespace.into();
                }
                let member = if kind == "Secret" { "stringData" } else { "data" };
                let value = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, member: data});
                objects.extend(Object::new(value, vec![of.origin_of(field)]));
            }
        }
    }

    /// The keys that literals and files give.
    fn data(&mut self, of: &Kustomization, generator: &Value, field: &str) -> Map<String, Value> {
        let mut data = Map::new();
        for (index, literal) in list(generator, "/literals").iter().enumerate() {
            match literal.as_str().and_then(|literal| literal.split_once('=')) {
                Some((key, value)) => drop(data.insert(key.to_owned(), value.trim_matches(['"', '\'']).into())),
                None => {
                    let message = "a literal must look like KEY=value".to_owned();
                    self.fault("kustomize-generator", of, &format!("{field}.literals[{index}]"), message, "");
                }
            }
        }
        for (index, entry) in list(generator, "/files").iter().enumerate() {
            let entry = entry.as_str().unwrap_or_default();
            let (key, name) = entry.split_once('=').unwrap_or((entry.rsplit('/').next().unwrap_or_default(), entry));
            if self.file(of, name, &format!("{field}.files[{index}]")).is_some() {
                data.insert(key.to_owned(), "".into());
            }
        }
        let single = generator.get("env").and_then(Value::as_str).map(|name| (name, format!("{field}.env")));
        let several = list(generator, "/envs").iter().enumerate();
        let several = several.filter_map(|(index, name)| Some((name.as_str()?, format!("{field}.envs[{index}]"))));
        for (name, field) in single.into_iter().chain(several) {
            let Some(path) = self.file(of, name, &field) else { continue };
            let shown = self.source.show(&path);
            for line in self.text(&path, &shown).unwrap_or_default().lines().map(str::trim) {
                let key = line.split('=').next().unwrap_or_default();
                if !key.is_empty() && !key.starts_with('#') {
                    data.insert(key.to_owned(), "".into());
                }
            }
        }
        data
    }
}

fn overwrite(object: &mut Object, replace: bool, data: Map<String, Value>) {
    let member = if object.kind == "Secret" { "stringData" } else { "data" };
    let Some(fields) = object.value.as_object_mut() else { return };
    if replace {
        fields.remove("data");
        fields.remove("stringData");
    }
    let slot = fields.entry(member).or_insert_with(|| json!({}));
    if let Some(slot) = slot.as_object_mut() {
        slot.extend(data);
    }
}
