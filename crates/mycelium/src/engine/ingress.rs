//! The ingress proxy of an engine.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;

use mycelium_api::env::Env;
use mycelium_api::error::chain;
use mycelium_apiserver::pki::Pki;
use mycelium_ingress::{Issued, Options};

use super::config::Config;

/// Serves the cluster's Ingresses until `stopped`.
pub async fn run(
    config: &Config,
    client: kube::Client,
    env: Env,
    pki: Pki,
    node_ip: Ipv4Addr,
    stopped: impl Future<Output = ()>,
) {
    let authority = pki.ca_pem().to_owned();
    let issue = move |hosts: &[String]| {
        let made = pki.host_cert(hosts).map_err(|error| chain(&error))?;
        Ok(Issued { cert: made.cert, key: made.key })
    };
    let (http, https) = (config.ingress_http, config.ingress_https);
    let options = Options { http, https, node_ip, issue: Arc::new(issue), authority };
    mycelium_ingress::run(client, env, options, stopped).await;
}
