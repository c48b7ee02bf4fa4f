//! Deliberate faults, with which tests show that the model check and the simulation would notice them. Outside tests
//! there are none: [`Faults`] is then an empty type and `has` a constant.

/// A way to get the protocol wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// Output leaves as soon as its epoch is sealed.
    ReleaseBeforeQuorum,
    /// A member that voted in a later term still acknowledges epochs of the former one.
    NoVoteFencing,
    /// The candidate need not hold the latest epoch of those it heard.
    WrongCandidate,
    /// The candidate need not hear `n - k + 1` holders.
    HoldersIgnored,
    /// Holders that lost their memory are counted as if they had it.
    LostHoldersCount,
    /// A new primary releases before its configuration is settled.
    ReleaseBeforeSettled,
    /// A proposed set of holders counts for release before it is settled.
    ReleaseByProposal,
    /// A member votes twice in a term.
    VotesTwice,
    /// The source of a migration goes on releasing after it gave its term away.
    ReleaseAfterHandOver,
    /// A backup that missed an epoch takes the next one.
    AppliesOverGap,
    /// A holder is added before it has everything that was released.
    HoldersAddedEarly,
    /// A report counts although a later one of the same member has come already, and a backup that was told to begin a
    /// copy is made a holder by what it had before.
    OldReportsCount,
    /// A copy that a former primary made counts, whatever was held before.
    TakesFormerCopies,
    /// A primary that is elected again begins its term before what it released already.
    BeginsBeforeReleased,
    /// A backup that is elected begins its term before what may have been released.
    SucceedsBeforeReleased,
    /// The primary's output stays open when its lease is over.
    NoLease,
    /// Members vote although they promised not to.
    PromiseBroken,
    /// A member that restarts does not know of the vote that it wrote down before it gave it.
    PledgeForgotten,
    /// A guest runs on although no majority hears its host.
    NeverHalts,
}

impl Fault {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Fault; 19] = [
        Fault::ReleaseBeforeQuorum,
        Fault::NoVoteFencing,
        Fault::WrongCandidate,
        Fault::HoldersIgnored,
        Fault::LostHoldersCount,
        Fault::ReleaseBeforeSettled,
        Fault::ReleaseByProposal,
        Fault::VotesTwice,
        Fault::ReleaseAfterHandOver,
        Fault::AppliesOverGap,
        Fault::HoldersAddedEarly,
        Fault::OldReportsCount,
        Fault::TakesFormerCopies,
        Fault::BeginsBeforeReleased,
        Fault::SucceedsBeforeReleased,
        Fault::NoLease,
        Fault::PromiseBroken,
        Fault::PledgeForgotten,
        Fault::NeverHalts,
    ];
}

/// The fault that a member has, if any.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Faults {
    #[cfg(test)]
    only: Option<Fault>,
}

impl Faults {
    /// One fault.
    #[cfg(test)]
    pub fn only(fault: Option<Fault>) -> Self {
        Self { only: fault }
    }

    /// Whether the member has this fault.
    #[cfg(test)]
    pub fn has(self, fault: Fault) -> bool {
        self.only == Some(fault)
    }

    /// Whether the member has this fault: no.
    #[cfg(not(test))]
    pub fn has(self, _fault: Fault) -> bool {
        false
    }
}
