#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mycelium_fuzz::run("token", bytes));
