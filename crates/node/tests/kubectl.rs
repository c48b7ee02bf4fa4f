//! The real kubectl against a real container: logs, exec, cp, attach, port-forward. Needs root and kubectl.

mod common;

use std::time::Duration;

use common::Cluster;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

fn shell(script: &str) -> Value {
    json!({"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

const WAIT: &str = "trap 'exit 0' TERM; while true; do sleep 0.05; done";

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> tokio::process::Command {
    let mut command = mycelium_linux::process::command("kubectl");
    let config = cluster.dir.path().join("kubeconfig");
    command.env("HOME", cluster.dir.path()).arg("--kubeconfig").arg(config).args(arguments);
    let mut command = tokio::process::Command::from(command);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_shown_cut_and_followed() {
    let cluster = Cluster::start().await;
    let script = format!("for i in 1 2 3 4; do echo line $i; done; sleep 1; echo late; {WAIT}");
    cluster.create("p", json!({"containers": [shell(&script)]})).await;
    cluster.until_ready("p").await;
    let mut follow = kubectl(&cluster, &["logs", "-f", "p"]).spawn().expect("kubectl");
    let mut lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("late") {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.expect("in time");
        seen.push(line.expect("reads").expect("a line"));
    }
    assert_eq!(seen, ["line 1", "line 2", "line 3", "line 4", "late"]);
    let (ok, out, err) = cluster.kubectl(&["logs", "--tail=2", "p"]).await;
    assert_eq!((ok, out.as_str()), (true, "line 4\nlate\n"), "{err}");
    let (ok, _, err) = cluster.kubectl(&["logs", "--previous", "p"]).await;
    assert!(!ok && err.contains("previous terminated container \"a\" in pod \"p\" not found"), "{err}");
    cluster.delete("p").await;
    assert!(follow.wait().await.expect("ends").success(), "following ends with the container");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_with_their_input_output_and_code() {
    let cluster = Cluster::start().await;
    cluster.create("p", json!({"containers": [shell(WAIT)]})).await;
    cluster.until_ready("p").await;
    let (ok, out, err) = cluster.kubectl(&["exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert!(!ok && out == "out\n" && err.contains("err\n") && err.contains("exit code 7"), "{out} {err}");
    let mut cat = kubectl(&cluster, &["exec", "-i", "p", "--", "cat"]).spawn().expect("kubectl");
    let mut stdin = cat.stdin.take().expect("a pipe");
    stdin.write_all("x".repeat(300_000).as_bytes()).await.expect("writes");
    drop(stdin);
    let out =
        tokio::time::timeout(Duration::from_secs(20), cat.wait_with_output()).await.expect("in time").expect("ends");
    assert_eq!(out.stdout.len(), 300_000, "input ends when the client closes it");
    let (ok, _, err) = cluster.kubectl(&["exec", "p", "--", "nope"]).await;
    assert!(!ok && err.contains("executable file not found in $PATH"), "{err}");
    let file = cluster.dir.path().join("file");
    std::fs::write(&file, "copied\n").expect("writes");
    let (ok, _, err) = cluster.kubectl(&["cp", &file.to_string_lossy(), "p:/tmp/file"]).await;
    assert!(ok, "{err}");
    let (_, out, _) = cluster.kubectl(&["exec", "p", "--", "cat", "/tmp/file"]).await;
    assert_eq!(out, "copied\n");
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attaching_talks_to_the_program_itself() {
    let cluster = Cluster::start().await;
    let mut container = shell("while read line; do echo got $line; done; echo end");
    container["stdin"] = true.into();
    container["stdinOnce"] = true.into();
    cluster.create("p", json!({"restartPolicy": "Never", "containers": [container]})).await;
    cluster.until_ready("p").await;
    let mut attach = kubectl(&cluster, &["attach", "-i", "p"]).spawn().expect("kubectl");
    let mut stdin = attach.stdin.take().expect("a pipe");
    stdin.write_all(b"one\n").await.expect("writes");
    let mut lines = BufReader::new(attach.stdout.take().expect("a pipe")).lines();
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.expect("in time");
    assert_eq!(line.expect("reads").as_deref(), Some("got one"));
    drop(stdin);
    cluster.until("p", |pod| pod["status"]["phase"] == "Succeeded").await;
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_to_loopback_in_the_pod() {
    let cluster = Cluster::start().await;
    let script = "echo hello > /www/index.html; httpd -f -p 127.0.0.1:8080 -h /www";
    cluster.create("p", json!({"containers": [shell(script)]})).await;
    cluster.until_ready("p").await;
    let mut forward = kubectl(&cluster, &["port-forward", "pod/p", ":8080"]).spawn().expect("kubectl");
    let mut lines = BufReader::new(forward.stdout.take().expect("a pipe")).lines();
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.expect("in time");
    let line = line.expect("reads").expect("a line");
    let address = line.split(' ').nth(2).expect("an address").to_owned();
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("connects");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("writes");
        let mut text = String::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text))
            .await
            .expect("in time")
            .expect("reads");
        assert!(text.ends_with("hello\n"), "{text}");
    }
    forward.kill().await.expect("ends");
    cluster.delete("p").await;
    cluster.finish().await;
}
