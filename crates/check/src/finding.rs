//! What is reported, and how rules report it.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::positions::Origin;
use crate::set::Object;

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The API refuses it, or what it describes cannot work.
    Error,
    /// It is taken, and does something else than its writer most likely wants.
    Warning,
    /// It works; there is a better way.
    Hint,
}

impl Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Hint => "hint",
        })
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the rule: `probe-port`.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// `Deployment default/web`, where the fault is in an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `spec.replicas`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The file.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// A fault of a file.
    pub fn of_file(
        severity: Severity,
        code: &'static str,
        file: &str,
        line: usize,
        message: impl Into<String>,
        fix: &str,
    ) -> Self {
        let fix = (!fix.is_empty()).then(|| fix.to_owned());
        Self { severity, code, message: message.into(), object: None, field: None, file: file.to_owned(), line, fix }
    }
}

/// Collects findings.
#[derive(Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// A fault in a field of an object that came from a file; others are nobody's to mend here, and left out.
    pub fn object(
        &mut self,
        severity: Severity,
        code: &'static str,
        object: &Object,
        field: impl Display,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let field = field.to_string();
        let Some((file, line)) = object.place(&field) else { return };
        let fix = fix.into();
        self.findings.push(Finding {
            severity,
            code,
            message: message.into(),
            object: Some(object.to_string()),
            field: (!field.is_empty()).then_some(field),
            file: file.to_owned(),
            line,
            fix: (!fix.is_empty()).then_some(fix),
        });
    }

    /// Whether an object has a finding at a field, above or below it.
    pub fn touches(&self, object: &str, field: &str) -> bool {
        let within = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.findings
            .iter()
            .filter(|finding| finding.object.as_deref() == Some(object))
            .any(|finding| finding.field.as_deref().is_some_and(|found| within(found, field) || within(field, found)))
    }

    /// A fault in a field of a file that holds no object, such as a kustomization.
    pub fn file(
        &mut self,
        severity: Severity,
        code: &'static str,
        origin: &Origin,
        field: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let line = origin.positions.line(field).0;
        let mut finding = Finding::of_file(severity, code, &origin.file, line, message, &fix.into());
        finding.field = (!field.is_empty()).then(|| field.to_owned());
        self.findings.push(finding);
    }

    /// Findings that others made.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// Whether an object has a finding of a code.
    pub fn has(&self, object: &str, code: &str) -> bool {
        self.findings.iter().any(|finding| finding.code == code && finding.object.as_deref() == Some(object))
    }

    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }
}
