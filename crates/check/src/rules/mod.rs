//! The rules, one file per subject. Each looks at the whole set and reports on the objects that came from files.

mod autoscaling;
mod batch;
mod disruption;
mod identity;
mod images;
mod ingress;
mod invalid;
mod kinds;
mod names;
mod pods;
mod policy;
mod policy_dns;
mod rbac;
mod references;
mod scheduling;
mod selectors;
mod services;
mod shape;
mod storage;

use crate::finding::Report;
use crate::set::Set;

/// The rules in order. The last takes what no other has explained.
const RULES: &[fn(&Set, &mut Report)] = &[
    kinds::check,
    shape::check,
    identity::check,
    selectors::check,
    services::check,
    pods::check,
    ingress::check,
    policy::check,
    policy_dns::check,
    references::check,
    storage::check,
    autoscaling::check,
    disruption::check,
    scheduling::check,
    rbac::check,
    batch::check,
    names::check,
    images::check,
    invalid::check,
];

/// Runs every rule.
pub fn run(set: &Set, report: &mut Report) {
    for rule in RULES {
        rule(set, report);
    }
}
