//! Faults of manifests and kustomizations, explained before they bite.
//!
//! Text becomes [`Document`]s, which know the line of every field; documents become a [`Set`] of objects together with
//! what else is known (objects of a cluster, nodes, images); [`check`] runs every rule over the set. A rule is a pure
//! function that pushes [`Finding`]s: a code, one sentence, the field with file and line, and the fix if it can be
//! told. Nothing here reads a file: [`kustomize`] does it through a [`Source`].
//!
//! | module | holds |
//! |---|---|
//! | [`document`], `positions` | text to values and lines |
//! | [`set`], `workload` | objects, what they are found by, pods that they make |
//! | `rules/` | one file per subject |
//! | [`kustomize`] | kustomizations: their own faults, and the objects that come out |
//!
//! Two rules against false alarms: what cannot be told from the files is not reported (labels that a custom controller
//! may give, references into kinds that nothing is known of), and what may lie outside the files is a warning, unless
//! a cluster was asked.

pub mod document;
pub mod facts;
mod finding;
pub mod kustomize;
mod near;
mod positions;
mod rules;
pub mod set;
mod value;
mod workload;

pub use document::{Document, parse};
pub use finding::{Finding, Severity};
pub use kustomize::{Entry, Source};
pub use set::{Context, Object, Set};

/// Runs every rule. Findings come sorted by file and line.
pub fn check(set: &Set) -> Vec<Finding> {
    let mut report = finding::Report::default();
    rules::run(set, &mut report);
    let mut findings = report.into_findings();
    sort(&mut findings);
    findings
}

/// Sorts findings by file, line and severity, and leaves each once.
pub fn sort(findings: &mut Vec<Finding>) {
    findings.sort_by(|a, b| {
        let key = |f: &Finding| (f.file.clone(), f.line, f.severity, f.code, f.field.clone(), f.message.clone());
        key(a).cmp(&key(b))
    });
    findings.dedup();
}
