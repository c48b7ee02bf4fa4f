//! QEMU's control protocol, blocking: one command after another, several in flight where order alone matters.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::monotonic;

use super::error::{MachineError, Result};
use super::host;

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events that are kept for somebody who asks for them later; older ones are dropped.
const EVENTS_KEPT: usize = 64;

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// QEMU's wall clock at that moment, since 1970.
    pub at: Duration,
    /// More about it.
    pub data: Value,
}

/// A command that was sent and not yet answered.
#[derive(Debug)]
#[must_use]
pub struct Pending {
    id: u64,
    name: &'static str,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    line: String,
    events: VecDeque<Event>,
    next_id: u64,
    log: PathBuf,
}

impl Qmp {
    /// Takes QEMU's greeting and agrees on its capabilities. `log` is where QEMU's own messages are found when it dies.
    pub fn handshake(socket: UnixStream, log: PathBuf) -> Result<(Qmp, String)> {
        socket.set_read_timeout(Some(PATIENCE)).map_err(MachineError::system("preparing QEMU's socket"))?;
        let mut qmp =
            Qmp { reader: BufReader::new(socket), line: String::new(), events: VecDeque::new(), next_id: 0, log };
        let greeting = qmp.message("start")?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let (Some(major), Some(minor)) = (version["major"].as_u64(), version["minor"].as_u64()) else {
            return Err(MachineError::Protocol { during: "start".to_owned() });
        };
        let found = format!("{major}.{minor}.{}", version["micro"]);
        if (major, minor) < host::OLDEST {
            return Err(MachineError::QemuTooOld { found });
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok((qmp, found))
    }

    /// Runs a command to its end.
    pub fn execute(&mut self, name: &'static str, arguments: Value) -> Result<Value> {
        let pending = self.send(name, arguments)?;
        self.wait(pending)
    }

    /// Sends a command without waiting for its answer. QEMU carries out commands in the order in which they were sent.
    pub fn send(&mut self, name: &'static str, arguments: Value) -> Result<Pending> {
        let (pending, bytes) = self.encode(name, &arguments);
        self.reader.get_mut().write_all(&bytes).map_err(|error| self.broken(name, error))?;
        Ok(pending)
    }

    /// Sends several commands in one piece.
    pub fn send_all<const N: usize>(&mut self, commands: [(&'static str, Value); N]) -> Result<[Pending; N]> {
        let mut all = Vec::new();
        let last = commands.last().map_or("", |(name, _)| *name);
        let pending = commands.map(|(name, arguments)| {
            let (pending, bytes) = self.encode(name, &arguments);
            all.extend_from_slice(&bytes);
            pending
        });
        self.reader.get_mut().write_all(&all).map_err(|error| self.broken(last, error))?;
        Ok(pending)
    }

    /// Gives QEMU a descriptor under `name`.
    pub fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        let (pending, bytes) = self.encode("getfd", &json!({ "fdname": name }));
        mycelium_linux::descriptors::send_with_descriptor(self.reader.get_ref(), &bytes, descriptor)
            .map_err(|error| self.broken("getfd", error))?;
        self.wait(pending).map(drop)
    }

    /// The answer to a command. Answers to older commands, for which nobody waited after a failure, are passed over.
    pub fn wait(&mut self, pending: Pending) -> Result<Value> {
        self.answer(&pending)
    }

    /// The answer to a command, if it comes within `limit`; otherwise it is still to be waited for.
    pub fn wait_within(&mut self, pending: &Pending, limit: Duration) -> Result<Option<Value>> {
        self.limit_reads(limit)?;
        let outcome = self.answer(pending);
        self.limit_reads(PATIENCE)?;
        match outcome {
            Err(MachineError::Timeout { .. }) => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    fn limit_reads(&self, limit: Duration) -> Result<()> {
        let socket = self.reader.get_ref();
        socket.set_read_timeout(Some(limit)).map_err(MachineError::system("preparing QEMU's socket"))
    }

    fn answer(&mut self, pending: &Pending) -> Result<Value> {
        loop {
            let mut message = self.message(pending.name)?;
            match message["id"].as_u64() {
                Some(id) if id == pending.id => {}
                Some(id) if id < pending.id => continue,
                _ => return Err(MachineError::Protocol { during: pending.name.to_owned() }),
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            let reason = message["error"]["desc"].as_str().unwrap_or("no reason given").to_owned();
            return Err(MachineError::Refused { command: pending.name.to_owned(), reason });
        }
    }

    /// The next event called `name` for which `wanted` holds; events that came before and were not asked for are passed over.
    pub fn wait_event(
        &mut self,
        name: &'static str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Event> {
        let deadline = monotonic() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if event.name == name && wanted(&event.data) {
                    return Ok(event);
                }
            }
            let left = deadline.saturating_sub(monotonic());
            if left.is_zero() {
                return Err(MachineError::Timeout { during: name.to_owned(), seconds: limit.as_secs() });
            }
            self.limit_reads(left)?;
            let outcome = self.read_event(name);
            self.limit_reads(PATIENCE)?;
            outcome?;
        }
    }

    /// The latest event called `name` that was seen.
    pub fn last_event(&self, name: &str) -> Option<&Event> {
        self.events.iter().rev().find(|event| event.name == name)
    }

    fn encode(&mut self, name: &'static str, arguments: &Value) -> (Pending, Vec<u8>) {
        self.next_id += 1;
        let id = self.next_id;
        let command = match arguments {
            Value::Null => json!({ "execute": name, "id": id }),
            arguments => json!({ "execute": name, "arguments": arguments, "id": id }),
        };
        (Pending { id, name }, format!("{command}\n").into_bytes())
    }

    /// The next message that is not an event.
    fn message(&mut self, during: &'static str) -> Result<Value> {
        loop {
            let message = self.read(during)?;
            if !self.keep_if_event(&message) {
                return Ok(message);
            }
        }
    }

    fn read_event(&mut self, during: &'static str) -> Result<()> {
        let message = self.read(during)?;
        if self.keep_if_event(&message) { Ok(()) } else { Err(MachineError::Protocol { during: during.to_owned() }) }
    }

    fn keep_if_event(&mut self, message: &Value) -> bool {
        let Some(name) = message["event"].as_str() else { return false };
        let stamp = &message["timestamp"];
        let seconds = stamp["seconds"].as_u64().unwrap_or(0);
        let at = Duration::from_secs(seconds) + Duration::from_micros(stamp["microseconds"].as_u64().unwrap_or(0));
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Event { name: name.to_owned(), at, data: message["data"].clone() });
        true
    }

    fn read(&mut self, during: &'static str) -> Result<Value> {
        // What came of a line before a timeout stays, and the next call reads on.
        match self.reader.read_line(&mut self.line) {
            Ok(0) => Err(self.gone(during)),
            Ok(_) => {
                let message = serde_json::from_str(&self.line);
                self.line.clear();
                message.map_err(|_| MachineError::Protocol { during: during.to_owned() })
            }
            Err(error) => Err(self.broken(during, error)),
        }
    }

    fn broken(&self, during: &str, error: io::Error) -> MachineError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                MachineError::Timeout { during: during.to_owned(), seconds: PATIENCE.as_secs() }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.gone(during),
            _ => MachineError::System { what: "talking to QEMU", source: error },
        }
    }

    fn gone(&self, during: &str) -> MachineError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let log = log.lines().rev().take(3).collect::<Vec<_>>();
        MachineError::Gone { during: during.to_owned(), log: log.into_iter().rev().collect::<Vec<_>>().join("; ") }
    }
}
