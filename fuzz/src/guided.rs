//! One target under libFuzzer, guided by coverage; `guided.sh` builds and runs it. FUZZ_TARGET names the target, and
//! FUZZ_SEEDS a folder that gets the inputs to start from. Without FUZZ_TARGET it names all targets.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use mycelium_fuzz::targets::{self, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    if name.is_empty() {
        targets::all().iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    targets::named(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

fn prepare() {
    let target = LazyLock::force(&TARGET);
    let Some(folder) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
    for (number, input) in target.inputs().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), input).expect("the folder can be written to");
    }
}

libfuzzer_sys::fuzz_target!(init: prepare(), |bytes: &[u8]| (TARGET.run)(bytes));
