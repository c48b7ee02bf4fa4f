//! Images that this machine has not got, where that was asked.

use crate::finding::{Report, Severity};
use crate::set::Set;
use crate::value::text;

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        for container in workload.containers() {
            let image = text(container.value, "/image");
            let field = format!("{}.image", container.path);
            if let Some((message, fix)) = malformed(image) {
                report.object(Severity::Error, "image-name", workload.object, &field, message, fix);
            } else if let Some(images) = set.context.images.as_ref().filter(|_| !image.is_empty())
                && !images.contains(&full(image))
                && text(container.value, "/imagePullPolicy") == "Never"
            {
                let message =
                    format!("image {image} is not on this machine, and imagePullPolicy Never forbids to fetch it");
                let fix = "load it first with `mycelium image load` or `mycelium image import`";
                report.object(Severity::Error, "image-unavailable", workload.object, field, message, fix);
            } else if let Some(images) = set.context.images.as_ref().filter(|_| !image.is_empty())
                && !images.contains(&full(image))
            {
                let message = format!("image {image} is not on this machine, and must come from its registry");
                let fix = "nothing, if the registry can be reached; else `mycelium image load`";
                report.object(Severity::Hint, "image-unavailable", workload.object, field, message, fix);
            }
        }
    }
}

/// Names that no registry takes.
fn malformed(image: &str) -> Option<(String, String)> {
    let trimmed = image.trim();
    if image.is_empty() {
        return None;
    }
    if trimmed.contains(char::is_whitespace) {
        return Some((format!("the image name {image:?} has a space in it"), String::new()));
    }
    let without = trimmed.split_once("://").map(|(_, rest)| rest);
    if let Some(rest) = without {
        return Some((format!("the image name {image} begins like an address of the web"), format!("write {rest}")));
    }
    let name = trimmed.split('@').next().unwrap_or_default();
    let (host, path) = name.split_once('/').unwrap_or(("", name));
    let repository = path.split(':').next().unwrap_or_default();
    let is_host = host.contains(['.', ':']) || host == "localhost";
    if repository.chars().any(char::is_uppercase) || (!is_host && host.chars().any(char::is_uppercase)) {
        return Some((
            format!("the image name {image} has capital letters"),
            format!("write {}", image.to_lowercase()),
        ));
    }
    None
}

/// A name with registry and tag, as image stores list it.
pub fn full(image: &str) -> String {
    let (host, _) = image.split_once('/').unwrap_or(("", image));
    let hosted = match host {
        "" => format!("docker.io/library/{image}"),
        host if host.contains(['.', ':']) || host == "localhost" => image.to_owned(),
        _ => format!("docker.io/{image}"),
    };
    let tagged = hosted.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    if tagged { hosted } else { format!("{hosted}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, parse, set};

    #[test]
    fn names_are_compared_as_image_stores_list_them() {
        for (short, long) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("r.example:5000/a@sha256:00", "r.example:5000/a@sha256:00"),
        ] {
            assert_eq!(full(short), long);
        }
    }

    #[test]
    fn an_image_that_may_not_be_fetched_must_be_there() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n\
                    - {name: a, image: here}\n  - {name: b, image: gone}\n\
                    \x20 - {name: c, image: gone, imagePullPolicy: Never}\n";
        let text = text.replace("containers:\n-", "containers:\n  -");
        let (objects, _) = set::objects(parse("f", &text).0);
        let images = Some([full("here")].into());
        let findings = crate::check(&Set::new(objects, Vec::new(), Context { images, ..Context::default() }));
        let found: Vec<_> = findings.iter().map(|f| (f.line, f.severity, f.code)).collect();
        assert_eq!(found, [(7, Severity::Hint, "image-unavailable"), (8, Severity::Error, "image-unavailable")]);
    }
}
