//! What an engine takes that has nothing to do: with one node, with a hundred custom resources, with eight nodes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Map, Value, json};

use crate::engine::{Engine, cpu};
use crate::report::{Report, load};

/// Nothing more is begun by then.
const SETTLED: Duration = Duration::from_secs(10);
const DEFINITIONS: usize = 100;

/// Memory and CPU with one node and no pods; every controller runs.
pub fn idle(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let engine = Engine::start(binary, |_| Ok(()))?;
    std::thread::sleep(SETTLED);
    let (before, span) = (cpu(engine.pid()), Duration::from_secs(30));
    std::thread::sleep(span);
    let used = (cpu(engine.pid()) - before).as_secs_f64() / span.as_secs_f64() * 100.0;
    let memory = format!("{:.1} MiB", engine.resident_mib());
    report.row("resident memory, idle, all controllers, no pods", memory, "<= 40 MiB", format!("load before {load}"));
    report.row("idle CPU, 30 s", format!("{used:.2} % of one core"), "<= 0.5 %", String::new());
    Ok(())
}

/// Memory with eight nodes and no pods.
pub async fn nodes(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let engine = Engine::start_with(binary, &["--nodes", "8"], |_| Ok(()))?;
    let nodes = Api::<Node>::all(engine.client().await?);
    let ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|held| held.type_ == "Ready" && held.status == "True"))
    };
    for _ in 0..300 {
        if nodes.list(&ListParams::default()).await?.items.iter().filter(|node| ready(node)).count() == 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(nodes.list(&ListParams::default()).await?.items.iter().all(ready), "not all nodes are ready");
    tokio::time::sleep(SETTLED).await;
    let memory = format!("{:.1} MiB", engine.resident_mib());
    report.row("resident memory with 8 nodes, no pods", memory, "<= 90 MiB", format!("load before {load}"));
    Ok(())
}

/// Memory with a hundred custom resources that are served, and have no objects.
pub async fn definitions(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let engine = Engine::start(binary, |_| Ok(()))?;
    let definitions = Api::<CustomResourceDefinition>::all(engine.client().await?);
    tokio::time::sleep(SETTLED).await;
    let before = engine.resident_mib();
    let bytes = definition(0).to_string().len();
    let parameters = PostParams::default();
    let create = |number| {
        let (definitions, parameters) = (&definitions, &parameters);
        async move {
            definitions
                .create(parameters, &serde_json::from_value(definition(number))?)
                .await
                .map(drop)
                .map_err(anyhow::Error::from)
        }
    };
    futures::stream::iter((0..DEFINITIONS).map(create)).buffer_unordered(4).try_collect::<()>().await?;
    let established = |definition: &CustomResourceDefinition| {
        let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|held| held.type_ == "Established" && held.status == "True"))
    };
    let mut served = 0;
    for _ in 0..600 {
        served = definitions.list(&ListParams::default()).await?.items.iter().filter(|held| established(held)).count();
        if served == DEFINITIONS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(served == DEFINITIONS, "{served} of {DEFINITIONS} definitions are established");
    tokio::time::sleep(2 * SETTLED).await;
    let memory = format!("{:.1} MiB; {before:.1} before; {} KB of schema each", engine.resident_mib(), bytes / 1000);
    report.row("resident memory with 100 CRDs", memory, "<= 80 MiB", format!("load before {load}"));
    Ok(())
}

/// A definition as operators bring them: a described, nested spec with defaults, bounds, lists by key and rules; a status
/// with conditions; columns.
fn definition(number: usize) -> Value {
    let (kind, plural) = (format!("Bench{number}"), format!("bench{number}s"));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.g{}.bench.test", number % 10)},
        "spec": {
            "group": format!("g{}.bench.test", number % 10),
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {"spec": spec(), "status": status()},
                }},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
            }],
        },
    })
}

fn spec() -> Value {
    let mut properties = Map::new();
    for section in ["server", "storage", "network", "backup", "monitoring", "security"] {
        properties.insert(section.to_owned(), part(section));
    }
    let environment = json!({
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "description": "Variables that are handed to each process, in the order in which they are given here.",
        "items": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "maxLength": 63}, "value": {"type": "string"},
        }},
    });
    properties.insert("env".to_owned(), environment);
    properties.insert("extra".to_owned(), json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    json!({"type": "object", "description": "What is wanted.", "properties": properties})
}

/// Twenty fields of the usual types.
fn part(section: &str) -> Value {
    let mut properties = Map::new();
    for number in 0..20 {
        let about = format!(
            "Field {number} of the {section} section tells how much of it is to be made ready, and when it may be taken away again."
        );
        let field = match number % 5 {
            0 => {
                json!({"type": "string", "enum": ["Always", "IfNeeded", "Never"], "default": "IfNeeded", "description": about})
            }
            1 => json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000, "description": about}),
            2 => json!({"type": "object", "additionalProperties": {"type": "string"}, "description": about}),
            3 => {
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "description": about})
            }
            _ => json!({"type": "array", "items": {"type": "object", "properties": {
                "key": {"type": "string", "minLength": 1, "pattern": "^[a-z][a-z0-9-]*$"}, "optional": {"type": "boolean"},
            }}, "maxItems": 32, "description": about}),
        };
        properties.insert(format!("field{number}"), field);
    }
    json!({
        "type": "object", "description": format!("How the {section} behaves."), "properties": properties,
        "x-kubernetes-validations": [
            {"rule": "!has(self.field1) || !has(self.field6) || self.field1 <= self.field6", "message": "field1 may not exceed field6"},
        ],
    })
}

fn status() -> Value {
    json!({"type": "object", "properties": {
        "observedGeneration": {"type": "integer", "format": "int64"},
        "conditions": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "items": {"type": "object", "required": ["type", "status"], "properties": {
                "type": {"type": "string"}, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "reason": {"type": "string"}, "message": {"type": "string"},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
            }},
        },
    }})
}
