//! `resolv.conf`: reading the host's, and writing a pod's.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use k8s_openapi::api::core::v1::PodDNSConfig;

/// What systemd-resolved hides behind its own address.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
/// What resolvers accept at most.
const MAX_NAMESERVERS: usize = 3;

/// The host's resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Host {
    /// Reads settings; empty when there are none.
    pub fn read(path: &Path) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    /// Parses a `resolv.conf`.
    pub fn parse(text: &str) -> Self {
        let mut host = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => host
                    .nameservers
                    .extend(words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok())),
                // The last of these lines counts.
                Some("search" | "domain") => {
                    host.searches = words.filter(|word| *word != ".").map(str::to_owned).collect()
                }
                Some("options") => host.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        host
    }

    /// Settings that also work from inside a pod, where the host's loopback addresses mean something else.
    fn for_pods(&self) -> Self {
        let usable = |host: &Self| host.nameservers.iter().any(|server| !server.is_loopback());
        let mut host = if usable(self) { self.clone() } else { Self::read(Path::new(RESOLVED_FILE)) };
        host.nameservers.retain(|server| !server.is_loopback());
        Self { searches: self.searches.clone(), options: self.options.clone(), ..host }
    }
}

/// What a pod's file is made from.
pub struct Resolver<'a> {
    /// The cluster DNS address.
    pub dns: Ipv4Addr,
    /// The cluster domain.
    pub domain: &'a str,
    /// The host's settings.
    pub host: &'a Host,
}

impl Resolver<'_> {
    /// The text for a pod.
    pub fn resolv_conf(
        &self,
        namespace: &str,
        host_network: bool,
        policy: Option<&str>,
        config: Option<&PodDNSConfig>,
    ) -> String {
        let mut settings = self.base(namespace, host_network, policy.unwrap_or("ClusterFirst"));
        if let Some(config) = config {
            extend_new(&mut settings.nameservers, config.nameservers.iter().flatten().filter_map(|s| s.parse().ok()));
            extend_new(&mut settings.searches, config.searches.iter().flatten().cloned());
            for option in config.options.iter().flatten() {
                let name = option.name.as_deref().unwrap_or_default();
                let text = option.value.as_ref().map_or(name.to_owned(), |value| format!("{name}:{value}"));
                settings.options.retain(|old| old.split(':').next() != Some(name));
                settings.options.push(text);
            }
        }
        render(&settings)
    }

    fn base(&self, namespace: &str, host_network: bool, policy: &str) -> Host {
        match policy {
            "None" => Host::default(),
            "Default" => self.default(),
            // Pods on the host's network use the host's servers unless they ask for the cluster's by the longer name.
            "ClusterFirst" if host_network => self.host.clone(),
            _ => {
                let domain = self.domain;
                let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
                let searches = own.into_iter().chain(self.host.searches.iter().cloned()).collect();
                Host { nameservers: vec![IpAddr::V4(self.dns)], searches, options: vec!["ndots:5".to_owned()] }
            }
        }
    }

    fn default(&self) -> Host {
        let mut host = self.host.for_pods();
        if host.nameservers.is_empty() {
            // The cluster DNS asks the host's servers, whatever address they have.
            host.nameservers.push(IpAddr::V4(self.dns));
        }
        host
    }
}

fn extend_new<T: PartialEq>(list: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn render(settings: &Host) -> String {
    let mut out = String::new();
    if !settings.searches.is_empty() {
        out += &format!("search {}\n", settings.searches.join(" "));
    }
    for server in settings.nameservers.iter().take(MAX_NAMESERVERS) {
        out += &format!("nameserver {server}\n");
    }
    if !settings.options.is_empty() {
        out += &format!("options {}\n", settings.options.join(" "));
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    use super::*;

    fn conf(policy: &str, config: Option<&PodDNSConfig>) -> String {
        let host =
            Host::parse("# a\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch corp.example\noptions rotate\n");
        let resolver = Resolver { dns: Ipv4Addr::new(10, 96, 0, 10), domain: "cluster.local", host: &host };
        resolver.resolv_conf("shop", false, Some(policy), config)
    }

    #[test]
    fn policies() {
        assert_eq!(
            conf("ClusterFirst", None),
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            conf("Default", None),
            "search corp.example\nnameserver 192.0.2.53\nnameserver fe80::1\noptions rotate\n"
        );
        assert_eq!(conf("None", None), "");
    }

    #[test]
    fn a_pods_own_settings_extend_and_override() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(Into::into),
        };
        let config = PodDNSConfig {
            nameservers: Some(vec!["10.96.0.10".into(), "192.0.2.1".into()]),
            searches: Some(vec!["x.example".into()]),
            options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
        };
        assert_eq!(
            conf("ClusterFirst", Some(&config)),
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example x.example\nnameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            conf("None", Some(&config)),
            "search x.example\nnameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:2 edns0\n"
        );
    }
}
