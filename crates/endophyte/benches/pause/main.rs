//! How long a guest stands still for a checkpoint, part by part, and what checkpoints cost a guest that computes.
//!
//! ```text
//! cargo bench -p mycelium-endophyte --bench pause
//!     -- --epochs 400 --memory 256 --cpus 1 --svg pauses.svg
//! ```
//! Guests run as on any machine of the product; without KVM they are translated. The slow-down compares stretches of the same
//! run, protected and unprotected in turn.

#[path = "../../tests/support/mod.rs"]
mod support;

mod svg;

use std::time::Duration;

use mycelium_endophyte::clock::monotonic;
use mycelium_endophyte::disk::{BlockServer, Disk, Protection};
use mycelium_endophyte::machine::{Checkpointer, Machine, MachineConfig, PauseTiming, Start};
use support::{Console, Guest};

/// 20 epochs a second.
const EPOCH: Duration = Duration::from_millis(50);

/// A little of everything: a process, some memory, a write to the disk now and then.
const LIGHT: &str = r#"
dd if=/dev/urandom of=/tmp/r bs=64k count=8 2>/dev/null
echo READY
n=0
while :; do
  n=$((n + 1)); cp /tmp/r /tmp/q
  [ $((n % 10)) = 0 ] && dd if=/tmp/r of=/dev/vda bs=64k count=2 conv=fsync 2>/dev/null
  usleep 50000
done
"#;

/// As much as one processor and the memory give: copies and checksums 4 MiB, and says so.
const BOUND: &str = r#"
dd if=/dev/urandom of=/tmp/r bs=1M count=4 2>/dev/null
echo READY
n=0
while :; do n=$((n + 1)); cp /tmp/r /tmp/q; md5sum /tmp/q > /tmp/sum; echo "n $n"; done
"#;

struct Options {
    epochs: u64,
    memory: u64,
    cpus: u32,
    svg: String,
    only: Option<String>,
}

fn main() {
    let options = options();
    support::require_tools();
    if options.only.as_deref() != Some("slowdown") {
        for (name, script) in [("light load", LIGHT), ("computing and copying", BOUND)] {
            let timings = pauses(&options, script);
            report(name, &options, &timings);
            if script == LIGHT {
                std::fs::write(&options.svg, svg::pauses(&timings)).unwrap();
                println!("  drawn in {}", options.svg);
            }
        }
    }
    if options.only.as_deref() != Some("pauses") {
        slow_down(&options);
    }
}

fn options() -> Options {
    let svg = concat!(env!("CARGO_TARGET_TMPDIR"), "/pauses.svg").to_owned();
    let mut options = Options { epochs: 400, memory: 256, cpus: 1, svg, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--epochs" => options.epochs = value().parse().unwrap(),
            "--memory" => options.memory = value().parse().unwrap(),
            "--cpus" => options.cpus = value().parse().unwrap(),
            "--svg" => options.svg = value(),
            "--only" => options.only = Some(value()),
            _ => {}
        }
    }
    options
}

/// A running guest with a disk.
struct Bench {
    checkpointer: Checkpointer,
    console: Console,
    epoch: u64,
    disk: Disk,
    _server: BlockServer,
    _guest: Guest,
}

fn start(options: &Options, script: &str) -> Bench {
    let guest = Guest::new("bench", script);
    let socket = guest.folder().join("disk.sock");
    let disk = Disk::open(&guest.folder().join("disk"), None, Some(64 << 20)).unwrap();
    let server = disk.serve(&socket).unwrap();
    let config = MachineConfig {
        cpus: options.cpus,
        memory_bytes: options.memory << 20,
        disk: Some(socket),
        ..guest.config("a")
    };
    let machine = Machine::start(&config, Start::Running).unwrap();
    let console = guest.console("a");
    console.wait_for("READY");
    std::thread::sleep(Duration::from_secs(1));
    let mut checkpointer = Checkpointer::new(machine).unwrap();
    for _ in 0..4 {
        while !checkpointer.precopy(4096).unwrap().pass_complete {}
    }
    disk.protect(Protection::new(1, 1)).unwrap();
    Bench { checkpointer, console, epoch: 0, disk, _server: server, _guest: guest }
}

impl Bench {
    /// Checkpoints at the rate of [`EPOCH`].
    fn protect(&mut self, epochs: u64) -> Vec<PauseTiming> {
        let mut next = monotonic();
        let mut timings = Vec::new();
        for _ in 0..epochs {
            next += EPOCH;
            std::thread::sleep(next.saturating_sub(monotonic()));
            self.epoch += 1;
            let (disk, epoch) = (&self.disk, self.epoch);
            disk.begin_stop();
            let mut seal = || drop(disk.seal(epoch).unwrap());
            timings.push(self.checkpointer.capture(epoch, &mut seal).unwrap().timing);
        }
        timings
    }

    /// How far the guest has counted.
    fn count(&self) -> u64 {
        let text = self.console.text();
        text.lines().rev().find_map(|line| line.strip_prefix("n ")?.parse().ok()).unwrap_or(0)
    }
}

fn pauses(options: &Options, script: &str) -> Vec<PauseTiming> {
    let mut bench = start(options, script);
    bench.protect(20);
    bench.protect(options.epochs)
}

fn report(name: &str, options: &Options, timings: &[PauseTiming]) {
    let spread = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize];
        format!("{:8.2} {:8.2} {:8.2} {:8.2}", at(0.5), at(0.9), at(0.99), at(1.0))
    };
    println!(
        "{name}: {} epochs at 20/s, {} MiB, {} processor(s)\n  {:24} {:>8} {:>8} {:>8} {:>8}",
        timings.len(),
        options.memory,
        options.cpus,
        "ms",
        "p50",
        "p90",
        "p99",
        "max"
    );
    type Part = (&'static str, fn(&PauseTiming) -> Duration);
    let parts: [Part; 8] = [
        ("stop", |t| t.stop),
        ("at_stop", |t| t.seal),
        ("scan and copy", |t| t.copy),
        ("rest of save", |t| t.save),
        ("second look", |t| t.rescan),
        ("cont", |t| t.cont),
        ("pause as we see it", |t| t.total),
        ("pause as QEMU stamps it", |t| t.guest),
    ];
    for (part, of) in parts {
        println!("  {part:24} {}", spread(timings.iter().map(|t| of(t).as_secs_f64() * 1e3).collect()));
    }
    println!("  {:24} {}", "pages copied in it", spread(timings.iter().map(|t| t.pages as f64).collect()));
    println!("  {:24} {}", "pages copied before it", spread(timings.iter().map(|t| t.early_pages as f64).collect()));
}

fn slow_down(options: &Options) {
    const STRETCH: Duration = Duration::from_secs(4);
    const ROUNDS: u64 = 6;
    let mut bench = start(options, BOUND);
    let (mut free, mut protected) = (0.0, 0.0);
    let mut ratios = Vec::new();
    for round in 0..ROUNDS * 2 {
        let (begin, from) = (monotonic(), bench.count());
        // Turns in the order free, protected, protected, free: a drift of the machine's speed cancels out.
        let protect = matches!(round % 4, 1 | 2);
        if protect {
            bench.protect((STRETCH.as_millis() / EPOCH.as_millis()) as u64);
        } else {
            std::thread::sleep(STRETCH);
        }
        let rate = (bench.count() - from) as f64 / (monotonic() - begin).as_secs_f64();
        *if protect { &mut protected } else { &mut free } += rate;
        ratios.push(rate);
    }
    println!(
        "a guest that computes and copies: {:.2} rounds/s unprotected, {:.2} at 20 epochs/s: {:+.1} % run time",
        free / ROUNDS as f64,
        protected / ROUNDS as f64,
        (free / protected - 1.0) * 100.0
    );
    println!("  by stretch (free, protected, protected, free): {ratios:.2?}");
}
