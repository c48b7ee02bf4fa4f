//! `mycelium user`: people who may use the cluster.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use http::Method;
use mycelium_apiserver::pki::Pki;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Connection, block_on, say};
use crate::engine::config::data_dir;
use crate::engine::instance::Instance;
use crate::engine::sources;

const RBAC: &str = "rbac.authorization.k8s.io";
/// Certificates name a user and at most this many groups.
const GROUPS_MAX: usize = 2;

/// Give people access.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Sign a client certificate, write a kubeconfig with it, and bind a role to the user.
    Add(Add),
}

/// Sign a client certificate, write a kubeconfig with it, and bind a role to the user.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium user add ann --role edit -n shop          ann may change what is in the namespace shop
  mycelium user add bob --role view                  bob may look at everything
  mycelium user add eve --role cluster-admin --group ops -o eve.kubeconfig

Roles: cluster-admin, admin, edit, view, or any ClusterRole (with -n also a Role) that there is. The certificate is
signed by the engine's own authority, so the command runs on the engine's machine, with access to its data directory.
The file holds the private key; only its owner can read it.")]
struct Add {
    /// Name of the user
    name: String,
    /// Role to bind: a ClusterRole, or with -n a Role of that namespace
    #[arg(long, value_name = "ROLE")]
    role: String,
    /// Group the user is in; may be given twice
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Where to write the kubeconfig [default: NAME.kubeconfig]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Add(args) => add(args),
    }
}

fn add(mut args: Add) -> Result<ExitCode> {
    if args.name.starts_with("system:") || args.group.iter().any(|group| group.starts_with("system:")) {
        bail!("names and groups that begin with `system:` are the cluster's own");
    }
    if args.group.len() > GROUPS_MAX {
        bail!("a certificate names at most {GROUPS_MAX} groups");
    }
    let instance = Instance::new(&data_dir(args.data_dir.take())?);
    if args.connection.kubeconfig.is_none() {
        args.connection.kubeconfig = Some(instance.path("admin.kubeconfig"));
    }
    let keys = instance.path("pki");
    if !keys.is_dir() {
        bail!("there is no engine at {}; name its directory with --data-dir", instance.dir().display());
    }
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.kubeconfig", args.name)));
    block_on(async {
        let cluster = args.connection.cluster().await?;
        let role = role(&cluster, &args).await?;
        bind(&cluster, &args, role).await?;
        let pki = Pki::load(&keys, sources::real())
            .with_context(|| format!("the keys in {} cannot be used", keys.display()))?;
        let credentials = pki.client_cert(&args.name, &args.group)?;
        let mut config: Value = serde_json::from_str(&pki.kubeconfig_for(&cluster.server, &args.name, &credentials))?;
        if let Some(namespace) = &args.connection.namespace {
            config["contexts"][0]["context"]["namespace"] = json!(namespace);
        }
        write_private(&output, &format!("{config:#}\n"))?;
        let place = args.connection.namespace.as_ref().map_or_else(|| "everywhere".to_owned(), |n| format!("in {n}"));
        let file = output.display();
        say(format_args!("user {} has the role {} {place}; kubeconfig: {file}\n", args.name, args.role));
        Ok(ExitCode::SUCCESS)
    })
}

/// The role's kind, which must exist.
async fn role(cluster: &Cluster, args: &Add) -> Result<&'static str> {
    if let Some(namespace) = &args.connection.namespace {
        let path = format!("/apis/{RBAC}/v1/namespaces/{namespace}/roles/{}", args.role);
        if cluster.get_opt(&path).await?.is_some() {
            return Ok("Role");
        }
    }
    if cluster.get_opt(&format!("/apis/{RBAC}/v1/clusterroles/{}", args.role)).await?.is_some() {
        return Ok("ClusterRole");
    }
    bail!("there is no role {:?}; `mycelium get clusterroles` lists those there are", args.role)
}

async fn bind(cluster: &Cluster, args: &Add, kind: &str) -> Result<()> {
    let name = format!("mycelium:{}:{}", args.name, args.role);
    let (path, binding) = match &args.connection.namespace {
        Some(namespace) => (format!("/apis/{RBAC}/v1/namespaces/{namespace}/rolebindings"), "RoleBinding"),
        None => (format!("/apis/{RBAC}/v1/clusterrolebindings"), "ClusterRoleBinding"),
    };
    let object = json!({"apiVersion": format!("{RBAC}/v1"), "kind": binding, "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": args.role},
        "subjects": [{"kind": "User", "apiGroup": RBAC, "name": args.name}]});
    if cluster.get_opt(&format!("{path}/{name}")).await?.is_some() {
        return Ok(());
    }
    let call = Call { method: Method::POST, body: object.to_string().into_bytes(), ..Call::default() };
    cluster.call(&path, call).await.map(drop)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let shown = || format!("cannot write {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).with_context(shown)?;
    file.write_all(text.as_bytes()).with_context(shown)
}
