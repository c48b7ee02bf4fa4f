//! A machine that boots its disk, and all that its operator sees of it: progress, status, console, metrics, shutdown.

use std::io::{BufRead, BufReader};
use std::process::Output;

use mycelium_endophyte::machine::kvm_works;
use serde_json::Value;

use crate::common::{eventually, eventually_within};
use crate::console::speak;
use crate::guests::{BOOTS, VM, bootable_image, run_vm, shut_down};
use crate::lab::{Lab, METRICS, parts, said};
use crate::numbers::Client;
use crate::random::Random;

/// The value of a metric for which all of these labels hold.
fn value(metrics: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let holds = |line: &&str| {
        line.starts_with(&format!("mycelium_{name}{{"))
            && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    };
    metrics.lines().find(holds)?.rsplit_once(' ')?.1.parse().ok()
}

/// `vm run --disk x.qcow2`: it boots by itself, is copied to the backups with all of its disk, and outlives its host.
#[test]
fn a_disk_boots_and_outlives_its_host() {
    let mut random = Random::new();
    let image = bootable_image().to_string_lossy().into_owned();
    let mut lab = Lab::new(3);
    lab.host("b").stand_by_and_tell();
    lab.host("c").stand_by_and_tell();
    // Slow enough to be looked at.
    lab.slow("a", 100);
    run_vm(&mut lab, "a", &["b", "c"], &["--name", VM, "--disk", &image, "--memory", "96Mi", "--metrics", METRICS]);
    let copied = eventually("a copy is under way", || {
        let (_, status) = lab.primary(VM).ok_or("no primary")?;
        let partly = |peer: &&mycelium_endophyte::host::status::Peer| peer.synced > 0.0 && peer.synced < 1.0;
        status.peers.iter().find(partly).cloned().ok_or(format!("{:?}", status.peers))
    });
    assert_eq!((copied.copy.memory_bytes, copied.state.as_str()), (96 << 20, "syncing"));
    assert!(copied.copy.disk_bytes > 0, "{copied:?}");
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 2);
    lab.fast("a");
    eventually_within(BOOTS, "the guest boots", || if client.heard() > 0 { Ok(()) } else { Err("silence".to_owned()) });
    client.goes_on();
    // It is told every quarter of a second.
    eventually("the copies' progress is told to its end", || {
        let log = lab.host("a").log();
        let whole = |backup: &&str| {
            let parts = parts(&log, backup);
            parts.iter().any(|part| (1..100).contains(part)) && parts.last() == Some(&100)
        };
        if ["b", "c"].iter().all(whole) { Ok(()) } else { Err(log) }
    });

    let (primary, _) = steady(&mut lab, 2, |lab, primary, other| {
        let refused = lab.host(other).vm(&["console", VM]);
        let sentence =
            format!("the guest of \"{VM}\" does not run on this host but on {primary}: open its console there");
        if refused.status.code() == Some(1) && said(&refused).contains(&sentence) {
            Ok(())
        } else {
            Err(said(&refused))
        }
    });
    speak(&mut lab, "who is there");
    let shown = steady(&mut lab, 2, |lab, primary, _| Ok(said(&lab.host(primary).vm(&["status", VM]))));
    table(&shown.0, &shown.1);
    let shown = steady(&mut lab, 2, |lab, primary, _| Ok(lab.host(primary).vm(&["status", VM, "-o", "json"])));
    json(&shown.0, &shown.1);
    watch(&mut lab, &primary);
    told_by_metrics(&mut lab, 2);

    let primary = lab.protected(VM, 2);
    lab.power_off(&primary);
    client.goes_on();
    lab.protected(VM, 1);
    assert_ne!(speak(&mut lab, "still there"), primary);
    client.goes_on();
    assert!(told_by_metrics(&mut lab, 1) >= 1.0, "it took over");
    let heir = lab.protected(VM, 1);
    shut_down(&mut lab, &heir, VM);
}

/// What is seen on the host that has the guest and on a backup in sync, while they are that: on a busy machine they may
/// change their parts. Tells which host had the guest.
fn steady<T>(
    lab: &mut Lab,
    backups: usize,
    mut look: impl FnMut(&mut Lab, &str, &str) -> Result<T, String>,
) -> (String, T) {
    eventually("the hosts keep their parts while they are looked at", || {
        let primary = lab.protected(VM, backups);
        let now = |lab: &Lab| {
            let (name, status) = lab.primary(VM)?;
            let backup = status.peers.iter().find(|peer| peer.state == "backup")?.name.clone();
            (name == primary).then_some((status.term, backup))
        };
        let before = now(lab).ok_or("the primary changed")?;
        let seen = look(lab, &primary, &before.1);
        if now(lab) == Some(before) { seen.map(|seen| (primary, seen)) } else { Err("their parts changed".to_owned()) }
    })
}

/// One line with the columns, and the details below.
fn table(primary: &str, shown: &str) {
    let mut lines = shown.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let columns = ["NAME", "ROLE", "PRIMARY", "TERM", "EPOCH", "EPOCHS/S", "PAUSE", "P50/P99", "LAG", "BUFFER"];
    assert_eq!(head[..10], columns, "{shown}");
    assert_eq!(head[10..], ["THROTTLE", "PHASE"], "{shown}");
    let row: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..3], [VM, "primary", primary], "{shown}");
    assert!(row[4].parse::<u64>().is_ok_and(|epoch| epoch > 0), "{shown}");
    let connection = shown.lines().find(|line| line.contains(" -> ")).unwrap_or_default();
    for word in ["10.77.0.", "active, rtt ", " MiB/s, share ", " MiB sent"] {
        assert!(connection.contains(word), "{word:?} is missing in {connection:?} of\n{shown}");
    }
}

/// The fields that others may rely on, and what is true of them.
fn json(primary: &str, shown: &Output) {
    let status: Value =
        serde_json::from_slice(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(shown)));
    let at = |place: &str| status.pointer(place).unwrap_or_else(|| panic!("{place} is missing in {status:#}"));
    assert_eq!((at("/vm"), at("/role"), at("/host")), (&VM.into(), &"primary".into(), &primary.into()));
    assert_eq!(at("/primary"), primary);
    assert_eq!(at("/egress/mode"), "output-commit");
    assert_eq!(at("/guest/memoryBytes"), 96 << 20);
    // What runs the guest is what the trial found.
    assert_eq!(at("/guest/accelerator"), if kvm_works().is_ok() { "kvm" } else { "tcg" });
    let numbers = [
        "/term",
        "/promotions",
        "/epochs/sealed",
        "/epochs/released",
        "/epochs/perSecond",
        "/epochs/lengthMs",
        "/epochs/releaseMs",
        "/pause/p50Ms",
        "/pause/p99Ms",
        "/pause/maxMs",
        "/buffer/bytes",
        "/buffer/pageCopiesBytes",
        "/buffer/limitBytes",
        "/buffer/emergencyPauses",
        "/guest/throttle",
        "/traffic/dirtyBytes",
        "/traffic/sentBytes",
        "/traffic/diskBytes",
        "/egress/heldFrames",
        "/egress/releasedFrames",
        "/disk/writes",
        "/disk/flushes",
        "/peers/0/epoch",
        "/peers/0/lag",
        "/peers/0/synced",
        "/peers/0/copy/diskBytes",
        "/peers/0/connections/0/share",
        "/peers/0/connections/0/sentBytes",
        "/peers/0/connections/0/resentChunks",
    ];
    numbers.iter().for_each(|place| assert!(at(place).is_number(), "{place}: {}", at(place)));
    assert!(at("/disk/sizeBytes").as_u64() >= Some(10 << 30), "the size by default: {}", at("/disk/sizeBytes"));
    assert!(at("/events/0/time").is_string() && at("/events/0/text").is_string());
}

/// It goes on showing.
fn watch(lab: &mut Lab, primary: &str) {
    let mut child = lab.host(primary).begin(&["status", VM, "--watch"]);
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    let shown = lines.filter(|line| line.starts_with("NAME ")).take(2).count();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(shown, 2, "it ended by itself");
}

/// What Prometheus hears from the host that has the guest, and from a backup. Tells how often the former took over.
fn told_by_metrics(lab: &mut Lab, backups: usize) -> f64 {
    let (primary, (here, backup, there)) = steady(lab, backups, |lab, primary, backup| {
        let (here, there) = (lab.metrics(primary), lab.metrics(backup));
        // The first epochs, and what is measured on connections, take a moment after a takeover.
        let moving = ["vm_epoch_released", "vm_connection_bandwidth_bytes_per_second", "vm_pause_p50_seconds"];
        let still = moving.iter().find(|name| value(&here, name, &[]).is_none_or(|value| value <= 0.0));
        still.map_or(Ok((here.clone(), backup.to_owned(), there)), |name| Err(format!("no {name} yet\n{here}")))
    });
    let primary = primary.as_str();
    let is = |name: &str, labels: &[(&str, &str)], wanted: f64| {
        assert_eq!(value(&here, name, labels), Some(wanted), "{name} {labels:?}\n{here}");
    };
    let positive = |name: &str, labels: &[(&str, &str)]| {
        assert!(value(&here, name, labels).is_some_and(|value| value > 0.0), "{name} {labels:?}\n{here}");
    };
    let me = [("vm", VM), ("host", primary)];
    is("vm_role", &[("role", "primary"), me[0], me[1]], 1.0);
    is("vm_role", &[("role", "backup")], 0.0);
    is("vm_output_mode", &[("mode", "output-commit")], 1.0);
    is("vm_peer_state", &[("peer", &backup), ("state", "backup")], 1.0);
    is("vm_peer_synced_ratio", &[("peer", &backup)], 1.0);
    for name in ["vm_term", "vm_epoch_sealed", "vm_epoch_released", "vm_pause_p50_seconds", "vm_pause_p99_seconds"] {
        positive(name, &me);
    }
    for name in ["vm_dirty_bytes_total", "vm_sent_bytes_total", "vm_page_copies_bytes", "vm_buffer_fill_ratio"] {
        positive(name, &me);
    }
    positive("vm_egress_released_frames_total", &me);
    positive("vm_disk_size_bytes", &me);
    for name in ["vm_disk_writes_total", "vm_disk_flushes_total", "vm_disk_written_bytes_total"] {
        assert!(value(&here, name, &me).is_some(), "{name}\n{here}");
    }
    let link = [("peer", backup.as_str())];
    for name in ["rtt_seconds", "bandwidth_bytes_per_second", "sent_bytes_total", "sent_chunks_total"] {
        positive(&format!("vm_connection_{name}"), &link);
    }
    for name in ["share_ratio", "active", "resent_chunks_total"] {
        assert!(value(&here, &format!("vm_connection_{name}"), &link).is_some(), "{name}\n{here}");
    }

    let role = [("vm", VM), ("host", backup.as_str()), ("role", "backup")];
    assert_eq!(value(&there, "vm_role", &role), Some(1.0), "{there}");
    assert!(value(&there, "vm_epoch_sealed", &role[..2]).is_some_and(|epoch| epoch > 0.0), "{there}");
    value(&here, "vm_promotions_total", &me).expect("promotions")
}
