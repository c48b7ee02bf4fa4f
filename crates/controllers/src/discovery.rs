//! Which kinds of objects the server has.

use kube::Client;
use kube::core::Request;

/// One kind, in the version the server prefers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// API group; empty for the core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// The plural in URLs.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Kind {
    /// `v1`, or group and version.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, or `deployments.apps`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether a verb is offered.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|offered| offered == verb)
    }

    /// The collection: of one namespace, or of the whole cluster.
    pub fn request(&self, namespace: Option<&str>) -> Request {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let inside = match namespace {
            Some(namespace) if self.namespaced => format!("namespaces/{namespace}/"),
            _ => String::new(),
        };
        Request::new(format!("/{root}/{}/{inside}{}", self.api_version(), self.plural))
    }
}

/// What the server offers, and which groups it could not tell of.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// Kinds, each once.
    pub kinds: Vec<Kind>,
    /// Groups that failed, with the reason.
    pub failures: Vec<String>,
}

impl Discovered {
    /// The kind that an owner reference names.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        self.kinds.iter().find(|known| known.group == group && known.kind == kind)
    }
}

/// Asks the server.
pub async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let mut found = Discovered::default();
    let core = client.list_core_api_resources("v1").await?;
    add(&mut found, "", "v1", core);
    for group in client.list_api_groups().await?.groups {
        let Some(version) = group.preferred_version.or_else(|| group.versions.first().cloned()) else { continue };
        match client.list_api_group_resources(&version.group_version).await {
            Ok(list) => add(&mut found, &group.name, &version.version, list),
            Err(error) => found.failures.push(format!("{}: {error}", version.group_version)),
        }
    }
    found.kinds.sort();
    Ok(found)
}

fn add(
    found: &mut Discovered,
    group: &str,
    version: &str,
    list: k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList,
) {
    let own = list.resources.into_iter().filter(|resource| !resource.name.contains('/'));
    found.kinds.extend(own.map(|resource| Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: resource.kind,
        plural: resource.name,
        namespaced: resource.namespaced,
        verbs: resource.verbs,
    }));
}
