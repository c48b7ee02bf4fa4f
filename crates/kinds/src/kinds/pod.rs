//! Pod and PodTemplate.

use jiff::Timestamp;
use mycelium_api::field::Path;
use serde_json::{Value, json};

use crate::pod::{defaults, label_keys, qos, status, update, validate, warnings};
use crate::table::{self, AGE_COLUMN, Column, NAME, age, containers, labels, name, text_or};
use crate::value::{at, flag, list, text};
use crate::{FieldLabels, Generation, Kind, Refusal, read_path};

pub static POD: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, pod| defaults::pod(pod),
    on_create: |pod| {
        label_keys::merge(pod);
        let class = qos::class(&pod["spec"]);
        let mut status = json!({"phase": "Pending", "qosClass": class});
        if !list(pod, &["spec", "schedulingGates"]).is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        if let Some(pod) = pod.as_object_mut() {
            pod.insert("status".to_owned(), status);
        }
    },
    on_update: update::prepare,
    check: validate::pod,
    check_update: update::check,
    advice: |pod, warnings| {
        warnings::name(pod, warnings);
        warnings::pod_spec(&pod["spec"], &Path::new("spec"), warnings);
    },
    columns: &[
        NAME,
        Column::text("Ready", "Containers that are ready, of all."),
        Column::text("Status", "What the containers are doing, in a word."),
        Column::text("Restarts", "How often containers restarted, and when the last did."),
        AGE_COLUMN,
        Column::text("IP", "Address of the pod.").wide(),
        Column::text("Node", "Node the pod is bound to.").wide(),
        Column::text("Nominated Node", "Node that preemption makes room on.").wide(),
        Column::text("Readiness Gates", "Conditions that are met, of those asked for.").wide(),
    ],
    cells,
    labels: FieldLabels {
        paths: &[
            "spec.nodeName",
            "spec.host",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        read: read_field,
        refusal: Refusal::Plain,
    },
    ..Kind::new("", "Pod", true)
};

pub static POD_TEMPLATE: Kind = Kind {
    generation: Generation::Spec,
    has_status: false,
    defaults: |_, object| defaults::template(object),
    check: |object, errors| validate::template(&object["template"], &Path::new("template"), errors),
    columns: &[
        NAME,
        Column::text("Containers", "Names of the containers in the template."),
        Column::text("Images", "Images of the containers in the template."),
        Column::text("Pod Labels", "Labels of the template."),
    ],
    cells: |object, _| {
        let [names, images] = containers(at(object, &["template", "spec"]));
        vec![name(object), names, images, labels(object, &["template", "metadata", "labels"])]
    },
    ..Kind::new("", "PodTemplate", true)
};

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = status::summary(pod);
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.clone().into(),
        summary.restarts_text(now).into(),
        age(pod, now),
        Some(first_ip(pod)).filter(|ip| !ip.is_empty()).unwrap_or("<none>").into(),
        text_or(pod, &["spec", "nodeName"], "<none>"),
        text_or(pod, &["status", "nominatedNodeName"], "<none>"),
        readiness_gates(pod),
    ]
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| table::condition_true(pod, text(gate, &["conditionType"]))).count();
    format!("{met}/{}", gates.len()).into()
}

fn read_field(pod: &Value, path: &str) -> Option<String> {
    match path {
        "spec.host" => read_path(pod, "spec.nodeName"),
        "spec.hostNetwork" => Some(flag(pod, &["spec", "hostNetwork"]).to_string()),
        "status.podIP" | "status.podIPs" => Some(first_ip(pod).to_owned()),
        _ => read_path(pod, path),
    }
}

fn first_ip(pod: &Value) -> &str {
    match text(&pod["status"]["podIPs"][0], &["ip"]) {
        "" => text(pod, &["status", "podIP"]),
        ip => ip,
    }
}
