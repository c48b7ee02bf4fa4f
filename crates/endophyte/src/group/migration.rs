//! A planned migration, in steps that can be given up until the last one.
//!
//! ```text
//!   Migrate          in sync, lag <= 0.05        paused             the target has it all
//!  ────────► Converging ────────────► Pausing ────────► Draining ──────────────────► HandedOver
//!                 │ given up, or out of time │ resumes the guest │ too late to get it │ the term decides
//! ```
//! Lag is what the target lacks, as the embedder measures it; no pause is ordered before it is small, so that the guest
//! stands still for little more than a checkpoint.

use super::member::{Member, Migration};
use super::output::Output;
use super::types::Name;

/// The most that the target may lack when the guest is paused, in thousandths of what may be under way to it.
pub const LAG_THOUSANDTHS_MAX: u32 = 50;

/// What the target of a migration lacks, as told after the latest epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Lag {
    /// Thousandths, when it was told last.
    pub told: Option<u32>,
    /// An epoch was sealed since.
    pub stale: bool,
}

impl Lag {
    fn is_small(self) -> bool {
        !self.stale && self.told.is_some_and(|told| told <= LAG_THOUSANDTHS_MAX)
    }
}

impl Member {
    pub(super) fn begin_migration(&mut self, to: Name, within_us: u64) -> Result<String, String> {
        let Some(config) = self.core.proposal().map(|proposal| &proposal.config).filter(|_| self.core.is_primary())
        else {
            return Err("this host is not the primary".to_string());
        };
        if to == self.core.me || !config.data.contains(&to) {
            return Err(format!("{to} is not a backup of this VM: add it first"));
        }
        if self.migration.is_some() {
            return Err("a migration is under way".to_string());
        }
        self.lag = Lag::default();
        self.migration = Some(Migration::Converging { to, until_us: self.now_us.saturating_add(within_us) });
        Ok(String::new())
    }

    /// Gives a migration up, if that is still possible: the guest goes on here.
    pub(super) fn abort_migration(&mut self, out: &mut Vec<Output>) -> bool {
        match self.migration.take() {
            Some(Migration::Converging { .. }) => true,
            Some(Migration::Pausing { .. } | Migration::Draining { .. }) => {
                out.push(Output::ResumeGuest);
                true
            }
            // The target decides now.
            late => {
                self.migration = late;
                false
            }
        }
    }

    /// The connection with a member broke: what was on its way to that one is given up.
    pub(super) fn target_lost(&mut self, peer: &Name, out: &mut Vec<Output>) {
        let target = match &self.migration {
            Some(Migration::Converging { to, .. } | Migration::Pausing { to, .. }) => to,
            _ => return,
        };
        if target == peer && self.abort_migration(out) {
            out.push(Output::Answer(Err(format!("the connection with {peer} broke; the VM goes on here"))));
        }
    }

    /// An epoch was sealed: what is known of the target's lag is of the past.
    pub(super) fn lag_is_stale(&mut self) {
        self.lag.stale = true;
    }

    pub(super) fn on_lag(&mut self, of: &Name, thousandths: u32) {
        if matches!(&self.migration, Some(Migration::Converging { to, .. }) if to == of) {
            self.lag = Lag { told: Some(thousandths), stale: false };
        }
    }

    pub(super) fn on_guest_paused(&mut self, last: u64, out: &mut Vec<Output>) {
        self.core.sealed(last, out);
        self.pauses_due = self.pauses_due.saturating_sub(1);
        match self.migration.take() {
            // The answer to an earlier pause, which was given up, is not this one's.
            Some(Migration::Pausing { to, .. }) if self.pauses_due == 0 => {
                let until_us = self.now_us + self.timing.hand_over_us;
                self.migration = Some(Migration::Draining { to, until_us });
            }
            // Given up meanwhile, and resumed when that was said.
            other => self.migration = other,
        }
    }

    /// Whether a migration may pause the guest now.
    fn has_converged(&self, to: &Name) -> bool {
        let open = self.open_until_us.is_some_and(|until| self.now_us < until);
        open && self.lag.is_small() && self.core.nearly_held(to)
    }

    pub(super) fn migrate(&mut self, out: &mut Vec<Output>) {
        let primary = self.core.is_primary();
        match self.migration.clone() {
            Some(Migration::Converging { to, until_us }) if primary && self.has_converged(&to) => {
                self.core.pledge(&to, out);
                self.migration = Some(Migration::Pausing { to, until_us });
                self.pauses_due += 1;
                out.push(Output::PauseGuest);
            }
            Some(Migration::Converging { to, until_us } | Migration::Pausing { to, until_us })
                if primary && self.now_us >= until_us =>
            {
                self.abort_migration(out);
                out.push(Output::Answer(Err(self.too_slow(&to))));
            }
            // What waits to be released goes out before the role does.
            Some(Migration::Draining { to, .. })
                if primary && self.pending_release.is_none() && self.core.hand_over(&to, out) =>
            {
                let until_us = self.now_us + self.timing.hand_over_us;
                self.migration = Some(Migration::HandedOver { until_us });
                self.promised_to = None;
                self.promise_until_us = 0;
            }
            Some(Migration::Draining { to, until_us }) if self.now_us >= until_us || !primary => {
                self.abort_migration(out);
                out.push(Output::Answer(Err(format!("{to} did not get the last epoch in time; the VM goes on here"))));
            }
            Some(Migration::HandedOver { .. }) if primary => {
                self.migration = None;
                out.push(Output::Answer(Err("the target did not take over; the VM goes on here".to_string())));
            }
            Some(Migration::HandedOver { .. }) if self.core.live_since().is_none() => {
                self.migration = None;
                let there = self.core.following().map_or_else(|| "another host".to_string(), ToString::to_string);
                out.push(Output::Answer(Ok(format!("{there} runs the VM now"))));
            }
            Some(Migration::Converging { .. } | Migration::Pausing { .. }) if !primary => {
                self.abort_migration(out);
                out.push(Output::Answer(Err("this host is not the primary any more".to_string())));
            }
            _ => {}
        }
    }

    fn too_slow(&self, to: &Name) -> String {
        let bound = f64::from(LAG_THOUSANDTHS_MAX) / 1000.0;
        let lag = match self.lag.told {
            Some(told) if told > LAG_THOUSANDTHS_MAX => {
                format!("its lag is {:.2}, and at most {bound} is allowed to switch", f64::from(told) / 1000.0)
            }
            _ => "it was not in sync for long enough".to_string(),
        };
        format!("{to} did not catch up in time: {lag}; the VM goes on here")
    }
}

#[cfg(test)]
mod tests {
    use super::super::member::{Command, Input, Settings};
    use super::super::message::{Message, ReportOrder};
    use super::super::types::{Durable, Position, Rules};
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// A primary and a backup that follows it at once, told what happens by hand.
    struct Pair {
        member: Member,
        now_us: u64,
        epoch: u64,
        change: u64,
        /// What a backup says that it holds.
        held: u64,
    }

    impl Pair {
        fn new() -> Self {
            let durable = Durable::founding("a".into(), &["b".into()], &[], Rules::default());
            let mut pair =
                Self { member: Member::new(Settings::new("a"), durable, 0), now_us: 0, epoch: 0, change: 0, held: 0 };
            pair.input(Input::Command(Command::Start));
            for _ in 0..100 {
                pair.seal();
                pair.follow();
            }
            pair
        }

        fn input(&mut self, input: Input) -> Vec<Output> {
            let mut outputs = self.member.handle(self.now_us, input);
            for output in outputs.clone() {
                if let Output::Send { message: Message::Heartbeat { term, stamp }, .. } = output {
                    outputs.extend(self.report(term, Some(stamp)));
                }
            }
            outputs
        }

        fn report(&mut self, term: u64, echo: Option<u64>) -> Vec<Output> {
            self.change += 1;
            let accepted = self.member.durable().proposal.as_ref().unwrap().config.version;
            let order = ReportOrder { heard: echo.unwrap_or(self.now_us), change: self.change };
            let held = Some(Position::new(term, self.held));
            let message = Message::Report { term, accepted, settled: true, held, gap: false, echo, order };
            self.member.handle(self.now_us, Input::Message { from: "b".into(), message })
        }

        fn seal(&mut self) -> Vec<Output> {
            self.now_us += 5_000;
            self.epoch += 1;
            let mut outputs = self.input(Input::Tick);
            outputs.extend(self.input(Input::EpochSealed(self.epoch)));
            outputs
        }

        fn follow(&mut self) -> Vec<Output> {
            self.held = self.epoch;
            let term = self.member.durable().term;
            self.report(term, None)
        }

        fn lag(&mut self, thousandths: u32) -> Vec<Output> {
            self.input(Input::Lag { of: "b".into(), thousandths })
        }
    }

    fn pauses(outputs: &[Output]) -> bool {
        outputs.contains(&Output::PauseGuest)
    }

    fn answer(outputs: &[Output]) -> Option<&Result<String, String>> {
        outputs.iter().find_map(|output| match output {
            Output::Answer(answer) => Some(answer),
            _ => None,
        })
    }

    #[test]
    fn no_pause_is_ordered_while_the_target_lags() {
        let mut pair = Pair::new();
        let migrate = Command::Migrate { to: "b".into(), within_us: 60 * SECOND_US };
        let mut all = pair.input(Input::Command(migrate));
        for step in 0..1000 {
            all.extend(pair.seal());
            all.extend(pair.follow());
            assert!(pair.member.core.nearly_held(&"b".into()), "only the lag keeps it");
            all.extend(pair.lag(LAG_THOUSANDTHS_MAX + 1 + step % 900));
        }
        assert!(!pauses(&all), "nor while it is above the bound");
        assert!(!pauses(&pair.seal()), "nor before it is known");
        assert!(!pauses(&pair.follow()));
        assert!(pauses(&pair.lag(LAG_THOUSANDTHS_MAX)));
        assert!(!pauses(&pair.lag(0)), "once");
    }

    #[test]
    fn a_migration_that_takes_too_long_is_given_up_with_a_word() {
        let mut pair = Pair::new();
        pair.input(Input::Command(Command::Migrate { to: "b".into(), within_us: SECOND_US }));
        let mut all = Vec::new();
        for _ in 0..210 {
            all.extend(pair.seal());
            all.extend(pair.follow());
            all.extend(pair.lag(310));
        }
        let why = answer(&all).expect("an answer").clone().unwrap_err();
        assert!(why.contains("its lag is 0.31") && why.contains("goes on here"), "{why}");
        assert!(!pauses(&all) && pair.member.migration.is_none());
        let again = pair.input(Input::Command(Command::Migrate { to: "b".into(), within_us: SECOND_US }));
        assert!(answer(&again).is_none(), "{again:?}");
        let lost = pair.input(Input::PeerDown("b".into()));
        assert!(answer(&lost).is_some_and(Result::is_err) && pair.member.migration.is_none(), "{lost:?}");
    }

    #[test]
    fn the_answer_to_a_pause_that_was_given_up_belongs_to_no_later_migration() {
        let mut pair = Pair::new();
        let migrate = || Input::Command(Command::Migrate { to: "b".into(), within_us: 60 * SECOND_US });
        for _ in 0..2 {
            pair.input(migrate());
            pair.seal();
            pair.follow();
            assert!(pauses(&pair.lag(0)));
            if pair.member.pauses_due == 1 {
                let given_up = pair.input(Input::Command(Command::AbortMigration));
                assert!(given_up.contains(&Output::ResumeGuest), "{given_up:?}");
            }
        }
        pair.input(Input::GuestPaused { last: pair.epoch });
        assert!(
            matches!(pair.member.migration, Some(Migration::Pausing { .. })),
            "the guest was resumed after that one"
        );
        pair.epoch += 1;
        pair.input(Input::GuestPaused { last: pair.epoch });
        assert!(matches!(pair.member.migration, Some(Migration::Draining { .. })));
        pair.follow();
        assert!(matches!(pair.member.migration, Some(Migration::HandedOver { .. })));
        let late = pair.input(Input::Command(Command::AbortMigration));
        assert!(answer(&late).is_none() && pair.member.migration.is_some(), "too late");
    }
}
