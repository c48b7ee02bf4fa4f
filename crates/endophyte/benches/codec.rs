//! What pages of several kinds cost: bytes sent per dirty byte, and how fast they are encoded, checked and applied.
//!
//! `cargo bench -p mycelium-endophyte --bench codec`

use std::time::Duration;

use bytes::Bytes;
use mycelium_endophyte::clock::monotonic;
use mycelium_endophyte::codec::{
    EncoderConfig, EpochFrame, EpochId, FrameKind, PAGE, PageDecoder, PageEncoder, PageSink, Parts, seal,
};

/// 16 MiB per epoch.
const PAGES: usize = 4096;
const EPOCHS: u64 = 9;
const GIGABIT: u64 = 125_000_000;

struct Memory(Vec<u8>);

impl PageSink for Memory {
    fn pages(&self) -> u64 {
        (self.0.len() / PAGE) as u64
    }
    fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
        *into = self.0.as_chunks().0[index as usize];
    }
    fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
        self.0.as_chunks_mut().0[index as usize] = *from;
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]));
    }

    fn text(&mut self, bytes: &mut [u8]) {
        const WORDS: [&str; 16] = [
            "network ",
            "of ",
            "the ",
            "guest ",
            "memory ",
            "is ",
            "replicated ",
            "and ",
            "an ",
            "epoch ",
            "holds ",
            "pages ",
            "that ",
            "were ",
            "written, ",
            "which\n",
        ];
        let mut at = 0;
        while at < bytes.len() {
            let word = match self.below(5) {
                0 => format!("{:x} ", self.next() & 0xffff_ffff),
                _ => WORDS[self.below(WORDS.len())].to_owned(),
            };
            let taken = word.len().min(bytes.len() - at);
            bytes[at..at + taken].copy_from_slice(&word.as_bytes()[..taken]);
            at += taken;
        }
    }
}

/// What a guest does to its memory in one epoch.
type Change = fn(&mut Random, &mut [u8]);

const KINDS: &[(&str, Change)] = &[
    ("zero", |random, memory| {
        // Alternately something and nothing; the epochs of nothing are measured.
        if memory[0] == 0 { random.text(memory) } else { memory.fill(0) }
    }),
    ("unchanged", |_, _| {}),
    ("text-like, new", |random, memory| random.text(memory)),
    ("database-like", |random, memory| {
        for page in memory.chunks_mut(2 * PAGE) {
            // A log sequence number, and a few rows rewritten.
            let number = random.next().to_le_bytes();
            page[..6].copy_from_slice(&number[..6]);
            for _ in 0..=random.below(4) {
                let (at, length) = (random.below(2 * PAGE - 160), 24 + random.below(120));
                random.text(&mut page[at..at + length]);
            }
        }
    }),
    ("random, new", |random, memory| random.fill(memory)),
];

struct Row {
    bytes: u64,
    encode: Duration,
    open: Duration,
    apply: Duration,
}

fn measure(change: Change, threads: usize, link: u64, cache: usize) -> Row {
    let mut config = EncoderConfig::new(PAGES as u64, cache, 1);
    config.threads = threads;
    let mut encoder = PageEncoder::new(config);
    let decoder = PageDecoder::new(PAGES as u64, 1 << 30);
    let mut random = Random(0x1234_5678_9abc_def1);
    let indices: Vec<u64> = (0..PAGES as u64).collect();
    let mut guest = vec![1; PAGES * PAGE];
    let mut backup = Memory(vec![0; PAGES * PAGE]);
    let mut best = Row { bytes: 0, encode: Duration::MAX, open: Duration::MAX, apply: Duration::MAX };
    for epoch in 0..EPOCHS {
        change(&mut random, &mut guest);
        let pages = indices.iter().copied().zip(guest.as_chunks::<PAGE>().0);
        let start = monotonic();
        let encoded = encoder.encode(pages, link);
        let encode = monotonic() - start;
        let id = EpochId { vm: "b".into(), term: 1, epoch, kind: FrameKind::Epoch, part: 0, guest_pages: PAGES as u64 };
        let frame: Bytes = seal(&id, Parts { pages: encoded.chunks, ..Parts::default() }).concat().into();
        let start = monotonic();
        let opened = EpochFrame::open(&frame, &id).expect("undamaged");
        let open = monotonic() - start;
        let start = monotonic();
        decoder.decode(&opened.pages).expect("sound").apply(&mut backup).expect("the right memory");
        let apply = monotonic() - start;
        assert!(guest == backup.0);
        // The first epochs meet memory for the first time.
        if epoch >= 2 && epoch % 2 == 0 {
            best.bytes = frame.len() as u64;
            best.encode = best.encode.min(encode);
            best.open = best.open.min(open);
            best.apply = best.apply.min(apply);
        }
    }
    best
}

fn main() {
    let dirty = (PAGES * PAGE) as f64;
    let rate = |time: Duration| dirty / time.as_secs_f64() / 1e9;
    println!("{} MiB dirty per epoch; GB/s of dirty memory; best of {} epochs", (PAGES * PAGE) >> 20, EPOCHS / 2);
    println!(
        "{:<16} {:>9} {:>7} {:>14} {:>9} {:>9} {:>9} {:>9}",
        "pages", "link", "copies", "bytes per byte", "1 thread", "2 threads", "checksum", "apply"
    );
    for (name, change) in KINDS {
        for (link, link_name) in [(GIGABIT, "1 Gbit/s"), (10 * GIGABIT, "10 Gbit/s")] {
            for (cache, cache_name) in [(PAGES * PAGE, "all"), (PAGES * PAGE / 4, "1/4")] {
                let (one, two) = (measure(*change, 1, link, cache), measure(*change, 2, link, cache));
                println!(
                    "{name:<16} {link_name:>9} {cache_name:>7} {:>14.4} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                    one.bytes as f64 / dirty,
                    rate(one.encode),
                    rate(two.encode),
                    rate(one.open),
                    rate(one.apply)
                );
            }
        }
    }
}
