//! Objects of custom resources against their OpenAPI schema: defaults are filled in, faults listed with the texts of
//! Kubernetes. Rules in CEL are in [`super::rules`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use mycelium_api::field::{ErrorKind, FieldError, Path};
use regex::Regex;
use serde_json::Value;

/// The patterns of a schema, compiled once.
#[derive(Default)]
pub struct Patterns(BTreeMap<String, Regex>);

impl Patterns {
    /// Every pattern in a schema. One that does not compile is left out; the definition's own check names it.
    pub fn of(schema: &Value) -> Self {
        let mut patterns = Self::default();
        patterns.collect(schema);
        patterns
    }

    fn collect(&mut self, schema: &Value) {
        match schema {
            Value::Object(members) => {
                if let Some(pattern) = members.get("pattern").and_then(Value::as_str)
                    && let Ok(regex) = compile(pattern)
                {
                    self.0.insert(pattern.to_owned(), regex);
                }
                members.values().for_each(|member| self.collect(member));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            _ => {}
        }
    }
}

/// Compiles a pattern within bounds.
pub fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(1 << 20).dfa_size_limit(1 << 20).build()
}

/// Whether a schema holds defaults.
pub fn has_defaults(schema: &Value) -> bool {
    let members = schema["properties"].as_object().into_iter().flat_map(|properties| properties.values());
    members
        .chain([&schema["additionalProperties"], &schema["items"]])
        .any(|part| part.get("default").is_some() || part.is_object() && has_defaults(part))
}

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

/// What is wrong with an object. What an update leaves as it was is not judged again.
pub fn check(schema: &Value, patterns: &Patterns, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut checker = Checker { patterns, errors: Vec::new() };
    checker.members(schema, object, old, &Path::default(), true);
    checker.errors
}

/// What is wrong with a value, such as a default, by itself.
pub fn check_default(schema: &Value, value: &Value, path: &Path) -> Vec<FieldError> {
    let patterns = Patterns::of(schema);
    let mut checker = Checker { patterns: &patterns, errors: Vec::new() };
    checker.value(schema, value, None, path);
    checker.errors
}

struct Checker<'a> {
    patterns: &'a Patterns,
    errors: Vec<FieldError>,
}

impl Checker<'_> {
    fn refuse(&mut self, path: &Path, value: &Value, detail: String) {
        self.errors.push(FieldError::invalid(path, value.clone(), detail));
    }

    fn value(&mut self, schema: &Value, value: &Value, old: Option<&Value>, path: &Path) {
        if old == Some(value) || value.is_null() && schema["nullable"] == true {
            return;
        }
        if !type_fits(schema, value) {
            let (wanted, found) = (schema["type"].as_str().unwrap_or("integer,string"), type_name(value));
            let detail = format!("{path} in body must be of type {wanted}: {found:?}");
            self.errors.push(FieldError::new(ErrorKind::TypeInvalid, path, found, detail));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            // In the order of the schema, unlike the words of built-in kinds.
            let words: Vec<String> = allowed
                .iter()
                .map(|v| v.as_str().map_or_else(|| format!("{:?}", v.to_string()), |text| format!("{text:?}")))
                .collect();
            let detail = format!("supported values: {}", words.join(", "));
            self.errors.push(FieldError::new(ErrorKind::NotSupported, path, value.clone(), detail));
        }
        match value {
            Value::Number(_) => self.number(schema, value, path),
            Value::String(text) => self.text(schema, text, value, path),
            Value::Array(items) => {
                self.length(schema, "Items", items.len(), value, path);
                self.unique(schema, items, path);
                for (index, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| counterpart(schema, item, old));
                    self.value(&schema["items"], item, before, &path.index(index));
                }
            }
            Value::Object(members) => {
                self.length(schema, "Properties", members.len(), value, path);
                self.members(schema, value, old, path, false);
            }
            _ => {}
        }
        self.combinations(schema, value, path);
    }

    /// `top`: version, kind and metadata are checked elsewhere.
    fn members(&mut self, schema: &Value, object: &Value, old: Option<&Value>, path: &Path, top: bool) {
        let elsewhere = |name: &str| top && matches!(name, "apiVersion" | "kind" | "metadata");
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if object.get(name).is_none() && !elsewhere(name) {
                self.errors.push(FieldError::required(&path.child(name), ""));
            }
        }
        for (name, member) in object.as_object().into_iter().flatten().filter(|(name, _)| !elsewhere(name)) {
            let before = old.and_then(|old| old.get(name));
            match schema["properties"].get(name) {
                Some(property) => self.value(property, member, before, &path.child(name)),
                None if schema["additionalProperties"].is_object() => {
                    self.value(&schema["additionalProperties"], member, before, &path.child(name));
                }
                None => {}
            }
        }
        if top {
            self.combinations(schema, object, path);
        }
    }

    /// Whether a value fits a schema by itself.
    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let mut inner = Checker { patterns: self.patterns, errors: Vec::new() };
        inner.value(schema, value, None, &Path::default());
        inner.errors.is_empty()
    }

    fn combinations(&mut self, schema: &Value, value: &Value, path: &Path) {
        let list = |key: &str| schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = if path.as_str().is_empty() { "\"\"".to_owned() } else { format!("{:?}", path.as_str()) };
        let empty = Value::from("");
        for part in list("allOf") {
            self.value(part, value, None, path);
        }
        let any = list("anyOf");
        if !any.is_empty() && !any.iter().any(|part| self.fits(part, value)) {
            self.refuse(path, &empty, format!("{name} must validate at least one schema (anyOf)"));
        }
        let one = list("oneOf");
        if !one.is_empty() {
            let count = one.iter().filter(|part| self.fits(part, value)).count();
            if count != 1 {
                let found = if count == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {count} valid alternatives")
                };
                self.refuse(path, &empty, format!("{name} must validate one and only one schema (oneOf). {found}"));
            }
        }
        if schema["not"].is_object() && self.fits(&schema["not"], value) {
            self.refuse(path, &empty, format!("{name} must not validate the schema (not)"));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, path: &Path) {
        let number = value.as_f64().unwrap_or_default();
        if let Some(low) = schema["minimum"].as_f64() {
            let strict = schema["exclusiveMinimum"] == true;
            if number < low || strict && number == low {
                let words = if strict { "greater than" } else { "greater than or equal to" };
                self.refuse(path, value, format!("{path} in body should be {words} {low}"));
            }
        }
        if let Some(high) = schema["maximum"].as_f64() {
            let strict = schema["exclusiveMaximum"] == true;
            if number > high || strict && number == high {
                let words = if strict { "less than" } else { "less than or equal to" };
                self.refuse(path, value, format!("{path} in body should be {words} {high}"));
            }
        }
        if let Some(step) = schema["multipleOf"].as_f64().filter(|step| *step > 0.0)
            && ((number / step) - (number / step).round()).abs() > 1e-9
        {
            self.refuse(path, value, format!("{path} in body should be a multiple of {step}"));
        }
        let range = match schema["format"].as_str() {
            Some("int32") => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            _ => None,
        };
        if range.is_some_and(|(low, high)| number < low || number > high) {
            self.refuse(path, value, format!("{path} in body must be of type int32: \"int64\""));
        }
    }

    fn text(&mut self, schema: &Value, text: &str, value: &Value, path: &Path) {
        self.length(schema, "Length", text.chars().count(), value, path);
        if let Some(pattern) = schema["pattern"].as_str() {
            let known = self.patterns.0.get(pattern);
            let matches =
                known.map_or_else(|| compile(pattern).is_ok_and(|regex| regex.is_match(text)), |r| r.is_match(text));
            if !matches {
                self.refuse(path, value, format!("{path} in body should match '{pattern}'"));
            }
        }
        if let Some(format) = schema["format"].as_str().filter(|format| !format_fits(format, text)) {
            self.refuse(path, value, format!("{path} in body must be of type {format}: {text:?}"));
        }
    }

    /// Lists that are sets or maps hold each element or key once.
    fn unique(&mut self, schema: &Value, items: &[Value], path: &Path) {
        let kind = schema["x-kubernetes-list-type"].as_str().unwrap_or_default();
        if !matches!(kind, "set" | "map") {
            return;
        }
        let mut seen = std::collections::BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let key = if kind == "set" { item.clone() } else { list_key(schema, item) };
            if !seen.insert(key.to_string()) {
                self.errors.push(FieldError::duplicate(&path.index(index), key));
            }
        }
    }

    fn length(&mut self, schema: &Value, what: &str, length: usize, value: &Value, path: &Path) {
        let unit = match what {
            "Length" => "chars long",
            "Items" => "items",
            _ => "properties",
        };
        let limit = |side: &str| schema[format!("{side}{what}")].as_u64().and_then(|n| usize::try_from(n).ok());
        if let Some(low) = limit("min").filter(|low| length < *low) {
            let verb = if what == "Length" { "be" } else { "have" };
            self.refuse(path, value, format!("{path} in body should {verb} at least {low} {unit}"));
        }
        if let Some(high) = limit("max").filter(|high| length > *high) {
            let (kind, detail) = match what {
                "Length" => (ErrorKind::TooLong, format!("may not be more than {high} bytes")),
                _ => (ErrorKind::TooMany, format!("must have at most {high} items")),
            };
            self.errors.push(FieldError::new(kind, path, i64::try_from(length).unwrap_or(i64::MAX), detail));
        }
    }
}

fn list_key(schema: &Value, item: &Value) -> Value {
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
    keys.map(|key| (key.to_owned(), item[key].clone())).collect()
}

/// The element of a list before an update that one after it continues: only lists that are maps tell.
pub fn counterpart<'a>(schema: &Value, item: &Value, old: &'a Value) -> Option<&'a Value> {
    if schema["x-kubernetes-list-type"] != "map" {
        return None;
    }
    let key = list_key(schema, item);
    old.as_array()?.iter().find(|other| list_key(schema, other) == key)
}

fn format_fits(format: &str, text: &str) -> bool {
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    match format {
        "date-time" | "datetime" => text.parse::<Timestamp>().is_ok(),
        "date" => format!("{text}T00:00:00Z").parse::<Timestamp>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            let parts: Vec<usize> = text.split('-').map(str::len).collect();
            digits(&text.replace('-', "")) && (parts == [8, 4, 4, 4, 12] || text.len() == 32)
        }
        "byte" => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
        "hostname" => mycelium_api::names::is_dns1123_subdomain(&text.to_ascii_lowercase()).is_empty(),
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => text.starts_with('/') || text.contains(':'),
        "mac" => text.split(['-', ':']).count() == 6 && digits(&text.replace(['-', ':'], "")),
        "duration" => super::rules::is_duration(text),
        _ => true,
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
        assert!(check(&schema, &Patterns::default(), &good, None).is_empty());
        let texts = |object: Value| {
            check(&schema, &Patterns::default(), &object, None).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
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
                "spec.tags: Too many: must have at most 1 items",
                "spec.tags[0]: Invalid value: \"x\": spec.tags[0] in body should be at least 2 chars long",
            ]
        );
    }
}
