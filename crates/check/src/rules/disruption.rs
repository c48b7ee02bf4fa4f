//! PodDisruptionBudgets: what they select, and those that let no pod go.

use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};
use crate::value::{int, show_selector, text};
use crate::workload::Workload;

pub fn check(set: &Set, report: &mut Report) {
    for budget in set.local_of("policy", "PodDisruptionBudget") {
        let own = &budget.value["spec"]["selector"];
        let Ok(selector) = Selector::from_value(own) else { continue };
        if !own.is_object() {
            continue;
        }
        let workloads = set.workloads_in(&budget.namespace);
        let selected: Vec<&Workload<'_>> = workloads
            .iter()
            .filter(|workload| workload.is_lasting() && (selector.is_empty() || workload.matches(&selector)))
            .collect();
        if selected.is_empty() {
            if !selector.is_empty() {
                nothing(set, budget, !workloads.is_empty(), report);
            }
            continue;
        }
        blocks(set, budget, &selected, report);
    }
}

fn nothing(set: &Set, budget: &Object, some: bool, report: &mut Report) {
    let certain = (some || set.context.cluster) && !set.may_have_other_pods(&budget.namespace);
    let severity = if certain { Severity::Error } else { Severity::Warning };
    let shown = show_selector(&budget.value["spec"]["selector"]);
    let message = format!("the budget is for pods with {shown}, and namespace {} has none", budget.namespace);
    report.object(severity, "pdb-selects-nothing", budget, "spec.selector", message, "");
}

/// How many pods there are at least, if each workload has a number.
fn pods(set: &Set, selected: &[&Workload<'_>]) -> Option<i64> {
    selected.iter().try_fold(0i64, |sum, workload| {
        let object = workload.object;
        let scaler = set.all().find(|scaler| {
            scaler.is("autoscaling", "HorizontalPodAutoscaler")
                && scaler.namespace == object.namespace
                && text(&scaler.value, "/spec/scaleTargetRef/kind") == object.kind
                && text(&scaler.value, "/spec/scaleTargetRef/name") == object.name
        });
        let own = match scaler {
            Some(scaler) => int(&scaler.value, "/spec/minReplicas").unwrap_or(1),
            None => workload.replicas()?,
        };
        sum.checked_add(own)
    })
}

fn blocks(set: &Set, budget: &Object, selected: &[&Workload<'_>], report: &mut Report) {
    let spec = &budget.value["spec"];
    let names: Vec<String> = selected.iter().map(|workload| workload.object.to_string()).collect();
    let whose = names.join(", ");
    let max = &spec["maxUnavailable"];
    if max.as_i64() == Some(0) || max.as_str() == Some("0%") {
        let message =
            format!("maxUnavailable {} lets no pod of {whose} go, so a drain of its node never ends", plain(max));
        let field = "spec.maxUnavailable";
        return report.object(Severity::Warning, "pdb-blocks-drain", budget, field, message, "allow at least 1");
    }
    let Some(pods) = pods(set, selected).filter(|pods| *pods > 0) else { return };
    let min = &spec["minAvailable"];
    let needed = match min.as_str().and_then(|text| text.strip_suffix('%')).and_then(|text| text.parse::<i64>().ok()) {
        Some(percent) if (0..=100).contains(&percent) => pods.saturating_mul(percent).saturating_add(99) / 100,
        Some(_) => return,
        None => min.as_i64().unwrap_or(0),
    };
    if needed >= pods {
        let many = if pods == 1 { "pod".to_owned() } else { "pods".to_owned() };
        let message = format!(
            "minAvailable {} of {pods} {many} of {whose} lets none go, so a drain of its node never ends",
            plain(min)
        );
        let fix =
            if pods == 1 { "run at least 2 replicas, or write maxUnavailable: 1" } else { "write maxUnavailable: 1" };
        report.object(Severity::Warning, "pdb-blocks-drain", budget, "spec.minAvailable", message, fix);
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
