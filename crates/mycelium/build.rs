//! How the binary is linked (see `docs/adr/0005-static-binary.md`).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|set| set == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    // A fixed address: otherwise the start of each shim would fill its own copy of every table with an address in it.
    for argument in ["-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    // Functions that came out the same are kept once. Only the linker that rustc brings along on this target can.
    if is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
