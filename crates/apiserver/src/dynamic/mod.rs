//! Admission that users configure: webhooks, and policies in CEL.
//!
//! ```text
//!  built-in admission ─► mutating webhooks ─► prepare, validate ─► policies ─► validating webhooks ─► store
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`matching`] | which requests a webhook or policy is about |
//! | [`webhooks`] | calls webhooks, and what becomes of their answers |
//! | [`call`] | one HTTPS request to one of them |
//! | [`policy`] | validating admission policies |
//! | [`environment`] | what expressions see of a request |
//! | [`types`] | expressions against the types of kinds |
//! | [`definitions`] | what must be right about a policy |

pub mod call;
pub mod definitions;
pub mod environment;
pub mod matching;
pub mod policy;
pub mod types;
pub mod webhooks;

use serde_json::{Value, json};

use crate::authn;
use crate::error::ApiError;
use crate::read::shape;
use crate::route::Context;
use crate::write::update;

/// The server's own writes pass by: no configuration can keep it from its upkeep.
const SERVER: &str = "system:apiserver";
const GROUP: &str = "admissionregistration.k8s.io";

/// Whether a request is the server's own upkeep.
pub fn is_upkeep(cx: &Context<'_>) -> bool {
    cx.who.user == SERVER
}

/// A write as webhooks and policies see it.
pub struct Write<'a> {
    /// The request.
    pub cx: &'a Context<'a>,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'static str,
    /// The object after the write, in the version of the request.
    pub object: Value,
    /// The object before it.
    pub old: Value,
    /// Whether nothing will be written.
    pub dry_run: bool,
    /// Name of the object.
    pub name: String,
    /// The kind of the object, where it is not the resource's.
    pub kind: Option<&'static str>,
}

impl<'a> Write<'a> {
    /// A write of an object in storage form; none if it is none of the configuration's business.
    pub fn new(
        cx: &'a Context<'a>,
        operation: &'static str,
        object: Option<&Value>,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Option<Self> {
        let own = cx.resource.group() == GROUP
            && ["webhookconfigurations", "policies", "policybindings"]
                .iter()
                .any(|end| cx.resource.name().ends_with(end));
        if is_upkeep(cx) || own || !exists(cx) {
            return None;
        }
        let scale = cx.subresource() == Some("scale");
        let seen = |value: Option<&Value>| match value {
            None => Value::Null,
            Some(value) if scale => update::scale_of(cx, value),
            Some(value) => shape::to_request_version(cx.resource, value.clone()),
        };
        let (object, old) = (seen(object), seen(old));
        let name = object["metadata"]["name"].as_str().or(old["metadata"]["name"].as_str()).unwrap_or_default();
        let name = name.to_owned();
        Some(Self { cx, operation, object, old, dry_run, name, kind: None })
    }

    /// The `request` of an AdmissionReview, without the objects.
    pub fn request(&self) -> Value {
        let cx = self.cx;
        let (group, version) = (cx.resource.group(), cx.resource.version());
        let kind = match cx.subresource() {
            _ if self.kind.is_some() => json!({"group": group, "version": version, "kind": self.kind}),
            Some("scale") => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
            _ => json!({"group": group, "version": version, "kind": cx.resource.kind()}),
        };
        let resource = json!({"group": group, "version": version, "resource": cx.resource.name()});
        let options = match self.operation {
            "CREATE" => "CreateOptions",
            "DELETE" => "DeleteOptions",
            _ => "UpdateOptions",
        };
        let mut options = json!({"kind": options, "apiVersion": "meta.k8s.io/v1"});
        if let Some(manager) = cx.query.get("fieldManager") {
            options["fieldManager"] = json!(manager);
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let mut request = json!({"uid": cx.server.env.uuid(), "kind": kind, "resource": resource, "requestKind": kind,
            "requestResource": resource, "name": self.name, "operation": self.operation,
            "userInfo": authn::user_info(cx.who), "dryRun": self.dry_run, "options": options});
        if let Some(subresource) = cx.subresource() {
            request["subResource"] = json!(subresource);
            request["requestSubResource"] = json!(subresource);
        }
        if cx.resource.namespaced() {
            request["namespace"] = json!(cx.path.namespace);
        } else if cx.resource.is_core("namespaces") {
            request["namespace"] = json!(self.name);
        }
        request
    }
}

/// Whether anything is configured at all.
fn exists(cx: &Context<'_>) -> bool {
    ["mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicybindings"]
        .iter()
        .any(|resource| cx.server.store.count(&format!("/registry/{GROUP}/{resource}/")) > 0)
}

/// Every object of a resource of the group.
fn stored(cx: &Context<'_>, resource: &str) -> Result<Vec<std::sync::Arc<Value>>, ApiError> {
    let prefix = format!("/registry/{GROUP}/{resource}/");
    let page = cx.server.store.range(&prefix, None, 0, None).map_err(ApiError::internal)?;
    page.entries.iter().map(|entry| cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)).collect()
}

/// Refuses a write, as policies and validating webhooks will have it.
pub async fn validate(
    cx: &Context<'_>,
    operation: &'static str,
    object: Option<&Value>,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), ApiError> {
    let Some(write) = Write::new(cx, operation, object, old, dry_run) else { return Ok(()) };
    policy::check(&write)?;
    webhooks::validate(&write).await
}

/// Lets webhooks and policies refuse a connection to a container, a service or a node.
pub async fn connect(cx: &Context<'_>) -> Result<(), ApiError> {
    let kind = match (cx.resource.name(), cx.path.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return Ok(()),
    };
    let Some(mut write) = Write::new(cx, "CONNECT", None, None, false) else { return Ok(()) };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if cx.query.flag(flag) {
            options[flag] = json!(true);
        }
    }
    if let Some(container) = cx.query.get("container") {
        options["container"] = json!(container);
    }
    let command: Vec<&str> = cx.query.all("command").collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    if cx.path.subresource == "proxy" {
        options["path"] = json!(format!("/{}", cx.path.rest));
    }
    (write.object, write.kind, write.name) = (options, Some(kind), cx.path.name.clone());
    policy::check(&write)?;
    webhooks::connect(&write).await
}
