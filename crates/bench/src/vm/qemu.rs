//! The peer of a planned migration: QEMU's own, of the same guest on the same board, with its default settings.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::beats::{Beats, now};
use super::guest::Guest;
use super::lab::{Lab, address, eventually, run};
use crate::engine::command;

/// A QEMU that nobody manages.
struct Qemu {
    child: Child,
    socket: PathBuf,
    qmp: Option<BufReader<UnixStream>>,
}

impl Qemu {
    fn start(lab: &Lab, host: &str, guest: &Guest, incoming: bool) -> Result<Self> {
        let namespace = lab.namespace(host);
        for words in ["tuntap add dev tap0 mode tap", "link set tap0 master br0 up"] {
            run(command("ip").args(["-n", &namespace]).args(words.split_whitespace()))?;
        }
        let socket = lab.folder().join(format!("qmp-{host}"));
        let mut command = lab.inside(host, "qemu-system-x86_64");
        // The board and devices that `crates/endophyte/src/machine/config.rs` gives it.
        let board = "pc-q35-7.2,sata=off,smbus=off,usb=off,vmport=off,dump-guest-core=off";
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", board]);
        command.args(["-accel", "tcg,thread=multi", "-smp", "1", "-m", "256M"]).args(guest.qemu_arguments());
        command.args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"]);
        command.args(["-device", "virtio-net-pci,id=net,netdev=net,mac=52:54:00:00:77:50,romfile="]);
        command.args(["-serial", "null", "-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        if incoming {
            command.args(["-incoming", "tcp:0.0.0.0:4444"]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("qemu-system-x86_64")?;
        let mut qemu = Self { child, socket, qmp: None };
        let stream = eventually("QEMU listens", || UnixStream::connect(&qemu.socket).ok())?;
        qemu.qmp = Some(BufReader::new(stream));
        qemu.read()?;
        qemu.ask("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.qmp.as_mut().context("no QMP")?.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let words = json!({ "execute": command, "arguments": arguments }).to_string();
        self.qmp.as_mut().context("no QMP")?.get_mut().write_all(words.as_bytes())?;
        loop {
            let answer = self.read()?;
            match (&answer["return"], &answer["error"]["desc"]) {
                (_, Value::String(error)) => bail!("QEMU refused {command}: {error}"),
                (Value::Null, _) => {}
                (done, _) => return Ok(done.clone()),
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How QEMU's own migration went.
pub struct Migration {
    /// By its own word, in milliseconds.
    pub downtime_ms: f64,
    /// The longest silence that the client noticed.
    pub silence_ms: f64,
    /// From the order to its end.
    pub total_ms: f64,
}

/// Migrates a running guest from `a` to `b`, on which nothing else runs.
pub fn migrate(lab: &Lab, guest: &Guest, beats: &Beats) -> Result<Migration> {
    let mut source = Qemu::start(lab, "a", guest, false)?;
    let _target = Qemu::start(lab, "b", guest, true)?;
    beats.go_on()?;
    std::thread::sleep(Duration::from_secs(3));
    let from = now();
    source.ask("migrate", json!({ "uri": format!("tcp:{}:4444", address("b")) }))?;
    let outcome = eventually("QEMU has migrated", || {
        let state = source.ask("query-migrate", json!({})).ok()?;
        matches!(state["status"].as_str(), Some("completed" | "failed")).then_some(state)
    })?;
    beats.go_on()?;
    if outcome["status"] != "completed" {
        bail!("QEMU's own migration failed: {outcome}");
    }
    let number = |field: &str| outcome[field].as_f64().unwrap_or(f64::NAN);
    let silence_ms = beats.longest_silence(from, now()).0;
    for host in ["a", "b"] {
        // Gone with its QEMU; otherwise a next one could not have the name.
        let _ = run(command("ip").args(["-n", &lab.namespace(host), "link", "delete", "tap0"]));
    }
    Ok(Migration { downtime_ms: number("downtime"), silence_ms, total_ms: number("total-time") })
}
