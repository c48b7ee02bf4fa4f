//! Tars made by hand, and commands of the system.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod layout;

use std::io::Write;

/// Builds a tar entry by entry, also such as no honest tool would make.
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// An empty tar.
    pub fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header
    }

    /// The name goes in as it is: the tar library would refuse `..`.
    fn entry(mut self, mut header: tar::Header, name: &str, data: &[u8]) -> Self {
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, mode: u32, owner: u64, data: &[u8]) -> Self {
        let header = Self::header(tar::EntryType::Regular, mode, owner, data.len() as u64);
        self.entry(header, name, data)
    }

    pub fn raw_file(self, name: &str, data: &[u8]) -> Self {
        self.file(name, 0o644, 0, data)
    }

    pub fn directory(self, name: &str, mode: u32, owner: u64) -> Self {
        self.entry(Self::header(tar::EntryType::Directory, mode, owner, 0), name, &[])
    }

    fn link(self, kind: tar::EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, 0, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.entry(header, name, &[])
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(tar::EntryType::Symlink, name, target)
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(tar::EntryType::Link, name, target)
    }

    pub fn node(self, name: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o666, 0, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.entry(header, name, &[])
    }

    /// A one-byte file with one PAX record.
    pub fn extended(self, name: &str, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        let header = Self::header(tar::EntryType::XHeader, 0o644, 0, record.len() as u64);
        self.entry(header, "pax", &record).raw_file(name, b"x")
    }

    /// A GNU long name of so many bytes.
    pub fn long_name(self, size: usize) -> Self {
        let header = Self::header(tar::EntryType::GNULongName, 0o644, 0, size as u64);
        self.entry(header, "././@LongLink", &vec![b'a'; size]).raw_file("a", b"")
    }

    pub fn build(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs a shell script and gives its output; fails the test if it fails.
pub fn sh(script: &str) -> String {
    let output = mycelium_linux::process::command("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
