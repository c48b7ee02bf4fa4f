//! What expressions see of a request: the objects, the request, the namespace, and who may do what.

use std::sync::{Arc, LazyLock};

use mycelium_cel::{Bindings, Host, Value as Cel};
use serde_json::{Value, json};

use super::{Write, matching};
use crate::auth::Identity;
use crate::auth::rbac::{Attributes, Rules};

/// What all objects share that is more than JSON: times.
static TIMES: LazyLock<Value> = LazyLock::new(|| {
    let time = json!({"type": "string", "format": "date-time"});
    json!({"properties": {"metadata": {"properties": {"creationTimestamp": time, "deletionTimestamp": time}}}})
});

/// Everything that names in an expression stand for.
pub struct Environment {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    params: Value,
    authorizer: Arc<Authorizer>,
    own: Attributes,
}

impl Environment {
    /// The environment of a write, with the parameters of a policy.
    pub fn new(write: &Write<'_>, params: Value) -> Self {
        let cx = write.cx;
        let namespace = match cx.resource.namespaced() {
            true => matching::namespace(write).map_or(Value::Null, |namespace| (*namespace).clone()),
            false => Value::Null,
        };
        let verb = match write.operation {
            "CREATE" => "create",
            "DELETE" => "delete",
            "CONNECT" => "connect",
            _ => "update",
        };
        let own = Attributes {
            verb: verb.to_owned(),
            group: cx.resource.group().to_owned(),
            resource: cx.resource.name().to_owned(),
            subresource: cx.path.subresource.clone(),
            namespace: cx.path.namespace.clone(),
            name: write.name.clone(),
            path: None,
        };
        let rules = cx.server.rbac.rules(&cx.server.store);
        Self {
            object: write.object.clone(),
            old: write.old.clone(),
            request: write.request(),
            namespace,
            params,
            authorizer: Arc::new(Authorizer { rules, who: cx.who.clone() }),
            own,
        }
    }

    /// The names and what they stand for.
    pub fn bindings(&self) -> Bindings<'_> {
        let mut bindings = Bindings::default();
        bindings.set("object", Cel::json(&self.object, Some(&TIMES)));
        bindings.set("oldObject", Cel::json(&self.old, Some(&TIMES)));
        bindings.set("request", Cel::json(&self.request, None));
        bindings.set("namespaceObject", Cel::json(&self.namespace, Some(&TIMES)));
        bindings.set("params", Cel::json(&self.params, None));
        bindings.set("authorizer", Cel::Host(Arc::new(Asking::Authorizer(self.authorizer.clone(), self.own.clone()))));
        bindings
    }
}

struct Authorizer {
    rules: Arc<Rules>,
    who: Identity,
}

/// The steps of a question to the authorizer: `authorizer.group('').resource('pods').check('get').allowed()`.
enum Asking {
    Authorizer(Arc<Authorizer>, Attributes),
    Group(Arc<Authorizer>, Attributes),
    Resource(Arc<Authorizer>, Attributes),
    Path(Arc<Authorizer>, Attributes),
    Decision(bool, String),
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Host for Asking {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Decision(..) => "kubernetes.authorization.Decision",
        }
    }

    fn call(&self, function: &str, arguments: &[Cel<'_>]) -> Option<Result<Cel<'static>, String>> {
        let text = match arguments.first() {
            Some(Cel::Text(text)) => text.to_string(),
            _ => String::new(),
        };
        let next = |asking: Self| Some(Ok(Cel::Host(Arc::new(asking))));
        match (self, function) {
            (Self::Authorizer(a, _), "group") => {
                next(Self::Group(a.clone(), Attributes { group: text, ..Attributes::default() }))
            }
            (Self::Authorizer(a, own), "requestResource") => next(Self::Resource(a.clone(), own.clone())),
            (Self::Authorizer(a, _), "path") => {
                next(Self::Path(a.clone(), Attributes { path: Some(text), ..Attributes::default() }))
            }
            (Self::Authorizer(a, own), "serviceAccount") => {
                let name = match arguments.get(1) {
                    Some(Cel::Text(name)) => name.to_string(),
                    _ => String::new(),
                };
                let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{text}")];
                let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
                let who = Identity::new(&format!("system:serviceaccount:{text}:{name}"), &groups).authenticated();
                next(Self::Authorizer(Arc::new(Authorizer { rules: a.rules.clone(), who }), own.clone()))
            }
            (Self::Group(a, want), "resource") => {
                next(Self::Resource(a.clone(), Attributes { resource: text, ..want.clone() }))
            }
            (Self::Resource(a, want), "subresource") => {
                next(Self::Resource(a.clone(), Attributes { subresource: text, ..want.clone() }))
            }
            (Self::Resource(a, want), "namespace") => {
                next(Self::Resource(a.clone(), Attributes { namespace: text, ..want.clone() }))
            }
            (Self::Resource(a, want), "name") => {
                next(Self::Resource(a.clone(), Attributes { name: text, ..want.clone() }))
            }
            (Self::Resource(a, want) | Self::Path(a, want), "check") => {
                let allowed = a.rules.allows(&a.who, &Attributes { verb: text, ..want.clone() });
                next(Self::Decision(allowed, String::new()))
            }
            (Self::Decision(allowed, _), "allowed") => Some(Ok(Cel::Bool(*allowed))),
            (Self::Decision(_, reason), "reason") => Some(Ok(Cel::text(reason.as_str()))),
            (Self::Decision(..), "errored") => Some(Ok(Cel::Bool(false))),
            (Self::Decision(..), "error") => Some(Ok(Cel::text(""))),
            _ => None,
        }
    }
}
