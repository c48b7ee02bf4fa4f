//! Evaluation by walking the tree; every step is paid for.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::ast::{Expr, Kind, Literal, Macro, Operator};
use crate::functions;
use crate::value::{Key, Value};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// This evaluation cost more than one may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CallCost,
    /// All evaluations together cost more than they may.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

type Outcome<'a> = Result<Value<'a>, EvalError>;

/// What evaluations may cost: all of them together, and each.
#[derive(Debug)]
pub struct Limits {
    left: Cell<u64>,
    each: u64,
}

impl Limits {
    /// Limits of all evaluations, and of each.
    pub fn new(total: u64, each: u64) -> Self {
        Self { left: Cell::new(total), each }
    }
}

/// What names stand for.
#[derive(Clone, Debug, Default)]
pub struct Bindings<'a> {
    names: BTreeMap<String, Value<'a>>,
    /// Names below `variables`, each with its value or why it has none.
    variables: BTreeMap<String, Outcome<'a>>,
}

impl<'a> Bindings<'a> {
    /// Lets a name stand for a value.
    pub fn set(&mut self, name: &str, value: Value<'a>) {
        self.names.insert(name.to_owned(), value);
    }

    /// Lets `variables.name` stand for the outcome of an expression.
    pub fn set_variable(&mut self, name: &str, outcome: Outcome<'a>) {
        self.variables.insert(name.to_owned(), outcome);
    }
}

/// A variable of a macro, and those around it.
struct Frame<'f, 'a> {
    name: &'f str,
    value: &'f Value<'a>,
    outer: Option<&'f Frame<'f, 'a>>,
}

/// One evaluation.
pub struct Run<'r, 'a> {
    bindings: &'r Bindings<'a>,
    left: Cell<u64>,
}

/// Evaluates a tree.
pub fn run<'a>(root: &'a Expr, bindings: &Bindings<'a>, limits: &Limits) -> Outcome<'a> {
    let total = limits.left.get();
    if total == 0 {
        return Err(EvalError::Budget);
    }
    let given = total.min(limits.each);
    let run = Run { bindings, left: Cell::new(given) };
    let outcome = run.eval(root, None);
    limits.left.set(total - (given - run.left.get()));
    match outcome {
        Err(EvalError::CallCost) if total <= limits.each => Err(EvalError::Budget),
        outcome => outcome,
    }
}

pub fn fail<'a>(why: impl Into<String>) -> Outcome<'a> {
    Err(EvalError::Failed(why.into()))
}

impl<'a> Run<'_, 'a> {
    /// Pays for some steps.
    pub fn pay(&self, cost: u64) -> Result<(), EvalError> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(EvalError::CallCost)
            }
        }
    }

    /// Pays for looking at all of a value: a step for ten characters or elements.
    pub fn pay_for(&self, value: &Value<'_>) -> Result<(), EvalError> {
        self.pay(1 + value.size().unwrap_or(0) as u64 / 10)
    }

    fn eval(&self, expr: &'a Expr, scope: Option<&Frame<'_, 'a>>) -> Outcome<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(literal_value(literal)),
            Kind::Ident(name) => self.ident(name, scope),
            Kind::Select { base, field, optional, test } => {
                self.pay(1)?;
                if let Kind::Ident(space) = &base.kind
                    && space == "variables"
                    && let Some(outcome) = self.bindings.variables.get(field)
                {
                    return match (test, outcome) {
                        (true, _) => Ok(Value::Bool(true)),
                        (false, outcome) => outcome.clone(),
                    };
                }
                let base = self.eval(base, scope)?;
                select(base, field, *optional, *test)
            }
            Kind::Index { base, index, optional } => {
                self.pay(1)?;
                let base = self.eval(base, scope)?;
                let index = self.eval(index, scope)?;
                match base {
                    Value::Optional(None) => Ok(Value::Optional(None)),
                    Value::Optional(Some(inner)) => Ok(optionally(at(&inner, &index))),
                    base if *optional => Ok(optionally(at(&base, &index))),
                    base => at(&base, &index),
                }
            }
            Kind::Call { target, function, arguments } => self.call(target.as_deref(), function, arguments, scope),
            Kind::List(items) => self.list(items, scope),
            Kind::Map(items) => self.map(items, scope),
            Kind::Not(inner) => match self.eval(inner, scope)? {
                Value::Bool(flag) => Ok(Value::Bool(!flag)),
                _ => fail("no such overload"),
            },
            Kind::Negate(inner) => {
                self.pay(1)?;
                match self.eval(inner, scope)? {
                    Value::Int(number) => {
                        number.checked_neg().map_or_else(|| fail("integer overflow"), |n| Ok(Value::Int(n)))
                    }
                    Value::Double(number) => Ok(Value::Double(-number)),
                    Value::Duration(nanos) => Ok(Value::Duration(-nanos)),
                    _ => fail("no such overload"),
                }
            }
            Kind::Binary(operator, left, right) => self.binary(*operator, left, right, scope),
            Kind::Conditional(condition, yes, no) => match self.eval(condition, scope)? {
                Value::Bool(true) => self.eval(yes, scope),
                Value::Bool(false) => self.eval(no, scope),
                _ => fail("no such overload"),
            },
            Kind::Comprehend { kind, range, variables, condition, body } => {
                let range = self.eval(range, scope)?;
                self.comprehend(*kind, &range, variables, condition.as_deref(), body, scope)
            }
            Kind::Optional { target, variable, body, flat } => match self.eval(target, scope)? {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(inner)) => {
                    let frame = Frame { name: variable, value: &inner, outer: scope };
                    let value = self.eval(body, Some(&frame))?;
                    Ok(if *flat { value } else { Value::Optional(Some(value.into())) })
                }
                _ => fail("no such overload"),
            },
        }
    }

    fn ident(&self, name: &str, scope: Option<&Frame<'_, 'a>>) -> Outcome<'a> {
        self.pay(1)?;
        let mut frame = scope;
        while let Some(inner) = frame {
            if inner.name == name {
                return Ok(inner.value.clone());
            }
            frame = inner.outer;
        }
        if let Some(value) = self.bindings.names.get(name) {
            return Ok(value.clone());
        }
        match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type" | "type" => {
                Ok(Value::Type(name.to_owned()))
            }
            _ => fail(format!("no such attribute(s): {name}")),
        }
    }

    fn call(
        &self,
        target: Option<&'a Expr>,
        function: &str,
        arguments: &'a [Expr],
        scope: Option<&Frame<'_, 'a>>,
    ) -> Outcome<'a> {
        self.pay(1)?;
        let target = target.map(|target| self.eval(target, scope)).transpose()?;
        // What stands in for nothing is looked at only if there is nothing.
        if let Some(Value::Optional(inner)) = &target
            && let ("orValue" | "or", [other]) = (function, arguments)
        {
            return match (inner, function) {
                (Some(value), "orValue") => Ok((**value).clone()),
                (Some(_), _) => Ok(Value::Optional(inner.clone())),
                (None, _) => self.eval(other, scope),
            };
        }
        let mut values = Vec::with_capacity(arguments.len() + 1);
        let method = target.is_some();
        values.extend(target);
        for argument in arguments {
            values.push(self.eval(argument, scope)?);
        }
        functions::call(self, method, function, &values)
    }

    fn list(&self, items: &'a [(Expr, bool)], scope: Option<&Frame<'_, 'a>>) -> Outcome<'a> {
        self.pay(10)?;
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item, scope)?, optional) {
                (Value::Optional(inner), true) => list.extend(inner.map(|inner| *inner)),
                (value, _) => list.push(value),
            }
        }
        Ok(Value::List(list.into()))
    }

    fn map(&self, items: &'a [(Expr, Expr, bool)], scope: Option<&Frame<'_, 'a>>) -> Outcome<'a> {
        self.pay(30)?;
        let mut map = BTreeMap::new();
        for (key, value, optional) in items {
            let key = self.eval(key, scope)?;
            let Some(key) = Key::of(&key) else { return fail(format!("unsupported key type: {}", key.type_name())) };
            let value = match (self.eval(value, scope)?, optional) {
                (Value::Optional(Some(inner)), true) => *inner,
                (Value::Optional(None), true) => continue,
                (value, _) => value,
            };
            if map.insert(key.clone(), value).is_some() {
                return fail(format!("Failed with repeated key: {key}"));
            }
        }
        Ok(Value::Map(map.into()))
    }

    fn binary(
        &self,
        operator: Operator,
        left: &'a Expr,
        right: &'a Expr,
        scope: Option<&Frame<'_, 'a>>,
    ) -> Outcome<'a> {
        if matches!(operator, Operator::And | Operator::Or) {
            return self.logic(operator == Operator::Or, left, right, scope);
        }
        let (left, right) = (self.eval(left, scope)?, self.eval(right, scope)?);
        self.pay(1)?;
        match operator {
            Operator::Equal => Ok(Value::Bool(self.equal(&left, &right)?)),
            Operator::NotEqual => Ok(Value::Bool(!self.equal(&left, &right)?)),
            Operator::In => self.contains(&right, &left).map(Value::Bool),
            Operator::Less | Operator::LessEqual | Operator::Greater | Operator::GreaterEqual => {
                self.pay(left.size().unwrap_or(0).min(right.size().unwrap_or(0)) as u64 / 10)?;
                let Some(order) = functions::compare(&left, &right) else { return fail("no such overload") };
                Ok(Value::Bool(match operator {
                    Operator::Less => order.is_lt(),
                    Operator::LessEqual => order.is_le(),
                    Operator::Greater => order.is_gt(),
                    _ => order.is_ge(),
                }))
            }
            Operator::Add => {
                self.pay((left.size().unwrap_or(0) + right.size().unwrap_or(0)) as u64 / 10)?;
                functions::add(left, right)
            }
            other => functions::arithmetic(other, &left, &right),
        }
    }

    /// One side that decides makes a failure of the other side unimportant.
    fn logic(&self, decisive: bool, left: &'a Expr, right: &'a Expr, scope: Option<&Frame<'_, 'a>>) -> Outcome<'a> {
        let first = self.eval(left, scope);
        if matches!(&first, Ok(Value::Bool(flag)) if *flag == decisive) {
            return first;
        }
        if matches!(first, Err(EvalError::CallCost | EvalError::Budget)) {
            return first;
        }
        let second = self.eval(right, scope);
        match (&first, &second) {
            (_, Ok(Value::Bool(flag))) if *flag == decisive => second,
            (_, Err(EvalError::CallCost | EvalError::Budget)) => second,
            (Err(_), _) => first,
            (Ok(Value::Bool(_)), Ok(Value::Bool(_)) | Err(_)) => second,
            _ => fail("no such overload"),
        }
    }

    fn comprehend(
        &self,
        kind: Macro,
        range: &Value<'a>,
        variables: &'a [String],
        condition: Option<&'a Expr>,
        body: &'a Expr,
        scope: Option<&Frame<'_, 'a>>,
    ) -> Outcome<'a> {
        let pairs = pairs(range, variables.len())?;
        let mut state = State::default();
        for (first, second) in &pairs {
            self.pay(1)?;
            let outer = Frame { name: &variables[0], value: first, outer: scope };
            let inner;
            let frame = match (variables.get(1), second) {
                (Some(name), Some(value)) => {
                    inner = Frame { name, value, outer: Some(&outer) };
                    &inner
                }
                _ => &outer,
            };
            let fits = match condition.map(|condition| self.eval(condition, Some(frame))).transpose()? {
                None | Some(Value::Bool(true)) => true,
                Some(Value::Bool(false)) => false,
                Some(_) => return fail("no such overload"),
            };
            if fits && state.visit(kind, first, self.eval(body, Some(frame)))? {
                break;
            }
        }
        state.outcome(kind)
    }

    /// Equality as the language has it: numbers across types, maps and lists in depth.
    pub fn equal(&self, left: &Value<'a>, right: &Value<'a>) -> Result<bool, EvalError> {
        self.pay(left.size().unwrap_or(0).min(right.size().unwrap_or(0)) as u64 / 10)?;
        if let (Some(a), Some(b)) = (left.elements(), right.elements()) {
            return self.lists_equal(left, &a, &b);
        }
        if let (Some(keys), Some(other)) = (left.keys(), right.keys()) {
            if keys.len() != other.len() {
                return Ok(false);
            }
            for key in &keys {
                let (Ok(a), Ok(b)) = (at(left, key), at(right, key)) else { return Ok(false) };
                self.pay(1)?;
                if !self.equal(&a, &b)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        Ok(functions::scalars_equal(left, right))
    }

    fn lists_equal(&self, list: &Value<'a>, a: &[Value<'a>], b: &[Value<'a>]) -> Result<bool, EvalError> {
        if a.len() != b.len() {
            return Ok(false);
        }
        let unordered = match list {
            Value::Node(node) => node
                .schema
                .is_some_and(|schema| matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map"))),
            _ => false,
        };
        for (index, item) in a.iter().enumerate() {
            self.pay(1)?;
            let same = if unordered { self.among(b, item)? } else { self.equal(item, &b[index])? };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a list has an element.
    pub fn among(&self, list: &[Value<'a>], item: &Value<'a>) -> Result<bool, EvalError> {
        for other in list {
            self.pay(1)?;
            if self.equal(other, item)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn contains(&self, container: &Value<'a>, item: &Value<'a>) -> Result<bool, EvalError> {
        if let Some(elements) = container.elements() {
            return self.among(&elements, item);
        }
        match container {
            Value::Map(_) | Value::Node(_) => Ok(at(container, item).is_ok()),
            _ => Err(EvalError::Failed("no such overload".to_owned())),
        }
    }
}

#[derive(Default)]
struct State<'a> {
    failure: Option<EvalError>,
    decided: Option<bool>,
    count: usize,
    list: Vec<Value<'a>>,
    map: BTreeMap<Key, Value<'a>>,
}

impl<'a> State<'a> {
    /// Takes the body's value for one element. Whether the rest need not be looked at.
    fn visit(&mut self, kind: Macro, element: &Value<'a>, value: Outcome<'a>) -> Result<bool, EvalError> {
        let wanted = match kind {
            Macro::All => Some(false),
            Macro::Exists => Some(true),
            _ => None,
        };
        if let Some(wanted) = wanted {
            match value {
                Ok(Value::Bool(flag)) if flag == wanted => self.decided = Some(wanted),
                Ok(Value::Bool(_)) => {}
                Ok(_) => return Err(EvalError::Failed("no such overload".to_owned())),
                Err(error @ EvalError::Failed(_)) => self.failure = Some(error),
                Err(error) => return Err(error),
            }
            return Ok(self.decided.is_some());
        }
        let value = value?;
        match (kind, value) {
            (Macro::Map | Macro::TransformList, value) => self.list.push(value),
            (Macro::TransformMap, value) => drop(Key::of(element).map(|key| self.map.insert(key, value))),
            (Macro::ExistsOne, Value::Bool(flag)) => self.count += usize::from(flag),
            (Macro::Filter, Value::Bool(flag)) => self.list.extend(flag.then(|| element.clone())),
            _ => return Err(EvalError::Failed("no such overload".to_owned())),
        }
        Ok(false)
    }

    fn outcome(self, kind: Macro) -> Outcome<'a> {
        match kind {
            Macro::All | Macro::Exists => match (self.decided, self.failure) {
                (Some(decided), _) => Ok(Value::Bool(decided)),
                (None, Some(failure)) => Err(failure),
                (None, None) => Ok(Value::Bool(kind == Macro::All)),
            },
            Macro::ExistsOne => Ok(Value::Bool(self.count == 1)),
            Macro::TransformMap => Ok(Value::Map(self.map.into())),
            Macro::Filter | Macro::Map | Macro::TransformList => Ok(Value::List(self.list.into())),
        }
    }
}

/// What a macro's variables stand for, one after the other.
fn pairs<'a>(range: &Value<'a>, variables: usize) -> Result<Vec<(Value<'a>, Option<Value<'a>>)>, EvalError> {
    if let Some(elements) = range.elements() {
        let pair = |(index, element)| match variables {
            1 => (element, None),
            _ => (Value::Int(i64::try_from(index).unwrap_or(i64::MAX)), Some(element)),
        };
        return Ok(elements.into_iter().enumerate().map(pair).collect());
    }
    let Some(keys) = range.keys() else { return Err(EvalError::Failed("no such overload".to_owned())) };
    let pair = |key: Value<'a>| {
        let value = (variables > 1).then(|| at(range, &key).unwrap_or(Value::Null));
        (key, value)
    };
    Ok(keys.into_iter().map(pair).collect())
}

fn literal_value<'a>(literal: &'a Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(flag) => Value::Bool(*flag),
        Literal::Int(number) => Value::Int(*number),
        Literal::Uint(number) => Value::Uint(*number),
        Literal::Double(number) => Value::Double(*number),
        Literal::Text(text) => Value::Text(Cow::Borrowed(text)),
        Literal::Bytes(bytes) => Value::Bytes(bytes.as_slice().into()),
    }
}

/// A field whose name cannot be written is written with escapes: `a__dash__b`.
fn member<'a>(base: &Value<'a>, field: &str) -> Option<Value<'a>> {
    let found = base.member(field);
    match (found, base) {
        (None, Value::Node(_)) if field.contains("__") => base.member(&crate::check::unescape(field)),
        (found, _) => found,
    }
}

fn select<'a>(base: Value<'a>, field: &str, optional: bool, test: bool) -> Outcome<'a> {
    match base {
        Value::Optional(None) if test => Ok(Value::Bool(false)),
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) if test => Ok(Value::Bool(member(&inner, field).is_some())),
        Value::Optional(Some(inner)) => Ok(Value::Optional(member(&inner, field).map(Box::new))),
        Value::Map(_) | Value::Node(_) if base.keys().is_some() => match (member(&base, field), test, optional) {
            (found, true, _) => Ok(Value::Bool(found.is_some_and(|value| !is_null(&value)))),
            (found, _, true) => Ok(Value::Optional(found.map(Box::new))),
            (Some(value), _, _) => Ok(value),
            (None, _, _) => fail(format!("no such key: {field}")),
        },
        _ => fail(format!("no such overload: {}.{field}", base.type_name())),
    }
}

fn is_null(value: &Value<'_>) -> bool {
    matches!(value, Value::Null)
}

fn optionally<'a>(outcome: Outcome<'a>) -> Value<'a> {
    Value::Optional(outcome.ok().map(Box::new))
}

/// `base[index]`
pub fn at<'a>(base: &Value<'a>, index: &Value<'a>) -> Outcome<'a> {
    if let Some(length) = base.size().filter(|_| base.keys().is_none()) {
        let wanted = match index {
            Value::Int(number) => usize::try_from(*number).ok(),
            Value::Uint(number) => usize::try_from(*number).ok(),
            Value::Double(number) if number.fract() == 0.0 && *number >= 0.0 => Some(*number as usize),
            Value::Double(_) => None,
            _ => return fail(format!("unsupported index type '{}' in list", index.type_name())),
        };
        let element = wanted.filter(|at| *at < length).and_then(|at| match base {
            Value::List(items) => items.get(at).cloned(),
            Value::Node(node) => {
                let schema = node.schema.and_then(|schema| schema.get("items"));
                node.json.get(at).map(|item: &'a Json| Value::json(item, schema))
            }
            _ => None,
        });
        return element.map_or_else(|| fail(format!("index out of bounds: {}", functions::show(index))), Ok);
    }
    let found = match (base, index) {
        (Value::Map(entries), index) => Key::of(index).and_then(|key| entries.get(&key).cloned()),
        (Value::Node(_), Value::Text(name)) => base.member(name),
        (Value::Node(_), _) => None,
        _ => return fail("no such overload"),
    };
    found.map_or_else(|| fail(format!("no such key: {}", functions::show(index))), Ok)
}
