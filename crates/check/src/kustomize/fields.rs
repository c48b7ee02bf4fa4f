//! The fields of a kustomization.

use super::Kustomization;
use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::value::text;

const KNOWN: &[&str] = &[
    "apiVersion",
    "bases",
    "buildMetadata",
    "commonAnnotations",
    "commonLabels",
    "components",
    "configMapGenerator",
    "configurations",
    "crds",
    "generatorOptions",
    "generators",
    "helmChartInflationGenerator",
    "helmCharts",
    "helmGlobals",
    "imageTags",
    "images",
    "inventory",
    "kind",
    "labels",
    "metadata",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "openapi",
    "patches",
    "patchesJson6902",
    "patchesStrategicMerge",
    "replacements",
    "replicas",
    "resources",
    "secretGenerator",
    "sortOptions",
    "transformers",
    "validators",
    "vars",
];

/// Fields that kustomize wants to see go, and what to write.
const DEPRECATED: &[(&str, &str)] = &[
    ("bases", "list the folders under resources"),
    ("commonLabels", "use labels with pairs (and includeSelectors: true only where selectors are to change)"),
    ("patchesStrategicMerge", "use patches with path"),
    ("patchesJson6902", "use patches with target and path"),
    ("vars", "use replacements"),
    ("imageTags", "use images"),
    ("helmChartInflationGenerator", "use helmCharts"),
];

pub(super) fn check(of: &Kustomization, report: &mut Report) {
    let Some(fields) = of.value.as_object() else {
        let message = "the kustomization holds no fields";
        return report.file(Severity::Error, "kustomize-field", &of.origin, "", message, "begin with resources:");
    };
    for (field, value) in fields {
        if let Some((_, fix)) = DEPRECATED.iter().find(|(known, _)| known == field) {
            let message = format!("{field} is deprecated");
            report.file(Severity::Hint, "kustomize-deprecated", &of.origin, field, message, *fix);
        }
        if !KNOWN.contains(&field.as_str()) {
            let fix = nearest(field, KNOWN.iter().copied()).map(|near| format!("did you mean {near}?"));
            let message = format!("a kustomization has no field {field}");
            report.file(Severity::Error, "kustomize-field", &of.origin, field, message, fix.unwrap_or_default());
        }
        let wants_list =
            matches!(field.as_str(), "resources" | "bases" | "components" | "patches" | "images" | "labels");
        if wants_list && !value.is_array() && !value.is_null() {
            let message = format!("{field} must be a list");
            report.file(Severity::Error, "kustomize-field", &of.origin, field, message, "begin each entry with `- `");
        }
    }
    let kind = text(&of.value, "/kind");
    if !matches!(kind, "" | "Kustomization" | "Component") {
        let message = format!("the kind of this file is {kind}, not Kustomization");
        report.file(Severity::Error, "kustomize-field", &of.origin, "kind", message, "write kind: Kustomization");
    }
}
