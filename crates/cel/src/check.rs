//! What can be said of an expression before it runs: names nobody declared, fields no schema has, operators between
//! types that do not fit, and what it costs at worst.
//!
//! Types are inferred where schemas give them, and unknown otherwise: an unknown type fits everywhere.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::ast::{Expr, Kind, Literal, Macro, Operator};
use crate::parse::RESERVED;
use crate::{CompileError, Fault, Program};

/// The largest request, which bounds what no schema bounds.
const REQUEST_BYTES: u64 = 3 << 20;

/// What names an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Declared<'s> {
    /// Names, with the schema of what they stand for, if it is known.
    pub names: BTreeMap<String, Option<&'s Json>>,
    /// Names below `variables`.
    pub variables: Vec<String>,
}

/// What is known of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The name of its type; `dyn` where it is not known.
    pub type_name: String,
    /// What one evaluation costs at worst.
    pub cost: u64,
}

/// Checks an expression.
pub fn check(program: &Program, declared: &Declared<'_>) -> Result<Estimate, CompileError> {
    let checker = Checker { text: program.text(), declared };
    let mut faults = Vec::new();
    let known = checker.infer(&program.root, None, &mut faults);
    if faults.is_empty() {
        Ok(Estimate { type_name: known.ty.name(), cost: known.cost })
    } else {
        Err(CompileError(faults))
    }
}

/// A name with the escapes that stand for what names cannot hold.
pub fn unescape(name: &str) -> String {
    let mut out = name.to_owned();
    for (escape, plain) in [("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")] {
        out = out.replace(escape, plain);
    }
    match out.strip_prefix("__").and_then(|rest| rest.strip_suffix("__")) {
        Some(keyword) if LITERALS.contains(&keyword) || RESERVED.contains(&keyword) => keyword.to_owned(),
        _ => out,
    }
}

/// Words of the grammar that are no names; beside them those that are reserved.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

#[derive(Clone, Debug)]
enum Ty<'s> {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text(u64),
    Bytes(u64),
    List(Box<Ty<'s>>, u64),
    Map(Box<Ty<'s>>, u64),
    Object(&'s Json),
    Timestamp,
    Duration,
    Other(&'static str),
}

impl<'s> Ty<'s> {
    fn of(schema: &'s Json) -> Self {
        let limit = |key: &str, otherwise: u64| schema[key].as_u64().unwrap_or(otherwise).min(REQUEST_BYTES);
        if schema["x-kubernetes-int-or-string"] == true {
            return Self::Dyn;
        }
        match schema["type"].as_str() {
            Some("boolean") => Self::Bool,
            Some("integer") => Self::Int,
            Some("number") => Self::Double,
            Some("string") => match schema["format"].as_str() {
                Some("date-time" | "date") => Self::Timestamp,
                Some("duration") => Self::Duration,
                Some("byte") => Self::Bytes(limit("maxLength", REQUEST_BYTES)),
                _ => Self::Text(longest(schema).unwrap_or_else(|| limit("maxLength", REQUEST_BYTES - 2))),
            },
            Some("array") => {
                let most = limit("maxItems", (REQUEST_BYTES - 2) / (smallest(&schema["items"]) + 1));
                Self::List(Box::new(Self::of(&schema["items"])), most)
            }
            Some("object") if schema["properties"].is_object() => Self::Object(schema),
            Some("object") if schema["additionalProperties"].is_object() => {
                let inner = &schema["additionalProperties"];
                let most = limit("maxProperties", (REQUEST_BYTES - 2) / (smallest(inner) + 5));
                Self::Map(Box::new(Self::of(inner)), most)
            }
            Some("object") if schema["x-kubernetes-embedded-resource"] == true => Self::Dyn,
            Some("object") if schema["x-kubernetes-preserve-unknown-fields"] != true => Self::Object(schema),
            _ => Self::Dyn,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Dyn => "dyn".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Uint => "uint".to_owned(),
            Self::Double => "double".to_owned(),
            Self::Text(_) => "string".to_owned(),
            Self::Bytes(_) => "bytes".to_owned(),
            Self::List(inner, _) => format!("list({})", inner.name()),
            Self::Map(inner, _) => format!("map(string, {})", inner.name()),
            Self::Object(_) => "object".to_owned(),
            Self::Timestamp => "timestamp".to_owned(),
            Self::Duration => "duration".to_owned(),
            Self::Other(name) => (*name).to_owned(),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Text(most) | Self::Bytes(most) => *most,
            Self::List(_, most) | Self::Map(_, most) => *most,
            Self::Dyn | Self::Object(_) => REQUEST_BYTES,
            _ => 1,
        }
    }

    /// What comparing all of it costs at worst.
    fn weight(&self) -> u64 {
        match self {
            Self::Text(most) | Self::Bytes(most) => most / 10 + 1,
            Self::List(inner, most) | Self::Map(inner, most) => most.saturating_mul(inner.weight()),
            Self::Dyn | Self::Object(_) => REQUEST_BYTES / 10,
            _ => 1,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Dyn)
    }

    fn element(&self) -> Ty<'s> {
        match self {
            Self::List(inner, _) => (**inner).clone(),
            Self::Map(..) | Self::Object(_) => Ty::Text(REQUEST_BYTES),
            _ => Ty::Dyn,
        }
    }

    /// Whether values of two types can be equal.
    fn comparable(&self, other: &Ty<'_>) -> bool {
        let class = |ty: &Ty<'_>| match ty {
            Ty::Dyn | Ty::Other(_) => 0,
            Ty::Null => 1,
            Ty::Bool => 2,
            Ty::Int => 3,
            Ty::Uint => 4,
            Ty::Double => 5,
            Ty::Text(_) => 6,
            Ty::Bytes(_) => 7,
            Ty::List(..) => 8,
            Ty::Map(..) | Ty::Object(_) => 9,
            Ty::Timestamp => 10,
            Ty::Duration => 11,
        };
        match (self, other) {
            (Ty::List(a, _), Ty::List(b, _)) | (Ty::Map(a, _), Ty::Map(b, _)) => a.comparable(b),
            _ => {
                let (a, b) = (class(self), class(other));
                a == 0 || b == 0 || a == b || a == 1 && b > 7 || b == 1 && a > 7
            }
        }
    }
}

/// The longest of the texts an enumeration allows.
fn longest(schema: &Json) -> Option<u64> {
    let texts = schema["enum"].as_array()?;
    texts.iter().filter_map(|text| text.as_str().map(|text| text.len() as u64)).max()
}

/// The fewest bytes a value takes in a request.
fn smallest(schema: &Json) -> u64 {
    match schema["type"].as_str() {
        Some("boolean") => 4,
        Some("string" | "array") => 2,
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
            2 + required.map(|name| name.len() as u64 + 4 + smallest(&schema["properties"][name])).sum::<u64>()
        }
        _ => 1,
    }
}

struct Known<'s> {
    ty: Ty<'s>,
    cost: u64,
}

struct Scope<'f, 's> {
    name: &'f str,
    ty: Ty<'s>,
    outer: Option<&'f Scope<'f, 's>>,
}

struct Checker<'c, 's> {
    text: &'c str,
    declared: &'c Declared<'s>,
}

impl<'s> Checker<'_, 's> {
    fn fault(&self, expr: &Expr, message: impl Into<String>, faults: &mut Vec<Fault>) {
        faults.push(Fault::new(self.text, expr.at, message));
    }

    fn infer(&self, expr: &Expr, scope: Option<&Scope<'_, 's>>, faults: &mut Vec<Fault>) -> Known<'s> {
        let known = |ty, cost| Known { ty, cost };
        match &expr.kind {
            Kind::Literal(literal) => known(literal_type(literal), 0),
            Kind::Ident(name) => known(self.ident(expr, name, scope, faults), 1),
            Kind::Select { base, field, test, .. } => self.select(expr, base, field, *test, scope, faults),
            Kind::Index { base, index, .. } => {
                let (base, index) = (self.infer(base, scope, faults), self.infer(index, scope, faults));
                let ty = match base.ty {
                    Ty::List(inner, _) | Ty::Map(inner, _) => *inner,
                    _ => Ty::Dyn,
                };
                known(ty, base.cost.saturating_add(index.cost).saturating_add(1))
            }
            Kind::Call { target, function, arguments } => {
                self.call(expr, target.as_deref(), function, arguments, scope, faults)
            }
            Kind::List(items) => {
                let all: Vec<Known<'s>> = items.iter().map(|(item, _)| self.infer(item, scope, faults)).collect();
                let cost = all.iter().fold(10_u64, |sum, item| sum.saturating_add(item.cost));
                let count = all.len() as u64;
                let mut types = all.into_iter().map(|item| item.ty);
                let first = types.next().unwrap_or(Ty::Dyn);
                let same = types.all(|ty| ty.name() == first.name());
                known(Ty::List(Box::new(if same { first } else { Ty::Dyn }), count), cost)
            }
            Kind::Map(items) => {
                let mut cost = 30_u64;
                for (key, value, _) in items {
                    let (key, value) = (self.infer(key, scope, faults), self.infer(value, scope, faults));
                    cost = cost.saturating_add(key.cost).saturating_add(value.cost);
                }
                known(Ty::Map(Box::new(Ty::Dyn), items.len() as u64), cost)
            }
            Kind::Not(inner) => {
                let inner = self.infer(inner, scope, faults);
                if !inner.ty.comparable(&Ty::Bool) {
                    self.no_overload(expr, "!_", &[&inner.ty], faults);
                }
                known(Ty::Bool, inner.cost.saturating_add(1))
            }
            Kind::Negate(inner) => self.infer(inner, scope, faults),
            Kind::Binary(operator, left, right) => {
                let (left, right) = (self.infer(left, scope, faults), self.infer(right, scope, faults));
                self.binary(expr, *operator, left, right, faults)
            }
            Kind::Conditional(condition, yes, no) => {
                let condition = self.infer(condition, scope, faults);
                if !condition.ty.comparable(&Ty::Bool) {
                    self.no_overload(expr, "_?_:_", &[&condition.ty], faults);
                }
                let (yes, no) = (self.infer(yes, scope, faults), self.infer(no, scope, faults));
                let ty = if yes.ty.name() == no.ty.name() { yes.ty } else { Ty::Dyn };
                known(ty, condition.cost.saturating_add(yes.cost.max(no.cost)))
            }
            Kind::Comprehend { kind, range, variables, condition, body } => {
                let range = self.infer(range, scope, faults);
                self.comprehend(expr, *kind, range, variables, condition.as_deref(), body, scope, faults)
            }
            Kind::Optional { target, variable, body, .. } => {
                let target = self.infer(target, scope, faults);
                let inner = Scope { name: variable, ty: Ty::Dyn, outer: scope };
                let body = self.infer(body, Some(&inner), faults);
                known(Ty::Dyn, target.cost.saturating_add(body.cost))
            }
        }
    }

    fn ident(&self, expr: &Expr, name: &str, scope: Option<&Scope<'_, 's>>, faults: &mut Vec<Fault>) -> Ty<'s> {
        let mut inner = scope;
        while let Some(frame) = inner {
            if frame.name == name {
                return frame.ty.clone();
            }
            inner = frame.outer;
        }
        if let Some(schema) = self.declared.names.get(name) {
            return schema.map_or(Ty::Dyn, Ty::of);
        }
        if !matches!(
            name,
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type" | "type"
        ) {
            self.fault(expr, format!("undeclared reference to '{name}' (in container '')"), faults);
        }
        Ty::Other("type")
    }

    fn select(
        &self,
        expr: &Expr,
        base: &Expr,
        field: &str,
        test: bool,
        scope: Option<&Scope<'_, 's>>,
        faults: &mut Vec<Fault>,
    ) -> Known<'s> {
        if matches!(&base.kind, Kind::Ident(name) if name == "variables" && !self.declared.names.contains_key(name)) {
            if !self.declared.variables.iter().any(|name| name == field) {
                self.fault(expr, format!("undefined field '{field}'"), faults);
            }
            return Known { ty: if test { Ty::Bool } else { Ty::Dyn }, cost: 1 };
        }
        let base = self.infer(base, scope, faults);
        let ty = match &base.ty {
            Ty::Object(schema) => {
                let found = schema["properties"].get(field).or_else(|| schema["properties"].get(unescape(field)));
                let open = schema["x-kubernetes-embedded-resource"] == true
                    && matches!(field, "apiVersion" | "kind" | "metadata");
                match found {
                    Some(property) => Ty::of(property),
                    None if open => Ty::Dyn,
                    None => {
                        self.fault(expr, format!("undefined field '{field}'"), faults);
                        Ty::Dyn
                    }
                }
            }
            Ty::Map(inner, _) => (**inner).clone(),
            Ty::Dyn | Ty::Other(_) => Ty::Dyn,
            other => {
                let name = other.name();
                self.fault(expr, format!("type '{name}' does not support field selection"), faults);
                Ty::Dyn
            }
        };
        Known { ty: if test { Ty::Bool } else { ty }, cost: base.cost.saturating_add(1) }
    }

    fn no_overload(&self, expr: &Expr, name: &str, types: &[&Ty<'_>], faults: &mut Vec<Fault>) {
        let types: Vec<String> = types.iter().map(|ty| ty.name()).collect();
        let text = format!("found no matching overload for '{name}' applied to '({})'", types.join(", "));
        self.fault(expr, text, faults);
    }

    fn binary(
        &self,
        expr: &Expr,
        operator: Operator,
        left: Known<'s>,
        right: Known<'s>,
        faults: &mut Vec<Fault>,
    ) -> Known<'s> {
        let (a, b) = (&left.ty, &right.ty);
        let number = |ty: &Ty<'_>| matches!(ty, Ty::Int | Ty::Uint | Ty::Double);
        let fits = match operator {
            Operator::And | Operator::Or => a.comparable(&Ty::Bool) && b.comparable(&Ty::Bool),
            Operator::Equal | Operator::NotEqual => a.comparable(b),
            Operator::Less | Operator::LessEqual | Operator::Greater | Operator::GreaterEqual => {
                a.comparable(b) || number(a) && number(b)
            }
            Operator::In => !matches!(b, Ty::Bool | Ty::Int | Ty::Double | Ty::Text(_) | Ty::Uint),
            Operator::Add | Operator::Subtract => {
                let time = |ty: &Ty<'_>| matches!(ty, Ty::Timestamp | Ty::Duration);
                a.comparable(b) && !matches!(a, Ty::Bool | Ty::Null) || time(a) && time(b)
            }
            _ => a.comparable(b) && (number(a) || matches!(a, Ty::Dyn | Ty::Other(_))),
        };
        if !fits {
            self.no_overload(expr, operator.name(), &[a, b], faults);
        }
        let work = match operator {
            Operator::And | Operator::Or => 0,
            Operator::In => b.weight(),
            Operator::Add => a.size().min(b.size()) / 10 + 1,
            _ => a.weight().min(b.weight()),
        };
        let ty = match operator {
            Operator::Add => match (&left.ty, &right.ty) {
                (Ty::Text(x), Ty::Text(y)) => Ty::Text(x.saturating_add(*y)),
                (Ty::List(inner, x), Ty::List(_, y)) => Ty::List(inner.clone(), x.saturating_add(*y)),
                (Ty::Int, _) | (_, Ty::Int) => Ty::Int,
                (Ty::Double, _) | (_, Ty::Double) => Ty::Double,
                (Ty::Timestamp, _) | (_, Ty::Timestamp) => Ty::Timestamp,
                _ => Ty::Dyn,
            },
            Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Remainder => match &left.ty {
                Ty::Int => Ty::Int,
                Ty::Double => Ty::Double,
                _ => Ty::Dyn,
            },
            _ => Ty::Bool,
        };
        Known { ty, cost: left.cost.saturating_add(right.cost).saturating_add(work).saturating_add(1) }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one node")]
    fn comprehend(
        &self,
        expr: &Expr,
        kind: Macro,
        range: Known<'s>,
        variables: &[String],
        condition: Option<&Expr>,
        body: &Expr,
        scope: Option<&Scope<'_, 's>>,
        faults: &mut Vec<Fault>,
    ) -> Known<'s> {
        if matches!(range.ty, Ty::Bool | Ty::Int | Ty::Double | Ty::Text(_) | Ty::Timestamp | Ty::Duration) {
            let name = range.ty.name();
            let text = format!(
                "expression of type '{name}' cannot be range of a comprehension (must be list, map, or dynamic)"
            );
            self.fault(expr, text, faults);
        }
        let element = range.ty.element();
        let first = if variables.len() > 1 { Ty::Dyn } else { element.clone() };
        let outer = Scope { name: &variables[0], ty: first, outer: scope };
        let inner;
        let frame = match variables.get(1) {
            Some(name) => {
                inner = Scope { name, ty: Ty::Dyn, outer: Some(&outer) };
                &inner
            }
            None => &outer,
        };
        let condition = condition.map_or(0, |condition| self.infer(condition, Some(frame), faults).cost);
        let body = self.infer(body, Some(frame), faults);
        let tests = matches!(kind, Macro::All | Macro::Exists | Macro::ExistsOne | Macro::Filter);
        if tests && !body.ty.comparable(&Ty::Bool) {
            self.no_overload(expr, "_&&_", &[&Ty::Bool, &body.ty], faults);
        }
        let each = condition.saturating_add(body.cost).saturating_add(2);
        let cost = range.cost.saturating_add(range.ty.size().saturating_mul(each)).saturating_add(1);
        let ty = match kind {
            Macro::All | Macro::Exists | Macro::ExistsOne => Ty::Bool,
            Macro::Filter => Ty::List(Box::new(element), range.ty.size()),
            Macro::Map | Macro::TransformList => Ty::List(Box::new(body.ty), range.ty.size()),
            Macro::TransformMap => Ty::Map(Box::new(body.ty), range.ty.size()),
        };
        Known { ty, cost }
    }

    fn call(
        &self,
        expr: &Expr,
        target: Option<&Expr>,
        function: &str,
        arguments: &[Expr],
        scope: Option<&Scope<'_, 's>>,
        faults: &mut Vec<Fault>,
    ) -> Known<'s> {
        let all: Vec<Known<'s>> = target.into_iter().chain(arguments).map(|e| self.infer(e, scope, faults)).collect();
        let below = all.iter().fold(1_u64, |sum, known| sum.saturating_add(known.cost));
        let Some((_, result)) = FUNCTIONS.iter().find(|(name, _)| *name == function) else {
            self.fault(expr, format!("undeclared reference to '{function}' (in container '')"), faults);
            return Known { ty: Ty::Dyn, cost: below };
        };
        let first = all.first().map(|known| &known.ty);
        let texts = ["contains", "startsWith", "endsWith", "matches", "lowerAscii", "upperAscii", "trim", "split"];
        if texts.contains(&function) && first.is_some_and(|ty| !ty.is_text() && !matches!(ty, Ty::Other(_))) {
            let types: Vec<&Ty<'_>> = all.iter().map(|known| &known.ty).collect();
            self.no_overload(expr, function, &types, faults);
        }
        let size = first.map_or(1, Ty::size);
        let work = match function {
            "matches" | "find" | "findAll" => {
                let pattern = match arguments.last().map(|argument| &argument.kind) {
                    Some(Kind::Literal(Literal::Text(pattern))) => pattern.len() as u64,
                    _ => all.last().map_or(1, |known| known.ty.size()),
                };
                (size / 10 + 1).saturating_mul(pattern / 4 + 1)
            }
            "size" | "type" | "dyn" | "has" | "int" | "uint" | "double" | "bool" => 0,
            "sets.contains" | "sets.equivalent" | "sets.intersects" => {
                size.saturating_mul(all.get(1).map_or(1, |known| known.ty.size()))
            }
            _ if matches!(first, Some(Ty::Text(_))) => size / 10 + 1,
            _ if matches!(first, Some(Ty::List(..))) => size,
            _ => 1,
        };
        let ty = match *result {
            "bool" => Ty::Bool,
            "int" => Ty::Int,
            "uint" => Ty::Uint,
            "double" => Ty::Double,
            "string" => {
                Ty::Text(size.saturating_add(all.iter().skip(1).map(|known| known.ty.size().min(1 << 20)).sum()))
            }
            "timestamp" => Ty::Timestamp,
            "duration" => Ty::Duration,
            "bytes" => Ty::Bytes(size),
            "texts" => Ty::List(Box::new(Ty::Text(size)), size),
            _ => Ty::Dyn,
        };
        Known { ty, cost: below.saturating_add(work) }
    }
}

fn literal_type<'s>(literal: &Literal) -> Ty<'s> {
    match literal {
        Literal::Null => Ty::Null,
        Literal::Bool(_) => Ty::Bool,
        Literal::Int(_) => Ty::Int,
        Literal::Uint(_) => Ty::Uint,
        Literal::Double(_) => Ty::Double,
        Literal::Text(text) => Ty::Text(text.len() as u64),
        Literal::Bytes(bytes) => Ty::Bytes(bytes.len() as u64),
    }
}

/// Every function, and what it gives where that is always the same.
const FUNCTIONS: &[(&str, &str)] = &[
    ("size", "int"),
    ("contains", "bool"),
    ("startsWith", "bool"),
    ("endsWith", "bool"),
    ("matches", "bool"),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bytes", "bytes"),
    ("bool", "bool"),
    ("dyn", ""),
    ("type", ""),
    ("timestamp", "timestamp"),
    ("duration", "duration"),
    ("getFullYear", "int"),
    ("getMonth", "int"),
    ("getDate", "int"),
    ("getDayOfMonth", "int"),
    ("getDayOfWeek", "int"),
    ("getDayOfYear", "int"),
    ("getHours", "int"),
    ("getMinutes", "int"),
    ("getSeconds", "int"),
    ("getMilliseconds", "int"),
    ("charAt", "string"),
    ("indexOf", "int"),
    ("lastIndexOf", "int"),
    ("lowerAscii", "string"),
    ("upperAscii", "string"),
    ("replace", "string"),
    ("split", "texts"),
    ("substring", "string"),
    ("trim", "string"),
    ("join", "string"),
    ("format", "string"),
    ("reverse", ""),
    ("strings.quote", "string"),
    ("find", "string"),
    ("findAll", "texts"),
    ("isSorted", "bool"),
    ("sum", ""),
    ("min", ""),
    ("max", ""),
    ("flatten", ""),
    ("sets.contains", "bool"),
    ("sets.equivalent", "bool"),
    ("sets.intersects", "bool"),
    ("url", ""),
    ("isURL", "bool"),
    ("getScheme", "string"),
    ("getHost", "string"),
    ("getHostname", "string"),
    ("getPort", "string"),
    ("getEscapedPath", "string"),
    ("getQuery", ""),
    ("quantity", ""),
    ("isQuantity", "bool"),
    ("isInteger", "bool"),
    ("asInteger", "int"),
    ("asApproximateFloat", "double"),
    ("sign", "int"),
    ("add", ""),
    ("sub", ""),
    ("isGreaterThan", "bool"),
    ("isLessThan", "bool"),
    ("compareTo", "int"),
    ("ip", ""),
    ("isIP", "bool"),
    ("ip.isCanonical", "bool"),
    ("cidr", ""),
    ("isCIDR", "bool"),
    ("containsIP", "bool"),
    ("containsCIDR", "bool"),
    ("masked", ""),
    ("prefixLength", "int"),
    ("family", "int"),
    ("isUnspecified", "bool"),
    ("isLoopback", "bool"),
    ("isLinkLocalMulticast", "bool"),
    ("isLinkLocalUnicast", "bool"),
    ("isGlobalUnicast", "bool"),
    ("semver", ""),
    ("isSemver", "bool"),
    ("major", "int"),
    ("minor", "int"),
    ("patch", "int"),
    ("format.named", ""),
    ("format.dns1123Label", ""),
    ("format.dns1123Subdomain", ""),
    ("format.dns1035Label", ""),
    ("format.qualifiedName", ""),
    ("format.dns1123LabelPrefix", ""),
    ("format.dns1123SubdomainPrefix", ""),
    ("format.dns1035LabelPrefix", ""),
    ("format.labelValue", ""),
    ("format.uri", ""),
    ("format.uuid", ""),
    ("format.byte", ""),
    ("format.date", ""),
    ("format.datetime", ""),
    ("validate", ""),
    ("optional.of", ""),
    ("optional.none", ""),
    ("optional.ofNonZeroValue", ""),
    ("hasValue", "bool"),
    ("value", ""),
    ("orValue", ""),
    ("or", ""),
    ("group", ""),
    ("resource", ""),
    ("subresource", ""),
    ("namespace", ""),
    ("name", ""),
    ("check", ""),
    ("allowed", "bool"),
    ("reason", "string"),
    ("errored", "bool"),
    ("error", "string"),
    ("path", ""),
    ("serviceAccount", ""),
    ("requestResource", ""),
    ("fieldSelector", ""),
    ("labelSelector", ""),
];
