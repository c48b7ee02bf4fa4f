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
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::HostError;

/// The longest request line, in bytes; longer ones are refused.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// How long a migration may take unless said otherwise: enough for the copy of a large guest.
pub const MIGRATION_SECONDS: u64 = 600;

fn migration_seconds() -> u64 {
    MIGRATION_SECONDS
}

/// What can be asked of a machine's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// How the machine is: answers with a [`super::status::Status`].
    Status,
    /// Hand the machine over to another host. Who closes the connection before the end gives it up.
    Migrate {
        /// The other host's address, or its name if it is a member.
        to: String,
        /// For how long it may be tried; [`MIGRATION_SECONDS`] unless said.
        #[serde(default = "migration_seconds")]
        seconds: u64,
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

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.answers.is_closed()
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
    let mut reader = tokio::io::BufReader::new(read.take(REQUEST_BYTES_MAX));
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
    let mut listens = true;
    loop {
        let answer = tokio::select! {
            answer = replies.recv() => answer,
            gone = hung_up(&mut reader, &write), if listens => {
                if gone {
                    return;
                }
                listens = false;
                continue;
            }
        };
        let Some(answer) = answer else { return };
        let mut text =
            serde_json::to_vec(&answer).unwrap_or_else(|_| br#"{"error":"the answer has no JSON form"}"#.to_vec());
        text.push(b'\n');
        if write.write_all(&text).await.is_err() || !matches!(answer, Answer::Progress(_)) {
            return;
        }
    }
}

/// Waits for the end of what the client says; whether it has hung up, for it may have ended its own part only.
async fn hung_up(reader: &mut (impl AsyncReadExt + Unpin), write: &OwnedWriteHalf) -> bool {
    let mut ignored = [0; 64];
    loop {
        match reader.read(&mut ignored).await {
            Ok(0) => return write.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed()),
            Ok(_) => {}
            Err(_) => return true,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A client that goes away is noticed while nothing is said to it; one that only ended its part is answered.
    #[tokio::test]
    async fn clients_that_hang_up_are_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.sock");
        let (calls, mut asked) = mpsc::channel(4);
        let served = path.clone();
        tokio::spawn(async move { serve(&served, calls).await });
        let mut connect = async || loop {
            match UnixStream::connect(&path).await {
                Ok(mut client) => {
                    client.write_all(b"{\"verb\":\"migrate\",\"to\":\"b\"}\n").await.expect("asked");
                    break (client, asked.recv().await.expect("a call"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let (mut client, call) = connect().await;
        assert_eq!(call.request, Request::Migrate { to: "b".into(), seconds: MIGRATION_SECONDS });
        client.shutdown().await.expect("its part ends");
        call.progress(&Progress { who: "b".into(), part: 0.5, text: "half".into() });
        let mut answer = String::new();
        let finish = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!call.is_abandoned());
            call.finish(Ok("done".into()));
        };
        let (_, read) = tokio::join!(finish, client.read_to_string(&mut answer));
        read.expect("an answer");
        assert_eq!(answer, "{\"progress\":{\"who\":\"b\",\"part\":0.5,\"text\":\"half\"}}\n{\"done\":\"done\"}\n");

        let (client, call) = connect().await;
        assert!(!call.is_abandoned());
        drop(client);
        while !call.is_abandoned() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
