//! The seed's manifests, the defaults, and every kind of error.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn document() -> Value {
    json!({"apiVersion": "mycelium.network/v1", "kind": "EndophyteVM", "metadata": {"name": "legacy"}})
}

/// The errors of a document with this at this place.
fn errors(place: &str, value: Value) -> Vec<String> {
    let mut document = document();
    let (parent, name) = place.rsplit_once('/').expect("a path");
    let mut at = &mut document;
    for part in parent.split('/').skip(1) {
        if at.get(part).is_none() {
            at[part] = json!({});
        }
        at = &mut at[part];
    }
    at[name] = value;
    EndophyteVM::from_value(&document).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn a_document_with_nothing_but_a_name_gets_the_documented_defaults() {
    let vm = EndophyteVM::from_value(&document()).expect("valid");
    assert_eq!(vm, EndophyteVM::named("legacy"));
    let value = serde_json::to_value(&vm).expect("serialises");
    for row in reference().lines().skip(2) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (name, default) = (cells[0].trim_start_matches("| ").trim_matches('`'), cells[2].trim_matches('`'));
        let found = value.pointer(&format!("/spec/{}", name.replace('.', "/")));
        match (default, found) {
            ("-" | "[]", found) => assert_eq!(found, None, "{name}"),
            (default, Some(Value::String(text))) => assert_eq!(text, default, "{name}"),
            (default, Some(other)) => assert_eq!(other.to_string(), default, "{name}"),
            (default, None) => panic!("{name} should be {default}"),
        }
    }
    assert_eq!(EndophyteVM::from_value(&value).expect("its own output"), vm);
}

#[test]
fn the_reference_page_prints_the_table() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vm-document.md")).expect("page");
    assert!(page.contains(&reference()), "docs/vm-document.md must hold this table:\n{}", reference());
}

#[test]
fn errors_name_field_found_allowed_and_fix() {
    for (place, value, expected) in [
        (
            "/spec/vmSpec/cpuCore",
            json!(4),
            "spec.vmSpec.cpuCore: Invalid value: 4: unknown field; did you mean `cpuCores`? Known here: vmId, cpuCores, \
             memorySize, diskSize, osConfig, networkConfig, storageConfig",
        ),
        (
            "/spec/vmSpec/memory",
            json!("1Gi"),
            "spec.vmSpec.memory: Invalid value: \"1Gi\": unknown field; did you mean `memorySize`? Known here: vmId, \
             cpuCores, memorySize, diskSize, osConfig, networkConfig, storageConfig",
        ),
        (
            "/spec/vmSpec/cpuCores",
            json!(0),
            "spec.vmSpec.cpuCores: Invalid value: 0: must be a whole number from 1 to 255",
        ),
        (
            "/spec/vmSpec/cpuCores",
            json!("4"),
            "spec.vmSpec.cpuCores: Invalid value: \"4\": must be a whole number from 1 to 255",
        ),
        (
            "/spec/vmSpec/memorySize",
            json!("8GiB"),
            "spec.vmSpec.memorySize: Invalid value: \"8GiB\": must be bytes, from 16Mi to 16Ti, such as `512Mi`: \
             quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "/spec/vmSpec/memorySize",
            json!(100_000_001),
            "spec.vmSpec.memorySize: Invalid value: \"100000001\": must be a multiple of 4Ki, the size of a page: 97660Ki \
             is the next",
        ),
        (
            "/spec/distributedRAM/throttlingCurve",
            json!("quadratic"),
            "spec.distributedRAM.throttlingCurve: Unsupported value: \"quadratic\": must be one of `linear`, `exponential`",
        ),
        (
            "/spec/distributedRAM/throttleThreshold",
            json!(70),
            "spec.distributedRAM.throttleThreshold: Invalid value: 70: must be a number from 0.05 to 0.99",
        ),
        (
            "/spec/backupStrategy/nodes",
            json!(["10.0.0.2:7400", "10.0.0.3"]),
            "spec.backupStrategy.nodes[1]: Invalid value: \"10.0.0.3\": must be `HOST:PORT`",
        ),
        (
            "/spec/vmSpec/osConfig/initrd",
            json!("/boot/initrd"),
            "spec.vmSpec.osConfig.initrd: Forbidden: means nothing without a kernel: give osConfig.kernel too",
        ),
        (
            "/spec/vmSpec/networkConfig/attachment",
            json!("bridge:br0"),
            "spec.vmSpec.networkConfig.attachment: Invalid value: \"bridge:br0\": must be \"none\", \"tap\" or \
             \"tap:BRIDGE\", the last two perhaps followed by \",name=DEVICE\"",
        ),
        ("/kind", json!("EndophyteVm"), "kind: Unsupported value: \"EndophyteVm\": must be one of `EndophyteVM`"),
        (
            "/spec/distributedRAM/epochMilliseconds",
            json!({"minimum": 200}),
            "spec.distributedRAM.epochMilliseconds.minimum: Invalid value: 200: must not be above \
             epochMilliseconds.maximum, which is 100: lower one",
        ),
    ] {
        assert_eq!(errors(place, value), [expected], "{place}");
    }
    let empty: Vec<String> =
        EndophyteVM::from_value(&json!({})).err().unwrap_or_default().iter().map(ToString::to_string).collect();
    assert_eq!(empty.len(), 3, "{empty:?}");
    assert!(errors("/metadata/name", json!("Has Space")).len() == 1);
}

#[test]
fn a_command_line_wins_and_its_errors_name_the_flag() {
    let vm = EndophyteVM::named("legacy");
    let overrides = Overrides {
        cpus: Some(2),
        memory: Some("512Mi".into()),
        net: Some("tap:br0".into()),
        backups: vec!["10.0.0.2:7400".into(), "b.example:7400".into()],
        best_effort: Some(true),
        ..Overrides::default()
    };
    let changed = apply_overrides(&vm, &overrides).expect("valid");
    assert_eq!((changed.spec.vm_spec.cpu_cores, changed.memory_bytes()), (2, 512 << 20));
    assert_eq!(changed.spec.backup_strategy.node_count, 2);
    assert_eq!(changed.spec.vm_spec.network_config.attachment.to_string(), "tap:br0");
    assert!(changed.warnings()[0].contains("emergencyPauseEnabled is false"));
    assert_eq!(apply_overrides(&vm, &Overrides::default()), Ok(vm.clone()));
    let wrong = Overrides { memory: Some("1M".into()), backups: vec!["nowhere".into()], ..Overrides::default() };
    let errors = apply_overrides(&vm, &wrong).expect_err("two faults");
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.ends_with("such as `512Mi` (given by --memory)")), "{texts:?}");
    assert!(texts.iter().any(|text| text.ends_with("must be `HOST:PORT` (given by --backup)")), "{texts:?}");
}

proptest! {
    /// Whatever passes the strict reader also has a type, and comes out as it went in.
    #[test]
    fn any_value_at_any_field_is_read_or_refused_by_name(
        row in any::<prop::sample::Index>(),
        value in prop_oneof![
            any::<u32>().prop_map(|n| json!(n)), any::<f64>().prop_map(|n| json!(n)), any::<bool>().prop_map(|b| json!(b)),
            "[a-z0-9:.,=-]{0,20}".prop_map(|s| json!(s)), Just(json!([])), Just(json!({})), Just(json!(null)),
            Just(json!(["10.0.0.1:1"])), Just(json!("64Mi")),
        ],
    ) {
        let table = reference();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        let name = row.get(&rows).split('`').nth(1).expect("a name").to_owned();
        for error in errors(&format!("/spec/{}", name.replace('.', "/")), value) {
            prop_assert!(error.starts_with("spec."), "{}", error);
            prop_assert!(!error.starts_with("spec:"), "a type that the reader let through: {}", error);
        }
    }
}
