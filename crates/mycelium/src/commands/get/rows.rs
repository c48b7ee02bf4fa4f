//! The server's tables, made one of ours.

use serde_json::Value;

use super::Args;
use crate::client::table::Table;
use crate::client::text;

/// Rows gathered from one or more tables of one resource.
pub(super) struct Rows {
    wide: bool,
    labels: bool,
    /// A column with the namespace in front.
    namespaces: bool,
    /// `deployment.apps/` in front of names.
    prefix: Option<String>,
    /// Name and priority of the server's columns.
    columns: Vec<(String, i64)>,
    rows: Vec<Vec<String>>,
    /// How wide what is printed already was: what follows should line up with it.
    widths: Vec<usize>,
}

impl Rows {
    pub(super) fn new(args: &Args, prefix: Option<String>, namespaced: bool) -> Self {
        Self {
            wide: args.output.as_deref() == Some("wide"),
            labels: args.show_labels,
            namespaces: args.all_namespaces && namespaced,
            prefix,
            columns: Vec::new(),
            rows: Vec::new(),
            widths: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether some of it was rendered already, headings and all.
    pub(super) fn has_printed(&self) -> bool {
        !self.widths.is_empty()
    }

    /// Adds the rows of a table; of a server that makes none, the objects with name and creation.
    pub(super) fn add(&mut self, document: &Value) {
        if text(document, "/kind") != "Table" {
            return self.add_plain(document);
        }
        let definitions = document["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !definitions.is_empty() {
            let column = |c: &Value| (text(c, "/name").to_uppercase(), c["priority"].as_i64().unwrap_or(0));
            self.columns = definitions.iter().map(column).collect();
        }
        for row in document["rows"].as_array().into_iter().flatten() {
            let cells: Vec<String> = row["cells"].as_array().into_iter().flatten().map(cell).collect();
            self.push(cells, &row["object"]);
        }
    }

    fn add_plain(&mut self, document: &Value) {
        self.columns = vec![("NAME".to_owned(), 0), ("CREATED".to_owned(), 0)];
        let one = std::slice::from_ref(document);
        for object in document["items"].as_array().map_or(one, Vec::as_slice) {
            let field = |pointer| text(object, pointer).to_owned();
            self.push(vec![field("/metadata/name"), field("/metadata/creationTimestamp")], object);
        }
    }

    fn push(&mut self, mut cells: Vec<String>, object: &Value) {
        if let (Some(prefix), Some(name)) = (&self.prefix, cells.first_mut()) {
            *name = format!("{prefix}/{name}");
        }
        let (wide, columns) = (self.wide, &self.columns);
        let shown = |at: usize| wide || columns.get(at).is_none_or(|(_, priority)| *priority == 0);
        let mut row = Vec::with_capacity(cells.len() + 2);
        if self.namespaces {
            row.push(text(object, "/metadata/namespace").to_owned());
        }
        row.extend(cells.into_iter().enumerate().filter(|(at, _)| shown(*at)).map(|(_, cell)| cell));
        if self.labels {
            row.push(labels(object));
        }
        self.rows.push(row);
    }

    /// The rows so far as text; they are gone from here then.
    pub(super) fn render(&mut self, with_headings: bool) -> String {
        let mut headings = Vec::new();
        if self.namespaces {
            headings.push("NAMESPACE".to_owned());
        }
        let shown = self.columns.iter().filter(|(_, priority)| self.wide || *priority == 0);
        headings.extend(shown.map(|(name, _)| name.clone()));
        if self.labels {
            headings.push("LABELS".to_owned());
        }
        let mut table = Table::new(headings);
        for row in self.rows.drain(..) {
            table.row(row);
        }
        let text = table.render(with_headings, &self.widths);
        let widths = table.widths();
        self.widths.resize(widths.len().max(self.widths.len()), 0);
        for (known, width) in self.widths.iter_mut().zip(widths) {
            *known = (*known).max(width);
        }
        text
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

fn labels(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let pairs: Vec<_> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(wide: bool, namespaces: bool) -> Rows {
        let (columns, rows, widths) = (Vec::new(), Vec::new(), Vec::new());
        Rows { wide, labels: true, namespaces, prefix: None, columns, rows, widths }
    }

    #[test]
    fn columns_follow_priority_and_flags() {
        let table = json!({"kind": "Table",
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Node", "priority": 1}, {"name": "Ready"}],
            "rows": [{"cells": ["a", "n1", 3], "object": {"metadata": {"namespace": "x", "labels": {"k": "v"}}}}]});
        let mut narrow = rows(false, false);
        narrow.add(&table);
        assert_eq!(narrow.render(true), "NAME   READY   LABELS\na      3       k=v\n");
        let mut wide = rows(true, true);
        wide.add(&table);
        assert_eq!(
            wide.render(true),
            "NAMESPACE   NAME   NODE   READY   LABELS\nx           a      n1     3       k=v\n"
        );
        // What comes later lines up with what was printed.
        wide.add(&table);
        assert_eq!(wide.render(false), "x           a      n1     3       k=v\n");
    }
}
