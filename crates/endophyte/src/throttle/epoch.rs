//! How long the next epoch lasts.
//!
//! Short epochs let held output go sooner; long ones cost fewer pauses, and pages that are written again and again are
//! sent once. While nothing waits to leave, epochs are long; once something does, as short as the pause and the
//! acknowledgements allow.

use std::time::Duration;

use mycelium_api::endophyte::EpochLength;

/// What an epoch's length is kept within.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochLimits {
    /// Never shorter.
    pub minimum: Duration,
    /// Never longer.
    pub maximum: Duration,
    /// The share of time that pauses may take.
    pub overhead: f64,
    /// Bytes that one epoch should not exceed: a part of the buffer.
    pub epoch_bytes: u64,
    /// Epochs that may be under way at a time without slowing each other.
    pub pipeline: f64,
}

impl EpochLimits {
    /// By the document, with a buffer that holds `epoch_share` bytes of epochs.
    pub fn new(length: EpochLength, epoch_share: u64) -> Self {
        Self {
            minimum: Duration::from_millis(length.minimum),
            maximum: Duration::from_millis(length.maximum.max(length.minimum)),
            overhead: 0.1,
            epoch_bytes: epoch_share / 8,
            pipeline: 2.0,
        }
    }
}

/// What was observed; smoothed by the caller or not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EpochInputs {
    /// Bytes of pages that the guest dirties per second of running.
    pub dirty_bytes_per_s: f64,
    /// How long the guest stands still for a checkpoint.
    pub pause: Duration,
    /// From the end of an epoch to its acknowledgement.
    pub ack: Duration,
    /// How long output has been waiting; zero when none is.
    pub egress_age: Duration,
}

/// Chooses the length of each epoch.
#[derive(Clone, Copy, Debug)]
pub struct EpochController {
    limits: EpochLimits,
    current: Duration,
}

impl EpochController {
    /// Starts short: the first output is somebody's first impression.
    pub fn new(limits: EpochLimits) -> Self {
        Self { limits, current: limits.minimum }
    }

    /// The length in use.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// The length of the next epoch: towards the target, at most doubling or halving in one step.
    pub fn next(&mut self, inputs: &EpochInputs) -> Duration {
        let target = self.target(inputs);
        self.current = target.clamp(self.current / 2, self.current * 2);
        self.current = self.current.clamp(self.limits.minimum, self.limits.maximum);
        self.current
    }

    /// The length that fits these inputs if they stay.
    pub fn target(&self, inputs: &EpochInputs) -> Duration {
        let limits = &self.limits;
        let (minimum, maximum) = (limits.minimum.as_secs_f64(), limits.maximum.as_secs_f64());
        // With nothing waiting as long as possible; the longer something waits, the shorter.
        let wish = maximum - inputs.egress_age.as_secs_f64().min(maximum) * (maximum / minimum.max(1e-6)).max(1.0);
        let overhead = inputs.pause.as_secs_f64() * (1.0 - limits.overhead) / limits.overhead;
        let bytes = limits.epoch_bytes as f64 / inputs.dirty_bytes_per_s.max(1.0);
        let ack = inputs.ack.as_secs_f64() / limits.pipeline;
        let length = wish.max(overhead).min(bytes).max(ack).clamp(minimum, maximum);
        Duration::from_secs_f64(length).clamp(limits.minimum, limits.maximum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> EpochLimits {
        EpochLimits::new(EpochLength::default(), 128 << 20)
    }

    fn inputs() -> impl Strategy<Value = EpochInputs> {
        let us = |max: u64| (0..max).prop_map(Duration::from_micros);
        (0.0..4e9, us(50_000), us(500_000), prop_oneof![Just(Duration::ZERO), us(200_000)]).prop_map(
            |(dirty_bytes_per_s, pause, ack, egress_age)| EpochInputs { dirty_bytes_per_s, pause, ack, egress_age },
        )
    }

    proptest! {
        #[test]
        fn lengths_are_bounded_change_gently_and_settle(sequence in prop::collection::vec(inputs(), 1..40)) {
            let mut controller = EpochController::new(limits());
            let mut before = controller.current();
            for inputs in &sequence {
                let next = controller.next(inputs);
                prop_assert!((limits().minimum..=limits().maximum).contains(&next));
                prop_assert!(next <= before * 2 && next >= before / 2);
                before = next;
            }
            // Whatever happened: with inputs that stay, it is where it should be within a few epochs.
            for last in [sequence[sequence.len() - 1], EpochInputs::default()] {
                (0..6).for_each(|_| { controller.next(&last); });
                prop_assert_eq!(controller.current(), controller.target(&last));
            }
            prop_assert_eq!(controller.current(), limits().maximum);
        }

        #[test]
        fn more_to_send_or_waiting_output_never_lengthens_and_slower_backups_or_pauses_never_shorten(
            a in inputs(), more in 1_u64..100_000,
        ) {
            let controller = EpochController::new(limits());
            let (more, base) = (Duration::from_micros(more), controller.target(&a));
            let with = |change: fn(&mut EpochInputs, Duration)| {
                let mut changed = a;
                change(&mut changed, more);
                controller.target(&changed)
            };
            prop_assert!(with(|i, more| i.dirty_bytes_per_s += more.as_secs_f64() * 1e9) <= base);
            prop_assert!(with(|i, more| i.egress_age += more) <= base);
            prop_assert!(with(|i, more| i.pause += more) >= base);
            prop_assert!(with(|i, more| i.ack += more) >= base);
        }
    }

    #[test]
    fn output_that_waits_is_let_go_as_soon_as_pauses_allow() {
        let controller = EpochController::new(limits());
        let waiting = |pause| EpochInputs {
            pause: Duration::from_micros(pause),
            egress_age: Duration::from_millis(20),
            ..EpochInputs::default()
        };
        assert_eq!(controller.target(&waiting(100)), Duration::from_millis(5));
        assert_eq!(controller.target(&waiting(2000)), Duration::from_millis(18));
        assert_eq!(controller.target(&EpochInputs::default()), Duration::from_millis(100));
    }
}
