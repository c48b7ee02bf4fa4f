//! Faults and bad input: one clear paragraph each that says what to do.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Engine, command, eventually, mycelium, output};

/// What a command that must fail says on stderr.
fn complaint(command: &mut std::process::Command) -> String {
    let output = output(command);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_second_engine_on_the_same_directory_is_told_who_is_first() {
    let engine = Engine::start();
    let said = complaint(&mut engine.up_command());
    assert!(said.contains(&format!("pid {}", engine.pid())) && said.contains("mycelium down"), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let engine = Engine::prepare();
    let mut command = command(mycelium());
    command.args(["up", "--listen", &address, "--data-dir"]).arg(engine.dir());
    let said = complaint(&mut command);
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
}

#[test]
fn a_damaged_state_file_is_refused_and_kept() {
    let mut engine = Engine::start();
    engine.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: precious}, data: {a: b}}");
    engine.down();
    let state = engine.dir().join("state");
    let mut bytes = std::fs::read(&state).expect("read");
    let length = bytes.len();
    bytes.truncate(length / 2);
    std::fs::write(&state, &bytes).expect("write");
    let said = complaint(&mut engine.up_command());
    assert!(said.contains("state"), "{said}");
    assert_eq!(std::fs::read(&state).expect("read"), bytes, "nothing was thrown away");
    std::fs::write(&state, b"these are not the bytes of a store, but somebody's notes").expect("write");
    let said = complaint(&mut engine.up_command());
    assert!(said.contains("state"), "{said}");
}

#[test]
fn wrong_flags_and_files_are_explained() {
    let engine = Engine::prepare();
    let mut up = engine.up_command();
    let said = complaint(up.args(["--config", "/no/such/file"]));
    assert!(said.contains("--config /no/such/file"), "{said}");
    let config = engine.dir().join("config.yaml");
    std::fs::write(&config, "lisen: 127.0.0.1:1\n").expect("write");
    let said = complaint(engine.up_command().arg("--config").arg(&config));
    assert!(said.contains("lisen") && said.contains("listen"), "{said}");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let said = complaint(&mut command_as_nobody(&engine));
    assert!(said.contains("root"), "{said}");
}

fn command_as_nobody(engine: &Engine) -> std::process::Command {
    let copy = std::env::temp_dir().join(format!("mycelium-as-nobody-{}", std::process::id()));
    std::fs::copy(mycelium(), &copy).expect("copy");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let mut shell = command("sh");
    shell.arg("-c").arg(format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups {0} up --data-dir {1}/nobody; code=$?; rm -f {0}; exit $code",
        copy.display(),
        engine.dir().display()
    ));
    shell
}

#[test]
fn an_image_that_is_nowhere_is_explained_on_the_pod() {
    let engine = Engine::start();
    engine.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: lost}, spec: {containers: [{name: main, image: 'localhost:1/no/such:image'}]}}",
    );
    eventually("ErrImagePull or ImagePullBackOff", || {
        let reason = engine.value("pod/lost", "{.status.containerStatuses[0].state.waiting.reason}");
        if reason == "ErrImagePull" || reason == "ImagePullBackOff" { Ok(()) } else { Err(reason) }
    });
    let described = engine.kubectl(&["describe", "pod", "lost"]);
    assert!(described.contains("localhost:1/no/such:image") && described.contains("Failed"), "{described}");
}

#[test]
fn bad_requests_get_kubernetes_answers() {
    let engine = Engine::start();
    let cases = [
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: A_b}}",
            "metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain",
        ),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, dta: {}}", "unknown field \"dta\""),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}", "spec.containers: Required value"),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {replicas: three}}", "replicas"),
        ("{apiVersion: v1, kind: Nonsense, metadata: {name: a}}", "no matches for kind \"Nonsense\""),
    ];
    for (manifest, expected) in cases {
        let file = engine.dir().join("bad.yaml");
        std::fs::write(&file, format!("---\n{manifest}")).expect("write");
        let said = engine.kubectl_fails(&["create", "--validate=strict", "-f", &file.display().to_string()]);
        assert!(said.contains(expected), "{manifest}\n{said}");
    }
    let said = engine.kubectl_fails(&["get", "pod", "nobody"]);
    assert!(said.contains("Error from server (NotFound): pods \"nobody\" not found"), "{said}");
}

#[test]
fn what_the_kernel_lacks_for_the_network_is_told_with_its_remedy() {
    let engine = Engine::prepare();
    let tools = tempfile::tempdir().expect("folder");
    let nft = tools.path().join("nft");
    // Answers for its version, and says no to every rule, as where the modules are missing.
    let script = "#!/bin/sh\ncase $1 in --version) echo nftables v1;; *) echo 'Error: Operation not supported' >&2; exit 1;; esac\n";
    std::fs::write(&nft, script).expect("write");
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").expect("PATH"));
    let said = complaint(engine.up_command().env("PATH", path));
    assert!(said.contains("not ready for an engine") && said.contains("Operation not supported"), "{said}");
    assert!(said.contains("load the kernel modules nf_tables"), "{said}");
    assert!(!said.contains("veth"), "what is there is not complained about: {said}");
}
