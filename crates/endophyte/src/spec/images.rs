//! Images and customizations by name, in folders that the user fills.

use std::path::{Path, PathBuf};

use mycelium_api::endophyte::EndophyteVM;

const IMAGE_ENDINGS: [&str; 3] = ["qcow2", "raw", "img"];

/// Where images and customizations are looked for.
#[derive(Clone, Debug)]
pub struct Images {
    dir: PathBuf,
}

/// What a document names is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No image of this name.
    #[error("spec.vmSpec.osConfig.type is {name:?}, but there is no image of that name: put one at {}/images/{name}.qcow2 (or .raw, .img), or name a file with --disk{}", .dir.display(), listed(.known))]
    Image {
        /// The name.
        name: String,
        /// The data folder.
        dir: PathBuf,
        /// The images that are there.
        known: Vec<String>,
    },
    /// No customization of this name.
    #[error("spec.vmSpec.osConfig.customization is {name:?}, but there is no such document: put cloud-init user-data at {}/customizations/{name}.yaml, or remove the field{}", .dir.display(), listed(.known))]
    Customization {
        /// The name.
        name: String,
        /// The data folder.
        dir: PathBuf,
        /// The customizations that are there.
        known: Vec<String>,
    },
    /// A file that is named directly.
    #[error("{field} is {path}, which is not a file")]
    File {
        /// The field.
        field: &'static str,
        /// What it holds.
        path: String,
    },
}

fn listed(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(" (there are: {})", known.join(", ")) }
}

impl Images {
    /// Below this data folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The image that the document asks for, if it asks for one.
    pub fn image(&self, vm: &EndophyteVM) -> Result<Option<PathBuf>, ImageError> {
        let spec = &vm.spec.vm_spec;
        if let Some(path) = &spec.storage_config.image {
            return file("spec.vmSpec.storageConfig.image", path).map(Some);
        }
        let Some(name) = &spec.os_config.kind else { return Ok(None) };
        let folder = self.dir.join("images");
        let found = IMAGE_ENDINGS.iter().map(|ending| folder.join(format!("{name}.{ending}"))).find(|p| p.is_file());
        found.map(Some).ok_or_else(|| ImageError::Image {
            name: name.clone(),
            dir: self.dir.clone(),
            known: known(&folder, &IMAGE_ENDINGS),
        })
    }

    /// The cloud-init document that the document asks for, if it asks for one.
    pub fn customization(&self, vm: &EndophyteVM) -> Result<Option<PathBuf>, ImageError> {
        let Some(name) = &vm.spec.vm_spec.os_config.customization else { return Ok(None) };
        let folder = self.dir.join("customizations");
        let path = folder.join(format!("{name}.yaml"));
        if path.is_file() {
            return Ok(Some(path));
        }
        Err(ImageError::Customization { name: name.clone(), dir: self.dir.clone(), known: known(&folder, &["yaml"]) })
    }

    /// The kernel and its first file system, if the document names a kernel.
    pub fn kernel(&self, vm: &EndophyteVM) -> Result<Option<(PathBuf, Option<PathBuf>)>, ImageError> {
        let os = &vm.spec.vm_spec.os_config;
        let Some(kernel) = &os.kernel else { return Ok(None) };
        let initrd = os.initrd.as_deref().map(|path| file("spec.vmSpec.osConfig.initrd", path)).transpose()?;
        Ok(Some((file("spec.vmSpec.osConfig.kernel", kernel)?, initrd)))
    }
}

fn file(field: &'static str, path: &str) -> Result<PathBuf, ImageError> {
    let found = PathBuf::from(path);
    if found.is_file() { Ok(found) } else { Err(ImageError::File { field, path: path.to_owned() }) }
}

/// The names of files with one of these endings.
fn known(folder: &Path, endings: &[&str]) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e));
    let mut names: Vec<String> =
        files.filter(fits).filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_file_and_a_missing_one_says_where_to_put_it() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(dir.path());
        let mut vm = EndophyteVM::named("vm");
        assert_eq!(images.image(&vm), Ok(None));
        vm.spec.vm_spec.os_config.kind = Some("ubuntu-20.04".into());
        let place = dir.path().join("images");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("debian.img"), "x").unwrap();
        let error = images.image(&vm).unwrap_err().to_string();
        let expected = format!("put one at {}/ubuntu-20.04.qcow2", place.display());
        assert!(error.contains(&expected) && error.ends_with("(there are: debian)"), "{error}");
        std::fs::write(place.join("ubuntu-20.04.raw"), "x").unwrap();
        assert_eq!(images.image(&vm), Ok(Some(place.join("ubuntu-20.04.raw"))));
        vm.spec.vm_spec.os_config.customization = Some("legacy-app-setup".into());
        let error = images.customization(&vm).unwrap_err().to_string();
        assert!(error.contains("customizations/legacy-app-setup.yaml"), "{error}");
        vm.spec.vm_spec.storage_config.image = Some("/nowhere".into());
        assert!(matches!(images.image(&vm), Err(ImageError::File { .. })));
    }
}
