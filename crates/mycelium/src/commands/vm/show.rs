//! A machine's state as text.

use mycelium_endophyte::host::status::Status;

use crate::client::table::Table;

const MIB: f64 = (1_u64 << 20) as f64;

/// One line per machine, and below it the details of each if asked for.
pub fn text(all: &[Status], details: bool) -> String {
    let mut table = Table::new([
        "NAME",
        "ROLE",
        "PRIMARY",
        "TERM",
        "EPOCH",
        "EPOCHS/S",
        "PAUSE P50/P99",
        "LAG",
        "BUFFER",
        "THROTTLE",
        "PHASE",
    ]);
    for status in all {
        table.row(row(status));
    }
    let mut text = table.render(true, &[]);
    if details {
        for status in all {
            text.push('\n');
            text.push_str(&describe(status));
        }
    }
    text
}

fn row(status: &Status) -> [String; 11] {
    let lag = status.peers.iter().filter(|peer| peer.state == "backup").map(|peer| peer.lag).max();
    [
        status.vm.clone(),
        status.role.to_string(),
        status.primary.clone().unwrap_or_else(|| "-".into()),
        status.term.to_string(),
        status.epochs.sealed.to_string(),
        format!("{:.0}", status.epochs.per_second),
        format!("{:.1}/{:.1} ms", status.pause.p50_ms, status.pause.p99_ms),
        lag.map_or_else(|| "-".into(), |lag| lag.to_string()),
        format!("{:.0}/{:.0} MiB", status.buffer.bytes as f64 / MIB, status.buffer.limit_bytes as f64 / MIB),
        format!("{:.0} %", status.guest.throttle * 100.0),
        status.phase.clone(),
    ]
}

fn describe(status: &Status) -> String {
    let mut lines = vec![format!("{} on {}", status.vm, status.host)];
    if !status.problem.is_empty() {
        lines.push(format!("  problem   {}", status.problem));
    }
    if let Some(migration) = &status.migration {
        lines.push(format!(
            "  moving    to {}, lag {:.2} (switches at {})",
            migration.to, migration.lag, migration.lag_limit
        ));
    }
    if !status.guest.qemu.is_empty() {
        let guest = &status.guest;
        lines.push(format!(
            "  guest     {} cpus, {:.0} MiB, QEMU {} with {}",
            guest.cpus,
            guest.memory_bytes as f64 / MIB,
            guest.qemu,
            guest.accelerator
        ));
    }
    let epochs = &status.epochs;
    lines.push(format!(
        "  epochs    sealed {}, released {}; {:.1} ms long, released {:.1} ms later",
        epochs.sealed, epochs.released, epochs.length_ms, epochs.release_ms
    ));
    let traffic = &status.traffic;
    let per_byte = if traffic.dirty_bytes == 0 { 0.0 } else { traffic.sent_bytes as f64 / traffic.dirty_bytes as f64 };
    lines.push(format!(
        "  sent      {:.1} MiB for {:.1} MiB of dirty memory ({per_byte:.2} per byte), {:.1} MiB of it disk",
        traffic.sent_bytes as f64 / MIB,
        traffic.dirty_bytes as f64 / MIB,
        traffic.disk_bytes as f64 / MIB
    ));
    let egress = &status.egress;
    lines.push(format!(
        "  network   {}, {} frames held, {} out, {} in",
        egress.mode, egress.held_frames, egress.released_frames, egress.ingress_frames
    ));
    for peer in &status.peers {
        lines.push(format!(
            "  {:<9} {} {}, epoch {}, {:.0} % synced",
            peer.state,
            peer.name,
            peer.address,
            peer.epoch,
            peer.synced * 100.0
        ));
        lines.extend(connections(&peer.connections));
    }
    for event in &status.events {
        lines.push(format!("  {}  {}", event.time, event.text));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A line per connection: where it goes, how it does, and what it carried.
fn connections(all: &serde_json::Value) -> Vec<String> {
    let each = all.as_array().into_iter().flatten();
    each.map(|connection| {
        let text = |field: &str| connection[field].as_str().unwrap_or("?").to_owned();
        let number = |field: &str| connection[field].as_f64().unwrap_or(0.0);
        format!(
            "            {} -> {}  {}, rtt {:.2} ms, {:.1} MiB/s, share {:.0} %, {:.1} MiB sent",
            text("local"),
            text("remote"),
            text("state"),
            number("rttUs") / 1e3,
            number("bandwidthBytesPerS") / MIB,
            number("share") * 100.0,
            number("sentBytes") / MIB
        )
    })
    .collect()
}
