//! No JSON value makes any kind panic, and defaulting is idempotent whatever the shape: objects come from outside.

use jiff::Timestamp;
use mycelium_kinds::{Part, admission, convert, kinds, pod, scale, service};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Keys that the rules look at, so that values get deep enough to matter.
const KEYS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "generateName",
    "template",
    "selector",
    "matchLabels",
    "matchExpressions",
    "containers",
    "initContainers",
    "ephemeralContainers",
    "volumes",
    "volumeMounts",
    "env",
    "envFrom",
    "ports",
    "resources",
    "limits",
    "requests",
    "livenessProbe",
    "readinessProbe",
    "httpGet",
    "exec",
    "lifecycle",
    "preStop",
    "securityContext",
    "affinity",
    "nodeAffinity",
    "podAffinity",
    "tolerations",
    "topologySpreadConstraints",
    "emptyDir",
    "projected",
    "sources",
    "secret",
    "configMap",
    "items",
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "sessionAffinity",
    "nodePort",
    "replicas",
    "strategy",
    "rollingUpdate",
    "maxSurge",
    "maxUnavailable",
    "updateStrategy",
    "volumeClaimTemplates",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "state",
    "terminated",
    "waiting",
    "running",
    "subsets",
    "addresses",
    "endpoints",
    "data",
    "stringData",
    "binaryData",
    "immutable",
    "rules",
    "subjects",
    "roleRef",
    "key",
    "value",
    "valueFrom",
    "fieldRef",
    "operator",
    "values",
    "effect",
    "port",
    "protocol",
    "targetPort",
    "jobTemplate",
    "schedule",
    "metrics",
    "behavior",
    "resource",
    "target",
    "capacity",
    "involvedObject",
    "series",
    "webhooks",
    "taints",
    "hostNetwork",
    "restartPolicy",
    "image",
    "loadBalancer",
    "ingress",
    "accessModes",
    "policyTypes",
    "managedFields",
    "externalIPs",
    "externalName",
    "hostPort",
    "containerPort",
    "storage",
    "backend",
    "paths",
    "http",
];

const TEXTS: &[&str] = &[
    "",
    "a",
    "A_b",
    "100m",
    "1Gi",
    "25%",
    "ClusterIP",
    "LoadBalancer",
    "NodePort",
    "ExternalName",
    "RollingUpdate",
    "Recreate",
    "Always",
    "OnFailure",
    "Never",
    "In",
    "Exists",
    "None",
    "10.0.0.1",
    "::1",
    "Local",
    "ClientIP",
    "TCP",
    "kubernetes.io/tls",
    "kubernetes.io/dockerconfigjson",
    "metadata.labels['x']",
    "2026-01-01T00:00:00Z",
    "é",
    "*",
    "Ready",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0), Just(-1), Just(80), Just(70000), any::<i64>()].prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        proptest::sample::select(TEXTS).prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 120, 6, |inner| {
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => proptest::collection::vec((proptest::sample::select(KEYS), inner), 0..7)
                .prop_map(|members| Value::Object(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())),
        ]
    })
}

/// An object whose outer shape is right, so that the inside is reached.
fn object() -> impl Strategy<Value = Value> {
    (value(), value(), value()).prop_map(|(spec, status, rest)| {
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": spec.clone()}}});
        object["status"] = status;
        if let (Value::Object(rest), Some(object)) = (rest, object.as_object_mut()) {
            object.extend(rest);
        }
        if let (Value::Object(spec), Some(slot)) = (spec, object["spec"].as_object_mut()) {
            slot.extend(spec);
        }
        object
    })
}

fn exercise(new: &Value, old: &Value) {
    let now = Timestamp::UNIX_EPOCH;
    for kind in kinds::ALL.iter().copied().chain([mycelium_kinds::custom(true), mycelium_kinds::custom(false)]) {
        let mut created = new.clone();
        for version in ["v1", "v2"] {
            kind.default(version, &mut created);
        }
        let mut again = created.clone();
        kind.default("v1", &mut again);
        let _ = kind.row(new, now);
        kind.prepare_create(&mut created);
        let _ = kind.validate_create(&created);
        let _ = kind.warnings(&created);
        let _ = kind.row(&created, now);
        for part in [
            Part::Main,
            Part::Status,
            Part::Scale,
            Part::Resize,
            Part::EphemeralContainers,
            Part::Binding,
            Part::Finalize,
            Part::Approval,
        ] {
            let mut updated = created.clone();
            kind.prepare_update(&mut updated, old, part);
            let _ = kind.validate_update(&updated, old, part);
        }
        for path in ["metadata.name", "status.phase", "spec.nodeName", "source", "regarding.kind", "spec.hostNetwork"] {
            let _ = kind.selectable_fields(new, path);
            let _ = kind.field_label_error(path);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_object_panics(new in object(), old in object()) {
        exercise(&new, &old);
    }

    #[test]
    fn no_value_panics(new in value(), old in value()) {
        exercise(&new, &old);
    }

    #[test]
    fn helpers_never_panic(given in object(), other in value()) {
        let mut pod = given.clone();
        admission::apply_service_account(&mut pod, &other, "abcde");
        admission::add_default_tolerations(&mut pod, admission::Patience::default());
        let _ = admission::apply_priority(&mut pod, Some(&other).filter(|class| class.is_object()));
        admission::limit_range::apply_defaults(&mut pod, &other);
        let _ = admission::limit_range::check_pod(&pod, &other);
        let _ = admission::limit_range::check_claim(&given, &other);
        let _ = admission::runtime_class::apply(&mut pod, Some(&other));
        let _ = pod::status::summary(&given);
        let _ = pod::resources::of_pod(&given["spec"], "requests");
        let _ = scale::of(&given);
        let mut scaled = given.clone();
        scale::apply(&other, &mut scaled);
        let _ = scale::validate(&other);
        for (group, version) in [("", "v1"), ("events.k8s.io", "v1"), ("autoscaling", "v1"), ("autoscaling", "v2")] {
            for (api_version, kind) in [("v1", "Event"), ("autoscaling/v1", "HorizontalPodAutoscaler"), ("autoscaling/v2", "HorizontalPodAutoscaler")] {
                let mut converted = given.clone();
                converted["apiVersion"] = api_version.into();
                converted["kind"] = kind.into();
                convert::to_version(&mut converted, group, version);
            }
        }
        let pool = service::allocate::Pool {
            cidr: "10.0.0.0/24".parse().expect("valid"),
            ports: 30000..=30010,
            ip_taken: &|_| false,
            port_taken: &|port, _| port % 2 == 0,
        };
        let mut allocated = given.clone();
        let _ = service::allocate::allocate(&mut allocated, Some(&other), &pool, &mut || 3);
    }
}
