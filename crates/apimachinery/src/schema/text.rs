//! Reads `data/types.txt`, which `cargo xtask schema` writes.
//!
//! A line that starts with no blank opens a type, the lines that start with one are its fields:
//!
//! ```text
//! io.k8s.api.apps.v1.Deployment ( apps/v1/Deployment       name, type expression, group/version/kind
//!  spec @32 v                                              field, type expression, attributes
//!  status @34 v
//! ```
//!
//! | expression | type |
//! |---|---|
//! | `s` `i` `l` `b` `d` | string, int32, int64, boolean, double |
//! | `y` `t` `u` `o` `q` | bytes, time, time with microseconds, int or string, quantity |
//! | `*` | any JSON |
//! | `(` | an object with the fields that follow |
//! | `@N` | the type of that number, counted from 0 |
//! | `[X]` `[X]a` `[X]s` `[X]mK1,K2` | a list: of no stated type, atomic, set, map with keys |
//! | `{X}` | a map from strings |
//! | `a` or `g` after `(`, `@N`, `{X}` | atomic, granular |
//!
//! Attributes: `r` required, `v` always present in Go (a struct that is no pointer), `pS` patch strategy, `kK` merge
//! key, `=J` default as JSON, `g/v/K` or `*/K` (in all groups) for the kind.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::types::{Field, Gvk, ListKind, Scalar, Shape, Type, TypeRef};

/// The types in file order, inline ones after the named ones.
pub(super) fn parse(text: &'static str) -> Vec<Type> {
    let named = text.lines().filter(|l| !l.starts_with(' ')).count();
    let mut reader = Reader { named, inline: Vec::new(), known: BTreeMap::new() };
    let mut types: Vec<Type> = Vec::with_capacity(named);
    let mut overrides = Vec::new();
    for line in text.lines() {
        match line.strip_prefix(' ') {
            None => types.push(reader.header(line)),
            Some(line) => {
                let owner = types.len() - 1;
                let field = reader.field(line, &mut overrides, owner);
                if let Shape::Struct { fields, .. } = &mut types[owner].shape {
                    fields.push(field);
                }
            }
        }
    }
    types.append(&mut reader.inline);
    for (owner, field, target, atomic) in overrides {
        let mut copy = types[target].clone();
        copy.set_atomic(atomic);
        let index = types.len();
        types.push(copy);
        if let Shape::Struct { fields, .. } = &mut types[owner].shape
            && let Some(f) = fields.iter_mut().find(|f| f.name == field)
        {
            f.ty = TypeRef::builtin(index);
        }
    }
    types
}

/// A field whose type is a named one with another map type: owner, field, named type, atomic.
type Override = (usize, &'static str, usize, bool);

struct Reader {
    named: usize,
    inline: Vec<Type>,
    known: BTreeMap<&'static str, usize>,
}

impl Reader {
    fn header(&mut self, line: &'static str) -> Type {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let shape = match words.next().unwrap_or_default() {
            expression if expression.starts_with('(') => {
                Shape::Struct { fields: Vec::new(), atomic: expression.ends_with('a'), preserve_unknown: false }
            }
            expression => self.shape(expression),
        };
        let gvk = words.next().and_then(|gvk| {
            if let Some(kind) = gvk.strip_prefix("*/") {
                return Some(Gvk { group: "*", version: "*", kind });
            }
            let (group, rest) = gvk.split_once('/')?;
            let (version, kind) = rest.split_once('/')?;
            Some(Gvk { group, version, kind })
        });
        Type { name: Cow::Borrowed(name), shape, gvk }
    }

    fn field(&mut self, line: &'static str, overrides: &mut Vec<Override>, owner: usize) -> Field {
        let (name, rest) = line.split_once(' ').unwrap_or((line, "*"));
        let (expression, attributes) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut field = Field::new(Cow::Borrowed(name), self.reference(expression));
        if let Some(target) = expression.strip_prefix('@')
            && let Some(number) = target.strip_suffix(['a', 'g'])
            && let Ok(number) = number.parse()
        {
            overrides.push((owner, name, number, target.ends_with('a')));
        }
        for attribute in attributes.split(' ').filter(|a| !a.is_empty()) {
            match attribute.split_at(1) {
                ("r", "") => field.required = true,
                ("v", "") => field.value_struct = true,
                ("p", strategy) => {
                    field.patch_merge = strategy.split(',').any(|s| s == "merge");
                    field.retain_keys = strategy.split(',').any(|s| s == "retainKeys");
                    field.patch_strategy = Some(Cow::Borrowed(strategy));
                }
                ("k", key) => field.merge_key = Some(Cow::Borrowed(key)),
                ("=", json) => field.default = serde_json::from_str(json).ok(),
                _ => {}
            }
        }
        field
    }

    /// The type of an expression: a named one, or an inline one that equal expressions share.
    fn reference(&mut self, expression: &'static str) -> TypeRef {
        if let Some(target) = expression.strip_prefix('@') {
            return TypeRef::builtin(target.trim_end_matches(['a', 'g']).parse().unwrap_or_default());
        }
        if let Some(index) = self.known.get(expression) {
            return TypeRef::builtin(self.named + index);
        }
        let shape = self.shape(expression);
        let index = self.inline.len();
        self.inline.push(Type { name: Cow::Borrowed(""), shape, gvk: None });
        self.known.insert(expression, index);
        TypeRef::builtin(self.named + index)
    }

    fn shape(&mut self, expression: &'static str) -> Shape {
        if let Some((inner, kind)) = expression.strip_prefix('[').and_then(|e| e.rsplit_once(']')) {
            let item = self.reference(inner);
            let (kind, explicit) = match kind.split_at(kind.len().min(1)) {
                ("s", _) => (ListKind::Set, true),
                ("m", keys) => (ListKind::Map(keys.split(',').map(Cow::Borrowed).collect()), true),
                ("a", _) => (ListKind::Atomic, true),
                _ => (ListKind::Atomic, false),
            };
            return Shape::List { item, kind, explicit };
        }
        if let Some((inner, kind)) = expression.strip_prefix('{').and_then(|e| e.rsplit_once('}')) {
            return Shape::Map { value: self.reference(inner), atomic: kind == "a" };
        }
        match expression {
            "s" => Shape::Scalar(Scalar::String),
            "i" => Shape::Scalar(Scalar::Int32),
            "l" => Shape::Scalar(Scalar::Int64),
            "b" => Shape::Scalar(Scalar::Bool),
            "d" => Shape::Scalar(Scalar::Double),
            "y" => Shape::Scalar(Scalar::Bytes),
            "t" => Shape::Scalar(Scalar::Time),
            "u" => Shape::Scalar(Scalar::MicroTime),
            "o" => Shape::Scalar(Scalar::IntOrString),
            "q" => Shape::Scalar(Scalar::Quantity),
            _ => Shape::Any,
        }
    }
}
