//! The audit log: one line of JSON for each request, as `audit.k8s.io/v1` events of level Metadata.
//!
//! Lines go through a bounded queue to a thread that writes them; what the disk cannot keep up with is dropped and
//! counted, never waited for. The file is turned over at [`FILE_MAX`], and one older file is kept.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::answer::Notes;
use crate::auth::Identity;
use crate::auth::rbac::Attributes;
use crate::authn;

/// The length at which the file is turned over.
pub const FILE_MAX: u64 = 64 << 20;
/// Lines that wait for the disk.
const QUEUE: usize = 4096;

/// Where events go.
#[derive(Clone)]
pub struct AuditLog {
    lines: SyncSender<String>,
    lost: Arc<AtomicU64>,
}

impl AuditLog {
    /// Appends to a file, which is readable by its owner only.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let log = LogFile::open(path)?;
        let (lines, queue) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || log.keep(&queue))?;
        Ok(Self { lines, lost })
    }

    /// Writes an event, if there is room.
    pub fn write(&self, event: &Value) {
        if self.lines.try_send(event.to_string()).is_err() && self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("the audit log cannot keep up; events are lost");
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
}

impl LogFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), length })
    }

    /// Writes lines until nobody can send any.
    fn keep(mut self, queue: &Receiver<String>) {
        while let Ok(line) = queue.recv() {
            let mut outcome = self.line(&line);
            for line in queue.try_iter() {
                outcome = outcome.and_then(|()| self.line(&line));
            }
            if let Err(error) = outcome.and_then(|()| self.file.flush()) {
                tracing::warn!(%error, "the audit log cannot be written");
            }
        }
    }

    fn line(&mut self, line: &str) -> std::io::Result<()> {
        if self.length > FILE_MAX {
            self.file.flush()?;
            let mut older = self.path.as_os_str().to_owned();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            *self = Self::open(&self.path)?;
        }
        self.length += line.len() as u64 + 1;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }
}

/// What is known of a request on its way.
#[derive(Default)]
pub struct Trail {
    seen: Mutex<Seen>,
    /// What admission tells.
    pub notes: Notes,
}

#[derive(Default)]
struct Seen {
    user: Option<Value>,
    impersonated: Option<Value>,
    want: Option<Attributes>,
    version: String,
}

impl Trail {
    /// Who asks, and as whom.
    pub fn user(&self, who: &Identity, acting: &Identity) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.user = Some(authn::user_info(who));
        seen.impersonated = (who != acting).then(|| authn::user_info(acting));
    }

    /// What is asked.
    pub fn request(&self, want: &Attributes, version: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.want = Some(want.clone());
        version.clone_into(&mut seen.version);
    }

    /// The event of a request that was answered.
    pub fn event(&self, request: &Line, code: u16, now: &str, id: &str) -> Value {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let want = seen.want.take().unwrap_or_default();
        let verb = if want.verb.is_empty() { request.method.to_ascii_lowercase() } else { want.verb.clone() };
        let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": id,
            "stage": "ResponseComplete", "requestURI": request.uri, "verb": verb,
            "user": seen.user.take().unwrap_or_else(|| json!({})), "responseStatus": {"metadata": {}, "code": code},
            "requestReceivedTimestamp": request.received, "stageTimestamp": now});
        if let Some(acting) = seen.impersonated.take() {
            event["impersonatedUser"] = acting;
        }
        if !request.agent.is_empty() {
            event["userAgent"] = json!(request.agent);
        }
        if !want.resource.is_empty() {
            let fields = [
                ("resource", &want.resource),
                ("namespace", &want.namespace),
                ("name", &want.name),
                ("apiGroup", &want.group),
                ("apiVersion", &seen.version),
                ("subresource", &want.subresource),
            ];
            let given = fields.iter().filter(|(_, value)| !value.is_empty());
            event["objectRef"] = given.map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        }
        let notes = self.notes.take();
        if !notes.is_empty() {
            event["annotations"] = json!(notes);
        }
        event
    }
}

/// The request's first line, and when it came.
pub struct Line {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub uri: String,
    /// Its user agent.
    pub agent: String,
    /// When it came.
    pub received: String,
}
