//! The expressions of a policy against the types of the kinds it is about: what does not fit is told in its status.

use mycelium_apimachinery::schema::{Scalar, Shape, Type};
use mycelium_cel::{Declared, Program, check};
use serde_json::{Map, Value, json};

use crate::resources::{Resource, Table};

/// Nesting beyond this is taken as it comes: some types contain themselves.
const DEPTH_MAX: usize = 12;
/// Kinds that one policy is checked against.
const KINDS_MAX: usize = 10;

/// A type as a schema without references.
fn schema(ty: &Type, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return json!({});
    }
    match &ty.shape {
        Shape::Any => json!({}),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Int32 | Scalar::Int64 => json!({"type": "integer"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Double => json!({"type": "number"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
            Scalar::IntOrString | Scalar::Quantity => json!({"x-kubernetes-int-or-string": true}),
        },
        Shape::List { item, .. } => json!({"type": "array", "items": schema(item, depth + 1)}),
        Shape::Map { value, .. } => json!({"type": "object", "additionalProperties": schema(value, depth + 1)}),
        Shape::Struct { preserve_unknown: true, .. } => json!({}),
        Shape::Struct { fields, .. } => {
            let members = fields.iter().map(|field| (field.name.to_string(), schema(&field.ty, depth + 1)));
            json!({"type": "object", "properties": members.collect::<Map<String, Value>>()})
        }
    }
}

/// The kinds a policy names outright: those behind a `*` are not checked.
fn kinds<'t>(table: &'t Table, spec: &Value) -> Vec<&'t Resource> {
    let texts = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.filter(|text| !text.contains('*')).map(str::to_owned).collect()
    };
    let mut found: Vec<&Resource> = Vec::new();
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        for group in texts(rule, "apiGroups") {
            for version in texts(rule, "apiVersions") {
                for resource in texts(rule, "resources") {
                    let known = table.get(&group, &version, &resource).map(|resource| &**resource);
                    found.extend(known.filter(|known| !found.iter().any(|other| std::ptr::eq(*other, *known))));
                }
            }
        }
    }
    found.truncate(KINDS_MAX);
    found
}

/// The `typeChecking` of a policy's status.
pub fn checked(table: &Table, spec: &Value) -> Value {
    let params = params(table, spec);
    let schemas: Vec<(String, Value)> = kinds(table, spec)
        .into_iter()
        .map(|resource| {
            let name = format!("{}/{}, Kind={}", resource.group(), resource.version(), resource.kind());
            (name, schema(&resource.schema, 0))
        })
        .collect();
    let list = |key: &str| spec[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let variables: Vec<String> =
        list("variables").iter().filter_map(|variable| variable["name"].as_str()).map(str::to_owned).collect();
    let mut warnings = Vec::new();
    for (key, field) in [("validations", "expression"), ("validations", "messageExpression")] {
        for (index, rule) in list(key).iter().enumerate() {
            let Some(text) = rule[field].as_str().filter(|text| !text.trim().is_empty()) else { continue };
            let found: Vec<String> = schemas
                .iter()
                .filter_map(|(name, schema)| {
                    let fault = fault(text, schema, params.as_ref(), &variables)?;
                    Some(format!("{name}: {fault}\n"))
                })
                .collect();
            if !found.is_empty() {
                let place = format!("spec.{key}[{index}].{field}");
                warnings.push(json!({"fieldRef": place, "warning": found.concat()}));
            }
        }
    }
    if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) }
}

fn params(table: &Table, spec: &Value) -> Option<Value> {
    let text = |key: &str| spec["paramKind"][key].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let facts = table.facts().find(|f| f.group == group && f.version == version && f.kind == text("kind"))?;
    table.get(group, version, facts.resource).map(|resource| schema(&resource.schema, 0))
}

fn fault(text: &str, object: &Value, params: Option<&Value>, variables: &[String]) -> Option<String> {
    let mut declared = Declared { variables: variables.to_vec(), ..Declared::default() };
    for name in ["request", "namespaceObject", "authorizer"] {
        declared.names.insert(name.to_owned(), None);
    }
    for name in ["object", "oldObject"] {
        declared.names.insert(name.to_owned(), Some(object));
    }
    declared.names.insert("params".to_owned(), params);
    let program = Program::parse(text).ok()?;
    check(&program, &declared).err().map(|error| error.to_string())
}
