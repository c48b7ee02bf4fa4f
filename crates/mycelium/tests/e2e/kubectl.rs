//! kubectl's verbs, as transcripts: what is typed, and what kubectl prints on Kubernetes.
//!
//! In `tests/kubectl/*.txt`, a line that begins with `$ ` is typed into a shell and must succeed, one with `! ` must fail,
//! and one with `~ ` is typed again until the answer is right; `> ` continues a command. The lines below, until the next
//! command, are what it prints on both streams: `<*>` stands for any text within a line, `...` for any lines, `# ` for
//! a remark, and the width of columns does not count.

use std::process::{Command, Output};

use crate::support::{Engine, command, eventually, output};

/// One command of a transcript.
struct Step<'a> {
    line: usize,
    mark: char,
    typed: String,
    expected: Vec<&'a str>,
}

fn steps(text: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match (line.get(..2).unwrap_or_default(), steps.last_mut()) {
            ("# ", _) => {}
            ("$ " | "! " | "~ ", _) => {
                let (mark, typed) = (line.chars().next().expect("a mark"), line[2..].to_owned());
                steps.push(Step { line: number + 1, mark, typed, expected: Vec::new() });
            }
            ("> ", Some(step)) if step.expected.is_empty() => step.typed = format!("{}\n{}", step.typed, &line[2..]),
            (_, Some(step)) => step.expected.push(line),
            (_, None) => panic!("line {}: before the first command", number + 1),
        }
    }
    steps
}

/// Whether the text is what the pattern with `<*>` describes; runs of blanks within it count as one.
fn line_matches(pattern: &str, text: &str) -> bool {
    let squeeze = |text: &str| {
        let indent = text.len() - text.trim_start().len();
        format!("{}{}", &text[..indent], text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let (pattern, text) = (squeeze(pattern), squeeze(text));
    let mut parts: Vec<&str> = pattern.split("<*>").collect();
    let (Some(last), Some(rest)) =
        (parts.pop(), parts.first().map_or(Some(text.as_str()), |first| text.strip_prefix(first)))
    else {
        return false;
    };
    if parts.is_empty() {
        return text == last;
    }
    let rest = parts[1..].iter().try_fold(rest, |rest, part| rest.split_once(part).map(|(_, after)| after));
    rest.is_some_and(|rest| rest.ends_with(last))
}

fn lines_match(expected: &[&str], found: &[&str]) -> bool {
    match (expected, found) {
        ([], []) => true,
        (["...", more @ ..], _) => (0..=found.len()).any(|skipped| lines_match(more, &found[skipped..])),
        ([pattern, more @ ..], [line, rest @ ..]) => line_matches(pattern, line) && lines_match(more, rest),
        _ => false,
    }
}

impl Step<'_> {
    fn shell(&self, engine: &Engine) -> Command {
        let mut shell = command("bash");
        shell.args(["-c", &format!("exec 2>&1\n{}", self.typed)]).current_dir(engine.dir().join("desk"));
        shell.env("KUBECONFIG", engine.kubeconfig()).env("HOME", engine.dir()).env("DATA", engine.dir());
        shell
    }

    fn once(&self, engine: &Engine) -> Result<(), String> {
        let Output { status, stdout, .. } = output(&mut self.shell(engine));
        let printed = String::from_utf8_lossy(&stdout);
        let found: Vec<&str> = printed.lines().collect();
        if status.success() != (self.mark == '!') && lines_match(&self.expected, &found) {
            return Ok(());
        }
        let expected = self.expected.join("\n");
        Err(format!("line {}: {}\n--- expected\n{expected}\n--- printed ({status})\n{printed}", self.line, self.typed))
    }

    fn run(&self, engine: &Engine) -> Result<(), String> {
        if self.mark == '~' {
            eventually(&self.typed, || self.once(engine));
            return Ok(());
        }
        self.once(engine)
    }
}

/// Types a whole transcript; says all that was different at once.
fn play(name: &str) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubectl").join(name);
    let text = std::fs::read_to_string(&file).expect("a transcript");
    let engine = Engine::start();
    engine.import_busybox();
    std::fs::create_dir(engine.dir().join("desk")).expect("a folder to work in");
    let failed: Vec<String> = steps(&text).iter().filter_map(|step| step.run(&engine).err()).collect();
    assert!(failed.is_empty(), "{name}: {} commands differ\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn kubectl_creates() {
    play("create.txt");
}

#[test]
fn kubectl_changes() {
    play("change.txt");
}

#[test]
fn kubectl_reads() {
    play("read.txt");
}

#[test]
fn kubectl_asks_who_may() {
    play("access.txt");
}

#[test]
fn kubectl_rolls_out_and_waits() {
    play("workloads.txt");
}

#[test]
fn transcripts_are_matched() {
    assert!(line_matches("a   <*>s  b<*>", "a 17s b c") && !line_matches("a <*>s b", "a 17s b c"));
    assert!(lines_match(&["a", "...", "c"], &["a", "b", "b", "c"]) && !lines_match(&["a"], &["a", "b"]));
}
