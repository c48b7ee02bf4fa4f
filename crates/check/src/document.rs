//! Text to documents: values, and where their fields stand.

use std::sync::Arc;

use mycelium_apimachinery::decode::{self, Limits};
use serde_json::Value;

use crate::finding::{Finding, Severity};
use crate::positions::{Origin, Positions};
use crate::value::{list, text};

/// One document of a file, or one item of a list in it.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it says.
    pub value: Value,
    /// Where it says so.
    pub origin: Origin,
}

/// Reads the documents of a file; what cannot be read becomes findings. Lists are taken apart.
pub fn parse(file: &str, text: &str) -> (Vec<Document>, Vec<Finding>) {
    parse_at(file, text, 1)
}

/// The same of a text that begins at a line of its file.
pub(crate) fn parse_at(file: &str, text: &str, first: usize) -> (Vec<Document>, Vec<Finding>) {
    let name: Arc<str> = file.into();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut documents, mut findings) = (Vec::new(), Vec::new());
    for part in decode::yaml_documents(text) {
        match read(&name, part.line + first.saturating_sub(1), part.text) {
            Ok((document, repeated)) => {
                findings.extend(repeated);
                take_apart(document, &mut documents);
            }
            Err(finding) => findings.push(*finding),
        }
    }
    (documents, findings)
}

fn read(file: &Arc<str>, first: usize, text: &str) -> Result<(Document, Vec<Finding>), Box<Finding>> {
    let syntax = |line, message: &str| {
        if let Some((number, _)) = text.lines().enumerate().find(|(_, line)| is_template(line)) {
            return Box::new(Finding::of_file(
                Severity::Error,
                "template",
                file,
                first + number,
                "this is a template with {{ }}, not a manifest",
                "render it first, for example with `helm template`, and check what comes out",
            ));
        }
        let message = format!("this is not YAML: {message}");
        Box::new(Finding::of_file(Severity::Error, "yaml-syntax", file, line, message, ""))
    };
    let positions = Positions::read(text, first).map_err(|fault| syntax(fault.line, &fault.message))?;
    let (value, warnings) = decode::yaml(text.as_bytes(), Limits::default()).map_err(|error| {
        let (line, message) = place(&error.to_string(), first);
        syntax(line, &message)
    })?;
    let repeated = warnings
        .iter()
        .map(|warning| {
            let (line, message) = place(&warning.0, first);
            let message = format!("a key is given twice: {message}");
            let fix = "keep one of them; strict decoding refuses both, and without it the last one wins";
            Finding::of_file(Severity::Error, "duplicate-key", file, line, message, fix)
        })
        .collect();
    Ok((Document { value, origin: Origin { file: file.clone(), positions } }, repeated))
}

/// The line that a decoder's message names, in the file, and the message without what only it needs.
fn place(message: &str, first: usize) -> (usize, String) {
    let short = message
        .trim_start_matches("error converting YAML to JSON: ")
        .trim_start_matches("yaml: ")
        .trim_start_matches("unmarshal errors:")
        .trim();
    let after = short.split_once("line ").map(|(_, rest)| rest);
    let digits: String = after.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    let line = digits.parse::<usize>().unwrap_or(1).max(1);
    let said = short.strip_prefix(&format!("line {digits}: ")).unwrap_or(short);
    (line.saturating_add(first).saturating_sub(1), said.to_owned())
}

fn is_template(line: &str) -> bool {
    line.contains("{{") && line.contains("}}") && !line.trim_start().starts_with('#')
}

fn take_apart(document: Document, documents: &mut Vec<Document>) {
    let is_list = text(&document.value, "/kind").ends_with("List") && document.value["items"].is_array();
    if !is_list {
        if !document.value.is_null() {
            documents.push(document);
        }
        return;
    }
    for (index, item) in list(&document.value, "/items").iter().enumerate() {
        let positions = document.origin.positions.below(&format!("items[{index}]"));
        let origin = Origin {
            file: document.origin.file.clone(),
            positions: positions.unwrap_or_else(|| document.origin.positions.clone()),
        };
        take_apart(Document { value: item.clone(), origin }, documents);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_faults_have_their_lines() {
        let text =
            "a: 1\n---\n# nothing\n---\nkind: List\nitems:\n- kind: A\n- kind: B\n  x: 1\n---\na: 1\na: 2\n---\nx: [\n";
        let (documents, findings) = parse("f", text);
        let lines: Vec<_> = documents.iter().map(|d| d.origin.positions.line("kind")).collect();
        assert_eq!(lines, [(1, false), (7, true), (8, true), (11, false)]);
        let found: Vec<_> = findings.iter().map(|f| (f.code, f.line)).collect();
        assert_eq!(found[0], ("duplicate-key", 12));
        assert_eq!(found[1].0, "yaml-syntax");
        assert!((14..=15).contains(&found[1].1), "{findings:?}");
    }

    #[test]
    fn templates_are_told_from_broken_files() {
        let (_, findings) = parse("f", "a: 1\nb: {{ .Values.b }}\n{{- if x }}\n");
        assert_eq!((findings[0].code, findings[0].line), ("template", 2));
    }
}
