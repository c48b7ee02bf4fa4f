//! Kustomizations: what is broken in them, where, and the fix; and the objects that come out, as far as they can be made.
//!
//! This is no second kustomize. It reads resources, generators, patches, and the changes that decide whether objects
//! fit together (namespace, labels, images, replicas); prefixes and hashes change names and references alike, and are
//! left out. Faults at which kustomize would stop are reported, and reading goes on, so that one run shows them all.
//!
//! | module | holds |
//! |---|---|
//! | `fields` | the fields of a kustomization, and those that are no longer meant to be used |
//! | `resources` | files, folders, cycles, objects that are there twice |
//! | `generators` | ConfigMaps and Secrets that are made |
//! | `patches` | patches and the objects they are for |
//! | `change` | namespace, labels, images, replicas |

mod change;
mod fields;
mod generators;
mod patches;
mod resources;

use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::document;
use crate::finding::{Finding, Report, Severity};
use crate::near::nearest;
use crate::positions::{Origin, Positions};
use crate::set::Object;

/// The names a kustomization may have.
pub const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File,
    /// A folder.
    Folder,
}

/// Where files come from. Paths are absolute, without `.` and `..`.
pub trait Source {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// What is at a path.
    fn entry(&self, path: &Path) -> Option<Entry>;
    /// The names of what is in a folder.
    fn names(&self, folder: &Path) -> Vec<String>;
    /// How a path is shown.
    fn show(&self, path: &Path) -> String;
}

/// What comes out of a kustomization.
#[derive(Debug, Default)]
pub struct Built {
    /// The objects, as far as they could be made.
    pub objects: Vec<Object>,
    /// Its faults.
    pub findings: Vec<Finding>,
    /// How many files were read.
    pub files: usize,
}

/// Reads the kustomization in a folder.
pub fn build(source: &dyn Source, folder: &Path) -> Built {
    let mut builder =
        Builder { source, report: Report::default(), chain: Vec::new(), files: 0, loads: 0, affixes: Vec::new() };
    let objects = builder.folder(&normal(folder), Vec::new());
    let mut findings = builder.report.into_findings();
    crate::sort(&mut findings);
    Built { objects, findings, files: builder.files }
}

/// A kustomization that was read.
struct Kustomization {
    folder: PathBuf,
    value: Value,
    origin: Origin,
}

struct Builder<'a> {
    source: &'a dyn Source,
    report: Report,
    /// The folders that are being read, each included by the one before.
    chain: Vec<PathBuf>,
    files: usize,
    loads: usize,
    /// Prefixes and suffixes of names that were seen.
    affixes: Vec<(String, String)>,
}

/// Folders that include each other many times over are read so often at most.
const LOADS_MAX: usize = 500;

impl Builder<'_> {
    /// The objects of a folder. A component changes those of who includes it.
    fn folder(&mut self, folder: &Path, given: Vec<Object>) -> Vec<Object> {
        self.loads += 1;
        let Some(kustomization) = self.kustomization(folder).filter(|_| self.loads <= LOADS_MAX) else { return given };
        self.chain.push(folder.to_path_buf());
        fields::check(&kustomization, &mut self.report);
        let mut objects = given;
        self.resources(&kustomization, &mut objects);
        self.generators(&kustomization, &mut objects);
        self.components(&kustomization, &mut objects);
        self.patches(&kustomization, &mut objects);
        self.change(&kustomization, &mut objects);
        self.chain.pop();
        objects
    }

    fn kustomization(&mut self, folder: &Path) -> Option<Kustomization> {
        let present: Vec<&str> =
            NAMES.into_iter().filter(|name| self.source.entry(&folder.join(name)) == Some(Entry::File)).collect();
        let shown = self.source.show(folder);
        let [first, more @ ..] = &present[..] else {
            let fix = "add one that lists the files under resources, or check the folder without -k";
            let message = "there is no kustomization.yaml in this folder";
            self.report.extend([Finding::of_file(Severity::Error, "kustomize-none", &shown, 1, message, fix)]);
            return None;
        };
        let path = folder.join(first);
        let file = self.source.show(&path);
        if !more.is_empty() {
            let message = format!("the folder has {} as well; kustomize takes one only", more.join(" and "));
            self.report.extend([Finding::of_file(Severity::Error, "kustomize-two", &file, 1, message, "remove one")]);
        }
        let text = self.text(&path, &file)?;
        let (documents, findings) = document::parse(&file, &text);
        self.report.extend(findings);
        let document = documents.into_iter().next()?;
        Some(Kustomization { folder: folder.to_path_buf(), value: document.value, origin: document.origin })
    }

    /// The text of a file; nothing, and a finding, if it cannot be read.
    fn text(&mut self, path: &Path, shown: &str) -> Option<String> {
        match self.source.read(path) {
            Ok(text) => {
                self.files += 1;
                Some(text)
            }
            Err(error) => {
                let message = format!("the file cannot be read: {error}");
                self.report.extend([Finding::of_file(Severity::Error, "unreadable", shown, 1, message, "")]);
                None
            }
        }
    }

    fn fault(&mut self, code: &'static str, of: &Kustomization, field: &str, message: String, fix: impl Into<String>) {
        self.report.file(Severity::Error, code, &of.origin, field, message, fix);
    }

    /// The path that an entry names; nothing, and a finding, if no file is there or none that kustomize would take.
    fn file(&mut self, of: &Kustomization, name: &str, field: &str) -> Option<PathBuf> {
        let path = normal(&of.folder.join(name));
        match self.source.entry(&path) {
            Some(Entry::File) if path.starts_with(&of.folder) => Some(path),
            Some(Entry::File) => {
                let message = format!("{name} lies outside the folder of this kustomization, and kustomize refuses it");
                let fix = "move the file into this folder, or include the folder that has it under resources";
                self.fault("kustomize-outside", of, field, message, fix);
                Some(path)
            }
            Some(Entry::Folder) => {
                self.fault(
                    "kustomize-missing-file",
                    of,
                    field,
                    format!("{name} is a folder where a file is needed"),
                    "",
                );
                None
            }
            None => {
                self.missing(of, name, &path, field);
                None
            }
        }
    }

    fn missing(&mut self, of: &Kustomization, name: &str, path: &Path, field: &str) {
        let names = path.parent().map(|folder| self.source.names(folder)).unwrap_or_default();
        let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let fix = match nearest(&wanted, names.iter().map(String::as_str)) {
            _ if wanted.contains("secret") => {
                "create it (it may be kept out of version control), or make the Secret with a secretGenerator"
                    .to_owned()
            }
            Some(near) => format!("did you mean {near}?"),
            None => "add the file, or take it out of the list".to_owned(),
        };
        let message = format!("{name} is not there, so nothing can be built");
        self.fault("kustomize-missing-file", of, field, message, fix);
    }
}

impl Kustomization {
    /// The texts of a list, each with its field.
    fn texts<'a>(&'a self, field: &'a str) -> impl Iterator<Item = (&'a str, String)> {
        let list = self.value[field].as_array().into_iter().flatten().enumerate();
        list.filter_map(move |(index, value)| Some((value.as_str()?, format!("{field}[{index}]"))))
    }

    /// Where a field stands, as the origin of what is made from it.
    fn origin_of(&self, field: &str) -> Origin {
        let (line, _) = self.origin.positions.line(field);
        Origin { file: self.origin.file.clone(), positions: Positions::at_line(line) }
    }
}

/// Whether a resource comes from another machine.
fn is_remote(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    name.contains("://") || name.contains("?ref=") || name.starts_with("git@") || host.contains("github.com")
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    normal.push("..");
                }
            }
            part => normal.push(part),
        }
    }
    normal
}
