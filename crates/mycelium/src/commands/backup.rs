//! `mycelium backup`: state and keys of an engine in one file.

pub mod archive;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use mycelium_apiserver::snapshot;

use self::archive::{FORMAT, Index, Listed};
use crate::client::block_on;
use crate::engine::config::data_dir;
use crate::engine::instance::Instance;
use crate::engine::{sources, state};

/// The files and folders of a data directory that make up a backup, beside the state.
const KEYS: &str = "pki";

/// Write everything an engine knows into one file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium backup /srv/backups/monday.mycelium
  mycelium backup --data-dir /srv/b b.mycelium
  mycelium restore /srv/backups/monday.mycelium --data-dir /srv/new

The file holds all objects as they were at one revision, and the keys and certificates of the engine: whoever can read it
can be anybody in the cluster. It is made for its owner only (mode 0600). Images and the content of volumes are not in it.
Exit codes: 0 success, 1 failure (stderr says what and what to do), 2 wrong usage.")]
pub struct Args {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Writes the backup. It appears under its name when it is whole and on disk.
pub fn run(args: Args) -> Result<ExitCode> {
    let instance = Instance::new(&data_dir(args.data_dir)?);
    let shown = args.file.display();
    ensure!(!args.file.exists(), "{shown} exists already: choose another name, or move it away");
    ensure!(instance.path(state::FILE).exists(), "there is no engine's state in {}", instance.dir().display());
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("{} cannot be written", folder.display()))?;
    let (copy, revision) = copy(&instance, folder)?;
    let mut files = keys(&instance)?;
    files.insert(state::FILE.to_owned(), copy);
    let listed = files.iter_mut().map(|(name, file)| Ok((name.clone(), Listed::of(file)?)));
    let index = Index {
        format_version: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created: sources::real().now_rfc3339(),
        revision,
        files: listed.collect::<Result<_>>()?,
    };
    archive::write(BufWriter::new(draft.as_file_mut()), &index, &mut files)?;
    draft.as_file().sync_all().with_context(|| format!("{shown} cannot be written"))?;
    let bytes = draft.as_file().metadata()?.len();
    draft.persist_noclobber(&args.file).with_context(|| format!("{shown} cannot be written"))?;
    File::open(folder)?.sync_all()?;
    println!("{shown}: revision {revision}, {} files, {:.1} MiB", index.files.len(), bytes as f64 / f64::from(1 << 20));
    Ok(ExitCode::SUCCESS)
}

/// A copy of the state in a file without a name: from the engine, or from its file if none runs.
fn copy(instance: &Instance, folder: &Path) -> Result<(File, u64)> {
    if instance.is_running()? {
        return block_on(ask(instance, folder)).context("the engine did not give its state");
    }
    // Held meanwhile, so that none starts.
    let _lock = instance.lock()?;
    Ok(state::open(instance.dir())?.copy(folder)?)
}

async fn ask(instance: &Instance, folder: &Path) -> Result<(File, u64)> {
    let request = http::Request::get(snapshot::PATH).body(kube::client::Body::empty())?;
    let mut answer = instance.client().await?.send(request).await?;
    ensure!(answer.status().is_success(), "it answered {}", answer.status());
    let number = |name| answer.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let (length, revision) = (number(http::header::CONTENT_LENGTH), number(snapshot::REVISION));
    let (length, revision) = length.zip(revision).context("its answer lacks length and revision")?;
    let mut file = tempfile::tempfile_in(folder)?;
    while let Some(frame) = answer.body_mut().frame().await {
        if let Some(piece) = frame?.data_ref() {
            file.write_all(piece)?;
        }
    }
    let got = file.stream_position()?;
    ensure!(got == length, "its answer ended after {got} of {length} bytes");
    Ok((file, revision))
}

/// The keys and certificates, and the key of the Secrets.
fn keys(instance: &Instance) -> Result<BTreeMap<String, File>> {
    let folder = instance.path(KEYS);
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let key = File::open(instance.path(state::KEY)).with_context(|| format!("{} cannot be read", state::KEY))?;
    let mut files = BTreeMap::from([(state::KEY.to_owned(), key)]);
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.insert(format!("{KEYS}/{}", entry.file_name().to_string_lossy()), File::open(entry.path())?);
        }
    }
    Ok(files)
}
