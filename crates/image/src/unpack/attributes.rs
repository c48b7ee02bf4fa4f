//! Owner, mode, time and extended attributes of an entry.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use super::UnpackError;
use super::names::Name;

/// The mark by which overlayfs hides all that lies below a directory.
const OPAQUE: &str = "trusted.overlay.opaque";
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// Names and values of extended attributes.
type Extended = Vec<(CString, Vec<u8>)>;

/// What a file has besides its content.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    mode: RawMode,
    user: Uid,
    group: Gid,
    /// Seconds since 1970.
    pub(super) time: i64,
    extended: Extended,
}

impl Attributes {
    /// The attributes of a tar entry.
    pub(super) fn of<R: Read>(entry: &mut tar::Entry<'_, R>, name: &Name) -> super::Result<Self> {
        let (extended, pax_time) = extended(entry)?;
        let header = entry.header();
        let id = |id: std::io::Result<u64>, what: &str| -> super::Result<u32> {
            let id = id?;
            match u32::try_from(id) {
                // The highest id means "unchanged" to the kernel.
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(name.refused(&format!("{what} {id} is out of range"))),
            }
        };
        Ok(Self {
            mode: header.mode()? as RawMode & 0o7777,
            user: Uid::from_raw(id(header.uid(), "user")?),
            group: Gid::from_raw(id(header.gid(), "group")?),
            time: pax_time.unwrap_or_else(|| header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0)),
            extended,
        })
    }

    /// The attributes of a file that is there, without extended ones.
    pub(super) fn of_stat(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            user: Uid::from_raw(stat.st_uid),
            group: Gid::from_raw(stat.st_gid),
            time: stat.st_mtime,
            extended: Vec::new(),
        }
    }

    /// Sets all but the time. The order matters: a change of owner clears set-user-id bits and capabilities.
    pub(super) fn apply(&self, file: impl AsFd) -> Result<()> {
        rustix::fs::fchown(&file, Some(self.user), Some(self.group))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.extended {
            match rustix::fs::fsetxattr(&file, name.as_c_str(), value, XattrFlags::empty()) {
                // The file system has none: the image still runs, as it does on other runtimes.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(super) fn apply_time(&self, file: impl AsFd) -> Result<()> {
        set_time(file, self.time)
    }

    /// Owner and time of a symbolic link itself.
    pub(super) fn apply_to_link(&self, at: impl AsFd, name: &OsStr) -> Result<()> {
        rustix::fs::chownat(&at, name, Some(self.user), Some(self.group), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(at, name, &times(self.time), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Owner, mode and time of a device or pipe, which must not be opened. It was just made here: no link is in its place.
    pub(super) fn apply_to_node(&self, at: impl AsFd, name: &OsStr) -> Result<()> {
        rustix::fs::chownat(&at, name, Some(self.user), Some(self.group), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(&at, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        rustix::fs::utimensat(at, name, &times(self.time), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// The extended attributes that are passed on, and the time if it is given with fractions.
///
/// `trusted.*` stays out: overlayfs takes instructions from there. Others belong to the host.
fn extended<R: Read>(entry: &mut tar::Entry<'_, R>) -> std::result::Result<(Extended, Option<i64>), UnpackError> {
    let mut found = Vec::new();
    let mut time = None;
    let Some(extensions) = entry.pax_extensions()? else { return Ok((found, time)) };
    for extension in extensions {
        let extension = extension?;
        let Ok(key) = extension.key() else { continue };
        if key == "mtime" {
            time = extension.value().ok().and_then(|text| text.split('.').next()?.parse().ok());
        }
        let Some(name) = key.strip_prefix(XATTR_PREFIX) else { continue };
        let passed = name == "security.capability"
            || name.starts_with("system.posix_acl_")
            || (name.starts_with("user.") && !name.starts_with("user.overlay."));
        if passed && let Ok(name) = CString::new(name) {
            found.push((name, extension.value_bytes().to_vec()));
        }
    }
    Ok((found, time))
}

/// Makes a directory hide all that lies below it.
pub(super) fn set_opaque(directory: impl AsFd) -> Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Sets the time of an open file or directory.
pub(super) fn set_time(file: impl AsFd, seconds: i64) -> Result<()> {
    rustix::fs::futimens(file, &times(seconds))
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
