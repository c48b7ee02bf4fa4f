//! Objects in YAML and JSON: files, folders, standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::text;

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// An object, and where it was written.
#[derive(Clone, Debug)]
pub struct Document {
    /// The object.
    pub object: Value,
    /// File and position, for messages.
    pub origin: String,
}

impl Document {
    /// `apiVersion`.
    pub fn api_version(&self) -> &str {
        text(&self.object, "/apiVersion")
    }

    /// `kind`.
    pub fn kind(&self) -> &str {
        text(&self.object, "/kind")
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        text(&self.object, "/metadata/name")
    }
}

/// Reads all objects of the files, folders and `-`; lists are taken apart.
pub fn read(paths: &[PathBuf], recursive: bool) -> Result<Vec<Document>> {
    objects(&texts(paths, recursive)?)
}

/// The texts of the files, folders and `-`, each with the name it is shown by.
pub fn texts(paths: &[PathBuf], recursive: bool) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut input = String::new();
            std::io::stdin().read_to_string(&mut input).context("standard input cannot be read")?;
            texts.push(("standard input".to_owned(), input));
            continue;
        }
        for file in files(path, recursive)? {
            let input = std::fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
            texts.push((file.display().to_string(), input));
        }
    }
    Ok(texts)
}

/// The objects of texts.
pub fn objects(texts: &[(String, String)]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (origin, text) in texts {
        documents.extend(parse(text, origin)?);
    }
    if documents.is_empty() {
        bail!("nothing to do: there is no object in what was given with -f");
    }
    Ok(documents)
}

/// The manifest files of a folder, by name; or the file itself.
fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    let mut found = Vec::new();
    for entry in paths {
        if entry.is_dir() {
            if recursive {
                found.extend(files(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Reads the objects of one text.
pub fn parse(input: &str, origin: &str) -> Result<Vec<Document>> {
    let values: Vec<Value> = serde_saphyr::from_multiple(input)
        .map_err(|error| anyhow::anyhow!("{origin} is not valid YAML or JSON: {error}"))?;
    let many = values.len() > 1;
    let mut documents = Vec::new();
    for (number, value) in values.into_iter().enumerate() {
        let origin = if many { format!("{origin} (document {})", number + 1) } else { origin.to_owned() };
        collect(value, origin, &mut documents)?;
    }
    Ok(documents)
}

fn collect(mut value: Value, origin: String, documents: &mut Vec<Document>) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    if text(&value, "/kind").ends_with("List")
        && let Some(Value::Array(items)) = value.get_mut("items").map(Value::take)
    {
        for (number, item) in items.into_iter().enumerate() {
            collect(item, format!("{origin}, item {}", number + 1), documents)?;
        }
        return Ok(());
    }
    let document = Document { object: value, origin };
    for (field, found) in
        [("apiVersion", document.api_version()), ("kind", document.kind()), ("metadata.name", document.name())]
    {
        let generated = field == "metadata.name" && !text(&document.object, "/metadata/generateName").is_empty();
        if found.is_empty() && !generated {
            bail!("{}: {field} is missing; every object needs apiVersion, kind and metadata.name", document.origin);
        }
    }
    documents.push(document);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let many = format!("---\n# nothing\n---\n{POD}---\n{POD}");
        assert_eq!(parse(&many, "f").unwrap().len(), 2);
        let list =
            r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}]}"#;
        assert_eq!(parse(list, "f").unwrap()[0].name(), "x");
        assert!(parse("", "f").unwrap().is_empty());
    }

    #[test]
    fn what_is_missing_is_said_with_its_place() {
        let error = parse(&format!("{POD}---\nkind: Pod\n"), "f.yaml").unwrap_err().to_string();
        assert!(error.starts_with("f.yaml (document 2): apiVersion is missing"), "{error}");
        assert!(parse("a: [", "f.yaml").unwrap_err().to_string().starts_with("f.yaml is not valid"));
    }

    #[test]
    fn folders_give_their_manifests_in_order() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        for (file, name) in [("b.yaml", "b"), ("a.json", "a"), ("notes.txt", "no"), ("sub/c.yml", "c")] {
            std::fs::write(folder.path().join(file), POD.replace("name: a", &format!("name: {name}"))).unwrap();
        }
        let names = |recursive| -> Vec<String> {
            let documents = read(&[folder.path().to_path_buf()], recursive).unwrap();
            documents.iter().map(|document| document.name().to_owned()).collect()
        };
        assert_eq!(names(false), ["a", "b"]);
        assert_eq!(names(true), ["a", "b", "c"]);
    }
}
