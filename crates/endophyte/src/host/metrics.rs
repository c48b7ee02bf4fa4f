//! A machine's state in the text format of Prometheus (exposition format 0.0.4), over HTTP.

use std::fmt::Write as _;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::HostError;
use super::status::{Role, Status};

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

/// Name, kind, help, and the value of one machine.
type Metric = (&'static str, &'static str, &'static str, fn(&Status) -> f64);

const METRICS: &[Metric] = &[
    ("vm_primary", "gauge", "1 where the guest runs.", |status| f64::from(u8::from(status.role == Role::Primary))),
    ("vm_term", "gauge", "Generation of the group.", |status| status.term as f64),
    ("vm_epoch_sealed", "counter", "Last epoch that was taken, or is whole on a backup.", |status| {
        status.epochs.sealed as f64
    }),
    ("vm_epoch_released", "counter", "Last epoch whose output left.", |status| status.epochs.released as f64),
    ("vm_epochs_per_second", "gauge", "Checkpoints per second of late.", |status| status.epochs.per_second),
    ("vm_epoch_length_seconds", "gauge", "Present length of an epoch.", |status| status.epochs.length_ms / 1e3),
    ("vm_release_seconds", "gauge", "From seal to release, median of late.", |status| status.epochs.release_ms / 1e3),
    ("vm_pause_p50_seconds", "gauge", "Pause of the guest per checkpoint, median.", |status| status.pause.p50_ms / 1e3),
    ("vm_pause_p99_seconds", "gauge", "Pause of the guest per checkpoint, 99th percentile.", |status| {
        status.pause.p99_ms / 1e3
    }),
    ("vm_throttle_ratio", "gauge", "Share of its processor time that the guest loses.", |status| status.guest.throttle),
    ("vm_buffer_bytes", "gauge", "Replication buffer in use.", |status| status.buffer.bytes as f64),
    ("vm_buffer_limit_bytes", "gauge", "Size of the replication buffer.", |status| status.buffer.limit_bytes as f64),
    ("vm_emergency_pauses_total", "counter", "Times the buffer was full and the guest waited.", |status| {
        status.buffer.emergency_pauses as f64
    }),
    ("vm_dirty_bytes_total", "counter", "Bytes of pages that the guest wrote.", |status| {
        status.traffic.dirty_bytes as f64
    }),
    ("vm_sent_bytes_total", "counter", "Bytes sent to one backup for them.", |status| status.traffic.sent_bytes as f64),
    ("vm_disk_bytes_total", "counter", "Of these, the disk's.", |status| status.traffic.disk_bytes as f64),
    ("vm_egress_held_frames", "gauge", "Frames that wait for their epoch.", |status| status.egress.held_frames as f64),
    ("vm_egress_released_frames_total", "counter", "Frames that left.", |status| status.egress.released_frames as f64),
    ("vm_ingress_frames_total", "counter", "Frames that came in.", |status| status.egress.ingress_frames as f64),
];

/// All machines as text.
fn render(all: &[Status]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = writeln!(text, "# HELP mycelium_{name} {help}\n# TYPE mycelium_{name} {kind}");
        for status in all {
            let _ = writeln!(
                text,
                "mycelium_{name}{{vm=\"{}\",host=\"{}\"}} {}",
                escape(&status.vm),
                escape(&status.host),
                value(status)
            );
        }
    }
    let _ = writeln!(
        text,
        "# HELP mycelium_vm_peer_lag_epochs Epochs that a member is behind.\n# TYPE mycelium_vm_peer_lag_epochs gauge"
    );
    for status in all {
        for peer in &status.peers {
            let (vm, name, state) = (escape(&status.vm), escape(&peer.name), &peer.state);
            let _ = writeln!(
                text,
                "mycelium_vm_peer_lag_epochs{{vm=\"{vm}\",peer=\"{name}\",state=\"{state}\"}} {}",
                peer.lag
            );
        }
    }
    connections(all, &mut text);
    text
}

/// What each connection to another host carried.
fn connections(all: &[Status], text: &mut String) {
    let _ = writeln!(
        text,
        "# HELP mycelium_vm_connection_sent_bytes_total Bytes sent over a connection.\n# TYPE mycelium_vm_connection_sent_bytes_total counter"
    );
    for status in all {
        for peer in &status.peers {
            for connection in peer.connections.as_array().into_iter().flatten() {
                let field = |name: &str| escape(connection[name].as_str().unwrap_or_default());
                let (vm, name) = (escape(&status.vm), escape(&peer.name));
                let sent = connection["sentBytes"].as_u64().unwrap_or_default();
                let (local, remote) = (field("local"), field("remote"));
                let _ = writeln!(
                    text,
                    "mycelium_vm_connection_sent_bytes_total{{vm=\"{vm}\",peer=\"{name}\",local=\"{local}\",remote=\"{remote}\"}} {sent}"
                );
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
    use crate::host::status::Peer;

    #[test]
    fn every_sample_has_its_type_and_labels_are_escaped() {
        let mut status = Status { vm: "a\"b".into(), host: "h".into(), ..Status::default() };
        status.epochs.sealed = 7;
        status.peers.push(Peer { name: "c".into(), lag: 2, ..Peer::default() });
        let text = render(&[status]);
        assert!(text.contains("mycelium_vm_epoch_sealed{vm=\"a\\\"b\",host=\"h\"} 7"), "{text}");
        assert!(text.contains("peer=\"c\",state=\"\"} 2"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap_or_default();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
