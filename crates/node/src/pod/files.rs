//! The files in `/etc` that the node writes for every pod.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Longest host name that Linux takes.
const HOSTNAME_BYTES_MAX: usize = 63;

/// The pod's host name and, if it has one, its domain name.
pub fn names(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let mut host = own.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    if host.len() > HOSTNAME_BYTES_MAX {
        host.truncate(HOSTNAME_BYTES_MAX);
        host = host.trim_end_matches(['-', '.']).to_owned();
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    (host, subdomain.map(|sub| format!("{sub}.{namespace}.svc.{cluster_domain}")))
}

/// `/etc/hosts` of a pod with its own network.
pub fn hosts(pod: &Pod, ips: &[String], cluster_domain: &str) -> String {
    let (host, domain) = names(pod, cluster_domain);
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = match &domain {
            Some(domain) => writeln!(text, "{ip}\t{host}.{domain}\t{host}"),
            None => writeln!(text, "{ip}\t{host}"),
        };
    }
    text + &aliases(pod.spec.as_ref())
}

/// `/etc/hosts` of a pod that uses the machine's network: the machine's own, and the pod's aliases.
pub fn hosts_of_machine(pod: &Pod, machine: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{machine}{}", aliases(pod.spec.as_ref()))
}

fn aliases(spec: Option<&PodSpec>) -> String {
    let list = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in list {
        let _ = writeln!(
            text,
            "{}\t{}",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n"}, "spec": {
            "containers": [], "subdomain": "web", "hostAliases": [{"ip": "10.1.1.1", "hostnames": ["a", "b"]}]}}))
        .expect("a pod");
        let text = hosts(&pod, &["10.0.0.2".into()], "cluster.local");
        assert!(text.contains("10.0.0.2\tweb-0.web.n.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("10.1.1.1\ta\tb\n"), "{text}");
    }
}
