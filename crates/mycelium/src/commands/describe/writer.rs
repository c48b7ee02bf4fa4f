//! Labels and values, indented by depth, lined up within a block.

use std::fmt::Write as _;

use serde_json::Value;

const INDENT: usize = 2;
const LABEL_WIDTH: usize = 20;

/// Collects the text.
#[derive(Default)]
pub(super) struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    /// `Label:   value`. A value of several lines continues below the first.
    pub(super) fn field(&mut self, label: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        let value = if value.is_empty() { "<none>" } else { value };
        let margin = " ".repeat(self.depth * INDENT);
        let width = LABEL_WIDTH.saturating_sub(margin.len()).max(label.len() + 2);
        for (number, line) in value.lines().enumerate() {
            let label = if number == 0 { format!("{label}:") } else { String::new() };
            let _ = writeln!(self.text, "{}", format!("{margin}{label:width$}{line}").trim_end());
        }
    }

    /// A field that is left out when it is empty.
    pub(super) fn some(&mut self, label: &str, value: impl AsRef<str>) {
        if !value.as_ref().is_empty() {
            self.field(label, value);
        }
    }

    /// A plain line.
    pub(super) fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.text, "{}{}", " ".repeat(self.depth * INDENT), text.as_ref());
    }

    /// `Label:` with what `inner` writes below it, or `<none>` if it writes nothing.
    pub(super) fn section(&mut self, label: &str, inner: impl FnOnce(&mut Self)) {
        let start = self.text.len();
        self.line(format!("{label}:"));
        let after = self.text.len();
        self.depth += 1;
        inner(self);
        self.depth -= 1;
        if self.text.len() == after {
            self.text.truncate(start);
            self.field(label, "<none>");
        }
    }

    /// A section that is left out when nothing is in it.
    pub(super) fn section_if(&mut self, present: bool, label: &str, inner: impl FnOnce(&mut Self)) {
        if present {
            self.section(label, inner);
        }
    }

    /// An object of texts, one `name=value` a line, lined up behind the label.
    pub(super) fn map(&mut self, label: &str, map: Option<&Value>, separator: &str) {
        let pairs = map.and_then(Value::as_object).into_iter().flatten();
        let lines: Vec<String> = pairs
            .filter(|(name, _)| !name.ends_with("/last-applied-configuration"))
            .map(|(name, value)| format!("{name}{separator}{}", plain(value)))
            .collect();
        self.field(label, lines.join("\n"));
    }

    /// The table's lines at this depth.
    pub(super) fn table(&mut self, table: &crate::client::table::Table) {
        for line in table.render(true, &[]).lines() {
            self.line(line);
        }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// A value without quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_line_up() {
        let mut out = Writer::default();
        out.field("Name", "a");
        out.map("Labels", Some(&serde_json::json!({"x": "1", "y": 2})), "=");
        out.section("Empty", |_| {});
        out.section("Inner", |out| out.field("Deep", "b"));
        assert_eq!(
            out.finish(),
            "Name:               a\nLabels:             x=1\n                    y=2\nEmpty:              <none>\n\
             Inner:\n  Deep:             b\n"
        );
    }
}
