//! Kustomizations.

use std::io;
use std::path::Path;

use crate::finding::Finding;
use crate::set::Object;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File,
    /// A folder.
    Folder,
}

/// Where files come from.
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
    let _ = (source, folder);
    Built::default()
}
