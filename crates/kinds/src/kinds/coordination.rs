//! Lease and LeaseCandidate.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use crate::table::{AGE_COLUMN, Column, NAME, age, name, text_or};
use crate::value::int;
use crate::{Errors, Kind};

pub static LEASE: Kind = Kind {
    has_status: false,
    check,
    check_update: |new, _, _, errors| check(new, errors),
    columns: &[NAME, Column::text("Holder", "Who holds the lease."), AGE_COLUMN],
    cells: |lease, now| vec![name(lease), text_or(lease, &["spec", "holderIdentity"], ""), age(lease, now)],
    ..Kind::new("coordination.k8s.io", "Lease", true)
};

pub static LEASE_CANDIDATE: Kind = Kind {
    has_status: false,
    columns: &[
        NAME,
        Column::text("LeaseName", "Lease it stands for."),
        Column::text("BinaryVersion", "Version of the binary."),
        Column::text("EmulationVersion", "Version it emulates."),
        AGE_COLUMN,
    ],
    cells: |candidate, now| {
        let field = |key| text_or(candidate, &["spec", key], "");
        vec![
            name(candidate),
            field("leaseName"),
            field("binaryVersion"),
            field("emulationVersion"),
            age(candidate, now),
        ]
    },
    ..Kind::new("coordination.k8s.io", "LeaseCandidate", true)
};

fn check(lease: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    if let Some(seconds) = int(lease, &["spec", "leaseDurationSeconds"]).filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    if let Some(count) = int(lease, &["spec", "leaseTransitions"]).filter(|count| *count < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(&path.child("leaseTransitions"), count, detail));
    }
}
