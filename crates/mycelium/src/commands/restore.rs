//! `mycelium restore`: a data directory from a backup.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::backup::archive;
use crate::engine::config::data_dir;
use crate::engine::instance::Instance;
use crate::engine::state;

/// What is made of the backup before anything is replaced.
const DRAFT: &str = "restore.new";
/// Where what was there before goes with `--replace`.
const BEFORE: &str = "before-restore";
/// What a backup replaces.
const PARTS: [&str; 3] = [state::FILE, state::KEY, "pki"];

/// Put the content of a backup into a data directory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium restore monday.mycelium
  mycelium restore monday.mycelium --data-dir /srv/new && mycelium up --data-dir /srv/new
  mycelium restore monday.mycelium --replace     what was there is moved to before-restore/

The engine must not run. The backup is checked as a whole before anything is replaced.
Exit codes: 0 success, 1 failure (stderr says what and what to do), 2 wrong usage.")]
pub struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Restore over a state that is there; it is kept in the folder before-restore
    #[arg(long)]
    replace: bool,
}

/// Restores.
pub fn run(args: Args) -> Result<ExitCode> {
    let shown = args.file.display();
    let backup = File::open(&args.file).with_context(|| format!("{shown} cannot be read"))?;
    let instance = Instance::new(&data_dir(args.data_dir)?);
    let _lock = instance.lock()?;
    let dir = instance.dir().display();
    let occupied = PARTS.iter().any(|part| instance.path(part).exists());
    if occupied && !args.replace {
        bail!(
            "{dir} has a state already. Restore into another --data-dir, or say --replace, which moves what is there to \
             {dir}/{BEFORE}"
        );
    }
    let before = instance.path(BEFORE);
    if occupied && before.exists() {
        bail!("{} is there from an earlier restore: move it away first", before.display());
    }
    let draft = instance.path(DRAFT);
    clear(&draft)?;
    std::fs::create_dir_all(&draft)?;
    let checked = archive::unpack(backup, &draft)
        .and_then(|index| {
            // Opening examines every page and record, and says what is wrong with another format.
            let store = state::open(&draft)?;
            anyhow::ensure!(store.revision() == index.revision, "its state is not of the revision that its index says");
            Ok(index)
        })
        .with_context(|| format!("{shown} cannot be restored, and {dir} is as it was"));
    let index = match checked {
        Ok(index) => index,
        Err(error) => {
            clear(&draft)?;
            return Err(error);
        }
    };
    if occupied {
        move_parts(instance.dir(), &before)?;
    }
    move_parts(&draft, instance.dir())?;
    clear(&draft)?;
    println!(
        "{dir}: revision {} of {}, written by mycelium {}; start it with `mycelium up --data-dir {dir}`",
        index.revision, index.created, index.version
    );
    Ok(ExitCode::SUCCESS)
}

fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", folder.display()))
        }
        _ => Ok(()),
    }
}

fn move_parts(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for part in PARTS.iter().filter(|part| from.join(part).exists()) {
        std::fs::rename(from.join(part), to.join(part))
            .with_context(|| format!("{part} cannot be moved from {} to {}", from.display(), to.display()))?;
    }
    for folder in [from, to] {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
