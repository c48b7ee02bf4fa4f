//! Thresholds of pressure, written as a kubelet takes them: `memory.available<100Mi,nodefs.available<10%`.

use std::sync::Arc;
use std::time::Duration;

use mycelium_api::quantity::Quantity;

use super::signals::{Meter, Signal};

/// How often the node looks.
const EVERY: Duration = Duration::from_secs(10);
/// A condition stays for this long after it was last seen.
const TRANSITION: Duration = Duration::from_secs(300);
/// A share of a large disk is much: these are the most that the default shares stand for.
const NODE_FS_BYTES_MAX: u64 = 10 << 30;
const IMAGE_FS_BYTES_MAX: u64 = 15 << 30;

/// An amount, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So much.
    Absolute(u64),
    /// So many hundredths of what there is, and at most so much.
    Percent(f64, u64),
}

impl Amount {
    /// In units, of a whole of `capacity`.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Percent(percent, most) => ((capacity as f64 * percent / 100.0) as u64).min(most),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().ok()?;
                (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent, u64::MAX))
            }
            None => Some(Self::Absolute(u64::try_from(text.parse::<Quantity>().ok()?.value()).ok()?)),
        }
    }
}

/// One threshold: it is met while less than `below` is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// What may run short.
    pub signal: Signal,
    /// How little is too little.
    pub below: Amount,
    /// For how long before pods go; none for a hard one.
    pub grace: Option<Duration>,
    /// How much more than `below` there must be before it is over.
    pub reclaim: Option<Amount>,
}

/// What decides about pressure.
#[derive(Clone)]
pub struct Config {
    /// Hard and soft thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays after it was last seen.
    pub transition: Duration,
    /// How long pods get to end when a soft threshold is met.
    pub max_grace_secs: i64,
    /// Images nobody uses are removed when the disk is fuller than the first, in percent, until it is at the second.
    pub image_percents: (u8, u8),
    /// How often the node looks.
    pub every: Duration,
    /// Who measures; the machine if nobody is given.
    pub meter: Option<Arc<dyn Meter>>,
}

impl Default for Config {
    fn default() -> Self {
        let hard = |signal, below| Threshold { signal, below, grace: None, reclaim: None };
        let thresholds = vec![
            hard(Signal::Memory, Amount::Absolute(100 << 20)),
            hard(Signal::NodeFs, Amount::Percent(10.0, NODE_FS_BYTES_MAX)),
            hard(Signal::NodeFsInodes, Amount::Percent(5.0, u64::MAX)),
            hard(Signal::ImageFs, Amount::Percent(15.0, IMAGE_FS_BYTES_MAX)),
            hard(Signal::ImageFsInodes, Amount::Percent(5.0, u64::MAX)),
        ];
        Self {
            thresholds,
            transition: TRANSITION,
            max_grace_secs: 0,
            image_percents: (85, 80),
            every: EVERY,
            meter: None,
        }
    }
}

/// Thresholds as the command line has them.
#[derive(Clone, Debug, Default)]
pub struct Texts<'a> {
    /// `memory.available<100Mi,…`: takes the place of all defaults.
    pub hard: Option<&'a str>,
    /// `memory.available<300Mi,…`.
    pub soft: Option<&'a str>,
    /// `memory.available=1m30s,…`: one for each soft threshold.
    pub soft_grace: Option<&'a str>,
    /// `nodefs.available=500Mi,…`.
    pub reclaim: Option<&'a str>,
}

impl Config {
    /// Sets the thresholds. An error names what is wrong and what is allowed.
    pub fn set_thresholds(&mut self, texts: &Texts<'_>) -> Result<(), String> {
        if let Some(hard) = texts.hard {
            self.thresholds = pairs(hard, '<')?.map(|pair| threshold(pair?)).collect::<Result<_, _>>()?;
        }
        let mut graces = Vec::new();
        for pair in texts.soft_grace.map(|text| pairs(text, '=')).transpose()?.into_iter().flatten() {
            let (signal, text) = pair?;
            let time = duration(text).ok_or_else(|| format!("{text:?} is not a time such as 90s or 1m30s"))?;
            graces.push((signal, time));
        }
        for pair in texts.soft.map(|text| pairs(text, '<')).transpose()?.into_iter().flatten() {
            let mut soft = threshold(pair?)?;
            let grace = graces.iter().find(|(signal, _)| *signal == soft.signal);
            let name = soft.signal.name();
            soft.grace = Some(
                grace
                    .ok_or_else(|| format!("grace period must be specified for the soft eviction threshold {name}"))?
                    .1,
            );
            self.thresholds.push(soft);
        }
        for pair in texts.reclaim.map(|text| pairs(text, '=')).transpose()?.into_iter().flatten() {
            let (signal, text) = pair?;
            let amount = amount(text)?;
            self.thresholds.iter_mut().filter(|t| t.signal == signal).for_each(|t| t.reclaim = Some(amount));
        }
        Ok(())
    }
}

type Pair<'a> = Result<(Signal, &'a str), String>;

fn pairs(text: &str, sign: char) -> Result<impl Iterator<Item = Pair<'_>>, String> {
    Ok(text.split(',').filter(|part| !part.trim().is_empty()).map(move |part| {
        let (name, value) = part.split_once(sign).ok_or_else(|| format!("{part:?} is not SIGNAL{sign}VALUE"))?;
        let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name.trim());
        let known = || Signal::ALL.map(Signal::name).join(", ");
        Ok((signal.ok_or_else(|| format!("{:?} is none of {}", name.trim(), known()))?, value.trim()))
    }))
}

fn amount(text: &str) -> Result<Amount, String> {
    Amount::parse(text).ok_or_else(|| format!("{text:?} is neither an amount such as 100Mi nor a share such as 10%"))
}

fn threshold((signal, text): (Signal, &str)) -> Result<Threshold, String> {
    Ok(Threshold { signal, below: amount(text)?, grace: None, reclaim: None })
}

/// A time as Go writes it: `90s`, `1m30s`, `2h`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let after = &rest[end..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let secs = match &after[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * secs).ok()?;
        rest = &after[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_a_kubelet_does() {
        let mut config = Config::default();
        let texts = Texts {
            hard: Some("memory.available<100Mi, nodefs.available<10%"),
            soft: Some("memory.available<1Gi"),
            soft_grace: Some("memory.available=1m30s"),
            reclaim: Some("nodefs.available=500Mi"),
        };
        config.set_thresholds(&texts).expect("well formed");
        let shown: Vec<_> = config.thresholds.iter().map(|t| (t.signal, t.below.of(1000), t.grace.is_some())).collect();
        assert_eq!(
            shown,
            [(Signal::Memory, 100 << 20, false), (Signal::NodeFs, 100, false), (Signal::Memory, 1 << 30, true)]
        );
        assert_eq!(config.thresholds[1].reclaim, Some(Amount::Absolute(500 << 20)));
        assert_eq!(config.thresholds[2].grace, Some(Duration::from_secs(90)));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let wrong = |texts: Texts<'_>| Config::default().set_thresholds(&texts).expect_err("not well formed");
        assert!(wrong(Texts { hard: Some("memory<1"), ..Texts::default() }).contains("none of memory.available"));
        assert!(wrong(Texts { hard: Some("memory.available=1"), ..Texts::default() }).contains("SIGNAL<VALUE"));
        assert!(wrong(Texts { hard: Some("memory.available<101%"), ..Texts::default() }).contains("neither"));
        assert!(wrong(Texts { soft: Some("memory.available<1"), ..Texts::default() }).contains("grace period must be"));
        assert_eq!(duration("1h2m3s"), Some(Duration::from_secs(3723)));
        assert_eq!((duration("5"), duration(""), duration("1x")), (None, None, None));
    }

    #[test]
    fn the_default_share_of_a_large_disk_is_bounded() {
        let of = |signal, capacity| {
            Config::default().thresholds.iter().find(|t| t.signal == signal).map(|t| t.below.of(capacity))
        };
        assert_eq!(of(Signal::NodeFs, 50 << 30), Some(5 << 30));
        assert_eq!(of(Signal::NodeFs, 1 << 40), Some(10 << 30));
    }
}
