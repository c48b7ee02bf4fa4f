//! Kinds of the cluster's own administration, of which only the table is particular.

use mycelium_api::field::Path;
use mycelium_api::names::{is_dns1123_label, is_path_segment};
use serde_json::{Value, json};

use crate::table::{self, AGE_COLUMN, Column, NAME, age, condition, human_duration, name, number, text_or};
use crate::value::{at, each, fill, fill_zero, has, int, list, text, within};
use crate::{FieldLabels, Generation, Kind, Refusal, read_path};

pub static CUSTOM_RESOURCE_DEFINITION: Kind = Kind {
    generation: Generation::Spec,
    columns: table::CREATED_AT,
    ..Kind::new("apiextensions.k8s.io", "CustomResourceDefinition", false)
};

pub static API_SERVICE: Kind = Kind {
    name_rule: is_path_segment,
    columns: &[
        NAME,
        Column::text("Service", "Who serves the version."),
        Column::text("Available", "Whether it is served now."),
        AGE_COLUMN,
    ],
    cells: |service, now| {
        let backend = at(service, &["spec", "service"]);
        let served_by = match backend.is_null() {
            true => "Local".to_owned(),
            false => format!("{}/{}", text(backend, &["namespace"]), text(backend, &["name"])),
        };
        let available = match condition(service, "Available") {
            None => "Unknown".to_owned(),
            Some(condition) => match text(condition, &["status"]) {
                "True" => "True".to_owned(),
                status => format!("{status} ({})", text(condition, &["reason"])),
            },
        };
        vec![name(service), served_by.into(), available.into(), age(service, now)]
    },
    ..Kind::new("apiregistration.k8s.io", "APIService", false)
};

pub static CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    columns: &[
        NAME,
        AGE_COLUMN,
        Column::text("SignerName", "Who is to sign."),
        Column::text("Requestor", "Who asks."),
        Column::text("RequestedDuration", "For how long."),
        Column::text("Condition", "How far it is."),
    ],
    cells: |request, now| {
        let duration = int(request, &["spec", "expirationSeconds"]).map_or_else(|| "<none>".to_owned(), human_duration);
        vec![
            name(request),
            age(request, now),
            text_or(request, &["spec", "signerName"], "<none>"),
            text_or(request, &["spec", "username"], ""),
            duration.into(),
            request_state(request).into(),
        ]
    },
    labels: FieldLabels { paths: &["spec.signerName"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("certificates.k8s.io", "CertificateSigningRequest", false)
};

pub static RUNTIME_CLASS: Kind = Kind {
    has_status: false,
    defaults: |_, class| crate::value::canonical_resources(class, &["overhead", "podFixed"]),
    check: |class, errors| {
        let handler = text(class, &["handler"]);
        crate::check::refuse(errors, &Path::new("handler"), handler, is_dns1123_label(handler));
    },
    check_update: |new, old, _, errors| super::workload::check_immutable(new, old, &["handler"], errors),
    columns: &[NAME, Column::text("Handler", "Runtime that runs the pods."), AGE_COLUMN],
    cells: |class, now| vec![name(class), text_or(class, &["handler"], ""), age(class, now)],
    ..Kind::new("node.k8s.io", "RuntimeClass", false)
};

const WEBHOOK_COLUMNS: &[Column] = &[NAME, Column::integer("Webhooks", "How many there are."), AGE_COLUMN];

pub static MUTATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, configuration| {
        each(configuration, &["webhooks"], |hook| {
            fill_webhook(hook);
            fill_zero(hook, "reinvocationPolicy", "Never");
        });
    },
    columns: WEBHOOK_COLUMNS,
    cells: |webhooks, now| vec![name(webhooks), list(webhooks, &["webhooks"]).len().into(), age(webhooks, now)],
    ..Kind::new("admissionregistration.k8s.io", "MutatingWebhookConfiguration", false)
};

pub static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, configuration| each(configuration, &["webhooks"], fill_webhook),
    columns: WEBHOOK_COLUMNS,
    cells: |webhooks, now| vec![name(webhooks), list(webhooks, &["webhooks"]).len().into(), age(webhooks, now)],
    ..Kind::new("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", false)
};

pub static VALIDATING_ADMISSION_POLICY: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, policy| fill_policy(policy),
    columns: &[
        NAME,
        Column::integer("Validations", "How many rules there are."),
        Column::text("ParamKind", "Kind of its parameters."),
        AGE_COLUMN,
    ],
    cells: |policy, now| {
        vec![name(policy), list(policy, &["spec", "validations"]).len().into(), param_kind(policy), age(policy, now)]
    },
    ..Kind::new("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", false)
};

pub static MUTATING_ADMISSION_POLICY: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, policy| fill_policy(policy),
    columns: &[
        NAME,
        Column::integer("Mutations", "How many rules there are."),
        Column::text("ParamKind", "Kind of its parameters."),
        AGE_COLUMN,
    ],
    cells: |policy, now| {
        vec![name(policy), list(policy, &["spec", "mutations"]).len().into(), param_kind(policy), age(policy, now)]
    },
    ..Kind::new("admissionregistration.k8s.io", "MutatingAdmissionPolicy", false)
};

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    Column::text("PolicyName", "Policy that is bound."),
    Column::text("ParamRef", "Its parameters."),
    AGE_COLUMN,
];

pub static VALIDATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    columns: BINDING_COLUMNS,
    cells: |binding, now| policy_binding(binding, age(binding, now)),
    ..Kind::new("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", false)
};

pub static MUTATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    columns: BINDING_COLUMNS,
    cells: |binding, now| policy_binding(binding, age(binding, now)),
    ..Kind::new("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", false)
};

pub static FLOW_SCHEMA: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, schema| within(schema, &["spec"], |spec| fill_zero(spec, "matchingPrecedence", 1000)),
    columns: &[
        NAME,
        Column::text("PriorityLevel", "Level of its requests."),
        Column::text("MatchingPrecedence", "Which schema wins, the lowest first."),
        Column::text("DistinguisherMethod", "What tells flows apart."),
        AGE_COLUMN,
        Column::text("MissingPL", "Whether its level is missing."),
    ],
    cells: |schema, now| {
        vec![
            name(schema),
            text_or(schema, &["spec", "priorityLevelConfiguration", "name"], ""),
            number(schema, &["spec", "matchingPrecedence"]),
            text_or(schema, &["spec", "distinguisherMethod", "type"], "<none>"),
            age(schema, now),
            condition(schema, "Dangling").map_or("?", |condition| text(condition, &["status"])).into(),
        ]
    },
    ..Kind::new("flowcontrol.apiserver.k8s.io", "FlowSchema", false)
};

pub static PRIORITY_LEVEL_CONFIGURATION: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, level| {
        within(level, &["spec", "exempt"], |exempt| {
            fill(exempt, "nominalConcurrencyShares", 0);
            fill(exempt, "lendablePercent", 0);
        });
        within(level, &["spec", "limited"], |limited| {
            fill(limited, "nominalConcurrencyShares", 30);
            fill(limited, "lendablePercent", 0);
            within(limited, &["limitResponse", "queuing"], |queuing| {
                fill_zero(queuing, "handSize", 8);
                fill_zero(queuing, "queues", 64);
                fill_zero(queuing, "queueLengthLimit", 50);
            });
        });
    },
    columns: &[
        NAME,
        Column::text("Type", "Exempt or Limited."),
        Column::text("NominalConcurrencyShares", "Its share of what can run at once."),
        Column::text("Queues", "How many queues."),
        Column::text("HandSize", "Queues that a flow can use."),
        Column::text("QueueLengthLimit", "How long a queue can be."),
        AGE_COLUMN,
    ],
    cells: |level, now| {
        let limited = at(level, &["spec", "limited"]);
        let shown = |value: &Value| if value.is_null() { Value::from("<none>") } else { value.clone() };
        let queuing = |key: &str| shown(at(limited, &["limitResponse", "queuing", key]));
        vec![
            name(level),
            text_or(level, &["spec", "type"], ""),
            shown(&limited["nominalConcurrencyShares"]),
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            age(level, now),
        ]
    },
    ..Kind::new("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", false)
};

pub static COMPONENT_STATUS: Kind = Kind {
    has_status: false,
    columns: &[
        NAME,
        Column::text("Status", "Whether the component is healthy."),
        Column::text("Message", "What it says."),
        Column::text("Error", "What is wrong."),
    ],
    cells: |component, _| {
        let healthy = list(component, &["conditions"]).iter().find(|condition| text(condition, &["type"]) == "Healthy");
        let status = match healthy.map(|condition| text(condition, &["status"])) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        let field = |key: &str| Value::from(healthy.map_or("", |condition| text(condition, &[key])));
        vec![name(component), status.into(), field("message"), field("error")]
    },
    ..Kind::new("", "ComponentStatus", false)
};

const NAME_AND_AGE: &[Column] = &[NAME, AGE_COLUMN];

pub static DEVICE_CLASS: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    columns: NAME_AND_AGE,
    cells: table::age_only,
    ..Kind::new("resource.k8s.io", "DeviceClass", false)
};

pub static RESOURCE_CLAIM: Kind = Kind {
    columns: &[NAME, Column::text("State", "How far the claim is."), AGE_COLUMN],
    cells: |claim, now| {
        let deleted = has(claim, &["metadata", "deletionTimestamp"]);
        let mut states = Vec::new();
        if deleted {
            states.push("deleted");
        }
        if has(claim, &["status", "allocation"]) {
            states.push("allocated");
            if !list(claim, &["status", "reservedFor"]).is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        vec![name(claim), states.join(",").into(), age(claim, now)]
    },
    ..Kind::new("resource.k8s.io", "ResourceClaim", true)
};

pub static RESOURCE_CLAIM_TEMPLATE: Kind = Kind {
    has_status: false,
    columns: NAME_AND_AGE,
    cells: table::age_only,
    ..Kind::new("resource.k8s.io", "ResourceClaimTemplate", true)
};

pub static RESOURCE_SLICE: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    columns: &[
        NAME,
        Column::text("Node", "Node that has the devices."),
        Column::text("Driver", "Driver of the devices."),
        Column::text("Pool", "Pool of the devices."),
        AGE_COLUMN,
    ],
    cells: |slice, now| {
        vec![
            name(slice),
            text_or(slice, &["spec", "nodeName"], ""),
            text_or(slice, &["spec", "driver"], ""),
            text_or(slice, &["spec", "pool", "name"], ""),
            age(slice, now),
        ]
    },
    labels: FieldLabels { paths: &["spec.nodeName", "spec.driver"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("resource.k8s.io", "ResourceSlice", false)
};

fn request_state(request: &Value) -> String {
    let given = |kind: &str| condition(request, kind).is_some();
    let mut state = match (given("Denied"), given("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if given("Failed") {
        state.push_str(",Failed");
    }
    if !text(request, &["status", "certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    state
}

fn fill_webhook(hook: &mut Value) {
    fill_zero(hook, "failurePolicy", "Fail");
    fill_zero(hook, "matchPolicy", "Equivalent");
    fill(hook, "namespaceSelector", json!({}));
    fill(hook, "objectSelector", json!({}));
    fill(hook, "timeoutSeconds", 10);
    each(hook, &["rules"], |rule| fill_zero(rule, "scope", "*"));
    within(hook, &["clientConfig", "service"], |service| fill(service, "port", 443));
}

fn fill_policy(policy: &mut Value) {
    within(policy, &["spec"], |spec| {
        fill_zero(spec, "failurePolicy", "Fail");
        within(spec, &["matchConstraints"], |constraints| {
            fill_zero(constraints, "matchPolicy", "Equivalent");
            fill(constraints, "namespaceSelector", json!({}));
            fill(constraints, "objectSelector", json!({}));
            for rules in ["resourceRules", "excludeResourceRules"] {
                each(constraints, &[rules], |rule| fill_zero(rule, "scope", "*"));
            }
        });
    });
}

fn param_kind(policy: &Value) -> Value {
    let kind = at(policy, &["spec", "paramKind"]);
    match kind.is_null() {
        true => "<unset>".into(),
        false => format!("{}/{}", text(kind, &["apiVersion"]), text(kind, &["kind"])).into(),
    }
}

fn policy_binding(binding: &Value, age: Value) -> Vec<Value> {
    let reference = at(binding, &["spec", "paramRef"]);
    let shown = match (text(reference, &["namespace"]), text(reference, &["name"])) {
        (_, "") => "<unset>".to_owned(),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(binding), text_or(binding, &["spec", "policyName"], ""), shown.into(), age]
}
