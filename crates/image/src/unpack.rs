//! One layer's tar, unpacked to a directory that overlayfs can stack.
//!
//! The tar is not trusted. Names with `..` are refused; absolute names are taken as relative to the layer, as every
//! runtime does. No component is ever followed when it is a symbolic link: each directory on the way is opened by
//! its parent's descriptor with `O_NOFOLLOW`. Sizes and counts are bounded, and so is the memory that headers take.
//!
//! Layers mark what they delete from those below with files named `.wh.*`; overlayfs marks the same with character
//! device 0/0 and with the attribute `trusted.overlay.opaque`. Setting these, owners and devices needs root.

mod attributes;
mod names;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;

use attributes::Attributes;
use names::{Name, Whiteout};

/// Headers, long names and extended attributes of one entry together stay below this.
const HEADER_BYTES_MAX: u64 = 4 << 20;

/// Bounds of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 256 << 30, entries: 10_000_000 }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar asks for something that is never done.
    #[error("entry {path:?} is refused: {reason}")]
    Refused {
        /// The entry's name.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The tar is larger than allowed.
    #[error("the layer has more than {limit} {unit}")]
    TooLarge {
        /// The bound.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A file could not be made.
    #[error("cannot write {path:?}")]
    Write {
        /// The entry's name.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The tar, or the compression around it, is damaged.
    #[error("the archive is damaged or cut short")]
    Read(#[from] io::Error),
}

type Result<T> = std::result::Result<T, UnpackError>;

/// A reader of the plain bytes of `content`, which may be gzip, zstd or not compressed.
pub fn decompress<'a>(content: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut content = BufReader::with_capacity(128 << 10, content);
    let mut head = Vec::with_capacity(4);
    Read::by_ref(&mut content).take(4).read_to_end(&mut head)?;
    let magic: [u8; 4] = head.get(..4).and_then(|b| b.try_into().ok()).unwrap_or_default();
    let whole = io::Cursor::new(head).chain(content);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Unpacks a tar into the empty directory `root`, which lies over `lowers` (topmost first).
/// Reads to the end of `tar`. Returns the bytes of all files.
pub fn unpack(tar: impl Read, root: &Path, lowers: &[PathBuf], limits: &Limits) -> Result<u64> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| UnpackError::Write { path: path.to_path_buf(), source: errno.into() })
    };
    let mut unpacker = Unpacker {
        root: open(root)?,
        lowers: lowers.iter().map(|path| open(path)).collect::<Result<_>>()?,
        limits: *limits,
        bytes: 0,
        entries: 0,
        directory_times: Vec::new(),
    };
    unpacker.inherit_root()?;

    let allowance = Rc::new(Cell::new(HEADER_BYTES_MAX));
    let mut archive = tar::Archive::new(Guard { inner: tar, allowance: allowance.clone() });
    let mut entries = archive.entries()?;
    loop {
        allowance.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry?;
        allowance.set(u64::MAX);
        unpacker.entry(&mut entry)?;
        io::copy(&mut entry, &mut io::sink())?;
    }
    allowance.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    unpacker.finish()
}

/// Bounds what the tar reader may take in between entries: names and attributes are kept in memory there.
struct Guard<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.allowance.get().checked_sub(read as u64) {
            Some(rest) => self.allowance.set(rest),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the header of an entry is too large")),
        }
        Ok(read)
    }
}

struct Unpacker {
    root: OwnedFd,
    lowers: Vec<OwnedFd>,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Making entries changes their directory's time: these are set at the end.
    directory_times: Vec<(Name, i64)>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::TooLarge { limit: self.limits.entries, unit: "entries" });
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let name = Name::parse(&entry.path_bytes())?;
        let attributes = Attributes::of(entry, &name)?;
        let Some((parents, last)) = name.split() else {
            return if kind.is_dir() {
                self.root_entry(&attributes)
            } else {
                Err(name.refused("it replaces the root"))
            };
        };
        if let Some(whiteout) = Whiteout::parse(&name, last)? {
            return self.whiteout(&name, parents, &whiteout);
        }
        let parent = self.directory(parents, &name)?;
        let existing = rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW).ok();
        if kind.is_dir() {
            return self.make_directory(&parent, last, existing, &attributes, &name);
        }
        if let Some(existing) = existing {
            remove(&parent, last, FileType::from_raw_mode(existing.st_mode)).map_err(|e| name.failed(e))?;
        }
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                self.make_file(&parent, last, entry, &attributes, &name)
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| name.refused("the link has no target"))?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, last)
                    .and_then(|()| attributes.apply_to_link(&parent, last))
                    .map_err(|e| name.failed(e))
            }
            tar::EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| name.refused("the link has no target"))?;
                self.hard_link(&parent, last, &Name::parse(&target)?, &name)
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                self.make_node(&parent, last, entry.header(), &attributes, &name)
            }
            other => Err(name.refused(&format!("entries of type {:?} are unknown", other.as_byte() as char))),
        }
    }

    /// A layer without an entry for its root has that of the layer below.
    fn inherit_root(&mut self) -> Result<()> {
        let Some(lower) = self.lowers.first() else { return Ok(()) };
        let root = Name::root();
        let stat = rustix::fs::fstat(lower).map_err(|e| root.failed(e))?;
        Attributes::of_stat(&stat).apply(&self.root).map_err(|e| root.failed(e))
    }

    fn root_entry(&mut self, attributes: &Attributes) -> Result<()> {
        self.directory_times.push((Name::root(), attributes.time));
        attributes.apply(&self.root).map_err(|e| Name::root().failed(e))
    }

    /// Opens the directory `parts`, and makes what is missing of it with the attributes it has further down.
    fn directory(&self, parts: &[OsString], name: &Name) -> Result<OwnedFd> {
        let mut directory = self.root.try_clone().map_err(|e| name.failed(e))?;
        for (depth, part) in parts.iter().enumerate() {
            directory = match open_directory(&directory, part) {
                Err(Errno::NOENT) => {
                    let made = make_and_open(&directory, part).map_err(|e| name.failed(e))?;
                    if let Some((lower, last)) = self.find_lower(&parts[..=depth])
                        && let Ok(stat) = rustix::fs::statat(&lower, last, AtFlags::SYMLINK_NOFOLLOW)
                        && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    {
                        Attributes::of_stat(&stat).apply(&made).map_err(|e| name.failed(e))?;
                    }
                    Ok(made)
                }
                other => other,
            }
            .map_err(|errno| match errno {
                Errno::LOOP | Errno::NOTDIR => name.refused("its path leads through something that is not a directory"),
                other => name.failed(other),
            })?;
        }
        Ok(directory)
    }

    /// The directory, in the topmost layer below that has it, which holds the last of `parts`.
    fn find_lower<'n>(&self, parts: &'n [OsString]) -> Option<(OwnedFd, &'n OsStr)> {
        let (last, parents) = parts.split_last()?;
        self.lowers.iter().find_map(|lower| {
            let start = lower.try_clone().ok()?;
            let parent = parents.iter().try_fold(start, |at, part| open_directory(&at, part)).ok()?;
            rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((parent, last.as_os_str()))
        })
    }

    fn make_directory(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        existing: Option<rustix::fs::Stat>,
        attributes: &Attributes,
        name: &Name,
    ) -> Result<()> {
        let kind = existing.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode));
        let mut opaque = false;
        let directory = match kind {
            Some(FileType::Directory) => open_directory(parent, last),
            Some(kind) => {
                // A whiteout and a directory of the same name: what lies below is gone, the new one is in its place.
                opaque = kind == FileType::CharacterDevice;
                remove(parent, last, kind).map_err(|e| name.failed(e))?;
                make_and_open(parent, last)
            }
            None => make_and_open(parent, last),
        }
        .map_err(|e| name.failed(e))?;
        attributes.apply(&directory).map_err(|e| name.failed(e))?;
        if opaque {
            attributes::set_opaque(&directory).map_err(|e| name.failed(e))?;
        }
        self.directory_times.push((name.clone(), attributes.time));
        Ok(())
    }

    fn make_file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        entry: &mut tar::Entry<'_, R>,
        attributes: &Attributes,
        name: &Name,
    ) -> Result<()> {
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes, unit: "bytes" });
        }
        let mut file = create_file(parent, last).map_err(|e| name.failed(e))?;
        copy_entry(entry, &mut file, size, name)?;
        attributes.apply(&file).and_then(|()| attributes.apply_time(&file)).map_err(|e| name.failed(e))
    }

    fn make_node(
        &mut self,
        parent: &OwnedFd,
        last: &OsStr,
        header: &tar::Header,
        attributes: &Attributes,
        name: &Name,
    ) -> Result<()> {
        let kind = match header.entry_type() {
            tar::EntryType::Char => FileType::CharacterDevice,
            tar::EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
        let (major, minor) = (number(header.device_major()), number(header.device_minor()));
        if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
            return Err(name.refused("character device 0/0 stands for a deleted file"));
        }
        let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(major, minor) };
        rustix::fs::mknodat(parent, last, kind, Mode::from_raw_mode(0o600), device)
            .and_then(|()| attributes.apply_to_node(parent, last))
            .map_err(|e| name.failed(e))
    }

    /// A hard link within the layer, or to a file further down, which is copied up as overlayfs would.
    fn hard_link(&mut self, parent: &OwnedFd, last: &OsStr, target: &Name, name: &Name) -> Result<()> {
        let (parts, target_last) = target.split().ok_or_else(|| name.refused("it links to the root"))?;
        let start = self.root.try_clone().map_err(|e| name.failed(e))?;
        let here = parts.iter().try_fold(start, |at, part| open_directory(&at, part));
        let linked =
            here.and_then(|directory| rustix::fs::linkat(&directory, target_last, parent, last, AtFlags::empty()));
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => self.copy_up(parent, last, target, name),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::PERM) => {
                Err(name.refused(&format!("it links to {:?}, which is not a file of the layer", target.path())))
            }
            Err(errno) => Err(name.failed(errno)),
        }
    }

    fn copy_up(&mut self, parent: &OwnedFd, last: &OsStr, target: &Name, name: &Name) -> Result<()> {
        let missing = || name.refused(&format!("it links to {:?}, which does not exist", target.path()));
        let (directory, target_last) = self.find_lower(target.parts()).ok_or_else(missing)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut source =
            File::from(rustix::fs::openat(&directory, target_last, flags, Mode::empty()).map_err(|_| missing())?);
        let stat = rustix::fs::fstat(&source).map_err(|e| name.failed(e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        self.bytes = self.bytes.saturating_add(stat.st_size as u64);
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes, unit: "bytes" });
        }
        let mut file = create_file(parent, last).map_err(|e| name.failed(e))?;
        io::copy(&mut source, &mut file).map_err(|e| name.failed(e))?;
        let attributes = Attributes::of_stat(&stat);
        attributes.apply(&file).and_then(|()| attributes.apply_time(&file)).map_err(|e| name.failed(e))
    }

    /// Marks what the layer deletes from those below; without any below there is nothing to mark.
    fn whiteout(&mut self, name: &Name, parents: &[OsString], whiteout: &Whiteout<'_>) -> Result<()> {
        if self.lowers.is_empty() {
            return Ok(());
        }
        let target = match whiteout {
            Whiteout::Metadata => return Ok(()),
            Whiteout::Opaque => {
                let directory = self.directory(parents, name)?;
                return attributes::set_opaque(&directory).map_err(|e| name.failed(e));
            }
            Whiteout::File(target) => *target,
        };
        let parent = self.directory(parents, name)?;
        match rustix::fs::statat(&parent, target, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                open_directory(&parent, target).and_then(|directory| attributes::set_opaque(&directory))
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(&parent, target, FileType::CharacterDevice, Mode::from_raw_mode(0), 0)
            }
            Err(errno) => Err(errno),
        }
        .map_err(|e| name.failed(e))
    }

    fn finish(self) -> Result<u64> {
        for (name, time) in self.directory_times.iter().rev() {
            let start = self.root.try_clone().map_err(|e| name.failed(e))?;
            // The directory may since have been replaced by a later entry.
            if let Ok(directory) = name.parts().iter().try_fold(start, |at, part| open_directory(&at, part)) {
                let _ = attributes::set_time(&directory, *time);
            }
        }
        Ok(self.bytes)
    }
}

/// Copies an entry's data; an error of the archive is told from one of the disk.
fn copy_entry(entry: &mut impl Read, file: &mut File, size: u64, name: &Name) -> Result<()> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).clamp(1, 128 << 10)];
    loop {
        let read = match entry.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        io::Write::write_all(file, &buffer[..read]).map_err(|e| name.failed(e))?;
    }
}

fn open_directory(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn make_and_open(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
    let directory = open_directory(at, name)?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755 as RawMode))?;
    Ok(directory)
}

fn create_file(at: impl AsFd, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn remove(at: &OwnedFd, name: &OsStr, kind: FileType) -> io::Result<()> {
    if kind == FileType::Directory {
        // Through the descriptor, so that no name on the way is looked up again; symbolic links inside are not followed.
        return std::fs::remove_dir_all(Path::new("/proc/self/fd").join(at.as_raw_fd().to_string()).join(name));
    }
    Ok(rustix::fs::unlinkat(at, name, AtFlags::empty())?)
}
