//! Who stands outside, sees each packet, and forgets nothing.

use std::collections::BTreeMap;

/// The state of the fake guest: how many packets it made, and a digest of all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Guest {
    pub packets: u64,
    pub digest: u64,
}

#[derive(Debug, Default)]
pub struct Oracle {
    /// Each state that a guest was ever in, and the one before it.
    before: BTreeMap<u64, Guest>,
    /// What was seen outside last.
    last: Guest,
    last_term: u64,
    pub packets: u64,
    pub promotions: u64,
    /// Content is compared: not in best effort, which promises nothing about it.
    pub strict: bool,
}

impl Oracle {
    pub fn new(strict: bool) -> Self {
        Self { strict, ..Self::default() }
    }

    /// The guest makes a packet.
    pub fn step(&mut self, guest: Guest, chance: u64) -> Guest {
        let digest = (guest.digest ^ chance).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) | 1;
        let next = Guest { packets: guest.packets + 1, digest };
        self.before.insert(digest, guest);
        next
    }

    /// A packet arrives outside: the one that led to this state.
    pub fn saw(&mut self, term: u64, packet: Guest) {
        assert!(term >= self.last_term, "two active: a packet of term {term} after one of {}", self.last_term);
        self.last_term = term;
        self.packets += 1;
        if self.strict {
            assert!(packet.packets > self.last.packets, "packet {} after {}", packet.packets, self.last.packets);
            self.descends(packet);
            self.last = packet;
        }
    }

    /// A guest starts from this state. One whose term is over by then, for a vote reached its host late, never speaks.
    pub fn promoted(&mut self, term: u64, from: Guest) {
        self.promotions += 1;
        if self.strict && term >= self.last_term {
            self.descends(from);
        }
    }

    /// Whether what was seen outside is in the past of this state.
    pub fn contains_last(&self, mut state: Guest) -> bool {
        while state.packets > self.last.packets {
            state = self.before[&state.digest];
        }
        state == self.last
    }

    fn descends(&self, state: Guest) {
        assert!(self.contains_last(state), "lost: packet {} was seen outside, not by {state:?}", self.last.packets);
    }
}
