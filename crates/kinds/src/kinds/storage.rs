//! Volumes, claims and storage classes, and what CSI drivers register.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::workload::check_immutable;
use crate::check::{optional_one_of, refuse};
use crate::meta::check_selector;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, text_or};
use crate::value::{
    at, canonical_resources, ensure_object, fill, fill_zero, flag, has, list, same, text, texts, within,
};
use crate::{Errors, Kind, Part};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub static PERSISTENT_VOLUME: Kind = Kind {
    defaults: |_, volume| {
        ensure_object(volume, &["spec"]);
        within(volume, &["spec"], |spec| {
            fill_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
            fill_zero(spec, "volumeMode", "Filesystem");
            within(spec, &["hostPath"], |source| fill(source, "type", ""));
            canonical_resources(spec, &["capacity"]);
        });
    },
    on_create: |volume| set_phase(volume, "Pending"),
    check: check_volume,
    columns: &[
        NAME,
        Column::text("Capacity", "Size of the volume."),
        Column::text("Access Modes", "How it can be mounted."),
        Column::text("Reclaim Policy", "What happens to it when it is released."),
        Column::text("Status", "Phase of the volume."),
        Column::text("Claim", "Claim that has it."),
        Column::text("StorageClass", "Class of the volume."),
        Column::text("VolumeAttributesClass", "Class of its attributes."),
        Column::text("Reason", "Why it is in this phase."),
        AGE_COLUMN,
        Column::text("VolumeMode", "File system or raw device.").wide(),
    ],
    cells: |volume, now| {
        let claim = at(volume, &["spec", "claimRef"]);
        let claimed = match claim.is_null() {
            true => String::new(),
            false => format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"])),
        };
        vec![
            name(volume),
            text_or(volume, &["spec", "capacity", "storage"], "0"),
            modes(volume, &["spec", "accessModes"]).into(),
            text_or(volume, &["spec", "persistentVolumeReclaimPolicy"], ""),
            phase(volume),
            claimed.into(),
            class(volume),
            text_or(volume, &["spec", "volumeAttributesClassName"], "<unset>"),
            text_or(volume, &["status", "reason"], ""),
            age(volume, now),
            text_or(volume, &["spec", "volumeMode"], "<unset>"),
        ]
    },
    ..Kind::new("", "PersistentVolume", false)
};

pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    defaults: |_, claim| claim_defaults(claim),
    on_create: |claim| set_phase(claim, "Pending"),
    check: |claim, errors| check_claim_spec(&claim["spec"], &Path::new("spec"), errors),
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check_claim_spec(&new["spec"], &Path::new("spec"), errors);
            check_claim_change(new, old, errors);
        }
    },
    columns: &[
        NAME,
        Column::text("Status", "Phase of the claim."),
        Column::text("Volume", "Volume that it has."),
        Column::text("Capacity", "Size of that volume."),
        Column::text("Access Modes", "How it can be mounted."),
        Column::text("StorageClass", "Class that is asked for."),
        Column::text("VolumeAttributesClass", "Class of its attributes."),
        AGE_COLUMN,
        Column::text("VolumeMode", "File system or raw device.").wide(),
    ],
    cells: |claim, now| {
        let bound = !text(claim, &["spec", "volumeName"]).is_empty();
        let (size, how) = match bound {
            true => (text_or(claim, &["status", "capacity", "storage"], "0"), modes(claim, &["status", "accessModes"])),
            false => ("".into(), String::new()),
        };
        vec![
            name(claim),
            phase(claim),
            text_or(claim, &["spec", "volumeName"], ""),
            size,
            how.into(),
            class(claim),
            text_or(claim, &["spec", "volumeAttributesClassName"], "<unset>"),
            age(claim, now),
            text_or(claim, &["spec", "volumeMode"], "<unset>"),
        ]
    },
    ..Kind::new("", "PersistentVolumeClaim", true)
};

pub static STORAGE_CLASS: Kind = Kind {
    has_status: false,
    defaults: |_, class| {
        fill_zero(class, "reclaimPolicy", "Delete");
        fill_zero(class, "volumeBindingMode", "Immediate");
    },
    check: |class, errors| {
        if text(class, &["provisioner"]).is_empty() {
            errors.push(FieldError::required(&Path::new("provisioner"), ""));
        }
        let policy = text(class, &["reclaimPolicy"]);
        optional_one_of(errors, &Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        let mode = text(class, &["volumeBindingMode"]);
        let path = Path::new("volumeBindingMode");
        optional_one_of(errors, &path, mode, &["Immediate", "WaitForFirstConsumer"]);
    },
    check_update: |new, old, _, errors| {
        for (field, shown) in
            [("parameters", "parameters"), ("provisioner", "provisioner"), ("reclaimPolicy", "reclaimPolicy")]
        {
            if !same(&new[field], &old[field]) {
                errors.push(FieldError::forbidden(&Path::new(shown), format!("updates to {shown} are forbidden.")));
            }
        }
        check_immutable(new, old, &["volumeBindingMode"], errors);
    },
    columns: &[
        NAME,
        Column::text("Provisioner", "Who makes volumes of this class."),
        Column::text("ReclaimPolicy", "What happens to released volumes."),
        Column::text("VolumeBindingMode", "When a claim gets its volume."),
        Column::text("AllowVolumeExpansion", "Whether claims can grow."),
        AGE_COLUMN,
    ],
    cells: |class, now| {
        let annotations =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        let is_default = annotations.iter().any(|key| text(class, &["metadata", "annotations", key]) == "true");
        let suffix = if is_default { " (default)" } else { "" };
        vec![
            format!("{}{suffix}", text(class, &["metadata", "name"])).into(),
            text_or(class, &["provisioner"], ""),
            text_or(class, &["reclaimPolicy"], "Delete"),
            text_or(class, &["volumeBindingMode"], "Immediate"),
            flag(class, &["allowVolumeExpansion"]).into(),
            age(class, now),
        ]
    },
    ..Kind::new("storage.k8s.io", "StorageClass", false)
};

pub static VOLUME_ATTACHMENT: Kind = Kind {
    columns: &[
        NAME,
        Column { format: "name", ..Column::text("Attacher", "Driver that attaches.") },
        Column::text("PV", "Volume that is attached."),
        Column::text("Node", "Node that it is attached to."),
        Column::boolean("Attached", "Whether it is attached."),
        AGE_COLUMN,
    ],
    cells: |attachment, now| {
        vec![
            name(attachment),
            text_or(attachment, &["spec", "attacher"], ""),
            text_or(attachment, &["spec", "source", "persistentVolumeName"], ""),
            text_or(attachment, &["spec", "nodeName"], ""),
            flag(attachment, &["status", "attached"]).into(),
            age(attachment, now),
        ]
    },
    ..Kind::new("storage.k8s.io", "VolumeAttachment", false)
};

pub static CSI_NODE: Kind = Kind {
    has_status: false,
    columns: &[NAME, Column::integer("Drivers", "Drivers on the node."), AGE_COLUMN],
    cells: |node, now| vec![name(node), list(node, &["spec", "drivers"]).len().into(), age(node, now)],
    ..Kind::new("storage.k8s.io", "CSINode", false)
};

pub static CSI_DRIVER: Kind = Kind {
    has_status: false,
    generation: crate::Generation::Spec,
    defaults: |_, driver| {
        ensure_object(driver, &["spec"]);
        within(driver, &["spec"], |spec| {
            fill(spec, "attachRequired", true);
            fill(spec, "podInfoOnMount", false);
            fill(spec, "storageCapacity", false);
            fill_zero(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            if list(spec, &["volumeLifecycleModes"]).is_empty() {
                fill(spec, "volumeLifecycleModes", serde_json::json!(["Persistent"]));
            }
            fill(spec, "requiresRepublish", false);
            fill(spec, "seLinuxMount", false);
        });
    },
    columns: &[
        NAME,
        Column::boolean("AttachRequired", "Whether volumes are attached first."),
        Column::boolean("PodInfoOnMount", "Whether it learns about the pod."),
        Column::boolean("StorageCapacity", "Whether it reports capacity."),
        Column::text("TokenRequests", "Audiences of the tokens it gets."),
        Column::boolean("RequiresRepublish", "Whether it is called again and again."),
        Column::text("Modes", "Lifecycles of its volumes."),
        AGE_COLUMN,
    ],
    cells: |driver, now| {
        let flag = |key: &str, default: bool| Value::from(at(driver, &["spec", key]).as_bool().unwrap_or(default));
        let tokens = match has(driver, &["spec", "tokenRequests"]) {
            true => {
                let requests = list(driver, &["spec", "tokenRequests"]);
                requests.iter().map(|request| text(request, &["audience"])).collect::<Vec<_>>().join(",")
            }
            false => "<unset>".to_owned(),
        };
        let modes: Vec<&str> = texts(driver, &["spec", "volumeLifecycleModes"]).collect();
        vec![
            name(driver),
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            tokens.into(),
            flag("requiresRepublish", false),
            (if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") }).into(),
            age(driver, now),
        ]
    },
    ..Kind::new("storage.k8s.io", "CSIDriver", false)
};

pub static CSI_STORAGE_CAPACITY: Kind = Kind {
    has_status: false,
    defaults: |_, capacity| {
        crate::value::canonical_quantity(capacity, "capacity");
        crate::value::canonical_quantity(capacity, "maximumVolumeSize");
    },
    columns: &[
        NAME,
        Column::text("StorageClassName", "Class of the storage."),
        Column::text("Capacity", "How much is left."),
    ],
    cells: |capacity, _| {
        vec![name(capacity), text_or(capacity, &["storageClassName"], ""), text_or(capacity, &["capacity"], "<unset>")]
    },
    ..Kind::new("storage.k8s.io", "CSIStorageCapacity", true)
};

pub static VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    has_status: false,
    columns: &[NAME, Column::text("DriverName", "Driver of the class."), AGE_COLUMN],
    cells: |class, now| vec![name(class), text_or(class, &["driverName"], ""), age(class, now)],
    ..Kind::new("storage.k8s.io", "VolumeAttributesClass", false)
};

fn set_phase(object: &mut Value, phase: &str) {
    if let Some(status) = ensure_object(object, &["status"]) {
        status.insert("phase".to_owned(), phase.into());
    }
}

fn phase(object: &Value) -> Value {
    match has(object, &["metadata", "deletionTimestamp"]) {
        true => "Terminating".into(),
        false => text_or(object, &["status", "phase"], ""),
    }
}

fn class(object: &Value) -> Value {
    match text(object, &["metadata", "annotations", CLASS_ANNOTATION]) {
        "" => text_or(object, &["spec", "storageClassName"], ""),
        class => class.into(),
    }
}

fn modes(object: &Value, path: &[&str]) -> String {
    let given: Vec<&str> = texts(object, path).collect();
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    short.iter().filter(|(mode, _)| given.contains(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// Fills in a claim, also as template in a StatefulSet.
pub fn claim_defaults(claim: &mut Value) {
    ensure_object(claim, &["spec"]);
    within(claim, &["spec"], claim_spec_defaults);
    if ensure_object(claim, &["status"]).is_some() {
        within(claim, &["status"], |status| fill_zero(status, "phase", "Pending"));
    }
}

/// Fills in the spec of a claim.
pub fn claim_spec_defaults(spec: &mut Value) {
    fill_zero(spec, "volumeMode", "Filesystem");
    canonical_resources(spec, &["resources", "requests"]);
    canonical_resources(spec, &["resources", "limits"]);
}

/// What is wrong with the spec of a claim.
pub fn check_claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let modes_path = path.child("accessModes");
    let modes: Vec<&str> = texts(spec, &["accessModes"]).collect();
    if modes.is_empty() {
        errors.push(FieldError::required(&modes_path, "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(mode)) {
        errors.push(FieldError::not_supported(&modes_path, *mode, MODES));
    }
    if modes.contains(&"ReadWriteOncePod") && modes.len() > 1 {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&modes_path, detail));
    }
    check_selector(&spec["selector"], &path.child("selector"), errors);
    let size_path = path.child("resources").key("storage");
    match Quantity::from_json(at(spec, &["resources", "requests", "storage"])) {
        Ok(size) if size <= Quantity::ZERO => {
            errors.push(FieldError::invalid(&size_path, size.to_string(), "must be greater than zero"));
        }
        Ok(_) => {}
        Err(_) => errors.push(FieldError::required(&size_path, "")),
    }
    let class = text(spec, &["storageClassName"]);
    if !class.is_empty() {
        refuse(errors, &path.child("storageClassName"), class, names::is_dns1123_subdomain(class));
    }
    optional_one_of(errors, &path.child("volumeMode"), text(spec, &["volumeMode"]), &["Block", "Filesystem"]);
}

fn check_claim_change(new: &Value, old: &Value, errors: &mut Errors) {
    let bound = text(new, &["status", "phase"]) == "Bound";
    let unclassed = !bound && !has(old, &["spec", "storageClassName"]);
    let fixed = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if unclassed {
            // The default class may come after the claim.
            crate::meta::keep(&mut spec, &Value::Null, "storageClassName");
        }
        if text(old, &["spec", "volumeName"]).is_empty() {
            crate::meta::keep(&mut spec, &Value::Null, "volumeName");
        }
        if bound {
            crate::meta::keep(&mut spec, &Value::Null, "volumeAttributesClassName");
            if let Some(requests) = ensure_object(&mut spec, &["resources", "requests"]) {
                requests.remove("storage");
            }
        }
        spec
    };
    if !same(&fixed(new), &fixed(old)) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden(&Path::new("spec"), detail));
    }
    let size = |claim: &Value, path: &[&str]| Quantity::from_json(at(claim, path)).unwrap_or_default();
    let request = ["spec", "resources", "requests", "storage"];
    let has_shrunk = size(new, &request) < size(old, &request);
    if has_shrunk && size(new, &request) <= size(old, &["status", "capacity", "storage"]) {
        let path = Path::new("spec").child("resources").child("requests").child("storage");
        errors.push(FieldError::forbidden(&path, "field can not be less than status.capacity"));
    }
}

fn check_volume(volume: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let modes: Vec<&str> = texts(volume, &["spec", "accessModes"]).collect();
    if modes.is_empty() {
        errors.push(FieldError::required(&path.child("accessModes"), ""));
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(mode)) {
        errors.push(FieldError::not_supported(&path.child("accessModes"), *mode, MODES));
    }
    if !has(volume, &["spec", "capacity"]) {
        errors.push(FieldError::required(&path.child("capacity"), ""));
    } else if !has(volume, &["spec", "capacity", "storage"]) {
        let shown = at(volume, &["spec", "capacity"]).clone();
        errors.push(FieldError::not_supported(&path.child("capacity"), shown, &["storage"]));
    }
    let policy = text(volume, &["spec", "persistentVolumeReclaimPolicy"]);
    let policy_path = path.child("persistentVolumeReclaimPolicy");
    optional_one_of(errors, &policy_path, policy, &["Delete", "Recycle", "Retain"]);
}
