//! Images from registries.
//!
//! The manifest and the configuration come first; they say which layers are here already. The others are downloaded
//! a few at a time and unpacked in order. Pulls of one image at the same time become one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::{ConfigDocument, Descriptor, Document, Manifest, chain_ids, platforms, select_platform};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::download::Download;
use crate::error::Error;
use crate::load::check_layer_count;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::{Image, Images, Names};

const DOWNLOADS_AT_ONCE: usize = 3;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Logins to choose from.
    pub credentials: Credentials,
    /// Certificate authorities to trust besides the machine's, each in PEM.
    pub certificates: Vec<Vec<u8>>,
    /// Told how it goes.
    pub progress: Option<ProgressFn>,
}

/// Receives [`Progress`]. Must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// How a pull goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is here: these are the layers, bottom first, with their compressed sizes.
    Resolved {
        /// Digest, bytes to download, and whether the layer is here already.
        layers: Vec<(Digest, u64, bool)>,
    },
    /// So many bytes of a layer are here.
    Downloaded {
        /// Which one.
        layer: usize,
        /// Bytes.
        bytes: u64,
    },
    /// A layer is complete and now being unpacked.
    Unpacking {
        /// Which one.
        layer: usize,
    },
    /// A layer is ready.
    Ready {
        /// Which one.
        layer: usize,
    },
}

/// Why an image was not pulled, as far as it matters for what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The name is not an image name.
    InvalidName,
    /// The registry does not have it.
    NotFound,
    /// The registry wants a login, or another one.
    Unauthorized,
    /// The registry does not answer, or says that it is overloaded or broken.
    Unreachable,
    /// The registry's certificate is not trusted.
    Untrusted,
    /// What came is not what was promised.
    Corrupt,
    /// The image cannot be used on this machine.
    Invalid,
    /// The registry does not keep to the protocol.
    Registry,
    /// This machine's disk.
    Store,
}

/// Why an image was not pulled: the message says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullError {
    /// What sort of problem.
    pub kind: PullErrorKind,
    message: String,
}

impl PullError {
    pub(crate) fn new(kind: PullErrorKind, reference: &Reference, message: &str) -> Self {
        Self { kind, message: format!("cannot pull image {reference}: {message}") }
    }

    /// An error of the store, with its causes: it must be possible to hand it to many.
    pub(crate) fn of_store(error: &Error) -> Self {
        let kind = match error {
            Error::Corrupt { .. } | Error::Unpack { .. } => PullErrorKind::Corrupt,
            Error::Document { .. } => PullErrorKind::Invalid,
            Error::Reference(_) => PullErrorKind::InvalidName,
            _ => PullErrorKind::Store,
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self { kind, message }
    }

    /// Whether the same image, loaded by hand, may serve under pull policy `Always`.
    pub fn allows_local(&self) -> bool {
        use PullErrorKind as Kind;
        matches!(self.kind, Kind::NotFound | Kind::Unreachable | Kind::Unauthorized | Kind::Untrusted)
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PullError {}

type PullResult = std::result::Result<Image, PullError>;
/// The verified file of a layer, and its path.
type Arrival = std::result::Result<(File, PathBuf), PullError>;
type Running = Shared<BoxFuture<'static, PullResult>>;

/// The pulls under way, by image and login.
#[derive(Default)]
pub(crate) struct Pulls {
    running: Mutex<BTreeMap<String, WeakShared<BoxFuture<'static, PullResult>>>>,
}

impl Images {
    /// Pulls an image, even if it is here: its tag may have moved. Layers that are here are not downloaded again.
    pub async fn pull(&self, name: &str, options: PullOptions) -> PullResult {
        let reference: Reference = name.parse().map_err(|error| PullError::of_store(&Error::Reference(error)))?;
        let running = self.join_pull(reference, options);
        running.await
    }

    /// The pull of this image with these logins that is under way, or a new one.
    fn join_pull(&self, reference: Reference, options: PullOptions) -> Running {
        let key = format!("{reference} {}", options.credentials.fingerprint(&reference));
        let mut all = self.inner.pulls.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = all.get(&key).and_then(WeakShared::upgrade).filter(|running| running.peek().is_none()) {
            return running;
        }
        all.retain(|_, running| running.upgrade().is_some());
        let images = self.clone();
        let running = async move { images.pull_with_any(&reference, &options).await }.boxed().shared();
        all.extend(running.downgrade().map(|weak| (key, weak)));
        running
    }

    /// Tries the logins that fit, one after the other, until one is let in.
    async fn pull_with_any(&self, reference: &Reference, options: &PullOptions) -> PullResult {
        let mut refused = None;
        for auth in options.credentials.matching(reference) {
            match self.pull_with(reference, auth, options).await {
                Err(error) if error.kind == PullErrorKind::Unauthorized => refused = Some(error),
                other => return other,
            }
        }
        Err(refused.unwrap_or_else(|| PullError::new(PullErrorKind::Unauthorized, reference, "no login fits")))
    }

    async fn pull_with(
        &self,
        reference: &Reference,
        auth: oci_client::secrets::RegistryAuth,
        options: &PullOptions,
    ) -> PullResult {
        let registry = Arc::new(Registry::connect(reference, auth, options).await?);
        let fetched = fetch_manifest(&registry, reference).await?;
        let what = format!("image {reference}");
        let store = |error: Error| PullError::of_store(&error);
        let config = registry.document(&fetched.manifest.config).await?;
        let document = ConfigDocument::parse(&config, &what).map_err(store)?;
        let diffs = document.rootfs.diff_ids;
        check_layer_count(&diffs, fetched.manifest.layers.len(), &what).map_err(store)?;

        let images = self.clone();
        let adding = blocking(move || images.adding()).await?;
        self.fetch_layers(&registry, fetched.manifest.layers, diffs, options.progress.clone()).await?;

        let digests = fetched.digests.into_iter().map(|digest| reference.at(digest).key());
        let tags = reference.digest().is_none().then(|| reference.key());
        let names = Names { tags: tags.into_iter().collect(), repo_digests: digests.collect() };
        let images = self.clone();
        blocking(move || {
            let _adding = adding;
            images.commit(&names, &fetched.bytes, &config, false)
        })
        .await
    }

    /// Downloads what is missing, and unpacks it in order.
    async fn fetch_layers(
        &self,
        registry: &Arc<Registry>,
        layers: Vec<Descriptor>,
        diffs: Vec<Digest>,
        progress: Option<ProgressFn>,
    ) -> Result<(), PullError> {
        let report: ProgressFn = progress.unwrap_or_else(|| Arc::new(|_| {}));
        let chain = chain_ids(&diffs);
        let here: Vec<bool> = chain.iter().map(|chain| self.layer(chain).is_some()).collect();
        let summary = layers.iter().zip(&here).map(|(layer, here)| (layer.digest.clone(), layer.size, *here));
        report(Progress::Resolved { layers: summary.collect() });

        let permits = Arc::new(Semaphore::new(DOWNLOADS_AT_ONCE));
        let mut downloads: JoinSet<(usize, Arrival)> = JoinSet::new();
        for (index, descriptor) in layers.iter().enumerate().filter(|(index, _)| !here[*index]) {
            let (registry, permits, report) = (registry.clone(), permits.clone(), report.clone());
            let (descriptor, ingest) = (descriptor.clone(), self.ingest_dir());
            downloads.spawn(async move {
                let _permit = permits.acquire().await;
                let report = move |bytes| report(Progress::Downloaded { layer: index, bytes });
                let download =
                    Download { registry: &registry, descriptor: &descriptor, ingest: &ingest, report: &report };
                (index, download.run().await)
            });
        }
        let mut arrived: BTreeMap<usize, (File, PathBuf)> = BTreeMap::new();
        let mut order = (0..layers.len()).filter(|index| !here[*index]);
        let mut next = order.next();
        while let Some(index) = next {
            let Some((file, path)) = arrived.remove(&index) else {
                match downloads.join_next().await {
                    Some(Ok((arrival, file))) => drop(arrived.insert(arrival, file?)),
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    None => unreachable!("every layer that is missing has its download"),
                }
                continue;
            };
            report(Progress::Unpacking { layer: index });
            let (images, parents, diff) = (self.clone(), chain[..index].to_vec(), diffs[index].clone());
            let what = layers[index].digest.to_string();
            blocking(move || {
                // Whatever is wrong with it: it is not of use any more.
                let result = images.add_layer(&file, &parents, Some(&diff), &what);
                let _ = fs::remove_file(&path);
                result
            })
            .await?;
            report(Progress::Ready { layer: index });
            next = order.next();
        }
        Ok(())
    }
}

/// A manifest for this machine.
struct Fetched {
    manifest: Manifest,
    bytes: Vec<u8>,
    /// The manifest's own digest, and that of the index through which it was found.
    digests: Vec<Digest>,
}

async fn fetch_manifest(registry: &Registry, reference: &Reference) -> Result<Fetched, PullError> {
    let what = format!("image {reference}");
    let mut digests = Vec::new();
    let mut wanted = reference.clone();
    // An index may point at an index; deeper than this nobody nests.
    for _ in 0..4 {
        let (bytes, digest) = registry.manifest(&wanted).await?;
        digests.push(digest);
        match Document::parse(&bytes, &what).map_err(|error| PullError::of_store(&error))? {
            Document::Manifest(manifest) => return Ok(Fetched { manifest: *manifest, bytes, digests }),
            Document::Index(manifests) => match select_platform(&manifests) {
                Some(chosen) => wanted = reference.at(chosen.digest.clone()),
                None => {
                    let message = format!(
                        "it is made for {}, not for this machine (linux/{})",
                        platforms(&manifests),
                        crate::config::architecture()
                    );
                    return Err(PullError::new(PullErrorKind::Invalid, reference, &message));
                }
            },
        }
    }
    Err(PullError::new(PullErrorKind::Invalid, reference, "its index is nested too deeply"))
}

/// Runs disk work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| PullError::of_store(&error)),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
