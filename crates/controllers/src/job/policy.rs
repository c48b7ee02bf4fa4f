//! What a job says about pods that fail, and about success before all is done.

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::objects::{name, pod_condition};

/// What a failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It counts against the limit.
    Counts,
    /// It does not count.
    Ignored,
    /// Its index has failed.
    FailsIndex,
    /// The whole job has failed, with this message.
    FailsJob(String),
}

/// Judges a failed pod: by the first rule that matches.
pub fn judge(spec: &JobSpec, pod: &Pod) -> Judgement {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        match rule.action.as_str() {
            "Ignore" => return Judgement::Ignored,
            "Count" => return Judgement::Counts,
            "FailIndex" if spec.backoff_limit_per_index.is_some() => return Judgement::FailsIndex,
            "FailJob" => {
                return Judgement::FailsJob(format!("{what} matching FailJob rule at index {index}"));
            }
            _ => {}
        }
    }
    Judgement::Counts
}

/// What of the pod a rule matches.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = name(&pod.metadata);
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let matches = |container: &ContainerStatus| {
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            let named = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
            let listed = codes.values.contains(&code) == (codes.operator == "In");
            (code != 0 && named && listed).then(|| {
                format!("Container {} for pod {namespace}/{pod_name} failed with exit code {code}", container.name)
            })
        };
        return all.into_iter().find_map(matches);
    }
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    patterns.find_map(|pattern| {
        let status = pod_condition(pod, &pattern.type_)?.status.as_str();
        let wanted = pattern.status.as_deref().filter(|status| !status.is_empty()).unwrap_or("True");
        (status == wanted).then(|| format!("Pod {namespace}/{pod_name} has condition {}", pattern.type_))
    })
}

/// Which rule of the success policy is met.
pub fn succeeded(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let completions = spec.completions.unwrap_or(0);
    let rules = &spec.success_policy.as_ref()?.rules;
    let met = rules.iter().position(|rule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            wanted.shared(succeeded) >= rule.succeeded_count.unwrap_or(wanted.len()) && !wanted.is_empty()
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.len() >= count),
    });
    met.map(|index| format!("Matched rules at index {index}"))
}
