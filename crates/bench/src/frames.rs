//! The least of an HTTP/2 client: many streams that are only listened to, at almost no cost.
//!
//! Windows are opened as far as they go and never again, headers are written as literals (RFC 7541, 6.2.2), and of what comes
//! back only the status and the data are looked at.

use anyhow::{Result, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
/// END_STREAM and END_HEADERS.
const WHOLE: u8 = 5;
const WINDOW_MAX: u32 = (1 << 31) - 1;
const WINDOW_DEFAULT: u32 = 65_535;
/// `:status: 200`, from the static table.
const OK: u8 = 0x88;

/// A connection.
pub struct Frames {
    stream: TlsStream<TcpStream>,
    held: BytesMut,
}

impl Frames {
    /// Begins to speak.
    pub async fn start(stream: TlsStream<TcpStream>) -> Result<Self> {
        let mut frames = Self { stream, held: BytesMut::with_capacity(64 << 10) };
        let mut out = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        let mut settings = BytesMut::new();
        // No pushes; all of a stream's window.
        for (setting, value) in [(2, 0), (4, WINDOW_MAX)] {
            settings.put_u16(setting);
            settings.put_u32(value);
        }
        put(&mut out, SETTINGS, 0, 0, &settings);
        put(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_DEFAULT).to_be_bytes());
        frames.stream.write_all(&out).await?;
        Ok(frames)
    }

    /// Asks for a path on a stream, which is an odd number larger than those before.
    pub async fn get(&mut self, stream: u32, authority: &str, path: &str) -> Result<()> {
        // `:method: GET`, `:scheme: https`; then literals for `:path` and `:authority`.
        let mut block = BytesMut::from(&[0x82, 0x87][..]);
        for (name, value) in [(4, path), (1, authority)] {
            ensure!(value.len() < 127, "{value} is too long for one byte of length");
            block.put_u8(name);
            block.put_u8(value.len() as u8);
            block.put_slice(value.as_bytes());
        }
        let mut out = BytesMut::new();
        put(&mut out, HEADERS, WHOLE, stream, &block);
        Ok(self.stream.write_all(&out).await?)
    }

    /// Reads for ever, and hands over the data of each stream; `answered` hears of each stream that was answered well.
    pub async fn read(&mut self, mut answered: impl FnMut(u32), mut data: impl FnMut(u32, &[u8])) -> Result<()> {
        loop {
            while let Some((kind, flags, stream, length)) = self.whole() {
                let payload = &self.held[9..9 + length];
                match kind {
                    DATA => data(stream, payload),
                    HEADERS => {
                        ensure!(payload.first() == Some(&OK), "stream {stream} was not answered with 200");
                        answered(stream);
                    }
                    SETTINGS | PING if flags & ACK == 0 => {
                        let mut out = BytesMut::new();
                        put(&mut out, kind, ACK, 0, if kind == PING { payload } else { &[] });
                        self.stream.write_all(&out).await?;
                    }
                    RESET | GO_AWAY => bail!("the engine ended stream {stream}: {payload:?}"),
                    _ => {}
                }
                self.held.advance(9 + length);
            }
            ensure!(self.stream.read_buf(&mut self.held).await? > 0, "the engine has closed the connection");
        }
    }

    /// Kind, flags, stream and length of the first frame, if all of it is there.
    fn whole(&self) -> Option<(u8, u8, u32, usize)> {
        let head = self.held.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & WINDOW_MAX;
        (self.held.len() >= 9 + length).then_some((head[3], head[4], stream, length))
    }
}

fn put(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}
