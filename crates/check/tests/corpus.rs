//! The corpus: correct manifests have no finding at all; of the others, each finding stands as `#! severity code` on the
//! line it is reported for, and there is no other. `sentences.txt` holds what users read; `UPDATE=1` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use mycelium_check::{Context, Entry, Finding, Set, Source, check, kustomize, parse, set};

type Expected = BTreeSet<(String, usize, String)>;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn short(path: &Path) -> String {
    path.strip_prefix(corpus()).unwrap_or(path).display().to_string()
}

/// `# nodes: 3`, `# present: secret/a`
fn context(text: &str) -> Context {
    let mut context = Context::default();
    for line in text.lines() {
        if let Some(count) = line.strip_prefix("# nodes: ") {
            context.nodes = set::nodes(count.trim().parse().unwrap());
        } else if let Some((kind, name)) = line.strip_prefix("# present: ").and_then(|rest| rest.split_once('/')) {
            context.present.insert((kind.to_owned(), name.trim().to_owned()));
        }
    }
    context
}

fn findings(files: &[(String, String)]) -> Vec<Finding> {
    let (mut objects, mut all) = (Vec::new(), Vec::new());
    for (file, text) in files {
        let (documents, findings) = parse(file, text);
        all.extend(findings);
        let (found, findings) = set::objects(documents);
        objects.extend(found);
        all.extend(findings);
    }
    let context = context(&files.iter().map(|(_, text)| text.as_str()).collect::<String>());
    all.extend(check(&Set::new(objects, Vec::new(), context)));
    mycelium_check::sort(&mut all);
    all
}

/// `#! error some-code, warning another`
fn expected(file: &str, text: &str) -> Expected {
    let marked = text.lines().enumerate().filter_map(|(number, line)| Some((number + 1, line.split_once("#! ")?.1)));
    marked
        .flat_map(|(line, codes)| codes.split(',').map(move |code| (line, code.trim().to_owned())))
        .map(|(line, code)| (file.to_owned(), line, code))
        .collect()
}

fn found(findings: &[Finding]) -> Expected {
    findings.iter().map(|f| (f.file.clone(), f.line, format!("{} {}", f.severity, f.code))).collect()
}

fn compare(name: &str, expected: &Expected, findings: &[Finding], faults: &mut String) {
    let found = found(findings);
    for (file, line, code) in expected.difference(&found) {
        writeln!(faults, "{name}: not found: {file}:{line} {code}").unwrap();
    }
    for (file, line, code) in found.difference(expected) {
        writeln!(faults, "{name}: not expected: {file}:{line} {code}").unwrap();
        for finding in findings.iter().filter(|f| f.line == *line && code.ends_with(f.code)) {
            writeln!(faults, "    {}", sentence(finding)).unwrap();
        }
    }
}

fn sentence(finding: &Finding) -> String {
    let object = finding.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    let fix = finding.fix.as_ref().map(|fix| format!(" => {fix}")).unwrap_or_default();
    format!("{}:{} {} {}: {object}{}{fix}", finding.file, finding.line, finding.severity, finding.code, finding.message)
}

#[test]
fn correct_manifests_have_no_finding() {
    let mut faults = String::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut groups: Vec<Vec<PathBuf>> = listing(&corpus().join("good")).into_iter().map(|path| vec![path]).collect();
    groups.extend(listing(&examples).into_iter().filter(|path| path.is_dir()).map(|folder| {
        let is_manifest = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
        listing(&folder).into_iter().filter(is_manifest).collect()
    }));
    for group in groups {
        let files: Vec<(String, String)> = group.iter().map(|path| (short(path), read(path))).collect();
        for finding in findings(&files) {
            writeln!(faults, "{}", sentence(&finding)).unwrap();
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn every_fault_is_found_where_it_stands() {
    let (mut faults, mut sentences) = (String::new(), String::new());
    for path in listing(&corpus().join("bad")) {
        let (name, text) = (short(&path), read(&path));
        let findings = findings(&[(name.clone(), text.clone())]);
        compare(&name, &expected(&name, &text), &findings, &mut faults);
        findings.iter().for_each(|finding| writeln!(sentences, "{}", sentence(finding)).unwrap());
    }
    for path in listing(&corpus().join("kustomize")).into_iter().filter(|path| path.is_dir()) {
        let start = read(&path.join("check"));
        let built = kustomize::build(&Files, &path.join(start.trim()));
        let mut findings = built.findings;
        findings.extend(check(&Set::new(built.objects, Vec::new(), Context::default())));
        mycelium_check::sort(&mut findings);
        let mut all = Expected::new();
        every_file(&path, &mut |file| all.extend(expected(&short(file), &read(file))));
        compare(&short(&path), &all, &findings, &mut faults);
        findings.iter().for_each(|finding| writeln!(sentences, "{}", sentence(finding)).unwrap());
    }
    assert!(faults.is_empty(), "\n{faults}");
    let kept = corpus().join("sentences.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&kept, &sentences).unwrap();
    }
    assert!(read(&kept) == sentences, "what users read has changed: look at it with UPDATE=1 and git diff");
}

fn every_file(folder: &Path, act: &mut impl FnMut(&Path)) {
    for path in listing(folder) {
        if path.is_dir() { every_file(&path, act) } else { act(&path) }
    }
}

/// The corpus as a source of files.
struct Files;

impl Source for Files {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        path.exists().then(|| if path.is_dir() { Entry::Folder } else { Entry::File })
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        let names = listing(folder);
        names.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
    }

    fn show(&self, path: &Path) -> String {
        short(path)
    }
}
