//! Which crate may use which (ARCHITECTURE.md, "Code map"), checked against what the manifests say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The edges that are allowed. `*` stands for every crate of the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mycelium-api", &[]),
    ("mycelium-apimachinery", &["mycelium-api"]),
    ("mycelium-cel", &["mycelium-api"]),
    ("mycelium-kinds", &["mycelium-api"]),
    ("mycelium-check", &["mycelium-api", "mycelium-apimachinery", "mycelium-kinds"]),
    ("mycelium-store", &[]),
    (
        "mycelium-apiserver",
        &[
            "mycelium-api",
            "mycelium-apimachinery",
            "mycelium-cel",
            "mycelium-kinds",
            "mycelium-store",
            "mycelium-unverified",
        ],
    ),
    ("mycelium-controllers", &["mycelium-api"]),
    ("mycelium-linux", &[]),
    ("mycelium-informer", &[]),
    ("mycelium-unverified", &[]),
    ("mycelium-net", &["mycelium-api", "mycelium-linux", "mycelium-informer"]),
    ("mycelium-ingress", &["mycelium-api", "mycelium-informer", "mycelium-unverified"]),
    ("mycelium-image", &["mycelium-api", "mycelium-linux"]),
    ("mycelium-node", &["mycelium-api", "mycelium-linux", "mycelium-net", "mycelium-image", "mycelium-unverified"]),
    ("mycelium-rhizomorph", &[]),
    ("mycelium-endophyte", &["mycelium-api", "mycelium-linux", "mycelium-rhizomorph"]),
    ("mycelium", &["*"]),
    ("mycelium-sim", &["*"]),
    ("mycelium-bench", &[]),
    ("symphainy-platform", &[]),
    ("xtask", &[]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Fails with every edge that is not allowed and every crate that the code map does not name.
pub fn check(root: &Path) -> Result<()> {
    let metadata = metadata(root)?;
    let architecture =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md cannot be read")?;
    let faults = faults(&metadata, &architecture);
    if !faults.is_empty() {
        bail!("layering:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn faults(metadata: &Metadata, architecture: &str) -> Vec<String> {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let Some(uses) = allowed.get(package.name.as_str()) else {
            faults.push(format!("{} is not in the layering table (xtask/src/layering.rs)", package.name));
            continue;
        };
        let short = package.name.strip_prefix("mycelium-").unwrap_or(&package.name);
        if !architecture.contains(&format!("`{short}`")) {
            faults.push(format!("{} is missing from the code map in ARCHITECTURE.md (as `{short}`)", package.name));
        }
        // Tests may reach further: a controller's test starts a real API server.
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev")) {
            if !uses.contains("*") && !uses.contains(dependency.name.as_str()) {
                faults.push(format!("{} must not use {}", package.name, dependency.name));
            }
        }
    }
    faults
}

#[allow(clippy::disallowed_methods, reason = "a developer's tool, not the product")]
fn metadata(root: &Path) -> Result<Metadata> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("the answer of cargo metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        let dependencies = uses
            .iter()
            .map(|name| Dependency { name: (*name).to_owned(), kind: None, path: Some("here".to_owned()) })
            .collect();
        Package { name: name.to_owned(), dependencies }
    }

    #[test]
    fn a_forbidden_edge_and_an_unmapped_crate_are_named() {
        let metadata = Metadata {
            packages: vec![package("mycelium-api", &["mycelium-store"]), package("mycelium-surprise", &[])],
        };
        let faults = faults(&metadata, "| `api` |");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("mycelium-api must not use mycelium-store"));
        assert!(faults[1].contains("mycelium-surprise"));
    }

    #[test]
    fn this_workspace_keeps_its_layers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        check(&root).unwrap();
    }
}
