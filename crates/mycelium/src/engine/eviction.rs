//! When pods must leave a node that runs short: flags and configuration, named as a kubelet's.

use anyhow::{Context, Result, anyhow, bail};
use mycelium_node::pressure;
use mycelium_node::pressure::config::{Texts, duration};
use serde::Deserialize;

/// What may be given; in the file below `eviction`.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[group(id = "eviction")]
pub struct Options {
    /// Evict pods while less than this is left [default: memory.available<100Mi, nodefs.available<10% (at most 10Gi),
    /// imagefs.available<15% (at most 15Gi), nodefs.inodesFree<5%, imagefs.inodesFree<5%]; pid.available is known, too
    #[arg(long = "eviction-hard", value_name = "SIGNAL<AMOUNT,...", help_heading = "Pressure")]
    pub hard: Option<String>,
    /// Evict pods while less than this has been left for some time
    #[arg(long = "eviction-soft", value_name = "SIGNAL<AMOUNT,...", help_heading = "Pressure")]
    pub soft: Option<String>,
    /// For how long, for each soft threshold
    #[arg(long = "eviction-soft-grace-period", value_name = "SIGNAL=TIME,...", help_heading = "Pressure")]
    pub soft_grace_period: Option<String>,
    /// How much more than the threshold there must be before it is over
    #[arg(long = "eviction-minimum-reclaim", value_name = "SIGNAL=AMOUNT,...", help_heading = "Pressure")]
    pub minimum_reclaim: Option<String>,
    /// How long a condition of the node stays after it was last seen [default: 5m]
    #[arg(long = "eviction-pressure-transition-period", value_name = "TIME", help_heading = "Pressure")]
    pub pressure_transition_period: Option<String>,
    /// Seconds that pods get to end when a soft threshold is met [default: 0]
    #[arg(long = "eviction-max-pod-grace-period", value_name = "SECONDS", help_heading = "Pressure")]
    pub max_pod_grace_period: Option<i64>,
    /// Remove images that nobody uses when the disk is fuller than this, in percent [default: 85]
    #[arg(long = "image-gc-high-threshold", value_name = "PERCENT", help_heading = "Pressure")]
    pub image_gc_high_threshold: Option<u8>,
    /// Remove them until it is at this [default: 80]
    #[arg(long = "image-gc-low-threshold", value_name = "PERCENT", help_heading = "Pressure")]
    pub image_gc_low_threshold: Option<u8>,
}

impl Options {
    /// These, and what they leave open from the file.
    pub fn over(self, file: Self) -> Self {
        Self {
            hard: self.hard.or(file.hard),
            soft: self.soft.or(file.soft),
            soft_grace_period: self.soft_grace_period.or(file.soft_grace_period),
            minimum_reclaim: self.minimum_reclaim.or(file.minimum_reclaim),
            pressure_transition_period: self.pressure_transition_period.or(file.pressure_transition_period),
            max_pod_grace_period: self.max_pod_grace_period.or(file.max_pod_grace_period),
            image_gc_high_threshold: self.image_gc_high_threshold.or(file.image_gc_high_threshold),
            image_gc_low_threshold: self.image_gc_low_threshold.or(file.image_gc_low_threshold),
        }
    }

    /// As the node takes them.
    pub fn pressure(&self) -> Result<pressure::Config> {
        let mut config = pressure::Config::default();
        let texts = Texts {
            hard: self.hard.as_deref(),
            soft: self.soft.as_deref(),
            soft_grace: self.soft_grace_period.as_deref(),
            reclaim: self.minimum_reclaim.as_deref(),
        };
        config.set_thresholds(&texts).map_err(|fault| anyhow!("--eviction-...: {fault}"))?;
        if let Some(text) = &self.pressure_transition_period {
            let fault = || format!("--eviction-pressure-transition-period {text:?} is not a time such as 30s or 5m");
            config.transition = duration(text).with_context(fault)?;
        }
        config.max_grace_secs = self.max_pod_grace_period.unwrap_or(0).max(0);
        let (high, low) = config.image_percents;
        config.image_percents =
            (self.image_gc_high_threshold.unwrap_or(high), self.image_gc_low_threshold.unwrap_or(low));
        let (high, low) = config.image_percents;
        if high > 100 || low >= high {
            bail!("--image-gc-high-threshold {high} must be at most 100 and above --image-gc-low-threshold {low}");
        }
        Ok(config)
    }
}
