//! A machine's state in the text format of Prometheus (exposition format 0.0.4), over HTTP.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::HostError;
use super::status::{Peer, Role, Status};

/// A request line and headers that are longer are not read.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Serves `GET /metrics` with whatever `ask` tells, until the process ends.
///
/// # Errors
/// That the address cannot be listened on.
pub(super) async fn serve<F>(address: SocketAddr, ask: impl Fn() -> F + Clone + Send + 'static) -> Result<(), HostError>
where
    F: Future<Output = Vec<Status>> + Send,
{
    let refused =
        |error: std::io::Error| HostError::Refused(format!("--metrics {address} cannot be listened on: {error}"));
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let ask = ask.clone();
            tokio::spawn(async move {
                let mut request = vec![0; REQUEST_BYTES_MAX];
                let Ok(length) = stream.read(&mut request).await else { return };
                let answer = if request[..length].starts_with(b"GET /metrics ") {
                    response("200 OK", &render(&ask().await))
                } else {
                    response("404 Not Found", "only GET /metrics is served here\n")
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(())
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// What a number is.
#[derive(Clone, Copy)]
enum Kind {
    /// It goes up and down.
    Gauge,
    /// It goes up, from nothing when the guest comes to a host or its process begins.
    Counter,
}
use Kind::{Counter, Gauge};

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Gauge => "gauge",
            Counter => "counter",
        }
    }
}

/// What is told of a subject: name, kind, help, and the value, where there is one.
struct Metric<T: ?Sized> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&T) -> Option<f64>,
}

const fn metric<T: ?Sized>(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&T) -> Option<f64>,
) -> Metric<T> {
    Metric { name, kind, help, value }
}

/// Of each machine. Labels: `vm`, `host`.
const MACHINE: &[Metric<Status>] = &[
    metric("vm_primary", Gauge, "1 where the guest runs.", |s| Some(f64::from(u8::from(s.role == Role::Primary)))),
    metric("vm_term", Gauge, "Generation of the group: goes up with each change of primary.", |s| Some(s.term as f64)),
    metric("vm_promotions_total", Counter, "Times this host took the guest over.", |s| Some(s.promotions as f64)),
    metric("vm_epoch_sealed", Gauge, "Last epoch that was taken, or is whole on a backup.", |s| {
        Some(s.epochs.sealed as f64)
    }),
    metric("vm_epoch_released", Gauge, "Last epoch whose output left.", |s| Some(s.epochs.released as f64)),
    metric("vm_epochs_per_second", Gauge, "Checkpoints per second of late.", |s| Some(s.epochs.per_second)),
    metric("vm_epoch_length_seconds", Gauge, "Present length of an epoch.", |s| Some(s.epochs.length_ms / 1e3)),
    metric("vm_release_seconds", Gauge, "From seal to release, median of late.", |s| Some(s.epochs.release_ms / 1e3)),
    metric("vm_pause_p50_seconds", Gauge, "Pause of the guest per checkpoint, median.", |s| Some(s.pause.p50_ms / 1e3)),
    metric("vm_pause_p99_seconds", Gauge, "Pause of the guest per checkpoint, 99th percentile.", |s| {
        Some(s.pause.p99_ms / 1e3)
    }),
    metric("vm_pause_max_seconds", Gauge, "Pause of the guest per checkpoint, longest of late.", |s| {
        Some(s.pause.max_ms / 1e3)
    }),
    metric("vm_throttle_ratio", Gauge, "Share of its processor time that the guest loses.", |s| Some(s.guest.throttle)),
    metric("vm_memory_bytes", Gauge, "Memory of the guest.", |s| Some(s.guest.memory_bytes as f64)),
    metric("vm_buffer_bytes", Gauge, "Replication buffer in use, but for page copies.", |s| {
        Some(s.buffer.bytes as f64)
    }),
    metric("vm_page_copies_bytes", Gauge, "Pages as they were last sent, kept for differences.", |s| {
        Some(s.buffer.page_copies_bytes as f64)
    }),
    metric("vm_buffer_limit_bytes", Gauge, "Size of the replication buffer, page copies included.", |s| {
        Some(s.buffer.limit_bytes as f64)
    }),
    metric("vm_buffer_fill_ratio", Gauge, "Buffer in use and page copies, of its size.", |s| {
        let used = s.buffer.bytes + s.buffer.page_copies_bytes;
        (s.buffer.limit_bytes > 0).then(|| used as f64 / s.buffer.limit_bytes as f64)
    }),
    metric("vm_emergency_pauses_total", Counter, "Times the buffer was full and the guest waited.", |s| {
        Some(s.buffer.emergency_pauses as f64)
    }),
    metric("vm_dirty_bytes_total", Counter, "Bytes of pages that the guest wrote.", |s| {
        Some(s.traffic.dirty_bytes as f64)
    }),
    metric("vm_sent_bytes_total", Counter, "Bytes sent to one backup for them, with disk and devices.", |s| {
        Some(s.traffic.sent_bytes as f64)
    }),
    metric("vm_sent_disk_bytes_total", Counter, "Of these, the disk's.", |s| Some(s.traffic.disk_bytes as f64)),
    metric("vm_disk_size_bytes", Gauge, "Size of the disk.", |s| Some(s.disk.size_bytes as f64)),
    metric("vm_disk_writes_total", Counter, "Writes of the guest to its disk.", |s| Some(s.disk.writes as f64)),
    metric("vm_disk_written_bytes_total", Counter, "Bytes that the guest wrote to its disk.", |s| {
        Some(s.disk.written_bytes as f64)
    }),
    metric(
        "vm_disk_flushes_total",
        Counter,
        "Requests for writes to be durable, the guest's and QEMU's own at each checkpoint.",
        |s| Some(s.disk.flushes as f64),
    ),
    metric("vm_disk_waits_total", Counter, "Writes that waited for the end of an epoch that held too much.", |s| {
        Some(s.disk.waits as f64)
    }),
    metric("vm_egress_held_frames", Gauge, "Frames that wait for their epoch.", |s| Some(s.egress.held_frames as f64)),
    metric("vm_egress_released_frames_total", Counter, "Frames that left.", |s| Some(s.egress.released_frames as f64)),
    metric("vm_ingress_frames_total", Counter, "Frames that came in.", |s| Some(s.egress.ingress_frames as f64)),
    metric("vm_trouble", Gauge, "1 while something keeps this host from its part.", |s| {
        Some(f64::from(u8::from(!s.problem.is_empty())))
    }),
];

/// Of each other member of a machine's group, as this host sees it. Labels: `vm`, `host`, `peer`.
const MEMBER: &[Metric<Peer>] = &[
    metric("vm_peer_epoch", Gauge, "Last epoch that a member holds.", |p| Some(p.epoch as f64)),
    metric("vm_peer_lag_epochs", Gauge, "Epochs that a member is behind.", |p| Some(p.lag as f64)),
    metric("vm_peer_synced_ratio", Gauge, "How much of a member's copy is there; 1 when it is in sync.", |p| {
        Some(p.synced)
    }),
    metric("vm_peer_copy_memory_bytes", Gauge, "Memory that a member's copy under way covers.", |p| {
        Some(p.copy.memory_bytes as f64)
    }),
    metric("vm_peer_copy_memory_done_bytes", Gauge, "Of it, what is there by now.", |p| {
        Some(p.copy.memory_done_bytes as f64)
    }),
    metric("vm_peer_copy_disk_bytes", Gauge, "Disk that a member's copy under way, or catching up, compares.", |p| {
        Some(p.copy.disk_bytes as f64)
    }),
    metric("vm_peer_copy_disk_done_bytes", Gauge, "Of it, what was compared, and sent where it differed.", |p| {
        Some(p.copy.disk_done_bytes as f64)
    }),
    metric("vm_peer_copy_disk_sent_bytes", Gauge, "Content of the disk that had to be sent.", |p| {
        Some(p.copy.disk_sent_bytes as f64)
    }),
    metric("vm_peer_connections", Gauge, "Connections to a member.", |p| {
        Some(p.connections.as_array().map_or(0, Vec::len) as f64)
    }),
];

/// Of each connection to another member. Labels: `vm`, `host`, `peer`, `connection`, `local`, `remote`.
const CONNECTION: &[Metric<Value>] = &[
    metric("vm_connection_active", Gauge, "1 while a connection carries its share, 0 while it is stalled.", |c| {
        Some(f64::from(u8::from(c["state"] == "active")))
    }),
    metric("vm_connection_rtt_seconds", Gauge, "Smoothed round trip.", |c| Some(c["rttUs"].as_f64()? / 1e6)),
    metric("vm_connection_bandwidth_bytes_per_second", Gauge, "Measured rate of delivery.", |c| {
        c["bandwidthBytesPerS"].as_f64()
    }),
    metric("vm_connection_share_ratio", Gauge, "Its part of what was delivered of late.", |c| c["share"].as_f64()),
    metric("vm_connection_in_flight_bytes", Gauge, "Bytes handed to it and not acknowledged.", |c| {
        c["inFlightBytes"].as_f64()
    }),
    metric("vm_connection_sent_bytes_total", Counter, "Bytes of messages sent over it.", |c| c["sentBytes"].as_f64()),
    metric("vm_connection_received_bytes_total", Counter, "Bytes of messages received over it.", |c| {
        c["receivedBytes"].as_f64()
    }),
    metric("vm_connection_sent_chunks_total", Counter, "Chunks sent over it.", |c| c["sentChunks"].as_f64()),
    metric("vm_connection_resent_chunks_total", Counter, "Of these, what had been sent before.", |c| {
        c["resentChunks"].as_f64()
    }),
];

const ROLES: [Role; 4] = [Role::Joining, Role::Primary, Role::Backup, Role::Witness];
const STATES: [&str; 6] = ["primary", "backup", "syncing", "witness", "member", "away"];
const MODES: [&str; 3] = ["output-commit", "at-once", "standby"];

/// What is one of several words: 1 for the word that holds, 0 for the others.
const WORDS: [(&str, &str, &str); 3] = [
    ("vm_role", "role", "What this host does for the machine."),
    ("vm_output_mode", "mode", "What becomes of the guest's frames: held until they are safe, or sent at once."),
    ("vm_peer_state", "state", "What a member is."),
];

/// All machines as text.
fn render(all: &[Status]) -> String {
    let mut page = Page::default();
    for metric in MACHINE {
        page.head(metric.name, metric.kind, metric.help);
        for status in all {
            page.sample(metric.name, &labels(status), (metric.value)(status));
        }
    }
    let [role, mode, state] = WORDS;
    page.words(role, all.iter().map(|s| (labels(s), s.role.to_string())), &ROLES.map(|role| role.to_string()));
    page.words(mode, all.iter().map(|s| (labels(s), s.egress.mode.clone())), &MODES.map(str::to_owned));
    let peers = || all.iter().flat_map(|status| status.peers.iter().map(move |peer| (status, peer)));
    page.words(state, peers().map(|(s, peer)| (of_peer(s, peer), peer.state.clone())), &STATES.map(str::to_owned));
    for metric in MEMBER {
        page.head(metric.name, metric.kind, metric.help);
        for (status, peer) in peers() {
            page.sample(metric.name, &of_peer(status, peer), (metric.value)(peer));
        }
    }
    for metric in CONNECTION {
        page.head(metric.name, metric.kind, metric.help);
        for (status, peer) in peers() {
            for connection in peer.connections.as_array().into_iter().flatten() {
                let field = |name: &str| escape(connection[name].as_str().unwrap_or_default());
                let labels = format!(
                    "{},connection=\"{}\",local=\"{}\",remote=\"{}\"",
                    of_peer(status, peer),
                    connection["id"],
                    field("local"),
                    field("remote")
                );
                page.sample(metric.name, &labels, (metric.value)(connection));
            }
        }
    }
    page.text
}

fn labels(status: &Status) -> String {
    format!("vm=\"{}\",host=\"{}\"", escape(&status.vm), escape(&status.host))
}

fn of_peer(status: &Status, peer: &Peer) -> String {
    format!("{},peer=\"{}\"", labels(status), escape(&peer.name))
}

/// A page under way. Writing to a string does not fail.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = kind.name();
        let _ = writeln!(self.text, "# HELP mycelium_{name} {help}\n# TYPE mycelium_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: Option<f64>) {
        if let Some(value) = value {
            let _ = writeln!(self.text, "mycelium_{name}{{{labels}}} {value}");
        }
    }

    fn words(
        &mut self,
        (name, label, help): (&str, &str, &str),
        samples: impl Iterator<Item = (String, String)>,
        known: &[String],
    ) {
        self.head(name, Gauge, help);
        for (labels, found) in samples {
            for word in known {
                let holds = f64::from(u8::from(*word == found));
                self.sample(name, &format!("{labels},{label}=\"{word}\""), Some(holds));
            }
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list of `docs/vm-metrics.md`.
    fn reference() -> String {
        fn rows<T>(table: &mut String, all: &[Metric<T>], labels: &str) {
            for metric in all {
                let (name, kind, help) = (metric.name, metric.kind.name(), metric.help);
                table.push_str(&format!("| `mycelium_{name}` | {kind} | {labels} | {help} |\n"));
            }
        }
        let mut table = "| name | kind | labels | what |\n|---|---|---|---|\n".to_owned();
        rows(&mut table, MACHINE, "`vm` `host`");
        for (name, label, help) in WORDS {
            let peer = if name == "vm_peer_state" { " `peer`" } else { "" };
            table.push_str(&format!("| `mycelium_{name}` | gauge | `vm` `host`{peer} `{label}` | {help} |\n"));
        }
        rows(&mut table, MEMBER, "`vm` `host` `peer`");
        rows(&mut table, CONNECTION, "`vm` `host` `peer` `connection` `local` `remote`");
        table
    }

    #[test]
    fn the_page_lists_what_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vm-metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page.contains(&reference()), "docs/vm-metrics.md must hold this table:\n{}", reference());
    }

    #[test]
    fn every_sample_has_its_type_and_labels_are_escaped() {
        let mut status = Status { vm: "a\"b".into(), host: "h".into(), role: Role::Primary, ..Status::default() };
        status.epochs.sealed = 7;
        status.egress.mode = "output-commit".into();
        let connections = serde_json::json!([{"id": 3, "local": "[::1]:1", "remote": "[::1]:2", "state": "stalled",
            "rttUs": 250, "share": 0.5, "sentBytes": 9, "resentChunks": 4}]);
        status.peers.push(Peer { name: "c".into(), lag: 2, state: "syncing".into(), connections, ..Peer::default() });
        let text = render(&[status]);
        let has = |line: &str| assert!(text.lines().any(|one| one == format!("mycelium_{line}")), "{line}\n{text}");
        has("vm_epoch_sealed{vm=\"a\\\"b\",host=\"h\"} 7");
        has("vm_role{vm=\"a\\\"b\",host=\"h\",role=\"primary\"} 1");
        has("vm_output_mode{vm=\"a\\\"b\",host=\"h\",mode=\"at-once\"} 0");
        has("vm_peer_lag_epochs{vm=\"a\\\"b\",host=\"h\",peer=\"c\"} 2");
        has("vm_peer_state{vm=\"a\\\"b\",host=\"h\",peer=\"c\",state=\"syncing\"} 1");
        let link = "vm=\"a\\\"b\",host=\"h\",peer=\"c\",connection=\"3\",local=\"[::1]:1\",remote=\"[::1]:2\"";
        has(&format!("vm_connection_rtt_seconds{{{link}}} 0.00025"));
        has(&format!("vm_connection_resent_chunks_total{{{link}}} 4"));
        has(&format!("vm_connection_active{{{link}}} 0"));
        assert!(!text.contains("bandwidth_bytes_per_second{"), "what is not measured is not told: {text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap_or_default();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{line}");
            assert!(text.contains(&format!("# HELP {name} ")), "{line}");
        }
        let counters = text.lines().filter(|line| line.ends_with(" counter"));
        counters.for_each(|line| assert!(line.contains("_total "), "{line}"));
    }
}
