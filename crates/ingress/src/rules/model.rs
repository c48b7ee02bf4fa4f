//! What routes are made of, cut down from the API's objects. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1 as networking;
pub use mycelium_informer::ObjectName;
use regex::{Regex, RegexBuilder};

use crate::annotations::{self, Fault, Protocol, Settings};
use crate::certificates::Pair;

/// How Ingresses named their class before they had a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Annotations by which an Ingress asks cert-manager for a certificate; they serve where it is not installed.
const ASKS_CERT_MANAGER: [&str; 3] =
    ["cert-manager.io/cluster-issuer", "cert-manager.io/issuer", "kubernetes.io/tls-acme"];
/// The one by which it asks us.
const ASKS_US: &str = "mycelium.network/issue-certificate";
/// Bytes that a compiled pattern may take.
const PATTERN_MAX: usize = 1 << 20;

/// Everything a table is made of.
#[derive(Clone, Default)]
pub struct World {
    /// Ingresses.
    pub ingresses: BTreeMap<ObjectName, Arc<Ingress>>,
    /// The controller of each IngressClass.
    pub classes: BTreeMap<String, String>,
    /// Services.
    pub services: BTreeMap<ObjectName, Service>,
    /// Slices by service, then by name.
    pub slices: BTreeMap<ObjectName, BTreeMap<String, Slice>>,
    /// Certificates, by the Secret that holds them.
    pub secrets: BTreeMap<ObjectName, Arc<Pair>>,
}

/// An Ingress.
#[derive(Clone, Debug, Default)]
pub struct Ingress {
    /// Its identity.
    pub uid: String,
    /// Counts changes of what it asks for.
    pub generation: i64,
    /// When it was made, in seconds since the epoch.
    pub created_s: i64,
    /// The class it names.
    pub class: Option<String>,
    /// What its annotations ask for.
    pub settings: Arc<Settings>,
    /// What is wrong with its annotations and paths, a sentence each.
    pub faults: Vec<String>,
    /// Where what no rule matches goes.
    pub default_backend: Option<BackendRef>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Its certificates.
    pub tls: Vec<Tls>,
    /// Wants certificates that are not there to be made, and by whom.
    pub asks: Asks,
    /// Addresses that its status shows.
    pub addresses: Vec<String>,
    /// It is about to go.
    pub ending: bool,
}

/// Whether certificates that are not there are to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asks {
    /// No.
    #[default]
    Nobody,
    /// By cert-manager, or by us where it is not installed.
    CertManager,
    /// By us.
    Us,
}

/// Rules for a host, or for all that no other rule is for.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The host, in lower case.
    pub host: Option<String>,
    /// Its paths.
    pub paths: Vec<PathRule>,
}

/// A path and where it leads.
#[derive(Clone, Debug)]
pub struct PathRule {
    /// As it was written.
    pub path: String,
    /// How it is compared.
    pub kind: Match,
    /// Where it leads.
    pub backend: BackendRef,
}

/// How a path is compared.
#[derive(Clone, Debug)]
pub enum Match {
    /// The same path.
    Exact,
    /// The same segments at the beginning.
    Prefix,
    /// The same letters at the beginning.
    Start,
    /// A pattern that matches at the beginning.
    Pattern(Regex),
}

/// A service and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendRef {
    /// The service's name.
    pub service: String,
    /// Its port.
    pub port: PortRef,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// Hosts and the Secret with their certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The hosts, in lower case.
    pub hosts: Vec<String>,
    /// The Secret, in the Ingress' namespace.
    pub secret: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Stands for a name elsewhere.
    pub external_name: Option<String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty if it has none.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// What it speaks, if it says so.
    pub protocol: Option<Protocol>,
}

/// Some of the endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Numbers of the service's ports, by name.
    pub ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// New connections may go there.
    pub ready: bool,
    /// It is about to end but still answers.
    pub leaving: bool,
}

impl Ingress {
    /// What matters of an Ingress.
    pub fn from_api(object: &networking::Ingress) -> Self {
        let meta = &object.metadata;
        let none = BTreeMap::new();
        let annotations = meta.annotations.as_ref().unwrap_or(&none);
        let spec = object.spec.clone().unwrap_or_default();
        let (settings, faults) = annotations::read(annotations);
        let mut faults: Vec<String> = faults.into_iter().map(sentence).collect();
        let rules = spec.rules.unwrap_or_default().into_iter();
        let rules = rules.map(|rule| Rule::from_api(rule, &settings, &mut faults)).collect();
        let addresses = object.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.clone());
        let asks = |name: &&str| annotations.get(*name).is_some_and(|value| value != "false" && !value.is_empty());
        let asks = match (asks(&ASKS_US), ASKS_CERT_MANAGER.iter().any(asks)) {
            (true, _) => Asks::Us,
            (false, true) => Asks::CertManager,
            (false, false) => Asks::Nobody,
        };
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created_s: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            class: spec.ingress_class_name.or_else(|| annotations.get(CLASS_ANNOTATION).cloned()),
            settings: Arc::new(settings),
            faults,
            default_backend: spec.default_backend.and_then(BackendRef::from_api),
            rules,
            tls: spec.tls.unwrap_or_default().into_iter().map(Tls::from_api).collect(),
            asks,
            addresses: addresses
                .unwrap_or_default()
                .into_iter()
                .filter_map(|point| point.ip.or(point.hostname))
                .collect(),
            ending: meta.deletion_timestamp.is_some(),
        }
    }

    /// All hosts of its rules.
    pub fn hosts(&self) -> impl Iterator<Item = &String> {
        self.rules.iter().filter_map(|rule| rule.host.as_ref()).chain(&self.settings.aliases)
    }
}

fn sentence(fault: Fault) -> String {
    format!("{}{}: {}", annotations::PREFIX, fault.name, fault.why)
}

impl Rule {
    fn from_api(rule: networking::IngressRule, settings: &Settings, faults: &mut Vec<String>) -> Self {
        let paths = rule.http.map(|http| http.paths).unwrap_or_default().into_iter();
        let paths = paths.filter_map(|path| PathRule::from_api(path, settings, faults)).collect();
        Self { host: rule.host.filter(|host| !host.is_empty()).map(|host| host.to_ascii_lowercase()), paths }
    }
}

/// Whether a path means something else to a pattern than to the eye.
fn is_pattern(path: &str) -> bool {
    path.contains(['(', ')', '[', ']', '*', '+', '?', '|', '$', '^', '\\', '{'])
}

impl PathRule {
    fn from_api(rule: networking::HTTPIngressPath, settings: &Settings, faults: &mut Vec<String>) -> Option<Self> {
        let path = rule.path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        let Some(backend) = BackendRef::from_api(rule.backend) else {
            faults.push(format!("the path {path} leads to a resource; only services are served here"));
            return None;
        };
        let kind = match rule.path_type.as_str() {
            "Exact" => Match::Exact,
            _ if (settings.use_regex || settings.rewrite.is_some()) && is_pattern(&path) => {
                let pattern = RegexBuilder::new(&format!("^{path}"));
                match pattern.clone().case_insensitive(true).size_limit(PATTERN_MAX).build() {
                    Ok(pattern) => Match::Pattern(pattern),
                    Err(error) => {
                        let why = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                        faults.push(format!("the path {path} is not a pattern that can be served: {why}"));
                        return None;
                    }
                }
            }
            "Prefix" => Match::Prefix,
            _ => Match::Start,
        };
        Some(Self { path, kind, backend })
    }
}

impl BackendRef {
    fn from_api(backend: networking::IngressBackend) -> Option<Self> {
        let service = backend.service?;
        let port = service.port?;
        let port = match (port.name, port.number) {
            (Some(name), _) if !name.is_empty() => PortRef::Name(name),
            (_, Some(number)) => PortRef::Number(u16::try_from(number).ok()?),
            _ => return None,
        };
        Some(Self { service: service.name, port })
    }
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Tls {
    fn from_api(tls: networking::IngressTLS) -> Self {
        let hosts = tls.hosts.unwrap_or_default().into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { hosts, secret: tls.secret_name.filter(|name| !name.is_empty()) }
    }
}

impl Service {
    /// What matters of a service.
    pub fn from_api(service: &core::Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let external = spec.type_.as_deref() == Some("ExternalName");
        let ports = spec.ports.unwrap_or_default().into_iter();
        let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        Self {
            external_name: spec.external_name.filter(|_| external),
            ports: tcp.filter_map(ServicePort::from_api).collect(),
        }
    }

    /// The port that an Ingress means.
    pub fn port(&self, wanted: &PortRef) -> Option<&ServicePort> {
        self.ports.iter().find(|port| match wanted {
            PortRef::Number(number) => port.port == *number,
            PortRef::Name(name) => port.name == *name,
        })
    }
}

impl ServicePort {
    fn from_api(port: core::ServicePort) -> Option<Self> {
        let protocol = match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c") => Some(Protocol::Grpc),
            _ => None,
        };
        Some(Self { name: port.name.unwrap_or_default(), port: u16::try_from(port.port).ok()?, protocol })
    }
}

impl Slice {
    /// What matters of a service's slice.
    pub fn from_api(slice: &EndpointSlice) -> Self {
        let ports = slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let ports =
            ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok()?)));
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let leaving = conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false);
            Some(Endpoint { address: endpoint.addresses.first()?.parse().ok()?, ready, leaving })
        });
        Self { ports: ports.collect(), endpoints: endpoints.collect() }
    }
}

impl World {
    /// Where new requests to a port of a service go: to the ready endpoints, or if there is none, to those that end but
    /// still answer. Sorted, without duplicates.
    pub fn endpoints(&self, service: &ObjectName, port: &str) -> Vec<SocketAddr> {
        let pick = |wanted: fn(&Endpoint) -> bool| {
            let slices = self.slices.get(service).into_iter().flat_map(BTreeMap::values);
            let mut found: Vec<SocketAddr> = slices
                .flat_map(|slice| {
                    let number = slice.ports.iter().find(|(name, _)| name == port).map(|(_, number)| *number);
                    let endpoints = slice.endpoints.iter().filter(move |endpoint| wanted(endpoint));
                    endpoints.filter_map(move |endpoint| Some(SocketAddr::new(endpoint.address, number?)))
                })
                .collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let ready = pick(|endpoint| endpoint.ready);
        if ready.is_empty() { pick(|endpoint| endpoint.leaving) } else { ready }
    }
}
