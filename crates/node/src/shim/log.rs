//! A container's log file: the format that the Kubernetes container runtime interface defines, with rotation.
//!
//! A line is `time stream tag text`, the tag `F` for a full line and `P` for a piece of one that was too long or not
//! yet ended. When the file would pass its size limit it becomes `<name>.1`, the older ones move up, the oldest goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::clock;

/// A file is rotated before it grows beyond this.
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files kept, the current one included.
pub const FILES_MAX: usize = 5;
/// A longer line is split.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream's bytes into log lines.
#[derive(Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Appends the lines that `bytes` completes to `out`, each stamped with `time`.
    pub fn push(&mut self, stream: Stream, time: &str, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.long(stream, time, &bytes[..end], out);
            line(stream, time, b'F', &self.pending, out);
            self.pending.clear();
            bytes = &bytes[end + 1..];
        }
        self.long(stream, time, bytes, out);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// Writes what is left when the stream ends without a line break.
    pub fn finish(&mut self, stream: Stream, time: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            line(stream, time, b'P', &self.pending, out);
            self.pending = Vec::new();
        }
    }

    fn long(&mut self, stream: Stream, time: &str, bytes: &[u8], out: &mut Vec<u8>) {
        self.pending.extend_from_slice(bytes);
        while self.pending.len() > LINE_BYTES_MAX {
            line(stream, time, b'P', &self.pending[..LINE_BYTES_MAX], out);
            self.pending.drain(..LINE_BYTES_MAX);
        }
    }
}

fn line(stream: Stream, time: &str, tag: u8, text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// The log of one container.
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    stdout: Lines,
    stderr: Lines,
}

impl Log {
    /// Opens (or continues) the log at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit, stdout: Lines::default(), stderr: Lines::default() })
    }

    /// Logs what was read from a stream.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let time = clock::rfc3339_nanos(clock::now());
        let mut out = Vec::with_capacity(bytes.len() + 64);
        self.lines(stream).push(stream, &time, bytes, &mut out);
        self.append(&out);
    }

    /// Logs what is left when a stream has ended.
    pub fn finish(&mut self, stream: Stream) {
        let time = clock::rfc3339_nanos(clock::now());
        let mut out = Vec::new();
        self.lines(stream).finish(stream, &time, &mut out);
        self.append(&out);
    }

    fn lines(&mut self, stream: Stream) -> &mut Lines {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// A full disk must not stop the container: what cannot be written is lost, and the next write tries again.
    fn append(&mut self, out: &[u8]) {
        if out.is_empty() {
            return;
        }
        if self.size > 0 && self.size + out.len() as u64 > self.limit {
            let _ = self.rotate();
        }
        if self.file.write_all(out).is_ok() {
            self.size += out.len() as u64;
        } else {
            // Half a line would spoil the one after it.
            let _ = self.file.set_len(self.size);
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for index in (1..FILES_MAX - 1).rev() {
            let _ = fs::rename(rotated(&self.path, index), rotated(&self.path, index + 1));
        }
        fs::rename(&self.path, rotated(&self.path, 1))?;
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

/// The name of the log's `index`-th older file.
pub fn rotated(path: &Path, index: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    PathBuf::from(name)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(out: &[u8]) -> Vec<String> {
        String::from_utf8_lossy(out)
            .lines()
            .map(|l| l.split_once(' ').map(|(_, r)| r.to_owned()).expect("time"))
            .collect()
    }

    #[test]
    fn lines_are_joined_split_and_tagged() {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        lines.push(Stream::Stdout, "T", b"one\ntw", &mut out);
        lines.push(Stream::Stdout, "T", b"o\n\n", &mut out);
        lines.push(Stream::Stdout, "T", &vec![b'x'; LINE_BYTES_MAX + 2], &mut out);
        lines.finish(Stream::Stdout, "T", &mut out);
        let texts = texts(&out);
        assert_eq!(&texts[..3], ["stdout F one", "stdout F two", "stdout F "]);
        assert_eq!(texts[3].len(), "stdout P ".len() + LINE_BYTES_MAX);
        assert_eq!(texts[4], "stdout P xx");
    }

    #[test]
    fn rotation_keeps_a_bounded_number_of_files_and_loses_no_recent_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        let mut log = Log::with_limit(&path, 200).expect("opens");
        for n in 0..40 {
            log.write(Stream::Stderr, format!("line {n}\n").as_bytes());
        }
        let files = fs::read_dir(dir.path()).expect("lists").count();
        assert_eq!(files, FILES_MAX);
        let all: String = (1..FILES_MAX)
            .rev()
            .map(|i| rotated(&path, i))
            .chain([path.clone()])
            .map(|p| fs::read_to_string(p).expect("reads"))
            .collect();
        let numbers: Vec<u32> =
            all.lines().map(|l| l.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("number")).collect();
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1) && numbers.last() == Some(&39), "{numbers:?}");
    }
}
