//! Names of tar entries, made safe.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Result, UnpackError};

const NAME_BYTES_MAX: usize = 4096;

/// A path below the layer's root: no `.`, no `..`, not absolute.
#[derive(Clone, Debug)]
pub(super) struct Name(Vec<OsString>);

impl Name {
    /// The layer's root itself.
    pub(super) fn root() -> Self {
        Self(Vec::new())
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let refused = |reason: &str| {
            let path = OsStr::from_bytes(&bytes[..bytes.len().min(NAME_BYTES_MAX)]).into();
            Err(UnpackError::Refused { path, reason: reason.to_owned() })
        };
        if bytes.len() > NAME_BYTES_MAX {
            return refused("its name is longer than 4096 bytes");
        }
        if bytes.contains(&0) {
            return refused("its name contains a zero byte");
        }
        let mut parts = Vec::new();
        for part in bytes.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return refused("its name contains '..'"),
                _ => parts.push(OsStr::from_bytes(part).to_owned()),
            }
        }
        Ok(Self(parts))
    }

    pub(super) fn parts(&self) -> &[OsString] {
        &self.0
    }

    /// The directory's parts and the last name; none for the root.
    pub(super) fn split(&self) -> Option<(&[OsString], &OsStr)> {
        self.0.split_last().map(|(last, parents)| (parents, last.as_os_str()))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.iter().collect()
    }

    pub(super) fn refused(&self, reason: &str) -> UnpackError {
        UnpackError::Refused { path: self.path(), reason: reason.to_owned() }
    }

    pub(super) fn failed(&self, source: impl Into<io::Error>) -> UnpackError {
        UnpackError::Write { path: self.path(), source: source.into() }
    }
}

/// What a name that begins with `.wh.` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'n> {
    /// The directory hides all that is below it.
    Opaque,
    /// This name is deleted.
    File(&'n OsStr),
    /// Notes of aufs to itself.
    Metadata,
}

impl<'n> Whiteout<'n> {
    pub(super) fn parse(name: &Name, last: &'n OsStr) -> Result<Option<Self>> {
        let Some(target) = last.as_bytes().strip_prefix(b".wh.") else { return Ok(None) };
        Ok(Some(match target {
            b".wh..opq" => Self::Opaque,
            b"" | b"." | b".." => return Err(name.refused("it is a whiteout of no file")),
            _ if target.starts_with(b".wh.") => Self::Metadata,
            _ => Self::File(OsStr::from_bytes(target)),
        }))
    }
}
