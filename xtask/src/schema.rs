//! `cargo xtask schema SWAGGER`: facts about Kubernetes' built-in types and resources, without its prose.
//!
//! Reads the `swagger.json` of a Kubernetes source tree, with the OpenAPI v3 documents (defaults) and the discovery
//! documents (verbs, short names, order of groups) that lie beside it, and writes
//!
//! - `crates/apimachinery/data/types.txt`: one line per type and field (its syntax is described in
//!   `crates/apimachinery/src/schema/text.rs`);
//! - `crates/apimachinery/src/schema/table.rs`: the table of resources.
//!
//! Only what an API server serves by default is kept: stable versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

/// Types that are not named after a group and a version, but belong to every API.
const COMMON: &str = "io.k8s.apimachinery.";

/// Writes both files below `root` from the sources around `swagger`.
pub fn generate(root: &Path, swagger: &Path) -> Result<()> {
    let api = swagger.parent().and_then(Path::parent).context("the swagger file has no grandparent folder")?;
    let home = root.join("crates/apimachinery");
    let types = types(&read(swagger)?, &defaults(&swagger.with_file_name("v3"))?)?;
    fs::create_dir_all(home.join("data"))?;
    fs::write(home.join("data/types.txt"), types)?;
    fs::write(home.join("src/schema/table.rs"), resources(&api.join("discovery"))?)?;
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parsing {}", path.display()))
}

/// `v1`, `v2`: the versions that are on by default.
fn is_stable(version: &str) -> bool {
    version.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The default of each field that has one, by `type.field`; only the OpenAPI v3 documents hold them.
fn defaults(folder: &Path) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let document = read(&entry?.path())?;
        let Some(schemas) = document.pointer("/components/schemas").and_then(Value::as_object) else { continue };
        for (name, schema) in schemas {
            for (field, property) in object(schema, "properties") {
                if let Some(default) = property.get("default") {
                    all.insert(format!("{name}.{field}"), default.clone());
                }
            }
        }
    }
    Ok(all)
}

fn object<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether a type belongs to a stable API, or to all of them.
fn is_root(name: &str) -> bool {
    let parts: Vec<&str> = name.rsplitn(3, '.').collect();
    let [_, version, rest] = parts.as_slice() else { return false };
    is_stable(version) || rest.starts_with(COMMON)
}

fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/definitions/"))
}

fn collect(definitions: &Map<String, Value>, schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(name) = reference(schema)
        && found.insert(name.to_owned())
        && let Some(target) = definitions.get(name)
    {
        collect(definitions, target, found);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key) {
            collect(definitions, inner, found);
        }
    }
    for (_, property) in object(schema, "properties") {
        collect(definitions, property, found);
    }
}

fn types(swagger: &Value, defaults: &BTreeMap<String, Value>) -> Result<String> {
    let definitions = swagger["definitions"].as_object().context("no definitions")?;
    let mut names = BTreeSet::new();
    for name in definitions.keys().filter(|n| is_root(n)) {
        names.insert(name.clone());
        collect(definitions, &definitions[name], &mut names);
    }
    let index: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let mut out = String::new();
    for name in &names {
        let schema = &definitions[name];
        let required = texts(schema, "required");
        write!(out, "{name} {}", shape(name, schema, &index)?)?;
        if let Some(kinds) = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array) {
            match kinds.as_slice() {
                [one] => write!(out, " {}/{}/{}", text(one, "group"), text(one, "version"), text(one, "kind"))?,
                many => write!(out, " */{}", text(&many[0], "kind"))?,
            }
        }
        out.push('\n');
        for (field, property) in object(schema, "properties") {
            write!(out, " {field} {}", shape(name, property, &index)?)?;
            if required.contains(&field.as_str()) {
                out.push_str(" r");
            }
            let strategy = text(property, "x-kubernetes-patch-strategy");
            if !strategy.is_empty() {
                write!(out, " p{strategy}")?;
            }
            let key = text(property, "x-kubernetes-patch-merge-key");
            if !key.is_empty() {
                write!(out, " k{key}")?;
            }
            match defaults.get(&format!("{name}.{field}")) {
                None => {}
                Some(Value::Object(_)) => out.push_str(" v"),
                Some(default) => write!(out, " ={default}")?,
            }
            out.push('\n');
        }
    }
    Ok(out)
}

/// The type expression of a schema.
fn shape(owner: &str, schema: &Value, index: &BTreeMap<&str, usize>) -> Result<String> {
    let map_type = match text(schema, "x-kubernetes-map-type") {
        "atomic" => "a",
        "granular" => "g",
        _ => "",
    };
    if let Some(target) = reference(schema) {
        return Ok(format!("@{}{map_type}", index[target]));
    }
    if schema.get("properties").is_some() {
        return Ok(format!("({map_type}"));
    }
    Ok(match (text(schema, "type"), text(schema, "format")) {
        ("", _) => "*".into(),
        ("object", _) => match schema.get("additionalProperties") {
            Some(value) => format!("{{{}}}{map_type}", shape(owner, value, index)?),
            None => "*".into(),
        },
        ("array", _) => {
            let kind = match text(schema, "x-kubernetes-list-type") {
                "set" => "s".to_owned(),
                "map" => format!("m{}", texts(schema, "x-kubernetes-list-map-keys").join(",")),
                "atomic" => "a".to_owned(),
                _ => String::new(),
            };
            format!("[{}]{kind}", shape(owner, &schema["items"], index)?)
        }
        ("string", _) if owner.ends_with(".Quantity") => "q".into(),
        ("string", _) if owner.ends_with(".MicroTime") => "u".into(),
        ("string", "") => "s".into(),
        ("string", "byte") => "y".into(),
        ("string", "date-time") => "t".into(),
        ("string", "int-or-string") => "o".into(),
        ("boolean", _) => "b".into(),
        ("integer", "int32") => "i".into(),
        ("integer", _) => "l".into(),
        ("number", _) => "d".into(),
        other => bail!("no expression for {other:?} in {owner}"),
    })
}

fn slice(values: &[&str]) -> String {
    format!("&[{}]", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "))
}

/// The verbs of a resource, by name where many resources share them.
fn verbs(resource: &Value) -> String {
    let verbs = texts(resource, "verbs");
    match verbs.as_slice() {
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"] => "ALL".into(),
        ["get", "patch", "update"] => "GET_PATCH_UPDATE".into(),
        ["create"] => "CREATE".into(),
        other => slice(other),
    }
}

fn resources(folder: &Path) -> Result<String> {
    let groups = read(&folder.join("apis.json"))?;
    let mut versions = vec![(String::new(), "v1".to_owned(), true)];
    for group in groups["groups"].as_array().context("no groups")? {
        let preferred = text(&group["preferredVersion"], "version");
        let all = group["versions"].as_array().context("no versions")?;
        for version in all.iter().map(|v| text(v, "version")).filter(|v| is_stable(v)) {
            versions.push((text(group, "name").to_owned(), version.to_owned(), version == preferred));
        }
    }
    let mut out = String::from(
        "//! Written by `cargo xtask schema`: the resources of Kubernetes 1.35 that are served by default, groups in order of \
         priority.\n\nuse super::resources::{ALL, CREATE, GET_PATCH_UPDATE, Resource, resource as r, \
         subresource as s};\n\n#[rustfmt::skip]\npub(super) static RESOURCES: &[Resource] = &[\n",
    );
    for (group, version, preferred) in versions {
        let name =
            if group.is_empty() { format!("api__{version}.json") } else { format!("apis__{group}__{version}.json") };
        resources_of(&mut out, &read(&folder.join(name))?, &group, &version, preferred)?;
    }
    out.push_str("];\n");
    Ok(out)
}

fn resources_of(out: &mut String, document: &Value, group: &str, version: &str, preferred: bool) -> Result<()> {
    let all = document["resources"].as_array().context("no resources")?;
    for resource in all.iter().filter(|r| !text(r, "name").contains('/')) {
        let name = text(resource, "name");
        let namespaced = resource["namespaced"].as_bool().unwrap_or(false);
        let mut subresources = String::new();
        for other in all {
            let Some(("", sub)) = text(other, "name").strip_prefix(name).and_then(|n| n.split_once('/')) else {
                continue;
            };
            let gv = match (text(other, "group"), text(other, "version")) {
                ("", "") => (group, version),
                explicit => explicit,
            };
            let separator = if subresources.is_empty() { "" } else { ", " };
            let kind = text(other, "kind");
            write!(subresources, "{separator}s({sub:?}, {:?}, {:?}, {kind:?}, {})", gv.0, gv.1, verbs(other))?;
        }
        writeln!(
            out,
            "    r({group:?}, {version:?}, {name:?}, {:?}, {:?}, {namespaced}, {preferred}, {}, {}, {}, &[{subresources}]),",
            text(resource, "singularName"),
            text(resource, "kind"),
            verbs(resource),
            slice(&texts(resource, "shortNames")),
            slice(&texts(resource, "categories")),
        )?;
    }
    Ok(())
}
