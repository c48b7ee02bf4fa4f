//! Columns that line up.

/// Rows of text under headings. Prints nothing on a line beyond its last cell.
#[derive(Clone, Debug, Default)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

const GAP: usize = 3;

impl Table {
    /// A table with headings and no rows.
    pub fn new(headings: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { headings: headings.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        // A line break would tear the table apart.
        self.rows.push(cells.into_iter().map(|cell| cell.into().replace(['\n', '\r'], " ")).collect());
    }

    /// How wide each column is.
    pub fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.headings.iter().map(|heading| heading.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    /// The table as text; columns are at least as wide as `least`.
    pub fn render(&self, with_headings: bool, least: &[usize]) -> String {
        let own = self.widths();
        let widths: Vec<usize> =
            own.iter().enumerate().map(|(at, width)| (*width).max(least.get(at).copied().unwrap_or(0))).collect();
        let headings = with_headings.then_some(&self.headings);
        let mut text = String::new();
        for row in headings.into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "AGE"]);
        table.row(["nginx-with-a-name", "5s"]);
        table.row(["é", ""]);
        assert_eq!(table.render(true, &[]), "NAME                AGE\nnginx-with-a-name   5s\né\n");
        assert_eq!(table.render(false, &[20]), "nginx-with-a-name      5s\né\n");
    }
}
