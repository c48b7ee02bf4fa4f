//! `exec` and `attach` over a WebSocket: the first byte of a message names the channel.
//!
//! | channel | direction | carries |
//! |---|---|---|
//! | 0 | in | standard input |
//! | 1, 2 | out | standard output and error |
//! | 3 | out | a `Status` at the end |
//! | 4 | in | `{"Width": …, "Height": …}` |
//! | 255 | in | the number of a channel that is closed (since `v5`) |
//!
//! The first protocol, `channel.k8s.io`, carries an error's text on channel 3, and nothing if all went well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::{Socket, payload, upgrade};
use super::{Body, Query, refuse};
use crate::client::{Connection, Shim, pipe};
use crate::node::Inner;
use crate::pod::model::find_container;
use crate::shim::protocol::{Exec, Reply, Request as Ask};

const FIRST: &str = "channel.k8s.io";
const PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", FIRST];
/// Output that waits for a slow client; the container waits meanwhile.
const WAITING_MAX: usize = 8;
/// A program may leave children that hold its output; they are not waited for longer than this.
const DRAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &Query) -> Option<Self> {
        let tty = query.flag("tty");
        let wanted =
            Self { stdin: query.flag("input"), stdout: query.flag("output"), stderr: query.flag("error") && !tty, tty };
        (wanted.stdin || wanted.stdout || wanted.stderr).then_some(wanted)
    }
}

type Place<'a> = (&'a str, &'a str, &'a str, &'a str);

/// The shim and the running run of a container, and whether it has a terminal.
fn find(
    inner: &Inner,
    (namespace, pod, uid, container): Place<'_>,
) -> Result<(Shim, String, bool), Box<Response<Body>>> {
    let missing =
        || Box::new(refuse(StatusCode::NOT_FOUND, "NotFound", &format!("container not found (\"{container}\")")));
    let handle = inner.find(namespace, pod, Some(uid)).ok_or_else(missing)?;
    let shared = handle.shared.borrow();
    let view = shared.containers.get(container).ok_or_else(missing)?;
    let run = view.current.as_ref().filter(|run| run.running().is_some()).ok_or_else(missing)?;
    let spec = shared.pod.spec.as_ref();
    let spec = spec.and_then(|s| find_container(s, container));
    let tty = spec.and_then(|(c, _)| c.tty).unwrap_or(false);
    Ok((Shim::at(&handle.dir), run.record.id.clone(), tty))
}

fn nothing_wanted() -> Response<Body> {
    refuse(StatusCode::BAD_REQUEST, "BadRequest", "you must specify at least 1 of stdin, stdout, stderr")
}

/// Runs a program in a container.
pub fn exec(inner: &Arc<Inner>, place: Place<'_>, query: &Query, request: Request<Body>) -> Response<Body> {
    let Some(wanted) = Wanted::parse(query) else { return nothing_wanted() };
    let command = query.all("command");
    if command.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", "you must specify a command");
    }
    match find(inner, place) {
        Err(response) => *response,
        Ok((shim, id, _)) => upgrade(request, &PROTOCOLS, move |socket, protocol| async move {
            run(socket, protocol, exec_session(&shim, id, command, wanted), None).await;
        }),
    }
}

/// Attaches to what a container runs.
pub fn attach(inner: &Arc<Inner>, place: Place<'_>, query: &Query, request: Request<Body>) -> Response<Body> {
    let Some(wanted) = Wanted::parse(query) else { return nothing_wanted() };
    match find(inner, place) {
        Err(response) => *response,
        Ok((shim, id, tty)) => upgrade(request, &PROTOCOLS, move |socket, protocol| async move {
            let leave = wanted.stdin.then(|| (shim.clone(), id.clone()));
            run(socket, protocol, attach_session(&shim, id, Wanted { tty, ..wanted }), leave).await;
        }),
    }
}

/// The engine's ends of a program's streams, and whence its exit code comes.
struct Session {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    end: Option<Connection>,
}

async fn exec_session(shim: &Shim, id: String, args: Vec<String>, wanted: Wanted) -> Result<Session, String> {
    let failed = |e: &dyn std::fmt::Display| format!("error executing command in container: {e}");
    let pair =
        |want: bool| if want && !wanted.tty { pipe().map(|(r, w)| (Some(r), Some(w))) } else { Ok((None, None)) };
    let (stdin_theirs, stdin) = pair(wanted.stdin).map_err(|e| failed(&e))?;
    let (stdout, stdout_theirs) = pair(wanted.stdout).map_err(|e| failed(&e))?;
    let (stderr, stderr_theirs) = pair(wanted.stderr).map_err(|e| failed(&e))?;
    let theirs = [&stdin_theirs, &stdout_theirs, &stderr_theirs];
    let stdio = theirs.map(Option::is_some);
    let fds: Vec<BorrowedFd<'_>> = theirs.into_iter().flatten().map(AsFd::as_fd).collect();
    let ask = Ask::Exec(Exec { id, args, tty: wanted.tty, stdio });
    let (end, mut fds) = shim.ask_with(&ask, &fds).await.map_err(|e| failed(&e))?;
    Ok(Session { stdin, stdout, stderr, terminal: fds.pop(), end: Some(end) })
}

async fn attach_session(shim: &Shim, id: String, wanted: Wanted) -> Result<Session, String> {
    let failed = |e: &dyn std::fmt::Display| format!("error attaching to container: {e}");
    let (stdout, stdout_theirs) = pipe().map_err(|e| failed(&e))?;
    let (stderr, stderr_theirs) = pipe().map_err(|e| failed(&e))?;
    let ask = Ask::Attach { id, stdin: wanted.stdin };
    let fds = [stdout_theirs.as_fd(), stderr_theirs.as_fd()];
    let (_, mut fds) = shim.ask_with(&ask, &fds).await.map_err(|e| failed(&e))?;
    let back = fds.pop();
    let (stdin, terminal) = if wanted.tty { (None, back) } else { (back.filter(|_| wanted.stdin), None) };
    // A terminal's output comes through the shim, which also logs it; only input and size go to it directly.
    let stdin = if wanted.tty && wanted.stdin { terminal.as_ref().and_then(|t| t.try_clone().ok()) } else { stdin };
    Ok(Session { stdin, stdout: Some(stdout), stderr: Some(stderr), terminal: None, end: None }.with_size(terminal))
}

impl Session {
    /// For `attach`: a terminal that is resized but not read.
    fn with_size(mut self, terminal: Option<OwnedFd>) -> Self {
        if let Some(terminal) = terminal {
            self.terminal = Some(terminal);
        }
        self
    }
}

type Sink = SplitSink<Socket, Message>;

/// Carries a session. `leave` is the container that is to hear when the client's input has ended.
async fn run(
    socket: Socket,
    protocol: &'static str,
    session: impl Future<Output = Result<Session, String>>,
    leave: Option<(Shim, String)>,
) {
    let (mut sink, mut stream) = socket.split();
    let mut session = match session.await {
        Ok(session) => session,
        Err(message) => {
            let message = format!("Internal error occurred: {message}");
            let status = json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500});
            finish(&mut sink, protocol, &status).await;
            return;
        }
    };
    let (sender, mut output) = mpsc::channel::<Bytes>(WAITING_MAX);
    let reads_terminal = session.end.is_some();
    let master = session.terminal.as_ref().and_then(|t| t.try_clone().ok());
    let stdin = session
        .stdin
        .take()
        .or_else(|| if reads_terminal { session.terminal.as_ref().and_then(|t| t.try_clone().ok()) } else { None });
    if reads_terminal && let Some(terminal) = session.terminal.take() {
        tokio::spawn(read_all(terminal, 1, sender.clone()));
    }
    for (channel, fd) in [(1, session.stdout.take()), (2, session.stderr.take())] {
        if let Some(fd) = fd {
            tokio::spawn(read_all(fd, channel, sender.clone()));
        }
    }
    drop(sender);
    let input = async move {
        let (pieces, writer) = mpsc::channel::<Bytes>(WAITING_MAX);
        let mut pieces = Some(pieces);
        tokio::spawn(write_all(stdin, writer, leave));
        while let Some(Ok(message)) = stream.next().await {
            let Some(bytes) = payload(message) else { continue };
            match bytes.first() {
                Some(0) => {
                    if let Some(pieces) = &pieces {
                        let _ = pieces.send(bytes.slice(1..)).await;
                    }
                }
                Some(4) => resize(master.as_ref(), &bytes[1..]),
                // The client has no more input.
                Some(255) if bytes.get(1) == Some(&0) => pieces = None,
                _ => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = pump(&mut sink, protocol, &mut output, session.end) => {}
        // The client has left: the descriptors close, and a program at a terminal gets a hangup.
        () = input => {}
    }
}

/// Sends output until there is no more, then how it ended.
async fn pump(sink: &mut Sink, protocol: &str, output: &mut mpsc::Receiver<Bytes>, end: Option<Connection>) {
    let mut end = end;
    let mut code = None;
    loop {
        tokio::select! {
            biased;
            piece = output.recv() => match piece {
                Some(piece) => if sink.send(Message::Binary(piece)).await.is_err() {
                    return;
                },
                None => break,
            },
            reply = exit_code(&mut end), if end.is_some() => {
                code = Some(reply);
                end = None;
                // What is in the pipes now is still the program's.
                let drain = async {
                    while let Some(piece) = output.recv().await {
                        if sink.send(Message::Binary(piece)).await.is_err() {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(DRAIN, drain).await;
                break;
            }
        }
    }
    if end.is_some() {
        code = Some(exit_code(&mut end).await);
    }
    finish(sink, protocol, &outcome(code.unwrap_or(0))).await;
}

async fn exit_code(end: &mut Option<Connection>) -> i32 {
    let Some(connection) = end else { return std::future::pending().await };
    match connection.receive().await {
        Ok((Reply::Exited(code), _)) => code,
        _ => 137,
    }
}

fn outcome(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

async fn finish(sink: &mut Sink, protocol: &str, status: &Value) {
    let text = match protocol {
        FIRST => status["message"].as_str().unwrap_or_default().to_owned(),
        _ => status.to_string(),
    };
    if !text.is_empty() {
        let mut message = vec![3];
        message.extend(text.into_bytes());
        let _ = sink.send(Message::Binary(message.into())).await;
    }
    // Clients take anything but a normal closure for a broken connection.
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(normal))).await;
    let _ = sink.close().await;
}

async fn read_all(fd: OwnedFd, channel: u8, sender: mpsc::Sender<Bytes>) {
    let Ok(mut reader) = receiver(fd) else { return };
    let mut chunk = vec![0; 16 << 10];
    // A terminal whose other end has closed answers with an error: that is its end.
    while let Ok(count @ 1..) = reader.read(&mut chunk[1..]).await {
        chunk[0] = channel;
        if sender.send(Bytes::copy_from_slice(&chunk[..=count])).await.is_err() {
            return;
        }
    }
}

fn receiver(fd: OwnedFd) -> io::Result<Receiver> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Receiver::from_owned_fd_unchecked(fd)
}

async fn write_all(fd: Option<OwnedFd>, mut pieces: mpsc::Receiver<Bytes>, leave: Option<(Shim, String)>) {
    let writer = fd.and_then(|fd| {
        rustix::io::ioctl_fionbio(&fd, true).ok()?;
        Sender::from_owned_fd_unchecked(fd).ok()
    });
    let Some(mut writer) = writer else { return };
    while let Some(piece) = pieces.recv().await {
        if writer.write_all(&piece).await.is_err() {
            break;
        }
    }
    drop(writer);
    if let Some((shim, id)) = leave {
        let _ = shim.ask(&Ask::Detached { id }).await;
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

fn resize(terminal: Option<&OwnedFd>, message: &[u8]) {
    let (Some(terminal), Ok(size)) = (terminal, serde_json::from_slice::<Size>(message)) else { return };
    let _ = tcsetwinsize(terminal, Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 });
}
