//! What people bring along: Helm, the clients for Python and JavaScript, operators. `scripts/setup.sh test` takes each from
//! its own registry; where that does not answer at all, the test of that one says so and is passed over.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::support::{Engine, cache, command, eventually, mycelium, output, run};

const GO: &str = "https://proxy.golang.org/";
const PYPI: &str = "https://pypi.org/simple/kubernetes/";
const NPM: &str = "https://registry.npmjs.org/";

/// What setup has made of a registry's packages; nothing where the registry cannot be reached.
fn installed(path: PathBuf, registry: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let answers = output(command("curl").args(["-sS", "-m", "20", "-o", "/dev/null", registry])).status.success();
    assert!(!answers, "{} is missing, and {registry} answers: run `scripts/setup.sh test`", path.display());
    eprintln!("\n*** PASSED OVER, NOTHING IS SHOWN: {registry} does not answer, {} is missing\n", path.display());
    None
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn client(engine: &Engine, program: &Path, script: &Path) {
    engine.import_busybox();
    let said = run(command(&program.display().to_string()).arg(script).env("KUBECONFIG", engine.kubeconfig()));
    assert!(said.ends_with("done\n"), "{said}");
}

#[test]
fn the_python_client_lists_watches_executes_and_forwards() {
    let Some(python) = installed(cache().join("clients/python/bin/python"), PYPI) else { return };
    client(&Engine::start(), &python, &data().join("python/client.py"));
}

#[test]
fn the_javascript_client_watches_executes_and_forwards() {
    let Some(folder) = installed(cache().join("clients/javascript"), NPM) else { return };
    // A module is resolved from where the script lies.
    let script = folder.join("client.mjs");
    std::fs::copy(data().join("javascript/client.mjs"), &script).expect("copied");
    client(&Engine::start(), Path::new("node"), &script);
}

struct Helm<'a> {
    engine: &'a Engine,
    program: PathBuf,
}

impl Helm<'_> {
    fn command(&self, line: &str) -> Command {
        let mut helm = command(&self.program.display().to_string());
        helm.env("KUBECONFIG", self.engine.kubeconfig())
            .env("HOME", self.engine.dir())
            .env("HELM_NAMESPACE", "orchard");
        helm.current_dir(data()).args(line.split(' '));
        helm
    }

    fn run(&self, line: &str) -> String {
        run(&mut self.command(line))
    }

    fn fails(&self, line: &str) -> String {
        let said = output(&mut self.command(line));
        assert!(!said.status.success(), "helm {line} was expected to fail");
        String::from_utf8_lossy(&said.stderr).into_owned()
    }

    fn value(&self, object: &str, path: &str) -> String {
        self.engine.kubectl(&["get", object, "-n", "orchard", "-o", &format!("jsonpath={path}")])
    }
}

#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls() {
    let Some(program) = installed(cache().join("bin/helm"), GO) else { return };
    let engine = Engine::start();
    engine.import_busybox();
    let helm = Helm { engine: &engine, program };
    installs(&helm);
    upgrades(&helm);
    goes_back(&helm);
    uninstalls(&helm);
}

fn installs(helm: &Helm<'_>) {
    let told = helm.run("install apples chart --create-namespace --wait --timeout 180s");
    assert!(told.contains("STATUS: deployed") && told.contains("The orchard apples says hello."), "{told}");
    assert_eq!(helm.value("deployment/apples", "{.status.readyReplicas}"), "2");
    assert_eq!(helm.value("configmap/apples", "{.data.autoscaling}"), "true");
    assert_eq!(helm.value("configmap/apples", "{.data.cluster}"), helm.value("ns/kube-system", "{.metadata.uid}"));
    assert_eq!(helm.value("fruits/apples", "{.spec.colour}"), "red");
    assert_eq!(helm.engine.kubectl(&["logs", "-n", "orchard", "job/apples-pre-install"]), "pre-install 1\n");
    let planned = helm.run("install pears chart --dry-run=server");
    assert!(planned.contains("STATUS: pending-install") && planned.contains("kind: Fruit"), "{planned}");
    assert!(helm.fails("install apples chart").contains("cannot re-use a name that is still in use"));
    assert!(helm.run("test apples --logs").contains("hello"));
}

fn upgrades(helm: &Helm<'_>) {
    let planned = helm.run("upgrade apples chart --set greeting=bye --dry-run=server");
    assert!(planned.contains("index.html: \"bye\""), "{planned}");
    assert_eq!(helm.value("configmap/apples", "{.data.index\\.html}"), "hello");
    let told = helm.run("upgrade apples chart --set greeting=bye,replicas=1 --wait --timeout 180s");
    assert!(told.contains("REVISION: 2"), "{told}");
    assert!(helm.run("test apples --logs").contains("bye"));
    assert_eq!(helm.value("deployment/apples", "{.status.replicas} {.status.updatedReplicas}"), "1 1");
    assert_eq!(helm.engine.kubectl(&["logs", "-n", "orchard", "job/apples-post-upgrade"]), "post-upgrade 2\n");
    let refused = helm.fails("upgrade apples chart --set replicas=-1");
    assert!(refused.contains("replicas"), "{refused}");
    // One that never becomes ready is taken back.
    let refused =
        helm.fails("upgrade apples chart --reuse-values --set image=nowhere.invalid/none:1 --atomic --timeout 10s");
    assert!(refused.contains("has been rolled back due to atomic being set"), "{refused}");
    assert_eq!(helm.value("deployment/apples", "{.spec.template.spec.containers[0].image}"), "busybox:test");
}

fn goes_back(helm: &Helm<'_>) {
    assert!(helm.run("rollback apples 1 --wait --timeout 180s").contains("Rollback was a success!"));
    assert_eq!(helm.value("configmap/apples", "{.data.index\\.html}"), "hello");
    assert_eq!(helm.value("deployment/apples", "{.status.readyReplicas}"), "2");
    let history = helm.run("history apples");
    for part in ["superseded", "failed", "Rollback to 1", "deployed"] {
        assert!(history.contains(part), "{part} in {history}");
    }
    assert!(helm.run("list").contains("orchard-0.1.0"));
    assert!(
        helm.run("status apples --show-resources").contains("deployment.apps/apples")
            || helm.run("status apples").contains("deployed")
    );
    // What Helm believes to be there is what is there.
    let manifest = helm.engine.dir().join("manifest.yaml");
    std::fs::write(&manifest, helm.run("get manifest apples")).expect("written");
    helm.engine.kubectl(&["diff", "-n", "orchard", "-f", &manifest.display().to_string()]);
}

fn uninstalls(helm: &Helm<'_>) {
    assert_eq!(helm.run("uninstall apples --wait --timeout 180s"), "release \"apples\" uninstalled\n");
    assert_eq!(helm.run("list -a -q"), "");
    let left = helm.engine.kubectl(&["get", "deployments,services,fruits,secrets", "-n", "orchard", "-o", "name"]);
    assert_eq!(left, "");
    // The rollback took the hooks of the first revision.
    assert_eq!(helm.engine.kubectl(&["logs", "-n", "orchard", "job/apples-post-delete"]), "post-delete 1\n");
}

/// An operator that runs outside of the cluster; dies with the test.
struct Operator {
    command: Command,
    child: Child,
}

impl Operator {
    fn start(engine: &Engine, program: &Path, name: &str) -> Self {
        let log = std::fs::File::create(engine.dir().join(format!("{name}.log"))).expect("a log");
        let mut command = command(&program.display().to_string());
        command.args(["--name", name, "--namespace", "default"]).stderr(log);
        command.env("KUBECONFIG", engine.dir().join("gardener.kubeconfig"));
        let child = command.spawn().expect("an operator");
        Self { command, child }
    }

    /// Starts it again if it has ended: one that cannot renew its lock in time, on a busy machine, ends, and is a pod's to
    /// start again elsewhere.
    fn keep(&mut self) {
        if self.child.try_wait().expect("its state").is_some() {
            self.child = self.command.spawn().expect("an operator");
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("gone");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The definition of gardens, and a user who may be a gardener and nothing else.
fn prepare() -> Engine {
    let engine = Engine::start();
    engine.import_busybox();
    engine.kubectl(&["apply", "-f", &data().join("garden.yaml").display().to_string()]);
    engine.kubectl(&["wait", "--for=condition=Established", "crd/gardens.example.com", "--timeout=60s"]);
    let mut add = command(mycelium());
    add.args(["user", "add", "gardener", "--role", "gardener", "-n", "default", "--data-dir"]).arg(engine.dir());
    run(add.arg("-o").arg(engine.dir().join("gardener.kubeconfig")));
    engine
}

/// Waits for wanted and ready plants and, where it is given, for who tends them.
fn wait_garden(engine: &Engine, operators: &mut [&mut Operator], expected: &str) {
    let path = "jsonpath={.spec.size} {.status.ready} {.status.gardener}";
    eventually(expected, || {
        operators.iter_mut().for_each(|operator| operator.keep());
        let found = engine.kubectl(&["get", "garden/roses", "-o", path]);
        if found.starts_with(expected) { Ok(()) } else { Err(found) }
    });
}

/// Two of the same operator: the first tends until it is killed, then the second does. With a lock, both run at once.
fn gardeners(program: &Path, locked: bool) {
    let engine = prepare();
    let mut first = Operator::start(&engine, program, "first");
    engine.apply("apiVersion: example.com/v1\nkind: Garden\nmetadata: {name: roses}\nspec: {size: 2}");
    wait_garden(&engine, &mut [&mut first], "2 2 first");
    assert_eq!(engine.value("deployment/roses", "{.metadata.ownerReferences[0].kind}"), "Garden");
    let second = locked.then(|| Operator::start(&engine, program, "second"));
    engine.kubectl(&["patch", "garden", "roses", "--type=merge", "-p", r#"{"spec":{"size":1}}"#]);
    wait_garden(&engine, &mut [&mut first], "1 1");
    // What is owned and taken away is made again.
    let uid = engine.value("deployment/roses", "{.metadata.uid}");
    engine.kubectl(&["delete", "deployment", "roses"]);
    eventually("the deployment is back", || {
        first.keep();
        let found =
            output(&mut engine.kubectl_command(&["get", "deployment", "roses", "-o", "jsonpath={.metadata.uid}"]));
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        if found.is_empty() || found == uid { Err(found) } else { Ok(()) }
    });
    first.kill();
    let mut second = second.unwrap_or_else(|| Operator::start(&engine, program, "second"));
    engine.kubectl(&["patch", "garden", "roses", "--type=merge", "-p", r#"{"spec":{"size":3}}"#]);
    wait_garden(&engine, &mut [&mut second], "3 3 second");
    let shown = engine.kubectl(&["get", "gardens"]);
    assert_eq!(shown.lines().next().map(str::trim_end), Some("NAME    SIZE   READY   GARDENER"), "{shown}");
    let generation = engine.value("garden/roses", "{.metadata.generation}");
    assert_eq!(engine.value("garden/roses", "{.status.observedGeneration}"), generation);
    let events = engine.kubectl(&["get", "events", "--field-selector", "involvedObject.kind=Garden"]);
    assert!(events.contains("garden/roses"), "{events}");
    if locked {
        engine.kubectl(&["wait", "--for=condition=Ready", "garden/roses", "--timeout=60s"]);
        assert_ne!(engine.value("lease/gardener", "{.spec.leaseTransitions}"), "0");
    }
    // The finalizer holds the garden while nobody tends it.
    second.kill();
    engine.kubectl(&["delete", "garden", "roses", "--wait=false"]);
    assert_ne!(engine.value("garden/roses", "{.metadata.deletionTimestamp}"), "");
    let mut third = Operator::start(&engine, program, "third");
    eventually("the garden and what it owned are gone", || {
        third.keep();
        let left = engine.kubectl(&["get", "gardens,deployments", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(engine.value("configmap/graveyard", "{.data.roses}"), "third");
}

#[test]
fn an_operator_of_controller_runtime_tends_leads_and_buries() {
    let Some(program) = installed(cache().join("bin/operator"), GO) else { return };
    gardeners(&program, true);
}

#[test]
fn an_operator_of_kubes_runtime_tends_and_buries() {
    let program = Path::new(mycelium()).with_file_name("examples").join("gardener");
    assert!(program.exists(), "{} is missing: `cargo build -p mycelium --examples`", program.display());
    gardeners(&program, false);
}
