//! The real clock and randomness. Everything else takes an [`Env`] and cannot tell them from simulated ones.

use mycelium_api::env::Env;

/// The environment of a real engine.
#[allow(clippy::disallowed_methods, reason = "the one place where the real clock enters")]
pub fn real() -> Env {
    Env::new(jiff::Timestamp::now, random)
}

/// Eight bytes from the kernel. It cannot fail once the machine has booted; if it does, nothing random may be made.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives no random numbers");
    u64::from_ne_bytes(bytes)
}
