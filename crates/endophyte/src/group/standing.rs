//! Standing for election.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::core::{Core, Data, Reign, Role, Standing};
use super::election::{Candidate, How, Refusal, assess};
use super::message::{Ballot, Message};
use super::mutation::Fault;
use super::output::Output;
use super::types::{Config, Name, OutputMode, Position, Proposal};

impl Core {
    /// Judges ballots (this member's own is added) as if it stood with them.
    pub fn assess(&self, mut ballots: BTreeMap<Name, Ballot>, how: How) -> Result<Arc<Proposal>, Refusal> {
        ballots.insert(self.me.clone(), self.ballot());
        assess(&ballots, &self.candidate(how, None))
    }

    fn candidate<'a>(&'a self, how: How, certified: Option<(&'a Name, Position)>) -> Candidate<'a> {
        Candidate { me: &self.me, live_since: self.live_since(), certified, how, faults: self.faults }
    }

    /// Stands for election in a new term. False if it cannot: a witness, or not a member.
    pub fn campaign(&mut self, how: How, out: &mut Vec<Output>) -> bool {
        let able = self.durable.proposal.as_ref().is_some_and(|proposal| proposal.config.data.contains(&self.me));
        if !able || self.held().is_none() && self.live_since().is_none() && how != How::Cold {
            return false;
        }
        let term = self.durable.term.max(self.seen_term) + 1;
        self.stand(term, Standing { how, ..Standing::default() }, out);
        true
    }

    fn stand(&mut self, term: u64, mut standing: Standing, out: &mut Vec<Output>) {
        self.enter(term, &self.me.clone());
        self.persist(out);
        standing.ballots.insert(self.me.clone(), self.ballot());
        for voter in voters(&standing) {
            self.send(&voter, Message::VoteRequest { term, handed_over: standing.certified.is_some() }, out);
        }
        self.role = Role::Candidate(standing);
        self.try_win(out);
    }

    pub(super) fn on_vote(&mut self, from: &Name, term: u64, ballot: Ballot, out: &mut Vec<Output>) {
        let Role::Candidate(standing) = &mut self.role else { return };
        if term != self.durable.term {
            return;
        }
        let asked = voters(standing);
        standing.ballots.insert(from.clone(), ballot);
        let handed_over = standing.certified.is_some();
        for voter in voters(standing).difference(&asked) {
            self.send(voter, Message::VoteRequest { term, handed_over }, out);
        }
        self.try_win(out);
    }

    pub(super) fn on_hand_over(
        &mut self,
        from: &Name,
        term: u64,
        ballot: Ballot,
        certified: Position,
        out: &mut Vec<Output>,
    ) {
        if term <= self.durable.term {
            return self.send(from, Message::Stale { term: self.durable.term }, out);
        }
        if self.held().is_some() && self.durable.proposal.is_some() {
            let ballots = BTreeMap::from([(from.clone(), ballot)]);
            let certified = Some((from.clone(), certified));
            self.stand(term, Standing { how: How::Automatic, ballots, certified }, out);
        }
    }

    /// Why this candidate has not won yet.
    pub fn refusal(&self) -> Option<Refusal> {
        match &self.role {
            Role::Candidate(standing) => self.judge(standing).err(),
            _ => None,
        }
    }

    fn judge(&self, standing: &Standing) -> Result<Arc<Proposal>, Refusal> {
        let certified = standing.certified.as_ref().map(|(by, position)| (by, *position));
        assess(&standing.ballots, &self.candidate(standing.how, certified))
    }

    fn try_win(&mut self, out: &mut Vec<Output>) {
        let Role::Candidate(standing) = &self.role else { return };
        // A forced election waits for `win_forced`, so that whoever can be reached is fenced first.
        if standing.how == How::Forced {
            return;
        }
        if let Ok(newest) = self.judge(standing) {
            self.win(&newest, out);
        }
    }

    /// Takes over with the votes there are. False if it is not standing for a forced election, or holds nothing.
    pub fn win_forced(&mut self, out: &mut Vec<Output>) -> bool {
        let Role::Candidate(standing) = &self.role else { return false };
        if standing.how != How::Forced {
            return false;
        }
        match self.judge(standing) {
            Ok(newest) => {
                self.win(&newest, out);
                true
            }
            Err(_) => false,
        }
    }

    fn win(&mut self, newest: &Proposal, out: &mut Vec<Output>) {
        let role = std::mem::replace(&mut self.role, Role::Follower { primary: None });
        let Role::Candidate(standing) = role else { return };
        if standing.how == How::Cold {
            self.data = Data::Nothing;
        }
        let last = self.last_with_others(&standing.ballots, &newest.config);
        let base = self.start_guest(last, out);
        let mut config = newest.config.clone();
        config.base = base;
        let equal = |name: &&Name| standing.ballots.get(*name).is_some_and(|ballot| ballot.held == Some(base));
        let holds = |name: &&Name| equal(name) || standing.certified_for(name, &newest.config);
        config.holders = config.data.iter().filter(|name| **name != self.me).filter(holds).cloned().collect();
        config.primary = self.me.clone();
        let mut under = newest.quorums();
        if !newest.majority(|name| standing.ballots.contains_key(name)) {
            // By hand: whoever did not answer is a voter again once it follows.
            config.voters.retain(|name| standing.ballots.contains_key(name));
            under.clear();
        }
        let mut reign = Reign { under, ..Reign::default() };
        for name in config.holders.iter().filter(equal) {
            reign.peers.entry(name.clone()).or_default().held = Some(base);
        }
        let behind = config.holders.clone();
        self.role = Role::Primary(reign);
        self.propose(config, out);
        if let Data::Live { sealed, .. } = self.data
            && sealed.epoch > base.epoch
        {
            out.push(Output::Resend { to: behind, after: base.epoch });
        }
        self.advance(out);
    }

    /// The last epoch of the guest, run or held here, which a voter has too, if nothing later may have left: there the
    /// next term can begin with a backup in sync, when the epochs since are sent again as its own.
    fn last_with_others(&self, ballots: &BTreeMap<Name, Ballot>, config: &Config) -> Option<Position> {
        let strict = |fault| config.rules.output == OutputMode::Commit && !self.faults.has(fault);
        let others = config.data.iter().filter(|name| **name != self.me).filter_map(|name| ballots.get(name)?.held);
        match self.data {
            Data::Live { reign, sealed, released } => {
                let needed = if strict(Fault::BeginsBeforeReleased) { released } else { 0 };
                let own = |held: &Position| held.term == reign || *held == config.base;
                others.filter(|held| own(held) && held.epoch >= needed && held.epoch <= sealed.epoch).max()
            }
            Data::Replica { held, .. } => {
                let strict = strict(Fault::SucceedsBeforeReleased);
                let had = |at: &Position| *at >= config.base && (*at == held || self.past.contains(at));
                others.filter(|at| had(at) && !(strict && may_have_left(*at, ballots, config))).max()
            }
            Data::Nothing => None,
        }
    }
}

impl Standing {
    /// Whether a hand-over shows that a holder that has not been heard has the last epoch, or nothing any more: its output
    /// was released only when all had it. It stays a holder, so that the VM is never without one: nothing is released
    /// before it says so itself, and it is dropped if it cannot.
    fn certified_for(&self, name: &Name, config: &Config) -> bool {
        let all = config.rules.policy.needed(config.holders.len()) == config.holders.len();
        let heard = self.ballots.contains_key(name);
        let released_when_held = config.rules.output == OutputMode::Commit;
        self.certified.is_some() && all && released_when_held && !heard && config.holders.contains(name)
    }
}

/// Whether output of an epoch after this one may have left: whether so many holders as that takes may have had it. One that
/// was not heard, or lost what it held, may have.
fn may_have_left(after: Position, ballots: &BTreeMap<Name, Ballot>, config: &Config) -> bool {
    let lacks = |name: &&Name| ballots.get(*name).and_then(|ballot| ballot.held).is_some_and(|held| held <= after);
    let able = config.holders.len() - config.holders.iter().filter(lacks).count();
    able >= config.rules.policy.needed(config.holders.len())
}

/// Those whose votes may matter, by the configurations seen.
fn voters(standing: &Standing) -> BTreeSet<Name> {
    let proposals = standing.ballots.values().filter_map(|ballot| ballot.proposal.as_ref());
    proposals.flat_map(|proposal| proposal.quorums()).flat_map(|quorum| quorum.voters).collect()
}
