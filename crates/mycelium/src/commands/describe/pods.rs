//! Pods, and the pod templates of workloads.

use serde_json::Value;

use super::generic::{head, owners};
use super::writer::{Writer, plain};
use crate::client::table::Table;
use crate::client::text;

/// A pod.
pub(super) fn describe(out: &mut Writer, pod: &Value) {
    head(out, pod);
    out.field("Node", format!("{}/{}", text(pod, "/spec/nodeName"), text(pod, "/status/hostIP")).trim_matches('/'));
    out.field("Start Time", text(pod, "/status/startTime"));
    out.some("Priority Class", text(pod, "/spec/priorityClassName"));
    out.field("Service Account", text(pod, "/spec/serviceAccountName"));
    let deleting = pod.pointer("/metadata/deletionTimestamp").is_some();
    out.field("Status", if deleting { "Terminating" } else { text(pod, "/status/phase") });
    out.some("Reason", text(pod, "/status/reason"));
    out.some("Message", text(pod, "/status/message"));
    out.field("IP", text(pod, "/status/podIP"));
    owners(out, pod);
    let lists = [
        ("Init Containers", "/spec/initContainers", "/status/initContainerStatuses"),
        ("Containers", "/spec/containers", "/status/containerStatuses"),
        ("Ephemeral Containers", "/spec/ephemeralContainers", "/status/ephemeralContainerStatuses"),
    ];
    for (label, containers, statuses) in lists {
        let containers = list(pod, containers);
        out.section_if(!containers.is_empty(), label, |out| {
            for own in containers {
                let status = list(pod, statuses).iter().find(|status| status["name"] == own["name"]);
                container(out, own, status);
            }
        });
    }
    conditions(out, pod);
    volumes(out, list(pod, "/spec/volumes"));
    out.field("QoS Class", text(pod, "/status/qosClass"));
    out.map("Node-Selectors", pod.pointer("/spec/nodeSelector"), "=");
    let tolerations: Vec<String> = list(pod, "/spec/tolerations").iter().map(toleration).collect();
    out.field("Tolerations", tolerations.join("\n"));
}

/// The containers and volumes of a workload's pods.
pub(super) fn template(out: &mut Writer, workload: &Value) {
    let Some(template) = workload.pointer("/spec/template") else { return };
    out.section("Pod Template", |out| {
        out.map("Labels", template.pointer("/metadata/labels"), "=");
        for (label, at) in [("Init Containers", "/spec/initContainers"), ("Containers", "/spec/containers")] {
            let containers = list(template, at);
            out.section_if(!containers.is_empty(), label, |out| {
                containers.iter().for_each(|own| container(out, own, None));
            });
        }
        volumes(out, list(template, "/spec/volumes"));
    });
}

fn container(out: &mut Writer, container: &Value, status: Option<&Value>) {
    out.section(text(container, "/name"), |out| {
        if let Some(status) = status {
            out.field("Container ID", text(status, "/containerID"));
        }
        out.field("Image", text(container, "/image"));
        if let Some(status) = status {
            out.field("Image ID", text(status, "/imageID"));
        }
        let ports = list(container, "/ports").iter().map(|port| {
            let protocol = if text(port, "/protocol").is_empty() { "TCP" } else { text(port, "/protocol") };
            format!("{}/{protocol} {}", plain(&port["containerPort"]), text(port, "/name")).trim_end().to_owned()
        });
        out.field("Ports", ports.collect::<Vec<_>>().join(", "));
        for (label, at) in [("Command", "/command"), ("Args", "/args")] {
            let words: Vec<String> = list(container, at).iter().map(plain).collect();
            out.some(label, words.join("\n"));
        }
        if let Some(status) = status {
            states(out, status);
        }
        for (label, at) in [("Limits", "/resources/limits"), ("Requests", "/resources/requests")] {
            if container.pointer(at).is_some() {
                out.map(label, container.pointer(at), ": ");
            }
        }
        for (label, at) in
            [("Liveness", "/livenessProbe"), ("Readiness", "/readinessProbe"), ("Startup", "/startupProbe")]
        {
            out.some(label, container.pointer(at).map(probe).unwrap_or_default());
        }
        let environment: Vec<String> = list(container, "/env").iter().map(variable).collect();
        out.field("Environment", environment.join("\n"));
        let mounts: Vec<String> = list(container, "/volumeMounts").iter().map(mount).collect();
        out.field("Mounts", mounts.join("\n"));
    });
}

fn states(out: &mut Writer, status: &Value) {
    for (label, at) in [("State", "/state"), ("Last State", "/lastState")] {
        let Some((kind, details)) = status.pointer(at).and_then(Value::as_object).and_then(|state| state.iter().next())
        else {
            continue;
        };
        let mut lines = vec![capital(kind)];
        let keys = ["reason", "message", "exitCode", "signal", "startedAt", "finishedAt"];
        lines.extend(
            keys.iter()
                .filter_map(|key| details.get(*key).map(|value| format!("  {}: {}", capital(key), plain(value)))),
        );
        out.field(label, lines.join("\n"));
    }
    out.field("Ready", plain(&status["ready"]));
    out.field("Restart Count", plain(&status["restartCount"]));
}

/// One line such as `http-get :8000/health delay=0s timeout=1s period=10s #success=1 #failure=3`.
fn probe(probe: &Value) -> String {
    let handler = match probe {
        _ if probe.get("httpGet").is_some() => {
            let get = &probe["httpGet"];
            let scheme = text(get, "/scheme").to_lowercase();
            let scheme = if scheme.is_empty() { "http" } else { &scheme };
            format!("http-get {scheme}://{}:{}{}", text(get, "/host"), plain(&get["port"]), text(get, "/path"))
        }
        _ if probe.get("tcpSocket").is_some() => format!("tcp-socket :{}", plain(&probe["tcpSocket"]["port"])),
        _ if probe.get("grpc").is_some() => format!("grpc :{}", plain(&probe["grpc"]["port"])),
        _ => {
            let words: Vec<String> = list(probe, "/exec/command").iter().map(plain).collect();
            format!("exec [{}]", words.join(" "))
        }
    };
    let number = |key: &str, default: i64| probe[key].as_i64().unwrap_or(default);
    format!(
        "{handler} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3)
    )
}

fn variable(variable: &Value) -> String {
    let name = text(variable, "/name");
    let from = |at: &str| variable.pointer(&format!("/valueFrom/{at}"));
    if let Some(source) = from("secretKeyRef") {
        return format!("{name}: <key {} of secret {}>", text(source, "/key"), text(source, "/name"));
    }
    if let Some(source) = from("configMapKeyRef") {
        return format!("{name}: <key {} of config map {}>", text(source, "/key"), text(source, "/name"));
    }
    if let Some(source) = from("fieldRef") {
        return format!("{name}: ({})", text(source, "/fieldPath"));
    }
    if let Some(source) = from("resourceFieldRef") {
        return format!("{name}: ({})", text(source, "/resource"));
    }
    format!("{name}: {}", text(variable, "/value"))
}

fn mount(mount: &Value) -> String {
    let access = if mount["readOnly"] == true { "ro" } else { "rw" };
    let path = text(mount, "/subPath");
    let path = if path.is_empty() { String::new() } else { format!(", path={path:?}") };
    format!("{} from {} ({access}{path})", text(mount, "/mountPath"), text(mount, "/name"))
}

fn volumes(out: &mut Writer, volumes: &[Value]) {
    out.section("Volumes", |out| {
        for volume in volumes {
            let source = volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
            let detail = source.map(|(kind, value)| {
                let names = ["/name", "/secretName", "/path", "/claimName", "/medium", "/sizeLimit"];
                let parts: Vec<&str> = names.iter().map(|at| text(value, at)).filter(|part| !part.is_empty()).collect();
                format!("{kind} {}", parts.join(" ")).trim_end().to_owned()
            });
            out.field(text(volume, "/name"), detail.unwrap_or_default());
        }
    });
}

fn toleration(toleration: &Value) -> String {
    let value = text(toleration, "/value");
    let value = if value.is_empty() { String::new() } else { format!("={value}") };
    let effect = text(toleration, "/effect");
    let effect = if effect.is_empty() { String::new() } else { format!(":{effect}") };
    let seconds =
        toleration["tolerationSeconds"].as_i64().map(|seconds| format!(" for {seconds}s")).unwrap_or_default();
    format!("{}{value}{effect} {}{seconds}", text(toleration, "/key"), text(toleration, "/operator")).trim().to_owned()
}

/// The conditions of any object.
pub(super) fn conditions(out: &mut Writer, object: &Value) {
    let conditions = list(object, "/status/conditions");
    out.section_if(!conditions.is_empty(), "Conditions", |out| {
        let mut table = Table::new(["TYPE", "STATUS", "REASON", "MESSAGE"]);
        for condition in conditions {
            table.row(["/type", "/status", "/reason", "/message"].map(|at| text(condition, at)));
        }
        out.table(&table);
    });
}

/// The items of a list that may be missing.
pub(super) fn list<'v>(value: &'v Value, at: &str) -> &'v [Value] {
    value.pointer(at).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn capital(word: &str) -> String {
    let mut rest = word.chars();
    rest.next().map(|first| first.to_ascii_uppercase().to_string() + rest.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_tells_what_people_look_for() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]},
            "spec": {"nodeName": "host", "containers": [{"name": "main", "image": "i:1", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5},
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "main", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}});
        let mut out = Writer::default();
        describe(&mut out, &pod);
        let text = out.finish();
        for part in [
            "Controlled By:      ReplicaSet/r",
            "Reason: CrashLoopBackOff",
            "ExitCode: 137",
            "Restart Count:  3",
            "http-get http://:8000/health delay=0s timeout=1s period=5s",
            "A: <key k of secret s>",
            "80/TCP",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}
