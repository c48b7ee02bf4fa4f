//! How far backups are brought in sync: bars on a terminal, a line for every tenth elsewhere.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mycelium_endophyte::host::control::Progress;

/// Steps of a bar.
const STEPS: f64 = 1000.0;
const STYLE: &str = "{prefix} [{bar:30}] {msg}";

/// One bar for each backup.
pub(super) struct Bars {
    /// None where there is no terminal.
    drawn: Option<MultiProgress>,
    bars: BTreeMap<String, ProgressBar>,
    said: BTreeMap<String, String>,
}

impl Bars {
    /// On stderr.
    pub fn new() -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self { drawn: terminal.then(MultiProgress::new), bars: BTreeMap::new(), said: BTreeMap::new() }
    }

    /// Shows what is new.
    pub fn show(&mut self, progress: &Progress) {
        let Progress { who, part, text } = progress;
        let Some(all) = &self.drawn else { return self.say(progress) };
        let bar = self.bars.entry(who.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(STEPS as u64)).with_style(style).with_prefix(who.clone())
        });
        bar.set_message(format!("{} %, {text}", percent(*part)));
        bar.set_position((part * STEPS) as u64);
        if *part >= 1.0 {
            bar.finish();
            self.bars.remove(who);
        }
    }

    /// A line, if it is news: another tenth, or other words.
    fn say(&mut self, progress: &Progress) {
        let words: String = progress.text.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        let news = format!("{} {words}", (progress.part * 10.0) as u32);
        if self.said.get(&progress.who) != Some(&news) {
            eprintln!("{}: {} %, {}", progress.who, percent(progress.part), progress.text);
            self.said.insert(progress.who.clone(), news);
        }
    }
}

/// Rounded down: all of it is only what is all of it.
fn percent(part: f64) -> u32 {
    (part * 100.0 + 1e-9) as u32
}
