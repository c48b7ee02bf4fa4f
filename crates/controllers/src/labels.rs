//! Label selectors, compiled once and matched often.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// What a selector demands of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label has one of these values.
    In(String, BTreeSet<String>),
    /// The label is absent or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
    /// Nothing satisfies this: the selector is malformed.
    Never,
}

impl Requirement {
    /// Whether these labels satisfy it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::Never => false,
        }
    }
}

/// All requirements must hold. Two matchers are equal if they demand the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Matcher(BTreeSet<Requirement>);

impl Matcher {
    /// Compiles a selector; an empty one matches everything.
    pub fn new(selector: &LabelSelector) -> Self {
        let mut all = BTreeSet::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            all.insert(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
        }
        for expression in selector.match_expressions.iter().flatten() {
            let key = expression.key.clone();
            let values = || expression.values.iter().flatten().cloned().collect();
            all.insert(match expression.operator.as_str() {
                "In" => Requirement::In(key, values()),
                "NotIn" => Requirement::NotIn(key, values()),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                _ => Requirement::Never,
            });
        }
        Self(all)
    }

    /// As [`Matcher::new`], but no selector at all matches nothing.
    pub fn optional(selector: Option<&LabelSelector>) -> Self {
        selector.map_or_else(|| Self(BTreeSet::from([Requirement::Never])), Self::new)
    }

    /// A matcher of exact values.
    pub fn exact(labels: &BTreeMap<String, String>) -> Self {
        let one = |(key, value): (&String, &String)| Requirement::In(key.clone(), BTreeSet::from([value.clone()]));
        Self(labels.iter().map(one).collect())
    }

    /// Adds a demand.
    pub fn require(&mut self, requirement: Requirement) {
        self.0.insert(requirement);
    }

    /// A label, if it demands one, that all it matches have with the same value.
    pub fn exact_label(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) if values.len() == 1 => Some((key.as_str(), values.first()?.as_str())),
            _ => None,
        })
    }

    /// Whether it demands nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these labels satisfy it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}
