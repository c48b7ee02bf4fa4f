//! Hosts lose their power in each phase of an epoch's life, and of a promotion.
//!
//! A phase is found from outside: the process is stopped at a random moment (SIGSTOP), and what its threads were about is
//! read from `/proc`; if it is another phase, the process goes on and is stopped again. So the power goes exactly there.

use std::fs;
use std::thread;
use std::time::Duration;

use mycelium_endophyte::host::status::{Role, Status};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::common::{PATIENCE, command, run};
use crate::guests::{VM, numbers, order};
use crate::lab::{Lab, states};
use crate::random::{Random, setting};

/// System calls by number (x86-64): waiting for QEMU's answer, and looking for written pages.
const WAITING: [&str; 4] = ["0", "7", "45", "47"];
const IOCTL: &str = "16";
const FUTEX: &str = "202";
/// A thread that was not in the kernel.
const COMPUTING: &str = "-1";

/// Bytes that the sockets hold of an epoch of a guest that rewrites memory.
const EPOCH_LEAST: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// QEMU is asked to stop the guest, to save its devices, or to let it go on.
    Paused,
    /// Written pages are looked for and copied.
    Copying,
    /// An epoch is in the primary's sockets, and no further: its cable is out.
    Sending,
    /// Backups have answered, and the primary has not heard it.
    Acknowledging,
    /// A backup writes an epoch into its copy; it is the backup that is lost.
    Applying,
    /// A backup takes over after the primary was lost, and is lost too.
    Promoting,
}

/// A process that stands still until this is dropped, or the process is gone.
struct Still(Pid);

impl Still {
    fn of(process: u32) -> Self {
        let pid = Pid::from_raw(process.cast_signed()).expect("a process");
        kill_process(pid, Signal::STOP).expect("it runs");
        let still = Self(pid);
        // At once, since the others notice within milliseconds that it is silent.
        while still.threads().iter().any(|(.., state)| state != "T") {}
        still
    }

    /// Name, present system call and state of each of its threads.
    fn threads(&self) -> Vec<(String, String, String)> {
        let folder = format!("/proc/{}/task", self.0.as_raw_nonzero());
        let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let tasks = fs::read_dir(folder).expect("threads").map_while(Result::ok).map(|task| task.path());
        tasks
            .map(|task| {
                let (stat, call) = (read(task.join("stat")), read(task.join("syscall")));
                let state = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                let number = call.split(' ').next().unwrap_or_default();
                (read(task.join("comm")), number.to_owned(), state.to_owned())
            })
            .collect()
    }

    /// What a thread was about.
    fn call(&self, name: &str) -> String {
        self.threads().into_iter().find(|(thread, ..)| thread == name).map_or(String::new(), |(_, call, _)| call)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Stops the process of the primary, or of a backup in sync, again and again until `there` holds of it, and leaves it so.
fn catch(lab: &mut Lab, random: &mut Random, role: Role, there: impl Fn(&Still) -> bool) -> (String, Still) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_micros(500 + random.below(5000)));
        // A process that stands still for long on a busy machine may be taken for lost; that must be over before the next.
        let Some((primary, status)) = lab.primary(VM) else { continue };
        let backups: Vec<_> = states(&status).into_iter().filter(|(_, state)| *state == "backup").collect();
        if backups.len() < 2 {
            continue;
        }
        let host = if role == Role::Primary { &primary } else { backups[random.below(2) as usize].0 };
        let still = Still::of(lab.host(host).process());
        if there(&still) {
            return (host.to_owned(), still);
        }
    }
    panic!("it was never so");
}

/// Bytes that wait in the sockets of a host's links, to be read and to be sent.
fn waiting(lab: &Lab, host: &str) -> (u64, u64) {
    let namespace = lab.namespace(host);
    let text = run(command("ip").args(["netns", "exec", &namespace, "ss", "-Htn", "state", "established"]));
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    text.lines().fold((0, 0), |(read, sent), line| {
        let mut words = line.split_whitespace();
        (read + number(words.next()), sent + number(words.next()))
    })
}

/// Waits until a host is in the phase and cuts its power there; tells which hosts were lost.
fn lose(lab: &mut Lab, random: &mut Random, phase: Phase) -> Vec<String> {
    let primary = lab.protected(VM, 2);
    let (lost, _still) = match phase {
        Phase::Paused => catch(lab, random, Role::Primary, |still| WAITING.contains(&&*still.call("checkpoints"))),
        Phase::Copying => {
            catch(lab, random, Role::Primary, |still| [IOCTL, COMPUTING].contains(&&*still.call("checkpoints")))
        }
        Phase::Sending => {
            lab.cable(&primary, false);
            // More than signs of life: those are a few hundred bytes in the time that an epoch takes.
            soon("an epoch is sent", || waiting(lab, &primary).1 > EPOCH_LEAST);
            let still = Still::of(lab.host(&primary).process());
            (primary, still)
        }
        Phase::Acknowledging => {
            let still = Still::of(lab.host(&primary).process());
            soon("something is answered", || waiting(lab, &primary).0 > 0);
            (primary, still)
        }
        Phase::Applying => catch(lab, random, Role::Backup, |still| still.call("replica") != FUTEX),
        Phase::Promoting => return lose_two(lab),
    };
    lab.power_off(&lost);
    vec![lost]
}

/// Waits for what lasts for milliseconds.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_micros(500));
    }
}

/// The primary is lost, and then whoever takes over, while the third is a backup in sync: then it must go on. On a busy
/// machine it may have been dropped as too slow just before; then the heir is spared, and it is tried again.
fn lose_two(lab: &mut Lab) -> Vec<String> {
    for _ in 0..20 {
        let primary = lab.protected(VM, 2);
        lab.power_off(&primary);
        if let Some(heir) = heir(lab, &primary) {
            lab.power_off(&heir);
            return vec![primary, heir];
        }
        println!("{primary} was lost, and a backup before it");
        lab.power_on(&primary);
        lab.host(&primary).stand_by();
    }
    panic!("a backup was always dropped before");
}

/// Waits until a host takes over from the one that is gone, by the millisecond; which, if it has a backup.
fn heir(lab: &mut Lab, gone: &str) -> Option<String> {
    let others: Vec<String> = lab.names().into_iter().filter(|name| *name != gone).collect();
    let mut elected = |name: &String| lab.host(name).status(VM).filter(|status| status.role == Role::Primary);
    let (mut heir, mut since) = (None, Instant::now());
    soon("somebody takes over", || {
        heir = others.iter().find_map(|name| Some((name.clone(), elected(name)?)));
        match &heir {
            None => since = Instant::now(),
            Some((_, status)) if has_backup(status) => return true,
            Some(_) => {}
        }
        since.elapsed() > Duration::from_millis(500)
    });
    let (name, status) = heir?;
    println!("{name} takes over, {:?}: {:?}", status.phase, states(&status));
    has_backup(&status).then_some(name)
}

fn has_backup(status: &Status) -> bool {
    states(status).iter().any(|(_, state)| *state == "backup")
}

/// Whatever a host was about when it was lost, the guest goes on and contradicts nothing.
#[test]
fn a_host_may_be_lost_in_any_phase() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    order(&lab, "memory", 1);
    let phases =
        [Phase::Paused, Phase::Copying, Phase::Sending, Phase::Acknowledging, Phase::Applying, Phase::Promoting];
    for round in 0..setting("MYCELIUM_CHAOS_PHASES", phases.len() as u64) {
        client.goes_on();
        let phase = phases[round as usize % phases.len()];
        let lost = lose(&mut lab, &mut random, phase);
        if lost.len() == 1 {
            client.goes_on();
        }
        for host in &lost {
            lab.power_on(host);
            lab.host(host).stand_by();
        }
        println!("{phase:?}: lost {}", lost.join(" and "));
    }
    lab.protected(VM, 2);
    client.goes_on();
}
