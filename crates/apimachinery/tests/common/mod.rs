//! Test cases in files: one YAML file per case.

use std::path::Path;

use mycelium_apimachinery::decode::{self, Limits};
use mycelium_apimachinery::schema::{Type, types};
use serde_json::Value;

/// Runs `check` on every case of a folder below `tests/data`, and names the file of one that fails.
pub fn cases(folder: &str, check: impl Fn(&Value)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a text file");
        for document in decode::yaml_documents(&text) {
            let place = format!("{}:{}", file.display(), document.line);
            let (case, warnings) = decode::yaml(document.text.as_bytes(), Limits::default()).expect(&place);
            assert!(warnings.is_empty(), "{place}: {warnings:?}");
            let run = std::panic::AssertUnwindSafe(|| check(&case));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("in the case {place}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// The type that a case names as `group/version/Kind`.
pub fn type_of(case: &Value) -> &'static Type {
    let name = case["type"].as_str().expect("a type");
    let parts: Vec<&str> = name.split('/').collect();
    let [group, version, kind] = parts.as_slice() else { panic!("group/version/Kind, not {name}") };
    types().for_gvk(group, version, kind).expect("a known type")
}
