//! Eviction: a deletion that a PodDisruptionBudget can refuse.

use std::sync::Arc;

use http::{Response, StatusCode};
use mycelium_api::selector::Selector;
use serde_json::{Value, json};

use super::decode::{self, Expected};
use super::delete::{self, DeleteOptions};
use super::options::WriteOptions;
use super::pods::success;
use super::update::{self, Change, Ownership};
use crate::answer;
use crate::body::Body;
use crate::error::{ApiError, Subject};
use crate::request::ResourcePath;
use crate::route::Context;

/// A budget with more pods than this on their way out waits for the controller.
const UNCONFIRMED_MAX: usize = 2000;

/// Answers a POST to `pods/<name>/eviction`.
pub async fn evict(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let write = WriteOptions::parse(cx, "CreateOptions")?;
    let (eviction, _) = decode::object(cx, body, &Expected::kind("policy", "v1", "Eviction"), write.validation)?;
    let named = eviction["metadata"]["name"].as_str().unwrap_or_default();
    if named != cx.path.name {
        return Err(ApiError::bad("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions { dry_run: write.dry_run, ..DeleteOptions::default() };
    if eviction["deleteOptions"].is_object() {
        options.merge(&eviction["deleteOptions"]);
    }
    let entry = cx.server.store.get(&cx.key()).ok_or_else(|| ApiError::NotFound(cx.subject()))?;
    let pod = cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?;
    if is_guarded(&pod) {
        ask_budget(cx, &pod, &write, options.dry_run).await?;
    }
    if !options.dry_run {
        mark(cx, &write).await?;
    }
    let path = ResourcePath { subresource: String::new(), ..cx.path.clone() };
    let plain = Context { path: &path, ..*cx };
    delete::delete_named(&plain, &path.namespace, &path.name, &options).await?;
    Ok(answer::json(StatusCode::CREATED, &success(201)))
}

/// A pod that does not run, or goes already, is nobody's loss.
fn is_guarded(pod: &Value) -> bool {
    let idle = matches!(pod["status"]["phase"].as_str(), None | Some("" | "Pending" | "Succeeded" | "Failed"));
    !idle && !pod["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The budgets that count this pod.
fn budgets(cx: &Context<'_>, pod: &Value) -> Result<Vec<Arc<Value>>, ApiError> {
    let prefix = format!("/registry/policy/poddisruptionbudgets/{}/", cx.path.namespace);
    let entries = cx.server.store.range(&prefix, None, 0, None).map_err(ApiError::internal)?.entries;
    let mut found = Vec::new();
    for entry in entries {
        let budget = cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?;
        let selector = &budget["spec"]["selector"];
        let counts = Selector::from_value(selector).is_ok_and(|s| s.matches_value(&pod["metadata"]["labels"]));
        if !selector.is_null() && counts {
            found.push(budget);
        }
    }
    Ok(found)
}

async fn ask_budget(cx: &Context<'_>, pod: &Value, write: &WriteOptions, dry_run: bool) -> Result<(), ApiError> {
    let budgets = budgets(cx, pod)?;
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::Typed(why.into()));
        }
    };
    if !is_ready(pod) && may_go_unready(budget) {
        return Ok(());
    }
    let table = cx.server.table();
    let resource = table.get("policy", "v1", "poddisruptionbudgets").ok_or(ApiError::NoSuchPath)?;
    let path = ResourcePath {
        group: "policy".into(),
        version: "v1".into(),
        resource: "poddisruptionbudgets".into(),
        namespace: cx.path.namespace.clone(),
        name: budget["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        subresource: "status".into(),
        ..ResourcePath::default()
    };
    let about = Context { path: &path, resource, ..*cx };
    let options = WriteOptions { dry_run, ..write.clone() };
    let (pod_name, now) = (&cx.path.name, cx.server.env.now_rfc3339());
    update::modify(&about, &options, |budget| {
        Ok(Change { object: charge(budget, pod_name, &now)?, ownership: Ownership::Update })
    })
    .await
    .map(drop)
}

/// A pod that serves nobody may go if the budget says so, or if enough others are well.
fn may_go_unready(budget: &Value) -> bool {
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy"))
}

/// Takes one disruption off a budget, or refuses.
fn charge(budget: &Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let refuse = |why: &str| ApiError::forbidden(Subject::new("policy", "poddisruptionbudget", name), why);
    if count("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(ApiError::Disruption { cause, retry_seconds: Some(10) });
    }
    if count("disruptionsAllowed") < 0 {
        return Err(refuse("pdb disruptions allowed is negative"));
    }
    if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > UNCONFIRMED_MAX) {
        return Err(refuse("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if count("disruptionsAllowed") == 0 {
        let (needed, there) = (count("desiredHealthy"), count("currentHealthy"));
        let cause = format!("The disruption budget {name} needs {needed} healthy pods and has {there} currently");
        return Err(ApiError::Disruption { cause, retry_seconds: None });
    }
    let left = count("disruptionsAllowed") - 1;
    let mut charged = budget.clone();
    charged["metadata"]["resourceVersion"] = json!("");
    charged["status"]["disruptionsAllowed"] = json!(left);
    charged["status"]["disruptedPods"][pod] = json!(now);
    if left == 0 {
        deny(&mut charged, now);
    }
    Ok(charged)
}

/// The budget is used up: its condition says so.
fn deny(budget: &mut Value, now: &str) {
    let generation = budget["metadata"]["generation"].clone();
    for condition in budget["status"]["conditions"].as_array_mut().into_iter().flatten() {
        if condition["type"] == "DisruptionAllowed" {
            if condition["status"] != "False" {
                condition["lastTransitionTime"] = json!(now);
            }
            condition["status"] = json!("False");
            condition["reason"] = json!("InsufficientPods");
            condition["observedGeneration"] = generation.clone();
        }
    }
}

/// The pod says why it goes.
async fn mark(cx: &Context<'_>, write: &WriteOptions) -> Result<(), ApiError> {
    let path = ResourcePath { subresource: "status".into(), ..cx.path.clone() };
    let about = Context { path: &path, ..*cx };
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": cx.server.env.now_rfc3339()});
    update::modify(&about, write, |pod| {
        let mut pod = pod.clone();
        pod["metadata"]["resourceVersion"] = json!("");
        if !pod["status"]["conditions"].is_array() {
            pod["status"]["conditions"] = json!([]);
        }
        if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
            conditions.retain(|held| held["type"] != "DisruptionTarget");
            conditions.push(condition.clone());
        }
        Ok(Change { object: pod, ownership: Ownership::Update })
    })
    .await
    .map(drop)
}
