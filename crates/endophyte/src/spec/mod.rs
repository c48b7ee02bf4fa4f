//! From a document to what a host needs: reading the text, and finding images.

mod host;
mod images;

use mycelium_api::endophyte::EndophyteVM;
use mycelium_api::field::FieldError;

pub use host::unsupported;
pub use images::{ImageError, Images};

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not YAML.
    #[error("the document is not valid YAML: {0}")]
    Yaml(String),
    /// Wrong fields.
    #[error("the document is refused:\n{}", .0.iter().map(|error| format!("  {error}")).collect::<Vec<_>>().join("\n"))]
    Fields(Vec<FieldError>),
}

/// Reads a document, YAML or JSON.
pub fn read(text: &str) -> Result<EndophyteVM, SpecError> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| SpecError::Yaml(error.to_string()))?;
    EndophyteVM::from_value(&value).map_err(SpecError::Fields)
}

#[cfg(test)]
mod tests {
    use mycelium_api::endophyte::{LoadBalancing, Overrides, ThrottlingCurve, apply_overrides};

    use super::*;

    fn example(name: &str) -> EndophyteVM {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/vm/");
        read(&std::fs::read_to_string(format!("{folder}{name}.yaml")).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_are_accepted_as_they_are_and_fit_a_small_machine_when_told() {
        let legacy = example("legacy-app-vm");
        let spec = &legacy.spec;
        assert_eq!((spec.vm_spec.cpu_cores, legacy.memory_bytes(), legacy.disk_bytes()), (4, 8 << 30, 100 << 30));
        assert_eq!(spec.vm_spec.os_config.kind.as_deref(), Some("ubuntu-20.04"));
        assert_eq!((legacy.buffer_bytes(), spec.distributed_ram.throttle_threshold), (1 << 30, 0.7));
        assert_eq!((spec.rhizomorph_connections.target_count, spec.backup_strategy.node_count), (3, 2));

        let game = example("game-server-vm");
        let spec = &game.spec;
        assert_eq!(spec.distributed_ram.throttling_curve, ThrottlingCurve::Linear);
        assert!(!spec.distributed_ram.emergency_pause_enabled && spec.performance_config.sriov_networking);
        assert_eq!(spec.rhizomorph_connections.load_balancing, LoadBalancing::LatencyOptimized);
        assert!(game.warnings()[0].contains("output leaves before a backup holds"));

        let small = Overrides { cpus: Some(1), memory: Some("256Mi".into()), ..Overrides::default() };
        assert_eq!(apply_overrides(&legacy, &small).unwrap().memory_bytes(), 256 << 20);
    }

    #[test]
    fn every_fault_is_listed() {
        let error =
            read("apiVersion: mycelium.network/v1\nkind: EndophyteVM\nspec: {vmSpec: {cpus: 2}}\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("did you mean `cpuCores`?") && text.contains("metadata.name: Required value"), "{text}");
        assert!(matches!(read("a: [").unwrap_err(), SpecError::Yaml(_)));
    }
}
