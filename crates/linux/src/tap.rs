//! Tap devices: an Ethernet port whose other end is a descriptor. Each read or write carries one frame.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The largest number of bytes in an interface's name.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// A tap device. It exists for as long as this does: closing it takes it off its bridge and removes it.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Creates a device in the network namespace of the calling thread. A `%d` in `name` stands for the first free
    /// number. Reads and writes do not block.
    pub fn create(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no interface name: 1 to {NAME_MAX} bytes without a slash"),
            ));
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        // IFF_TUN_EXCL: a name that is taken is an error, and not a second queue of somebody else's device.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an `ifreq` with a zero-terminated name and the flags set, which outlives
        // the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect::<Vec<u8>>();
        Ok(Self { file, name: String::from_utf8_lossy(&name).into_owned() })
    }

    /// The name it got.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bridge, netlink, netns};

    #[test]
    fn a_tap_joins_a_bridge_takes_its_mtu_and_goes_when_closed() {
        let Ok(namespace) = netns::create() else { return };
        netns::run_in(&namespace, || {
            let mut socket = netlink::Socket::open(netlink::Family::Route)?;
            bridge::create(&mut socket, "br0")?;
            let tap = Tap::create("vm%d")?;
            assert_eq!(tap.name(), "vm0");
            assert!(Tap::create("vm0").is_err());
            bridge::set_mtu(&mut socket, "br0", 1400)?;
            bridge::attach(&mut socket, "vm0", "br0")?;
            bridge::set_up(&mut socket, "vm0", true)?;
            let port = bridge::find(&mut socket, "vm0")?;
            assert_eq!((port.mtu, port.master), (1400, Some(bridge::find(&mut socket, "br0")?.index)));
            drop(tap);
            assert_eq!(bridge::find(&mut socket, "vm0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
            let error = bridge::attach(&mut socket, "lo", "lo").unwrap_err().to_string();
            assert!(error.contains("not a bridge"), "{error}");
            Ok(())
        })
        .unwrap();
    }
}
