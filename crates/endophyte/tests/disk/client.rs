//! A small NBD client, written from the protocol's description and not from the server.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;

pub struct Client {
    pub stream: UnixStream,
    pub size: u64,
    pub flags: u16,
    cookie: u64,
}

impl Client {
    /// Connects and selects the default export with GO.
    pub fn connect(socket: &Path) -> Self {
        let mut client = Self::greet(socket, 3);
        let replies = client.option(7, &[0, 0, 0, 0, 0, 1, 0, 3]);
        for (kind, data) in &replies {
            if *kind == 3 && data[..2] == [0, 0] {
                client.size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                client.flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
            }
        }
        assert_eq!(replies.last().unwrap().0, 1);
        assert!(replies.iter().any(|(kind, data)| *kind == 3 && data[..2] == [0, 3] && data.len() == 14));
        client
    }

    /// Connects and exchanges flags.
    pub fn greet(socket: &Path, flags: u32) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        stream.write_all(&flags.to_be_bytes()).unwrap();
        Self { stream, size: 0, flags: 0, cookie: 0 }
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an option and collects its replies up to the final one.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            assert_eq!(head[..8], 0x3e889045565a9_u64.to_be_bytes());
            assert_eq!(head[8..12], option.to_be_bytes());
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub fn send(&mut self, flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = 0x25609513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes).unwrap();
        self.cookie
    }

    /// The next reply: which request, and its error.
    pub fn reply(&mut self) -> (u64, u32) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x67446698_u32.to_be_bytes());
        (u64::from_be_bytes(head[8..].try_into().unwrap()), u32::from_be_bytes(head[4..8].try_into().unwrap()))
    }

    /// One request and its answer.
    pub fn call(&mut self, flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]) -> Result<Vec<u8>, u32> {
        let cookie = self.send(flags, command, offset, len, payload);
        let (answered, error) = self.reply();
        assert_eq!(answered, cookie);
        if error != 0 {
            return Err(error);
        }
        let mut data = vec![0; if command == READ { len as usize } else { 0 }];
        self.stream.read_exact(&mut data).unwrap();
        Ok(data)
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.call(0, READ, offset, len, &[]).unwrap()
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.call(0, WRITE, offset, data.len() as u32, data).unwrap();
    }
}
