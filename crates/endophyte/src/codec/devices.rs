//! The devices' state as its difference from the state before: of some hundred kilobytes an epoch changes a few.
//!
//! The state is taken for memory of its own, so that pages that stayed are left out and the others go as differences.
//!
//! ```text
//! part = length:u64 section        a page section of the state; longer states than `STATE_MAX` follow as they are
//! ```

use bytes::Bytes;

use super::{Compression, EncoderConfig, PAGE, PageDecoder, PageEncoder, PageError, PageSink};

/// Longer states are sent whole.
const STATE_MAX: usize = 16 << 20;
const PAGES: u64 = (STATE_MAX / PAGE) as u64;

/// Turns states of devices into parts of frames. What holds for [`PageEncoder`] holds here: all parts are to be applied in
/// the order in which they were made.
pub struct DeviceEncoder {
    encoder: PageEncoder,
    image: Vec<u8>,
}

impl DeviceEncoder {
    /// One that has sent nothing yet.
    pub fn new(seed: u64, compression: Compression) -> Self {
        let config = EncoderConfig { threads: 1, compression, ..EncoderConfig::new(PAGES, STATE_MAX, seed) };
        Self { encoder: PageEncoder::new(config), image: Vec::new() }
    }

    /// The next part applies to any state before it.
    pub fn forget(&mut self) {
        self.encoder.forget();
    }

    /// The part for this state, for links that carry `link_bytes_per_s`.
    pub fn encode(&mut self, state: &Bytes, link_bytes_per_s: u64) -> Bytes {
        let mut part = (state.len() as u64).to_le_bytes().to_vec();
        if state.len() > STATE_MAX {
            part.extend_from_slice(state);
            return part.into();
        }
        self.image.clear();
        self.image.extend_from_slice(state);
        self.image.resize(state.len().next_multiple_of(PAGE), 0);
        let pages = self.image.as_chunks::<PAGE>().0;
        let section = self.encoder.encode((0..pages.len()).map(|at| (at as u64, &pages[at])), link_bytes_per_s);
        section.chunks.iter().for_each(|chunk| part.extend_from_slice(chunk));
        part.into()
    }
}

/// The state of devices as the last part left it.
#[derive(Default)]
pub struct DeviceDecoder {
    image: Image,
    length: usize,
    /// A state that came whole.
    whole: Option<Bytes>,
}

impl DeviceDecoder {
    /// Applies a part. Nothing is changed when it is refused.
    pub fn apply(&mut self, part: &Bytes) -> Result<(), PageError> {
        let malformed = |what| PageError::Malformed { offset: 0, what };
        let (head, section) = part.split_first_chunk().ok_or(malformed("no length of the devices' state"))?;
        let length = usize::try_from(u64::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > STATE_MAX {
            let whole = Some(part.slice(head.len()..)).filter(|bytes| bytes.len() == length);
            self.whole = Some(whole.ok_or(malformed("the devices' state is cut short"))?);
            return Ok(());
        }
        let pages = PageDecoder::new(PAGES, 2 * STATE_MAX).decode(section)?;
        pages.apply(&mut self.image)?;
        (self.length, self.whole) = (length, None);
        Ok(())
    }

    /// The state.
    pub fn state(&self) -> Bytes {
        let mut state = self.image.0.get(..self.length).unwrap_or(&self.image.0).to_vec();
        // Its end may be zeroes that were never sent.
        state.resize(self.length, 0);
        self.whole.clone().unwrap_or(state.into())
    }
}

/// Grows with what is written to it.
#[derive(Default)]
struct Image(Vec<u8>);

impl PageSink for Image {
    fn pages(&self) -> u64 {
        PAGES
    }

    fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
        let at = index as usize * PAGE;
        *into = self.0.get(at..).and_then(|rest| rest.first_chunk().copied()).unwrap_or([0; PAGE]);
    }

    fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
        let at = index as usize * PAGE;
        self.0.resize(self.0.len().max(at + PAGE), 0);
        self.0[at..at + PAGE].copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_state_is_the_last_one(
            states in prop::collection::vec((0_usize..40_000, any::<u8>(), prop::collection::vec(0_usize..40_000, 0..30), any::<bool>()), 1..12),
        ) {
            let (mut encoder, mut decoder) = (DeviceEncoder::new(3, Compression::Auto), DeviceDecoder::default());
            let mut state: Vec<u8> = Vec::new();
            for (length, fill, changes, forget) in states {
                state.resize(length, fill);
                for at in changes.into_iter().filter(|at| *at < length) {
                    state[at] ^= fill | 1;
                }
                if forget {
                    encoder.forget();
                }
                let part = encoder.encode(&state.clone().into(), 1_000_000);
                decoder.apply(&part).expect("sound");
                prop_assert_eq!(&decoder.state(), &state);
            }
        }

        #[test]
        fn any_bytes_are_applied_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = DeviceDecoder::default().apply(&bytes.into());
        }
    }

    #[test]
    fn a_state_that_hardly_changed_costs_hardly_anything() {
        let mut encoder = DeviceEncoder::new(3, Compression::Auto);
        let mut state: Vec<u8> = (0..130_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        encoder.encode(&state.clone().into(), u64::MAX);
        state[7_000..7_008].fill(1);
        state[99_999] ^= 1;
        assert!(encoder.encode(&state.into(), u64::MAX).len() < 100);
    }
}
