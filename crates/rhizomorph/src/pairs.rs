//! Which pair of a local and a remote address the next connection uses. A pure plan; `dial` carries it out.
//!
//! A pair is the more crowded the more connections use its local or its remote address already: two connections that
//! have an address in common most likely have a wire in common too. New connections take the least crowded pair that
//! may be tried, and one that had to make do with a crowded pair moves as soon as a better one works again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// A local and a remote address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// None for whatever the system chooses.
    pub local: Option<IpAddr>,
    pub remote: SocketAddr,
    users: usize,
    failures: u32,
    not_before: Option<Instant>,
}

/// All pairs of one link, those first that have nothing in common with the ones before. Named by their index.
pub(crate) struct Pairs(Vec<Pair>);

impl Pairs {
    /// All pairs of one family.
    pub fn new(locals: &[IpAddr], remotes: &[SocketAddr]) -> Self {
        let pair = |local, remote| Pair { local, remote, users: 0, failures: 0, not_before: None };
        if locals.is_empty() {
            return Self(remotes.iter().map(|remote| pair(None, *remote)).collect());
        }
        let most = locals.len().max(remotes.len());
        let mut pairs = Vec::new();
        for shift in 0..most {
            for step in 0..most {
                let (local, remote) = (locals[step % locals.len()], remotes[(step + shift) % remotes.len()]);
                let new = pair(Some(local), remote);
                if local.is_ipv4() == remote.is_ipv4() && !pairs.contains(&new) {
                    pairs.push(new);
                }
            }
        }
        Self(pairs)
    }

    /// The pairs, in order.
    pub fn all(&self) -> &[Pair] {
        &self.0
    }

    /// Takes the least crowded pair of those that may be tried, or says when to ask again.
    pub fn take(&mut self, now: Instant) -> Result<usize, Instant> {
        match self.best(now, None) {
            Some((_, index)) => {
                self.hold(index);
                Ok(index)
            }
            None => Err(self.0.iter().filter_map(|pair| pair.not_before).min().unwrap_or(now + BACKOFF_MIN)),
        }
    }

    /// Takes a pair that is less crowded than the one that a connection has, if there is one that may be tried.
    pub fn take_better(&mut self, than: usize, now: Instant) -> Option<usize> {
        let (crowd, index) = self.best(now, Some(than))?;
        (crowd < self.crowd(than, Some(than))).then(|| {
            self.hold(index);
            index
        })
    }

    /// Notes a connection or attempt on a pair.
    pub fn hold(&mut self, index: usize) {
        self.0[index].users += 1;
    }

    /// Notes the end of a connection or attempt. A pair that failed is left alone for a while.
    pub fn leave(&mut self, index: usize, good: bool, now: Instant) {
        let pair = &mut self.0[index];
        pair.users -= 1;
        pair.failures = if good { 0 } else { pair.failures.saturating_add(1) };
        let pause = (BACKOFF_MIN * 2u32.saturating_pow(pair.failures.saturating_sub(1).min(10))).min(BACKOFF_MAX);
        pair.not_before = (!good).then(|| now + pause);
    }

    fn best(&self, now: Instant, mover: Option<usize>) -> Option<(usize, usize)> {
        let allowed = |index: &usize| self.0[*index].not_before.is_none_or(|at| at <= now);
        (0..self.0.len()).filter(allowed).map(|index| (self.crowd(index, mover), index)).min()
    }

    /// How many connections have an address in common with a pair, those with both counted twice; without the one that
    /// considers to move away from `mover`.
    fn crowd(&self, index: usize, mover: Option<usize>) -> usize {
        let own = &self.0[index];
        let crowd = |(at, pair): (usize, &Pair)| {
            let users = pair.users - usize::from(Some(at) == mover);
            users * (usize::from(pair.local == own.local) + usize::from(pair.remote == own.remote))
        };
        self.0.iter().enumerate().map(crowd).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_by_two() -> Pairs {
        let locals = ["10.0.0.1", "10.0.1.1", "fd00::1"].map(|a| a.parse().unwrap());
        Pairs::new(&locals, &["10.0.0.2:1", "10.0.1.2:1"].map(|a| a.parse().unwrap()))
    }

    fn name(pairs: &Pairs, index: usize) -> String {
        let pair = &pairs.all()[index];
        format!("{}>{}", pair.local.unwrap(), pair.remote)
    }

    #[test]
    fn pairs_spread_over_addresses_first() {
        let mut pairs = two_by_two();
        assert_eq!(pairs.all().len(), 4, "{:?}", pairs.all());
        let taken: Vec<usize> = (0..4).map(|_| pairs.take(Instant::now()).unwrap()).collect();
        let taken: Vec<String> = taken.into_iter().map(|index| name(&pairs, index)).collect();
        assert_eq!(taken[..2], ["10.0.0.1>10.0.0.2:1", "10.0.1.1>10.0.1.2:1"]);
        assert_eq!(Pairs::new(&[], &["10.0.0.2:1", "10.0.1.2:1"].map(|a| a.parse().unwrap())).all().len(), 2);
    }

    #[test]
    fn a_connection_moves_back_when_its_own_wire_works_again() {
        let (mut pairs, begun) = (two_by_two(), Instant::now());
        let (first, second) = (pairs.take(begun).unwrap(), pairs.take(begun).unwrap());
        assert_eq!(pairs.take_better(first, begun), None);
        pairs.leave(first, false, begun);
        // The only pairs left are such that share an address with the other connection.
        let makeshift = pairs.take(begun).unwrap();
        assert!(makeshift != first && makeshift != second);
        assert_eq!(pairs.take_better(makeshift, begun), None);
        let later = begun + BACKOFF_MIN;
        assert_eq!(pairs.take_better(makeshift, later), Some(first));
        pairs.leave(makeshift, true, later);
        assert_eq!(pairs.take_better(first, later), None);
        assert_eq!(pairs.take_better(second, later), None);
    }

    #[test]
    fn connections_over_one_pair_of_addresses_stay_where_they_are() {
        let (mut pairs, now) = (Pairs::new(&[], &["10.0.0.2:1".parse().unwrap()]), Instant::now());
        for _ in 0..4 {
            let index = pairs.take(now).unwrap();
            assert_eq!(pairs.take_better(index, now), None);
        }
        pairs.leave(0, false, now);
        assert_eq!(pairs.take(now), Err(now + BACKOFF_MIN));
    }
}
