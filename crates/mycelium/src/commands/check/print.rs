//! Findings as sentences and as JSON.

use anyhow::Result;
use mycelium_check::{Finding, Severity};

use crate::client::out;

/// Colours of a terminal: red, yellow, blue, faint, none.
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const BLUE: &str = "\x1b[1;34m";
const FAINT: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// A list of findings.
pub fn json(findings: &[Finding]) -> Result<()> {
    out!("{}\n", serde_json::to_string_pretty(findings)?);
    Ok(())
}

/// One paragraph per finding, and a last line that counts.
pub fn text(findings: &[Finding], objects: usize, files: usize, colours: bool) -> Result<()> {
    for finding in findings {
        out!("{}", paragraph(finding, colours));
    }
    out!("{}\n", summary(findings, objects, files));
    Ok(())
}

/// A finding without its severity: `FILE:LINE: SENTENCE`, and the fix.
pub fn plain(finding: &Finding) -> String {
    let object = finding.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    let fix = finding.fix.as_ref().map(|fix| format!(" (fix: {fix})")).unwrap_or_default();
    format!("{}:{}: {object}{}{fix} [{}]\n", finding.file, finding.line, finding.message, finding.code)
}

fn paragraph(finding: &Finding, colours: bool) -> String {
    let colour = match finding.severity {
        Severity::Error => RED,
        Severity::Warning => YELLOW,
        Severity::Hint => BLUE,
    };
    let paint = |colour: &'static str| if colours { (colour, PLAIN) } else { ("", "") };
    let ((on, off), (faint, plain)) = (paint(colour), paint(FAINT));
    let object = finding.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    let mut text = format!(
        "{}:{}: {on}{}{off}: {object}{} {faint}[{}]{plain}\n",
        finding.file, finding.line, finding.severity, finding.message, finding.code
    );
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("    {faint}fix:{plain} {fix}\n"));
    }
    text
}

fn summary(findings: &[Finding], objects: usize, files: usize) -> String {
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let looked = format!("{} in {}", many(objects, "object"), many(files, "file"));
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let counts: Vec<String> = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Hint, "hint")]
        .into_iter()
        .filter(|(severity, _)| count(*severity) > 0)
        .map(|(severity, name)| many(count(severity), name))
        .collect();
    if counts.is_empty() { format!("no faults found: {looked}") } else { format!("{}; {looked}", counts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_as_sentences() {
        let finding = Finding {
            severity: Severity::Error,
            code: "probe-port",
            message: "it asks port web".to_owned(),
            object: Some("Pod default/a".to_owned()),
            field: None,
            file: "a.yaml".to_owned(),
            line: 7,
            fix: Some("name it".to_owned()),
        };
        let text = paragraph(&finding, false);
        assert_eq!(text, "a.yaml:7: error: Pod default/a: it asks port web [probe-port]\n    fix: name it\n");
        assert!(paragraph(&finding, true).contains("\x1b[1;31merror\x1b[0m"));
        assert_eq!(summary(&[finding], 1, 2), "1 error; 1 object in 2 files");
        assert_eq!(summary(&[], 2, 1), "no faults found: 2 objects in 1 file");
    }
}
