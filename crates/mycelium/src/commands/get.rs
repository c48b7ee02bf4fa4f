//! `mycelium get`: objects as tables, YAML, JSON or names; once, or as they change.

mod rows;
mod watch;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::client::discovery::{Discovery, Resource};
use crate::client::target::{self, Target};
use crate::client::{Call, Cluster, Connection, block_on, failure, out, query, text, unless_unread};
use rows::Rows;

const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Show objects.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium get pods                          pods of the namespace
  mycelium get deploy,rs,pods -o wide        several types, with more columns
  mycelium get pod/a svc/b -o yaml           single objects
  mycelium get pods -A -l app=web --watch    as they change, in all namespaces
  mycelium get all -n kube-system

Types go by plural, singular, kind or short name, with .group or .version.group where it matters.
Exit codes: 0 found (also when a list is empty), 1 not found or another error, 2 wrong usage.")]
pub struct Args {
    /// What to show: TYPE[,TYPE...] [NAME...] or TYPE/NAME...
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// Output: wide, name, yaml or json
    #[arg(short, long, value_name = "FORMAT", value_parser = ["wide", "name", "yaml", "json"])]
    output: Option<String>,
    /// Only objects with these labels, such as `app=web,tier!=db`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only objects with these fields, such as `status.phase=Running`
    #[arg(long, value_name = "SELECTOR")]
    field_selector: Option<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Show what is there, then every change
    #[arg(short, long)]
    watch: bool,
    /// Show labels as the last column
    #[arg(long)]
    show_labels: bool,
    /// Leave out the line with the headings
    #[arg(long)]
    no_headers: bool,
    /// Keep metadata.managedFields in YAML and JSON
    #[arg(long)]
    show_managed_fields: bool,
    /// Say nothing and succeed when an object is missing
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the objects.
pub fn run(args: Args) -> Result<ExitCode> {
    unless_unread(block_on(async {
        let cluster = args.connection.cluster().await?;
        let discovery = Discovery::load(&cluster).await?;
        let targets = target::parse(&discovery, &args.what)?;
        if args.watch && targets.len() > 1 {
            bail!("--watch follows one resource type at a time");
        }
        let getter = Getter { args: &args, cluster: &cluster };
        match args.output.as_deref() {
            Some("json" | "yaml" | "name") => getter.objects(&targets).await,
            _ => getter.tables(&targets).await,
        }
    }))
}

struct Getter<'a> {
    args: &'a Args,
    cluster: &'a Cluster,
}

impl Getter<'_> {
    /// The namespace to look in; none for all.
    fn namespace(&self) -> Option<&str> {
        (!self.args.all_namespaces).then_some(self.cluster.namespace.as_str())
    }

    fn selectors(&self) -> Vec<(&'static str, Option<String>)> {
        vec![("labelSelector", self.args.selector.clone()), ("fieldSelector", self.args.field_selector.clone())]
    }

    fn list_path(&self, resource: &Resource) -> String {
        format!("{}{}", resource.path(self.namespace()), query(&self.selectors()))
    }

    /// The documents of a target: one list, or one per name.
    async fn documents(&self, target: &Target, accept: &str) -> Result<Vec<Value>> {
        if target.names.is_empty() {
            let call = Call { accept, ..Call::default() };
            return Ok(vec![self.cluster.call(&self.list_path(&target.resource), call).await?.1]);
        }
        if self.args.all_namespaces && target.resource.namespaced {
            bail!("an object is named within one namespace; give -n NAMESPACE instead of -A");
        }
        let mut documents = Vec::new();
        for name in &target.names {
            let call = Call { accept, ..Call::default() };
            match self.cluster.call(&target.resource.object(&self.cluster.namespace, name), call).await {
                Ok((_, document)) => documents.push(document),
                Err(error) if self.args.ignore_not_found && failure::code(&error) == Some(404) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(documents)
    }

    async fn tables(&self, targets: &[Target]) -> Result<ExitCode> {
        let mut printed = false;
        for target in targets {
            let prefix = (targets.len() > 1).then(|| target.resource.display());
            let mut rows = Rows::new(self.args, prefix, target.resource.namespaced);
            let mut version = String::new();
            for document in self.documents(target, AS_TABLE).await? {
                text(&document, "/metadata/resourceVersion").clone_into(&mut version);
                rows.add(&document);
            }
            if !rows.is_empty() {
                if printed {
                    out!("\n");
                }
                out!("{}", rows.render(!self.args.no_headers));
                printed = true;
            }
            if self.args.watch {
                return watch::tables(self, target, &version, rows).await;
            }
        }
        if !printed && !self.args.ignore_not_found {
            match self.namespace().filter(|_| targets.iter().any(|target| target.resource.namespaced)) {
                Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
                None => eprintln!("No resources found."),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn objects(&self, targets: &[Target]) -> Result<ExitCode> {
        let mut found = Vec::new();
        let mut version = String::new();
        for target in targets {
            for document in self.documents(target, "application/json").await? {
                text(&document, "/metadata/resourceVersion").clone_into(&mut version);
                found.extend(take_apart(document, &target.resource).into_iter().map(|o| (o, &target.resource)));
            }
        }
        let single = found.len() == 1 && targets.iter().map(|target| target.names.len()).sum::<usize>() == 1;
        if self.args.output.as_deref() == Some("name") || single || self.args.watch {
            for (object, resource) in &found {
                self.print(object, resource)?;
            }
        } else {
            let items: Vec<Value> = found.into_iter().map(|(object, _)| self.cleaned(object)).collect();
            let list = json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}});
            self.print_document(&list)?;
        }
        match targets.first().filter(|_| self.args.watch) {
            Some(target) => watch::objects(self, target, &version).await,
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Prints one object in the format asked for.
    fn print(&self, object: &Value, resource: &Resource) -> Result<()> {
        if self.args.output.as_deref() == Some("name") {
            out!("{}/{}\n", resource.display(), text(object, "/metadata/name"));
            return Ok(());
        }
        self.print_document(&self.cleaned(object.clone()))
    }

    fn print_document(&self, document: &Value) -> Result<()> {
        match self.args.output.as_deref() {
            Some("json") => out!("{}\n", serde_json::to_string_pretty(document)?),
            _ if self.args.watch => out!("---\n{}", serde_saphyr::to_string(document)?),
            _ => out!("{}", serde_saphyr::to_string(document)?),
        }
        Ok(())
    }

    fn cleaned(&self, mut object: Value) -> Value {
        if !self.args.show_managed_fields
            && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.remove("managedFields");
        }
        object
    }
}

/// The objects of a list, which need not say there what they are; or the object itself.
fn take_apart(mut document: Value, resource: &Resource) -> Vec<Value> {
    let is_list = text(&document, "/kind").ends_with("List") && document["items"].is_array();
    match document.get_mut("items").filter(|_| is_list).map(Value::take) {
        Some(Value::Array(items)) => {
            let mut items = items;
            for item in items.iter_mut().filter_map(Value::as_object_mut) {
                item.entry("apiVersion").or_insert_with(|| resource.api_version().into());
                item.entry("kind").or_insert_with(|| resource.kind.clone().into());
            }
            items
        }
        _ => vec![document],
    }
}
