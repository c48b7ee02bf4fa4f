//! The table: which route a host and a path lead to.
//!
//! ```text
//!  host ─► its own rules ─► rules of *.parent ─► rules without a host
//!                └─► exact path ─► longest of prefix, pattern and beginning ─► default backend of the host ─► of all
//! ```
//!
//! A host that has rules of its own does not fall back to the rules without a host, as with ingress-nginx. Among paths the
//! longest wins, and of the same length the exact one, then the prefix (Kubernetes, "Ingress", "Multiple matches").

use std::collections::HashMap;
use std::sync::Arc;

use crate::annotations::Settings;
use crate::certificates::Certificates;
use crate::limit::Limiter;
use crate::rules::backend::Backend;
use crate::rules::model::{Match, ObjectName};

/// Everything the proxy needs to answer.
#[derive(Default)]
pub struct Table {
    /// Hosts with rules of their own.
    pub hosts: HashMap<String, Host>,
    /// By what follows `*.`.
    pub wildcards: HashMap<String, Host>,
    /// Rules without a host.
    pub any: Host,
    /// Where what nothing matches goes.
    pub default: Option<Arc<Route>>,
    /// What TLS shows.
    pub certificates: Certificates,
}

/// The rules of a host.
#[derive(Default)]
pub struct Host {
    exact: HashMap<String, Arc<Route>>,
    prefixes: HashMap<String, Arc<Route>>,
    /// Patterns and beginnings, the longest first.
    others: Vec<Arc<Route>>,
    /// Where what no path matches goes.
    pub default: Option<Arc<Route>>,
}

/// Where a request goes, and what happens to it on the way.
#[derive(Debug)]
pub struct Route {
    /// The Ingress it is of.
    pub ingress: ObjectName,
    /// The path of its rule.
    pub path: String,
    /// How the path is compared.
    pub kind: Match,
    /// What happens to requests.
    pub settings: Arc<Settings>,
    /// Where they go.
    pub backend: Arc<Backend>,
    /// The host has a certificate.
    pub secure: bool,
    /// How much one client may ask for.
    pub limiter: Option<Arc<Limiter>>,
}

impl Host {
    /// Adds a route; one that is there already for the same path and kind stays. Says whether it was added.
    pub fn add(&mut self, route: Arc<Route>) -> bool {
        let path = route.path.clone();
        match &route.kind {
            Match::Exact => insert(&mut self.exact, path, route),
            // A slash at the end of a prefix means nothing.
            Match::Prefix => insert(&mut self.prefixes, path.trim_end_matches('/').to_owned(), route),
            Match::Start | Match::Pattern(_) => {
                let pattern = matches!(route.kind, Match::Pattern(_));
                let same =
                    |other: &Arc<Route>| other.path == path && matches!(other.kind, Match::Pattern(_)) == pattern;
                if self.others.iter().any(same) {
                    return false;
                }
                let longer = |other: &Arc<Route>| other.path.len() >= path.len();
                let at = self.others.partition_point(longer);
                self.others.insert(at, route);
                true
            }
        }
    }

    /// The route of a path in its normal form.
    pub fn route(&self, path: &str) -> Option<&Arc<Route>> {
        if let Some(exact) = self.exact.get(path) {
            return Some(exact);
        }
        let prefix = self.longest_prefix(path);
        let at_least = prefix.map_or(0, |route| route.path.len());
        let longer = self.others.iter().take_while(|route| route.path.len() > at_least);
        let other = longer.into_iter().find(|route| match &route.kind {
            Match::Pattern(pattern) => pattern.is_match(path),
            _ => path.starts_with(&route.path),
        });
        other.or(prefix).or(self.default.as_ref())
    }

    fn longest_prefix(&self, path: &str) -> Option<&Arc<Route>> {
        if self.prefixes.is_empty() {
            return None;
        }
        let mut rest = path.strip_suffix('/').unwrap_or(path);
        loop {
            if let Some(route) = self.prefixes.get(rest) {
                return Some(route);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.prefixes.values()).chain(&self.others).chain(&self.default)
    }
}

fn insert(routes: &mut HashMap<String, Arc<Route>>, path: String, route: Arc<Route>) -> bool {
    let free = !routes.contains_key(&path);
    routes.entry(path).or_insert(route);
    free
}

impl Table {
    /// The rules for a host.
    pub fn host(&self, host: &str) -> &Host {
        let own = self.hosts.get(host);
        own.or_else(|| self.wildcards.get(host.split_once('.')?.1)).unwrap_or(&self.any)
    }

    /// The rules for a host as an Ingress writes it, made if there are none.
    pub fn host_mut(&mut self, host: Option<&str>) -> &mut Host {
        match host {
            None => &mut self.any,
            Some(host) => match host.strip_prefix("*.") {
                Some(parent) => self.wildcards.entry(parent.to_owned()).or_default(),
                None => self.hosts.entry(host.to_owned()).or_default(),
            },
        }
    }

    /// The route of a request: a host in lower case without port, and a path in its normal form.
    pub fn route(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.host(host).route(path).or(self.default.as_ref())
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let hosts = self.hosts.values().chain(self.wildcards.values()).chain([&self.any]);
        hosts.flat_map(Host::routes).chain(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn route(kind: Match, path: &str) -> Arc<Route> {
        Arc::new(Route {
            ingress: ObjectName::default(),
            path: path.to_owned(),
            kind,
            settings: Arc::default(),
            backend: Arc::default(),
            secure: false,
            limiter: None,
        })
    }

    fn host(routes: &[(Match, &str)]) -> Host {
        let mut host = Host::default();
        for (kind, path) in routes {
            host.add(route(kind.clone(), path));
        }
        host
    }

    /// The examples of Kubernetes' page on Ingress, row by row.
    #[test]
    fn paths_match_as_kubernetes_says() {
        use Match::{Exact, Prefix};
        type Case = (&'static [(Match, &'static str)], &'static str, Option<&'static str>);
        let cases: [Case; 19] = [
            (&[(Prefix, "/")], "/any/path", Some("/")),
            (&[(Exact, "/foo")], "/foo", Some("/foo")),
            (&[(Exact, "/foo")], "/bar", None),
            (&[(Exact, "/foo")], "/foo/", None),
            (&[(Exact, "/foo/")], "/foo", None),
            (&[(Prefix, "/foo")], "/foo", Some("/foo")),
            (&[(Prefix, "/foo")], "/foo/", Some("/foo")),
            (&[(Prefix, "/foo/")], "/foo", Some("/foo/")),
            (&[(Prefix, "/aaa/bb")], "/aaa/bbb", None),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbb", Some("/aaa/bbb")),
            (&[(Prefix, "/aaa/bbb/")], "/aaa/bbb", Some("/aaa/bbb/")),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbb/ccc", Some("/aaa/bbb")),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbbxyz", None),
            (&[(Prefix, "/"), (Prefix, "/aaa")], "/aaa/ccc", Some("/aaa")),
            (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/aaa/bbb", Some("/aaa/bbb")),
            (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/ccc", Some("/")),
            (&[(Prefix, "/aaa")], "/ccc", None),
            (&[(Prefix, "/foo"), (Exact, "/foo")], "/foo", Some("/foo")),
            (&[(Match::Start, "/fo"), (Prefix, "/")], "/foo", Some("/fo")),
        ];
        for (routes, path, expected) in cases {
            let host = host(routes);
            assert_eq!(host.route(path).map(|route| route.path.as_str()), expected, "{routes:?} {path}");
        }
        let both = host(&[(Prefix, "/foo"), (Exact, "/foo")]);
        assert!(matches!(both.route("/foo").expect("a route").kind, Exact));
    }

    #[test]
    fn hosts_match_exactly_then_by_one_label_then_any() {
        let mut table = Table::default();
        for (host, path) in [(Some("a.test"), "/own"), (Some("*.test"), "/wild"), (None, "/any")] {
            table.host_mut(host).add(route(Match::Exact, path));
        }
        let found = |host: &str, path: &str| table.route(host, path).is_some();
        assert!(found("a.test", "/own") && !found("a.test", "/wild") && !found("a.test", "/any"));
        assert!(found("b.test", "/wild") && !found("b.test", "/any"));
        assert!(found("x.b.test", "/any") && found("test", "/any") && found("", "/any"));
    }

    fn kind_and_path() -> impl Strategy<Value = (Match, String)> {
        let path = "(/[ab]{1,2}){0,3}/?".prop_map(|path| if path.is_empty() { "/".to_owned() } else { path });
        (0..4, path).prop_map(|(kind, path)| {
            let kind = match kind {
                0 => Match::Exact,
                1 => Match::Prefix,
                2 => Match::Start,
                _ => Match::Pattern(Regex::new(&format!("^{path}")).expect("plain")),
            };
            (kind, path)
        })
    }

    /// What the longest match is, by looking at every rule.
    fn judge<'a>(routes: &'a [(Match, String)], path: &str) -> Option<(usize, &'a str)> {
        let segments = |text: &str| text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let matches = |(kind, rule): &&(Match, String)| match kind {
            Match::Exact => rule == path,
            Match::Prefix => segments(path).starts_with(&segments(rule)),
            Match::Start | Match::Pattern(_) => path.starts_with(rule.as_str()),
        };
        let rank = |kind: &Match| match kind {
            Match::Exact => 2,
            Match::Prefix => 1,
            Match::Start | Match::Pattern(_) => 0,
        };
        let found = routes.iter().filter(matches).map(|(kind, rule)| (rank(kind), rule.as_str()));
        // An exact match is as long as any can be.
        found.max_by_key(|(rank, rule)| (*rank == 2, rule.trim_end_matches('/').len(), *rank))
    }

    proptest! {
        #[test]
        fn the_longest_match_wins(
            routes in prop::collection::vec(kind_and_path(), 0..8),
            path in "(/[ab]{1,2}){1,4}/?",
        ) {
            let borrowed: Vec<_> = routes.iter().map(|(kind, path)| (kind.clone(), path.as_str())).collect();
            let found = host(&borrowed).route(&path).map(|route| route.path.trim_end_matches('/').len());
            let judged = judge(&routes, &path).map(|(_, rule)| rule.trim_end_matches('/').len());
            prop_assert_eq!(found, judged);
        }
    }
}
