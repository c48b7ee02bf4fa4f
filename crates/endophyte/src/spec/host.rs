//! What a document asks of a host that the host does not have.

use std::path::Path;

use mycelium_api::endophyte::EndophyteVM;

const HUGE_PAGE: u64 = 2 << 20;
/// As often as members are told of the time.
const HEARTBEAT_MILLISECONDS_MIN: u64 = 5;

/// One sentence for each wish that this host cannot grant, for a report: the machine runs without it. `sys` is `/sys`.
pub fn unsupported(vm: &EndophyteVM, sys: &Path, host_cpus: usize) -> Vec<String> {
    let config = &vm.spec.performance_config;
    let mut missing = Vec::new();
    if config.sriov_networking {
        let cards = if has_virtual_functions(sys) {
            "this host has network cards with virtual functions, but they are not used"
        } else {
            "no network card here has virtual functions (sriov_totalvfs)"
        };
        missing.push(format!(
            "spec.performanceConfig.sriovNetworking: not supported: {cards}. A card that is handed to the guest keeps \
             state that no checkpoint has, and sends what nobody can hold back; the guest has a virtio card on a tap device"
        ));
    }
    if config.huge_pages && free_huge_pages(sys) * HUGE_PAGE < vm.memory_bytes() {
        missing.push(format!(
            "spec.performanceConfig.hugePages: {} free huge pages of 2Mi, {} needed; set them aside with `sysctl \
             vm.nr_hugepages=N`. The guest uses ordinary pages",
            free_huge_pages(sys),
            vm.memory_bytes().div_ceil(HUGE_PAGE)
        ));
    }
    let heartbeat = vm.spec.failure_detection.heartbeat_milliseconds;
    if heartbeat < HEARTBEAT_MILLISECONDS_MIN {
        missing.push(format!(
            "spec.failureDetection.heartbeatMilliseconds: {heartbeat} is less than a process can keep to; signs of life go \
             out every {HEARTBEAT_MILLISECONDS_MIN} ms"
        ));
    }
    let cpus = vm.spec.vm_spec.cpu_cores as usize;
    if config.cpu_pinning && cpus > host_cpus {
        missing.push(format!(
            "spec.performanceConfig.cpuPinning: {cpus} virtual processors, but this host has {host_cpus}; they are not pinned"
        ));
    }
    missing
}

fn number(path: &Path) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn has_virtual_functions(sys: &Path) -> bool {
    let cards = std::fs::read_dir(sys.join("class/net")).into_iter().flatten().flatten();
    cards.into_iter().any(|card| number(&card.path().join("device/sriov_totalvfs")) > 0)
}

fn free_huge_pages(sys: &Path) -> u64 {
    number(&sys.join("kernel/mm/hugepages/hugepages-2048kB/free_hugepages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_is_said_and_what_it_has_is_not() {
        let sys = tempfile::tempdir().unwrap();
        let mut vm = EndophyteVM::named("vm");
        assert!(unsupported(&vm, sys.path(), 1).is_empty());
        vm.spec.performance_config.sriov_networking = true;
        vm.spec.performance_config.huge_pages = true;
        vm.spec.performance_config.cpu_pinning = true;
        vm.spec.vm_spec.cpu_cores = 4;
        vm.spec.failure_detection.heartbeat_milliseconds = 4;
        let all = unsupported(&vm, sys.path(), 2);
        assert_eq!(all.len(), 4);
        assert!(all[0].contains("sriovNetworking: not supported: no network card"), "{all:?}");
        vm.spec.failure_detection.heartbeat_milliseconds = 5;
        let card = sys.path().join("class/net/eth0/device");
        let pages = sys.path().join("kernel/mm/hugepages/hugepages-2048kB");
        std::fs::create_dir_all(&card).unwrap();
        std::fs::create_dir_all(&pages).unwrap();
        std::fs::write(card.join("sriov_totalvfs"), "8\n").unwrap();
        std::fs::write(pages.join("free_hugepages"), "256\n").unwrap();
        // A card with virtual functions is not used either, and that is said.
        let left = unsupported(&vm, sys.path(), 4);
        assert!(left.len() == 1 && left[0].contains("sriovNetworking: not supported: this host has"), "{left:?}");
    }
}
