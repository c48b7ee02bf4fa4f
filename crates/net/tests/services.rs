//! Services and DNS as clients in pods, on the host and beyond see them: the whole of [`Network::run`] on a real kernel.

mod common;
#[path = "common/api.rs"]
mod fake;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use common::{Host, Pod, World, ask, config, connect, greet, on_host, pod, read_line, run, serve_tcp, serve_udp};
use fake::Api;
use mycelium_linux::netns;
use mycelium_net::Network;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 20);

struct Bed {
    network: Network,
    api: Api,
    world: World,
}

/// Runs a test beside the network's own loop.
fn with_services<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F + Send) {
    on_host(|Host { world }| async move {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config();
        config.host_resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(&config.host_resolv_conf, format!("nameserver {}\n", World::ADDRESS)).unwrap();
        let network = Network::setup(config).await.unwrap();
        let api = Api::default();
        let (client, running) = (api.client(), network.clone());
        let task = tokio::spawn(async move { running.run(client).await.unwrap() });
        test(Bed { network, api, world }).await;
        assert!(!task.is_finished());
        task.abort();
    });
}

/// Runs blocking work while the network's loop goes on.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits until work succeeds.
async fn until<T: Send + 'static>(what: &str, work: impl Fn() -> Option<T> + Clone + Send + 'static) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = off(work.clone()).await {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn service(name: &str, ip: &str, extra: Json) -> Json {
    let mut spec = json!({"clusterIP": ip, "ports": [{"name": "http", "port": 80}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn slice(service: &str, port: Json, pods: &[Ipv4Addr]) -> Json {
    let endpoints: Vec<Json> = pods.iter().map(|ip| json!({"addresses": [ip.to_string()]})).collect();
    json!({"kind": "EndpointSlice", "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [port], "endpoints": endpoints})
}

fn http() -> Json {
    json!({"name": "http", "port": 8080})
}

async fn backends(network: &Network) -> (Pod, Pod) {
    let (a, b) = (pod(network, "uid-a").await, pod(network, "uid-b").await);
    serve_tcp(&a.namespace, 8080, "a");
    serve_tcp(&b.namespace, 8080, "b");
    (a, b)
}

/// Who answers in twenty tries from a namespace.
fn names(namespace: &std::os::fd::OwnedFd, to: (Ipv4Addr, u16)) -> BTreeSet<String> {
    let tries = |_| netns::run_in(namespace, || greet(to)).unwrap().0;
    (0..20).map(tries).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_virtual_address_spreads_over_its_backends() {
    with_services(|bed| async move {
        let (a, b) = backends(&bed.network).await;
        let client = pod(&bed.network, "uid-client").await;
        let ips = [a.ip, b.ip];
        bed.api.put(slice("web", http(), &ips));
        bed.api.put(service(
            "web",
            "10.78.0.20",
            json!({"type": "NodePort", "externalIPs": ["198.51.100.9"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        ));
        until("the service", || greet((VIP, 80)).ok()).await;
        let host = netns::current().unwrap();
        off(move || {
            assert_eq!(names(&client.namespace, (VIP, 80)), set(&["a", "b"]));
            assert_eq!(client.greet((VIP, 80)).unwrap().1, IpAddr::V4(client.ip), "the client's address is kept");
            assert_eq!(names(&host, (VIP, 80)), set(&["a", "b"]));
            // Node ports: on the node's addresses, on 127.0.0.1, from pods, and from beyond, which keeps its address.
            for address in [World::HOST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 77, 0, 1)] {
                assert_eq!(names(&host, (address, 30080)), set(&["a", "b"]), "{address}");
            }
            assert_eq!(names(&client.namespace, (World::HOST, 30080)), set(&["a", "b"]));
            let (_, peer) = netns::run_in(&bed.world.0, || greet((World::HOST, 30080))).unwrap();
            assert_eq!(peer, IpAddr::V4(World::ADDRESS));
            assert_eq!(names(&client.namespace, (Ipv4Addr::new(198, 51, 100, 9), 80)), set(&["a", "b"]));
            // A pod behind the service reaches itself through it.
            assert_eq!(names(&a.namespace, (VIP, 80)), set(&["a", "b"]));
            // What is not a port of the service is refused at once, and so is the node's own loopback from a pod.
            let start = Instant::now();
            assert_eq!(client.greet((VIP, 81)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            assert!(greet((VIP, 81)).is_err());
            assert!(start.elapsed() < common::SECOND);
        })
        .await;
    });
}

#[test]
fn a_rolling_update_keeps_connections_and_moves_new_ones() {
    with_services(|bed| async move {
        let (a, b) = backends(&bed.network).await;
        let client = pod(&bed.network, "uid-client").await;
        bed.api.put(slice("web", http(), &[a.ip]));
        bed.api.put(service("web", "10.78.0.20", json!({})));
        until("the service", || greet((VIP, 80)).ok()).await;
        let (client, mut old) = off(move || {
            let mut old = netns::run_in(&client.namespace, || connect((VIP, 80))).unwrap();
            assert!(read_line(&mut old).unwrap().starts_with('a'));
            (client, old)
        })
        .await;
        // The first pod ends, the second takes over.
        let mut update = slice("web", http(), &[a.ip, b.ip]);
        update["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        bed.api.put(update);
        let client = std::sync::Arc::new(client);
        let probe = client.clone();
        until("the change of backend", move || (probe.greet((VIP, 80)).unwrap().0 == "b").then_some(())).await;
        let (network, gone) = (bed.network.clone(), a);
        off(move || {
            assert_eq!(names(&client.namespace, (VIP, 80)), set(&["b"]));
            old.write_all(b"still here\n").unwrap();
            assert_eq!(read_line(&mut old).unwrap(), "still here");
            drop((network, gone));
        })
        .await;
        // The last one goes: refused at once.
        bed.api.put(slice("web", http(), &[]));
        let refused = || greet((VIP, 80)).err().filter(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        until("the refusal", refused).await;
    });
}

#[test]
fn a_client_stays_with_its_backend() {
    with_services(|bed| async move {
        let (a, b) = backends(&bed.network).await;
        bed.api.put(slice("web", http(), &[a.ip, b.ip]));
        bed.api.put(service("web", "10.78.0.20", json!({"sessionAffinity": "ClientIP"})));
        until("the service", || greet((VIP, 80)).ok()).await;
        let mut seen = BTreeSet::new();
        for n in 0..8 {
            let client = pod(&bed.network, &format!("uid-client-{n}")).await;
            let names = off(move || names(&client.namespace, (VIP, 80))).await;
            assert_eq!(names.len(), 1);
            seen.extend(names);
        }
        assert_eq!(seen.len(), 2, "eight clients all had the same backend");
        // Another backend more does not move a client; losing its own does.
        let host = netns::current().unwrap();
        let mine = off(move || names(&host, (VIP, 80))).await.pop_first().unwrap();
        let stays = if mine == "a" { b.ip } else { a.ip };
        bed.api.put(slice("web", http(), &[stays]));
        until("the move", move || greet((VIP, 80)).ok().filter(|(name, _)| *name != mine)).await;
    });
}

#[test]
fn udp_flows_leave_a_backend_that_is_gone() {
    with_services(|bed| async move {
        let (a, b) = (pod(&bed.network, "uid-a").await, pod(&bed.network, "uid-b").await);
        serve_udp(&a.namespace, 8053, "a");
        serve_udp(&b.namespace, 8053, "b");
        let port = json!({"name": "dns", "port": 8053, "protocol": "UDP"});
        bed.api.put(slice("udp", port.clone(), &[a.ip]));
        bed.api.put(service(
            "udp",
            "10.78.0.20",
            json!({"ports": [{"name": "dns", "port": 5300, "protocol": "UDP", "nodePort": 30053}]}),
        ));
        let client = pod(&bed.network, "uid-client").await;
        let socket = netns::run_in(&client.namespace, || UdpSocket::bind("0.0.0.0:0")).unwrap();
        let socket = std::sync::Arc::new(socket);
        let first = socket.clone();
        until("the service", move || ask(&first, (VIP, 5300)).ok().filter(|name| name == "a")).await;
        let host = off(|| {
            let host = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(ask(&host, (World::HOST, 30053)).unwrap(), "a");
            host
        })
        .await;
        bed.api.put(slice("udp", port, &[b.ip]));
        // The same socket, so the same flow.
        until("the move", move || ask(&socket, (VIP, 5300)).ok().filter(|name| name == "b")).await;
        let host = std::sync::Arc::new(host);
        until("the move of the node port", move || ask(&host, (World::HOST, 30053)).ok().filter(|name| name == "b"))
            .await;
    });
}

#[test]
fn load_balancers_get_the_nodes_address_and_pods_their_host_ports() {
    with_services(|bed| async move {
        let (a, b) = backends(&bed.network).await;
        bed.api.put(slice("lb", http(), &[a.ip]));
        bed.api.put(service("lb", "10.78.0.20", json!({"type": "LoadBalancer"})));
        bed.api.put(
            json!({"kind": "Pod", "metadata": {"name": "b"}, "status": {"phase": "Running", "podIP": b.ip.to_string()},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080, "hostPort": 8088}]}]}}),
        );
        let world = std::sync::Arc::new(bed.world.0);
        let outside = world.clone();
        let (name, peer) =
            until("the balancer", move || netns::run_in(&*outside, || greet((World::HOST, 80))).ok()).await;
        assert_eq!((name.as_str(), peer), ("a", IpAddr::V4(World::ADDRESS)));
        until("the host port", move || {
            netns::run_in(&*world, || greet((World::HOST, 8088))).ok().filter(|(name, _)| name == "b")
        })
        .await;
        let api = bed.api.clone();
        let patches = until("the status", move || Some(api.patches()).filter(|patches| !patches.is_empty())).await;
        assert_eq!(patches[0].0, "/api/v1/namespaces/shop/services/lb/status");
        assert_eq!(
            patches[0].1,
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}}})
        );
    });
}

/// The answer of `dig`, one record a line, or the status if there is none.
fn dig(arguments: &str) -> String {
    let dns = format!("@{}", Ipv4Addr::new(10, 78, 0, 10));
    let mut all = vec![dns.as_str(), "+tries=2", "+time=5", "+noall", "+answer", "+comments"];
    all.extend(arguments.split(' '));
    let text = run("dig", &all);
    let records: Vec<&str> = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty()).collect();
    if !records.is_empty() {
        let value = |line: &&str| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
        return records.iter().map(value).collect::<Vec<_>>().join("\n");
    }
    let status = text.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
    status.unwrap_or("nothing").to_owned()
}

/// An upstream server of the world: one address for every name but one, and large answers cut short over UDP.
fn serve_dns(world: &std::os::fd::OwnedFd) {
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{RData, Record, RecordType};
    fn answer(bytes: &[u8], over_tcp: bool) -> Vec<u8> {
        let query = Message::from_vec(bytes).unwrap();
        let question = query.queries[0].clone();
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.add_queries(query.queries.clone());
        match question.query_type() {
            _ if question.name().to_string() == "missing.example." => {
                response.metadata.response_code = ResponseCode::NXDomain
            }
            RecordType::A => {
                response.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(A::new(192, 0, 2, 80))));
            }
            RecordType::TXT if over_tcp => {
                let text = RData::TXT(TXT::new(vec!["x".repeat(250); 10]));
                response.add_answer(Record::from_rdata(question.name().clone(), 60, text));
            }
            RecordType::TXT => response.metadata.truncation = true,
            _ => {}
        }
        response.to_vec().unwrap()
    }
    let (udp, tcp) =
        netns::run_in(world, || Ok((UdpSocket::bind("0.0.0.0:53")?, std::net::TcpListener::bind("0.0.0.0:53")?)))
            .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..length], false), peer);
        }
    });
    std::thread::spawn(move || {
        use std::io::Read;
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).unwrap();
            let answer = answer(&query, true);
            let _ = stream.write_all(&(answer.len() as u16).to_be_bytes());
            let _ = stream.write_all(&answer);
        }
    });
}

#[test]
fn dns_answers_for_the_cluster_and_passes_on_the_rest() {
    with_services(|bed| async move {
        serve_dns(&bed.world.0);
        let (a, b) = backends(&bed.network).await;
        bed.api.put(service("web", "10.78.0.20", json!({})));
        bed.api.put(service("db", "None", json!({})));
        bed.api.put(service("alias", "", json!({"type": "ExternalName", "externalName": "www.example.org"})));
        let mut db = slice("db", http(), &[a.ip, b.ip]);
        db["endpoints"][0]["hostname"] = json!("db-0");
        bed.api.put(db);
        until("the names", || (dig("db.shop.svc.cluster.local") == "10.77.0.2\n10.77.0.3").then_some(())).await;
        let resolv_conf = bed.network.resolv_conf("shop", false, None, None);
        assert!(resolv_conf.contains("nameserver 10.78.0.10") && resolv_conf.contains("search shop.svc.cluster.local"));
        off(move || {
            // What is no question does no harm, and gets no answer or an error.
            netns::run_in(&a.namespace, || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                for bytes in
                    [&b""[..], b"x", &[0xff; 40], &[0; 12], b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3fabc"]
                {
                    socket.send_to(bytes, (Ipv4Addr::new(10, 78, 0, 10), 53))?;
                }
                Ok(())
            })
            .unwrap();
            let from_pod = |arguments: &str| netns::run_in(&a.namespace, || Ok(dig(arguments))).unwrap();
            for (question, expected) in [
                ("web.shop.svc.cluster.local", "10.78.0.20"),
                ("+tcp web.shop.svc.cluster.local", "10.78.0.20"),
                ("+search +domain=shop.svc.cluster.local +ndots=5 web", "10.78.0.20"),
                ("db-0.db.shop.svc.cluster.local", "10.77.0.2"),
                ("SRV _http._tcp.web.shop.svc.cluster.local", "0 100 80 web.shop.svc.cluster.local."),
                ("-x 10.78.0.20", "web.shop.svc.cluster.local."),
                ("AAAA web.shop.svc.cluster.local", "NOERROR"),
                ("none.shop.svc.cluster.local", "NXDOMAIN"),
                ("www.example.org", "192.0.2.80"),
                ("missing.example", "NXDOMAIN"),
                ("alias.shop.svc.cluster.local", "www.example.org.\n192.0.2.80"),
            ] {
                assert_eq!(from_pod(question), expected, "{question}");
            }
            // Cut short over UDP, so asked again over TCP.
            assert!(from_pod("TXT large.example").len() > 2000);
            assert_eq!(from_pod("+ignore TXT large.example"), "NOERROR");
            // Nothing else answers at the DNS address.
            assert_eq!(
                a.greet((Ipv4Addr::new(10, 78, 0, 10), 8080)).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
        })
        .await;
    });
}

#[test]
fn the_api_server_answers_at_the_kubernetes_service() {
    with_services(|bed| async move {
        let client = pod(&bed.network, "uid-client").await;
        serve_tcp(&netns::current().unwrap(), 6443, "api");
        bed.network.set_api(std::net::SocketAddrV4::new(bed.network.gateway(), 6443));
        let client = std::sync::Arc::new(client);
        let greet = move || client.greet((Ipv4Addr::new(10, 78, 0, 1), 443)).ok();
        assert_eq!(until("the API", greet).await.0, "api");
    });
}

#[test]
fn two_instances_live_side_by_side() {
    with_services(|bed| async move {
        let mut other = config();
        (other.instance, other.pod_cidr, other.service_cidr) =
            ("ffffff".into(), "10.87.0.0/16".parse().unwrap(), "10.88.0.0/16".parse().unwrap());
        other.cluster_cidr = other.pod_cidr;
        let other = Network::setup(other).await.unwrap();
        let api = Api::default();
        let task = tokio::spawn({
            let (network, client) = (other.clone(), api.client());
            async move { network.run(client).await }
        });
        let (a, b) = (pod(&bed.network, "uid-a").await, pod(&other, "uid-a").await);
        serve_tcp(&a.namespace, 8080, "a");
        serve_tcp(&b.namespace, 8080, "b");
        bed.api.put(slice("web", http(), &[a.ip]));
        bed.api.put(service("web", "10.78.0.20", json!({})));
        api.put(slice("web", http(), &[b.ip]));
        api.put(service("web", "10.88.0.20", json!({})));
        let there = (Ipv4Addr::new(10, 88, 0, 20), 80);
        until("the service", || greet((VIP, 80)).ok()).await;
        until("the other's service", move || greet(there).ok()).await;
        off(move || {
            assert_eq!(a.greet((VIP, 80)).unwrap().0, "a");
            assert_eq!(b.greet(there).unwrap().0, "b");
            assert_eq!(a.greet(there).unwrap().0, "b");
        })
        .await;
        task.abort();
        mycelium_net::teardown("ffffff").await.unwrap();
        off(|| assert_eq!(greet((VIP, 80)).unwrap().0, "a")).await;
    });
}

#[test]
fn pods_get_through_a_firewall_that_drops_by_policy() {
    on_host(|_| async {
        if mycelium_linux::process::command("iptables").arg("--version").output().is_err() {
            println!("skipped: iptables is not installed");
            return;
        }
        for rule in ["-P FORWARD DROP", "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT"] {
            run("iptables", &rule.split(' ').collect::<Vec<_>>());
        }
        let before = run("iptables", &["-S"]);
        let network = Network::setup(config()).await.unwrap();
        let (a, b) = backends(&network).await;
        assert!(off(move || (a.greet((b.ip, 8080)), a)).await.0.is_err());
        let api = Api::default();
        let task = tokio::spawn({
            let (network, client) = (network.clone(), api.client());
            async move { network.run(client).await }
        });
        let client = std::sync::Arc::new(pod(&network, "uid-client").await);
        let there = client.clone();
        until("the way to other pods", move || there.greet((Ipv4Addr::new(10, 77, 0, 3), 8080)).ok()).await;
        until("the way to DNS", move || {
            netns::run_in(&client.namespace, || connect((Ipv4Addr::new(10, 78, 0, 10), 53))).ok()
        })
        .await;
        task.abort();
        mycelium_net::teardown(common::INSTANCE).await.unwrap();
        assert_eq!(run("iptables", &["-S"]), before);
    });
}

#[test]
fn old_rules_serve_until_a_new_engine_knows_the_cluster() {
    on_host(|_| async {
        let network = Network::setup(config()).await.unwrap();
        let (a, _b) = backends(&network).await;
        let api = Api::default();
        api.put(slice("web", http(), &[a.ip]));
        api.put(service("web", "10.78.0.20", json!({})));
        let first = tokio::spawn({
            let (network, client) = (network.clone(), api.client());
            async move { network.run(client).await }
        });
        until("the service", || greet((VIP, 80)).ok()).await;
        first.abort();
        let _ = first.await;
        let network = Network::setup(config()).await.unwrap();
        off(|| greet((VIP, 80)).unwrap()).await;
        api.delete("services", "web");
        let client = api.client();
        tokio::spawn(async move { network.run(client).await });
        until("the end of the service", || greet((VIP, 80)).err()).await;
    });
}
