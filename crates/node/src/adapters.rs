//! This workspace's image store and pod network, as the node uses them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PodSpec;
use mycelium_api::error::chain;
use mycelium_image::{Credentials, Image, Images, PrunePolicy, PullErrorKind, PullOptions};
use mycelium_net::Network;

use crate::image::{Collect, ImageConfig, ImageError, ImageSource, PodImage, PullSecret};
use crate::network::PodNetwork;

/// An image that was used less than this ago stays.
const IMAGE_AGE_MIN: Duration = Duration::from_secs(120);

/// The pod's own logins, then the machine's (`docker login` writes them to the home of root).
fn logins(secrets: &[PullSecret], home: &Path) -> Credentials {
    let mut credentials = Credentials::none();
    for secret in secrets {
        // A secret that is not understood is as good as none; the registry then says what it wants.
        let _ = match secret {
            PullSecret::Config(json) => credentials.add_docker_config(json),
            PullSecret::Cfg(json) => credentials.add_docker_cfg(json),
        };
    }
    if let Err(error) = credentials.add_home(home) {
        tracing::warn!(%error, home = %home.display(), "the machine's .docker/config.json is not used");
    }
    credentials
}

fn to_pod_image(images: &Images, reference: &str, image: &Image) -> Result<PodImage, ImageError> {
    let layers = images.lowerdirs(image).map_err(|e| ImageError::Store(chain(&e)))?;
    let named = mycelium_image::Reference::from_str_lenient(reference);
    let name = named.or_else(|| image.tags.first().cloned()).unwrap_or_else(|| image.name());
    let config = ImageConfig {
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        env: image.config.env.clone(),
        user: image.config.user.clone(),
        working_dir: image.config.working_dir.clone(),
        stop_signal: image.config.stop_signal.clone().unwrap_or_default(),
    };
    let id = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
    Ok(PodImage { id, name, config, layers, size: image.size, loaded_by_hand: image.loaded_by_hand })
}

/// Full names, where a short one was given.
trait Lenient {
    fn from_str_lenient(text: &str) -> Option<String>;
}

impl Lenient for mycelium_image::Reference {
    fn from_str_lenient(text: &str) -> Option<String> {
        text.parse::<Self>().ok().map(|reference| reference.to_string())
    }
}

impl ImageSource for Images {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<PodImage>, ImageError>> {
        Box::pin(async move {
            let invalid = |error: mycelium_image::Error| match error {
                mycelium_image::Error::Reference(e) => {
                    ImageError::InvalidName { reference: reference.to_owned(), reason: chain(&e) }
                }
                other => ImageError::Store(chain(&other)),
            };
            // A look into a small file and a few folders: not worth another thread.
            Images::resolve(self, reference).map_err(invalid)?.map(|i| to_pod_image(self, reference, &i)).transpose()
        })
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        secrets: &'a [PullSecret],
    ) -> BoxFuture<'a, Result<PodImage, ImageError>> {
        Box::pin(async move {
            let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
            let options = PullOptions { credentials: logins(secrets, Path::new(&home)), ..PullOptions::default() };
            let image = Images::pull(self, reference, options).await.map_err(|error| match error.kind {
                PullErrorKind::InvalidName => {
                    ImageError::InvalidName { reference: reference.to_owned(), reason: error.to_string() }
                }
                _ => ImageError::Pull { message: error.to_string(), local_may_serve: error.allows_local() },
            })?;
            to_pod_image(self, reference, &image)
        })
    }

    fn collect<'a>(&'a self, used: &'a [String], how: Collect) -> BoxFuture<'a, ()> {
        let (images, keep) = (self.clone(), used.iter().cloned().collect::<BTreeSet<_>>());
        Box::pin(async move {
            let (high_percent, low_percent) = match how {
                Collect::Percent { high, low } => (high, low),
                Collect::All => (0, 0),
            };
            let policy = PrunePolicy::DiskPressure { high_percent, low_percent, min_age: IMAGE_AGE_MIN };
            let pruned = tokio::task::spawn_blocking(move || images.prune(&keep, policy)).await;
            match pruned {
                Ok(Ok(pruned)) if !pruned.images.is_empty() => {
                    tracing::info!(images = pruned.images.len(), bytes = pruned.bytes, "removed unused images");
                }
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "cannot remove unused images"),
                _ => {}
            }
        })
    }
}

impl PodNetwork for Network {
    fn attach<'a>(&'a self, uid: &'a str, namespace: &'a Path) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let namespace = File::open(namespace).map(OwnedFd::from).map_err(|e| e.to_string())?;
            let pod = self.attach_pod(namespace, uid).await.map_err(|e| chain(&e))?;
            Ok(vec![pod.ip.to_string()])
        })
    }

    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.detach_pod(uid).await.map_err(|e| chain(&e)) })
    }

    fn namespace(&self) -> Option<Arc<OwnedFd>> {
        Network::namespace(self)
    }

    fn resolv_conf(&self, namespace: &str, spec: &PodSpec) -> String {
        let host_network = spec.host_network == Some(true);
        Network::resolv_conf(self, namespace, host_network, spec.dns_policy.as_deref(), spec.dns_config.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_brings_its_logins_and_the_machine_has_some() {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(home.path().join(".docker")).expect("a folder");
        let config = |user: &str| format!(r#"{{"auths": {{"r.test": {{"username": "{user}", "password": "p"}}}}}}"#);
        std::fs::write(home.path().join(".docker/config.json"), config("machine")).expect("writes");
        let own = [PullSecret::Config(config("pod").into_bytes())];
        let mut expected = Credentials::none();
        expected.add_docker_config(config("machine").as_bytes()).expect("well formed");
        assert_eq!(format!("{:?}", logins(&[], home.path())), format!("{expected:?}"));
        let both = format!("{:?}", logins(&own, home.path()));
        assert_eq!(both.matches("r.test").count(), 2, "{both}");
        std::fs::write(home.path().join(".docker/config.json"), "{").expect("writes");
        assert_eq!(format!("{:?}", logins(&own, home.path())).matches("r.test").count(), 1, "a bad file does no harm");
    }
}
