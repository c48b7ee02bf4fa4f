//! OCI layouts written by hand, and a registry to push them to.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use mycelium_image::digest::Digest;
use mycelium_linux::process::command;

use super::{gzip, sh};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A folder in OCI layout.
pub struct Layout {
    pub folder: tempfile::TempDir,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { folder, manifests: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::of(bytes);
        fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// An image of gzipped layers for a platform; gives its descriptor.
    pub fn image(&self, layers: &[Vec<u8>], architecture: &str) -> serde_json::Value {
        let diffs: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Entrypoint": ["/run"], "Env": ["A=b"], "User": "7:8", "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> =
            layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer))).collect();
        let manifest =
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// An index of images; gives its descriptor.
    pub fn index(&self, images: &[serde_json::Value]) -> serde_json::Value {
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": images});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    /// Names an image or index.
    pub fn tag(&mut self, mut descriptor: serde_json::Value, name: &str) {
        descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }
}

/// Debian's docker-registry on a port of its own; ends with the value.
pub struct Registry {
    pub address: SocketAddr,
    pub folder: tempfile::TempDir,
    process: Child,
    /// Files its settings point at.
    extra: Option<tempfile::TempDir>,
}

/// The login of a registry that wants one; the hash is bcrypt of the password.
pub const USER: &str = "user";
pub const PASSWORD: &str = "correct horse";
const HTPASSWD: &str = "user:$2b$05$NF/F/GpjpvEaBil4H0WF.uQwB0kS5gnu87B.aLTF9pijWTZZj6OVO\n";

impl Registry {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(settings) {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    /// One that wants a login.
    pub fn with_login() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        let registry = Self::start(&[
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
            ("REGISTRY_AUTH_HTPASSWD_PATH", file.to_str().unwrap()),
        ]);
        registry.with(folder)
    }

    /// One that speaks TLS with a certificate of its own authority; gives that authority's certificate.
    pub fn with_tls() -> (Self, String) {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap().pem();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let (certificate_file, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        fs::write(&certificate_file, server.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        let registry = Self::start(&[
            ("REGISTRY_HTTP_TLS_CERTIFICATE", certificate_file.to_str().unwrap()),
            ("REGISTRY_HTTP_TLS_KEY", key_file.to_str().unwrap()),
        ]);
        (registry.with(folder), root)
    }

    /// The port is free when it is asked for; somebody else may take it before the registry does.
    fn try_start(settings: &[(&str, &str)]) -> Option<Self> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        fs::write(&config, "version: 0.1\nlog: {level: error}\nhttp: {headers: {}}\n").unwrap();
        let mut process = command("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", folder.path().join("data"))
            .env("REGISTRY_HTTP_ADDR", address.to_string())
            .env("OTEL_TRACES_EXPORTER", "none")
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while process.try_wait().unwrap().is_none() {
            if TcpStream::connect(address).is_ok() {
                return Some(Self { address, folder, process, extra: None });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Pushes `reference` of an OCI layout as `name`; `options` go to skopeo.
    pub fn push(&self, layout: &Layout, tag: &str, name: &str, options: &str) {
        sh(&format!(
            "skopeo --insecure-policy --tmpdir {tmp} copy -q --dest-tls-verify=false {options} oci:{}:{tag} docker://{}/{name}",
            layout.path().display(),
            self.address,
            tmp = self.folder.path().display(),
        ));
    }

    fn with(mut self, folder: tempfile::TempDir) -> Self {
        self.extra = Some(folder);
        self
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.folder.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
