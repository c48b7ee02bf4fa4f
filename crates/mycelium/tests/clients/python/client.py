"""The Python client against the cluster of KUBECONFIG: the verbs and streams that programs use. Ends with `done`."""

import threading

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream

NAMESPACE = "python"
WEB = "mkdir -p /tmp/www && echo from the pod > /tmp/www/index.html && echo serving && exec httpd -f -p 8080 -h /tmp/www"


def refused(status, reason, call, *args, **kwargs):
    """The call must fail with the HTTP status and the reason."""
    try:
        call(*args, **kwargs)
    except ApiException as error:
        assert error.status == status and reason in error.body, (error.status, error.body)
        return
    raise AssertionError(f"{call.__name__} was not refused")


def config_maps(core):
    """Create, patch in two ways, a conflict, pages, delete."""
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="words", labels={"set": "a"}), data={"one": "1"})
    made = core.create_namespaced_config_map(NAMESPACE, body)
    refused(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, body)
    patched = core.patch_namespaced_config_map("words", NAMESPACE, {"data": {"two": "2", "one": None}})
    assert patched.data == {"two": "2"}, patched.data
    patched = core.patch_namespaced_config_map("words", NAMESPACE, [{"op": "add", "path": "/data/three", "value": "3"}])
    assert patched.data == {"two": "2", "three": "3"}, patched.data
    refused(409, "the object has been modified", core.replace_namespaced_config_map, "words", NAMESPACE, made)
    for number in range(5):
        core.create_namespaced_config_map(
            NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{number}", labels={"set": "b"}))
        )
    names, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="set=b", limit=2, _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue or ""
    assert names == [f"page-{number}" for number in range(5)], names
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="set=b")
    assert len(core.list_namespaced_config_map(NAMESPACE, label_selector="set=b").items) == 0
    core.delete_namespaced_config_map("words", NAMESPACE)
    refused(404, 'configmaps \\"words\\" not found', core.read_namespaced_config_map, "words", NAMESPACE)


def deployment(core, apps):
    """A deployment is watched until it is available, scaled, and its pod's name returned."""
    container = client.V1Container(
        name="web",
        image="busybox:test",
        command=["sh", "-c", WEB],
        readiness_probe=client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=8080), period_seconds=1),
    )
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "web"}),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1),
    )
    spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template)
    apps.create_namespaced_deployment(
        NAMESPACE, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    )

    def wait(count):
        events = watch.Watch()
        for event in events.stream(apps.list_namespaced_deployment, NAMESPACE, timeout_seconds=180):
            assert event["type"] in ("ADDED", "MODIFIED"), event
            if event["object"].status.available_replicas == count:
                events.stop()
                return
        raise AssertionError(f"{count} replicas were not seen")

    wait(1)
    apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 2}})
    wait(2)
    return core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items[0].metadata.name


def watch_resumes(core):
    """A watch that goes on from a version sees what happened since, and nothing before."""
    since = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="late")))
    core.delete_namespaced_config_map("late", NAMESPACE)
    seen = []
    events = watch.Watch()
    for event in events.stream(
        core.list_namespaced_config_map, NAMESPACE, resource_version=since, timeout_seconds=60, allow_watch_bookmarks=True
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            events.stop()
    assert [entry for entry in seen if entry[0] != "BOOKMARK"] == [("ADDED", "late"), ("DELETED", "late")], seen


def streams(core, pod):
    """Logs, exec with stdin and an exit code, port-forward."""
    assert core.read_namespaced_pod_log(pod, NAMESPACE) == "serving\n"
    line = next(watch.Watch().stream(core.read_namespaced_pod_log, pod, NAMESPACE))
    assert line == "serving", line
    out = stream(
        core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=["echo", "hello"], stdout=True, stderr=True
    )
    assert out == "hello\n", out
    shell = stream(
        core.connect_get_namespaced_pod_exec,
        pod,
        NAMESPACE,
        command=["sh"],
        stdin=True,
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    shell.write_stdin("echo to stdout; echo to stderr >&2; exit 7\n")
    shell.run_forever(timeout=60)
    assert (shell.read_stdout(), shell.read_stderr(), shell.returncode) == ("to stdout\n", "to stderr\n", 7)
    forward = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080")
    socket = forward.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
    answer = b""
    while part := socket.recv(4096):
        answer += part
    socket.close()
    assert answer.endswith(b"from the pod\n"), answer
    assert forward.error(8080) is None, forward.error(8080)


def untyped(api):
    """Resources found by discovery; server-side apply; a manifest file's way in."""
    resources = dynamic.DynamicClient(api).resources
    maps = resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"by": "python"}}
    applied = maps.server_side_apply(body, namespace=NAMESPACE, field_manager="python")
    assert applied.metadata.managedFields[0].manager == "python", applied
    body["data"]["by"] = "other"
    try:
        maps.server_side_apply(body, namespace=NAMESPACE, field_manager="other")
        raise AssertionError("no conflict")
    except dynamic.exceptions.ConflictError as error:
        assert 'conflict with \\"python\\"' in error.body.decode(), error.body
    body["metadata"]["name"] = "from-dict"
    utils.create_from_dict(api, body, namespace=NAMESPACE)
    grants = resources.get(api_version="authorization.k8s.io/v1", kind="SelfSubjectAccessReview")
    asked = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    asked["spec"] = {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": NAMESPACE}}
    assert grants.create(asked).status.allowed


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    assert client.VersionApi(api).get_code().git_version.startswith("v1."), "version"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    config_maps(core)
    watch_resumes(core)
    streams(core, deployment(core, apps))
    untyped(api)
    core.delete_namespace(NAMESPACE)
    # Each thread of a program may use the client.
    threads = [threading.Thread(target=core.list_namespace) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done")


main()
