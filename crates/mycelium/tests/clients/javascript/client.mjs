// The JavaScript client against the cluster of KUBECONFIG: the verbs and streams that programs use. Ends with `done`.
import assert from 'node:assert/strict';
import net from 'node:net';
import { PassThrough, Readable } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const namespace = 'javascript';
const kubeconfig = new k8s.KubeConfig();
kubeconfig.loadFromDefault();
const core = kubeconfig.makeApiClient(k8s.CoreV1Api);
const apps = kubeconfig.makeApiClient(k8s.AppsV1Api);

async function refused(code, reason, promise) {
  const error = await promise.then(() => assert.fail(`${reason} was expected`), (error) => error);
  assert.equal(error.code, code, String(error));
  assert.match(String(error.body), new RegExp(reason));
}

function text(stream) {
  const parts = [];
  stream.on('data', (part) => parts.push(part));
  return () => Buffer.concat(parts).toString();
}

async function configMaps() {
  const body = { metadata: { name: 'words', labels: { set: 'a' } }, data: { one: '1' } };
  const made = await core.createNamespacedConfigMap({ namespace, body });
  await refused(409, 'AlreadyExists', core.createNamespacedConfigMap({ namespace, body }));
  const patched = await core.patchNamespacedConfigMap(
    { namespace, name: 'words', body: { data: { one: null, two: '2' } } },
    k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch),
  );
  assert.deepEqual(patched.data, { two: '2' });
  await refused(409, 'the object has been modified', core.replaceNamespacedConfigMap({ namespace, name: 'words', body: made }));
  await core.deleteNamespacedConfigMap({ namespace, name: 'words' });
  await refused(404, 'configmaps .+words.+ not found', core.readNamespacedConfigMap({ namespace, name: 'words' }));
}

// An informer tells of what there was, what comes, changes and goes, in order.
async function informer() {
  await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'before', labels: { seen: 'yes' } } } });
  const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'seen=yes' });
  const informer = k8s.makeInformer(kubeconfig, `/api/v1/namespaces/${namespace}/configmaps`, list, 'seen=yes');
  const seen = [];
  const enough = new Promise((resolve, reject) => {
    for (const verb of ['add', 'update', 'delete']) {
      informer.on(verb, (map) => {
        seen.push(`${verb} ${map.metadata.name}`);
        if (verb === 'delete') resolve();
      });
    }
    informer.on('error', reject);
  });
  await informer.start();
  await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'after', labels: { seen: 'yes' } } } });
  await core.patchNamespacedConfigMap(
    { namespace, name: 'after', body: [{ op: 'add', path: '/data', value: { a: 'b' } }] },
    k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.JsonPatch),
  );
  await core.deleteNamespacedConfigMap({ namespace, name: 'after' });
  await enough;
  await informer.stop();
  assert.deepEqual(seen, ['add before', 'add after', 'update after', 'delete after']);
}

async function pod() {
  const command = 'echo serving; while read line; do echo got $line; done & exec nc -ll -p 9000 -e cat';
  const body = {
    metadata: { name: 'echo' },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'main', image: 'busybox:test', command: ['sh', '-c', command], readinessProbe: { tcpSocket: { port: 9000 }, periodSeconds: 1 } }],
    },
  };
  await core.createNamespacedPod({ namespace, body });
  await new Promise((resolve, reject) => {
    const ready = (pod) => pod.status?.conditions?.some((c) => c.type === 'Ready' && c.status === 'True');
    const watch = new k8s.Watch(kubeconfig);
    const request = watch.watch(`/api/v1/namespaces/${namespace}/pods`, { fieldSelector: 'metadata.name=echo' },
      async (type, pod) => { if (ready(pod)) { (await request).abort(); resolve(); } },
      (error) => (error && error.name !== 'AbortError' ? reject(error) : undefined));
  });
}

async function exec() {
  const [out, err] = [new PassThrough(), new PassThrough()];
  const [said, complained] = [text(out), text(err)];
  const stdin = Readable.from(['hello']);
  const status = await new Promise((resolve, reject) => {
    new k8s.Exec(kubeconfig)
      .exec(namespace, 'echo', 'main', ['sh', '-c', 'head -c 5; echo bad >&2; exit 3'], out, err, stdin, false, resolve)
      .catch(reject);
  });
  assert.equal(status.reason, 'NonZeroExitCode');
  assert.deepEqual(status.details.causes, [{ reason: 'ExitCode', message: '3' }]);
  assert.equal(said(), 'hello');
  assert.equal(complained(), 'bad\n');
}

async function logs() {
  const out = new PassThrough();
  const line = new Promise((resolve) => out.once('data', (part) => resolve(part.toString())));
  const abort = await new k8s.Log(kubeconfig).log(namespace, 'echo', 'main', out, { follow: true });
  assert.equal(await line, 'serving\n');
  abort.abort();
}

async function portForward() {
  const forward = new k8s.PortForward(kubeconfig);
  const server = net.createServer((socket) => forward.portForward(namespace, 'echo', [9000], socket, null, socket));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const socket = net.connect(server.address().port, '127.0.0.1');
  const sent = Buffer.alloc(300_000, 'spore');
  let received = 0;
  const all = new Promise((resolve, reject) => {
    socket.on('data', (part) => { received += part.length; if (received === sent.length) resolve(); });
    socket.on('error', reject);
  });
  socket.write(sent);
  await all;
  socket.destroy();
  server.close();
}

async function objects() {
  const client = k8s.KubernetesObjectApi.makeApiClient(kubeconfig);
  const spec = {
    apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied', namespace }, data: { by: 'javascript' },
  };
  const applied = await client.patch(spec, undefined, undefined, 'javascript', true, k8s.PatchStrategy.ServerSideApply);
  assert.equal(applied.metadata.managedFields[0].manager, 'javascript');
  const read = await client.read(spec);
  assert.equal(read.data.by, 'javascript');
}

// The deployment's controller writes, too: who comes second reads again.
async function scale(name, replicas) {
  for (;;) {
    const body = await apps.readNamespacedDeploymentScale({ namespace, name });
    body.spec.replicas = replicas;
    try {
      return await apps.replaceNamespacedDeploymentScale({ namespace, name, body });
    } catch (error) {
      if (error.code !== 409) throw error;
    }
  }
}

async function deployment() {
  const labels = { app: 'sleeper' };
  const body = {
    metadata: { name: 'sleeper' },
    spec: {
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: { terminationGracePeriodSeconds: 1, containers: [{ name: 'main', image: 'busybox:test', command: ['sleep', '100000'] }] },
      },
    },
  };
  await apps.createNamespacedDeployment({ namespace, body });
  await scale('sleeper', 2);
  for (;;) {
    const { status } = await apps.readNamespacedDeploymentStatus({ namespace, name: 'sleeper' });
    if (status.readyReplicas === 2) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

await core.createNamespace({ body: { metadata: { name: namespace } } });
await configMaps();
await informer();
await pod();
await exec();
await logs();
await portForward();
await objects();
await deployment();
await core.deleteNamespace({ name: namespace });
console.log('done');
process.exit(0);
