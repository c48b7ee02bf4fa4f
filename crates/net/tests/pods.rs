//! Pods on the network of a real kernel.

mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use common::{World, config, greet, ip, on_host, pod, run, serve_tcp};
use mycelium_linux::netns;
use mycelium_net::{NetConfig, NetError, Network, teardown};

#[test]
fn pods_host_and_world_reach_each_other() {
    on_host(|host| async move {
        let network = Network::setup(config()).await.unwrap();
        let (a, b) = (pod(&network, "uid-a").await, pod(&network, "uid-b").await);
        assert_eq!((a.ip, b.ip), (Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)));
        serve_tcp(&a.namespace, 80, "a");
        serve_tcp(&netns::current().unwrap(), 81, "host");
        serve_tcp(&host.world.0, 82, "world");
        assert_eq!(b.greet((a.ip, 80)).unwrap(), ("a".into(), IpAddr::V4(b.ip)));
        assert_eq!(greet((a.ip, 80)).unwrap(), ("a".into(), IpAddr::V4(network.gateway())));
        assert_eq!(a.greet((network.gateway(), 81)).unwrap(), ("host".into(), IpAddr::V4(a.ip)));
        assert_eq!(a.greet((World::ADDRESS, 82)).unwrap(), ("world".into(), IpAddr::V4(World::HOST)));
        // An address of no pod is refused at once instead of leaving the machine.
        let refused = a.greet((Ipv4Addr::new(10, 77, 9, 9), 80)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(greet((Ipv4Addr::new(10, 77, 9, 9), 80)).is_err());
    });
}

#[test]
fn a_pod_cannot_send_under_anothers_address() {
    on_host(|_| async {
        let network = Network::setup(config()).await.unwrap();
        let (a, b) = (pod(&network, "uid-a").await, pod(&network, "uid-b").await);
        let server = netns::run_in(&b.namespace, || UdpSocket::bind("0.0.0.0:9")).unwrap();
        server.set_read_timeout(Some(common::SECOND / 5)).unwrap();
        let target = (b.ip, 9);
        netns::run_in(&a.namespace, || {
            ip("addr add 10.77.0.99/32 dev eth0");
            UdpSocket::bind("10.77.0.99:0")?.send_to(b"false", target)?;
            Ok(())
        })
        .unwrap();
        assert!(server.recv_from(&mut [0; 8]).is_err());
        netns::run_in(&a.namespace, || UdpSocket::bind("0.0.0.0:0")?.send_to(b"true", target).map(|_| ())).unwrap();
        assert_eq!(server.recv_from(&mut [0; 8]).unwrap().0, 4);
    });
}

/// Everything a network leaves on a machine.
fn traces() -> String {
    [
        ip("-br link"),
        ip("route show table all"),
        ip("rule"),
        run("nft", &["list", "tables"]),
        ip("netconf show dev eth0"),
    ]
    .join("\n")
}

#[test]
fn teardown_leaves_the_machine_as_it_was() {
    on_host(|_| async {
        let before = traces();
        let network = Network::setup(config()).await.unwrap();
        let mut other = config();
        (other.instance, other.pod_cidr, other.service_cidr) =
            ("ffffff".into(), "10.87.0.0/16".parse().unwrap(), "10.88.0.0/16".parse().unwrap());
        other.cluster_cidr = other.pod_cidr;
        Network::setup(other).await.unwrap();
        let _pod = pod(&network, "uid-a").await;
        teardown("a1b2c3").await.unwrap();
        let between = traces();
        assert!(
            !between.contains("a1b2c3") && between.contains("ffffff") && between.contains("forwarding on"),
            "{between}"
        );
        teardown("ffffff").await.unwrap();
        assert_eq!(traces(), before);
        teardown("ffffff").await.unwrap();
    });
}

#[test]
fn a_restarted_engine_adopts_its_pods() {
    on_host(|_| async {
        let a = {
            let network = Network::setup(config()).await.unwrap();
            pod(&network, "uid-a").await
        };
        serve_tcp(&a.namespace, 80, "a");
        let network = Network::setup(config()).await.unwrap();
        assert_eq!(network.pods(), [("uid-a".to_owned(), a.ip)]);
        assert!(greet((a.ip, 80)).is_ok());
        let b = pod(&network, "uid-b").await;
        assert_ne!(a.ip, b.ip);
        // A pod whose sandbox is made anew keeps its address.
        drop(a.namespace);
        let again = pod(&network, "uid-a").await;
        assert_eq!(again.ip, a.ip);
        assert!(network.attach_pod(netns::create().unwrap(), "uid-a").await.is_ok());
        network.detach_pod("uid-a").await.unwrap();
        network.detach_pod("uid-a").await.unwrap();
        assert_eq!(network.pods().len(), 1);
        let other = NetConfig {
            pod_cidr: "10.99.0.0/16".parse().unwrap(),
            cluster_cidr: "10.99.0.0/16".parse().unwrap(),
            ..config()
        };
        let error = Network::setup(other).await.err().unwrap().to_string();
        assert!(error.contains("10.77.0.0/16") && error.contains("--pod-cidr"), "{error}");
    });
}

/// Not a promise, which is kept by a release build alone on its machine, but it would show a wait that has no place here.
#[test]
fn setting_up_is_quick() {
    on_host(|_| async {
        let start = tokio::time::Instant::now();
        let network = Network::setup(config()).await.unwrap();
        let ready = start.elapsed();
        let namespaces: Vec<_> = (0..20).map(|_| netns::create().unwrap()).collect();
        let start = tokio::time::Instant::now();
        for (index, namespace) in namespaces.into_iter().enumerate() {
            network.attach_pod(namespace, &format!("uid-{index}")).await.unwrap();
        }
        let pods = start.elapsed();
        let start = tokio::time::Instant::now();
        teardown(common::INSTANCE).await.unwrap();
        println!("set up in {ready:?}, each of 20 pods in {:?}, torn down in {:?}", pods / 20, start.elapsed());
        assert!(ready < common::SECOND && pods < 20 * common::SECOND / 4);
    });
}

#[test]
fn ranges_in_use_are_refused() {
    on_host(|_| async {
        let before = traces();
        ip("route add 10.77.4.0/24 dev eth0");
        let error = Network::setup(config()).await.err().unwrap();
        assert!(matches!(error, NetError::Conflict(_)), "{error}");
        assert!(error.to_string().contains("eth0") && error.to_string().contains("--pod-cidr"), "{error}");
        ip("route del 10.77.4.0/24 dev eth0");
        assert_eq!(traces(), before, "a failed setup leaves nothing");
    });
}
