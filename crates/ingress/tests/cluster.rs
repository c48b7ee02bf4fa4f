//! The shell with a real API server: what is taken, written and given back as Ingresses come and go.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Secret};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_ingress::{HTTP, HTTPS, Issued, Listen, Options};
use mycelium_store::{Options as StoreOptions, Store, Writer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// An API server and a proxy.
struct Cluster {
    client: Client,
    days: Arc<AtomicI64>,
    proxy: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start(http: Listen, https: Listen) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (days, random) = (Arc::new(AtomicI64::new(0)), AtomicU64::new(1));
        let clock = days.clone();
        let now = move || {
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
            start + SignedDuration::from_hours(24 * clock.load(Ordering::Relaxed))
        };
        let env = Env::new(now, move || random.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let options = StoreOptions { writer: Writer::Task, ..StoreOptions::default() };
        let store = Store::open_file(&directory.path().join("state"), options).expect("a store");
        let pki = Pki::in_memory(env.clone(), &["localhost".to_owned()]).expect("keys");
        let server = ApiServer::new(Config::new(store, env.clone(), pki.clone())).expect("a server");
        server.bootstrap().await.expect("the usual objects");
        let client = Client::new(server.client_service(Identity::internal("test")), "default");
        let authority = pki.ca_pem().to_owned();
        let issue = move |hosts: &[String]| {
            let made = pki.host_cert(hosts).map_err(|error| error.to_string())?;
            Ok(Issued { cert: made.cert, key: made.key })
        };
        let options = Options { http, https, node_ip: Ipv4Addr::new(192, 0, 2, 1), issue: Arc::new(issue), authority };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            // A test that fails stops it too.
            let _ = stopped.await;
        };
        let proxy = tokio::spawn(mycelium_ingress::run(client.clone(), env, options, shutdown));
        Self { client, days, proxy, stop, _directory: directory }
    }

    fn ingresses(&self) -> Api<Ingress> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, host: &str, secret: &str) {
        let ingress = json!({
            "metadata": {"name": name, "annotations": {
                "cert-manager.io/cluster-issuer": "any", "nginx.ingress.kubernetes.io/rate-limit": "5",
            }},
            "spec": {
                "ingressClassName": "nginx", "tls": [{"hosts": [host], "secretName": secret}],
                "rules": [{"host": host, "http": {"paths": [
                    {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
                ]}}],
            },
        });
        let ingress = serde_json::from_value(ingress).expect("an Ingress");
        self.ingresses().create(&PostParams::default(), &ingress).await.expect("created");
    }

    async fn told(&self, reason: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = events.list(&ListParams::default()).await.expect("events").items.into_iter();
        events.filter(|event| event.reason.as_deref() == Some(reason)).filter_map(|event| event.message).collect()
    }

    /// Where the proxy says that it listens.
    async fn listens(&self, annotation: &str) -> Option<SocketAddr> {
        let class = Api::<IngressClass>::all(self.client.clone()).get_opt("mycelium").await.expect("an answer")?;
        class.metadata.annotations?.get(annotation)?.parse().ok()
    }

    async fn certificate(&self, name: &str) -> Option<String> {
        let secret = self.secrets().get_opt(name).await.expect("an answer")?;
        String::from_utf8(secret.data?.get("tls.crt")?.0.clone()).ok()
    }
}

/// Waits until something is there.
async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came about: {what}");
}

async fn first_line(address: SocketAddr, host: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.lines().next().map(str::to_owned)
}

const FREE: Listen = Listen::At(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0));

#[tokio::test(flavor = "multi_thread")]
async fn ports_certificates_and_words_follow_the_ingresses() {
    let cluster = Cluster::start(FREE, FREE).await;
    eventually("the class is there", async || {
        let class = Api::<IngressClass>::all(cluster.client.clone()).get_opt("mycelium").await.expect("an answer")?;
        let default = class.metadata.annotations?.get("ingressclass.kubernetes.io/is-default-class")? == "true";
        default.then_some(())
    })
    .await;
    assert_eq!(cluster.listens(HTTP).await, None, "there is nothing to serve yet");

    cluster.create("one", "a.test", "made").await;
    let http = eventually("it listens", async || cluster.listens(HTTP).await).await;
    let https = cluster.listens(HTTPS).await.expect("both ports are written at once");
    eventually("the rule is served", async || {
        first_line(http, "a.test").await.filter(|line| line.starts_with("HTTP/1.1 308"))
    })
    .await;
    assert!(first_line(http, "b.test").await.is_some_and(|line| line.starts_with("HTTP/1.1 404")));
    assert!(TcpStream::connect(https).await.is_ok());
    eventually("the address is in the status", async || {
        let ingress = cluster.ingresses().get("one").await.expect("an Ingress");
        let point = ingress.status?.load_balancer?.ingress?.into_iter().next()?;
        (point.ip.as_deref() == Some("127.0.0.1")).then_some(())
    })
    .await;
    let made = eventually("a certificate is made", async || cluster.certificate("made").await).await;
    eventually("the annotation that is not served is named", async || cluster.told("NotServed").await.pop()).await;
    eventually("what lasts is told", async || cluster.told("BackendMissing").await.pop()).await;

    // The API server's own name is not to be had, and nobody else's Secret is touched.
    cluster.create("two", "localhost", "refused").await;
    let told = eventually("it is refused", async || cluster.told("CertificateRefused").await.pop()).await;
    assert!(told.contains("\"localhost\" stands for the API server"), "{told}");
    assert_eq!(cluster.certificate("refused").await, None);

    cluster.days.store(200, Ordering::Relaxed);
    touch(&cluster, "first").await;
    assert_eq!(cluster.certificate("made").await.as_ref(), Some(&made));
    cluster.days.store(245, Ordering::Relaxed);
    touch(&cluster, "second").await;
    eventually("it is renewed", async || cluster.certificate("made").await.filter(|now| *now != made)).await;
    assert_eq!(cluster.told("NotServed").await.len(), 2, "once for each Ingress");

    for name in ["one", "two"] {
        cluster.ingresses().delete(name, &DeleteParams::default()).await.expect("deleted");
    }
    eventually("the ports are given back", async || TcpStream::connect(http).await.err()).await;
    eventually("which is written", async || cluster.listens(HTTP).await.is_none().then_some(())).await;
    cluster.stop.send(()).expect("it runs");
    cluster.proxy.await.expect("a clean end");
}

/// Changes an Ingress, so that what has to be done is looked at again.
async fn touch(cluster: &Cluster, value: &str) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"touched": value}}}));
    cluster.ingresses().patch("one", &PatchParams::default(), &patch).await.expect("patched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_and_taken_when_it_is_free() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("an address");
    let cluster = Cluster::start(Listen::At(taken), Listen::Off).await;
    cluster.create("one", "a.test", "made").await;
    let told = eventually("it is told", async || cluster.told("ListenFailed").await.pop()).await;
    assert!(told.contains(&taken.to_string()) && told.contains("--ingress-http"), "{told}");
    drop(other);
    assert_eq!(eventually("it is taken", async || cluster.listens(HTTP).await).await, taken);
}
