//! A container's log, from its files: the last lines, since a time, with times, and as it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::socket::{is_wanted, upgrade};
use super::{Body, Query, refuse};
use crate::node::Inner;
use crate::pod::disk;
use crate::pod::handle::{Handle, Shared};
use crate::pod::model::{Run, find_container};
use crate::shim::log::{FILES_MAX, rotated};

/// Bytes sent at once.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks that wait for a slow client; reading stops meanwhile.
const CHUNKS_WAITING_MAX: usize = 4;

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    follow: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    timestamps: bool,
    limit: Option<u64>,
    stream: Option<String>,
}

impl Options {
    fn parse(query: &Query, now: Timestamp) -> Result<Self, String> {
        let number =
            |name: &str| query.get(name).map(|v| v.parse::<i64>().map_err(|e| format!("{name}: {e}"))).transpose();
        let seconds = number("sinceSeconds")?.map(|secs| now - SignedDuration::from_secs(secs));
        let time = query.get("sinceTime").map(|t| t.parse::<Timestamp>().map_err(|e| format!("sinceTime: {e}")));
        Ok(Self {
            follow: query.flag("follow"),
            tail: number("tailLines")?.and_then(|n| usize::try_from(n).ok()),
            since: time.transpose()?.or(seconds),
            timestamps: query.flag("timestamps"),
            limit: number("limitBytes")?.and_then(|n| u64::try_from(n).ok()),
            stream: query.get("stream").filter(|s| *s != "All").map(str::to_lowercase),
        })
    }

    /// The text of a line of the file, if it is wanted.
    fn take(&self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if self.stream.as_ref().is_some_and(|wanted| wanted.as_bytes() != stream) {
            return;
        }
        if let Some(since) = self.since
            && std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t < since)
        {
            return;
        }
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if tag == b"P" && out.last() == Some(&b'\n') {
            out.pop();
        }
    }
}

/// The protocols of a log over a WebSocket: all carry its bytes as they are.
const PROTOCOLS: [&str; 2] = ["binary.k8s.io", ""];

/// Answers a request for a log: as a body that grows, or in messages of a WebSocket.
pub async fn serve(
    inner: &Arc<Inner>,
    (namespace, pod, container): (&str, &str, &str),
    query: &Query,
    request: Request<Body>,
) -> Response<Body> {
    let bad = |text: String| refuse(StatusCode::BAD_REQUEST, "BadRequest", &text);
    let options = match Options::parse(query, inner.ctx.env.now()) {
        Ok(options) => options,
        Err(text) => return bad(text),
    };
    let Some(handle) = inner.find(namespace, pod, None) else {
        return refuse(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found"));
    };
    let chosen = choose(&handle.shared.borrow(), pod, container, query.flag("previous"));
    let (id, attempt) = match chosen {
        Ok(chosen) => chosen,
        Err(text) => return bad(text),
    };
    let path = disk::log(&handle.dir, container, attempt);
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
    let job = Job { path, id, container: container.to_owned(), handle, options, sent: 0, sender };
    tokio::spawn(async move {
        if let Err(error) = job.run().await {
            tracing::debug!(%error, "a log cannot be read");
        }
    });
    if is_wanted(request.headers()) {
        return upgrade(request, &PROTOCOLS, move |mut socket, _| async move {
            while let Some(chunk) = receiver.recv().await {
                if socket.send(Message::Binary(chunk)).await.is_err() {
                    return;
                }
            }
            let _ = socket.close(None).await;
        });
    }
    let chunks = futures::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|chunk| (chunk, r)) });
    let body = StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk))));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// The run whose log is meant.
fn choose(shared: &Shared, pod: &str, container: &str, previous: bool) -> Result<(String, u32), String> {
    let known = shared.pod.spec.as_ref().is_some_and(|s| find_container(s, container).is_some());
    if !known {
        return Err(format!("container \"{container}\" in pod \"{pod}\" is not available"));
    }
    let view = shared.containers.get(container);
    let made = |run: &Run| (run.record.id.clone(), run.record.attempt);
    if previous {
        let run = view.and_then(|v| v.previous.as_ref());
        let missing = || format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
        return run.map(made).ok_or_else(missing);
    }
    if let Some(run) = view.and_then(|v| v.current.as_ref()) {
        return Ok(made(run));
    }
    let reason = view.and_then(|v| v.waiting.as_ref()).map_or("ContainerCreating", |w| w.reason.as_str());
    Err(match reason {
        "ErrImagePull" => {
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: trying and failing to pull image")
        }
        "ImagePullBackOff" => {
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: image can't be pulled")
        }
        reason => format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"),
    })
}

struct Job {
    path: PathBuf,
    id: String,
    container: String,
    handle: Handle,
    options: Options,
    sent: u64,
    sender: mpsc::Sender<Bytes>,
}

impl Job {
    async fn run(mut self) -> io::Result<()> {
        // Watch before reading, so that nothing falls between.
        let mut news = if self.options.follow { Some(News::new(&self.path)?) } else { None };
        let path = self.path.clone();
        let tail = self.options.tail;
        let (files, mut position) =
            tokio::task::spawn_blocking(move || locate(&path, tail)).await.map_err(io::Error::other)??;
        let mut current = None;
        for (index, file) in files.into_iter().enumerate() {
            let mut reader = BufReader::new(file);
            if index == 0 {
                reader.seek(SeekFrom::Start(position))?;
            }
            if !self.copy(&mut reader).await? {
                return Ok(());
            }
            position = reader.stream_position()?;
            current = Some(reader);
        }
        if let Some(news) = &mut news {
            self.follow(news, current).await?;
        }
        Ok(())
    }

    async fn follow(&mut self, news: &mut News, mut current: Option<BufReader<File>>) -> io::Result<()> {
        let mut shared = self.handle.shared.clone();
        loop {
            let ended = {
                let shared = shared.borrow_and_update();
                let run = shared.containers.get(&self.container).and_then(|v| v.current.as_ref());
                run.is_none_or(|run| run.record.id != self.id || run.exit().is_some())
            };
            if let Some(reader) = &mut current
                && !self.copy(reader).await?
            {
                return Ok(());
            }
            // The file may have been moved away: go on with the one that took its place.
            if moved(current.as_ref(), &self.path) {
                current = File::open(&self.path).ok().map(BufReader::new);
                continue;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.sender.closed() => return Ok(()),
                changed = shared.changed() => if changed.is_err() {
                    return Ok(());
                },
                result = news.wait() => result?,
            }
        }
    }

    /// Sends what `reader` has. Returns false when enough is sent or nobody listens.
    async fn copy(&mut self, reader: &mut BufReader<File>) -> io::Result<bool> {
        let mut out = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line)?;
            let whole = line.last() == Some(&b'\n');
            if whole {
                self.options.take(&line, &mut out);
            } else if count > 0 {
                // Half a line: it is read again when the rest is there.
                reader.seek(SeekFrom::Current(-(count as i64)))?;
            }
            if !out.is_empty() && (!whole || out.len() >= CHUNK_BYTES) && !self.send(&mut out).await {
                return Ok(false);
            }
            if !whole {
                return Ok(true);
            }
        }
    }

    async fn send(&mut self, out: &mut Vec<u8>) -> bool {
        let mut chunk = std::mem::take(out);
        let mut more = true;
        if let Some(limit) = self.options.limit {
            let room = limit.saturating_sub(self.sent);
            more = (chunk.len() as u64) < room;
            chunk.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        self.sent += chunk.len() as u64;
        self.sender.send(chunk.into()).await.is_ok() && more
    }
}

fn moved(current: Option<&BufReader<File>>, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |meta: io::Result<std::fs::Metadata>| meta.map(|m| m.ino()).ok();
    let here = inode(std::fs::metadata(path));
    here.is_some() && here != current.and_then(|reader| inode(reader.get_ref().metadata()))
}

/// Tells that a log has grown or moved.
struct News(Receiver);

impl News {
    fn new(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
            // The folder's own watch reports writes to the files in it.
            inotify::add_watch(&fd, dir, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
        }
        Ok(Self(Receiver::from_owned_fd_unchecked(fd)?))
    }

    async fn wait(&mut self) -> io::Result<()> {
        // The events say only "look again".
        let mut events = [0; 4096];
        self.0.read(&mut events).await.map(drop)
    }
}

/// The files of a log from the first wanted line on, oldest first, and where in the first of them to begin.
fn locate(path: &Path, tail: Option<usize>) -> io::Result<(Vec<File>, u64)> {
    let mut files = Vec::new();
    let mut missing = tail;
    let mut position = 0;
    let paths = std::iter::once(path.to_owned()).chain((1..FILES_MAX).map(|index| rotated(path, index)));
    for path in paths {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        if let Some(wanted) = &mut missing {
            let (found, at) = last_lines(&mut file, *wanted)?;
            *wanted -= found;
            position = at;
        }
        file.seek(SeekFrom::Start(0))?;
        files.push(file);
        if missing == Some(0) {
            break;
        }
    }
    files.reverse();
    Ok((files, position))
}

/// How many of the last `wanted` lines a file has, and where the first of them begins.
fn last_lines(file: &mut File, wanted: usize) -> io::Result<(usize, u64)> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok((0, end));
    }
    let mut breaks = 0;
    let size = end;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = start + index as u64;
            if *byte == b'\n' && at + 1 < size {
                breaks += 1;
                if breaks == wanted {
                    return Ok((wanted, at + 1));
                }
            }
        }
        end = start;
    }
    Ok((if size > 0 { breaks + 1 } else { 0 }, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_across_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("0.log");
        std::fs::write(rotated(&path, 1), "T stdout F 1\nT stdout F 2\n").expect("writes");
        std::fs::write(&path, "T stdout F 3\nT stdout F 4\n").expect("writes");
        let read = |tail| {
            let (files, position) = locate(&path, tail).expect("finds");
            let mut text = String::new();
            for (index, mut file) in files.into_iter().enumerate() {
                file.seek(SeekFrom::Start(if index == 0 { position } else { 0 })).expect("seeks");
                file.read_to_string(&mut text).expect("reads");
            }
            text.lines().filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect::<String>()
        };
        for (tail, expected) in
            [(None, "1234"), (Some(9), "1234"), (Some(3), "234"), (Some(2), "34"), (Some(1), "4"), (Some(0), "")]
        {
            assert_eq!(read(tail), expected, "{tail:?}");
        }
    }

    #[test]
    fn lines_are_chosen_and_shown() {
        let line = |options: &Options, text: &str| {
            let mut out = Vec::new();
            options.take(text.as_bytes(), &mut out);
            String::from_utf8(out).expect("text")
        };
        let text = "2026-11-21T02:24:38.000000000Z stdout F a b\n";
        assert_eq!(line(&Options::default(), text), "a b\n");
        assert_eq!(line(&Options::default(), &text.replace(" F ", " P ")), "a b");
        assert_eq!(
            line(&Options { timestamps: true, ..Options::default() }, text),
            "2026-11-21T02:24:38.000000000Z a b\n"
        );
        let later = "2026-11-21T02:24:39Z".parse().expect("a time");
        assert_eq!(line(&Options { since: Some(later), ..Options::default() }, text), "");
    }
}
