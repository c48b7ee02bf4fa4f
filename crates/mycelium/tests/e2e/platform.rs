//! The first seed, verbatim: the Deployment `symphainy-platform` becomes ready, serves, scales and rolls.

use crate::support::{Engine, command, eventually, output, platform_binary, run};

fn manifests() -> String {
    format!("{}/../../examples/platform/", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_seeds_deployment_becomes_ready_and_serves() {
    let engine = Engine::start();
    engine.import_binary(&platform_binary(), "symphainy-platform:latest");
    assert!(engine.greeting.contains("node host-1 Ready"), "{}", engine.greeting);
    engine.kubectl(&["apply", "-f", &manifests()]);
    engine.kubectl(&["rollout", "status", "deploy/symphainy-platform", "--timeout=120s"]);
    engine.wait_value("deploy/symphainy-platform", "{.status.readyReplicas}", "3");

    let address = engine.value("service/symphainy-platform", "{.spec.clusterIP}");
    let health: serde_json::Value =
        serde_json::from_str(&run(command("curl").args(["-fsS", &format!("http://{address}/health")]))).expect("JSON");
    assert_eq!(health["health_percentage"], 100.0);
    assert_eq!(health["services"]["content"], "healthy");

    assert!(engine.kubectl(&["logs", "deploy/symphainy-platform"]).contains("listening on"));
    pulled_by_hand_is_said(&engine);
    unhealthy_below_eighty_percent(&engine);

    engine.kubectl(&["scale", "deploy/symphainy-platform", "--replicas=10"]);
    engine.kubectl(&["rollout", "status", "deploy/symphainy-platform", "--timeout=120s"]);
    let wide = engine.kubectl(&["get", "pods", "-o", "wide", "--no-headers"]);
    assert_eq!(wide.lines().filter(|line| line.contains("1/1") && line.contains("host-1")).count(), 10, "{wide}");
}

/// `:latest` means pull policy Always; without a registry the image loaded by hand serves, and an event says so.
fn pulled_by_hand_is_said(engine: &Engine) {
    eventually("a Warning event about the image loaded by hand", || {
        let events = engine.kubectl(&["get", "events", "--field-selector", "type=Warning", "-o", "wide"]);
        if events.contains("symphainy-platform:latest") { Ok(()) } else { Err(events) }
    });
}

/// Stops services in one pod until fewer than 80 % are healthy, through a port-forward (loopback inside the pod).
fn unhealthy_below_eighty_percent(engine: &Engine) {
    let pod = engine.kubectl(&["get", "pods", "-l", "app=symphainy-platform", "-o", "name"]);
    let pod = pod.lines().next().expect("a pod");
    let forward = crate::clients::PortForward::start(engine, pod, 8000);
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", forward.port);
    for service in ["content", "insights", "operations"] {
        run(command("curl").args(["-fsS", "-X", "PUT", "-d", "stopped", &url(&format!("/services/{service}"))]));
    }
    let answer = output(command("curl").args(["-sS", "-w", "%{http_code}", &url("/health")]));
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(text.ends_with("503") && text.contains("70.0"), "{text}");
    run(command("curl").args(["-fsS", "-X", "PUT", "-d", "running", &url("/services/content")]));
    run(command("curl").args(["-fsS", &url("/health")]));
}
