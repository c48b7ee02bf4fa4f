//! A type from the `openAPIV3Schema` of a CustomResourceDefinition.

use std::borrow::Cow;

use serde_json::Value;

use super::types::{Field, ListKind, Scalar, Shape, Type, TypeRef, types};

/// Makes the type of a custom resource from its schema. `apiVersion`, `kind` and `metadata` are those of every
/// object, whatever the schema says of them. Without a schema every field is kept.
pub fn from_crd_schema(schema: Option<&Value>, preserve_unknown: bool) -> Type {
    let mut ty = match schema {
        Some(schema) => convert(schema),
        None => Type { name: Cow::Borrowed(""), shape: Shape::Any, gvk: None },
    };
    if let Shape::Any = ty.shape {
        ty.shape = Shape::Struct { fields: Vec::new(), atomic: false, preserve_unknown: true };
    }
    if let Shape::Struct { fields, preserve_unknown: preserve, .. } = &mut ty.shape {
        *preserve |= preserve_unknown;
        set_common_fields(fields);
    }
    ty
}

fn set_common_fields(fields: &mut Vec<Field>) {
    fields.retain(|f| !matches!(f.name.as_ref(), "apiVersion" | "kind" | "metadata"));
    for name in ["apiVersion", "kind"] {
        fields.push(Field::new(Cow::Borrowed(name), scalar(Scalar::String)));
    }
    let mut metadata = Field::new(Cow::Borrowed("metadata"), types().object_meta());
    metadata.value_struct = true;
    fields.push(metadata);
    fields.sort_by(|a, b| a.name.cmp(&b.name));
}

fn scalar(scalar: Scalar) -> TypeRef {
    TypeRef::new(Type { name: Cow::Borrowed(""), shape: Shape::Scalar(scalar), gvk: None })
}

fn convert(schema: &Value) -> Type {
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
    let shape = if flag("x-kubernetes-int-or-string") {
        Shape::Scalar(Scalar::IntOrString)
    } else if flag("x-kubernetes-embedded-resource") {
        embedded(schema, flag("x-kubernetes-preserve-unknown-fields"))
    } else {
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => object(schema, flag("x-kubernetes-preserve-unknown-fields")),
            Some("array") => list(schema),
            Some("string") => Shape::Scalar(Scalar::String),
            Some("boolean") => Shape::Scalar(Scalar::Bool),
            Some("number") => Shape::Scalar(Scalar::Double),
            Some("integer") if schema.get("format").and_then(Value::as_str) == Some("int32") => {
                Shape::Scalar(Scalar::Int32)
            }
            Some("integer") => Shape::Scalar(Scalar::Int64),
            _ => Shape::Any,
        }
    };
    Type { name: Cow::Borrowed(""), shape, gvk: None }
}

fn object(schema: &Value, preserve: bool) -> Shape {
    let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
    let fields = fields(schema);
    if fields.is_empty() {
        match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => return Shape::Any,
            Some(value @ Value::Object(_)) => {
                return Shape::Map { value: TypeRef::new(convert(value)), atomic };
            }
            _ => {}
        }
    }
    Shape::Struct { fields, atomic, preserve_unknown: preserve }
}

fn embedded(schema: &Value, preserve: bool) -> Shape {
    let mut fields = fields(schema);
    set_common_fields(&mut fields);
    Shape::Struct { fields, atomic: false, preserve_unknown: preserve }
}

fn fields(schema: &Value) -> Vec<Field> {
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let mut fields: Vec<Field> = properties
        .map(|(name, property)| {
            let mut field = Field::new(Cow::Owned(name.clone()), TypeRef::new(convert(property)));
            field.required = required.contains(&name.as_str());
            field.default = property.get("default").cloned();
            field
        })
        .collect();
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    fields
}

fn list(schema: &Value) -> Shape {
    let stated = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let kind = match stated {
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(
            schema
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|k| k.as_str().map(|k| Cow::Owned(k.to_owned())))
                .collect(),
        ),
        _ => ListKind::Atomic,
    };
    let item = TypeRef::new(
        schema.get("items").map_or_else(|| Type { name: Cow::Borrowed(""), shape: Shape::Any, gvk: None }, convert),
    );
    Shape::List { item, kind, explicit: stated.is_some() }
}
