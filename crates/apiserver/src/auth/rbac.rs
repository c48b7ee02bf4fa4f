//! Role-based access control: what the roles and bindings in the store allow.
//!
//! The objects are compiled once into [`Rules`] and compiled anew when one of them was written; the server counts those
//! writes, so a request costs one comparison.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mycelium_store::Store;
use serde_json::{Value, json};

use super::Identity;

/// Below this prefix lie all objects that decide on access.
pub const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

/// What someone wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `create` ...
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Object name or empty.
    pub name: String,
    /// For requests that are not about a resource: their path.
    pub path: Option<String>,
}

impl Attributes {
    fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Why it is refused, in Kubernetes' words.
    pub fn refusal(&self, user: &str) -> String {
        if let Some(path) = &self.path {
            return format!("User {user:?} cannot {} path {path:?}", self.verb);
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {:?} in API group {:?} {scope}",
            self.verb,
            self.full_resource(),
            self.group
        )
    }
}

/// One `rbac.PolicyRule`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    paths: Vec<String>,
}

impl Rule {
    fn from_value(rule: &Value) -> Self {
        let list = |field: &str| {
            let items = rule[field].as_array().map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    fn allows(&self, want: &Attributes) -> bool {
        let has = |list: &[String], item: &str| list.iter().any(|i| i == "*" || i == item);
        if !has(&self.verbs, &want.verb) {
            return false;
        }
        if let Some(path) = &want.path {
            return self.paths.iter().any(|p| match p.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => p == path,
            });
        }
        let full = want.full_resource();
        let any_with_subresource = format!("*/{}", want.subresource);
        has(&self.groups, &want.group)
            && self
                .resources
                .iter()
                .any(|r| r == "*" || *r == full || (!want.subresource.is_empty() && *r == any_with_subresource))
            && (self.names.is_empty() || self.names.contains(&want.name))
    }

    /// The rule as SelfSubjectRulesReview shows it: `(resource rule, non-resource rule)`.
    fn reviews(&self) -> (Option<Value>, Option<Value>) {
        let resource = (!self.resources.is_empty()).then(|| {
            let mut rule = json!({"verbs": self.verbs, "apiGroups": self.groups, "resources": self.resources});
            if !self.names.is_empty() {
                rule["resourceNames"] = json!(self.names);
            }
            rule
        });
        let path = (!self.paths.is_empty()).then(|| json!({"verbs": self.verbs, "nonResourceURLs": self.paths}));
        (resource, path)
    }
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    fn from_value(subject: &Value, binding_namespace: &str) -> Option<Self> {
        let name = subject["name"].as_str()?;
        Some(match subject["kind"].as_str()? {
            "User" => Self::User(name.to_owned()),
            "Group" => Self::Group(name.to_owned()),
            "ServiceAccount" => {
                let namespace = subject["namespace"].as_str().unwrap_or(binding_namespace);
                Self::User(format!("system:serviceaccount:{namespace}:{name}"))
            }
            _ => return None,
        })
    }

    fn is(&self, who: &Identity) -> bool {
        match self {
            Self::User(user) => *user == who.user,
            Self::Group(group) => who.groups.contains(group),
        }
    }
}

struct Grant {
    subjects: Vec<Subject>,
    rules: Arc<[Rule]>,
}

/// All grants, by namespace; the empty namespace holds those for the whole cluster.
#[derive(Default)]
pub struct Rules {
    grants: BTreeMap<String, Vec<Grant>>,
}

impl Rules {
    /// Compiles what the store holds.
    pub fn compile(store: &Store) -> Self {
        let objects = |resource: &str| -> Vec<Value> {
            let prefix = format!("{PREFIX}{resource}/");
            let page = store.range(&prefix, None, 0, None);
            let entries = page.map(|page| page.entries).unwrap_or_default();
            entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect()
        };
        // An aggregated role has its rules written into it; see [`super::roles::aggregate`].
        let cluster_roles: BTreeMap<String, Arc<[Rule]>> =
            objects("clusterroles").iter().map(|role| (text(&role["metadata"]["name"]), rules_of(role))).collect();
        let roles: BTreeMap<(String, String), Arc<[Rule]>> = objects("roles")
            .iter()
            .map(|role| ((text(&role["metadata"]["namespace"]), text(&role["metadata"]["name"])), rules_of(role)))
            .collect();
        let mut grants: BTreeMap<String, Vec<Grant>> = BTreeMap::new();
        for binding in objects("clusterrolebindings").iter().chain(&objects("rolebindings")) {
            let namespace = text(&binding["metadata"]["namespace"]);
            let name = text(&binding["roleRef"]["name"]);
            let rules = match binding["roleRef"]["kind"].as_str() {
                Some("Role") => roles.get(&(namespace.clone(), name)),
                _ => cluster_roles.get(&name),
            };
            let Some(rules) = rules.cloned() else { continue };
            let subjects = binding["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
            let subjects = subjects.iter().filter_map(|s| Subject::from_value(s, &namespace)).collect();
            grants.entry(namespace).or_default().push(Grant { subjects, rules });
        }
        Self { grants }
    }

    fn granted<'a>(&'a self, who: &'a Identity, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        let cluster = self.grants.get("").into_iter().flatten();
        let local = (!namespace.is_empty()).then(|| self.grants.get(namespace)).flatten().into_iter().flatten();
        cluster.chain(local).filter(|g| g.subjects.iter().any(|s| s.is(who))).flat_map(|g| g.rules.iter())
    }

    /// Whether `who` may do what it wants.
    pub fn allows(&self, who: &Identity, want: &Attributes) -> bool {
        who.is_master() || self.granted(who, &want.namespace).any(|rule| rule.allows(want))
    }

    /// Every rule of `who` in a namespace, as the status of a SelfSubjectRulesReview.
    pub fn review(&self, who: &Identity, namespace: &str) -> Value {
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        if who.is_master() {
            resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        for rule in self.granted(who, namespace) {
            let (resource, path) = rule.reviews();
            resources.extend(resource);
            paths.extend(path);
        }
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rules_of(role: &Value) -> Arc<[Rule]> {
    role["rules"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(Rule::from_value).collect()
}

/// The compiled rules and how current they are.
#[derive(Default)]
pub struct Cache {
    writes: AtomicU64,
    compiled: Mutex<Option<(u64, Arc<Rules>)>>,
}

impl Cache {
    /// Called after a write below [`PREFIX`].
    pub fn invalidate(&self) {
        self.writes.fetch_add(1, Ordering::Release);
    }

    /// The rules as of now.
    pub fn rules(&self, store: &Store) -> Arc<Rules> {
        let writes = self.writes.load(Ordering::Acquire);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, rules)) = &*compiled
            && *at == writes
        {
            return rules.clone();
        }
        let rules = Arc::new(Rules::compile(store));
        *compiled = Some((writes, rules.clone()));
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_as_in_kubernetes() {
        let rule = Rule::from_value(&json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"],
            "resources": ["pods", "pods/log", "*/scale"]}));
        let want = |verb: &str, group: &str, resource: &str, subresource: &str| Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            ..Attributes::default()
        };
        assert!(rule.allows(&want("get", "", "pods", "")));
        assert!(rule.allows(&want("get", "", "pods", "log")));
        assert!(rule.allows(&want("get", "apps", "deployments", "scale")));
        assert!(!rule.allows(&want("get", "", "pods", "exec")));
        assert!(!rule.allows(&want("watch", "", "pods", "")));
        assert!(!rule.allows(&want("get", "batch", "pods", "")));
        let named = Rule::from_value(&json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
            "resourceNames": ["a"]}));
        assert!(!named.allows(&want("get", "", "pods", "")));
        let paths = Rule::from_value(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        let path = |p: &str| Attributes { verb: "get".into(), path: Some(p.into()), ..Attributes::default() };
        assert!(paths.allows(&path("/healthz")) && paths.allows(&path("/apis/apps")) && !paths.allows(&path("/x")));
    }

    #[test]
    fn refusals_read_as_in_kubernetes() {
        let want = Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        };
        assert_eq!(
            want.refusal("x"),
            "User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
    }
}
