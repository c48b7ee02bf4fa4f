//! All Ingresses into one table, and what has to be told about them. Pure.
//!
//! Of two Ingresses with a rule for the same host, path and path type, the older one has it. What is wrong with one
//! Ingress never touches another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::annotations::Settings;
use crate::certificates::Wanted;
use crate::limit::Limiter;
use crate::rules::backend::{Address, Backend};
use crate::rules::model::{Asks, BackendRef, Ingress, Match, ObjectName, PathRule, PortRef, World};
use crate::rules::table::{Route, Table};

/// Our IngressClass.
pub const CLASS: &str = "mycelium";
/// The class that stands for ours unless an IngressClass of that name says otherwise.
pub const ALIAS: &str = "nginx";
/// How IngressClasses name us.
pub const CONTROLLER: &str = "mycelium.network/ingress";

/// Something worth telling about an Ingress.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The Ingress.
    pub ingress: ObjectName,
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// It may pass by itself: it is told only if it lasts.
    pub may_pass: bool,
}

/// A table, and what else follows from the objects.
#[derive(Default)]
pub struct Compiled {
    /// The table.
    pub table: Table,
    /// The Ingresses that are served.
    pub served: BTreeSet<ObjectName>,
    /// What has to be told.
    pub notes: BTreeSet<Note>,
    /// The certificates that are asked for.
    pub wanted: Vec<Wanted>,
}

/// Whether an Ingress is ours to serve.
pub fn is_ours(world: &World, ingress: &Ingress) -> bool {
    let class = match &ingress.class {
        None => return true,
        Some(class) => class,
    };
    match world.classes.get(class) {
        Some(controller) => controller == CONTROLLER,
        None => [CLASS, ALIAS].contains(&class.as_str()),
    }
}

/// The table for the objects as they are. Backends and limiters that stay the same are taken over from `previous`.
pub fn compile(world: &World, previous: &Table) -> Compiled {
    let mut ours: Vec<(&ObjectName, &Arc<Ingress>)> =
        world.ingresses.iter().filter(|(_, ingress)| !ingress.ending && is_ours(world, ingress)).collect();
    ours.sort_by_key(|(name, ingress)| (ingress.created_s, *name));
    let mut out =
        Compiler { world, secure: secure_hosts(&ours), known: Known::of(previous), done: Compiled::default() };
    for (name, ingress) in &ours {
        out.done.served.insert((*name).clone());
        out.certificates(name, ingress);
        for message in &ingress.faults {
            out.note(name, "NotServed", message.clone(), false);
        }
        if !ingress.settings.canary {
            out.ingress(name, ingress);
        }
    }
    out.done
}

/// Hosts that have a certificate, be it the one for unknown hosts.
fn secure_hosts(ours: &[(&ObjectName, &Arc<Ingress>)]) -> BTreeSet<String> {
    let named = ours.iter().flat_map(|(_, ingress)| {
        let hosts = ingress.tls.iter().flat_map(|tls| &tls.hosts);
        let of_rules = ingress.tls.iter().any(|tls| tls.hosts.is_empty()).then(|| ingress.hosts());
        hosts.chain(of_rules.into_iter().flatten())
    });
    named.cloned().collect()
}

/// What the table before had.
struct Known {
    backends: BTreeMap<String, Arc<Backend>>,
    limiters: BTreeMap<ObjectName, Arc<Limiter>>,
}

impl Known {
    fn of(table: &Table) -> Self {
        let routes = || table.routes();
        let limiter = |route: &Arc<Route>| Some((route.ingress.clone(), route.limiter.clone()?));
        Self {
            backends: routes().map(|route| (route.backend.name.clone(), route.backend.clone())).collect(),
            limiters: routes().filter_map(limiter).collect(),
        }
    }

    fn backend(&mut self, made: Backend) -> Arc<Backend> {
        if let Some(known) = self.backends.get(&made.name).filter(|known| known.same(&made)) {
            return known.clone();
        }
        let made = Arc::new(made);
        self.backends.insert(made.name.clone(), made.clone());
        made
    }

    fn limiter(&mut self, ingress: &ObjectName, settings: &Settings) -> Option<Arc<Limiter>> {
        let limits = &settings.limits;
        if !limits.any() {
            return None;
        }
        if let Some(known) = self.limiters.get(ingress).filter(|known| known.limits == *limits) {
            return Some(known.clone());
        }
        let made = Arc::new(Limiter::new(limits.clone()));
        self.limiters.insert(ingress.clone(), made.clone());
        Some(made)
    }
}

struct Compiler<'a> {
    world: &'a World,
    secure: BTreeSet<String>,
    known: Known,
    done: Compiled,
}

impl Compiler<'_> {
    fn note(&mut self, ingress: &ObjectName, reason: &'static str, message: String, may_pass: bool) {
        self.done.notes.insert(Note { ingress: ingress.clone(), reason, message, may_pass });
    }

    fn is_secure(&self, host: &str) -> bool {
        let wildcard = || self.secure.contains(&format!("*.{}", host.split_once('.')?.1)).then_some(());
        self.secure.contains(host) || wildcard().is_some()
    }

    fn ingress(&mut self, name: &ObjectName, ingress: &Ingress) {
        let all_hosts = ingress.tls.iter().any(|tls| tls.hosts.is_empty());
        for rule in &ingress.rules {
            let secure = rule.host.as_ref().map_or(all_hosts, |host| self.is_secure(host));
            for path in &rule.paths {
                self.path(name, ingress, rule.host.as_deref(), path, secure);
            }
            let aliases = ingress.settings.aliases.iter().filter(|_| rule.host.is_some());
            for alias in aliases {
                let secure = self.is_secure(alias);
                for path in &rule.paths {
                    self.path(name, ingress, Some(&alias.to_ascii_lowercase()), path, secure);
                }
            }
        }
        if let Some(backend) = &ingress.default_backend {
            self.default_backend(name, ingress, backend);
        }
    }

    fn path(&mut self, name: &ObjectName, ingress: &Ingress, host: Option<&str>, rule: &PathRule, secure: bool) {
        let route = self.route(name, ingress, &rule.path, rule.kind.clone(), &rule.backend, secure);
        if !self.done.table.host_mut(host).add(route) {
            let (host, path) = (host.unwrap_or("*"), &rule.path);
            let message = format!("the path {path} of host {host} is served for an older Ingress, or an earlier rule");
            self.note(name, "Conflict", message, false);
        }
    }

    /// It takes what no path of its hosts matches, and what is for no host, unless an older one does.
    fn default_backend(&mut self, name: &ObjectName, ingress: &Ingress, backend: &BackendRef) {
        let secure = ingress.tls.iter().any(|tls| tls.hosts.is_empty());
        let route = self.route(name, ingress, "/", Match::Start, backend, secure);
        for rule in &ingress.rules {
            let host = self.done.table.host_mut(rule.host.as_deref());
            host.default.get_or_insert_with(|| route.clone());
        }
        if ingress.rules.is_empty() {
            self.done.table.default.get_or_insert(route);
        }
    }

    fn route(
        &mut self,
        name: &ObjectName,
        ingress: &Ingress,
        path: &str,
        kind: Match,
        backend: &BackendRef,
        secure: bool,
    ) -> Arc<Route> {
        let limiter = self.known.limiter(name, &ingress.settings);
        let backend = self.backend(name, &ingress.settings, backend);
        let settings = ingress.settings.clone();
        Arc::new(Route { ingress: name.clone(), path: path.to_owned(), kind, settings, backend, secure, limiter })
    }

    fn backend(&mut self, ingress: &ObjectName, settings: &Settings, wanted: &BackendRef) -> Arc<Backend> {
        let key = (ingress.0.clone(), wanted.service.clone());
        let full = format!("{}/{}:{}", ingress.0, wanted.service, wanted.port);
        let (addresses, spoken) = match self.addresses(&key, &wanted.port, true) {
            Ok(found) => found,
            Err(why) => {
                self.note(ingress, "BackendMissing", why, true);
                (Vec::new(), None)
            }
        };
        let protocol = settings.protocol.or(spoken).unwrap_or_default();
        // The same service may be reached by several protocols.
        self.known.backend(Backend::new(format!("{full} {protocol:?}"), protocol, addresses))
    }

    /// Where a port of a service leads, and what it says that it speaks.
    fn addresses(
        &self,
        name: &ObjectName,
        port: &PortRef,
        follow: bool,
    ) -> Result<(Vec<Address>, Option<crate::annotations::Protocol>), String> {
        let Some(service) = self.world.services.get(name) else {
            return Err(format!("the service {}/{} does not exist", name.0, name.1));
        };
        if let Some(target) = &service.external_name {
            let number = match port {
                PortRef::Number(number) => Some(*number),
                PortRef::Name(_) => service.port(port).map(|port| port.port),
            };
            let number = number.ok_or_else(|| no_port(name, port))?;
            // A service of this cluster behind the name: the machine's resolver would not know it.
            if let Some(inner) = in_cluster(target).filter(|_| follow) {
                return self.addresses(&inner, &PortRef::Number(number), false);
            }
            return Ok((vec![Address::Name(target.trim_end_matches('.').to_owned(), number)], None));
        }
        let port = service.port(port).ok_or_else(|| no_port(name, port))?;
        let endpoints = self.world.endpoints(name, &port.name);
        Ok((endpoints.into_iter().map(Address::Socket).collect(), port.protocol))
    }

    fn certificates(&mut self, name: &ObjectName, ingress: &Ingress) {
        for tls in &ingress.tls {
            let Some(secret) = &tls.secret else { continue };
            let hosts: Vec<String> =
                if tls.hosts.is_empty() { ingress.hosts().cloned().collect() } else { tls.hosts.clone() };
            let secret = (name.0.clone(), secret.clone());
            match self.world.secrets.get(&secret).map(|pair| &pair.certified) {
                Some(Ok(certified)) => hosts.iter().for_each(|host| self.done.table.certificates.add(host, certified)),
                Some(Err(why)) => {
                    let message = format!("the Secret {} cannot be used for TLS: {why}", secret.1);
                    self.note(name, "CertificateUnusable", message, true);
                }
                None => {
                    let message =
                        format!("the Secret {} with the certificate does not exist; our own is shown", secret.1);
                    self.note(name, "CertificateMissing", message, true);
                }
            }
            if ingress.asks != Asks::Nobody && !hosts.is_empty() {
                self.want(secret, hosts, name, ingress.asks == Asks::CertManager);
            }
        }
    }

    /// Several Ingresses may share a Secret: it is for all of their hosts.
    fn want(&mut self, secret: ObjectName, hosts: Vec<String>, ingress: &ObjectName, of_cert_manager: bool) {
        let known = self.done.wanted.iter_mut().find(|wanted| wanted.secret == secret);
        let wanted = match known {
            Some(wanted) => {
                wanted.hosts.extend(hosts);
                wanted.of_cert_manager &= of_cert_manager;
                wanted
            }
            None => {
                self.done.wanted.push(Wanted { secret, hosts, ingress: ingress.clone(), of_cert_manager });
                let Some(wanted) = self.done.wanted.last_mut() else { return };
                wanted
            }
        };
        wanted.hosts.sort_unstable();
        wanted.hosts.dedup();
    }
}

fn no_port(name: &ObjectName, port: &PortRef) -> String {
    format!("the service {}/{} has no TCP port {port}", name.0, name.1)
}

/// The service behind a name such as `web.shop.svc.cluster.local`.
fn in_cluster(name: &str) -> Option<ObjectName> {
    let name = name.trim_end_matches('.');
    let mut labels = name.strip_suffix(".svc.cluster.local").or_else(|| name.strip_suffix(".svc"))?.split('.');
    let (service, namespace) = (labels.next()?, labels.next()?);
    labels.next().is_none().then(|| (namespace.to_owned(), service.to_owned()))
}
