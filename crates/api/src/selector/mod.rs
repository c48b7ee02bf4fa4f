//! Label selectors (`a=b,c in (d,e),!f`) and field selectors (`status.phase!=Running`).
//!
//! The grammar and the texts of its errors are those of Kubernetes; requirements are kept sorted by key, so that
//! equal selectors print equally.

mod field;
mod parse;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::names;

pub use field::{FieldOp, FieldRequirement, FieldSelector};

/// Why a selector is malformed: the text a client gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// How a label relates to the values of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The label is there with one of the values (`=`, `==`, `in`).
    In,
    /// The label is not there, or has none of the values (`!=`, `notin`).
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is an integer above the value.
    Gt,
    /// The label is an integer below the value.
    Lt,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The relation.
    pub op: Op,
    /// The values, sorted.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether a label with this value (or absent) satisfies the requirement.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let listed = |value| self.values.iter().any(|known| known == value);
        match (self.op, label) {
            (Op::In, label) => label.is_some_and(listed),
            (Op::NotIn, label) => !label.is_some_and(listed),
            (Op::Exists, label) => label.is_some(),
            (Op::DoesNotExist, label) => label.is_none(),
            (Op::Gt | Op::Lt, None) => false,
            (Op::Gt, Some(label)) => self.compares(label, |a, b| a > b),
            (Op::Lt, Some(label)) => self.compares(label, |a, b| a < b),
        }
    }

    fn compares(&self, label: &str, holds: impl Fn(i64, i64) -> bool) -> bool {
        match (label.parse(), self.values.first().map(|value| value.parse())) {
            (Ok(label), Some(Ok(bound))) => holds(label, bound),
            _ => false,
        }
    }

    fn check(&self) -> Result<(), ParseError> {
        let mut errors = Vec::new();
        if matches!(self.op, Op::Gt | Op::Lt) {
            for (index, value) in self.values.iter().enumerate() {
                if value.parse::<i64>().is_err() {
                    let path = Path::new("values").index(index);
                    let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(FieldError::invalid(&path, value.as_str(), detail));
                }
            }
        }
        for (index, value) in self.values.iter().enumerate() {
            let wrong = names::is_label_value(value);
            if !wrong.is_empty() {
                let path = Path::new("values").index(index).key(&self.key);
                errors.push(FieldError::invalid(&path, value.as_str(), wrong.join("; ")));
            }
        }
        aggregate(&errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

/// One error as it is, several in brackets.
fn aggregate(errors: &[String]) -> Result<(), ParseError> {
    match errors {
        [] => Ok(()),
        [one] => Err(ParseError(one.clone())),
        many => Err(ParseError(format!("[{}]", many.join(", ")))),
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.op, &self.values[..]) {
            (Op::Exists, _) => write!(f, "{key}"),
            (Op::DoesNotExist, _) => write!(f, "!{key}"),
            (Op::Gt, values) => write!(f, "{key}>{}", values.join(",")),
            (Op::Lt, values) => write!(f, "{key}<{}", values.join(",")),
            (Op::In, [value]) => write!(f, "{key}={value}"),
            (Op::NotIn, [value]) => write!(f, "{key}!={value}"),
            (Op::In, values) => write!(f, "{key} in ({})", values.join(",")),
            (Op::NotIn, values) => write!(f, "{key} notin ({})", values.join(",")),
        }
    }
}

/// A conjunction of requirements on labels. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    nothing: bool,
    requirements: Vec<Requirement>,
}

impl Selector {
    /// A selector that matches no object at all, not even one without labels.
    pub fn nothing() -> Self {
        Self { nothing: true, requirements: Vec::new() }
    }

    /// Parses the form that `labelSelector=` and `kubectl -l` take. Empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut requirements = parse::requirements(text)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { nothing: false, requirements })
    }

    /// From a `metav1.LabelSelector`. Null selects nothing; an empty one selects everything.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        let Some(selector) = value.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), op: Op::In, values: vec![value] });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(expression_requirement(expression)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { nothing: false, requirements })
    }

    /// Every one of these labels with its value. No labels select everything.
    pub fn from_labels(labels: BTreeMap<String, String>) -> Self {
        let requirements =
            labels.into_iter().map(|(key, value)| Requirement { key, op: Op::In, values: vec![value] }).collect();
        Self { nothing: false, requirements }
    }

    /// From a plain map of labels in JSON, as `spec.selector` of a Service. Null or empty selects nothing,
    /// because such a Service has no pods of its own.
    pub fn from_map_value(value: &Value) -> Self {
        let labels: BTreeMap<String, String> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        if labels.is_empty() { Self::nothing() } else { Self::from_labels(labels) }
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether the labels in this JSON object (or null) satisfy every requirement.
    pub fn matches_value(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether the labels that `lookup` knows satisfy every requirement.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(lookup(&requirement.key)))
    }

    /// Whether this selects everything.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The requirements, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Selector {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

fn expression_requirement(expression: &Value) -> Result<Requirement, ParseError> {
    let key = expression["key"].as_str().unwrap_or_default().to_owned();
    let mut values: Vec<String> = expression["values"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|value| value.as_str().unwrap_or_default().to_owned())
        .collect();
    values.sort();
    let op = match expression["operator"].as_str().unwrap_or_default() {
        "In" => Op::In,
        "NotIn" => Op::NotIn,
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::Gt,
        "Lt" => Op::Lt,
        other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
    };
    Ok(Requirement { key, op, values })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn text_selectors_match() {
        for (selector, set, expected) in [
            ("", "", true),
            ("a=b", "a=b,c=d", true),
            ("a==b", "a=c", false),
            ("a!=b", "", true),
            ("a in (b,c)", "a=c", true),
            ("a notin (b, c)", "a=c", false),
            ("a notin (b,c)", "x=c", true),
            ("a", "a=", true),
            ("!a", "a=", false),
            ("a in (,x)", "a=", true),
            ("a=", "a=", true),
            ("in in (in,notin)", "in=notin", true),
            ("n>5", "n=6", true),
            ("n<5", "n=6", false),
            ("x in (a),y,!z", "x=a,y=1", true),
        ] {
            let parsed = Selector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
            assert_eq!(parsed.matches(&labels(set)), expected, "{selector} on {set}");
        }
    }

    #[test]
    fn text_errors_are_those_of_kubernetes() {
        for (selector, expected) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(Selector::parse(selector).expect_err(selector).0, expected, "{selector}");
        }
    }

    #[test]
    fn object_selectors_match() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        let selector = Selector::from_value(&selector).expect("valid");
        assert!(selector.matches_value(&json!({"a": "b", "c": ""})));
        assert!(!selector.matches_value(&Value::Null));
        assert!(Selector::from_value(&json!({})).expect("valid").matches_value(&Value::Null));
        assert!(!Selector::from_value(&Value::Null).expect("valid").matches_value(&json!({"a": "b"})));
        assert!(!Selector::from_map_value(&json!({})).matches_value(&json!({"a": "b"})));
    }

    #[test]
    fn field_selectors_match() {
        let selector = FieldSelector::parse("status.phase!=Running,spec.nodeName=x").expect("valid");
        assert_eq!(selector.exact("spec.nodeName"), Some("x"));
        assert!(selector.matches(|path| (path == "spec.nodeName").then(|| "x".to_owned())));
        assert!(!selector.matches(|_| Some("x".to_owned()).filter(|_| false)));
        assert_eq!(
            FieldSelector::parse("abc").expect_err("malformed").0,
            "invalid selector: 'abc'; can't understand 'abc'"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9 ,!=()<>\\PC]*") {
            let _ = Selector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn printed_selectors_parse_to_themselves(text in "[a-c](=|==|!=| in \\(| notin \\()?[a-c]?,?[a-c]?\\)?") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()).expect("printed form"), selector);
            }
        }
    }
}
