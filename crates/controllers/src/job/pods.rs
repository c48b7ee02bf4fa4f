//! Pods of a job: their index, how they ended, and the pods it makes.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::policy::{self, Judgement};
use crate::children;
use crate::objects::{annotation, name, phase, pod_condition};

/// What keeps a pod until the job has counted it.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The longest prefix of a name that the server completes.
const PREFIX_BYTES: usize = 58;

/// Whether the job has still to count the pod.
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|held| held == TRACKING)
}

/// Whether completions are told apart by index.
pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether a pod is replaced only once it has really failed.
pub fn waits_for_failure(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// The index of a pod, if it has a valid one.
pub fn index_of(pod: &Pod, spec: &JobSpec) -> Option<i32> {
    let index: i32 = annotation(&pod.metadata, INDEX)?.parse().ok()?;
    (index >= 0 && index < spec.completions.unwrap_or(0)).then_some(index)
}

/// Whether the pod counts as failed: it has, or it is being deleted and that is enough for this job.
pub fn has_failed(pod: &Pod, spec: &JobSpec) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && !waits_for_failure(spec),
    }
}

/// How often the index of this pod had failed before it, counted and ignored.
pub fn failures_before(pod: &Pod) -> (i32, i32) {
    let count = |key| annotation(&pod.metadata, key).and_then(|text| text.parse().ok()).unwrap_or(0);
    (count(FAILURES), count(IGNORED))
}

/// When the pod ended.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let ends = status.container_statuses.iter().flatten();
    let last = ends.filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).max();
    let unready = || {
        let ready = pod_condition(pod, "Ready").filter(|condition| condition.status == "False")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    };
    let meta = &pod.metadata;
    last.or_else(unready)
        .or_else(|| meta.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| meta.creation_timestamp.as_ref().map(|time| time.0))
}

/// A new pod: for an index if the job has them, in place of a failed one if its failures are counted by index.
pub fn new(job: &Job, spec: &JobSpec, index: Option<i32>, former: Option<&Pod>) -> Pod {
    let mut pod = children::pod(&spec.template, job);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|held| held == TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    let Some(index) = index else { return pod };
    let end = format!("-{index}-");
    let mut prefix = name(&job.metadata).to_owned();
    prefix.truncate(PREFIX_BYTES - end.len());
    pod.metadata.generate_name = Some(prefix + &end);
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (failed, ignored) = former.map_or((0, 0), |former| failures_after(former, spec));
        annotations.insert(FAILURES.into(), failed.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.into(), ignored.to_string());
        }
    }
    let inside = pod.spec.get_or_insert_default();
    inside.hostname = Some(format!("{}-{index}", name(&job.metadata)));
    inside.init_containers.iter_mut().flatten().for_each(add_index_variable);
    inside.containers.iter_mut().for_each(add_index_variable);
    pod
}

/// The failures of an index once this pod is added to them.
fn failures_after(pod: &Pod, spec: &JobSpec) -> (i32, i32) {
    let (failed, ignored) = failures_before(pod);
    match policy::judge(spec, pod) {
        Judgement::Ignored => (failed, ignored + 1),
        _ => (failed + 1, ignored),
    }
}

fn add_index_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|held| held.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}
