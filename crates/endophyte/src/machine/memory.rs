//! A guest's RAM: a file that QEMU and we both map.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use mycelium_linux::shared::SharedMapping;
use rustix::fs::{MemfdFlags, memfd_create};

use super::error::{MachineError, Result};

/// The size of a page.
pub const PAGE: usize = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// A guest's RAM, shared with its QEMU. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    mapping: SharedMapping,
    huge: bool,
}

impl GuestMemory {
    /// A new, empty memory in the file system of `path`. The file's name is gone again when this returns, so that nothing is left
    /// behind however the process ends; QEMU opens it through this process.
    pub fn create(path: &Path, bytes: u64) -> Result<GuestMemory> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE as u64) {
            return Err(MachineError::Config {
                field: "memory",
                reason: format!("{bytes} bytes are not a whole number of pages"),
            });
        }
        let _ = std::fs::remove_file(path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(MachineError::file("creating the guest's memory", path))?;
        std::fs::remove_file(path).map_err(MachineError::file("unlinking the guest's memory", path))?;
        file.set_len(bytes).map_err(MachineError::file("sizing the guest's memory", path))?;
        GuestMemory::map(file, path, false)
    }

    /// A new, empty memory in huge pages of 2 MiB, which the kernel must have set aside (hugetlbpage.rst of the kernel's
    /// documentation).
    pub fn huge(name: &str, bytes: u64) -> Result<GuestMemory> {
        let path = Path::new("/proc/sys/vm/nr_hugepages");
        let failed = |source: rustix::io::Errno| MachineError::file("taking huge pages of", path)(source.into());
        if bytes == 0 || !bytes.is_multiple_of(HUGE_PAGE) {
            return Err(MachineError::Config {
                field: "memory",
                reason: format!("{bytes} bytes are not a whole number of huge pages of 2 MiB"),
            });
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = File::from(memfd_create(format!("mycelium-{name}"), flags).map_err(failed)?);
        file.set_len(bytes).map_err(MachineError::file("sizing the guest's memory in", path))?;
        GuestMemory::map(file, path, true)
    }

    /// The memory in an existing file, with its contents.
    pub fn open(path: &Path) -> Result<GuestMemory> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        GuestMemory::map(file.map_err(MachineError::file("opening the guest's memory", path))?, path, false)
    }

    fn map(file: File, path: &Path, huge: bool) -> Result<GuestMemory> {
        let length = file.metadata().map_err(MachineError::file("looking at the guest's memory", path))?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mapping =
            SharedMapping::new(&file, length).map_err(MachineError::file("mapping the guest's memory", path))?;
        Ok(GuestMemory { inner: Arc::new(Inner { file, mapping, huge }) })
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.inner.mapping.len() as u64
    }

    /// Whether it is empty, which it never is.
    pub fn is_empty(&self) -> bool {
        self.inner.mapping.is_empty()
    }

    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        self.len() / PAGE as u64
    }

    /// Copies a page out.
    ///
    /// # Panics
    /// When there is no such page, or `target` is larger than a page's rest of memory.
    pub fn copy_page(&self, page: u64, target: &mut [u8; PAGE]) {
        self.copy_range(page * PAGE as u64, target);
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range is not within the memory.
    pub fn copy_range(&self, offset: u64, target: &mut [u8]) {
        self.inner.mapping.read(usize::try_from(offset).unwrap_or(usize::MAX), target);
    }

    /// Replaces a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn write_page(&self, page: u64, bytes: &[u8; PAGE]) {
        self.write_range(page * PAGE as u64, bytes);
    }

    /// Replaces bytes.
    ///
    /// # Panics
    /// When the range is not within the memory.
    pub fn write_range(&self, offset: u64, bytes: &[u8]) {
        self.inner.mapping.write(usize::try_from(offset).unwrap_or(usize::MAX), bytes);
    }

    /// Whether it is of huge pages.
    pub fn is_huge(&self) -> bool {
        self.inner.huge
    }

    pub(super) fn file(&self) -> &File {
        &self.inner.file
    }
}
