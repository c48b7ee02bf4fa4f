//! Which of the hosts that a document lists become backups: so many as it asks for, the nearest or the first; the others are
//! spares, and one takes the place of a backup that stays away.

use std::time::Duration;

use mycelium_api::endophyte::SelectionCriteria;

/// A backup that is away for longer is replaced, if there is a spare. Well above a restart of its process.
pub(super) const SPARE_AFTER: Duration = Duration::from_secs(10);
/// How long all hosts listed are waited for before the choice is made among those that answered.
pub(super) const CHOOSE_AFTER: Duration = Duration::from_secs(2);

/// A host that could be a backup, or is one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Candidate {
    /// Its name, once it has been reached.
    pub name: Option<String>,
    /// Its place in the document's list; none for one that joined otherwise.
    pub place: Option<usize>,
    /// It is a member.
    pub member: bool,
    /// It is in sync.
    pub in_sync: bool,
    /// Since when it cannot be reached, if so.
    pub away: Option<Duration>,
    /// Round trip to it.
    pub round_trip: Option<Duration>,
}

/// What is to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// This host becomes a backup.
    Add(String),
    /// Another took its place.
    Remove(String),
}

/// The next change, if any, to have `count` backups; `waited` for as long as is sensible for all to answer.
pub(super) fn choose(all: &[Candidate], count: usize, criteria: SelectionCriteria, waited: bool) -> Option<Choice> {
    let members = || all.iter().filter(|one| one.member);
    let gone = |one: &Candidate| one.away.is_some_and(|away| away >= SPARE_AFTER);
    if members().filter(|one| !gone(one)).count() >= count {
        let replaced = members().filter(|one| one.in_sync && one.away.is_none()).count() >= count;
        let lost = members().find(|one| gone(one) && one.place.is_some());
        return lost.filter(|_| replaced).and_then(|one| one.name.clone()).map(Choice::Remove);
    }
    let listed = || all.iter().filter(|one| one.place.is_some() && !one.member);
    let answers = listed().filter(|one| one.name.is_some() && one.away.is_none());
    // Whoever is needed anyway need not be compared.
    let all_needed = members().count() + listed().count() <= count;
    let known = all_needed || waited || listed().all(|one| one.away.is_none());
    let by = |one: &&Candidate| match criteria {
        SelectionCriteria::LatencyOptimized => (one.round_trip.unwrap_or(Duration::MAX), one.place),
        SelectionCriteria::Listed => (Duration::ZERO, one.place),
    };
    answers.min_by_key(by).filter(|_| known).and_then(|one| one.name.clone()).map(Choice::Add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use SelectionCriteria::{LatencyOptimized, Listed};

    fn host(name: &str, place: usize, round_trip_us: u64) -> Candidate {
        Candidate {
            name: Some(name.into()),
            place: Some(place),
            round_trip: Some(Duration::from_micros(round_trip_us)),
            ..Candidate::default()
        }
    }

    fn member(name: &str, place: usize) -> Candidate {
        Candidate { member: true, in_sync: true, ..host(name, place, 100) }
    }

    fn away(one: Candidate, seconds: u64) -> Candidate {
        Candidate { away: Some(Duration::from_secs(seconds)), in_sync: false, ..one }
    }

    fn add(name: &str) -> Option<Choice> {
        Some(Choice::Add(name.into()))
    }

    #[test]
    fn the_nearest_or_the_first_are_chosen_and_so_many_as_asked_for() {
        let hosts = [host("b", 0, 900), host("c", 1, 300), host("d", 2, 500)];
        assert_eq!(choose(&hosts, 2, LatencyOptimized, false), add("c"));
        assert_eq!(choose(&hosts, 2, Listed, false), add("b"));
        let with_c = [host("b", 0, 900), member("c", 1), host("d", 2, 500)];
        assert_eq!(choose(&with_c, 2, LatencyOptimized, false), add("d"));
        let both = [host("b", 0, 900), member("c", 1), member("d", 2)];
        assert_eq!(choose(&both, 2, LatencyOptimized, true), None);
        assert_eq!(choose(&hosts, 0, Listed, true), None);
    }

    #[test]
    fn one_that_does_not_answer_is_waited_for_a_little_if_it_might_be_better() {
        let silent = Candidate { name: None, ..away(host("b", 0, 0), 0) };
        let hosts = [silent, host("c", 1, 300)];
        assert_eq!(choose(&hosts, 1, Listed, false), None);
        assert_eq!(choose(&hosts, 1, Listed, true), add("c"));
        assert_eq!(choose(&hosts, 2, Listed, false), add("c"), "both are needed");
    }

    #[test]
    fn a_spare_takes_the_place_of_a_backup_that_stays_away() {
        let hosts = |seconds, spare| [away(member("b", 0), seconds), member("c", 1), spare];
        assert_eq!(choose(&hosts(9, host("d", 2, 100)), 2, Listed, true), None, "it may only be restarted");
        assert_eq!(choose(&hosts(10, host("d", 2, 100)), 2, Listed, true), add("d"));
        let joined = Candidate { in_sync: false, ..member("d", 2) };
        assert_eq!(choose(&hosts(20, joined), 2, Listed, true), None, "not before the spare is in sync");
        assert_eq!(choose(&hosts(30, member("d", 2)), 2, Listed, true), Some(Choice::Remove("b".into())));
        let unlisted = Candidate { place: None, ..away(member("b", 0), 30) };
        assert_eq!(
            choose(&[unlisted, member("c", 1), member("d", 2)], 2, Listed, true),
            None,
            "it could not come back"
        );
    }
}
