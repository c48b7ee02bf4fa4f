//! The quality-of-service class of a pod.

use serde_json::Value;

use super::resources::{Resources, read};
use crate::value::{has, list};

/// `Guaranteed`, `Burstable` or `BestEffort`, from cpu and memory of all containers (or of the pod as a whole).
pub fn class(spec: &Value) -> &'static str {
    let holders: Vec<&Value> = if has(spec, &["resources", "limits"]) || has(spec, &["resources", "requests"]) {
        vec![spec]
    } else {
        list(spec, &["containers"]).iter().chain(list(spec, &["initContainers"])).collect()
    };
    let counted = |resources: Resources| -> Resources {
        let counts = |name: &str| matches!(name, "cpu" | "memory");
        resources.into_iter().filter(|(name, amount)| counts(name) && !amount.is_zero()).collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for holder in holders {
        let requests = counted(read(holder, &["resources", "requests"]));
        let limits = counted(read(holder, &["resources", "limits"]));
        any |= !requests.is_empty() || !limits.is_empty();
        guaranteed &= limits.len() == 2 && requests.iter().all(|(name, amount)| limits.get(name) == Some(amount));
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
