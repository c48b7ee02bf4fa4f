//! The stored form of one change, with its checksum.
//!
//! A record sits in the table `log` under the key `revision (8 bytes, big endian) ++ key`, so that the table's order
//! is the order of events:
//!
//! ```text
//! 0     1         9          13
//! | kind | created | checksum | value ...
//! ```
//!
//! `created` and `checksum` are little endian; the checksum is a CRC-32 (IEEE) of the table key and everything else.

use crate::types::Revision;

/// Bytes before the value.
const HEADER: usize = 13;

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The key has this value from here on.
    Put = 1,
    /// The key is gone from here on; the value is empty.
    Delete = 2,
}

/// A decoded record. Borrows from the stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the change happened.
    pub revision: Revision,
    /// Which key changed.
    pub key: &'a str,
    /// How.
    pub kind: Kind,
    /// When the key came to be.
    pub create_revision: Revision,
    /// The new value.
    pub value: &'a [u8],
}

/// The key of the record in the table.
pub fn table_key(revision: Revision, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

/// Encodes a record as table key and table value.
pub fn encode(record: &Record<'_>) -> (Vec<u8>, Vec<u8>) {
    let table_key = table_key(record.revision, record.key);
    let mut out = Vec::with_capacity(HEADER + record.value.len());
    out.push(record.kind as u8);
    out.extend_from_slice(&record.create_revision.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(record.value);
    let sum = checksum(&table_key, &out);
    out[9..HEADER].copy_from_slice(&sum.to_le_bytes());
    (table_key, out)
}

/// Decodes a record and verifies its checksum; the error says what is wrong.
pub fn decode<'a>(table_key: &'a [u8], bytes: &'a [u8]) -> Result<Record<'a>, String> {
    let (revision, key) = table_key.split_first_chunk::<8>().ok_or("a record's key is too short")?;
    let revision = Revision::from_be_bytes(*revision);
    let key = std::str::from_utf8(key).map_err(|_| format!("a key of revision {revision} is not text"))?;
    if bytes.len() < HEADER {
        return Err(format!("the record of {key} at revision {revision} is cut off"));
    }
    if stored_checksum(bytes) != checksum(table_key, bytes) {
        return Err(format!("the record of {key} at revision {revision} fails its checksum"));
    }
    let kind = match bytes[0] {
        1 => Kind::Put,
        2 => Kind::Delete,
        other => return Err(format!("the record of {key} at revision {revision} has the unknown kind {other}")),
    };
    let mut created = [0; 8];
    created.copy_from_slice(&bytes[1..9]);
    let create_revision = Revision::from_le_bytes(created);
    if create_revision > revision {
        return Err(format!("the record of {key} at revision {revision} claims a later creation"));
    }
    Ok(Record { revision, key, kind, create_revision, value: &bytes[HEADER..] })
}

/// What a record adds to the store's digest, a sum over all records that shows a lost or surplus one.
pub fn digest(bytes: &[u8]) -> u64 {
    let seed = u64::from(stored_checksum(bytes)) << 32 | (bytes.len() as u64 & 0xffff_ffff);
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn stored_checksum(bytes: &[u8]) -> u32 {
    bytes.get(9..HEADER).map_or(0, |sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]))
}

fn checksum(table_key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(table_key);
    hasher.update(&bytes[..9]);
    hasher.update(&bytes[HEADER..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_decodes(revision in 1u64.., created in 0u64.., key in "[a-z/]{0,40}", value: Vec<u8>, del: bool) {
            let kind = if del { Kind::Delete } else { Kind::Put };
            let record = Record { revision, key: &key, kind, create_revision: created.min(revision), value: &value };
            let (table_key, bytes) = encode(&record);
            prop_assert_eq!(decode(&table_key, &bytes), Ok(record));
        }

        #[test]
        fn every_flipped_bit_is_noticed(value: Vec<u8>, at: prop::sample::Index, bit in 0..8u32) {
            let record = Record { revision: 7, key: "/a/b", kind: Kind::Put, create_revision: 3, value: &value };
            let (mut table_key, mut bytes) = encode(&record);
            let index = at.index(table_key.len() + bytes.len());
            match index.checked_sub(table_key.len()) {
                None => table_key[index] ^= 1 << bit,
                Some(index) => bytes[index] ^= 1 << bit,
            }
            prop_assert!(decode(&table_key, &bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(table_key: Vec<u8>, bytes: Vec<u8>) {
            let _ = decode(&table_key, &bytes);
        }
    }
}
