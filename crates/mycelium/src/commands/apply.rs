//! `mycelium apply`: server-side apply of manifests.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::client::discovery::{Discovery, Resource};
use crate::client::manifest::{self, Document};
use crate::client::{Call, Cluster, Connection, FIELD_MANAGER, block_on, failure, query, say, text};
use crate::commands::check;

const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// A custom resource is served a moment after its definition was taken.
const NEW_KIND_TRIES: u32 = 40;
const NEW_KIND_PAUSE: Duration = Duration::from_millis(250);

/// Create or change objects so that they are as the manifests say.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium apply -f examples/platform/       all .yaml, .yml and .json files of a folder
  mycelium apply -f app.yaml -f db.yaml -n staging
  make-manifests | mycelium apply -f -
  mycelium apply -f app.yaml --dry-run       what would change; nothing does

Fields that others set and the manifests do not mention stay as they are. A field that another manager owns and the
manifest wants otherwise is a conflict: nothing of that object is changed unless --force-conflicts is given.
Faults that `mycelium check --against-cluster` finds are printed as warnings, and stop nothing (--no-check leaves them out).
Namespaces and CustomResourceDefinitions are applied first. All objects are tried, also after one failed.
Exit codes: 0 all applied, 1 at least one was not, 2 wrong usage.")]
pub struct Args {
    /// File, folder, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Also the folders within folders
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Have the server check everything and keep nothing
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "server", value_parser = ["server", "none"])]
    dry_run: Option<String>,
    /// Take over fields that belong to other managers
    #[arg(long)]
    force_conflicts: bool,
    /// Name that owns the applied fields
    #[arg(long, value_name = "NAME", default_value = FIELD_MANAGER)]
    field_manager: String,
    /// What to do about fields the server does not know
    #[arg(long, value_name = "HOW", default_value = "strict", value_parser = ["strict", "warn", "ignore"])]
    validate: String,
    /// Do not look for faults that the server does not refuse
    #[arg(long)]
    no_check: bool,
    /// Output: what happened to each object, or the object's name
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name"])]
    output: Option<String>,
    /// Accepted for habit: every apply is a server-side apply
    #[arg(long, hide = true)]
    server_side: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Created,
    Configured,
    Unchanged,
}

/// Applies the manifests.
pub fn run(args: Args) -> Result<ExitCode> {
    block_on(async {
        let texts = manifest::texts(&args.files, args.recursive)?;
        let mut documents = manifest::objects(&texts)?;
        documents.sort_by_key(|document| rank(document.kind()));
        let cluster = args.connection.cluster().await?;
        if !args.no_check {
            check::warn(&cluster, &texts).await;
        }
        let mut applier =
            Applier { discovery: Discovery::load(&cluster).await?, args: &args, cluster, new_kinds: false };
        let mut failures = Vec::new();
        let total = documents.len();
        for document in &documents {
            if let Err(error) = applier.apply(document).await {
                failures.push(format!("{}: {error:#}", document.origin));
            }
        }
        match failures.len() {
            0 => Ok(ExitCode::SUCCESS),
            failed if total == 1 => bail!("{}", failures.swap_remove(failed - 1)),
            failed => bail!("{failed} of {total} objects were not applied:\n  {}", failures.join("\n  ")),
        }
    })
}

/// What others need comes first; the rest stays in the order it was written in.
fn rank(kind: &str) -> u8 {
    match kind {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    }
}

struct Applier<'a> {
    args: &'a Args,
    cluster: Cluster,
    discovery: Discovery,
    /// A definition of new kinds was applied: discovery may be behind.
    new_kinds: bool,
}

impl Applier<'_> {
    async fn apply(&mut self, document: &Document) -> Result<()> {
        let resource = self.resource(document).await?;
        let namespace = self.namespace(document, &resource)?;
        if document.name().is_empty() {
            bail!("an applied object needs metadata.name; generateName works with create only");
        }
        let path = resource.object(&namespace, document.name());
        let before = self.cluster.get_opt(&path).await?;
        let (status, after) =
            self.patch(&path, document).await.map_err(|error| explain_conflict(error, &resource, document))?;
        self.new_kinds |= resource.kind == "CustomResourceDefinition";
        let outcome = match before {
            _ if status == StatusCode::CREATED => Outcome::Created,
            None => Outcome::Created,
            Some(before) if self.unchanged(&before, &after) => Outcome::Unchanged,
            Some(_) => Outcome::Configured,
        };
        self.report(&resource, document.name(), outcome);
        Ok(())
    }

    async fn patch(&self, path: &str, document: &Document) -> Result<(StatusCode, Value)> {
        let dry_run = self.is_dry_run().then(|| "All".to_owned());
        let validation = match self.args.validate.as_str() {
            "warn" => "Warn",
            "ignore" => "Ignore",
            _ => "Strict",
        };
        let query = query(&[
            ("fieldManager", Some(self.args.field_manager.clone())),
            ("force", self.args.force_conflicts.then(|| "true".to_owned())),
            ("fieldValidation", Some(validation.to_owned())),
            ("dryRun", dry_run),
        ]);
        let body = serde_json::to_vec(&document.object)?;
        let call = Call { method: Method::PATCH, content_type: APPLY_PATCH, body, ..Call::default() };
        self.cluster.call(&format!("{path}{query}"), call).await
    }

    fn is_dry_run(&self) -> bool {
        self.args.dry_run.as_deref() == Some("server")
    }

    /// The resource of the document's kind, waiting for one whose definition was just applied.
    async fn resource(&mut self, document: &Document) -> Result<Resource> {
        let tries = if self.new_kinds { NEW_KIND_TRIES } else { 1 };
        for attempt in 0..tries {
            if let Some(resource) = self.discovery.of_kind(document.api_version(), document.kind()) {
                return Ok(resource.clone());
            }
            if attempt + 1 < tries {
                tokio::time::sleep(NEW_KIND_PAUSE).await;
                self.discovery = Discovery::load(&self.cluster).await?;
            }
        }
        bail!(
            "the server has no kind {} in {}; for a custom one, apply its CustomResourceDefinition first",
            document.kind(),
            document.api_version()
        )
    }

    fn namespace(&self, document: &Document, resource: &Resource) -> Result<String> {
        let own = text(&document.object, "/metadata/namespace");
        if resource.namespaced && self.cluster.namespace_given && !own.is_empty() && own != self.cluster.namespace {
            bail!("the object is for namespace {own:?}, and the command line says {:?}", self.cluster.namespace);
        }
        Ok(if own.is_empty() { self.cluster.namespace.clone() } else { own.to_owned() })
    }

    /// A write that changes nothing keeps the version; a dry run always does.
    fn unchanged(&self, before: &Value, after: &Value) -> bool {
        let version = "/metadata/resourceVersion";
        (!self.is_dry_run() && before.pointer(version) == after.pointer(version)) || same(before, after)
    }

    fn report(&self, resource: &Resource, name: &str, outcome: Outcome) {
        if self.args.output.is_some() {
            return say(format_args!("{}/{name}\n", resource.display()));
        }
        let verb = match outcome {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
        };
        let note = if self.is_dry_run() { " (server dry run)" } else { "" };
        say(format_args!("{}/{name} {verb}{note}\n", resource.display()));
    }
}

/// Equal but for what every write stamps.
fn same(before: &Value, after: &Value) -> bool {
    let stripped = |value: &Value| {
        let mut value = value.clone();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
        }
        value
    };
    stripped(before) == stripped(after)
}

fn explain_conflict(error: anyhow::Error, resource: &Resource, document: &Document) -> anyhow::Error {
    if failure::reason(&error) == Some("Conflict") {
        return error.context(format!(
            "{}/{} has fields that another manager set otherwise; leave them out of the manifest, or take them over with \
             --force-conflicts",
            resource.display(),
            document.name()
        ));
    }
    Err::<(), _>(error).with_context(|| format!("{}/{}", resource.display(), document.name())).unwrap_err()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stamps_make_no_difference() {
        let object = |version: &str, replicas: u32| json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}});
        assert!(same(&object("1", 1), &object("2", 1)));
        assert!(!same(&object("1", 1), &object("2", 2)));
    }
}
