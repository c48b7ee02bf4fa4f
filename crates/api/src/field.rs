//! Field paths and validation errors, worded as Kubernetes words them
//! (`k8s.io/apimachinery/pkg/util/validation/field`): clients match on these texts.

use std::fmt;

use serde_json::Value;

/// A path to a field: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at a field of the object.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The field `name` below this one.
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// Element `index` of the list at this path.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Entry `key` of the map at this path.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of fault a field has. The names are the `reason` of a status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A value is missing that must be given.
    Required,
    /// The value is malformed or out of bounds.
    Invalid,
    /// The value is given twice in a list or map that allows it once.
    Duplicate,
    /// The value is not one of those allowed.
    NotSupported,
    /// The value is well formed but not permitted here.
    Forbidden,
    /// The text is too long.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The value has the wrong type.
    TypeInvalid,
    /// Something the value refers to does not exist.
    NotFound,
}

impl ErrorKind {
    /// The `reason` in a `metav1.StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::TooMany)
    }
}

/// One fault in one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What kind of fault.
    pub kind: ErrorKind,
    /// Where.
    pub path: Path,
    /// What was found, for the kinds that show it.
    pub value: Value,
    /// What is allowed.
    pub detail: String,
}

impl FieldError {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind, path: path.clone(), value: value.into(), detail: detail.into() }
    }

    /// A missing value.
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, Value::Null, detail)
    }

    /// A malformed value.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, value, detail)
    }

    /// A value that may not be set or changed here.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, Value::Null, detail)
    }

    /// A value given twice.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, value, "")
    }

    /// A value outside an enumeration.
    pub fn not_supported(path: &Path, value: impl Into<Value>, allowed: &[&str]) -> Self {
        let mut allowed: Vec<String> = allowed.iter().map(|v| format!("{v:?}")).collect();
        allowed.sort();
        Self::new(ErrorKind::NotSupported, path, value, format!("supported values: {}", allowed.join(", ")))
    }

    /// The message without the path: `Invalid value: "x": must be ...`.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            text.push_str(&self.value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_in_kubernetes() {
        let path = Path::new("spec").child("containers").index(0).child("name");
        assert_eq!(FieldError::required(&path, "").to_string(), "spec.containers[0].name: Required value");
        assert_eq!(
            FieldError::invalid(&path, "A_b", "must be lower case").to_string(),
            "spec.containers[0].name: Invalid value: \"A_b\": must be lower case"
        );
        assert_eq!(
            FieldError::not_supported(&Path::new("spec").child("type"), "X", &["B", "A"]).to_string(),
            "spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\""
        );
    }
}
