//! ValidatingAdmissionPolicies: rules in CEL, bound to requests and parameters.

use std::sync::Arc;

use mycelium_api::selector::Selector;
use mycelium_cel::{Bindings, EvalError, Limits, Program, Value as Cel};
use serde_json::{Value, json};

use super::environment::Environment;
use super::{Write, matching, stored};
use crate::codec;
use crate::error::ApiError;

/// What all expressions of one policy may cost together, and each.
const POLICY_COST: u64 = 10_000_000;
const CALL_COST: u64 = 1_000_000;

/// What a policy finds wrong.
struct Finding {
    message: String,
    reason: String,
}

/// Refuses a write, or warns of it, as the policies that are bound to it will have it.
pub fn check(write: &Write<'_>) -> Result<(), ApiError> {
    let bindings = stored(write.cx, "validatingadmissionpolicybindings")?;
    if bindings.is_empty() {
        return Ok(());
    }
    let mut denied = Vec::new();
    for policy in stored(write.cx, "validatingadmissionpolicies")? {
        let name = policy["metadata"]["name"].as_str().unwrap_or_default();
        let bound: Vec<&Arc<Value>> = bindings.iter().filter(|b| b["spec"]["policyName"] == name).collect();
        if bound.is_empty() || !matching::fits(&policy["spec"]["matchConstraints"], "resourceRules", write) {
            continue;
        }
        for binding in bound.into_iter().filter(|binding| binding_fits(binding, write)) {
            denied.extend(enforce(write, name, &policy, binding));
        }
    }
    denied.into_iter().next().map_or(Ok(()), Err)
}

fn binding_fits(binding: &Value, write: &Write<'_>) -> bool {
    let constraints = &binding["spec"]["matchResources"];
    match constraints["resourceRules"].as_array().is_some_and(|rules| !rules.is_empty()) {
        true => matching::fits(constraints, "resourceRules", write),
        false => matching::selectors_fit(constraints, write),
    }
}

/// One binding of one policy, for each of its parameters. Returns the refusal, if it is one.
fn enforce(write: &Write<'_>, name: &str, policy: &Value, binding: &Value) -> Option<ApiError> {
    let spec = &policy["spec"];
    let tolerant = spec["failurePolicy"] == "Ignore";
    let findings = match params(write, policy, binding) {
        Ok(params) => params.into_iter().flat_map(|params| judge(write, spec, params, tolerant)).collect(),
        Err(_) if tolerant => Vec::new(),
        Err(message) => vec![Finding { message, reason: "Invalid".to_owned() }],
    };
    let binding_name = binding["metadata"]["name"].as_str().unwrap_or_default();
    let does = |action: &str| {
        binding["spec"]["validationActions"].as_array().is_some_and(|actions| actions.iter().any(|a| a == action))
    };
    let mut refusal = None;
    for finding in findings {
        if does("Warn") {
            let text = format!(
                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{binding_name}': {}",
                finding.message
            );
            write.cx.warnings.extend([text]);
        }
        if does("Audit") {
            let noted = json!([{"message": finding.message, "policy": name, "binding": binding_name}]);
            write.cx.audit("validation.policy.admission.k8s.io/validation_failure", || noted.to_string());
        }
        if does("Deny") && refusal.is_none() {
            refusal = Some(denial(write, name, binding_name, &finding));
        }
    }
    refusal
}

fn denial(write: &Write<'_>, policy: &str, binding: &str, finding: &Finding) -> ApiError {
    let text =
        format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}", finding.message);
    let code = match finding.reason.as_str() {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    let mut status = ApiError::forbidden(write.cx.subject_named(&write.name), text.clone()).status();
    status["code"] = json!(code);
    status["reason"] = json!(finding.reason);
    status["details"]["causes"] = json!([{ "message": text }]);
    ApiError::Verbatim(Box::new(status))
}

/// The parameters of a binding: one null where it has none.
fn params(write: &Write<'_>, policy: &Value, binding: &Value) -> Result<Vec<Value>, String> {
    let (kind, reference) = (&policy["spec"]["paramKind"], &binding["spec"]["paramRef"]);
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(kind, "apiVersion"), text(kind, "kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let table = write.cx.server.table();
    let facts = table.facts().find(|f| f.group == group && f.version == version && f.kind == kind);
    let resource = facts.and_then(|facts| table.get(facts.group, facts.version, facts.resource));
    let Some(resource) = resource else {
        return Err(format!(
            "failed to configure policy: failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"
        ));
    };
    let namespace = match text(reference, "namespace") {
        own if own.is_empty() => write.cx.path.namespace.clone(),
        given => given,
    };
    let prefix = resource.prefix(if resource.namespaced() { &namespace } else { "" });
    let name = text(reference, "name");
    let entries = match name.is_empty() {
        false => write.cx.server.store.get(&format!("{prefix}{name}")).into_iter().collect(),
        true => write.cx.server.store.range(&prefix, None, 0, None).map(|page| page.entries).unwrap_or_default(),
    };
    let selector = Selector::from_value(&reference["selector"]).ok().filter(|_| name.is_empty());
    let mut found: Vec<Value> = entries.iter().filter_map(|entry| codec::parse_entry(entry).ok()).collect();
    found.retain(|param| selector.as_ref().is_none_or(|s| s.matches_value(&param["metadata"]["labels"])));
    if found.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

/// What the rules of a policy find wrong with a write.
fn judge(write: &Write<'_>, spec: &Value, params: Value, tolerant: bool) -> Vec<Finding> {
    let environment = Environment::new(write, params);
    let invalid = |message: String| vec![Finding { message, reason: "Invalid".to_owned() }];
    match matching::conditions_hold(&spec["matchConditions"], &environment) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(_) if tolerant => return Vec::new(),
        Err(why) => return invalid(why),
    }
    let limits = Limits::new(POLICY_COST, CALL_COST);
    let list = |key: &str| spec[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().trim().to_owned();
    let parse = |value: &Value, key: &str| Program::parse(&text(value, key));
    let programs: Vec<_> = list("variables").iter().map(|v| (text(v, "name"), parse(v, "expression"))).collect();
    let rules: Vec<_> =
        list("validations").iter().map(|v| (v, parse(v, "expression"), parse(v, "messageExpression"))).collect();
    let mut names = environment.bindings();
    for (name, program) in &programs {
        let outcome = match program {
            Ok(program) => program.run(&names, &limits),
            Err(why) => Err(EvalError::Failed(why.to_string())),
        };
        names.set_variable(name, outcome);
    }
    let mut findings = Vec::new();
    for (rule, program, message) in &rules {
        let expression = text(rule, "expression");
        let outcome = match program {
            Ok(program) => program.run(&names, &limits),
            Err(why) => Err(EvalError::Failed(format!("compilation failed: {why}"))),
        };
        let message = match outcome {
            Ok(Cel::Bool(true)) => continue,
            Ok(_) => told(rule, message.as_ref().ok(), &names, &limits),
            Err(_) if tolerant => continue,
            Err(why) => format!("expression '{expression}' resulted in error: {why}"),
        };
        let reason = match text(rule, "reason") {
            none if none.is_empty() => "Invalid".to_owned(),
            reason => reason,
        };
        findings.push(Finding { message, reason });
    }
    findings
}

fn told<'a>(rule: &Value, program: Option<&'a Program>, names: &Bindings<'a>, limits: &Limits) -> String {
    let text = |key: &str| rule[key].as_str().unwrap_or_default().trim();
    let made = program.filter(|_| !text("messageExpression").is_empty()).map(|program| program.run(names, limits));
    if let Some(Ok(Cel::Text(made))) = made
        && !made.trim().is_empty()
        && !made.contains('\n')
    {
        return made.trim().to_owned();
    }
    match text("message") {
        "" => format!("failed expression: {}", text("expression")),
        message => message.to_owned(),
    }
}
