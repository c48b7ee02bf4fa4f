//! Huge pages of the machine, for tests; `crates/mycelium/tests/vm` uses this file, too.

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Huge pages of 2 MiB that were set aside on this machine; the kernel has them back when this is dropped.
pub struct HugePages {
    before: u64,
}

impl HugePages {
    /// So many bytes in them. `None`, and a word on stderr, where the kernel has no room for them.
    pub fn set_aside(bytes: u64) -> Option<HugePages> {
        let pages = HugePages { before: number("nr_hugepages")? };
        let wanted = pages.before + bytes / (2 << 20);
        let set = std::fs::write(format!("{FOLDER}/nr_hugepages"), wanted.to_string());
        let enough = set.is_ok() && number("nr_hugepages") >= Some(wanted);
        if !enough {
            eprintln!("not tested: this kernel has no room for {} MiB of huge pages ({FOLDER})", bytes >> 20);
        }
        enough.then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("{FOLDER}/nr_hugepages"), self.before.to_string());
    }
}

/// How many are in use.
pub fn in_use() -> Option<u64> {
    Some(number("nr_hugepages")? - number("free_hugepages")?)
}

fn number(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("{FOLDER}/{name}")).ok()?.trim().parse().ok()
}
