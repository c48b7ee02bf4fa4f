//! What people forget: module documentation, `unsafe` in one crate, files that hold one thing.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A source file longer than this holds more than one thing.
const LINES_MAX: usize = 900;

/// Fails with every fault found in the workspace's Rust sources.
pub fn check(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "examples"] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut faults = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        faults.extend(file_faults(&name, &text));
    }
    if !faults.is_empty() {
        bail!("tidy:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn file_faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{name}: {lines} lines; split it (at most {LINES_MAX})"));
    }
    let documented = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!")).unwrap_or("");
    if !documented.starts_with("//!") {
        faults.push(format!("{name}: does not open with module documentation (//!)"));
    }
    // Put together here, so that this file does not find itself.
    let block = ["unsafe", " {"].concat();
    if text.contains(&block) && !name.starts_with("crates/linux/") {
        faults.push(format!("{name}: unsafe code outside crates/linux (invariant 5)"));
    }
    for (number, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            faults.push(format!("{name}:{}: trailing white space", number + 1));
        }
    }
    faults
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_fault_is_found() {
        let bad = ["fn main() {\n    ", "unsafe", " { f() } \n}\n"].concat();
        assert_eq!(file_faults("crates/store/src/x.rs", &bad).len(), 3);
        assert_eq!(file_faults("crates/linux/src/x.rs", &bad).len(), 2);
        assert_eq!(file_faults("a.rs", "//! Documented.\n"), Vec::<String>::new());
    }

    #[test]
    fn this_workspace_is_tidy() {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    }
}
