//! A type as a JSON schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Custom, words};
use crate::schema::{Field, Gvk, ListKind, Scalar, Shape, Type, TypeRef, groups, types};

/// The two versions of the specification.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// The schema of a named type.
    pub fn definition(self, ty: &Type) -> Value {
        let mut schema = self.inline(ty);
        if let Some(gvk) = ty.gvk {
            schema["x-kubernetes-group-version-kind"] = Value::Array(kinds(gvk));
        }
        schema
    }

    /// The schema at a place where a type is used.
    fn usage(self, ty: &TypeRef) -> Value {
        if ty.name.is_empty() { self.inline(ty) } else { self.reference(&ty.name) }
    }

    fn inline(self, ty: &Type) -> Value {
        match &ty.shape {
            // These hold a value of any type, the others an object.
            Shape::Any if ty.short_name().starts_with("JSON") => json!({}),
            Shape::Any => json!({"type": "object"}),
            Shape::Scalar(scalar) => self.scalar(*scalar),
            Shape::List { item, kind, explicit } => {
                let mut schema = json!({"type": "array", "items": self.usage(item)});
                match kind {
                    ListKind::Atomic if !explicit => {}
                    ListKind::Atomic => schema["x-kubernetes-list-type"] = "atomic".into(),
                    ListKind::Set => schema["x-kubernetes-list-type"] = "set".into(),
                    ListKind::Map(keys) => {
                        schema["x-kubernetes-list-type"] = "map".into();
                        schema["x-kubernetes-list-map-keys"] = json!(keys);
                    }
                }
                schema
            }
            Shape::Map { value, atomic } => {
                mark_atomic(json!({"type": "object", "additionalProperties": self.usage(value)}), *atomic)
            }
            Shape::Struct { fields, atomic, .. } => mark_atomic(self.object(ty, fields), *atomic),
        }
    }

    fn object(self, ty: &Type, fields: &[Field]) -> Value {
        let words = |field: &str| match ty.short_name() {
            "ObjectMeta" => words::of_metadata(field),
            _ if ty.gvk.is_some() => words::of_object(field),
            _ => None,
        };
        let described = |field: &Field| self.described(self.property(field), words(&field.name));
        let properties: Map<String, Value> =
            fields.iter().map(|f| (f.name.clone().into_owned(), described(f))).collect();
        let mut schema = json!({"type": "object", "properties": properties});
        let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name.as_ref()).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        schema
    }

    fn described(self, mut schema: Value, words: Option<&str>) -> Value {
        let Some(words) = words else { return schema };
        // In version 3 nothing may stand beside a reference.
        if self == Self::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        schema["description"] = words.into();
        schema
    }

    fn property(self, field: &Field) -> Value {
        let mut schema = self.usage(&field.ty);
        if self == Self::V3 {
            let default = if field.value_struct { Some(json!({})) } else { field.default.clone() };
            if let Some(default) = default {
                if schema.get("$ref").is_some() {
                    schema = json!({"allOf": [schema]});
                }
                schema["default"] = default;
            }
        }
        if let Some(strategy) = &field.patch_strategy {
            schema["x-kubernetes-patch-strategy"] = Value::String(strategy.clone().into_owned());
        }
        if let Some(key) = &field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = Value::String(key.clone().into_owned());
        }
        schema
    }

    fn scalar(self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
            Scalar::IntOrString if self == Self::V3 => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
            Scalar::IntOrString => json!({"type": "string", "format": "int-or-string"}),
            Scalar::Quantity if self == Self::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Scalar::Quantity => json!({"type": "string"}),
        }
    }

    /// The schemas of a custom resource and its list.
    pub fn custom(self, custom: &Custom<'_>) -> [(String, Value); 2] {
        let gvk = |kind: &str| json!([{"group": custom.group, "version": custom.version, "kind": kind}]);
        let meta = |name: &str| {
            let reference = self.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"));
            self.described(reference, words::of_object("metadata"))
        };
        // What is no schema is shown as one that says nothing.
        let plain = || json!({"type": "object"});
        let schema = custom.schema.and_then(|text| serde_json::from_slice(text).ok());
        let mut object = schema.filter(Value::is_object).unwrap_or_else(plain);
        if self == Self::V2 && object["x-kubernetes-preserve-unknown-fields"] == true {
            // Any property named here would be the only one that kubectl lets through.
            object = plain();
        } else {
            if self == Self::V2 {
                simplify(&mut object);
            }
            if !object["properties"].is_object() {
                object["properties"] = json!({});
            }
            for name in ["apiVersion", "kind"] {
                object["properties"][name] = self.described(json!({"type": "string"}), words::of_object(name));
            }
            object["properties"]["metadata"] = meta("ObjectMeta");
        }
        object["x-kubernetes-group-version-kind"] = gvk(custom.kind);
        let name = custom.definition(custom.kind);
        let list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": meta("ListMeta"),
                "items": {"type": "array", "items": self.reference(&name)},
            },
            "x-kubernetes-group-version-kind": gvk(custom.list_kind),
        });
        [(name, object), (custom.definition(custom.list_kind), list)]
    }
}

fn mark_atomic(mut schema: Value, atomic: bool) -> Value {
    if atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    schema
}

fn kinds(gvk: Gvk) -> Vec<Value> {
    let one = |group: &str, version: &str| json!({"group": group, "version": version, "kind": gvk.kind});
    if gvk.group != "*" {
        return vec![one(gvk.group, gvk.version)];
    }
    groups().iter().flat_map(|g| g.versions.iter().map(|v| one(g.name, v))).collect()
}

/// Version 2 knows neither nullable values nor alternatives: such a place takes anything.
fn simplify(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    let opaque = ["nullable", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"];
    if opaque.iter().any(|key| map.get(*key) == Some(&Value::Bool(true))) {
        map.retain(|key, _| key.starts_with("x-"));
        return;
    }
    for key in ["oneOf", "anyOf", "allOf", "not", "nullable"] {
        map.remove(key);
    }
    for (key, value) in map {
        match key.as_str() {
            "properties" => value.as_object_mut().into_iter().flat_map(|p| p.values_mut()).for_each(simplify),
            "items" | "additionalProperties" => simplify(value),
            _ => {}
        }
    }
}

/// Adds to `found` the names of a type and of all types that it uses.
pub(super) fn reachable(ty: &Type, found: &mut BTreeSet<String>) {
    if !ty.name.is_empty() && !found.insert(ty.name.clone().into_owned()) {
        return;
    }
    match &ty.shape {
        Shape::List { item, .. } => reachable(item, found),
        Shape::Map { value, .. } => reachable(value, found),
        Shape::Struct { fields, .. } => fields.iter().for_each(|f| reachable(&f.ty, found)),
        Shape::Any | Shape::Scalar(_) => {}
    }
}

/// The name of a kind's type; nothing for kinds that are only parameters.
pub(super) fn name_of(group: &str, version: &str, kind: &str) -> Option<String> {
    types().for_gvk(group, version, kind).map(|t| t.name.clone().into_owned())
}
