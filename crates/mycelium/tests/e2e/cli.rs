//! Our own command line in kubectl's place.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::support::{Engine, command, mycelium, output, run};

const TALKERS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: cli}
data: {word: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: talkers, namespace: cli}
spec:
  replicas: 2
  selector: {matchLabels: {app: talkers}}
  template:
    metadata: {labels: {app: talkers}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busybox:test
        env: [{name: WORD, valueFrom: {configMapKeyRef: {name: words, key: word}}}]
        command: [sh, -c, "echo $WORD; exec sleep 100000"]
      - {name: side, image: "busybox:test", command: [sh, -c, "echo beside; exec sleep 100000"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: cli}
"#;

struct Cli<'e> {
    engine: &'e Engine,
    manifest: PathBuf,
}

impl Cli<'_> {
    /// The verb, the namespace, and the rest of the line.
    fn command(&self, line: &str) -> Command {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut command = command(mycelium());
        command.env("KUBECONFIG", self.engine.kubeconfig()).args([verb, "-n", "cli"]);
        command.args(rest.split(' ').filter(|word| !word.is_empty()));
        command
    }

    /// Runs a command that must succeed.
    fn ok(&self, line: &str) -> String {
        run(&mut self.command(line))
    }

    /// Runs a command that fails; gives its exit code and what it says about it.
    fn fails(&self, line: &str) -> (i32, String) {
        let Output { status, stderr, .. } = output(&mut self.command(line));
        (status.code().expect("an exit code"), String::from_utf8_lossy(&stderr).into_owned())
    }

    /// `apply -f` of the manifest with something replaced.
    fn apply(&self, from: &str, to: &str, flags: &str) -> String {
        std::fs::write(&self.manifest, TALKERS.replace(from, to)).expect("manifest");
        self.ok(&format!("apply -f {}{flags}", self.manifest.display()))
    }
}

#[test]
fn our_own_commands_do_what_kubectl_does() {
    let engine = Engine::start();
    engine.import_busybox();
    let cli = Cli { engine: &engine, manifest: engine.dir().join("talkers.yaml") };
    apply_says_what_changed(&cli);
    let met = cli.ok("wait deploy/talkers --for condition=Available --timeout 180");
    assert_eq!(met, "deployment.apps/talkers condition met\n");
    get_shows_tables_and_documents(&cli);
    logs_and_exec_reach_the_containers(&cli);
    describe_tells_the_story(&cli);
    errors_say_what_to_do(&cli);
    delete_waits(&cli);
}

fn apply_says_what_changed(cli: &Cli<'_>) {
    let created = cli.apply("", "", "");
    assert_eq!(created, "namespace/cli created\nconfigmap/words created\ndeployment.apps/talkers created\n");
    let again = cli.apply("", "", "");
    assert_eq!(again.matches(" unchanged\n").count(), 3, "{again}");
    let tried = cli.apply("word: hello", "word: bye", " --dry-run");
    assert!(tried.contains("configmap/words configured (server dry run)"), "{tried}");
    assert!(cli.ok("get cm words -o yaml").contains("word: hello"));
    std::fs::write(&cli.manifest, TALKERS.replace("word: hello", "word: bye")).expect("manifest");
    let (code, error) = cli.fails(&format!("apply --field-manager other -f {}", cli.manifest.display()));
    assert!(
        code == 1 && error.contains("--force-conflicts") && error.contains("conflict with \"mycelium\""),
        "{error}"
    );
}

fn get_shows_tables_and_documents(cli: &Cli<'_>) {
    let wide = cli.ok("get pods -o wide -l app=talkers");
    assert!(wide.lines().count() == 3 && wide.starts_with("NAME ") && wide.contains("NODE"), "{wide}");
    let all = cli.ok("get all");
    for name in ["pod/talkers-", "deployment.apps/talkers ", "replicaset.apps/talkers-"] {
        assert!(all.contains(name), "{name} in {all}");
    }
    assert_eq!(
        cli.ok("get deployments.v1.apps/talkers cm/words -o name"),
        "deployment.apps/talkers\nconfigmap/words\n"
    );
}

fn logs_and_exec_reach_the_containers(cli: &Cli<'_>) {
    assert_eq!(cli.ok("logs deploy/talkers"), "hello\n");
    let all = cli.ok("logs -l app=talkers --all-containers --tail 1");
    assert_eq!((all.matches("] hello\n").count(), all.matches("] beside\n").count()), (2, 2), "{all}");
    assert!(cli.ok("exec deploy/talkers -c side -- hostname").starts_with("talkers-"));
    assert_eq!(cli.fails("exec deploy/talkers -c main -- false").0, 1);
    assert!(cli.fails("exec deploy/talkers -c other -- true").1.contains("it has main, side"));
    let mut cat = cli.command("exec -i deploy/talkers -c main -- cat");
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("mycelium exec");
    cat.stdin.take().expect("piped").write_all(b"through and back").expect("written");
    assert_eq!(cat.wait_with_output().expect("cat ends").stdout, b"through and back");
    // A terminal of its own size, and the command's own exit code.
    let line = format!(
        "stty rows 40 cols 100; {} exec -n cli -it deploy/talkers -c main -- sh -c 'until stty size 2>&1 | grep -v stty; do sleep 0.1; done; exit 3'",
        mycelium()
    );
    let mut script = command("script");
    script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", cli.engine.kubeconfig());
    let Output { status, stdout, .. } = output(&mut script);
    let shown = String::from_utf8_lossy(&stdout);
    assert!(shown.contains("40 100") && status.code() == Some(3), "{status}: {shown}");
}

fn describe_tells_the_story(cli: &Cli<'_>) {
    let pods = cli.ok("describe pods -l app=talkers");
    for part in ["Controlled By:      ReplicaSet/talkers-", "WORD: <key word of config map words>", "Started"] {
        assert!(pods.contains(part), "{part} in {pods}");
    }
    assert!(cli.ok("describe deploy/talkers").contains("2 desired | 2 updated | 2 total | 2 available"));
    assert!(cli.ok("describe node host-1").contains("Memory Requested:"));
}

fn errors_say_what_to_do(cli: &Cli<'_>) {
    let (code, error) = cli.fails("get pods nowhere");
    assert!(code == 1 && error.contains("pods \"nowhere\" not found"), "{error}");
    assert!(cli.fails("get gizmos").1.contains("resource type \"gizmos\""));
    assert_eq!(cli.fails("get").0, 2);
    assert_eq!(cli.fails("wait pods --all --for Ready").0, 2);
    let (code, error) = cli.fails("wait deploy/talkers --for condition=Blooming --timeout 1s");
    assert!(code == 1 && error.contains("deployment.apps/talkers is not as wanted after 1 s"), "{error}");
    assert!(cli.fails("get pods --kubeconfig /nowhere").1.contains("/nowhere cannot be read"));
}

fn delete_waits(cli: &Cli<'_>) {
    let deleted = cli.ok("delete deploy/talkers cm/words");
    assert_eq!(deleted, "deployment.apps \"talkers\" deleted\nconfigmap \"words\" deleted\n");
    cli.ok("wait pods --all --for delete --timeout 180");
    assert_eq!(cli.ok("get pods"), "");
}
