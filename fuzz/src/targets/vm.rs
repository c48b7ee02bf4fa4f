//! Targets of replicated virtual machines: what a peer sends, what a network card learns, what QEMU asks of a disk.

use super::Target;

/// A zero page, a difference and a page packed with lz4, all in the first shard.
const PAGES: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0, 0, 47, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 1, 1, 9, 0, 9, 1, 2, 3, 4, 4, 3, 2, 7, 7, 1, 26,
    31, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 246, 80, 7, 7, 7, 7, 7, 0,
    0, 0, 0, 0, 0, 0, 0,
];

const FRAME: &[u8] = b"MYEF\x01\0\0\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\
\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\00123456789abcdefv";

const ARP: &[u8] = b"\xff\xff\xff\xff\xff\xff\x52\x54\0\0\0\x01\x08\x06\0\x01\x08\0\x06\x04\0\x01\x52\x54\0\0\0\x01\
\x0a\0\0\x02\0\0\0\0\0\0\x0a\0\0\x01";

/// Client flags, GO with block sizes, then a write's header.
const NBD: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\0\0\x01\0\x03\x25\x60\x95\x13\0\x01\0\x01\
\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\x02\0";

/// Hashes of two blocks and a run of zeroes.
const SYNC_HASHES: &[u8] = b"\x02\x05\0\0\0\0\0\0\0\x01abcdefghijklmnopabcdefghijklmnop\0\x07\0\0\0\0\0\0\0\
\x01ABCDEFGHIJKLMNOPABCDEFGHIJKLMNOP";

const SYNC_PLAN: &[u8] = b"\x01\0\0\x10\0\0\0\0\0lineagelineage16\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0";

/// Data and zeroes; the checksum is the target's to add.
const DISK_EPOCH: &[u8] = b"\x01\x09\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\
\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x01abc";

pub const TARGETS: [Target; 7] = [
    Target::new("pages", pages, &[PAGES]),
    Target::new("frame", frame, &[FRAME]),
    Target::new("learned", learned, &[ARP]),
    Target::new("nbd", nbd, &[NBD]),
    Target::new("disk_sync", disk_sync, &[SYNC_HASHES, SYNC_PLAN]),
    Target::new("disk_epoch", disk_epoch, &[DISK_EPOCH]),
    Target::new(
        "link_frame",
        link_frame,
        &[
            b"\x01\x01\x09\0\x05\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x0c\0\0\0",
            b"\x02\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
            b"MYRZ\x01\x00sixteen-bytes-ok\0\0\0\x04\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\x80\0\0\0\0\xd0\x07\0\0",
        ],
    ),
];

/// Whatever a section says, it stays inside memory and its bound.
fn pages(bytes: &[u8]) {
    use mycelium_endophyte::codec::{PAGE, PageDecoder, PageSink};
    struct Memory(Vec<[u8; PAGE]>);
    impl PageSink for Memory {
        fn pages(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
            *into = self.0[index as usize];
        }
        fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
            self.0[index as usize] = *from;
        }
    }
    let Ok(decoded) = PageDecoder::new(300, 1 << 20).decode(bytes) else { return };
    assert!(decoded.unpacked_bytes() <= 1 << 20);
    let _ = decoded.apply(&mut Memory(vec![[0; PAGE]; 300]));
}

fn frame(bytes: &[u8]) {
    use mycelium_endophyte::codec::{EpochFrame, Header};
    let Ok(header) = Header::read(bytes) else { return };
    let _ = EpochFrame::open(&bytes.to_vec().into(), &header.id);
}

fn learned(bytes: &[u8]) {
    use mycelium_endophyte::egress::Learned;
    let mut learned = Learned::from_bytes(bytes).unwrap_or_default();
    learned.observe(bytes);
}

/// A client's bytes, cut as the server would cut them.
fn nbd(bytes: &[u8]) {
    use mycelium_endophyte::disk::nbd::proto::{self, Negotiation, Next, OptionHeader, PAYLOAD_MAX, Request};
    let Some((flags, mut rest)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(negotiation) = Negotiation::new(1 << 30, u32::from_be_bytes(*flags)) else { return };
    loop {
        let Some((header, after)) = rest.split_first_chunk::<{ proto::OPTION_LEN }>() else { return };
        let Ok(header) = OptionHeader::decode(header) else { return };
        let Some((data, after)) = after.split_at_checked(header.len as usize) else { return };
        rest = after;
        let mut reply = Vec::new();
        match negotiation.option(header.option, data, &mut reply) {
            Ok(Next::Option) => assert!(!reply.is_empty()),
            Ok(Next::Transmission) => break,
            Ok(Next::Hangup) | Err(_) => return,
        }
    }
    while let Some((header, after)) = rest.split_first_chunk::<{ proto::REQUEST_LEN }>() {
        rest = after;
        let Ok(request) = Request::decode(header) else { return };
        let writes = matches!(request.command, proto::Command::Write { .. });
        assert!(!writes || request.len <= PAYLOAD_MAX);
        let inside = u128::from(request.offset) + u128::from(request.len) <= 1 << 30;
        assert!(inside || !writes || request.check(1 << 30).is_err());
    }
}

fn disk_sync(bytes: &[u8]) {
    use mycelium_endophyte::disk::sync::Message;
    let Ok(message) = Message::decode(bytes.to_vec().into()) else { return };
    assert_eq!(Message::decode(message.encode()), Ok(message));
}

fn disk_epoch(bytes: &[u8]) {
    use mycelium_endophyte::disk::DiskEpoch;
    let _ = DiskEpoch::decode(bytes.to_vec().into());
    let sealed = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    let Ok(epoch) = DiskEpoch::decode(sealed.clone().into()) else { return };
    assert_eq!(epoch.to_bytes(), sealed);
    assert!(epoch.data_bytes() <= bytes.len() as u64);
}

/// What is accepted can be written and read again.
fn link_frame(bytes: &[u8]) {
    use mycelium_rhizomorph::frame::{Frame, Greeting, GreetingKind};
    if let Ok(Some((frame, length))) = Frame::decode(bytes) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(again, bytes[..length]);
    }
    if let Ok(greeting) = Greeting::decode(bytes)
        && greeting.kind != GreetingKind::Version
    {
        assert_eq!(greeting.encode(), bytes);
    }
}
