//! Whether packing pays, and with what: measured on the pages themselves against the link they are to cross.
//!
//! Sending a byte plain takes the link's time for it; packed, it takes the packer's time plus the link's time for what
//! is left. Both estimates follow what was measured: on every batch that was packed, and on a sample of a few pages
//! once per epoch for methods not in use.

use std::cell::RefCell;

use super::PAGE;
use super::wire::{Reader, put_varint};
use crate::clock::Clock;

/// What the encoder may do to make pages smaller, beyond leaving out and deltas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Whatever arrives first on this link by what was measured.
    #[default]
    Auto,
    /// Nothing.
    Never,
    /// Always lz4, except where it makes things larger.
    Lz4,
    /// Always zstd at level 1, except where it makes things larger.
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Plain,
    Lz4,
    Zstd,
}

/// Shorter inputs are not worth the call.
const LENGTH_MIN: usize = 256;
const SAMPLE_PAGES: usize = 4;
/// Epochs between samples of zstd, which takes several times as long as lz4.
const ZSTD_EVERY: u32 = 8;
const ZSTD_LEVEL: i32 = 1;
/// How much of a new measurement enters the estimate.
const WEIGHT: f64 = 0.3;
/// Packing must be better than plain by this factor: it also takes processor time from the guest.
const MARGIN: f64 = 0.95;

#[derive(Clone, Copy, Debug)]
struct Estimate {
    ns_per_byte: f64,
    ratio: f64,
    known: bool,
}

impl Estimate {
    const UNKNOWN: Self = Self { ns_per_byte: 0.0, ratio: 1.0, known: false };

    fn learn(&mut self, ns: f64, from: usize, to: usize) {
        let (ns_per_byte, ratio) = (ns / from as f64, to as f64 / from as f64);
        if self.known {
            // An outlier, for instance with cold caches, must not decide for many epochs.
            let ns_per_byte = ns_per_byte.min(3.0 * self.ns_per_byte);
            self.ns_per_byte += WEIGHT * (ns_per_byte - self.ns_per_byte);
            self.ratio += WEIGHT * (ratio - self.ratio);
        } else {
            *self = Self { ns_per_byte, ratio, known: true };
        }
    }

    fn cost(&self, link_ns_per_byte: f64) -> f64 {
        if self.known { self.ns_per_byte + self.ratio * link_ns_per_byte } else { f64::INFINITY }
    }
}

/// Packs one kind of content for one shard.
pub(super) struct Compressor {
    policy: Compression,
    clock: Clock,
    link_ns_per_byte: f64,
    epoch: u32,
    sampled: bool,
    lz4: Estimate,
    zstd: Estimate,
}

/// What a thread packs with. It packs one thing after the other, so one set serves all that it packs.
#[derive(Default)]
struct Tools {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

thread_local! {
    static TOOLS: RefCell<Tools> = RefCell::default();
}

impl Compressor {
    pub(super) fn new(policy: Compression, clock: Clock) -> Self {
        let (lz4, zstd) = (Estimate::UNKNOWN, Estimate::UNKNOWN);
        Self { policy, clock, link_ns_per_byte: 0.0, epoch: 0, sampled: false, lz4, zstd }
    }

    /// A new epoch begins, over a link of this many bytes per second.
    pub(super) fn begin(&mut self, link_bytes_per_s: u64) {
        self.link_ns_per_byte = 1e9 / link_bytes_per_s.max(1) as f64;
        self.epoch = self.epoch.wrapping_add(1);
        self.sampled = false;
    }

    /// Appends `bytes` in the form that pays: method, length, content.
    pub(super) fn pack(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        TOOLS.with_borrow_mut(|tools| {
            let method = self.choose(bytes, tools);
            let packed = match method {
                Method::Plain => None,
                method => self.measured(method, bytes, tools).filter(|length| *length < bytes.len()),
            };
            let (method, content) = match packed {
                Some(length) => (method, &tools.packed[..length]),
                None => (Method::Plain, bytes),
            };
            out.push(method as u8);
            put_varint(out, content.len() as u64);
            out.extend_from_slice(content);
        });
    }

    fn choose(&mut self, bytes: &[u8], tools: &mut Tools) -> Method {
        match self.policy {
            _ if bytes.len() < LENGTH_MIN => Method::Plain,
            Compression::Never => Method::Plain,
            Compression::Lz4 => Method::Lz4,
            Compression::Zstd => Method::Zstd,
            Compression::Auto => {
                if !std::mem::replace(&mut self.sampled, true) {
                    self.sample(bytes, tools);
                }
                self.cheapest()
            }
        }
    }

    fn cheapest(&self) -> Method {
        let link = self.link_ns_per_byte;
        let (lz4, zstd) = (self.lz4.cost(link), self.zstd.cost(link));
        match () {
            () if lz4.min(zstd) > link * MARGIN => Method::Plain,
            () if lz4 <= zstd => Method::Lz4,
            () => Method::Zstd,
        }
    }

    /// Measures the methods that are not in use on a few pages from all over `bytes`.
    fn sample(&mut self, bytes: &[u8], tools: &mut Tools) {
        let current = self.cheapest();
        let step = (bytes.len() / SAMPLE_PAGES).max(PAGE);
        let sample: Vec<u8> =
            bytes.chunks(step).flat_map(|chunk| chunk.get(..PAGE.min(chunk.len())).unwrap_or(chunk)).copied().collect();
        if current != Method::Lz4 {
            self.measured(Method::Lz4, &sample, tools);
        }
        if current != Method::Zstd && (!self.zstd.known || self.epoch.is_multiple_of(ZSTD_EVERY)) {
            self.measured(Method::Zstd, &sample, tools);
        }
    }

    /// Packs, and learns from how that went.
    fn measured(&mut self, method: Method, bytes: &[u8], tools: &mut Tools) -> Option<usize> {
        let bound =
            lz4_flex::block::get_maximum_output_size(bytes.len()).max(zstd::zstd_safe::compress_bound(bytes.len()));
        if tools.packed.len() < bound {
            tools.packed.resize(bound, 0);
        }
        if method == Method::Zstd && tools.zstd.is_none() {
            tools.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let start = (self.clock)();
        let length = match method {
            Method::Lz4 => lz4_flex::block::compress_into(bytes, &mut tools.packed).ok()?,
            _ => tools.zstd.as_mut()?.compress_to_buffer(bytes, &mut tools.packed[..]).ok()?,
        };
        let ns = (self.clock)().saturating_sub(start).as_nanos() as f64;
        let estimate = if method == Method::Lz4 { &mut self.lz4 } else { &mut self.zstd };
        estimate.learn(ns, bytes.len(), length);
        Some(length)
    }
}

/// Packed content, as found in a section.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    method: Method,
    stored: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Reads method, length and content.
    pub(super) fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let method = match reader.byte()? {
            0 => Method::Plain,
            1 => Method::Lz4,
            2 => Method::Zstd,
            _ => return None,
        };
        let stored = reader.length(usize::MAX).and_then(|length| reader.take(length))?;
        Some(Self { method, stored })
    }

    /// The content itself when it was not packed.
    pub(super) fn plain(&self) -> Option<&'a [u8]> {
        (self.method == Method::Plain).then_some(self.stored)
    }

    /// Unpacks into a buffer of the length it must have.
    pub(super) fn unpack(&self, length: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; length];
        let found = match self.method {
            Method::Plain => return (self.stored.len() == length).then(|| self.stored.to_vec()),
            Method::Lz4 => lz4_flex::block::decompress_into(self.stored, &mut out).ok()?,
            Method::Zstd => zstd::bulk::decompress_to_buffer(self.stored, &mut out[..]).ok()?,
        };
        (found == length).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method_for(link_bytes_per_s: u64, bytes: &[u8]) -> u8 {
        let mut compressor = Compressor::new(Compression::Auto, crate::clock::thread_time);
        let mut out = Vec::new();
        // The estimate follows the machine: the best of a few rounds is what it settles on.
        for _ in 0..5 {
            out.clear();
            compressor.begin(link_bytes_per_s);
            compressor.pack(bytes, &mut out);
        }
        let packed = Packed::read(&mut Reader::new(&out)).expect("readable");
        assert_eq!(packed.plain().map(<[u8]>::to_vec).or_else(|| packed.unpack(bytes.len())).as_deref(), Some(bytes));
        out[0]
    }

    #[test]
    fn a_slow_link_packs_and_a_very_fast_one_does_not() {
        let text: Vec<u8> = b"the same words over and over, ".iter().copied().cycle().take(16 * PAGE).collect();
        assert_ne!(method_for(1_000_000, &text), 0);
        assert_eq!(method_for(u64::MAX, &text), 0);
    }

    #[test]
    fn noise_is_left_alone() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(8 * PAGE)
        .collect();
        assert_eq!(method_for(1_000_000, &noise), 0);
    }
}
