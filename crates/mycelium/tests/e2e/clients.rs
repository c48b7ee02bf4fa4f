//! What kubectl's streams need: logs, exec, attach, cp, port-forward.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use crate::support::{Engine, command, eventually, output, run};

/// A running `kubectl port-forward`.
pub struct PortForward {
    child: Child,
    /// The local port.
    pub port: u16,
}

impl PortForward {
    /// Forwards a free local port to `port` of `object`.
    pub fn start(engine: &Engine, object: &str, port: u16) -> Self {
        let mut child = engine
            .kubectl_command(&["port-forward", object, &format!(":{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("a line").expect("text");
        let port =
            first.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|p| p.parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port: port.unwrap_or_else(|| panic!("no port in {first:?}")) }
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TALKER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    stdin: true
    command: [sh, -c, "echo started; while read line; do echo got $line; done; sleep 100000"]
  - name: echo
    image: busybox:test
    command: [sh, -c, "echo to-stderr >&2; exec nc -ll -p 9000 -e cat"]
"#;

#[test]
fn logs_exec_attach_cp_and_port_forward() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(TALKER);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=120s"]);
    exec(&engine);
    copy(&engine);
    attach(&engine);
    logs(&engine);
    port_forward(&engine);
}

fn exec(engine: &Engine) {
    fn exec<'a>(args: &[&'a str]) -> Vec<&'a str> {
        [&["exec", "talker", "-c", "main"], args].concat()
    }
    assert_eq!(engine.kubectl(&exec(&["--", "echo", "hello"])), "hello\n");
    let failed = output(&mut engine.kubectl_command(&exec(&["--", "sh", "-c", "echo bad >&2; exit 7"])));
    assert_eq!(failed.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("bad"));
    let mut cat = engine
        .kubectl_command(&["exec", "-i", "talker", "-c", "main", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let text = "line\n".repeat(50_000);
    let mut stdin = cat.stdin.take().expect("piped");
    let sent = text.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let output = cat.wait_with_output().expect("wait");
    writer.join().expect("thread").expect("write");
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), text.len(), "all of stdin came back through the pod");
    // A terminal: `script` gives kubectl one; its size reaches the container, soon after the program has started.
    let line = format!(
        "stty rows 33 cols 77; kubectl --kubeconfig {} exec -it talker -c main -- sh -c 'until stty size 2>&1 | grep -v stty; do sleep 0.1; done'",
        engine.kubeconfig().display()
    );
    let shown = run(command("script").args(["-qec", &line, "/dev/null"]));
    assert!(shown.contains("33 77"), "{shown}");
}

fn copy(engine: &Engine) {
    let local = engine.dir().join("payload");
    std::fs::write(&local, vec![7_u8; 300_000]).expect("write");
    engine.kubectl(&["cp", "-c", "main", &local.display().to_string(), "talker:/tmp/payload"]);
    let back = engine.dir().join("back");
    engine.kubectl(&["cp", "-c", "main", "talker:/tmp/payload", &back.display().to_string()]);
    assert_eq!(std::fs::read(&back).expect("read"), std::fs::read(&local).expect("read"));
}

fn attach(engine: &Engine) {
    let mut attach = engine
        .kubectl_command(&["attach", "-i", "talker", "-c", "main"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl");
    let mut stdin = attach.stdin.take().expect("piped");
    writeln!(stdin, "spore").expect("write");
    let mut lines = BufReader::new(attach.stdout.take().expect("piped")).lines();
    let answer = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("got spore")));
    assert!(answer.is_some(), "the container answered over attach");
    attach.kill().expect("kill");
    attach.wait().expect("wait");
}

fn logs(engine: &Engine) {
    let all = engine.kubectl(&["logs", "talker", "-c", "main"]);
    assert!(all.starts_with("started\n") && all.contains("got spore"), "{all}");
    assert_eq!(engine.kubectl(&["logs", "talker", "-c", "main", "--tail=1"]), "got spore\n");
    assert!(engine.kubectl(&["logs", "talker", "-c", "main", "--timestamps"]).starts_with("20"));
    assert_eq!(engine.kubectl(&["logs", "talker", "-c", "echo"]), "to-stderr\n");
    let mut follow = engine
        .kubectl_command(&["logs", "-f", "talker", "-c", "main", "--tail=0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    let seen = std::thread::spawn(move || lines.next());
    // Writes until the follower, which may not be connected yet, has seen one.
    eventually("a followed line", || {
        engine.kubectl(&["exec", "talker", "-c", "main", "--", "sh", "-c", "echo tick > /proc/1/fd/1"]);
        if seen.is_finished() { Ok(()) } else { Err("nothing yet".to_owned()) }
    });
    assert_eq!(seen.join().expect("thread").expect("a line").expect("text"), "tick");
    follow.kill().expect("kill");
    follow.wait().expect("wait");
}

fn port_forward(engine: &Engine) {
    let forward = PortForward::start(engine, "pod/talker", 9000);
    let socket = std::net::TcpStream::connect(("127.0.0.1", forward.port)).expect("connect");
    let (mut writer, reader) = (socket.try_clone().expect("clone"), BufReader::new(socket));
    let text = "0123456789abcdef\n".repeat(20_000);
    let sent = text.clone();
    let sender = std::thread::spawn(move || writer.write_all(sent.as_bytes()));
    let received: usize = reader.lines().take(20_000).map(|line| line.expect("text").len() + 1).sum();
    sender.join().expect("thread").expect("write");
    assert_eq!(received, text.len());
}
