//! Which of the suitable nodes is best: the sum of several opinions, each from 0 to 100 times its weight.

use super::around::Surroundings;
use super::node::Node;
use super::pod::PodInfo;

const NODE_AFFINITY: i64 = 2;
const TAINTS: i64 = 3;
const POD_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;

/// The slot of the best node; of equals the first.
pub fn best(
    info: &PodInfo,
    nodes: &[Option<Node>],
    feasible: &[usize],
    around: &Surroundings<'_>,
    soft_taints: bool,
) -> Option<usize> {
    if feasible.len() <= 1 {
        return feasible.first().copied();
    }
    let suitable = || feasible.iter().filter_map(|slot| nodes[*slot].as_ref());
    let mut scores: Vec<i64> = suitable().map(|node| least_used(info, node) + balance(info, node)).collect();
    if !info.node_preferred.is_empty() {
        let weights =
            |node: &Node| info.node_preferred.iter().filter(|(term, _)| term.holds(node)).map(|(_, w)| w).sum();
        add(&mut scores, &relative(suitable().map(weights).collect(), false), NODE_AFFINITY);
    }
    if soft_taints {
        let bothered = |node: &Node| node.soft_taints.iter().filter(|taint| !info.tolerates(taint)).count();
        let counts = suitable().map(|node| i64::try_from(bothered(node)).unwrap_or(i64::MAX)).collect();
        add(&mut scores, &relative(counts, true), TAINTS);
    }
    if around.has_preferences() {
        let liking = feasible.iter().map(|slot| around.liking(*slot)).collect();
        add(&mut scores, &between(liking), POD_AFFINITY);
    }
    if around.prefers_spread() {
        let crowding = feasible.iter().map(|slot| around.crowding(*slot)).collect();
        add(&mut scores, &roomy(crowding), SPREAD);
    }
    let top = scores.iter().max()?;
    let index = scores.iter().position(|score| score == top)?;
    feasible.get(index).copied()
}

fn add(scores: &mut [i64], opinion: &[i64], weight: i64) {
    for (score, part) in scores.iter_mut().zip(opinion) {
        *score += part * weight;
    }
}

/// The share of cpu and memory that would still be free.
fn least_used(info: &PodInfo, node: &Node) -> i64 {
    let free = |capacity: i64, used: i64| {
        if capacity <= 0 || used > capacity {
            0
        } else {
            (i128::from(capacity - used) * 100 / i128::from(capacity)) as i64
        }
    };
    let cpu = free(node.offers.cpu_milli, node.assumed.0 + info.assumed.0);
    let memory = free(node.offers.memory, node.assumed.1 + info.assumed.1);
    (cpu + memory) / 2
}

/// How evenly cpu and memory would be used.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn balance(info: &PodInfo, node: &Node) -> i64 {
    let share = |capacity: i64, used: i64| if capacity <= 0 { 1.0 } else { (used as f64 / capacity as f64).min(1.0) };
    if info.requests.cpu_milli == 0 && info.requests.memory == 0 {
        return 0;
    }
    let cpu = share(node.offers.cpu_milli, node.used.cpu_milli + info.requests.cpu_milli);
    let memory = share(node.offers.memory, node.used.memory + info.requests.memory);
    ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
}

/// Scales to 100 for the highest; or, for a nuisance, for none of it.
fn relative(mut amounts: Vec<i64>, nuisance: bool) -> Vec<i64> {
    let top = amounts.iter().copied().max().unwrap_or(0);
    for amount in &mut amounts {
        let share = if top == 0 { 0 } else { *amount * 100 / top };
        *amount = if nuisance { 100 - share } else { share };
    }
    amounts
}

/// Scales to 0 for the lowest and 100 for the highest.
fn between(mut amounts: Vec<i64>) -> Vec<i64> {
    let (low, high) = (amounts.iter().min().copied().unwrap_or(0), amounts.iter().max().copied().unwrap_or(0));
    for amount in &mut amounts {
        *amount = if high == low { 0 } else { (*amount - low) * 100 / (high - low) };
    }
    amounts
}

/// 100 for the emptiest; nothing for a node that cannot be compared.
fn roomy(crowding: Vec<Option<i64>>) -> Vec<i64> {
    let (low, high) = (crowding.iter().flatten().min().copied(), crowding.iter().flatten().max().copied());
    let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
    let score = |crowd: Option<i64>| match crowd {
        None => 0,
        Some(_) if high == 0 => 100,
        Some(crowd) => 100 * (high + low - crowd) / high,
    };
    crowding.into_iter().map(score).collect()
}
