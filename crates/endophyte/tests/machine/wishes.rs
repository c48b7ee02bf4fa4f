//! What a machine may ask of its host, and what it is told where that cannot be.

use mycelium_endophyte::machine::{Accel, Machine, MachineError, Start, kvm_works, shortfalls};
use mycelium_linux::scheduling;

use crate::support::{Guest, require_tools};

#[test]
fn kvm_runs_the_guest_or_the_reason_is_told() {
    require_tools();
    let guest = Guest::new("accelerated", "sleep 1000");
    let mut config = guest.config("kvm");
    config.accel = Accel::Kvm;
    match (kvm_works(), Machine::start(&config, Start::Running)) {
        (Ok(()), started) => assert!(started.unwrap().kvm()),
        (Err(reason), Err(error @ MachineError::NoKvm { .. })) => {
            println!("{error}");
            assert_eq!(
                error.to_string(),
                format!("KVM does not run guests here: {reason}; use another accelerator (tcg) or fix /dev/kvm")
            );
        }
        (works, started) => panic!("{works:?}, but {started:?}"),
    }
    let machine = Machine::start(&guest.config("auto"), Start::Running).unwrap();
    assert_eq!(machine.kvm(), kvm_works().is_ok(), "what runs a guest by itself is what the trial found");
}

#[test]
fn a_pinned_processor_stays_where_it_was_put() {
    require_tools();
    let guest = Guest::new("pinned", "sleep 1000");
    let mut config = guest.config("a");
    config.cpu_pinning = true;
    let mut machine = Machine::start(&config, Start::Running).unwrap();
    let processors = scheduling::processors().unwrap();
    let [thread] = machine.vcpu_threads().unwrap()[..] else { panic!("one virtual processor") };
    let status = std::fs::read_to_string(format!("/proc/{}/task/{thread}/status", machine.pid())).unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    if processors.len() > 1 {
        // The first ones are left to everything else.
        assert_eq!(allowed, processors.last().unwrap().to_string());
        assert!(shortfalls(&config).is_empty(), "{:?}", shortfalls(&config));
    } else {
        assert!(shortfalls(&config)[0].contains("cpuPinning"), "{:?}", shortfalls(&config));
    }
}
