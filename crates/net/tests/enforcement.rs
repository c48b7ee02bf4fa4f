//! Network policies on a real kernel: the whole of [`Network::run`] between pods, the node and the world.

mod common;
#[path = "common/api.rs"]
mod fake;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Host, Pod, World, config, connect, greet, on_host, pod, read_line, serve_tcp, serve_udp};
use fake::Api;
use mycelium_linux::netns;
use mycelium_net::Network;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

struct Bed {
    network: Network,
    api: Api,
    world: World,
}

fn with_policies<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F + Send) {
    on_host(|Host { world }| async move {
        let network = Network::setup(config()).await.unwrap();
        let api = Api::default();
        for (name, team) in [("shop", "shop"), ("kube-system", "system")] {
            api.put(json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "team": team}}}));
        }
        let (client, running) = (api.client(), network.clone());
        let task = tokio::spawn(async move { running.run(client).await.unwrap() });
        test(Bed { network, api, world }).await;
        assert!(!task.is_finished());
        task.abort();
    });
}

async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn until<T: Send + 'static>(what: &str, work: impl Fn() -> Option<T> + Clone + Send + 'static) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = off(work.clone()).await {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Bed {
    /// A pod with the label `app`, known to the API before it is connected, as the node does it. Its port 8080 is called `http`.
    async fn pod(&self, name: &str) -> Arc<Pod> {
        let uid = format!("uid-{name}");
        self.api.put(json!({"kind": "Pod", "metadata": {"name": name, "uid": uid, "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}));
        Arc::new(pod(&self.network, &uid).await)
    }

    fn policy(&self, name: &str, spec: Json) {
        self.api.put(json!({"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec}));
    }
}

/// One quick try to connect. A slow machine may make an allowed connection look forbidden, so tests wait for what is
/// allowed, and for the end of what is not.
fn reaches(namespace: &OwnedFd, to: (Ipv4Addr, u16)) -> bool {
    let try_it = || {
        let stream = TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_millis(400));
        stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_millis(400)))?;
            stream.read_exact(&mut [0])
        })
    };
    netns::run_in(namespace, try_it).is_ok()
}

async fn opens(what: &str, from: &Arc<Pod>, to: (Ipv4Addr, u16)) {
    let from = from.clone();
    until(what, move || reaches(&from.namespace, to).then_some(())).await;
}

async fn closes(what: &str, from: &Arc<Pod>, to: (Ipv4Addr, u16)) {
    let from = from.clone();
    until(what, move || (!reaches(&from.namespace, to)).then_some(())).await;
}

/// Whether what is sent over an established connection comes back.
fn echoes(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0]), Ok(1))
}

#[test]
fn pods_talk_as_policies_say() {
    with_policies(|bed| async move {
        let (db, web, other) = (bed.pod("db").await, bed.pod("web").await, bed.pod("other").await);
        for port in [8080, 9001, 9002] {
            serve_tcp(&db.namespace, port, "db");
        }
        let address = db.ip;
        let at = move |port| (address, port);
        opens("the way without policies", &other, at(8080)).await;
        bed.policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
        closes("the default denial", &web, at(8080)).await;
        assert!(off(move || greet(at(8080))).await.is_ok(), "the node always reaches its pods");
        bed.policy("db", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]},
            {"from": [{"ipBlock": {"cidr": "10.77.0.0/16", "except": [format!("{}/32", web.ip)]}}], "ports": [{"port": 9000, "endPort": 9001}]},
        ]}));
        opens("web to the named port", &web, at(8080)).await;
        opens("other to the range", &other, at(9001)).await;
        for (from, port) in [(&other, 8080), (&web, 9001), (&other, 9002)] {
            assert!(
                !off({
                    let from = from.clone();
                    move || reaches(&from.namespace, at(port))
                })
                .await,
                "{port}"
            );
        }
        // Through a service, its backend is judged; a pod reaches itself; so does the world where it is allowed.
        bed.api.put(json!({"kind": "EndpointSlice", "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": [db.ip.to_string()]}]}));
        bed.api.put(json!({"kind": "Service", "metadata": {"name": "db"},
            "spec": {"type": "NodePort", "clusterIP": "10.78.0.20", "ports": [{"port": 80, "nodePort": 30080}]}}));
        let vip = (Ipv4Addr::new(10, 78, 0, 20), 80);
        opens("web to the service", &web, vip).await;
        opens("the pod to itself through its service", &db, vip).await;
        closes("other to the service", &other, vip).await;
        let world = Arc::new(bed.world);
        assert!(
            !off({
                let world = world.clone();
                move || reaches(&world.0, (World::HOST, 30080))
            })
            .await
        );
        bed.api.put(json!({"kind": "NetworkPolicy", "metadata": {"name": "world"}, "spec": {"podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 8080}]}]}}));
        until("the world through the node port", move || reaches(&world.0, (World::HOST, 30080)).then_some(())).await;
    });
}

#[test]
fn a_policy_cuts_what_is_established_and_lets_it_go_on() {
    with_policies(|bed| async move {
        let (db, web) = (bed.pod("db").await, bed.pod("web").await);
        serve_tcp(&db.namespace, 8080, "db");
        let to = (db.ip, 8080);
        let web2 = web.clone();
        let stream = off(move || {
            let mut stream = netns::run_in(&web2.namespace, || connect(to)).unwrap();
            read_line(&mut stream).unwrap();
            assert!(echoes(&mut stream));
            stream
        })
        .await;
        let stream = Arc::new(Mutex::new(stream));
        let (cut, again) = (stream.clone(), stream);
        bed.policy("deny", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
        until("the cut", move || (!echoes(&mut cut.lock().unwrap())).then_some(())).await;
        // Nothing was forgotten: as soon as it is allowed, TCP repeats what was lost.
        bed.api.delete("networkpolicies", "deny");
        until("the way back", move || echoes(&mut again.lock().unwrap()).then_some(())).await;
    });
}

#[test]
fn egress_to_dns_only() {
    with_policies(|bed| async move {
        let (db, web) = (bed.pod("db").await, bed.pod("web").await);
        serve_tcp(&db.namespace, 8080, "db");
        serve_udp(&db.namespace, 8081, "db");
        let host = netns::current().unwrap();
        serve_tcp(&host, 7000, "host");
        let (node, pods) = ((Ipv4Addr::new(10, 77, 0, 1), 7000), (db.ip, 8080));
        opens("the node without policies", &web, node).await;
        bed.policy(
            "dns",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [{
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
            "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]}),
        );
        closes("the way to pods", &web, pods).await;
        closes("the way to the node", &web, node).await;
        let web2 = web.clone();
        until("DNS", move || netns::run_in(&web2.namespace, || connect((Ipv4Addr::new(10, 78, 0, 10), 53))).ok()).await;
        let udp = move || {
            let socket = netns::run_in(&web.namespace, || UdpSocket::bind("0.0.0.0:0")).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.send_to(b"?", (db.ip, 8081)).unwrap_or(0);
            assert!(socket.recv(&mut [0; 8]).is_err(), "UDP to a pod is not allowed");
        };
        off(udp).await;
    });
}

/// A pod that is connected after the policy is isolated from its first packet on.
#[test]
fn a_new_pod_is_isolated_before_it_can_speak() {
    with_policies(|bed| async move {
        let db = bed.pod("db").await;
        serve_tcp(&db.namespace, 8080, "db");
        bed.policy("out", json!({"podSelector": {"matchLabels": {"role": "none"}}, "policyTypes": ["Egress"]}));
        bed.policy("deny", json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db", "probe"]}]}, "policyTypes": ["Egress"]}));
        let probe = bed.pod("probe").await;
        opens("an unrestricted pod", &probe, (db.ip, 8080)).await;
        let gate = bed.pod("gate").await;
        closes("the policy", &gate, (db.ip, 8080)).await;
        for n in 0..5 {
            let fresh = bed.pod(&format!("fresh-{n}")).await;
            let to = (db.ip, 8080);
            assert!(!off(move || reaches(&fresh.namespace, to)).await, "pod {n} spoke before it was isolated");
        }
    });
}

/// How long a policy takes to bite, from the API's answer to the last datagram that gets through, with 100 pods selected.
/// Prints, and judges nothing: `cargo test -p mycelium-net --test enforcement how_long -- --nocapture`.
#[test]
fn how_long_a_policy_takes_for_100_pods() {
    with_policies(|bed| async move {
        let (from, to) = (bed.pod("from").await, bed.pod("to").await);
        for n in 0..98 {
            // Pods of another node: they are in the same maps and sets.
            bed.api
                .put(json!({"kind": "Pod", "metadata": {"name": format!("p{n}"), "labels": {"app": format!("p{n}")}},
                "spec": {"containers": []}, "status": {"podIP": format!("10.79.0.{}", n + 1)}}));
        }
        let (last, stop) = (Arc::new(Mutex::new(Instant::now())), Arc::new(AtomicBool::new(false)));
        let server = netns::run_in(&to.namespace, || UdpSocket::bind("0.0.0.0:9")).unwrap();
        let client = netns::run_in(&from.namespace, || UdpSocket::bind("0.0.0.0:0")).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        client.connect((to.ip, 9)).unwrap();
        let (seen, ended) = (last.clone(), stop.clone());
        let reading = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if server.recv(&mut [0; 8]).is_ok() {
                    *seen.lock().unwrap() = Instant::now();
                }
            }
        });
        let ended = stop.clone();
        let sending = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let _ = client.send(b"?");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let quiet = |last: &Mutex<Instant>| last.lock().unwrap().elapsed() > Duration::from_millis(250);
        let mut taken = Vec::new();
        for round in 0..7 {
            let flowing = last.clone();
            until("datagrams", move || (!quiet(&flowing)).then_some(())).await;
            let begun = Instant::now();
            bed.policy(
                "deny",
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "p1"}}}]}]}),
            );
            let silent = last.clone();
            until("silence", move || quiet(&silent).then_some(())).await;
            taken.push(last.lock().unwrap().duration_since(begun));
            println!("round {round}: {:?}", taken[round]);
            bed.api.delete("networkpolicies", "deny");
        }
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
        sending.join().unwrap();
        taken.sort();
        println!(
            "policy change to enforcement, 100 pods: min {:?}, median {:?}, max {:?}",
            taken[0], taken[3], taken[6]
        );
    });
}
