//! Where each field of a document stands in its file.

use std::collections::BTreeMap;
use std::sync::Arc;

use granit_parser::{Event, Parser};

/// Deeper documents are refused before they come here.
const DEPTH_MAX: usize = 300;

/// A file, and where the fields of one object stand in it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, as it is shown.
    pub file: Arc<str>,
    /// The lines.
    pub positions: Positions,
}

/// The lines of all fields of a document.
#[derive(Clone, Debug)]
pub struct Positions(Arc<Node>);

#[derive(Debug)]
struct Node {
    line: usize,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Leaf,
    /// Key, line of the key, value.
    Map(Vec<(String, usize, Arc<Node>)>),
    List(Vec<Arc<Node>>),
}

/// Text that is not YAML: the line, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxFault {
    /// Counted from 1, in the file.
    pub line: usize,
    /// In the parser's words.
    pub message: String,
}

impl Positions {
    /// Everything on one line.
    pub fn at_line(line: usize) -> Self {
        Self(Arc::new(Node { line, shape: Shape::Leaf }))
    }

    /// Reads one document whose first line is line `first` of its file.
    pub fn read(text: &str, first: usize) -> Result<Self, SyntaxFault> {
        let mut builder = Builder { anchors: BTreeMap::new(), open: Vec::new(), root: None };
        let offset = first.saturating_sub(1);
        for next in Parser::new_from_str(text) {
            match next {
                Ok((event, span)) => {
                    if builder.take(&event, span.start.line().max(1) + offset).is_none() {
                        let line = span.start.line() + offset;
                        return Err(SyntaxFault { line, message: "nested too deep".to_owned() });
                    }
                }
                Err(error) => {
                    return Err(SyntaxFault { line: error.marker().line().max(1) + offset, message: error.info() });
                }
            }
        }
        Ok(builder.root.map_or_else(|| Self::at_line(first), Self))
    }

    /// The line of a path such as `spec.ports[0].name` or `metadata.labels[app]`, or of the deepest part of it that
    /// is there; and whether all of it is.
    pub fn line(&self, path: &str) -> (usize, bool) {
        let (line, node) = self.walk(path);
        (line, node.is_some())
    }

    /// The part below a path, if it is there.
    pub fn below(&self, path: &str) -> Option<Self> {
        self.walk(path).1.cloned().map(Self)
    }

    fn walk(&self, path: &str) -> (usize, Option<&Arc<Node>>) {
        let mut node = &self.0;
        let mut line = node.line;
        let mut rest = path;
        while !rest.is_empty() {
            match node.step(rest) {
                Some((found, child, left)) => (line, node, rest) = (found, child, left),
                None => return (line, None),
            }
        }
        (line, Some(node))
    }
}

impl Node {
    /// The child that the path begins with, the line it begins on, and what is left of the path.
    fn step<'a, 'p>(&'a self, path: &'p str) -> Option<(usize, &'a Arc<Node>, &'p str)> {
        match &self.shape {
            Shape::Leaf => None,
            Shape::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((item.line, item, rest))
            }
            Shape::Map(entries) => {
                if let Some(rest) = path.strip_prefix('[') {
                    // A key may hold anything but is followed by the bracket that closes.
                    let fits = |key: &str| rest.strip_prefix(key).and_then(|rest| rest.strip_prefix(']'));
                    return pick(entries, fits);
                }
                let path = path.strip_prefix('.').unwrap_or(path);
                let fits = |key: &str| {
                    let rest = path.strip_prefix(key)?;
                    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
                };
                pick(entries, fits)
            }
        }
    }
}

/// The longest key that fits; those of merged maps (`<<`) too.
fn pick<'a, 'p>(
    entries: &'a [(String, usize, Arc<Node>)],
    fits: impl Fn(&str) -> Option<&'p str> + Copy,
) -> Option<(usize, &'a Arc<Node>, &'p str)> {
    let own = entries
        .iter()
        .filter(|(key, _, _)| !key.is_empty())
        .filter_map(|(key, line, node)| Some((key.len(), *line, node, fits(key)?)))
        .max_by_key(|(length, ..)| *length);
    if let Some((_, line, node, rest)) = own {
        return Some((line, node, rest));
    }
    entries.iter().filter(|(key, _, _)| key == "<<").find_map(|(_, _, node)| match &node.shape {
        Shape::Map(entries) => entries.iter().find_map(|(key, line, node)| Some((*line, node, fits(key)?))),
        _ => None,
    })
}

enum Open {
    Map { line: usize, anchor: usize, entries: Vec<(String, usize, Arc<Node>)>, key: Option<(String, usize)> },
    List { line: usize, anchor: usize, items: Vec<Arc<Node>> },
}

struct Builder {
    anchors: BTreeMap<usize, Arc<Node>>,
    open: Vec<Open>,
    root: Option<Arc<Node>>,
}

impl Builder {
    /// Takes the next event; nothing if it opens one level too many.
    fn take(&mut self, event: &Event<'_>, line: usize) -> Option<()> {
        match event {
            Event::Scalar(text, _, anchor, _) => {
                self.add(Node { line, shape: Shape::Leaf }.into(), *anchor, Some(text))
            }
            Event::Alias(id) => {
                let node = self.anchors.get(id).cloned();
                self.add(node.unwrap_or_else(|| Node { line, shape: Shape::Leaf }.into()), 0, None);
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open::Map { line, anchor: *anchor, entries: Vec::new(), key: None });
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open::List { line, anchor: *anchor, items: Vec::new() });
            }
            Event::MappingEnd | Event::SequenceEnd => match self.open.pop() {
                Some(Open::Map { line, anchor, entries, .. }) => {
                    self.add(Node { line, shape: Shape::Map(entries) }.into(), anchor, None);
                }
                Some(Open::List { line, anchor, items }) => {
                    self.add(Node { line, shape: Shape::List(items) }.into(), anchor, None);
                }
                None => {}
            },
            _ => {}
        }
        (self.open.len() <= DEPTH_MAX).then_some(())
    }

    fn add(&mut self, node: Arc<Node>, anchor: usize, text: Option<&str>) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = self.root.take().or(Some(node)),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                None => *key = Some((text.unwrap_or_default().to_owned(), node.line)),
                Some((key, line)) => entries.push((key, line, node)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
a: &x
  b: 1
  app.kubernetes.io/name: y
list:
- one
- two:
    deep: 3
flow: {k: [1,
  2]}
again: *x
merged:
  <<: *x
  own: 1
";

    #[test]
    fn every_path_has_its_line() {
        let positions = Positions::read(TEXT, 11).unwrap();
        for (path, line, there) in [
            ("", 11, true),
            ("a", 11, true),
            ("a.b", 12, true),
            ("a[app.kubernetes.io/name]", 13, true),
            ("a.app.kubernetes.io/name", 13, true),
            ("list[0]", 15, true),
            ("list[1].two.deep", 17, true),
            ("list[1].two.missing", 16, false),
            ("flow.k[1]", 19, true),
            ("again.b", 12, true),
            ("merged.b", 12, true),
            ("nothing.at.all", 11, false),
        ] {
            assert_eq!(positions.line(path), (line, there), "{path}");
        }
        assert_eq!(positions.below("list[1]").unwrap().line("two.deep"), (17, true));
    }

    #[test]
    fn faults_have_their_line() {
        assert_eq!(Positions::read("a: 1\n b: [2\n", 5).unwrap_err().line, 6);
    }
}
