//! What the members of a group agree on: positions, quorums, configurations, and what each keeps on disk.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a member; unique in its group, and never used again after its directory was lost.
pub type Name = Arc<str>;

/// A point in the history of the VM: the epoch, and the term whose primary sealed it. Ordered by term, then epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    /// The term of the primary that sealed the epoch.
    pub term: u64,
    /// The epoch; grows by one, and carries on after a promotion.
    pub epoch: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of term {}", self.epoch, self.term)
    }
}

impl Position {
    /// The position of `epoch` in `term`.
    pub fn new(term: u64, epoch: u64) -> Self {
        Self { term, epoch }
    }
}

/// The version of a configuration: the term of the primary that proposed it, and a number within the term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    /// The proposing primary's term.
    pub term: u64,
    /// Counts the proposals of the term, from 0.
    pub number: u64,
}

/// How many holders must have an epoch before its output is released.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// One. Fast; promotion then needs to hear every holder.
    Any,
    /// More than half of the holders.
    #[default]
    Majority,
    /// Every holder. The slowest decides; any one of them may take over.
    All,
}

impl Policy {
    /// Of `holders`, how many must have an epoch before it is released.
    pub fn needed(self, holders: usize) -> usize {
        match self {
            Policy::Any => holders.min(1),
            Policy::Majority if holders == 0 => 0,
            Policy::Majority => holders / 2 + 1,
            Policy::All => holders,
        }
    }

    /// Of `holders`, how many a promotion must hear, so that one of them has whatever was released.
    pub fn to_promote(self, holders: usize) -> usize {
        holders - self.needed(holders) + 1
    }
}

/// What a primary does that has no backup in sync.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alone {
    /// Goes on unprotected, once it has proved that nobody else can take over. Gives the primary the casting vote in an
    /// even group.
    #[default]
    GoOn,
    /// Holds its output until a backup is in sync.
    Hold,
}

/// When output leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputMode {
    /// When the epoch that produced it is safe.
    #[default]
    Commit,
    /// At once, as long as the lease runs. See `docs/vm-protocol.md` for what can be lost.
    BestEffort,
}

/// The group's choices; part of its configuration, so that all members know the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    /// How many holders make an epoch safe. Default `majority`.
    pub policy: Policy,
    /// Without any backup in sync. Default `go-on`.
    pub alone: Alone,
    /// When output leaves. Default `commit`.
    pub output: OutputMode,
}

/// Who votes, and whose vote decides an even split.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Quorum {
    /// The voters.
    pub voters: BTreeSet<Name>,
    /// The member with the casting vote.
    pub casting: Option<Name>,
}

impl Quorum {
    /// Whether the members for whom `yes` holds are a majority. Any two majorities of one quorum share a member.
    pub fn majority(&self, yes: impl Fn(&Name) -> bool) -> bool {
        majority(&self.voters, self.casting.as_ref(), yes)
    }

    /// A majority for a decision by hand: without a casting vote the first voter other than `primary` decides an even
    /// split. Shares a member with every majority, and with every other one by hand.
    pub fn majority_by_hand(&self, primary: &Name, yes: impl Fn(&Name) -> bool) -> bool {
        let casting = self.casting.as_ref().or_else(|| self.voters.iter().find(|name| *name != primary));
        majority(&self.voters, casting, yes)
    }
}

fn majority(voters: &BTreeSet<Name>, casting: Option<&Name>, yes: impl Fn(&Name) -> bool) -> bool {
    let weight = |name: &Name| 2 + usize::from(casting == Some(name));
    let all: usize = voters.iter().map(weight).sum();
    let given: usize = voters.iter().filter(|name| yes(name)).map(weight).sum();
    given * 2 > all
}

/// Who is in the group and in which part. Replaced as a whole, by a proposal of the primary.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Its version.
    pub version: Version,
    /// The primary of the version's term.
    pub primary: Name,
    /// The members that can hold and run the VM, the primary among them.
    pub data: BTreeSet<Name>,
    /// The members that only vote.
    pub witnesses: BTreeSet<Name>,
    /// Those that vote: all, except who has just joined.
    pub voters: BTreeSet<Name>,
    /// The data members in sync, other than the primary: they count for release.
    pub holders: BTreeSet<Name>,
    /// The group's choices.
    pub rules: Rules,
    /// Where the term began: everything released in earlier terms is at or before it.
    pub base: Position,
}

impl Config {
    /// The configuration of a group that `primary` founds alone.
    pub fn founding(primary: Name, rules: Rules) -> Self {
        let only = BTreeSet::from([primary.clone()]);
        Self {
            version: Version::default(),
            primary,
            data: only.clone(),
            witnesses: BTreeSet::new(),
            voters: only,
            holders: BTreeSet::new(),
            rules,
            base: Position::default(),
        }
    }

    /// Who votes under it.
    pub fn quorum(&self) -> Quorum {
        let casting = (self.rules.alone == Alone::GoOn).then(|| self.primary.clone());
        Quorum { voters: self.voters.clone(), casting }
    }

    /// Every member.
    pub fn members(&self) -> impl Iterator<Item = &Name> {
        self.data.iter().chain(self.witnesses.iter())
    }
}

/// A configuration as proposed: with the older quorums that must agree to it too.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// The configuration.
    pub config: Config,
    /// Quorums of its predecessors, each of which must have a majority for it until it is settled.
    pub under: Vec<Quorum>,
    /// Known to be settled: `under` no longer matters.
    pub settled: bool,
}

impl Proposal {
    /// The quorums that decide for or under it.
    pub fn quorums(&self) -> Vec<Quorum> {
        let mut quorums = vec![self.config.quorum()];
        if !self.settled {
            quorums.extend(self.under.iter().filter(|quorum| **quorum != quorums[0]).cloned().collect::<Vec<_>>());
        }
        quorums
    }

    /// Whether the members for whom `yes` holds are a majority in each quorum.
    pub fn majority(&self, yes: impl Fn(&Name) -> bool) -> bool {
        let casting = (self.config.rules.alone == Alone::GoOn).then_some(&self.config.primary);
        majority(&self.config.voters, casting, &yes)
            && (self.settled || self.under.iter().all(|quorum| quorum.majority(&yes)))
    }
}

/// What a member keeps on disk. Written and synced before anything that follows from it leaves the host.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Durable {
    /// The highest term it voted in or followed.
    pub term: u64,
    /// Its vote in that term.
    pub vote: Option<Name>,
    /// The newest configuration it accepted. None: it never belonged to a group, and does not vote.
    pub proposal: Option<Arc<Proposal>>,
    /// A vote of a later term, written before it is given: should this member restart, it has given it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pledge: Option<Pledge>,
}

/// For whom a member votes in a later term, if anybody: the source of a planned migration for its target.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Pledge {
    /// The term.
    pub term: u64,
    /// The candidate.
    pub to: Name,
}

impl Durable {
    /// The state with which `primary` founds a group. It votes alone at first; the others join as soon as it hears them.
    pub fn founding(primary: Name, backups: &[Name], witnesses: &[Name], rules: Rules) -> Self {
        let mut config = Config::founding(primary, rules);
        config.data.extend(backups.iter().cloned());
        config.witnesses.extend(witnesses.iter().cloned());
        let proposal = Proposal { config, under: Vec::new(), settled: true };
        Self { term: 0, vote: None, proposal: Some(Arc::new(proposal)), pledge: None }
    }

    /// As a member finds it when it starts: a vote that was pledged may have been given.
    pub(super) fn redeemed(mut self) -> Self {
        if let Some(Pledge { term, to }) = self.pledge.take().filter(|pledge| pledge.term > self.term) {
            (self.term, self.vote) = (term, Some(to));
        }
        self
    }

    /// Whether it follows from `before` by nothing but the word that the configuration is settled. That may be lost: a
    /// majority has the configuration on disk, and whoever counts its votes finds out again.
    pub(super) fn only_settles(&self, before: &Self) -> bool {
        let same = |a: &Proposal, b: &Proposal| a.config == b.config && a.settled;
        let settles = matches!((&self.proposal, &before.proposal), (Some(now), Some(then)) if same(now, then));
        settles && (self.term, &self.vote, &self.pledge) == (before.term, &before.vote, &before.pledge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsets(voters: &BTreeSet<Name>) -> Vec<BTreeSet<Name>> {
        let names: Vec<_> = voters.iter().cloned().collect();
        (0..1 << names.len())
            .map(|bits| {
                names.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, name)| name.clone()).collect()
            })
            .collect()
    }

    #[test]
    fn majorities_intersect_also_by_hand_and_release_meets_promotion() {
        for size in 1..=6 {
            let voters: BTreeSet<Name> = (0..size).map(|at| Name::from(format!("m{at}"))).collect();
            for primary in &voters {
                for casting in [None, Some(primary.clone())] {
                    let quorum = Quorum { voters: voters.clone(), casting };
                    let ordinary: Vec<_> =
                        subsets(&voters).into_iter().filter(|set| quorum.majority(|name| set.contains(name))).collect();
                    let by_hand: Vec<_> = subsets(&voters)
                        .into_iter()
                        .filter(|set| quorum.majority_by_hand(primary, |name| set.contains(name)))
                        .collect();
                    assert!(ordinary.iter().all(|set| by_hand.contains(set)));
                    for set in &by_hand {
                        assert!(by_hand.iter().all(|other| !set.is_disjoint(other)), "{set:?} of {quorum:?}");
                    }
                }
            }
            for policy in [Policy::Any, Policy::Majority, Policy::All] {
                assert_eq!(policy.needed(size) + policy.to_promote(size), size + 1);
            }
        }
        assert_eq!(Policy::Majority.to_promote(0), 1, "nobody can be promoted where nobody holds anything");
    }
}
