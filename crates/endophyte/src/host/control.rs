//! The control socket of one machine on one host: a line of JSON asks, lines of JSON answer.
//!
//! ```text
//! → {"verb":"migrate","to":"10.0.0.3:7400"}
//! ← {"progress":{"who":"c","part":0.31,"text":"..."}}  any number of these
//! ← {"done":{...}}  or  {"error":"one paragraph"}       exactly one of these, then the end
//! ```
//!
//! The socket lies in a folder that only its owner may enter; who reaches it is the host's administrator.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::HostError;

/// The longest request line, in bytes; longer ones are refused.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// What can be asked of a machine's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// How the machine is: answers with a [`super::status::Status`].
    Status,
    /// Hand the machine over to another host.
    Migrate {
        /// The other host's address, or its name if it is a member.
        to: String,
    },
    /// Make this host's copy the running machine.
    Promote {
        /// Also when the group cannot agree: an older output may be contradicted.
        #[serde(default)]
        force: bool,
    },
    /// Take a member out of the group.
    Forget {
        /// Its name.
        member: String,
    },
    /// Take another host in as a backup, and tell how far it is brought in sync.
    Protect {
        /// Its address.
        backup: String,
        /// Answer at once, not when it is in sync.
        #[serde(default)]
        at_once: bool,
    },
    /// Tell how far backups are brought in sync, as long as somebody listens.
    Follow,
    /// Stop the machine: the guest is asked to shut down, or with `force` simply ended.
    Stop {
        /// End it without asking the guest.
        #[serde(default)]
        force: bool,
    },
}

/// A line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It goes on.
    Progress(Progress),
    /// It is done, with what was asked for.
    Done(serde_json::Value),
    /// It was not done, and why.
    Error(String),
}

/// How far something is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Of which host.
    pub who: String,
    /// 0 to 1.
    pub part: f64,
    /// What is going on.
    pub text: String,
}

/// A request with the way to answer it.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where answers go. The last one is `Done` or `Error`.
    pub answers: mpsc::Sender<Answer>,
}

impl Call {
    /// Tells how far it is; whether anybody listens. A slow listener misses some: there is always room for the end.
    pub fn progress(&self, progress: &Progress) -> bool {
        if self.answers.capacity() > 1 {
            let _ = self.answers.try_send(Answer::Progress(progress.clone()));
        }
        !self.answers.is_closed()
    }

    /// Ends the call. A client that went away does not mind.
    pub fn finish(self, outcome: Result<serde_json::Value, String>) {
        let _ = self.answers.try_send(match outcome {
            Ok(value) => Answer::Done(value),
            Err(text) => Answer::Error(text),
        });
    }
}

/// Serves the socket until the receiver of calls is gone.
pub async fn serve(path: &Path, calls: mpsc::Sender<Call>) -> Result<(), HostError> {
    let at = |source| HostError::File { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(at)?;
    loop {
        let (stream, _) = listener.accept().await.map_err(at)?;
        if calls.is_closed() {
            return Ok(());
        }
        tokio::spawn(converse(stream, calls.clone()));
    }
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(tokio::io::AsyncReadExt::take(read, REQUEST_BYTES_MAX));
    if reader.read_line(&mut line).await.is_err() {
        return;
    }
    let (answers, mut replies) = mpsc::channel(64);
    match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            if calls.send(Call { request, answers }).await.is_err() {
                return;
            }
        }
        Err(error) => {
            Call { request: Request::Status, answers }.finish(Err(format!("the request is not understood: {error}")))
        }
    }
    while let Some(answer) = replies.recv().await {
        let mut text =
            serde_json::to_vec(&answer).unwrap_or_else(|_| br#"{"error":"the answer has no JSON form"}"#.to_vec());
        text.push(b'\n');
        if write.write_all(&text).await.is_err() {
            return;
        }
    }
}

/// Asks a machine's process, and hands each progress line on.
///
/// # Errors
/// [`HostError::NotRunning`] when nobody listens, [`HostError::Refused`] with the process's own words.
pub fn ask(
    socket: &Path,
    request: &Request,
    mut progress: impl FnMut(&Progress),
) -> Result<serde_json::Value, HostError> {
    let at = |source| HostError::File { path: socket.to_owned(), source };
    let mut stream = match StdUnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(HostError::NotRunning { socket: socket.to_owned() });
        }
        Err(error) => return Err(at(error)),
    };
    let mut line = serde_json::to_vec(request).map_err(|error| at(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(at)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line.map_err(at)?).map_err(|error| at(error.into()))? {
            Answer::Progress(told) => progress(&told),
            Answer::Done(value) => return Ok(value),
            Answer::Error(text) => return Err(HostError::Refused(text)),
        }
    }
    Err(HostError::Refused("the machine's process ended before it answered".into()))
}
