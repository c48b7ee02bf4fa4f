//! SPDY/3 frames, as far as port forwarding needs them.
//!
//! Clients speak SPDY inside a WebSocket to forward ports: a pair of streams per connection, one for data and one for
//! errors. This module turns bytes into frames and back; it does no I/O.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

const VERSION: u16 = 3;
const HEADER_BYTES: usize = 8;
/// A longer frame than this is refused; clients send at most 64 KiB at once.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Headers larger than this once decompressed are refused.
const HEADERS_BYTES_MAX: usize = 64 << 10;
const FIN: u8 = 0x01;

/// Names that the dictionary of SPDY/3 begins with, each after its length in four bytes (draft-mbelshe-httpbis-spdy-00,
/// section 2.6.10.1).
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
user-agent vary via warning www-authenticate method get status";
const DICTIONARY_WORDS_WITH_SPACES: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504\
505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct \
Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1\
,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS.split(' ').chain(DICTIONARY_WORDS_WITH_SPACES) {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(DICTIONARY_TAIL.as_bytes());
    bytes
}

/// Name and value pairs; names are compared without regard to case.
pub type Headers = Vec<(String, String)>;

/// A frame that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream.
    Open {
        /// Its number.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// The sender will send nothing on it.
        last: bool,
    },
    /// The answer to a new stream.
    Reply {
        /// Its number.
        stream: u32,
        /// Its headers.
        headers: Headers,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// No more will follow.
        last: bool,
    },
    /// The stream is broken off.
    Reset {
        /// Its number.
        stream: u32,
    },
    /// To be sent back as it is.
    Ping(u32),
    /// The sender is leaving.
    GoAway,
    /// Of no interest: settings, windows, late headers.
    Other,
}

/// Why bytes are not frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// Too long, or headers too large.
    #[error("a frame is too long")]
    TooLong,
    /// Not this version.
    #[error("the peer speaks version {0} of SPDY instead of {VERSION}")]
    Version(u16),
    /// Shorter than its type requires.
    #[error("a frame is truncated")]
    Truncated,
    /// The headers do not decompress, or are not what they should be.
    #[error("headers cannot be read")]
    Headers,
}

/// Bytes to frames.
pub struct Decoder {
    buffer: Vec<u8>,
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: Vec::new(), inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the decoder is of no use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let word = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let flags = header[4];
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(SpdyError::TooLong);
        }
        if self.buffer.len() < HEADER_BYTES + len {
            return Ok(None);
        }
        let body = self.buffer[HEADER_BYTES..HEADER_BYTES + len].to_vec();
        self.buffer.drain(..HEADER_BYTES + len);
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: word, bytes: body, last: flags & FIN != 0 }));
        }
        let version = ((word >> 16) & 0x7fff) as u16;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        self.control(word as u16, flags, &body).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, SpdyError> {
        let number = |at: usize| -> Result<u32, SpdyError> {
            let bytes = body.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or(SpdyError::Truncated)?;
            Ok(u32::from_be_bytes(*bytes) & 0x7fff_ffff)
        };
        let after = |at: usize| body.get(at..).ok_or(SpdyError::Truncated);
        Ok(match kind {
            1 => {
                let headers = self.headers(after(10)?)?;
                Frame::Open { stream: number(0)?, headers, last: flags & FIN != 0 }
            }
            2 => Frame::Reply { stream: number(0)?, headers: self.headers(after(4)?)? },
            3 => Frame::Reset { stream: number(0)? },
            6 => Frame::Ping(number(0)?),
            7 => Frame::GoAway,
            8 => {
                // One compression state for the whole connection: what is not wanted must still be read.
                self.headers(after(4)?)?;
                Frame::Other
            }
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, compressed: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.inflate(compressed)?;
        let mut rest = plain.as_slice();
        let mut number = || -> Result<usize, SpdyError> {
            let (first, tail) = rest.split_first_chunk::<4>().ok_or(SpdyError::Headers)?;
            rest = tail;
            Ok(u32::from_be_bytes(*first) as usize)
        };
        let count = number()?;
        let mut headers = Headers::new();
        let mut at = 4;
        let mut text = || -> Result<String, SpdyError> {
            let len = plain.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or(SpdyError::Headers)?;
            let len = u32::from_be_bytes(*len) as usize;
            let end = at.checked_add(4 + len).ok_or(SpdyError::Headers)?;
            let bytes = plain.get(at + 4..end).ok_or(SpdyError::Headers)?;
            at = end;
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        for _ in 0..count {
            let name = text()?;
            headers.push((name, text()?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut out = Vec::with_capacity(1024);
        loop {
            if out.len() >= HEADERS_BYTES_MAX {
                return Err(SpdyError::TooLong);
            }
            out.reserve(1024);
            let (before_in, before_out) = (self.inflate.total_in(), out.len());
            let result = self.inflate.decompress_vec(input, &mut out, FlushDecompress::Sync);
            let taken = (self.inflate.total_in() - before_in) as usize;
            input = input.get(taken..).ok_or(SpdyError::Headers)?;
            match result {
                Ok(Status::Ok) if !input.is_empty() || out.len() == out.capacity() => {}
                Ok(Status::Ok | Status::BufError) if taken == 0 && out.len() == before_out => return Ok(out),
                Ok(Status::Ok | Status::BufError) if input.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| SpdyError::Headers)?;
                }
                Err(_) => return Err(SpdyError::Headers),
            }
        }
    }
}

/// Frames to bytes.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        // A fresh state always takes a dictionary.
        let _ = deflate.set_dictionary(&dictionary());
        Self { deflate }
    }
}

impl Encoder {
    /// A frame as bytes.
    pub fn encode(&mut self, frame: &Frame) -> Vec<u8> {
        match frame {
            Frame::Open { stream, headers, last } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend(self.headers(headers));
                control(1, u8::from(*last), &body)
            }
            Frame::Reply { stream, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(self.headers(headers));
                control(2, 0, &body)
            }
            Frame::Data { stream, bytes, last } => {
                let mut out = (stream & 0x7fff_ffff).to_be_bytes().to_vec();
                out.extend_from_slice(&((bytes.len() as u32) | (u32::from(*last) << 24)).to_be_bytes());
                out.extend_from_slice(bytes);
                out
            }
            Frame::Reset { stream } => {
                /// Status 5: the sender no longer wants the stream.
                const CANCEL: u32 = 5;
                control(3, 0, &[stream.to_be_bytes(), CANCEL.to_be_bytes()].concat())
            }
            Frame::Ping(id) => control(6, 0, &id.to_be_bytes()),
            Frame::GoAway => control(7, 0, &[0; 8]),
            Frame::Other => Vec::new(),
        }
    }

    fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            let before = self.deflate.total_in();
            let status = self.deflate.compress_vec(input, &mut out, FlushCompress::Sync);
            input = &input[(self.deflate.total_in() - before) as usize..];
            if status.is_err() || (input.is_empty() && out.len() < out.capacity()) {
                return out;
            }
            out.reserve(256);
        }
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = (0x8000 | VERSION).to_be_bytes().to_vec();
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&((body.len() as u32) | (u32::from(flags) << 24)).to_be_bytes());
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame().expect("frames")).collect()
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        let mut inflate = Decompress::new(true);
        let head = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
        let error = inflate.decompress(&head, &mut [0; 16], FlushDecompress::Sync).expect_err("asks for it");
        assert_eq!((error.needs_dictionary(), dictionary().len()), (Some(0xe3c6_a7c2), 1423));
        assert!(inflate.set_dictionary(&dictionary()).is_ok());
    }

    #[test]
    fn frames_survive_in_any_pieces() {
        let headers =
            |n: usize| vec![("streamtype".to_owned(), "data".repeat(n)), ("port".to_owned(), "80".to_owned())];
        let frames = vec![
            Frame::Open { stream: 1, headers: headers(1), last: true },
            Frame::Open { stream: 3, headers: headers(600), last: false },
            Frame::Reply { stream: 3, headers: Headers::new() },
            Frame::Data { stream: 3, bytes: b"hello".to_vec(), last: true },
            Frame::Ping(7),
            Frame::Reset { stream: 1 },
        ];
        let mut encoder = Encoder::default();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encoder.encode(frame)).collect();
        for step in [1, 7, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                got.extend(all(&mut decoder));
            }
            assert_eq!(got, frames, "in pieces of {step}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), control in any::<bool>()) {
            let mut decoder = Decoder::default();
            if control {
                decoder.push(&[0x80, 3, 0, 1, 0, 0, 0, (bytes.len() % 256) as u8]);
            }
            decoder.push(&bytes);
            for _ in 0..100 {
                if !matches!(decoder.next_frame(), Ok(Some(_))) {
                    break;
                }
            }
        }
    }
}
