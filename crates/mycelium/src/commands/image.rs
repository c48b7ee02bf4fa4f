//! `mycelium image`: the machine's images, whether the engine runs or not.

mod progress;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use mycelium_image::config::Empty;
use mycelium_image::{Credentials, Image, ImageConfig, Images, ImportOptions, PrunePolicy, PullOptions, Reference};

use crate::client::table::Table;
use crate::client::{block_on, out, unless_unread};
use crate::engine::config::data_dir;

/// Manage the images of this machine.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium image import --binary target/release/app app:latest
  mycelium image import rootfs.tar.gz debian:12 --cmd /bin/bash
  mycelium image load app.tar                    made by docker save, skopeo, buildah or buildx
  docker save app | mycelium image load -
  mycelium image pull registry.example.com/team/app:v1
  mycelium image list

Works on the image store itself, so the engine need not run; if it does, it sees the images at once.
Exit codes: 0 success, 1 failure (stderr says what and what to do), 2 wrong usage.")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Load an archive: an OCI layout (folder or tar) or the output of `docker save`.
    Load {
        /// The archive, or - for standard input
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name for the image of an archive that has none
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Make an image out of a root file system tar, or out of single files.
    Import(Box<Import>),
    /// Fetch an image from its registry.
    Pull(Pull),
    /// List the images.
    #[command(visible_alias = "ls")]
    List {
        /// Output format
        #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml", "name"])]
        output: Option<String>,
        /// Show whole digests
        #[arg(long)]
        digests: bool,
    },
    /// Give an image another name.
    Tag {
        /// The image
        image: String,
        /// Its new name
        name: String,
    },
    /// Take names off images; an image goes with its last name.
    #[command(visible_alias = "rm")]
    Remove {
        /// Names or digests
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also if a container uses it; its layers then go once the container is gone
        #[arg(long)]
        force: bool,
    },
    /// Remove images without a name, and what was left behind.
    Prune {
        /// Also those with a name that no container uses
        #[arg(short, long)]
        all: bool,
    },
}

#[derive(clap::Args)]
struct Import {
    /// `[TAR] NAME`: a root file system tar (plain, gzip or zstd; - for standard input), and the image's name
    #[arg(required = true, num_args = 1..=2, value_names = ["TAR", "NAME"])]
    words: Vec<String>,
    /// Put a file of this machine into the image; may be repeated, and needs no tar
    #[arg(long = "file", value_name = "PATH_IN_IMAGE=FILE", value_parser = file_pair)]
    files: Vec<(PathBuf, PathBuf)>,
    /// Put one static program into the image, and run it unless --entrypoint says otherwise
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Program and fixed arguments; repeat for each argument
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments; repeat for each
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Environment variable; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<String>,
    /// User: name or uid, perhaps with :group
    #[arg(long, value_name = "USER", default_value = "")]
    user: String,
    /// Working directory
    #[arg(long, value_name = "DIR", default_value = "")]
    workdir: String,
    /// Port the program listens on, such as 8000 or 53/udp; may be repeated
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Label; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<String>,
    /// When the image was made (RFC 3339); without it, equal content gives an equal image
    #[arg(long, value_name = "TIME")]
    created: Option<String>,
}

#[derive(clap::Args)]
struct Pull {
    /// The image's name
    image: String,
    /// Login for the registry [default: that of ~/.docker/config.json]
    #[arg(long, value_name = "USER:PASSWORD", env = "MYCELIUM_REGISTRY_LOGIN", hide_env_values = true)]
    login: Option<String>,
    /// Certificate authority of the registry (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// No progress, only the digest
    #[arg(short, long)]
    quiet: bool,
}

/// Does what the verb says.
pub fn run(args: Args) -> Result<ExitCode> {
    unless_unread(act(args).map(|()| ExitCode::SUCCESS))
}

fn act(args: Args) -> Result<()> {
    let images = Images::open(data_dir(args.data_dir)?.join("images"))?;
    match args.verb {
        Verb::Load { path, name } => {
            let loaded = match path.as_os_str() == "-" {
                true => images.load_reader(std::io::stdin().lock(), name.as_deref())?,
                false => images.load(&path, name.as_deref())?,
            };
            loaded.iter().try_for_each(announce)?;
        }
        Verb::Import(import) => announce(&import.run(&images)?)?,
        Verb::Pull(pull) => pull.run(&images)?,
        Verb::List { output, digests } => list(&images, output.as_deref(), digests)?,
        Verb::Tag { image, name } => announce(&images.tag(&image, &name)?)?,
        Verb::Remove { images: names, force } => {
            for name in names {
                let freed = images.remove(&name, force)?;
                out!("removed {name} ({} freed)\n", size(freed));
            }
        }
        Verb::Prune { all } => {
            let policy = if all { PrunePolicy::Unused } else { PrunePolicy::Dangling };
            let pruned = images.prune(&BTreeSet::new(), policy)?;
            for name in pruned.images {
                out!("removed {name}\n");
            }
            out!("{} freed\n", size(pruned.bytes));
        }
    }
    Ok(())
}

fn announce(image: &Image) -> Result<()> {
    out!("{}  {}  {}\n", image.name(), image.digest, size(image.size));
    Ok(())
}

impl Import {
    fn run(&self, images: &Images) -> Result<Image> {
        let files = self.files()?;
        let options = ImportOptions { config: self.config()?, created: self.created.clone() };
        let (tar, name) = match &self.words[..] {
            [name] if !files.is_empty() => return Ok(images.import_files(&files, name, options)?),
            [_] => bail!("give the tar of a root file system in front of the name, or --binary, or --file"),
            [_, _] if !files.is_empty() => bail!("give either a tar or --binary and --file, not both"),
            [tar, name] => (tar, name),
            _ => bail!("give TAR and NAME"),
        };
        if tar == "-" {
            return Ok(images.import(std::io::stdin().lock(), name, options)?);
        }
        let file = File::open(tar).with_context(|| format!("{tar} cannot be read"))?;
        if file.metadata()?.is_dir() {
            bail!("{tar} is a folder; pipe it in: tar -C {tar} -c . | mycelium image import - {name}");
        }
        Ok(images.import(file, name, options)?)
    }

    /// What goes into the image without a tar.
    fn files(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut files = self.files.clone();
        if let Some(binary) = &self.binary {
            files.push((self.binary_path()?, binary.clone()));
        }
        Ok(files)
    }

    /// Where the program of `--binary` lies in the image.
    fn binary_path(&self) -> Result<PathBuf> {
        let name = self.binary.as_deref().and_then(Path::file_name).context("--binary names no file")?;
        Ok(Path::new("/").join(name))
    }

    fn config(&self) -> Result<ImageConfig> {
        let mut entrypoint = self.entrypoint.clone();
        if entrypoint.is_empty() && self.binary.is_some() {
            entrypoint.push(self.binary_path()?.to_string_lossy().into_owned());
        }
        let mut config = ImageConfig {
            user: self.user.clone(),
            env: self.env.clone(),
            entrypoint,
            cmd: self.cmd.clone(),
            working_dir: self.workdir.clone(),
            ..ImageConfig::default()
        };
        for port in &self.expose {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            if number.parse::<u16>().is_err() || !["tcp", "udp", "sctp"].contains(&protocol) {
                bail!("{port:?} is not a port such as 8000 or 53/udp");
            }
            config.exposed_ports.insert(format!("{number}/{protocol}"), Empty {});
        }
        for label in &self.label {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            config.labels.insert(name.to_owned(), value.to_owned());
        }
        Ok(config)
    }
}

impl Pull {
    fn run(&self, images: &Images) -> Result<()> {
        let reference: Reference = self.image.parse()?;
        let mut credentials = match std::env::var_os("HOME").filter(|_| self.login.is_none()) {
            Some(home) => Credentials::of_home(Path::new(&home)).context("~/.docker/config.json cannot be used")?,
            None => Credentials::none(),
        };
        if let Some(login) = &self.login {
            let Some((user, password)) = login.split_once(':') else { bail!("--login takes USER:PASSWORD") };
            credentials.add_basic(reference.registry(), user, password);
        }
        let mut certificates = Vec::new();
        if let Some(path) = &self.ca {
            certificates.push(std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?);
        }
        let bars = (!self.quiet).then(progress::bars);
        let options = PullOptions { credentials, certificates, progress: bars };
        let image = block_on(async { Ok(images.pull(&self.image, options).await?) })?;
        match self.quiet {
            true => out!("{}\n", image.digest),
            false => announce(&image)?,
        }
        Ok(())
    }
}

fn list(images: &Images, output: Option<&str>, digests: bool) -> Result<()> {
    let all = images.list()?;
    match output {
        Some("json") => out!("{}\n", serde_json::to_string_pretty(&all)?),
        Some("yaml") => out!("{}", serde_saphyr::to_string(&all)?),
        Some(_) => {
            for image in all {
                out!("{}\n", image.name());
            }
        }
        None => out!("{}", table(&all, digests).render(true, &[])),
    }
    Ok(())
}

/// One row per name.
fn table(all: &[Image], digests: bool) -> Table {
    let mut table = Table::new(["IMAGE", "DIGEST", "SIZE", "CREATED", "ORIGIN"]);
    for image in all {
        let unnamed = [image.name()];
        let names = if image.tags.is_empty() { &unnamed[..] } else { &image.tags[..] };
        for name in names {
            let digest = if digests { image.digest.to_string() } else { image.digest.hex()[..12].to_owned() };
            let origin = if image.loaded_by_hand { "loaded" } else { "pulled" };
            let name = name.parse::<Reference>().map_or_else(|_| name.clone(), |reference| reference.familiar());
            let created = image.created.as_deref().unwrap_or("-").split('.').next().unwrap_or_default().to_owned();
            table.row([name, digest, size(image.size), created, origin.to_owned()]);
        }
    }
    table
}

/// `12.3MiB`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}TiB")
}

fn pair(given: &str) -> Result<String, String> {
    match given.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(given.to_owned()),
        _ => Err(format!("{given:?} is not NAME=VALUE")),
    }
}

fn file_pair(given: &str) -> Result<(PathBuf, PathBuf), String> {
    match given.split_once('=') {
        Some((inside, file)) if !inside.is_empty() && !file.is_empty() => Ok((inside.into(), file.into())),
        _ => Err(format!("{given:?} is not PATH_IN_IMAGE=FILE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, expected) in [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (5 << 40, "5.0TiB")] {
            assert_eq!(size(bytes), expected);
        }
    }
}
