//! A captured state goes on in another QEMU, as if nothing had happened.

use std::time::Duration;

use mycelium_endophyte::machine::{Capture, Checkpointer, GuestMemory, Machine, Start};

use crate::support::{Guest, require_tools};
use crate::{apply, empty_copy};

/// Counts, and checks what it has in memory at each count.
const COUNT: &str = r#"
dd if=/dev/urandom of=/tmp/r bs=1M count=4 2>/dev/null
sum=$(md5sum < /tmp/r)
n=0
while :; do
  n=$((n + 1))
  cp /tmp/r /tmp/q
  [ "$(md5sum < /tmp/q)" = "$sum" ] || echo BAD
  echo "n $n"
  usleep 20000
done
"#;

/// The numbers that a guest has counted; a line without an end is left out.
fn counted(text: &str) -> Vec<u64> {
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().filter_map(|line| line.strip_prefix("n ")?.parse().ok()).collect()
}

/// A machine that goes on from `capture`, whose memory is in `copy`.
fn restore(guest: &Guest, instance: &str, capture: &Capture, copy: &GuestMemory) -> Machine {
    let mut machine = Machine::start(&guest.config(instance), Start::Paused).unwrap();
    let mut piece = vec![0; 1 << 20];
    for offset in (0..copy.len()).step_by(piece.len()) {
        copy.copy_range(offset, &mut piece);
        machine.memory().write_range(offset, &piece);
    }
    machine.load_devices(&capture.devices).unwrap();
    assert_eq!(machine.status().unwrap(), "paused");
    machine
}

#[test]
fn a_guest_moves_from_qemu_to_qemu_twenty_times_and_counts_on() {
    require_tools();
    let guest = Guest::new("count", COUNT);
    let copy = empty_copy(guest.config("0").memory_bytes);
    let mut checkpointer = Checkpointer::new(Machine::start(&guest.config("0"), Start::Running).unwrap()).unwrap();
    guest.console("0").wait_for("n 3\r\n".trim_end());
    let mut said = String::new();
    for step in 0..20 {
        // A QEMU without the command for devices alone is checkpointed by migrations; either kind of state is loaded alike.
        if step % 7 == 3 {
            checkpointer.machine_mut().save_by_migration();
        }
        let (here, next) = (step.to_string(), (step + 1).to_string());
        let console = guest.console(&here);
        let before = counted(&said).len();
        console.wait_until("two more numbers", |text| counted(&(said.clone() + text)).len() >= before + 2);
        // What it says after the checkpoint is lost with its machine; the next one says it again.
        let mut length = 0;
        let capture = checkpointer.capture(step, &mut || length = console.length()).unwrap();
        apply(&capture, &copy);
        std::thread::sleep(Duration::from_millis(step % 4 * 30));
        drop(checkpointer);
        said.push_str(&console.first(length));
        let mut machine = restore(&guest, &next, &capture, &copy);
        machine.cont().unwrap();
        checkpointer = Checkpointer::new(machine).unwrap();
    }
    let numbers = counted(&said);
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{said}");
    assert!(!said.contains("BAD"), "{said}");
}

#[test]
fn a_guest_captured_while_it_boots_comes_up_elsewhere() {
    require_tools();
    let guest = Guest::new("boot", "echo READY; sleep 1000");
    let copy = empty_copy(guest.config("a").memory_bytes);
    let mut checkpointer = Checkpointer::new(Machine::start(&guest.config("a"), Start::Running).unwrap()).unwrap();
    let mut epoch = 0;
    let mut take = |checkpointer: &mut Checkpointer| {
        epoch += 1;
        let capture = checkpointer.capture(epoch, &mut || ()).unwrap();
        apply(&capture, &copy);
        capture
    };
    for _ in 0..40 {
        take(&mut checkpointer);
        std::thread::sleep(Duration::from_millis(20));
    }
    let capture = take(&mut checkpointer);
    assert!(!guest.console("a").text().contains("READY"), "it was up before it was captured");
    drop(checkpointer);
    let mut machine = restore(&guest, "b", &capture, &copy);
    machine.cont().unwrap();
    guest.console("b").wait_for("READY");

    // And now that it idles.
    let mut checkpointer = Checkpointer::new(machine).unwrap();
    for _ in 0..40 {
        let capture = take(&mut checkpointer);
        assert!(capture.devices.len() > 1000);
    }
}

#[test]
fn a_guest_switches_itself_off_when_asked() {
    require_tools();
    // Without ACPI's daemon the button is an input event that the script reads.
    let guest = Guest::new("off", "echo READY; poweroff -f");
    let mut machine = Machine::start(&guest.config("a"), Start::Running).unwrap();
    assert!(machine.wait_shutdown(Duration::from_secs(300)).unwrap());
}
