//! What a command line says instead of the document.

use serde_json::{Value, json};

use super::types::EndophyteVM;
use crate::field::FieldError;

/// Values from a command line; those that are absent leave the document as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--name`.
    pub name: Option<String>,
    /// `--cpus`.
    pub cpus: Option<u32>,
    /// `--memory`.
    pub memory: Option<String>,
    /// `--disk-size`.
    pub disk_size: Option<String>,
    /// `--disk`: path of an image.
    pub disk: Option<String>,
    /// `--kernel`.
    pub kernel: Option<String>,
    /// `--initrd`.
    pub initrd: Option<String>,
    /// `--append`: the kernel's command line.
    pub command_line: Option<String>,
    /// `--net`.
    pub net: Option<String>,
    /// `--mac`.
    pub mac: Option<String>,
    /// `--backup`, each of them; they replace the document's list.
    pub backups: Vec<String>,
    /// `--buffer`.
    pub buffer: Option<String>,
    /// `--output-commit`.
    pub output_commit: Option<String>,
    /// `--best-effort`: output leaves at once.
    pub best_effort: Option<bool>,
    /// `--compression`.
    pub compression: Option<String>,
    /// `--connections`.
    pub connections: Option<u32>,
    /// `--load-balancing`.
    pub load_balancing: Option<String>,
    /// `--heartbeat-ms`.
    pub heartbeat_ms: Option<u64>,
    /// `--witness`.
    pub witness: Option<String>,
    /// `--alone`.
    pub alone: Option<String>,
    /// `--group`.
    pub group: Option<String>,
}

const OS: &str = "/spec/vmSpec/osConfig";
const RAM: &str = "/spec/distributedRAM";

impl Overrides {
    /// Flag, place in the document, value.
    fn given(&self) -> Vec<(&'static str, String, Value)> {
        let text = |value: &Option<String>| value.as_ref().map(|text| json!(text));
        let backups = (!self.backups.is_empty()).then_some(&self.backups);
        [
            ("--name", "/metadata/name".into(), text(&self.name)),
            ("--cpus", "/spec/vmSpec/cpuCores".into(), self.cpus.map(Value::from)),
            ("--memory", "/spec/vmSpec/memorySize".into(), text(&self.memory)),
            ("--disk-size", "/spec/vmSpec/diskSize".into(), text(&self.disk_size)),
            ("--disk", "/spec/vmSpec/storageConfig/image".into(), text(&self.disk)),
            ("--kernel", format!("{OS}/kernel"), text(&self.kernel)),
            ("--initrd", format!("{OS}/initrd"), text(&self.initrd)),
            ("--append", format!("{OS}/commandLine"), text(&self.command_line)),
            ("--net", "/spec/vmSpec/networkConfig/attachment".into(), text(&self.net)),
            ("--mac", "/spec/vmSpec/networkConfig/mac".into(), text(&self.mac)),
            ("--backup", "/spec/backupStrategy/nodes".into(), backups.map(|nodes| json!(nodes))),
            ("--backup", "/spec/backupStrategy/nodeCount".into(), backups.map(|nodes| json!(nodes.len()))),
            ("--buffer", format!("{RAM}/bufferSize"), text(&self.buffer)),
            ("--output-commit", format!("{RAM}/outputCommit"), text(&self.output_commit)),
            ("--best-effort", format!("{RAM}/emergencyPauseEnabled"), self.best_effort.map(|on| json!(!on))),
            ("--compression", format!("{RAM}/compression"), text(&self.compression)),
            ("--connections", "/spec/rhizomorphConnections/targetCount".into(), self.connections.map(Value::from)),
            ("--load-balancing", "/spec/rhizomorphConnections/loadBalancing".into(), text(&self.load_balancing)),
            (
                "--heartbeat-ms",
                "/spec/failureDetection/heartbeatMilliseconds".into(),
                self.heartbeat_ms.map(Value::from),
            ),
            ("--witness", "/spec/failureDetection/witness".into(), text(&self.witness)),
            ("--alone", "/spec/failureDetection/alone".into(), text(&self.alone)),
            ("--group", "/spec/failureDetection/group".into(), text(&self.group)),
        ]
        .into_iter()
        .filter_map(|(flag, place, value): (_, String, Option<Value>)| Some((flag, place, value?)))
        .collect()
    }
}

/// Puts the overrides into the document and checks all of it again. An error in a value of the command line names the
/// flag beside the field.
pub fn apply_overrides(vm: &EndophyteVM, overrides: &Overrides) -> Result<EndophyteVM, Vec<FieldError>> {
    let given = overrides.given();
    let mut document = serde_json::to_value(vm).unwrap_or_default();
    for (_, place, value) in &given {
        set(&mut document, place, value.clone());
    }
    EndophyteVM::from_value(&document).map_err(|mut errors| {
        for error in &mut errors {
            let place = format!("/{}", error.path.as_str().replace('.', "/"));
            let flag = given.iter().find(|(_, own, _)| place == *own || place.starts_with(&format!("{own}[")));
            if let Some((flag, ..)) = flag {
                error.detail.push_str(&format!(" (given by {flag})"));
            }
        }
        errors
    })
}

fn set(document: &mut Value, place: &str, value: Value) {
    let mut at = document;
    for name in place.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[name];
    }
    *at = value;
}
