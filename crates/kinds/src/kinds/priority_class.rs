//! PriorityClass.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use super::workload::check_immutable;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, number, text_or};
use crate::value::{fill, flag, int, same, text};
use crate::{Errors, Generation, Kind};

/// The highest value a class of one's own may have.
pub const USER_MAX: i64 = 1_000_000_000;
/// The classes that come with the system.
pub const SYSTEM: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

pub static PRIORITY_CLASS: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, class| fill(class, "preemptionPolicy", "PreemptLowerPriority"),
    check,
    check_update: |new, old, _, errors| {
        if !same(&new["value"], &old["value"]) {
            errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        check_immutable(new, old, &["preemptionPolicy"], errors);
    },
    columns: &[
        NAME,
        Column::integer("Value", "Priority of pods of this class."),
        Column::boolean("Global-Default", "Whether pods without a class get this one."),
        AGE_COLUMN,
        Column::text("PreemptionPolicy", "Whether pods of this class push others out."),
    ],
    cells: |class, now| {
        vec![
            name(class),
            number(class, &["value"]),
            flag(class, &["globalDefault"]).into(),
            age(class, now),
            text_or(class, &["preemptionPolicy"], ""),
        ]
    },
    ..Kind::new("scheduling.k8s.io", "PriorityClass", false)
};

fn check(class: &Value, errors: &mut Errors) {
    let name = text(class, &["metadata", "name"]);
    let value = int(class, &["value"]).unwrap_or_default();
    let name_path = Path::new("metadata").child("name");
    if name.starts_with("system-") {
        let known = SYSTEM.iter().any(|(known, known_value)| *known == name && *known_value == value);
        if !known {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: ";
            errors.push(FieldError::forbidden(
                &name_path,
                format!("{detail}{name} is not a known system priority class"),
            ));
        }
    } else if value > USER_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {USER_MAX}");
        errors.push(FieldError::forbidden(&Path::new("value"), detail));
    }
    let policy = text(class, &["preemptionPolicy"]);
    if !matches!(policy, "" | "PreemptLowerPriority" | "Never") {
        let path = Path::new("preemptionPolicy");
        errors.push(FieldError::not_supported(&path, policy, &["PreemptLowerPriority", "Never"]));
    }
}
