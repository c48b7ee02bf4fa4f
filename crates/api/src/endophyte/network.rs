//! How a virtual machine is attached to a network: the text forms of its Ethernet address and of its port.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Why a text is not the Ethernet address of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be six pairs of hexadecimal digits with colons between, and not a group address: 52:54:00:12:34:56")]
pub struct MacError;

impl Mac {
    /// An address for the virtual machine of this name, the same on every host: in the range that QEMU's users have
    /// for themselves, with bits of the name's hash behind it.
    pub fn for_name(name: &str) -> Self {
        // FNV-1a.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [a, b, c, ..] = (hash ^ hash >> 32).to_le_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }

    /// Whether it stands for a group of receivers.
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(MacError)?;
        }
        let mac = Self(bytes);
        if parts.next().is_some() || mac.is_group() || bytes == [0; 6] { Err(MacError) } else { Ok(mac) }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the virtual machine's network card is connected to.
///
/// | text | meaning |
/// |---|---|
/// | `none` | nothing: what the guest sends is dropped |
/// | `tap` | a tap device of its own, switched on, on no bridge: route to it as you like |
/// | `tap:br0` | a tap device on the bridge `br0` |
/// | `tap:br0,name=vm0`, `tap,name=vm0` | the same, with a name of your choice for the device |
///
/// Without a name the kernel numbers the devices: `myvm0`, `myvm1` ...
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing.
    #[default]
    None,
    /// A tap device.
    Tap {
        /// The bridge it is a port of.
        bridge: Option<String>,
        /// Its name.
        name: Option<String>,
    },
}

/// Why a text names no attachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// Not one of the forms.
    #[error("must be \"none\", \"tap\" or \"tap:BRIDGE\", the last two perhaps followed by \",name=DEVICE\"")]
    Form,
    /// A name the kernel does not take.
    #[error("{0:?} is no name of a network interface: 1 to 15 characters, without spaces, slashes and colons")]
    Interface(String),
}

fn interface(name: &str) -> Result<String, AttachmentError> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    if fits && name.bytes().all(|b| b.is_ascii_graphic() && !b"/:,".contains(&b)) {
        Ok(name.to_owned())
    } else {
        Err(AttachmentError::Interface(name.to_owned()))
    }
}

impl FromStr for Attachment {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, AttachmentError> {
        if text == "none" {
            return Ok(Self::None);
        }
        let (head, option) = text.split_once(',').map_or((text, None), |(head, option)| (head, Some(option)));
        let bridge = match head.strip_prefix("tap").ok_or(AttachmentError::Form)? {
            "" => None,
            rest => Some(interface(rest.strip_prefix(':').ok_or(AttachmentError::Form)?)?),
        };
        let name = match option {
            None => None,
            Some(option) => Some(interface(option.strip_prefix("name=").ok_or(AttachmentError::Form)?)?),
        };
        Ok(Self::Tap { bridge, name })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Tap { bridge, name } = self else { return f.write_str("none") };
        f.write_str("tap")?;
        if let Some(bridge) = bridge {
            write!(f, ":{bridge}")?;
        }
        if let Some(name) = name {
            write!(f, ",name={name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attachments_read_as_they_are_written() {
        for text in ["none", "tap", "tap:br0", "tap:br0,name=vm0", "tap,name=vm0"] {
            assert_eq!(text.parse::<Attachment>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "tap:", "tap0", "tap:br0,", "tap:br0,mac=1", "user", "tap:a b", "tap:0123456789abcdef"] {
            assert!(text.parse::<Attachment>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn addresses_read_as_they_are_written(bytes in any::<[u8; 6]>(), name in "[a-z]{1,20}") {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse::<Mac>().is_ok(), !mac.is_group() && bytes != [0; 6]);
            prop_assert_eq!(Mac::for_name(&name).to_string().parse(), Ok(Mac::for_name(&name)));
        }
    }
}
