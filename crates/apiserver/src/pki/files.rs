//! Keys and certificates on disk.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::KeyPair;

use super::{CertKey, PkiError};

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// The key in a file, which is made if it is missing.
pub fn load_key(path: &Path) -> Result<KeyPair, PkiError> {
    if let Some(pem) = read_optional(path)? {
        return KeyPair::from_pem(&pem).map_err(|_| PkiError::Malformed { what: path.display().to_string() });
    }
    let key = KeyPair::generate()?;
    write_private(path, &key.serialize_pem())?;
    Ok(key)
}

/// The certificate and key called `name`, if both are there.
pub fn read_pair(dir: &Path, name: &str) -> Result<Option<CertKey>, PkiError> {
    let part = |extension| read_optional(&dir.join(name).with_extension(extension));
    Ok(part("crt")?.zip(part("key")?).map(|(cert, key)| CertKey { cert, key }))
}

/// Replaces the certificate and key called `name`. A crash in between leaves a pair that does not match, which the
/// next start replaces.
pub fn write_pair(dir: &Path, name: &str, pair: &CertKey) -> Result<(), PkiError> {
    write_private(&dir.join(name).with_extension("key"), &pair.key)?;
    write_public(&dir.join(name).with_extension("crt"), &pair.cert)
}

/// What a file holds, if there is one.
pub fn read_optional(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io { path: path.to_owned(), source }),
    }
}

/// Replaces a file that anyone may read.
pub fn write_public(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, PUBLIC)
}

/// Replaces a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, PRIVATE)
}

/// Replaces a file in one step: a crash leaves the old or the new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| PkiError::Io { path: path.to_owned(), source })
}
