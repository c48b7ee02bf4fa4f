//! Objects of custom resources against their OpenAPI schema: defaults are filled in, faults listed with the texts of
//! Kubernetes. Patterns, formats and rules in CEL are not evaluated.

use mycelium_api::field::{ErrorKind, FieldError, Path};
use serde_json::Value;

/// Fills in the defaults of a schema.
pub fn fill_defaults(schema: &Value, value: &mut Value) {
    if let Some(members) = value.as_object_mut() {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let missing = match members.get(name) {
                None => true,
                Some(Value::Null) => property["nullable"] != true,
                Some(_) => false,
            };
            match property.get("default") {
                Some(default) if missing => drop(members.insert(name.clone(), default.clone())),
                _ if members.get(name) == Some(&Value::Null) && missing => drop(members.remove(name)),
                _ => {}
            }
            if let Some(member) = members.get_mut(name) {
                fill_defaults(property, member);
            }
        }
        if schema["additionalProperties"].is_object() {
            members.values_mut().for_each(|member| fill_defaults(&schema["additionalProperties"], member));
        }
    } else if let Some(items) = value.as_array_mut() {
        items.iter_mut().for_each(|item| fill_defaults(&schema["items"], item));
    }
}

/// What is wrong with an object.
pub fn check(schema: &Value, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_members(schema, object, &Path::default(), &mut errors, true);
    errors
}

fn check_value(schema: &Value, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !type_fits(schema, value) {
        let (wanted, found) = (schema["type"].as_str().unwrap_or_default(), type_name(value));
        let detail = format!("{path} in body must be of type {wanted}: {found:?}");
        errors.push(FieldError::new(ErrorKind::TypeInvalid, path, found, detail));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &names));
    }
    match value {
        Value::Number(_) => check_number(schema, value, path, errors),
        Value::String(text) => check_length(schema, "Length", text.chars().count(), value, path, errors),
        Value::Array(items) => {
            check_length(schema, "Items", items.len(), value, path, errors);
            for (index, item) in items.iter().enumerate() {
                check_value(&schema["items"], item, &path.index(index), errors);
            }
        }
        Value::Object(members) => {
            check_length(schema, "Properties", members.len(), value, path, errors);
            check_members(schema, value, path, errors, false);
        }
        _ => {}
    }
}

/// `top`: version, kind and metadata are checked elsewhere.
fn check_members(schema: &Value, object: &Value, path: &Path, errors: &mut Vec<FieldError>, top: bool) {
    let elsewhere = |name: &str| top && matches!(name, "apiVersion" | "kind" | "metadata");
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if object.get(name).is_none() && !elsewhere(name) {
            errors.push(FieldError::required(&path.child(name), ""));
        }
    }
    for (name, member) in object.as_object().into_iter().flatten().filter(|(name, _)| !elsewhere(name)) {
        match schema["properties"].get(name) {
            Some(property) => check_value(property, member, &path.child(name), errors),
            None if schema["additionalProperties"].is_object() => {
                check_value(&schema["additionalProperties"], member, &path.child(name), errors);
            }
            None => {}
        }
    }
}

fn type_fits(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => true,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_number(schema: &Value, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let number = value.as_f64().unwrap_or_default();
    let mut refuse = |detail: String| errors.push(FieldError::invalid(path, value.clone(), detail));
    if let Some(low) = schema["minimum"].as_f64() {
        let strict = schema["exclusiveMinimum"] == true;
        if number < low || strict && number == low {
            let words = if strict { "greater than" } else { "greater than or equal to" };
            refuse(format!("{path} in body should be {words} {low}"));
        }
    }
    if let Some(high) = schema["maximum"].as_f64() {
        let strict = schema["exclusiveMaximum"] == true;
        if number > high || strict && number == high {
            let words = if strict { "less than" } else { "less than or equal to" };
            refuse(format!("{path} in body should be {words} {high}"));
        }
    }
}

fn check_length(schema: &Value, what: &str, length: usize, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let unit = match what {
        "Length" => "chars long",
        "Items" => "items",
        _ => "properties",
    };
    let limit = |side: &str| schema[format!("{side}{what}")].as_u64().and_then(|n| usize::try_from(n).ok());
    if let Some(low) = limit("min").filter(|low| length < *low) {
        let verb = if what == "Length" { "be" } else { "have" };
        let detail = format!("{path} in body should {verb} at least {low} {unit}");
        errors.push(FieldError::invalid(path, value.clone(), detail));
    }
    if let Some(high) = limit("max").filter(|high| length > *high) {
        let kind = if what == "Length" { ErrorKind::TooLong } else { ErrorKind::TooMany };
        errors.push(FieldError::new(kind, path, Value::Null, format!("may not be more than {high} {unit}")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_default_and_refuse() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "tags": {"type": "array", "maxItems": 1, "items": {"type": "string", "minLength": 2}}}}}});
        let mut good = json!({"spec": {"size": 1}});
        fill_defaults(&schema, &mut good);
        assert_eq!(good["spec"]["mode"], "a");
        assert!(check(&schema, &good).is_empty());
        let texts = |object: Value| check(&schema, &object).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(json!({"spec": {}})), ["spec.size: Required value"]);
        assert_eq!(
            texts(json!({"spec": {"size": "x"}})),
            ["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""]
        );
        assert_eq!(
            texts(json!({"spec": {"size": 0, "mode": "c", "tags": ["x", "yy"]}})),
            [
                "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\"",
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
                "spec.tags: Too many: may not be more than 1 items",
                "spec.tags[0]: Invalid value: \"x\": spec.tags[0] in body should be at least 2 chars long",
            ]
        );
    }
}
