//! A QEMU that dies at any moment is an error that says so, at once.

use std::time::Duration;

use mycelium_endophyte::clock::monotonic;
use mycelium_endophyte::machine::{Checkpointer, Machine, MachineError, Start};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Guest, require_tools};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// Runs `step`, which must fail because QEMU is gone, and soon.
fn fails_soon<T: std::fmt::Debug>(what: &str, step: impl FnOnce() -> Result<T, MachineError>) {
    let begin = monotonic();
    let error = step().expect_err(what);
    assert!(monotonic() - begin < Duration::from_secs(5), "{what} took {:?}", monotonic() - begin);
    let gone = error.is_gone() || matches!(&error, MachineError::System { .. });
    assert!(gone, "{what}: {error:?}");
}

#[test]
fn qemu_killed_in_any_step_is_a_clean_error() {
    require_tools();
    let guest = Guest::new("killed", "while :; do cp /bin/busybox /tmp/x; done");
    let start = |instance: &str, start| Machine::start(&guest.config(instance), start).unwrap();

    let mut machine = start("command", Start::Running);
    kill(machine.pid());
    fails_soon("a command", || machine.status());
    assert!(machine.quit().is_ok());

    let mut checkpointer = Checkpointer::new(start("stopped", Start::Running)).unwrap();
    let pid = checkpointer.machine().pid();
    fails_soon("a capture of a stopped guest", || checkpointer.capture(1, &mut || kill(pid)));
    fails_soon("a capture of a dead guest", || checkpointer.capture(2, &mut || ()));
    fails_soon("a pass over a dead guest", || checkpointer.precopy(0));

    for delay_us in [0, 300, 1000, 3000] {
        let mut checkpointer = Checkpointer::new(start("saving", Start::Running)).unwrap();
        let pid = checkpointer.machine().pid();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(20_000 + delay_us));
                kill(pid);
            });
            fails_soon("captures", || (1..).try_for_each(|epoch| checkpointer.capture(epoch, &mut || ()).map(drop)));
        });
    }

    let mut warm = start("warm", Start::Paused);
    kill(warm.pid());
    fails_soon("a load", || warm.load_devices(&[0; 1 << 20]));
}

#[test]
fn a_state_that_is_none_is_refused() {
    require_tools();
    let guest = Guest::new("garbage", "sleep 1000");
    let mut machine = Machine::start(&guest.config("a"), Start::Paused).unwrap();
    let error = machine.load_devices(&[0x5a; 5000]).unwrap_err();
    assert!(matches!(error, MachineError::Refused { .. } | MachineError::Gone { .. }), "{error:?}");
}
