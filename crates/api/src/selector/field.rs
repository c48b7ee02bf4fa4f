//! Field selectors: `status.phase!=Running,spec.nodeName=x`.

use super::ParseError;

/// How a field relates to the value of a field requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOp {
    /// `=` or `==`.
    Eq,
    /// `!=`.
    NotEq,
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldRequirement {
    /// The field, such as `status.phase`.
    pub path: String,
    /// The relation.
    pub op: FieldOp,
    /// The value. An absent field has the empty value.
    pub value: String,
}

impl PartialOrd for FieldOp {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FieldOp {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

/// A conjunction of requirements on fields. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

impl FieldSelector {
    /// Parses the form that `fieldSelector=` takes. Empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parts: Vec<&str> = text.split(',').filter(|part| !part.is_empty()).collect();
        parts.sort_unstable();
        let parse_part = |part: &str| {
            let forms = [("!=", FieldOp::NotEq), ("==", FieldOp::Eq), ("=", FieldOp::Eq)];
            for (sign, op) in forms {
                let sides: Vec<&str> = part.split(sign).collect();
                if let [path, value] = sides[..] {
                    return Ok(FieldRequirement { path: path.to_owned(), op, value: value.to_owned() });
                }
            }
            Err(ParseError(format!("invalid selector: '{text}'; can't understand '{part}'")))
        };
        parts.into_iter().map(parse_part).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the fields that `lookup` knows satisfy every requirement; an absent field is empty text.
    pub fn matches(&self, lookup: impl Fn(&str) -> Option<String>) -> bool {
        self.0.iter().all(|requirement| {
            let equal = lookup(&requirement.path).unwrap_or_default() == requirement.value;
            equal == (requirement.op == FieldOp::Eq)
        })
    }

    /// Whether this selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that the field must have, if the selector demands one.
    pub fn exact(&self, path: &str) -> Option<&str> {
        let demands = |requirement: &&FieldRequirement| requirement.path == path && requirement.op == FieldOp::Eq;
        self.0.iter().find(demands).map(|requirement| requirement.value.as_str())
    }
}
