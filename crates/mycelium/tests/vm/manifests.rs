//! The manifests of the examples, as they are, on a small machine: only sizes and hosts come from the command line.

use std::fs;

use mycelium_endophyte::host::status::Status;

use crate::common::eventually;
use crate::guests::{bootable_image, example, run_vm, shut_down, user_data};
use crate::lab::Lab;

const USER_DATA: &str = "#cloud-config\nhostname: seeded\n";
/// What a small machine has for them.
const SMALL: [&str; 8] = ["--cpus", "1", "--memory", "96Mi", "--disk-size", "32Mi", "--buffer", "64Mi"];

/// The state of a machine that has two backups in sync, each over so many connections, and treats its output like this.
fn connected(lab: &Lab, vm: &str, connections: usize, mode: &str) -> Status {
    lab.protected(vm, 2);
    eventually("each backup has its connections, and output its mode", || {
        let (_, status) = lab.primary(vm).ok_or("no primary")?;
        let counts: Vec<usize> =
            status.peers.iter().map(|peer| peer.connections.as_array().map_or(0, Vec::len)).collect();
        // A host whose lease is over for a moment, as on a busy machine, holds output whatever the mode.
        let mode_now = status.egress.mode.clone();
        if counts == [connections; 2] && mode_now == mode { Ok(status) } else { Err(format!("{counts:?}, {mode_now}")) }
    })
}

/// Both start. The first one's seed for cloud-init is read by the guest, also where its host is lost; the second one's
/// wishes that cannot be granted are named, and what best effort costs.
#[test]
fn both_examples_run_with_smaller_sizes() {
    let mut lab = Lab::new(3);
    let folder = lab.host("a").folder().join("vm");
    for place in ["images", "customizations"] {
        fs::create_dir(folder.join(place)).expect("folder");
    }
    for image in ["ubuntu-20.04", "custom-gaming-os"] {
        fs::copy(bootable_image(), folder.join("images").join(format!("{image}.qcow2"))).expect("image");
    }
    fs::write(folder.join("customizations/legacy-app-setup.yaml"), USER_DATA).expect("customization");
    lab.host("b").stand_by();
    lab.host("c").stand_by();

    let legacy = example("legacy-app-vm.yaml");
    run_vm(&mut lab, "a", &["b", "c"], &[&["-f", legacy.as_str()], &SMALL[..]].concat());
    let status = connected(&lab, "legacy-app-vm", 3, "output-commit");
    assert_eq!(status.buffer.limit_bytes, 64 << 20);
    assert_eq!(user_data(&lab), USER_DATA);
    let log = lab.host("a").log();
    assert!(!log.contains("warning: "), "{log}");
    let lost = lab.protected("legacy-app-vm", 2);
    lab.power_off(&lost);
    eventually("another host takes over", || {
        lab.primary("legacy-app-vm").filter(|(host, _)| *host != lost).ok_or("none".to_owned())
    });
    assert_eq!(user_data(&lab), USER_DATA, "the seed reached the backup");
    let heir = lab.protected("legacy-app-vm", 1);
    shut_down(&mut lab, &heir, "legacy-app-vm");

    // All begin anew.
    lab.power_on(&lost);
    for host in lab.names() {
        lab.host(&host).kill();
    }
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    lab.forget_guest();
    let game = example("game-server-vm.yaml");
    run_vm(&mut lab, "a", &["b", "c"], &[&["-f", game.as_str()], &SMALL[..]].concat());
    connected(&lab, "game-server-vm", 5, "at-once");
    assert!(user_data(&lab).contains("No such file"), "it has no seed");
    let log = lab.host("a").log();
    for warning in [
        "warning: spec.distributedRAM.emergencyPauseEnabled is false: output leaves before",
        "warning: spec.performanceConfig.sriovNetworking: not supported",
    ] {
        assert!(log.contains(warning), "{warning:?} is missing in:\n{log}");
    }
    let primary = lab.protected("game-server-vm", 2);
    shut_down(&mut lab, &primary, "game-server-vm");
}
