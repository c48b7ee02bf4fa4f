//! What must be right about webhook configurations and admission policies: their expressions, above all.

use mycelium_api::field::{FieldError, Path};
use mycelium_cel::{Declared, Program, check};
use serde_json::Value;

const NAMES: [&str; 7] = ["object", "oldObject", "request", "params", "namespaceObject", "authorizer", "variables"];

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What is wrong with an object of the group.
pub fn faults(kind: &str, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match kind {
        "ValidatingAdmissionPolicy" => policy(&object["spec"], &mut errors),
        "ValidatingAdmissionPolicyBinding" => binding(&object["spec"], &mut errors),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => webhooks(object, &mut errors),
        _ => {}
    }
    errors
}

fn expression(
    holder: &Value,
    key: &str,
    path: &Path,
    variables: &[String],
    wanted: &str,
    errors: &mut Vec<FieldError>,
) {
    let text = holder[key].as_str().unwrap_or_default();
    if text.trim().is_empty() {
        return errors.push(FieldError::required(&path.child(key), ""));
    }
    let declared = Declared {
        names: NAMES.iter().filter(|name| **name != "variables").map(|name| ((*name).to_owned(), None)).collect(),
        variables: variables.to_vec(),
    };
    match Program::parse(text).and_then(|program| check(&program, &declared)) {
        Err(why) => errors.push(FieldError::invalid(&path.child(key), text, format!("compilation failed: {why}"))),
        Ok(estimate) if !wanted.is_empty() && estimate.type_name != "dyn" && estimate.type_name != wanted => {
            errors.push(FieldError::invalid(&path.child(key), text, format!("must evaluate to {wanted}")));
        }
        Ok(_) => {}
    }
}

fn conditions(holder: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for (index, condition) in list(holder, "matchConditions").iter().enumerate() {
        let path = path.child("matchConditions").index(index);
        if condition["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        expression(condition, "expression", &path, &[], "bool", errors);
    }
    if list(holder, "matchConditions").len() > 64 {
        let path = path.child("matchConditions");
        errors.push(FieldError::new(mycelium_api::field::ErrorKind::TooMany, &path, 65, "must have at most 64 items"));
    }
}

fn policy(spec: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let constraints = path.child("matchConstraints");
    if !spec["matchConstraints"].is_object() {
        errors.push(FieldError::required(&constraints, ""));
    } else if list(&spec["matchConstraints"], "resourceRules").is_empty() {
        errors.push(FieldError::required(&constraints.child("resourceRules"), ""));
    }
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required(&path.child("validations"), why));
    }
    conditions(spec, &path, errors);
    let mut variables = Vec::new();
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        let path = path.child("variables").index(index);
        expression(variable, "expression", &path, &variables, "", errors);
        variables.push(variable["name"].as_str().unwrap_or_default().to_owned());
    }
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = path.child("validations").index(index);
        expression(validation, "expression", &path, &variables, "bool", errors);
        if validation["messageExpression"].as_str().is_some_and(|text| !text.trim().is_empty()) {
            expression(validation, "messageExpression", &path, &variables, "string", errors);
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        if let Some(reason) =
            validation["reason"].as_str().filter(|reason| !reason.is_empty() && !reasons.contains(reason))
        {
            errors.push(FieldError::not_supported(&path.child("reason"), reason, &reasons));
        }
    }
}

fn binding(spec: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    if spec["policyName"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(&path.child("policyName"), ""));
    }
    let actions = list(spec, "validationActions");
    let at = path.child("validationActions");
    if actions.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(&at, spec["validationActions"].clone(), why));
    }
}

fn webhooks(object: &Value, errors: &mut Vec<FieldError>) {
    for (index, hook) in list(object, "webhooks").iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        let name = hook["name"].as_str().unwrap_or_default();
        if name.split('.').count() < 3 || !mycelium_api::names::is_dns1123_subdomain(name).is_empty() {
            let why = "should be a domain with at least three segments separated by dots";
            errors.push(FieldError::invalid(&path.child("name"), name, why));
        }
        let client = &hook["clientConfig"];
        if client["url"].is_string() == client["service"].is_object() {
            let why = "exactly one of url or service is required";
            errors.push(FieldError::required(&path.child("clientConfig"), why));
        }
        if let Some(url) = client["url"].as_str().filter(|url| !url.starts_with("https://")) {
            let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
            errors.push(FieldError::invalid(&path.child("clientConfig").child("url"), url, why));
        }
        if hook["timeoutSeconds"].as_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.push(FieldError::invalid(&path.child("timeoutSeconds"), hook["timeoutSeconds"].clone(), why));
        }
        let versions = list(hook, "admissionReviewVersions");
        if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
            let why = "must include at least one of v1, v1beta1";
            let at = path.child("admissionReviewVersions");
            errors.push(match versions.is_empty() {
                true => FieldError::required(&at, "must specify one of v1, v1beta1"),
                false => FieldError::invalid(&at, hook["admissionReviewVersions"].clone(), why),
            });
        }
        if !matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
            let at = path.child("sideEffects");
            errors.push(match hook["sideEffects"].as_str() {
                None | Some("") => FieldError::required(&at, "must specify one of None, NoneOnDryRun"),
                Some(other) => FieldError::not_supported(&at, other, &["None", "NoneOnDryRun"]),
            });
        }
        conditions(hook, &path, errors);
    }
}
