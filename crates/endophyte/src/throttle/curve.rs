//! Fill level to intensity, and what happens when the buffer is full.

use mycelium_api::endophyte::{DistributedRam, ThrottlingCurve};
use serde::Serialize;

/// How much slower a guest runs at which fill level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    threshold: f64,
    maximum: f64,
    /// Of an exponential curve.
    exponent: Option<f64>,
}

impl Curve {
    /// The curve that the document asks for.
    pub fn new(ram: &DistributedRam) -> Self {
        let exponent = (ram.throttling_curve == ThrottlingCurve::Exponential).then_some(ram.throttling_exponent);
        Self { threshold: ram.throttle_threshold, maximum: ram.maximum_throttle, exponent }
    }

    /// The share of its processor time that the guest loses, 0 to the maximum.
    pub fn intensity(&self, fill: f64) -> f64 {
        if fill.is_nan() || fill <= self.threshold {
            return 0.0;
        }
        let x = ((fill - self.threshold) / (1.0 - self.threshold)).min(1.0);
        let bent = self.exponent.map_or(x, |k| (k * x).exp_m1() / k.exp_m1());
        (self.maximum * bent).clamp(0.0, self.maximum)
    }

    /// Where a paused guest goes on: halfway between the threshold and full.
    fn resume(&self) -> f64 {
        f64::midpoint(self.threshold, 1.0)
    }
}

/// What the fill level means for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Pressure {
    /// It runs at full speed.
    Normal,
    /// It loses this share of its processor time.
    Throttled(f64),
    /// It is stopped until the buffer has drained.
    Paused,
    /// It runs on at this loss, output leaves unprotected, and no checkpoint is taken until the buffer has drained.
    Skipping(f64),
}

impl Pressure {
    /// The share of processor time the guest loses.
    pub fn intensity(&self) -> f64 {
        match self {
            Self::Normal => 0.0,
            Self::Throttled(intensity) | Self::Skipping(intensity) => *intensity,
            Self::Paused => 1.0,
        }
    }
}

/// Decides by the fill level, and remembers that it was full.
#[derive(Clone, Copy, Debug)]
pub struct Governor {
    curve: Curve,
    pause: bool,
    was_full: bool,
}

impl Governor {
    /// By the document.
    pub fn new(ram: &DistributedRam) -> Self {
        Self { curve: Curve::new(ram), pause: ram.emergency_pause_enabled, was_full: false }
    }

    /// What a fill level of `fill` (1 is full) means now.
    pub fn update(&mut self, fill: f64) -> Pressure {
        self.was_full = fill >= 1.0 || (self.was_full && fill > self.curve.resume());
        let intensity = self.curve.intensity(fill);
        match (self.was_full, self.pause) {
            (true, true) => Pressure::Paused,
            (true, false) => Pressure::Skipping(intensity),
            (false, _) if intensity > 0.0 => Pressure::Throttled(intensity),
            (false, _) => Pressure::Normal,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ram(threshold: f64, exponent: Option<f64>, maximum: f64) -> DistributedRam {
        DistributedRam {
            throttle_threshold: threshold,
            throttling_curve: if exponent.is_some() { ThrottlingCurve::Exponential } else { ThrottlingCurve::Linear },
            throttling_exponent: exponent.unwrap_or(1.0),
            maximum_throttle: maximum,
            ..DistributedRam::default()
        }
    }

    #[test]
    fn halfway_between_threshold_and_full() {
        let near = |curve: Curve, fill: f64, expected: f64| {
            let found = curve.intensity(fill);
            assert!((found - expected).abs() < 1e-6, "{found} at {fill}, not {expected}");
        };
        near(Curve::new(&ram(0.7, None, 0.9)), 0.85, 0.45);
        near(Curve::new(&ram(0.6, None, 0.5)), 0.7, 0.125);
        // (e^(3/2) - 1) / (e^3 - 1), which is 1 / (e^(3/2) + 1).
        near(Curve::new(&ram(0.7, Some(3.0), 1.0)), 0.85, 0.182_425_524);
        near(Curve::new(&ram(0.7, Some(3.0), 0.5)), 0.85, 0.091_212_762);
    }

    proptest! {
        #[test]
        fn intensity_is_bounded_starts_at_the_threshold_and_never_falls_with_the_fill_level(
            threshold in 0.05..0.99,
            exponent in prop::option::of(0.1..20.0),
            maximum in 0.0..0.99,
            mut fills in prop::collection::vec(-0.5..2.0, 2..20),
        ) {
            let curve = Curve::new(&ram(threshold, exponent, maximum));
            fills.sort_by(f64::total_cmp);
            let intensities: Vec<f64> = fills.iter().map(|fill| curve.intensity(*fill)).collect();
            prop_assert!(intensities.is_sorted() && intensities.iter().all(|i| (0.0..=maximum).contains(i)));
            prop_assert!(fills.iter().zip(&intensities).all(|(fill, i)| *fill > threshold || *i == 0.0));
            prop_assert!((curve.intensity(1.0) - maximum).abs() < 1e-9);
            prop_assert_eq!(curve.intensity(f64::NAN), 0.0);
            // An exponential curve never slows more than the linear one on the way.
            let linear = Curve::new(&ram(threshold, None, maximum));
            prop_assert!(fills.iter().all(|fill| curve.intensity(*fill) <= linear.intensity(*fill) + 1e-9));
        }

        #[test]
        fn a_full_buffer_pauses_until_it_has_drained_and_then_lets_go_by_itself(
            fills in prop::collection::vec(0.0..1.3, 1..60),
            pause in any::<bool>(),
        ) {
            let ram = DistributedRam { emergency_pause_enabled: pause, ..ram(0.7, None, 0.9) };
            let (mut governor, mut full) = (Governor::new(&ram), false);
            for fill in fills {
                full = fill >= 1.0 || full && fill > 0.85;
                match governor.update(fill) {
                    Pressure::Paused => prop_assert!(full && pause),
                    Pressure::Skipping(_) => prop_assert!(full && !pause),
                    Pressure::Throttled(_) => prop_assert!(!full && fill > 0.7),
                    Pressure::Normal => prop_assert!(!full && fill <= 0.7),
                }
            }
            prop_assert_eq!(governor.update(0.3), Pressure::Normal);
        }
    }
}
