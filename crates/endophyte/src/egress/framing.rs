//! QEMU's stream framing: each frame behind its length, 4 bytes, big-endian.

/// The largest frame QEMU sends or takes.
pub(super) const FRAME_MAX: usize = 4096 + 65536;
/// Bytes of the length.
pub(super) const PREFIX: usize = 4;

/// The stream promised a frame that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("QEMU's network stream announces a frame of {0} bytes; more than {FRAME_MAX} are never sent")]
pub(super) struct FramingError(pub(super) u32);

/// Cuts a stream that arrives in pieces into frames.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    /// The beginning of a frame whose end has not arrived.
    partial: Vec<u8>,
}

impl Deframer {
    /// Forgets a frame that will never be whole.
    pub(super) fn reset(&mut self) {
        self.partial.clear();
    }

    /// Bytes kept of a frame that is not whole.
    pub(super) fn partial(&self) -> usize {
        self.partial.len()
    }

    /// Takes the next piece of the stream, and calls `each` for every frame that is whole with it.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), FramingError> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            let wanted = match length(&self.partial) {
                None => PREFIX,
                Some(length) => PREFIX + checked(length)?,
            };
            let taken = (wanted - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let Some(length) = length(&self.partial)
                && self.partial.len() == PREFIX + checked(length)?
            {
                each(&self.partial[PREFIX..]);
                self.partial.clear();
            }
        }
        while let Some(found) = length(bytes) {
            let Some(frame) = bytes.get(PREFIX..PREFIX + checked(found)?) else { break };
            each(frame);
            bytes = &bytes[PREFIX + frame.len()..];
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

fn length(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|prefix| u32::from_be_bytes(*prefix))
}

fn checked(length: u32) -> Result<usize, FramingError> {
    if length as usize <= FRAME_MAX { Ok(length as usize) } else { Err(FramingError(length)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(1_usize..400, 1..60),
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                stream.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                stream.extend_from_slice(frame);
            }
            let (mut deframer, mut found, mut rest) = (Deframer::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                deframer.push(piece, |frame| found.push(frame.to_vec())).unwrap();
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(deframer.partial.is_empty());
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error() {
        assert_eq!(Deframer::default().push(&[0, 2, 0, 0, 1], |_| ()), Err(FramingError(0x2_0000)));
        let mut deframer = Deframer::default();
        deframer.push(&[0, 2], |_| ()).unwrap();
        assert!(deframer.push(&[0, 0, 1], |_| ()).is_err());
    }
}
