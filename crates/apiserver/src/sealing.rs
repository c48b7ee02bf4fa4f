//! Secrets at rest: sealed with AES-256-GCM under a key that lies beside the state file, readable by its owner only.
//!
//! A sealed value is `sealed1:`, a nonce of twelve random bytes, and the encrypted text with its tag; the object's key
//! is authenticated along. Values from before there was a key are read as they are and sealed when next written.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mycelium_store::Seal;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

const MARK: &[u8] = b"sealed1:";
const KEY_BYTES: usize = 32;
/// The kinds of objects that are sealed.
const SEALED: &str = "/registry/core/secrets/";

/// Seals Secrets.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or made.
    #[error("cannot access the key of Secrets at {path}")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{0} holds no key: it must be {KEY_BYTES} bytes")]
    Malformed(String),
}

impl Sealer {
    /// The key in a file, which is made if it is missing.
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        let io = |source| SealError::Io { path: path.display().to_string(), source };
        let malformed = || SealError::Malformed(path.display().to_string());
        let random = SystemRandom::new();
        let mut bytes = Vec::new();
        match OpenOptions::new().read(true).open(path) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes).map_err(io)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bytes = vec![0; KEY_BYTES];
                random.fill(&mut bytes).map_err(|_| malformed())?;
                let mut draft = path.as_os_str().to_owned();
                draft.push(".new");
                let mut file =
                    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(io)?;
                file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io)?;
                std::fs::rename(&draft, path).map_err(io)?;
            }
            Err(error) => return Err(io(error)),
        }
        Self::new(&bytes, random).ok_or_else(malformed)
    }

    fn new(bytes: &[u8], random: SystemRandom) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
        Some(Self { key, random })
    }
}

impl Seal for Sealer {
    fn seal(&self, key: &str, value: &[u8]) -> Option<Vec<u8>> {
        if !key.starts_with(SEALED) {
            return None;
        }
        let mut nonce = [0; NONCE_LEN];
        let mut text = value.to_vec();
        let sealed = self.random.fill(&mut nonce).and_then(|()| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.key.seal_in_place_append_tag(nonce, Aad::from(key.as_bytes()), &mut text)
        });
        // Neither can fail for values of a size that a request can have.
        sealed.ok()?;
        Some([MARK, &nonce, &text].concat())
    }

    fn open(&self, key: &str, stored: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let Some(rest) = stored.strip_prefix(MARK) else { return Ok(None) };
        let fault = || format!("{key} cannot be decrypted: the key file is another's, or the value was altered");
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(fault)?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(key.as_bytes()), &mut text);
        opened.map(|value| Some(value.to_vec())).map_err(|_| fault())
    }
}
