//! A small mutator that needs nothing but a stable compiler: `cargo run --release -- TARGET|all [ROUNDS] [SEED]`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use mycelium_fuzz::targets::{self, Target};

/// A generator of pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Pieces that decoders treat in a special way.
const PIECES: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"",
    b"\\u",
    b"null",
    b"-",
    b"1e9",
    b"\"$patch\":\"replace\",",
    b"\0",
    b"\n",
    b"\xff",
    b"\xc3",
    b"=",
    b"(",
    b"99999999999999999999",
    b"Ki",
    b"\x80\x80\x80\x80\x80",
    b"/",
    b"%",
    b"..",
];

/// Changes an input a few times: bits, pieces put in, parts cut out, repeated or taken from another seed.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].repeat(1 + random.below(4));
                bytes.splice(at..at, part);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let to = (from + random.below(40)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
        }
    }
    bytes
}

fn fuzz(target: &Target, rounds: u64, seed: u64) -> bool {
    let rounds = rounds / target.cost;
    let seeds = target.inputs();
    for input in &seeds {
        (target.run)(input);
    }
    for round in 0..rounds {
        let mut random = Random(seed ^ round.wrapping_mul(0xA076_1D64_78BD_642F));
        let input = mutate(&mut random, &seeds);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            eprintln!(
                "{} failed: seed {seed}, round {round}, input {:?}",
                target.name,
                String::from_utf8_lossy(&input)
            );
            return false;
        }
    }
    println!("{}: {rounds} inputs", target.name);
    true
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (rounds, seed) = (number(1, 20_000), number(2, 1));
    let name = arguments.first().map_or("all", String::as_str);
    let all = targets::all();
    let chosen: Vec<&Target> = all.iter().filter(|t| name == "all" || t.name == name).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|t| t.name).collect();
        eprintln!("usage: mycelium-fuzz TARGET|all [ROUNDS] [SEED]\ntargets: {}", names.join(" "));
        return ExitCode::FAILURE;
    }
    let failed = chosen.into_iter().filter(|target| !fuzz(target, rounds, seed)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
