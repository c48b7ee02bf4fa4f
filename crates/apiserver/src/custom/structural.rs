//! What must be right about a CustomResourceDefinition: names, versions, structural schemas, rules and what they cost.

use std::collections::BTreeSet;

use mycelium_api::field::{ErrorKind, FieldError, Path};
use mycelium_api::names::{is_dns1035_label, is_dns1123_subdomain};
use mycelium_cel::{Declared, Program, check};
use serde_json::Value;

use super::rules::rooted;
use super::validate;

/// What one rule may cost at worst, wherever its values lie, and all rules of a schema.
const RULE_COST: u64 = 10_000_000;
const SCHEMA_COST: u64 = 100_000_000;
/// The largest request, which bounds lists that nothing else bounds.
const REQUEST_BYTES: u64 = 3 << 20;
/// Nesting of schemas; a definition beyond it is refused.
const DEPTH_MAX: usize = 64;

type Errors = Vec<FieldError>;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What is wrong with a definition. `old` is what an update replaces.
pub fn check_definition(definition: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let spec = &definition["spec"];
    if old.is_some_and(|old| old["spec"] == *spec) {
        return errors;
    }
    let path = Path::new("spec");
    check_names(definition, &path, &mut errors);
    check_versions(spec, old, &path, &mut errors);
    for (index, version) in list(spec, "versions").iter().enumerate() {
        let path = path.child("versions").index(index);
        check_version(version, spec, &path, &mut errors);
    }
    if text(&spec["conversion"], "strategy") == "Webhook" {
        check_conversion(&spec["conversion"], &path.child("conversion"), &mut errors);
    }
    errors
}

fn refuse(errors: &mut Errors, path: &Path, value: &str, faults: Vec<String>) {
    errors.extend(faults.into_iter().map(|fault| FieldError::invalid(path, value, fault)));
}

fn check_names(definition: &Value, path: &Path, errors: &mut Errors) {
    let (spec, names) = (&definition["spec"], &definition["spec"]["names"]);
    let (group, plural) = (text(spec, "group"), text(names, "plural"));
    if group.is_empty() {
        errors.push(FieldError::required(&path.child("group"), ""));
    } else {
        refuse(errors, &path.child("group"), group, is_dns1123_subdomain(group));
        if group.split('.').count() < 2 {
            let why = "should be a domain with at least one dot";
            errors.push(FieldError::invalid(&path.child("group"), group, why));
        }
    }
    if !matches!(text(spec, "scope"), "Cluster" | "Namespaced") {
        errors.push(match text(spec, "scope") {
            "" => FieldError::required(&path.child("scope"), ""),
            scope => FieldError::not_supported(&path.child("scope"), scope, &["Cluster", "Namespaced"]),
        });
    }
    let at = path.child("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        let name = text(names, key);
        if name.is_empty() {
            if matches!(key, "plural" | "kind") {
                errors.push(FieldError::required(&at.child(key), ""));
            }
        } else {
            refuse(errors, &at.child(key), name, is_dns1035_label(&name.to_ascii_lowercase()));
        }
    }
    for (index, name) in list(names, "shortNames").iter().filter_map(Value::as_str).enumerate() {
        refuse(errors, &at.child("shortNames").index(index), name, is_dns1035_label(name));
    }
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    if !plural.is_empty() && !name.is_empty() && name != format!("{plural}.{group}") {
        let path = Path::new("metadata").child("name");
        errors.push(FieldError::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group"));
    }
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(&at.child("listKind"), text(names, "listKind"), why));
    }
}

fn check_versions(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let path = path.child("versions");
    let versions = list(spec, "versions");
    let stored = versions.iter().filter(|version| version["storage"] == true).count();
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(&path, spec["versions"].clone(), why));
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let (name, at) = (text(version, "name"), path.index(index).child("name"));
        refuse(errors, &at, name, is_dns1035_label(name));
        if !seen.insert(name) {
            errors.push(FieldError::invalid(&path, spec["versions"].clone(), "must contain unique version names"));
        }
    }
    let gone = old.into_iter().flat_map(|old| old["status"]["storedVersions"].as_array().into_iter().flatten());
    for version in gone.filter_map(Value::as_str).filter(|version| !seen.contains(version)) {
        let path = Path::new("status").child("storedVersions").index(0);
        let why = "must appear in spec.versions";
        errors.push(FieldError::invalid(&path, version, why));
    }
}

fn check_version(version: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let schema = &version["schema"]["openAPIV3Schema"];
    let at = path.child("schema").child("openAPIV3Schema");
    if !schema.is_object() {
        errors.push(FieldError::required(&at, "schemas are required"));
        return;
    }
    if spec["preserveUnknownFields"] == true {
        let why = "must be false in order to use defaults in the schema";
        let path = Path::new("spec").child("preserveUnknownFields");
        errors.push(FieldError::invalid(&path, true, format!("{why} (structural schemas prune)")));
    }
    if text(schema, "type") != "object" {
        let path = at.child("type");
        match text(schema, "type") {
            "" => errors.push(FieldError::required(&path, "must not be empty at the root")),
            other => errors.push(FieldError::invalid(&path, other, "must be object at the root")),
        }
    }
    let mut walk = Walk { errors, total: 0 };
    walk.schema(schema, &at, Place { depth: 0, count: 1, root: true, rules: true, embedded: false });
    let total = walk.total;
    if total > SCHEMA_COST {
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(&at, exceeds(what, total, SCHEMA_COST)));
    }
    check_scale(&version["subresources"]["scale"], &path.child("subresources").child("scale"), errors);
    for (index, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
        let path = path.child("additionalPrinterColumns").index(index);
        for key in ["name", "type", "jsonPath"] {
            if text(column, key).is_empty() {
                errors.push(FieldError::required(&path.child(key), ""));
            }
        }
        let kinds = ["boolean", "date", "integer", "number", "string"];
        if !text(column, "type").is_empty() && !kinds.contains(&text(column, "type")) {
            let why = "must be one of boolean,date,integer,number,string";
            errors.push(FieldError::invalid(&path.child("type"), text(column, "type"), why));
        }
    }
    check_selectable(version, path, errors);
}

fn check_scale(scale: &Value, path: &Path, errors: &mut Errors) {
    if !scale.is_object() {
        return;
    }
    for (key, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let value = text(scale, key);
        if value.is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        } else if !value.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.push(FieldError::invalid(&path.child(key), value, why));
        }
    }
}

fn check_selectable(version: &Value, path: &Path, errors: &mut Errors) {
    let fields = list(version, "selectableFields");
    let path = path.child("selectableFields");
    if fields.len() > 8 {
        errors.push(FieldError::new(ErrorKind::TooMany, &path, fields.len() as u64, "must have at most 8 items"));
    }
    for (index, field) in fields.iter().enumerate() {
        let (at, value) = (path.index(index).child("jsonPath"), text(field, "jsonPath"));
        let steps: Vec<&str> = value.trim_start_matches('.').split('.').collect();
        let mut schema = &version["schema"]["openAPIV3Schema"];
        for step in &steps {
            schema = &schema["properties"][*step];
        }
        if value.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if steps.first() == Some(&"metadata") {
            errors.push(FieldError::invalid(&at, value, "must not point to fields in metadata"));
        } else if !matches!(text(schema, "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(&at, value, why));
        }
    }
}

fn check_conversion(conversion: &Value, path: &Path, errors: &mut Errors) {
    let webhook = &conversion["webhook"];
    if !webhook.is_object() {
        errors.push(FieldError::required(&path.child("webhook"), "required when strategy is set to Webhook"));
        return;
    }
    let versions: Vec<&str> = list(webhook, "conversionReviewVersions").iter().filter_map(Value::as_str).collect();
    if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(
            &path.child("webhook").child("conversionReviewVersions"),
            webhook["conversionReviewVersions"].clone(),
            why,
        ));
    }
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 { "more than 100".to_owned() } else { format!("{factor:.1}") };
    format!(
        "{what} exceeds budget by factor of {factor}x (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// Where in a schema a walk is.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// How many values of this schema one object can have.
    count: u64,
    root: bool,
    /// Rules and defaults may stand here: not below `anyOf` and its like.
    rules: bool,
    embedded: bool,
}

struct Walk<'e> {
    errors: &'e mut Errors,
    total: u64,
}

impl Walk<'_> {
    fn schema(&mut self, schema: &Value, path: &Path, place: Place) {
        if place.depth > DEPTH_MAX {
            return self
                .errors
                .push(FieldError::forbidden(path, format!("may not nest deeper than {DEPTH_MAX} levels")));
        }
        let flag = |key: &str| schema[key] == true;
        let free = flag("x-kubernetes-int-or-string") || flag("x-kubernetes-preserve-unknown-fields");
        let kinds = ["array", "boolean", "integer", "number", "object", "string"];
        match text(schema, "type") {
            "" if !free && !place.root && place.rules => {
                self.errors
                    .push(FieldError::required(&path.child("type"), "must not be empty for specified object fields"));
            }
            "" => {}
            kind if !kinds.contains(&kind) => {
                self.errors.push(FieldError::not_supported(&path.child("type"), kind, &kinds));
            }
            _ if flag("x-kubernetes-int-or-string") => {
                let why = "must be empty if x-kubernetes-int-or-string is true";
                self.errors.push(FieldError::invalid(&path.child("type"), text(schema, "type"), why));
            }
            _ => {}
        }
        self.forbidden(schema, path, place);
        if let Some(pattern) = schema["pattern"].as_str()
            && let Err(error) = validate::compile(pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.errors.push(FieldError::invalid(&path.child("pattern"), pattern, why));
        }
        self.lists(schema, path);
        if place.rules {
            self.default(schema, path);
            self.rules(schema, path, place);
        }
        self.below(schema, path, place);
    }

    fn forbidden(&mut self, schema: &Value, path: &Path, place: Place) {
        for key in ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id"] {
            if schema.get(key).is_some_and(|value| !value.is_null()) {
                self.errors.push(FieldError::forbidden(&path.child(key), format!("{key} is not supported")));
            }
        }
        if schema["uniqueItems"] == true {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.push(FieldError::forbidden(&path.child("uniqueItems"), why));
        }
        if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
            let why = "additionalProperties and properties are mutual exclusive";
            self.errors.push(FieldError::forbidden(&path.child("additionalProperties"), why));
        }
        if schema["additionalProperties"] == false {
            let why = "additionalProperties cannot be set to false";
            self.errors.push(FieldError::forbidden(&path.child("additionalProperties"), why));
        }
        if !place.rules {
            for key in ["default", "nullable", "x-kubernetes-preserve-unknown-fields"] {
                if !matches!(schema.get(key), None | Some(Value::Null | Value::Bool(false))) {
                    let why = "must be undefined to be structural";
                    self.errors.push(FieldError::forbidden(&path.child(key), why));
                }
            }
        }
    }

    fn lists(&mut self, schema: &Value, path: &Path) {
        let kind = text(schema, "x-kubernetes-list-type");
        let at = path.child("x-kubernetes-list-type");
        if !kind.is_empty() && !matches!(kind, "atomic" | "set" | "map") {
            self.errors.push(FieldError::not_supported(&at, kind, &["atomic", "set", "map"]));
        }
        if !kind.is_empty() && text(schema, "type") != "array" {
            let why = "must be array if x-kubernetes-list-type is specified";
            self.errors.push(FieldError::invalid(&path.child("type"), text(schema, "type"), why));
        }
        let keys = list(schema, "x-kubernetes-list-map-keys");
        let at = path.child("x-kubernetes-list-map-keys");
        if kind == "map" && keys.is_empty() {
            self.errors.push(FieldError::required(&at, "must not be empty if x-kubernetes-list-type is map"));
        }
        for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            let items = &schema["items"];
            if items["properties"].get(key).is_none() {
                let why = "entries must all be names of item properties";
                self.errors.push(FieldError::invalid(&at.index(index), key, why));
            } else if !list(items, "required").iter().any(|name| name == key)
                && items["properties"][key].get("default").is_none()
            {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.errors.push(FieldError::required(
                    &path.child("items").child("properties").key(key).child("default"),
                    why,
                ));
            }
        }
    }

    fn default(&mut self, schema: &Value, path: &Path) {
        if let Some(default) = schema.get("default") {
            let faults = validate::check_default(schema, default, &Path::default());
            for fault in faults {
                let name = fault.path.as_str();
                let at = if name.is_empty() { path.child("default") } else { path.child("default").child(name) };
                self.errors.push(FieldError::new(fault.kind, &at, fault.value, fault.detail));
            }
        }
    }

    fn rules(&mut self, schema: &Value, path: &Path, place: Place) {
        let rooted = if place.root || place.embedded { rooted(schema) } else { schema.clone() };
        let path = path.child("x-kubernetes-validations");
        for (index, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
            self.rule(rule, &rooted, &path.index(index), place);
        }
    }

    fn rule(&mut self, rule: &Value, schema: &Value, path: &Path, place: Place) {
        if text(rule, "rule").trim().is_empty() {
            return self.errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        }
        let declared = Declared {
            names: ["self", "oldSelf"].iter().map(|name| ((*name).to_owned(), Some(schema))).collect(),
            variables: Vec::new(),
        };
        let optional = rule["optionalOldSelf"] == true;
        let mut loose = declared.clone();
        if optional {
            loose.names.insert("oldSelf".to_owned(), None);
        }
        for (key, wanted) in [("rule", "bool"), ("messageExpression", "string")] {
            let Some(expression) = rule[key].as_str().filter(|text| !text.is_empty()) else { continue };
            let at = path.child(key);
            let checked = Program::parse(expression).and_then(|program| {
                let transition = program.uses("oldSelf");
                check(&program, if optional { &loose } else { &declared }).map(|estimate| (estimate, transition))
            });
            match checked {
                Err(error) => {
                    let at = if key == "rule" { path } else { &at };
                    let why = format!("compilation failed: {error}");
                    self.errors.push(FieldError::invalid(at, rule.clone(), why));
                }
                Ok((estimate, _)) if !matches!(estimate.type_name.as_str(), "dyn") && estimate.type_name != wanted => {
                    let why = match key {
                        "rule" => "cel expression must evaluate to a bool",
                        _ => "messageExpression must evaluate to a string",
                    };
                    self.errors.push(FieldError::invalid(&at, rule.clone(), why));
                }
                Ok((estimate, _)) => {
                    let cost = estimate.cost.saturating_mul(place.count);
                    self.total = self.total.saturating_add(cost);
                    if cost > RULE_COST {
                        let what =
                            if key == "rule" { "estimated rule cost" } else { "estimated messageExpression cost" };
                        self.errors.push(FieldError::forbidden(&at, exceeds(what, cost, RULE_COST)));
                    }
                }
            }
        }
        let message = text(rule, "message");
        if message.contains('\n') {
            self.errors.push(FieldError::invalid(
                &path.child("message"),
                message,
                "message must not contain line breaks",
            ));
        }
        if text(rule, "rule").contains('\n') && message.is_empty() && text(rule, "messageExpression").is_empty() {
            let why = "message must be specified if rule contains line breaks";
            self.errors.push(FieldError::required(&path.child("message"), why));
        }
        let reasons = ["FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
        if !text(rule, "reason").is_empty() && !reasons.contains(&text(rule, "reason")) {
            self.errors.push(FieldError::not_supported(&path.child("reason"), text(rule, "reason"), &reasons));
        }
    }

    fn below(&mut self, schema: &Value, path: &Path, place: Place) {
        let inner = Place { depth: place.depth + 1, root: false, ..place };
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            // The metadata of every object is what it is.
            if place.root && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
                continue;
            }
            let embedded = property["x-kubernetes-embedded-resource"] == true;
            self.schema(property, &path.child("properties").key(name), Place { embedded, ..inner });
        }
        let most = |key: &str| schema[key].as_u64().unwrap_or(REQUEST_BYTES / 3).min(REQUEST_BYTES / 3);
        if schema["additionalProperties"].is_object() {
            let count = place.count.saturating_mul(most("maxProperties"));
            self.schema(&schema["additionalProperties"], &path.child("additionalProperties"), Place { count, ..inner });
        }
        if schema["items"].is_object() {
            let count = place.count.saturating_mul(most("maxItems"));
            self.schema(&schema["items"], &path.child("items"), Place { count, ..inner });
        } else if text(schema, "type") == "array" && place.rules {
            self.errors.push(FieldError::required(&path.child("items"), "must be specified"));
        }
        let plain = Place { rules: false, ..inner };
        for key in ["allOf", "anyOf", "oneOf"] {
            for (index, part) in list(schema, key).iter().enumerate() {
                // What an alternative of int-or-string says of types is fixed.
                if schema["x-kubernetes-int-or-string"] != true {
                    self.schema(part, &path.child(key).index(index), plain);
                }
            }
        }
        if schema["not"].is_object() {
            self.schema(&schema["not"], &path.child("not"), plain);
        }
    }
}
