//! Keeps certificates, and the kubeconfig that holds one, from running out while the engine runs; signs those asked for.

use std::path::PathBuf;

use mycelium_apiserver::pki::{Pki, PkiError, request};
use mycelium_controllers::certificates::Signer;

/// The authority, for the controller of CertificateSigningRequests.
pub fn signer(pki: Pki) -> Signer {
    Signer::new(move |spec| {
        let usages = spec.usages.as_deref().unwrap_or_default();
        let seconds = spec.expiration_seconds.map(i64::from);
        let asked = request::Request { signer: &spec.signer_name, pem: &spec.request.0, usages, seconds };
        request::is_served(asked.signer).then(|| pki.answer(&asked).map_err(|error| error.to_string()))
    })
}

/// The administrator's kubeconfig of one engine.
pub struct AdminConfig {
    pki: Pki,
    path: PathBuf,
    server: String,
}

impl AdminConfig {
    /// Writes the kubeconfig at `path` for clients of `server`.
    pub fn write(pki: Pki, path: PathBuf, server: String) -> Result<Self, PkiError> {
        pki.write_kubeconfig(&path, &server)?;
        Ok(Self { pki, path, server })
    }

    /// Renews certificates when that is due, and writes the kubeconfig again when its own was among them. Runs until
    /// it is dropped.
    pub async fn keep(self) {
        let mut written = self.pki.admin().cert;
        loop {
            tokio::time::sleep(self.pki.renew()).await;
            let current = self.pki.admin().cert;
            if current == written {
                continue;
            }
            match self.pki.write_kubeconfig(&self.path, &self.server) {
                Ok(()) => {
                    tracing::info!(path = %self.path.display(), "the administrator's certificate was renewed");
                    written = current;
                }
                Err(error) => tracing::warn!(%error, "the kubeconfig still holds the certificate from before"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mycelium_api::env::Env;
    use tokio::time::Instant;

    use super::*;

    /// A wall clock that goes with the runtime's.
    fn virtual_env() -> Env {
        let (begun, epoch) = (Instant::now(), "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time"));
        let real = super::super::sources::real();
        let now = move || epoch + jiff::SignedDuration::try_from(begun.elapsed()).expect("in range");
        Env::new(now, move || real.random())
    }

    #[tokio::test(start_paused = true)]
    async fn the_kubeconfig_gets_the_renewed_certificate_within_an_hour() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("admin.kubeconfig");
        let pki = Pki::load_or_create(&dir.path().join("pki"), virtual_env(), &[]).expect("keys");
        let config = AdminConfig::write(pki.clone(), path.clone(), "https://127.0.0.1:1".into()).expect("writes");
        let read = || std::fs::read_to_string(&path).expect("a kubeconfig");
        let (first, kept) = (read(), tokio::spawn(config.keep()));
        let day = Duration::from_secs(24 * 60 * 60);
        tokio::time::sleep(242 * day).await;
        assert_eq!(read(), first);
        tokio::time::sleep(2 * day).await;
        assert_ne!(read(), first);
        assert_eq!(read(), pki.kubeconfig("https://127.0.0.1:1"));
        kept.abort();
    }
}
