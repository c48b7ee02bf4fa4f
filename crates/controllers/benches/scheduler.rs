//! How fast the scheduler places pods: 10,000 on 1,000 nodes, plain and with constraints between pods.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use k8s_openapi::api::core::v1::{Node, Pod};
use mycelium_controllers::cache::Key;
use mycelium_controllers::scheduler::plan::Board;
use serde_json::{Value, json};

const NODES: usize = 1_000;
const PODS: usize = 10_000;

fn node(index: usize) -> Node {
    let node = json!({
        "metadata": {"name": format!("node-{index}"), "labels": {
            "kubernetes.io/hostname": format!("node-{index}"),
            "topology.kubernetes.io/zone": format!("zone-{}", index % 10),
        }},
        "status": {"allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"}},
    });
    serde_json::from_value(node).expect("a node")
}

fn pod(index: usize, more: &Value) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "default", "name": format!("pod-{index}"), "uid": format!("{index}"),
            "labels": {"app": format!("app-{}", index % 20)}},
        "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "250m", "memory": "500Mi"}}}]},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).expect("a pod")
}

fn place_all(mut board: Board, pods: &[Pod]) -> Board {
    for pod in pods {
        board.set_pod(pod);
        let key = Key::of(pod);
        let node = board.place(&key).expect("room for every pod");
        board.assume(&key, &node);
    }
    board
}

fn benches(criterion: &mut Criterion) {
    let empty = || {
        let mut board = Board::default();
        (0..NODES).for_each(|index| {
            board.set_node(&node(index));
        });
        board
    };
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "app-1"}}}]});
    let apart = json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app": "app-1"}}}}]}}});
    let mut group = criterion.benchmark_group("10000 pods on 1000 nodes");
    group.throughput(Throughput::Elements(PODS as u64)).sample_size(10).measurement_time(Duration::from_secs(10));
    for (name, more) in [("plain", json!({})), ("spread over zones", spread), ("apart by preference", apart)] {
        let pods: Vec<Pod> = (0..PODS).map(|index| pod(index, &more)).collect();
        group.bench_function(name, |bench| {
            bench.iter_batched(empty, |board| place_all(board, &pods), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
