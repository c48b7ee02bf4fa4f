//! Which pages of a shared mapping a process has written: userfaultfd in asynchronous write-protect mode, and `PAGEMAP_SCAN`.
//!
//! The kernel itself takes the fault, lifts the protection and goes on; nobody is woken. A scan returns the pages whose
//! protection is gone and protects them again, in one step. Both work on another process's memory: the descriptor comes
//! from there ([`crate::bound::spawn_with_userfault`]), everything else happens here. Linux 6.7 or newer.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The size of the pages that are counted.
pub const PAGE_BYTES: u64 = 4096;

const UFFD_API: u64 = 0xAA;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;

/// Ranges that one scan can return before it must be called again.
const REGIONS_PER_CALL: usize = 1024;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RegisterArgument {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ProtectArgument {
    start: u64,
    len: u64,
    mode: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The number of a read-write ioctl of `kind` whose argument is a `T`.
const fn read_write<T>(kind: u8, number: u8) -> libc::c_ulong {
    (3 << 30) | ((size_of::<T>() as libc::c_ulong) << 16) | ((kind as libc::c_ulong) << 8) | number as libc::c_ulong
}

/// A userfaultfd that tracks writes.
#[derive(Debug)]
pub struct Userfault {
    descriptor: OwnedFd,
}

impl Userfault {
    /// Asks for asynchronous write-protection. Fails with `Unsupported` on a kernel older than 6.7.
    pub fn new(descriptor: OwnedFd) -> io::Result<Userfault> {
        Userfault::with(descriptor, FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC)
    }

    /// A kernel refuses features that it does not know.
    fn with(descriptor: OwnedFd, features: u64) -> io::Result<Userfault> {
        let mut argument = ApiArgument { api: UFFD_API, features, ioctls: 0 };
        let request = read_write::<ApiArgument>(0xAA, 0x3F);
        call(descriptor.as_raw_fd(), request, &mut argument).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel cannot track writes without stopping the writer (userfaultfd WP_ASYNC): Linux 6.7 or newer is needed",
            ),
            _ => error,
        })?;
        Ok(Userfault { descriptor })
    }

    /// Write-protects `range` of the process that the descriptor comes from.
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        let mut argument =
            RegisterArgument { start: range.start, len: range.end - range.start, mode: REGISTER_MODE_WP, ioctls: 0 };
        call(self.descriptor.as_raw_fd(), read_write::<RegisterArgument>(0xAA, 0x00), &mut argument)
    }

    /// Lifts the protection of `range`: the next scan finds all of it written.
    pub fn forget(&self, range: &Range<u64>) -> io::Result<()> {
        let mut argument = ProtectArgument { start: range.start, len: range.end - range.start, mode: 0 };
        call(self.descriptor.as_raw_fd(), read_write::<ProtectArgument>(0xAA, 0x06), &mut argument)
    }
}

/// `ioctl` with a structure that the kernel reads and writes.
fn call<T>(descriptor: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the argument type whose size is encoded in `request`, so the kernel touches only `*argument`
    // (and, for a scan, the vector it names, which its caller keeps alive).
    let outcome = unsafe { libc::ioctl(descriptor, request, std::ptr::from_mut(argument)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Finds the written pages of one process.
#[derive(Debug)]
pub struct PageScanner {
    pagemap: File,
    regions: Vec<PageRegion>,
}

impl PageScanner {
    /// A scanner of process `pid`.
    pub fn new(pid: u32) -> io::Result<PageScanner> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(PageScanner { pagemap, regions: vec![PageRegion::default(); REGIONS_PER_CALL] })
    }

    /// Hands each written range within `range` to `found`, and protects it again. At most `max_pages` pages (0: all) are
    /// taken; the address at which the next scan must go on is returned, `range.end` when the whole range was seen.
    pub fn take_written(
        &mut self,
        range: Range<u64>,
        max_pages: u64,
        mut found: impl FnMut(Range<u64>),
    ) -> io::Result<u64> {
        let mut at = range.start;
        let mut left = max_pages;
        while at < range.end && (max_pages == 0 || left > 0) {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start: at,
                end: range.end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: left,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            let count = self.scan(&mut argument)?;
            for region in &self.regions[..count] {
                left = left.saturating_sub((region.end - region.start) / PAGE_BYTES);
                found(region.start..region.end);
            }
            if argument.walk_end <= at {
                return Err(io::Error::other("the kernel's page scan made no progress"));
            }
            at = argument.walk_end;
        }
        Ok(at)
    }

    fn scan(&mut self, argument: &mut ScanArgument) -> io::Result<usize> {
        let request = read_write::<ScanArgument>(b'f', 16);
        // SAFETY: the kernel writes at most `vec_len` regions to `vec`, which is `self.regions`, borrowed mutably and alive here.
        let outcome = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        match usize::try_from(outcome) {
            Ok(count) => Ok(count),
            Err(_) => Err(no_scan(io::Error::last_os_error())),
        }
    }
}

/// What a refused scan means.
fn no_scan(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOTTY) => {
            io::Error::new(io::ErrorKind::Unsupported, "this kernel has no PAGEMAP_SCAN: Linux 6.7 or newer is needed")
        }
        _ => error,
    }
}

/// Where process `pid` has mapped the file with this device and inode, from `/proc/PID/maps`; the whole file must be in one piece.
pub fn mapping_of(pid: u32, file: &File) -> io::Result<Range<u64>> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = file.metadata()?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    find_mapping(&maps, metadata.dev(), metadata.ino(), metadata.len())
        .ok_or_else(|| io::Error::other(format!("process {pid} has not mapped the memory file")))
}

fn find_mapping(maps: &str, device: u64, inode: u64, length: u64) -> Option<Range<u64>> {
    let name = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut found: Option<Range<u64>> = None;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(_), Some(offset), Some(device), Some(node)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if device != name || node.parse() != Ok(inode) {
            continue;
        }
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let offset = u64::from_str_radix(offset, 16).ok()?;
        match &mut found {
            None if offset == 0 => found = Some(start..end),
            Some(range) if range.end == start && offset == range.end - range.start => range.end = end,
            _ => {}
        }
        if found.as_ref().is_some_and(|range| range.end - range.start >= length) {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To a kernel before 6.7 what we ask for is a feature that it has never heard of; so is the highest bit to every kernel.
    #[test]
    fn an_old_kernel_is_named_with_the_one_that_is_needed() {
        let mut command = crate::process::command("/bin/true");
        command.stdin(std::process::Stdio::null());
        let (mut child, descriptor) = crate::bound::spawn_with_userfault(command, Vec::new()).unwrap();
        let error = Userfault::with(descriptor, FEATURE_WP_ASYNC | 1 << 63).unwrap_err();
        child.wait().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("Linux 6.7 or newer is needed"), "{error}");

        // An ioctl that a pagemap does not know.
        let mut file = PageScanner::new(std::process::id()).unwrap();
        file.pagemap = File::open("/dev/null").unwrap();
        let error = file.take_written(0..PAGE_BYTES, 0, |_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("Linux 6.7 or newer is needed"), "{error}");
    }

    #[test]
    fn a_mapping_in_pieces_is_put_together() {
        let maps = "7f00000-7f10000 rw-s 00000000 00:1a 77 /dev/shm/x\n\
                    7f10000-7f20000 rw-s 00010000 00:1a 77 /dev/shm/x\n\
                    7f20000-7f30000 rw-p 00000000 00:00 0\n";
        let device = rustix::fs::makedev(0, 0x1a);
        assert_eq!(find_mapping(maps, device, 77, 0x20000), Some(0x7f00000..0x7f20000));
        assert_eq!(find_mapping(maps, device, 78, 0x20000), None);
        assert_eq!(find_mapping(maps, device, 77, 0x30000), None);
    }
}
