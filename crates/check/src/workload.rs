//! What makes pods: the pod template of an object, wherever its kind has it.

use mycelium_api::selector::{Op, Selector};
use serde_json::Value;

use crate::set::Object;
use crate::value::{has, int, list, text};

/// Labels that controllers give to pods, with values that no file tells.
const GIVEN: &[&str] = &[
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// An object that makes pods, or is one.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The object.
    pub object: &'a Object,
    /// `metadata` and `spec` of its pods.
    pub template: &'a Value,
    prefix: &'static str,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    /// All of it.
    pub value: &'a Value,
    /// Its path in the object.
    pub path: String,
    /// Runs before the others, and ends.
    pub init: bool,
}

/// The workload that an object is, if it is one.
pub fn of(object: &Object) -> Option<Workload<'_>> {
    let (pointer, prefix) = match (object.group.as_str(), object.kind.as_str()) {
        ("", "Pod") => ("", ""),
        ("batch", "CronJob") => ("/spec/jobTemplate/spec/template", "spec.jobTemplate.spec.template."),
        ("", "PodTemplate") => return None,
        _ => ("/spec/template", "spec.template."),
    };
    let template = object.value.pointer(pointer)?;
    (template.pointer("/spec/containers")?.is_array()).then_some(Workload { object, template, prefix })
}

impl<'a> Workload<'a> {
    /// The pod's spec.
    pub fn spec(&self) -> &'a Value {
        &self.template["spec"]
    }

    /// The path of a field of the pod template: `spec.volumes[0]`.
    pub fn path(&self, below: &str) -> String {
        format!("{}{below}", self.prefix)
    }

    /// The path of the pod's labels.
    pub fn labels_path(&self) -> String {
        self.path("metadata.labels")
    }

    /// How many pods there are to be, where that is a fixed number.
    pub fn replicas(&self) -> Option<i64> {
        match self.object.kind.as_str() {
            "Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController" => {
                Some(int(&self.object.value, "/spec/replicas").unwrap_or(1))
            }
            "Pod" => Some(1),
            _ => None,
        }
    }

    /// Whether pods of it stay: no Job.
    pub fn is_lasting(&self) -> bool {
        !matches!(self.object.kind.as_str(), "Job" | "CronJob")
    }

    /// Containers that stay and those that come first.
    pub fn containers(&self) -> Vec<Container<'a>> {
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|which| {
                list(self.spec(), &format!("/{which}")).iter().enumerate().map(move |(index, value)| Container {
                    value,
                    path: self.path(&format!("spec.{which}[{index}]")),
                    init: which == "initContainers" && text(value, "/restartPolicy") != "Always",
                })
            })
            .collect()
    }

    /// Whether its pods may have the labels that a selector asks for.
    pub fn matches(&self, selector: &Selector) -> bool {
        let labels = &self.template["metadata"]["labels"];
        let fits = |key: &str| labels.get(key).and_then(Value::as_str);
        let empty = selector.requirements().is_empty() && !selector.is_empty();
        !empty
            && selector.requirements().iter().all(|requirement| {
                let label = fits(&requirement.key);
                requirement.matches(label)
                    || label.is_none() && self.may_be_given(&requirement.key, &requirement.values, requirement.op)
            })
    }

    /// Whether a label's value comes from a controller.
    fn may_be_given(&self, key: &str, values: &[String], op: Op) -> bool {
        let name = &self.object.name;
        match (key, self.object.kind.as_str()) {
            ("statefulset.kubernetes.io/pod-name", "StatefulSet") => {
                let start = int(&self.object.value, "/spec/ordinals/start").unwrap_or(0);
                let ordinals = start..start.saturating_add(self.replicas().unwrap_or(1));
                let is_pod = |value: &String| {
                    let ordinal = value.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('-'));
                    ordinal.and_then(|text| text.parse().ok()).is_some_and(|ordinal: i64| ordinals.contains(&ordinal))
                };
                op != Op::In || values.iter().any(is_pod)
            }
            ("job-name" | "batch.kubernetes.io/job-name", "Job") => op != Op::In || values.contains(name),
            ("job-name" | "batch.kubernetes.io/job-name", "CronJob") => true,
            _ => GIVEN.contains(&key),
        }
    }

    /// The ports that containers which stay declare: name, number, protocol, and the path.
    pub fn ports(&self) -> Vec<Port<'a>> {
        let mut ports = Vec::new();
        for container in self.containers().into_iter().filter(|container| !container.init) {
            for (index, value) in list(container.value, "/ports").iter().enumerate() {
                ports.push(Port {
                    name: text(value, "/name"),
                    number: int(value, "/containerPort").unwrap_or_default(),
                    protocol: protocol(value),
                    path: format!("{}.ports[{index}]", container.path),
                });
            }
        }
        ports
    }

    /// Whether each container that stays says which ports it has: an undeclared one can then be told.
    pub fn declares_all_ports(&self) -> bool {
        let staying: Vec<_> = self.containers().into_iter().filter(|container| !container.init).collect();
        !staying.is_empty() && staying.iter().all(|container| !list(container.value, "/ports").is_empty())
    }

    /// Whether it uses the network of the machine.
    pub fn host_network(&self) -> bool {
        has(self.spec(), "/hostNetwork") && self.spec()["hostNetwork"] == Value::Bool(true)
    }
}

/// A port of a container.
#[derive(Clone, Debug)]
pub struct Port<'a> {
    /// Empty if it has none.
    pub name: &'a str,
    /// `containerPort`
    pub number: i64,
    /// `TCP` unless said otherwise.
    pub protocol: &'a str,
    /// Its path in the object.
    pub path: String,
}

/// The protocol of a port, `TCP` unless said otherwise.
pub fn protocol(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}
