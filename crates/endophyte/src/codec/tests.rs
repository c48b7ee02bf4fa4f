//! Sequences of epochs against a plain copy of memory, and frames that must be refused.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

struct Memory(Vec<u8>);

/// Pages and their content, one after the other.
fn list<'a>(indices: &'a [u64], bytes: &'a [u8]) -> impl PageList<'a> {
    indices.iter().copied().zip(bytes.as_chunks::<PAGE>().0)
}

impl Memory {
    fn page_mut(&mut self, index: u64) -> &mut [u8; PAGE] {
        &mut self.0.as_chunks_mut::<PAGE>().0[index as usize]
    }
}

impl PageSink for Memory {
    fn pages(&self) -> u64 {
        (self.0.len() / PAGE) as u64
    }
    fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
        *into = self.0.as_chunks::<PAGE>().0[index as usize];
    }
    fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
        *self.page_mut(index) = *from;
    }
}

const PAGES: u64 = 600;

/// What a guest does to one page in one epoch.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Zero,
    Fill(u64),
    Noise(u64),
    Bytes(usize, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Nothing),
        1 => Just(Change::Zero),
        1 => any::<u64>().prop_map(Change::Fill),
        2 => any::<u64>().prop_map(Change::Noise),
        5 => (0..PAGE, prop::collection::vec(any::<u8>(), 1..60)).prop_map(|(at, bytes)| Change::Bytes(at, bytes)),
    ]
}

fn make(page: &mut [u8; PAGE], change: &Change) {
    match change {
        Change::Nothing => {}
        Change::Zero => page.fill(0),
        Change::Fill(word) => page.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes())),
        Change::Noise(seed) => {
            let mut state = *seed | 1;
            for byte in page {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
        }
        Change::Bytes(at, bytes) => {
            let end = PAGE.min(at + bytes.len());
            page[*at..end].copy_from_slice(&bytes[..end - at]);
        }
    }
}

fn joined(chunks: &[Bytes]) -> Bytes {
    chunks.concat().into()
}

fn dirty(memory: &Memory, indices: &[u64]) -> Vec<u8> {
    indices.iter().flat_map(|index| memory.0[*index as usize * PAGE..][..PAGE].iter().copied()).collect()
}

fn id(epoch: u64) -> EpochId {
    EpochId { vm: "legacy".into(), term: 3, epoch, kind: FrameKind::Epoch, part: 0, guest_pages: PAGES }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_backup_that_applies_every_epoch_holds_what_the_guest_holds(
        seed in any::<u64>(),
        cache_pages in 0_usize..400,
        how in 0_usize..4,
        link in prop_oneof![Just(1_000_u64), Just(100_000_000), Just(u64::MAX)],
        epochs in prop::collection::vec(
            (prop::collection::btree_map(0..PAGES, change(), 0..120), prop::option::weighted(0.1, 0_usize..3)), 1..8),
    ) {
        let mut config = EncoderConfig::new(PAGES, cache_pages * PAGE, seed);
        config.compression = [Compression::Auto, Compression::Never, Compression::Lz4, Compression::Zstd][how];
        let mut encoder = PageEncoder::new(config);
        let decoder = PageDecoder::new(PAGES, 64 << 20);
        let mut guest = Memory(vec![0; PAGES as usize * PAGE]);
        let mut backup = Memory(vec![0xee; PAGES as usize * PAGE]);
        // The first epoch carries all of memory.
        let all: Vec<u64> = (0..PAGES).collect();
        let first = joined(&encoder.encode(list(&all, &guest.0), link).chunks);
        decoder.decode(&first).unwrap().apply(&mut backup).unwrap();
        for (number, (changes, event)) in epochs.into_iter().enumerate() {
            match event {
                Some(0) => encoder.forget(),
                Some(pages) => encoder.set_cache_bytes(pages * 64 * PAGE),
                None => {}
            }
            for (page, change) in &changes {
                make(guest.page_mut(*page), change);
            }
            let indices: Vec<u64> = changes.keys().copied().collect();
            let bytes = dirty(&guest, &indices);
            let encoded = encoder.encode(list(&indices, &bytes), link);
            prop_assert_eq!(encoded.stats.pages, indices.len() as u64);
            let parts = Parts { pages: encoded.chunks, disk: vec![Bytes::from_static(b"disk")], ..Parts::default() };
            let frame = joined(&seal(&id(number as u64), parts));
            let frame = EpochFrame::open(&frame, &id(number as u64)).unwrap();
            prop_assert_eq!(&frame.disk[..], b"disk");
            decoder.decode(&frame.pages).unwrap().apply(&mut backup).unwrap();
            prop_assert!(guest.0 == backup.0, "after epoch {}", number);
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed(at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<prop::sample::Index>()) {
        let (frame, _) = sample_frame();
        let mut damaged = frame.to_vec();
        damaged[at.index(frame.len())] ^= 1 << bit;
        prop_assert!(EpochFrame::open(&damaged.into(), &id(5)).is_err());
        prop_assert!(EpochFrame::open(&frame.slice(..cut.index(frame.len())), &id(5)).is_err());
    }

    #[test]
    fn a_damaged_section_is_refused_or_stays_inside_memory(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (_, section) = sample_frame();
        let mut section = section.to_vec();
        for (at, byte) in flips {
            let at = at.index(section.len());
            section[at] = byte;
        }
        let mut memory = Memory(vec![0; PAGES as usize * PAGE]);
        if let Ok(decoded) = PageDecoder::new(PAGES, 1 << 20).decode(&section) {
            prop_assert!(decoded.unpacked_bytes() <= 1 << 20);
            prop_assert!(decoded.indices().all(|page| page < PAGES));
            let _ = decoded.apply(&mut memory);
        }
    }
}

/// An epoch of zero, raw and delta pages, packed and not, and its page section.
fn sample_frame() -> (Bytes, Bytes) {
    static MADE: std::sync::OnceLock<(Bytes, Bytes)> = std::sync::OnceLock::new();
    MADE.get_or_init(make_sample).clone()
}

fn make_sample() -> (Bytes, Bytes) {
    let mut config = EncoderConfig::new(PAGES, 4 << 20, 9);
    config.compression = Compression::Lz4;
    let mut encoder = PageEncoder::new(config);
    let mut guest = Memory(vec![0; PAGES as usize * PAGE]);
    let indices: Vec<u64> = (0..PAGES).step_by(3).collect();
    let mut section = Bytes::new();
    for round in 0..2 {
        for index in &indices {
            let change = match (index % 5, round) {
                (0, _) => Change::Zero,
                (1, _) => Change::Noise(index + round),
                (_, 0) => Change::Fill(*index),
                _ => Change::Bytes(*index as usize, vec![7; 9]),
            };
            make(guest.page_mut(*index), &change);
        }
        let bytes = dirty(&guest, &indices);
        section = joined(&encoder.encode(list(&indices, &bytes), 1000).chunks);
    }
    let parts = Parts { pages: vec![section.clone()], ..Parts::default() };
    (joined(&seal(&id(5), parts)), section)
}

#[test]
fn a_frame_of_something_else_is_refused_by_name() {
    let (frame, _) = sample_frame();
    let refused = |change: fn(&mut EpochId)| {
        let mut expected = id(5);
        change(&mut expected);
        EpochFrame::open(&frame, &expected).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(refused(|e| e.epoch = 6), "epoch frame of epoch 5, expected 6");
    assert_eq!(refused(|e| e.term = 4), "epoch frame of term 3, expected 4");
    assert_eq!(refused(|e| e.vm = "other".into()), "epoch frame of virtual machine legacy, expected other");
    assert_eq!(refused(|e| e.kind = FrameKind::Base), "epoch frame of kind an epoch, expected a part of a full copy");
    assert_eq!(refused(|e| e.guest_pages = 1), "epoch frame of guest pages 600, expected 1");
    let mut newer = frame.to_vec();
    newer[4] = 3;
    let error = EpochFrame::open(&newer.into(), &id(5)).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("epoch frame of format version 3, but this build reads version 2"), "{error}");
    assert!(matches!(EpochFrame::open(&Bytes::from_static(b"GET /"), &id(5)), Err(FrameError::Magic { .. })));
}

#[test]
fn memory_that_drifted_is_noticed_before_a_byte_is_written() {
    let mut encoder = PageEncoder::new(EncoderConfig::new(PAGES, 4 << 20, 1));
    let mut page = [3; PAGE];
    encoder.encode(list(&[9], &page), 1);
    page[100] = 4;
    let bytes = [[1; PAGE], page].concat();
    let section = joined(&encoder.encode(list(&[8, 9], &bytes), 1).chunks);
    let decoded = PageDecoder::new(PAGES, 1 << 20).decode(&section).unwrap();
    let mut memory = Memory(vec![0; PAGES as usize * PAGE]);
    let error = decoded.apply(&mut memory).unwrap_err();
    assert!(matches!(error, PageError::Base { page: 9, .. }), "{error}");
    assert!(memory.0.iter().all(|byte| *byte == 0));
}

#[test]
fn zero_and_unchanged_pages_cost_next_to_nothing() {
    let mut encoder = PageEncoder::new(EncoderConfig::new(65_536, 4 << 20, 1));
    let indices: Vec<u64> = (0..4096).collect();
    let mut bytes = vec![0; 4096 * PAGE];
    let zero = encoder.encode(list(&indices, &bytes), 1);
    assert_eq!((zero.stats.zero, zero.stats.bytes < 64), (4096, true), "{:?}", zero.stats);
    bytes.fill(7);
    encoder.encode(list(&indices, &bytes), 1);
    let same = encoder.encode(list(&indices, &bytes), 1);
    assert_eq!((same.stats.unchanged, same.stats.bytes), (4096, 24));
}

#[test]
fn a_new_primary_sends_only_what_changes_after_it_took_over() {
    let mut guest = Memory((0..PAGES as usize * PAGE).map(|at| (at / 3000) as u8).collect());
    let indices: Vec<u64> = (0..PAGES).collect();
    let mut encoder = PageEncoder::new(EncoderConfig::new(PAGES, 4 << 20, 1));
    encoder.assume(list(&indices, &guest.0));
    let mut backup = Memory(guest.0.clone());
    make(guest.page_mut(7), &Change::Bytes(9, vec![1, 2, 3]));
    let encoded = encoder.encode(list(&indices, &guest.0), 1);
    assert_eq!((encoded.stats.unchanged, encoded.stats.raw), (PAGES - 1, 1), "{:?}", encoded.stats);
    PageDecoder::new(PAGES, 1 << 20).decode(&joined(&encoded.chunks)).unwrap().apply(&mut backup).unwrap();
    assert!(guest.0 == backup.0);
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let mut config = EncoderConfig::new(PAGES, 0, 1);
    config.compression = Compression::Zstd;
    let indices: Vec<u64> = (0..PAGES).collect();
    let bytes = vec![1; PAGES as usize * PAGE];
    let section = joined(&PageEncoder::new(config).encode(list(&indices, &bytes), 1).chunks);
    let error = PageDecoder::new(PAGES, 1 << 20).decode(&section).unwrap_err();
    assert_eq!(error, PageError::TooLarge { max: 1 << 20 });
    let error = PageDecoder::new(PAGES / 2, 64 << 20).decode(&section).unwrap_err();
    assert!(matches!(error, PageError::Outside { pages: 300, .. }), "{error}");
}
