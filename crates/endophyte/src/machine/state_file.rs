//! Where QEMU writes the state of devices: a file in memory, without a name.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use super::error::{MachineError, Result};

/// Larger state than this is not believed.
const LIMIT: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
}

impl StateFile {
    pub(super) fn new() -> Result<StateFile> {
        let descriptor = memfd_create("devices", MemfdFlags::CLOEXEC)
            .map_err(|error| MachineError::system("making a file for the devices' state")(error.into()))?;
        Ok(StateFile { file: descriptor.into() })
    }

    /// The arguments of the command that fills it. QEMU opens it anew through our process's folder in `/proc`. `live: false` keeps
    /// the block devices with this QEMU.
    pub(super) fn arguments(&self) -> Value {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        json!({ "filename": path, "live": false })
    }

    /// What was written.
    pub(super) fn take(&self) -> Result<Bytes> {
        let read = || {
            let length = self.file.metadata()?.len();
            if length == 0 || length > LIMIT {
                return Err(std::io::Error::other(format!("QEMU wrote {length} bytes")));
            }
            let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
            self.file.read_exact_at(&mut bytes, 0)?;
            Ok(Bytes::from(bytes))
        };
        read().map_err(MachineError::system("reading the devices' state"))
    }
}
