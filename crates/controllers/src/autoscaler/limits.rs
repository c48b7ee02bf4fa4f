//! How far and how fast replicas may change: bounds, stabilisation, and the rates of the behaviour.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};

use super::replicas::Tolerance;

/// After a peak, replicas stay for this long unless the behaviour says otherwise.
const DEFAULT_DOWN: SignedDuration = SignedDuration::from_mins(5);
/// Nothing looks back further than this.
const LONGEST: SignedDuration = SignedDuration::from_hours(1);

/// What was recommended and done lately. Lost when the process ends.
#[derive(Clone, Debug, Default)]
pub struct Past {
    recommended: Vec<(Timestamp, i32)>,
    /// By how many replicas the target changed.
    changed: Vec<(Timestamp, i32)>,
}

impl Past {
    /// Notes a recommendation.
    pub fn recommend(&mut self, now: Timestamp, replicas: i32) {
        self.recommended.retain(|(at, _)| now.duration_since(*at) <= LONGEST);
        self.recommended.push((now, replicas));
    }

    /// Whether nothing was recommended yet.
    pub fn is_empty(&self) -> bool {
        self.recommended.is_empty()
    }

    /// Notes that the target was scaled.
    pub fn scaled(&mut self, now: Timestamp, by: i32) {
        self.changed.retain(|(at, _)| now.duration_since(*at) <= LONGEST);
        self.changed.push((now, by));
    }

    fn recent(&self, window: SignedDuration, now: Timestamp) -> impl Iterator<Item = i32> {
        self.recommended.iter().filter(move |(at, _)| now.duration_since(*at) < window).map(|(_, replicas)| *replicas)
    }

    /// Replicas there were at the start of a period.
    fn at_start(&self, current: i32, period: SignedDuration, now: Timestamp) -> i32 {
        let recent = self.changed.iter().filter(|(at, _)| now.duration_since(*at) < period);
        current - recent.map(|(_, by)| *by).sum::<i32>()
    }
}

/// A condition to set: whether it is true, why, and in words.
pub type Verdict = (bool, &'static str, &'static str);

/// What may be done of what was recommended.
#[derive(Clone, Debug, PartialEq)]
pub struct Limited {
    /// Replicas.
    pub replicas: i32,
    /// The condition AbleToScale.
    pub able: Verdict,
    /// The condition ScalingLimited.
    pub limited: Verdict,
}

const READY: Verdict = (true, "ReadyForNewScale", "recommended size matches current size");
const HELD_DOWN: Verdict = (
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const HELD_UP: Verdict = (
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Verdict = (false, "DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: Verdict = (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Verdict = (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_FAST_UP: Verdict =
    (true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Verdict =
    (true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The tolerance that the behaviour asks for.
pub fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let behavior = spec.behavior.clone().unwrap_or_default();
    let share = |rules: Option<HPAScalingRules>| {
        let quantity = rules?.tolerance?.0.parse::<mycelium_api::quantity::Quantity>().ok()?;
        Some(quantity.milli_value() as f64 / 1000.0)
    };
    let usual = Tolerance::default();
    Tolerance {
        up: share(behavior.scale_up).unwrap_or(usual.up),
        down: share(behavior.scale_down).unwrap_or(usual.down),
    }
}

/// Fits a recommendation into what the autoscaler may do now; it is taken into the past.
pub fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    recommended: i32,
    past: &mut Past,
    now: Timestamp,
) -> Limited {
    let behavior = spec.behavior.clone();
    let (up, down) = behavior.clone().map_or((None, None), |behavior| (behavior.scale_up, behavior.scale_down));
    let window = |rules: &Option<HPAScalingRules>, usual| {
        let seconds = rules.as_ref().and_then(|rules| rules.stabilization_window_seconds);
        seconds.map_or(usual, |seconds| SignedDuration::from_secs(seconds.into()))
    };
    let lowest = past.recent(window(&up, SignedDuration::ZERO), now).fold(recommended, i32::min);
    let highest = past.recent(window(&down, DEFAULT_DOWN), now).fold(recommended, i32::max);
    past.recommend(now, recommended);
    let stable = if behavior.is_none() { highest } else { current.max(lowest).min(highest) };
    let able = match stable.cmp(&recommended) {
        std::cmp::Ordering::Equal => READY,
        std::cmp::Ordering::Greater => HELD_DOWN,
        std::cmp::Ordering::Less => HELD_UP,
    };
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let (ceiling, floor) = match behavior {
        None => ((current * 2).max(4), i32::MIN),
        Some(_) => (
            fastest(up.as_ref(), current, past, now, true).max(current),
            fastest(down.as_ref(), current, past, now, false).min(current),
        ),
    };
    let (replicas, limited) = if stable > most.min(ceiling) && stable > current {
        if most > ceiling { (ceiling, TOO_FAST_UP) } else { (most, TOO_MANY) }
    } else if stable > most {
        (most, TOO_MANY)
    } else if stable < floor && floor > least {
        (floor, TOO_FAST_DOWN)
    } else if stable < least {
        (least, TOO_FEW)
    } else {
        (stable, WITHIN)
    };
    Limited { replicas, able, limited }
}

/// As far as the policies let replicas go now.
fn fastest(rules: Option<&HPAScalingRules>, current: i32, past: &Past, now: Timestamp, up: bool) -> i32 {
    let Some(rules) = rules else { return if up { i32::MAX } else { i32::MIN } };
    let select = rules.select_policy.as_deref().unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let reach = rules.policies.iter().flatten().map(|policy| {
        let start = past.at_start(current, SignedDuration::from_secs(policy.period_seconds.into()), now);
        let share = f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), up) {
            ("Pods", true) => start.saturating_add(policy.value),
            ("Pods", false) => start - policy.value,
            (_, true) => (f64::from(start) * (1.0 + share)).ceil() as i32,
            (_, false) => (f64::from(start) * (1.0 - share)) as i32,
        }
    });
    // The largest change up is the highest count, the largest change down the lowest.
    let furthest = if (select == "Min") == up { reach.min() } else { reach.max() };
    furthest.unwrap_or(current)
}
