//! `mycelium check`: faults of manifests and kustomizations, explained before they bite.

mod files;
pub mod known;
mod print;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use mycelium_check::{Context, Finding, Object, Set, Severity, set};

use crate::client::{Cluster, Connection, block_on, unless_unread};

/// Exit code for findings of severity error, as `--help` says.
const EXIT_FOUND: u8 = 1;
/// Exit code for what cannot be read.
const EXIT_UNREADABLE: u8 = 2;

/// Explain the faults of manifests and kustomizations before they are applied.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium check app.yaml                    one file
  mycelium check deploy/                     all .yaml, .yml and .json files of a folder, taken together
  mycelium check -k overlays/production      a kustomization: its own faults, and those of what it builds
  mycelium check deploy/ --present secret/db-password --nodes 3
  mycelium check deploy/ --against-cluster   what the cluster has counts as present
  mycelium check deploy/ -o json             for other programs: a list of findings

A folder with a kustomization.yaml is read as with -k. Without --against-cluster only the files are looked at: what they
refer to must be among them, or be named with --present. Nothing is changed anywhere.

Severities: error (refused by the API, or cannot work), warning (taken, but most likely not what is meant), hint.
Exit codes: 0 no errors, 1 at least one finding of severity error (with --strict: or warning), 2 wrong usage or a path
that cannot be read.")]
pub struct Args {
    /// Files, folders, or - for standard input
    #[arg(value_name = "PATH", required_unless_present = "kustomize")]
    paths: Vec<PathBuf>,
    /// Folder with a kustomization; may be repeated
    #[arg(short = 'k', long, value_name = "DIR")]
    kustomize: Vec<PathBuf>,
    /// Also the folders within folders
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Output: sentences, or a JSON list
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// How many nodes there will be
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    nodes: u16,
    /// An object that exists elsewhere, such as secret/db-password or configmap/*; may be repeated
    #[arg(long, value_name = "KIND/NAME", value_parser = kind_and_name)]
    present: Vec<(String, String)>,
    /// Exit with 1 for warnings too
    #[arg(long)]
    strict: bool,
    /// Count what the cluster has as present, and what it lacks as missing
    #[arg(long)]
    against_cluster: bool,
    #[command(flatten)]
    connection: Connection,
}

fn kind_and_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() => Ok((kind.to_lowercase(), name.to_owned())),
        _ => Err("give a kind and a name, such as secret/db-password".to_owned()),
    }
}

/// Looks, and prints what it found.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut found = match gather(&args) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(EXIT_UNREADABLE));
        }
    };
    let (objects, files) = (found.objects.len(), found.files);
    let context = context(&args);
    let set = if args.against_cluster {
        let local = std::mem::take(&mut found.objects);
        block_on(async {
            let cluster = args.connection.cluster().await?;
            known::against(&cluster, local, context).await
        })?
    } else {
        Set::new(std::mem::take(&mut found.objects), Vec::new(), context)
    };
    let mut findings = found.findings;
    findings.extend(mycelium_check::check(&set));
    mycelium_check::sort(&mut findings);
    let json = args.output == "json";
    let printed = if json {
        print::json(&findings)
    } else {
        print::text(&findings, objects, files, std::io::stdout().is_terminal())
    };
    unless_unread(printed.map(|()| code(&findings, args.strict)))
}

/// Prints faults of what is about to be applied, with what the cluster has, to standard error. A cluster that does not
/// say what it has is not asked twice: then nothing is printed.
pub async fn warn(cluster: &Cluster, texts: &[(String, String)]) {
    let mut objects = Vec::new();
    for (file, text) in texts {
        objects.extend(set::objects(mycelium_check::parse(file, text).0).0);
    }
    let Ok(set) = known::against(cluster, objects, Context::default()).await else { return };
    for finding in mycelium_check::check(&set).iter().filter(|finding| finding.severity <= Severity::Warning) {
        eprint!("warning: {}", print::plain(finding));
    }
}

fn code(findings: &[Finding], strict: bool) -> ExitCode {
    let limit = if strict { Severity::Warning } else { Severity::Error };
    if findings.iter().any(|finding| finding.severity <= limit) {
        ExitCode::from(EXIT_FOUND)
    } else {
        ExitCode::SUCCESS
    }
}

fn context(args: &Args) -> Context {
    let namespace = args.connection.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let present: BTreeSet<(String, String)> =
        args.present.iter().map(|(kind, name)| (full_kind(kind).to_owned(), name.clone())).collect();
    Context { namespace, nodes: set::nodes(usize::from(args.nodes)), present, ..Context::default() }
}

/// The kind that people mean by a short name.
fn full_kind(kind: &str) -> &str {
    let short: BTreeMap<&str, &str> = [
        ("cm", "configmap"),
        ("configmaps", "configmap"),
        ("secrets", "secret"),
        ("svc", "service"),
        ("services", "service"),
        ("sa", "serviceaccount"),
        ("pvc", "persistentvolumeclaim"),
        ("sc", "storageclass"),
        ("ns", "namespace"),
        ("pc", "priorityclass"),
        ("deploy", "deployment"),
        ("sts", "statefulset"),
    ]
    .into();
    short.get(kind).copied().unwrap_or(kind)
}

/// What was read.
struct Found {
    objects: Vec<Object>,
    findings: Vec<Finding>,
    files: usize,
}

fn gather(args: &Args) -> Result<Found> {
    let disk = files::Disk::new()?;
    let mut found = Found { objects: Vec::new(), findings: Vec::new(), files: 0 };
    for folder in &args.kustomize {
        if !folder.is_dir() {
            bail!("{} is no folder; -k takes the folder that holds the kustomization.yaml", folder.display());
        }
        kustomization(&disk, folder, &mut found);
    }
    for path in &args.paths {
        if path.is_dir() && files::has_kustomization(path) {
            kustomization(&disk, path, &mut found);
            continue;
        }
        for (file, text) in files::read(path, args.recursive)? {
            let (documents, findings) = mycelium_check::parse(&file, &text);
            found.findings.extend(findings);
            let (objects, findings) = set::objects(documents);
            found.objects.extend(objects);
            found.findings.extend(findings);
            found.files += 1;
        }
    }
    Ok(found)
}

fn kustomization(disk: &files::Disk, folder: &Path, found: &mut Found) {
    let built = mycelium_check::kustomize::build(disk, &disk.absolute(folder));
    found.objects.extend(built.objects);
    found.findings.extend(built.findings);
    found.files += built.files;
}
