//! YAML to JSON values, in the dialect of `kubectl` (YAML 1.1 booleans, one document).

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Error, Options};

use super::{DecodeError, Limits, Warning};

/// One document of a YAML stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Line of the stream at which the text starts, counted from 1.
    pub line: usize,
    /// The document without its separator.
    pub text: &'a str,
}

/// Parses one YAML document. The last of several equal keys wins, and the first repetition is reported.
pub fn yaml(bytes: &[u8], limits: Limits) -> Result<(Value, Vec<Warning>), DecodeError> {
    let text =
        str::from_utf8(bytes).map_err(|_| DecodeError::Syntax("yaml: invalid leading UTF-8 octet".to_owned()))?;
    match parse(text, DuplicateKeyPolicy::Error, limits) {
        Ok(value) => Ok((value, Vec::new())),
        Err(Error::DuplicateMappingKey { key, location }) => {
            let value = parse(text, DuplicateKeyPolicy::LastWins, limits).map_err(syntax)?;
            let line = location.line();
            let key = key.unwrap_or_default();
            let text = format!("yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map");
            Ok((value, vec![Warning(text)]))
        }
        Err(error) => Err(syntax(error)),
    }
}

fn parse(text: &str, duplicates: DuplicateKeyPolicy, limits: Limits) -> Result<Value, Error> {
    let options: Options = serde_saphyr::options! {
        duplicate_keys: duplicates,
        legacy_octal_numbers: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: limits.depth, max_documents: 1 },
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn syntax(error: Error) -> DecodeError {
    DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {error}"))
}

/// Splits a stream at its `---` lines. Documents that hold nothing but comments are left out.
pub fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut start = 0;
    let mut start_line = 1;
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let next = at + line.len();
        if is_separator(line) {
            documents.push(Document { line: start_line, text: &text[start..at] });
            // What follows the dashes on their line belongs to the document.
            start = at + 3;
            start_line = number + 1;
        }
        at = next;
    }
    documents.push(Document { line: start_line, text: &text[start..] });
    documents.retain(|document| has_content(document.text));
    documents
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn has_content(text: &str) -> bool {
    text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#') && line != "...")
}
