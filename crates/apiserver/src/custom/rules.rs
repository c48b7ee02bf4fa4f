//! Rules in CEL that schemas of custom resources carry (`x-kubernetes-validations`).
//!
//! They run after the schema itself is satisfied, within one budget for the whole object. A rule that names `oldSelf`
//! compares an update with what was there, where there is something to compare with.

use std::collections::BTreeMap;

use mycelium_api::field::{ErrorKind, FieldError, Path};
use mycelium_cel::{Bindings, EvalError, Limits, Program, Value as Cel};
use serde_json::{Value, json};

use super::validate::counterpart;

/// What all rules of one object may cost, and each.
const OBJECT_COST: u64 = 10_000_000;
const CALL_COST: u64 = 1_000_000;

/// The rules and messages of a schema, parsed once.
pub struct Rules {
    programs: BTreeMap<String, Program>,
    /// The schema, of whose root metadata is a part.
    schema: Value,
}

/// A duration as formats and expressions have it.
pub fn is_duration(text: &str) -> bool {
    let program = Program::parse("duration(text)");
    let mut bindings = Bindings::default();
    bindings.set("text", Cel::text(text));
    program.is_ok_and(|program| program.run(&bindings, &Limits::new(1000, 1000)).is_ok())
}

/// A schema whose root says that it has the fields of every object.
pub fn rooted(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["x-kubernetes-embedded-resource"] = json!(true);
    schema
}

impl Rules {
    /// The rules of a schema; none if it has none.
    pub fn of(schema: &Value) -> Option<Self> {
        let mut programs = BTreeMap::new();
        collect(schema, &mut programs);
        (!programs.is_empty()).then(|| Self { programs, schema: rooted(schema) })
    }

    /// What the rules find wrong with an object.
    pub fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let limits = Limits::new(OBJECT_COST, CALL_COST);
        let mut run = Run { rules: self, limits: &limits, errors: Vec::new(), over: false };
        // Of its metadata, rules see the name only.
        let narrow = |object: &Value| {
            let mut narrow = object.clone();
            let metadata = &object["metadata"];
            let names = ["name", "generateName"].iter().filter(|key| metadata[**key].is_string());
            narrow["metadata"] = names.map(|key| ((*key).to_owned(), metadata[*key].clone())).collect();
            narrow
        };
        let (object, old) = (narrow(object), old.map(narrow));
        run.value(&self.schema, &object, old.as_ref(), &Path::default());
        run.errors
    }
}

fn collect(schema: &Value, programs: &mut BTreeMap<String, Program>) {
    match schema {
        Value::Object(members) => {
            for rule in members.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                for text in ["rule", "messageExpression"].iter().filter_map(|key| rule[*key].as_str()) {
                    if let Ok(program) = Program::parse(text) {
                        programs.insert(text.to_owned(), program);
                    }
                }
            }
            members.values().for_each(|member| collect(member, programs));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, programs)),
        _ => {}
    }
}

struct Run<'a> {
    rules: &'a Rules,
    limits: &'a Limits,
    errors: Vec<FieldError>,
    /// The budget is spent.
    over: bool,
}

impl<'a> Run<'a> {
    fn value(&mut self, schema: &'a Value, value: &'a Value, old: Option<&'a Value>, path: &Path) {
        if self.over || value.is_null() {
            return;
        }
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            self.rule(schema, rule, value, old, path);
        }
        for (name, member) in value.as_object().into_iter().flatten() {
            let before = old.and_then(|old| old.get(name));
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(property), _) => self.value(property, member, before, &path.child(name)),
                (None, Some(inner)) if inner.is_object() => self.value(inner, member, before, &path.key(name)),
                _ => {}
            }
        }
        if schema["items"].is_object() {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                let before = old.and_then(|old| counterpart(schema, item, old));
                self.value(&schema["items"], item, before, &path.index(index));
            }
        }
    }

    fn rule(&mut self, schema: &'a Value, rule: &'a Value, value: &'a Value, old: Option<&'a Value>, path: &Path) {
        let Some(program) = rule["rule"].as_str().and_then(|text| self.rules.programs.get(text)) else { return };
        let (transition, optional) = (program.uses("oldSelf"), rule["optionalOldSelf"] == true);
        if self.over || transition && old.is_none() && !optional || old == Some(value) && !transition {
            return;
        }
        let mut bindings = Bindings::default();
        bindings.set("self", Cel::json(value, Some(schema)));
        let before = old.map(|old| Cel::json(old, Some(schema)));
        match before {
            before if optional => bindings.set("oldSelf", Cel::Optional(before.map(Box::new))),
            Some(before) => bindings.set("oldSelf", before),
            None => {}
        }
        let kind = schema["type"].as_str().unwrap_or("object");
        let detail = match program.run(&bindings, self.limits) {
            Ok(Cel::Bool(true)) => return,
            Ok(_) => self.message(rule, &bindings),
            Err(EvalError::Budget) => {
                self.over = true;
                "validation failed due to running out of cost budget, no further validation rules will be run"
                    .to_owned()
            }
            Err(EvalError::CallCost) => {
                self.over = true;
                let shown = shown(rule);
                format!("no further validation rules will be run due to call cost exceeds limit for rule: {shown}")
            }
            Err(EvalError::Failed(why)) => format!("{why} evaluating rule: {}", shown(rule)),
        };
        let path = located(path, rule["fieldPath"].as_str());
        let reason = match rule["reason"].as_str() {
            Some("FieldValueForbidden") => ErrorKind::Forbidden,
            Some("FieldValueRequired") => ErrorKind::Required,
            Some("FieldValueDuplicate") => ErrorKind::Duplicate,
            _ => ErrorKind::Invalid,
        };
        self.errors.push(FieldError::new(reason, &path, kind, detail));
    }

    fn message(&self, rule: &'a Value, bindings: &Bindings<'a>) -> String {
        let made = rule["messageExpression"].as_str().and_then(|text| self.rules.programs.get(text));
        if let Some(Ok(Cel::Text(text))) = made.map(|program| program.run(bindings, self.limits)) {
            let text = text.trim();
            if !text.is_empty() && !text.contains('\n') && text.len() <= 5 * 1024 {
                return text.to_owned();
            }
        }
        match rule["message"].as_str().map(str::trim).filter(|text| !text.is_empty()) {
            Some(message) => message.to_owned(),
            None => format!("failed rule: {}", shown(rule)),
        }
    }
}

fn shown(rule: &Value) -> &str {
    match rule["message"].as_str().map(str::trim).filter(|text| !text.is_empty()) {
        Some(message) => message,
        None => rule["rule"].as_str().unwrap_or_default().trim(),
    }
}

/// A path below another: `.spec.names['a']`.
fn located(path: &Path, below: Option<&str>) -> Path {
    let mut path = path.clone();
    for part in below.unwrap_or_default().split('.').filter(|part| !part.is_empty()) {
        let (name, keys) = part.split_once('[').unwrap_or((part, ""));
        path = path.child(name);
        for key in keys.split('[').map(|key| key.trim_end_matches(']').trim_matches(['\'', '"'])) {
            if !key.is_empty() {
                path = path.key(key);
            }
        }
    }
    path
}
