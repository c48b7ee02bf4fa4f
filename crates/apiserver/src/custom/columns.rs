//! Printer columns of custom resources.

use jiff::Timestamp;
use mycelium_kinds::table;
use serde_json::{Value, json};

/// One of `additionalPrinterColumns`.
pub struct PrinterColumn {
    definition: Value,
    kind: String,
    path: String,
}

/// The columns of a version.
pub fn from_version(version: &Value) -> Vec<PrinterColumn> {
    let list = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let column = |c: &Value| PrinterColumn {
        definition: json!({"name": c["name"], "type": c["type"], "format": text(&c["format"]),
            "description": text(&c["description"]), "priority": c["priority"].as_i64().unwrap_or(0)}),
        kind: text(&c["type"]),
        path: text(&c["jsonPath"]),
    };
    list.iter().map(column).collect()
}

/// The definitions of all columns, the name first.
pub fn definitions(columns: &[PrinterColumn]) -> Vec<Value> {
    let name = json!({"name": "Name", "type": "string", "format": "name",
        "description": "Name of the object, unique in its scope.", "priority": 0});
    std::iter::once(name).chain(columns.iter().map(|c| c.definition.clone())).collect()
}

/// The cells of an object.
pub fn cells(columns: &[PrinterColumn], object: &Value, now: Timestamp) -> Vec<Value> {
    let cell = |column: &PrinterColumn| {
        let found = find(object, &column.path);
        match (column.kind.as_str(), found.first()) {
            (_, None) => Value::Null,
            ("date", Some(Value::String(time))) => match time.parse::<Timestamp>() {
                Ok(then) => table::human_duration(table::seconds_between(then, now)).into(),
                Err(_) => "<invalid>".into(),
            },
            ("string", Some(Value::String(_))) | ("integer" | "number" | "boolean", Some(_)) => found[0].clone(),
            (_, Some(value)) => value.to_string().into(),
        }
    };
    std::iter::once(object["metadata"]["name"].clone()).chain(columns.iter().map(cell)).collect()
}

/// What a simple JSON path finds: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `.items[0]`.
pub fn find<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![value];
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((step, after)) = inner.split_once(']') else { return Vec::new() };
            found = found.into_iter().flat_map(|value| bracket(value, step)).collect();
            rest = after;
        } else {
            let name = rest.trim_start_matches('.');
            let end = name.find(['.', '[']).unwrap_or(name.len());
            if end == 0 {
                return Vec::new();
            }
            found = found.into_iter().filter_map(|value| value.get(&name[..end])).collect();
            rest = &name[end..];
        }
    }
    found
}

fn bracket<'a>(value: &'a Value, step: &str) -> Vec<&'a Value> {
    let items = || value.as_array().map(Vec::as_slice).unwrap_or_default();
    if step == "*" {
        return items().iter().collect();
    }
    if let Some(condition) = step.strip_prefix("?(").and_then(|s| s.strip_suffix(')')) {
        let Some((path, wanted)) = condition.split_once("==") else { return Vec::new() };
        let path = path.trim().trim_start_matches('@');
        let wanted = wanted.trim().trim_matches(['"', '\'']);
        let equals = |item: &&Value| match find(item, path).first() {
            Some(Value::String(text)) => text == wanted,
            Some(other) => format!("{other}").as_str() == wanted,
            None => false,
        };
        return items().iter().filter(equals).collect();
    }
    match step.parse::<usize>() {
        Ok(index) => value.get(index).into_iter().collect(),
        Err(_) => value.get(step.trim_matches(['"', '\''])).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_values() {
        let object = json!({"spec": {"n": 3, "list": [{"a": 1}, {"a": 2}]}, "metadata": {"annotations": {"x.y/z": "v"}},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let one = |path: &str| find(&object, path).first().map(|v| (*v).clone());
        assert_eq!(one(".spec.n"), Some(json!(3)));
        assert_eq!(one(".spec.list[1].a"), Some(json!(2)));
        assert_eq!(one(".status.conditions[?(@.type==\"Ready\")].status"), Some(json!("True")));
        assert_eq!(one(".metadata.annotations['x.y/z']"), Some(json!("v")));
        assert_eq!(find(&object, ".spec.list[*].a").len(), 2);
        for nothing in [".none", ".spec[", "..", ".spec.list[9]"] {
            assert!(find(&object, nothing).is_empty(), "{nothing}");
        }
    }
}
