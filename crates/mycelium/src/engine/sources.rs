//! The real clock and randomness. Everything else takes an [`Env`] and cannot tell them from simulated ones.

use std::cell::RefCell;

use mycelium_api::env::Env;

/// The environment of a real engine.
#[allow(clippy::disallowed_methods, reason = "the one place where the real clock enters")]
pub fn real() -> Env {
    Env::new(jiff::Timestamp::now, random)
}

/// Numbers that a thread draws from the kernel at once: a call for each would be felt in every write.
const DRAWN: usize = 32;

thread_local! {
    /// Numbers drawn and not used yet.
    static DRAWN_NUMBERS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fn random() -> u64 {
    DRAWN_NUMBERS.with_borrow_mut(|numbers| {
        numbers.pop().unwrap_or_else(|| {
            *numbers = draw();
            numbers.pop().unwrap_or_default()
        })
    })
}

/// The kernel cannot fail once the machine has booted; if it does, nothing random may be made.
fn draw() -> Vec<u64> {
    let mut bytes = [0; 8 * DRAWN];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives no random numbers");
    bytes.as_chunks().0.iter().map(|eight| u64::from_ne_bytes(*eight)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_is_given_twice() {
        let draw = || std::thread::spawn(|| (0..3 * DRAWN).map(|_| random()).collect::<Vec<_>>());
        let numbers: Vec<u64> = [draw(), draw()].into_iter().flat_map(|t| t.join().expect("no panic")).collect();
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
    }
}
