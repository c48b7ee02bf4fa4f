//! `--watch`: changes as they come, across interruptions of the connection.

use std::process::ExitCode;

use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;

use super::rows::Rows;
use super::{AS_TABLE, Getter};
use crate::client::target::Target;
use crate::client::{out, query, text};

/// Prints a line per change.
pub(super) async fn tables(getter: &Getter<'_>, target: &Target, version: &str, mut rows: Rows) -> Result<ExitCode> {
    let mut headings = !rows.has_printed() && !getter.args.no_headers;
    follow(getter, target, version, AS_TABLE, |object| {
        rows.add(object);
        if !rows.is_empty() {
            out!("{}", rows.render(headings));
            headings = false;
        }
        Ok(())
    })
    .await
}

/// Prints every changed object.
pub(super) async fn objects(getter: &Getter<'_>, target: &Target, version: &str) -> Result<ExitCode> {
    follow(getter, target, version, "application/json", |object| getter.print(object, &target.resource)).await
}

/// Hands on the objects of all events; begins anew where a connection ended.
async fn follow(
    getter: &Getter<'_>,
    target: &Target,
    version: &str,
    accept: &str,
    mut show: impl FnMut(&Value) -> Result<()>,
) -> Result<ExitCode> {
    let mut version = version.to_owned();
    let names = (target.names.len() == 1).then(|| format!("metadata.name={}", target.names[0]));
    if target.names.len() > 1 {
        bail!("--watch follows one object, or all of a type; use -l to choose some");
    }
    let fields: Vec<String> = names.into_iter().chain(getter.args.field_selector.clone()).collect();
    loop {
        let mut pairs = getter.selectors();
        pairs.retain(|(name, _)| *name != "fieldSelector");
        pairs.push(("fieldSelector", (!fields.is_empty()).then(|| fields.join(","))));
        pairs.push(("watch", Some("1".to_owned())));
        pairs.push(("allowWatchBookmarks", Some("true".to_owned())));
        pairs.push(("resourceVersion", Some(version.clone())));
        let path = format!("{}{}", target.resource.path(getter.namespace()), query(&pairs));
        let mut lines = getter.cluster.stream(&path, accept).await?.lines();
        while let Some(line) = lines.next().await {
            let Ok(line) = line else { break };
            let event: Value = serde_json::from_str(&line)?;
            let object = &event["object"];
            let seen =
                [text(object, "/metadata/resourceVersion"), text(object, "/rows/0/object/metadata/resourceVersion")];
            if let Some(seen) = seen.into_iter().find(|seen| !seen.is_empty()) {
                seen.clone_into(&mut version);
            }
            match text(&event, "/type") {
                "BOOKMARK" => {}
                "ERROR" if object["code"] == 410 => {
                    bail!("the server no longer has the changes since then; watch again")
                }
                "ERROR" => bail!("the watch ended: {}", text(object, "/message")),
                _ => {
                    show(object)?;
                }
            }
        }
    }
}
