//! Whatever the bytes, nothing panics: random text, and manifests of the corpus with lines removed, repeated, swapped and
//! altered. A failure prints the input.

use std::io;
use std::path::{Path, PathBuf};

use mycelium_check::{Context, Entry, Set, Source, check, kustomize, parse, set};
use proptest::prelude::*;

fn corpus() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut texts = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}

/// Everything that happens to a text, as manifests and as a kustomization of itself.
fn look(text: &str) {
    let (documents, mut findings) = parse("f.yaml", text);
    let (objects, more) = set::objects(documents);
    findings.extend(more);
    let outside = objects.iter().map(|object| object.value.clone()).collect();
    findings.extend(check(&Set::new(objects.clone(), outside, Context { cluster: true, ..Context::default() })));
    findings.extend(check(&Set::new(objects, Vec::new(), Context { nodes: set::nodes(3), ..Context::default() })));
    let built = kustomize::build(&One(text), Path::new("/a/b"));
    findings.extend(built.findings);
    findings.extend(check(&Set::new(built.objects, Vec::new(), Context::default())));
    let lines = text.lines().count().max(1);
    for finding in findings {
        assert!((1..=lines + 1).contains(&finding.line), "{finding:?} of {lines} lines");
        assert!(!finding.message.is_empty() && finding.message.lines().count() < 4, "{finding:?}");
    }
}

/// Every file has the same text.
struct One<'a>(&'a str);

impl Source for One<'_> {
    fn read(&self, _: &Path) -> io::Result<String> {
        Ok(self.0.to_owned())
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        let name = path.file_name()?.to_str()?;
        let file = name.contains('.') && !matches!(name, "kustomization.yml");
        Some(if file { Entry::File } else { Entry::Folder }).filter(|_| name != "Kustomization" && name.len() < 40)
    }

    fn names(&self, _: &Path) -> Vec<String> {
        vec!["app.yaml".to_owned()]
    }

    fn show(&self, path: &Path) -> String {
        path.display().to_string()
    }
}

/// A change of one line or place.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize),
    Repeat(usize),
    Swap(usize, usize),
    Indent(usize),
    Value(usize, &'static str),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    const VALUES: &[&str] = &[
        "",
        "null",
        "[]",
        "{}",
        "-1",
        "99999999999999999999",
        "\"\"",
        "true",
        "[[]]",
        "{a: {b: c}}",
        "*x",
        "&x 1",
        "é",
        "|",
        "0%",
    ];
    let at = 0usize..400;
    prop_oneof![
        at.clone().prop_map(Change::Remove),
        at.clone().prop_map(Change::Repeat),
        (at.clone(), at.clone()).prop_map(|(a, b)| Change::Swap(a, b)),
        at.clone().prop_map(Change::Indent),
        (at.clone(), prop::sample::select(VALUES)).prop_map(|(at, value)| Change::Value(at, value)),
        at.prop_map(Change::Cut),
    ]
}

fn apply(text: &str, changes: &[Change]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for change in changes {
        let count = lines.len().max(1);
        match *change {
            Change::Remove(at) if at < lines.len() => drop(lines.remove(at)),
            Change::Repeat(at) if at < lines.len() => lines.insert(at, lines[at].clone()),
            Change::Swap(a, b) if !lines.is_empty() => lines.swap(a % count, b % count),
            Change::Indent(at) if at < lines.len() => lines[at].insert_str(0, "  "),
            Change::Value(at, value) if !lines.is_empty() => {
                let line = &mut lines[at % count];
                let key = line.split_once(':').map_or(line.as_str(), |(key, _)| key);
                *line = format!("{key}: {value}");
            }
            Change::Cut(at) if !lines.is_empty() => {
                let line = &mut lines[at % count];
                *line = line.chars().take(at % 30).collect();
            }
            _ => {}
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn mutated_manifests_do_not_panic(
        which in 0usize..1000,
        changes in prop::collection::vec(change(), 1..8),
    ) {
        let corpus = corpus();
        look(&apply(&corpus[which % corpus.len()], &changes));
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[-a: \\[\\]{}\n#&*!|>'\"%@~0-9]{0,80}") {
        look(&String::from_utf8_lossy(&bytes));
        look(&text);
    }
}
