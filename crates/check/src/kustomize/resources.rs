//! Files and folders that a kustomization includes.

use std::path::Path;

use super::{Builder, Entry, Kustomization, NAMES, is_remote, normal};
use crate::document;
use crate::finding::Severity;
use crate::set::{self, Object};

impl Builder<'_> {
    pub(super) fn resources(&mut self, of: &Kustomization, objects: &mut Vec<Object>) {
        for (name, field) in of.texts("resources").chain(of.texts("bases")) {
            if is_remote(name) {
                continue;
            }
            let path = normal(&of.folder.join(name));
            match self.source.entry(&path) {
                Some(Entry::Folder) => {
                    let made = self.included(of, name, &path, &field, Vec::new());
                    self.add(made, objects);
                }
                Some(Entry::File) if NAMES.iter().any(|known| path.ends_with(known)) => {
                    let fix = "name its folder instead";
                    let message = format!("{name} is a kustomization, not an object");
                    self.fault("kustomize-missing-file", of, &field, message, fix);
                }
                _ => {
                    if let Some(path) = self.file(of, name, &field) {
                        self.objects_of(&path, objects);
                    }
                }
            }
        }
        // What these hold is not read; that they are there can be said.
        for list in ["crds", "configurations", "transformers", "generators", "validators"] {
            for (name, field) in of.texts(list).filter(|(name, _)| !is_remote(name) && !name.contains('\n')) {
                let path = normal(&of.folder.join(name));
                if self.source.entry(&path).is_none() {
                    self.missing(of, name, &path, &field);
                }
            }
        }
    }

    /// Components change the objects that are there so far.
    pub(super) fn components(&mut self, of: &Kustomization, objects: &mut Vec<Object>) {
        for (name, field) in of.texts("components").filter(|(name, _)| !is_remote(name)) {
            let path = normal(&of.folder.join(name));
            match self.source.entry(&path) {
                Some(Entry::Folder) => {
                    let given = std::mem::take(objects);
                    *objects = self.included(of, name, &path, &field, given);
                }
                Some(Entry::File) => {
                    let message = format!("{name} is a file; a component is a folder");
                    self.fault("kustomize-missing-file", of, &field, message, "name the folder");
                }
                None => self.missing(of, name, &path, &field),
            }
        }
    }

    /// The objects of a folder that another includes.
    fn included(
        &mut self,
        of: &Kustomization,
        name: &str,
        path: &Path,
        field: &str,
        given: Vec<Object>,
    ) -> Vec<Object> {
        if let Some(inner) = self.chain.iter().find(|folder| folder.starts_with(path)) {
            let shown = self.source.show(inner);
            let message = if inner == path {
                format!("{name} leads back to where it is included from, which kustomize refuses as a cycle")
            } else {
                format!("{name} contains {shown}, which includes it: kustomize refuses this as a cycle")
            };
            let fix = if inner == path {
                "take the entry out".to_owned()
            } else {
                format!(
                    "move what is to be shared from {} to a folder of its own, such as base/, and include that",
                    self.source.show(path)
                )
            };
            self.fault("kustomize-cycle", of, field, message, fix);
            if self.chain.iter().any(|folder| folder == path) {
                return given;
            }
        }
        self.folder(path, given)
    }

    fn objects_of(&mut self, path: &Path, objects: &mut Vec<Object>) {
        let file = self.source.show(path);
        let Some(text) = self.text(path, &file) else { return };
        let (documents, findings) = document::parse(&file, &text);
        self.report.extend(findings);
        let (made, findings) = set::objects(documents);
        self.report.extend(findings);
        self.add(made, objects);
    }

    /// Adds objects; one that is there already stops kustomize.
    pub(super) fn add(&mut self, made: Vec<Object>, objects: &mut Vec<Object>) {
        for object in made {
            let same = |other: &&Object| {
                other.is(&object.group, &object.kind)
                    && other.name == object.name
                    && other.namespace == object.namespace
            };
            let Some(first) = objects.iter().find(same) else {
                objects.push(object);
                continue;
            };
            let (file, line) = first.place("metadata.name").unwrap_or_default();
            let message =
                format!("the same object is already defined at {file}:{line}, and kustomize refuses a second one");
            let fix = "remove one of them; to change the first, use a patch";
            self.report.object(Severity::Error, "kustomize-duplicate-id", &object, "metadata.name", message, fix);
        }
    }
}
