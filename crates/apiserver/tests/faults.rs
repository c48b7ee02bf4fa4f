//! What is wrong with a request, and what Kubernetes 1.35 answers to it: code, reason and message, word for word.
#![allow(missing_docs)]

mod common;

use common::{Local, local, start};
use serde_json::{Value, json};

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MERGE: &str = "application/merge-patch+json";
const PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// A server with a ConfigMap `here` and a Deployment `web`.
async fn server() -> Local {
    let api = local().await;
    api.post(CMS, &json!({"metadata": {"name": "here"}, "data": {"a": "b"}})).await.expect(201);
    api.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    api
}

struct Case {
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: String,
    code: u16,
    reason: &'static str,
    /// With `…`, only what is before it has to agree.
    message: String,
}

fn case(
    request: (&'static str, &str, &'static str),
    body: impl Into<String>,
    answer: (u16, &'static str),
    message: &str,
) -> Case {
    let (method, path, content_type) = request;
    let (code, reason) = answer;
    Case { method, path: path.into(), content_type, body: body.into(), code, reason, message: message.into() }
}

async fn check(cases: Vec<Case>) {
    let api = server().await;
    let mut faults = Vec::new();
    for case in cases {
        let reply = api.send(case.method, &case.path, case.content_type, case.body.clone()).await;
        let shown: String = case.body.chars().take(60).collect();
        let (code, status) = (reply.code.as_u16(), reply.json());
        let message = status["message"].as_str().unwrap_or_default();
        let agrees = match case.message.split_once('…') {
            Some((start, _)) => message.starts_with(start),
            None => message == case.message,
        };
        let reason = status["reason"].as_str().unwrap_or_default();
        if code != case.code || reason != case.reason || !agrees || status["kind"] != "Status" {
            let (method, path) = (case.method, &case.path);
            faults.push(format!(
                "{method} {path} {shown}\n  got  {code} {reason}: {message}\n  want {} {}: {}",
                case.code, case.reason, case.message
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const BAD: (u16, &str) = (400, "BadRequest");
const INVALID: (u16, &str) = (422, "Invalid");

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
    let start = |rest: &str| format!("{unrecognized}{rest}");
    let json = |body: &str, message: String| case(("POST", CMS, JSON), body, BAD, &message);
    let deep = format!("{{\"metadata\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    check(vec![
        json("", start("couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)")),
        json("{\"a\":", start("couldn't get version/kind; json parse error: unexpected end of JSON input ({\"a\":)")),
        json("{\"a\":1}x", start("couldn't get version/kind; json parse error: invalid character 'x' after top-level value ({\"a\":1}x)")),
        json("{'a':1}", start("couldn't get version/kind; json parse error: invalid character '\\'' looking for beginning of object key string ({'a':1})")),
        json("[]", start("couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)")),
        json(&deep, start("…")),
        case(("POST", CMS, YAML), "a: [", BAD, &start("yaml: …")),
        case(("POST", CMS, "application/vnd.kubernetes.protobuf"), "k8s", BAD,
            &start("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] (6b3873)")),
        case(("POST", CMS, JSON), "x".repeat((3 << 20) + 1), (413, "RequestEntityTooLarge"), "Request entity too large: limit is 3145728"),
        case(("POST", CMS, "text/html"), "x", (415, "UnsupportedMediaType"),
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"),
    ])
    .await;
}

#[tokio::test]
async fn objects_that_are_something_else() {
    let post = |path: &str, body: Value, message: &str| case(("POST", path, JSON), body.to_string(), BAD, message);
    check(vec![
        post(CMS, json!({"apiVersion": "v1", "kind": "Pod"}),
            "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion"),
        post(CMS, deployment("x"),
            "Deployment in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Deployment) to (core.ConfigMap): unknown conversion"),
        post(CMS, json!({"apiVersion": "v1", "kind": "Thing"}),
            "Thing in version \"v1\" cannot be handled as a ConfigMap: no kind \"Thing\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""),
        post(CMS, json!({"apiVersion": "v2", "kind": "ConfigMap"}),
            "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""),
        post("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}}),
            "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"),
        post(CMS, json!({"data": {"a": 1}, "metadata": {"name": "x"}}),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        post(DEPLOYMENTS, json!({"metadata": {"name": "x"}, "spec": {"replicas": "three"}}),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
        post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), json!({"metadata": {"name": "x"}, "spec": {"replicaz": 3}}),
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replicaz\""),
        case(("POST", &format!("{CMS}?fieldValidation=Strict"), JSON), "{\"metadata\":{\"name\":\"x\",\"name\":\"y\"}}", BAD,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"metadata.name\""),
        case(("POST", &format!("{CMS}?fieldValidation=Strict"), YAML), "metadata:\n  name: x\ndata:\n  a: b\n  a: c\n", BAD,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 5: key \"a\" already set in map"),
        post(CMS, json!({"metadata": {"name": "x", "namespace": "other"}}),
            "the namespace of the provided object does not match the namespace sent on the request"),
        post(CMS, json!({"metadata": {"name": "x", "resourceVersion": "7"}}),
            "resourceVersion should not be set on objects to be created"),
    ])
    .await;
}

#[tokio::test]
async fn objects_that_are_invalid_or_late() {
    let here = format!("{CMS}/here");
    let invalid = |body: Value, message: &str| case(("POST", CMS, JSON), body.to_string(), INVALID, message);
    let put = |body: Value, answer: (u16, &'static str), message: &str| {
        case(("PUT", &here, JSON), body.to_string(), answer, message)
    };
    let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    check(vec![
        invalid(json!({"metadata": {"name": "A_b"}}), &format!("ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": {subdomain}")),
        invalid(json!({"metadata": {}}), "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"),
        case(("POST", CMS, JSON), "null", INVALID, "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"),
        case(("POST", CMS, JSON), json!({"metadata": {"name": "here"}}).to_string(), (409, "AlreadyExists"), "configmaps \"here\" already exists"),
        case(("POST", &format!("{CMS}?dryRun=Some"), JSON), "{}", INVALID, "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\""),
        put(json!({"metadata": {"name": "here", "resourceVersion": "1"}}), (409, "Conflict"),
            "Operation cannot be fulfilled on configmaps \"here\": the object has been modified; please apply your changes to the latest version and try again"),
        put(json!({"metadata": {"name": "there"}}), BAD, "the name of the object (there) does not match the name on the URL (here)"),
        put(json!({"metadata": {}}), BAD, "the name of the object (here based on URL) was undeterminable: name must be provided"),
        put(json!({"metadata": {"name": "here", "namespace": "x"}}), BAD, "the namespace of the provided object does not match the namespace sent on the request"),
        put(json!({"metadata": {"name": "here", "uid": "1"}}), (409, "Conflict"),
            "Operation cannot be fulfilled on configmaps \"here\": StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/here, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: 1, UID in object meta: …"),
        case(("PUT", &format!("{CMS}/none"), JSON), json!({"metadata": {"name": "none"}}).to_string(), (404, "NotFound"), "configmaps \"none\" not found"),
        case(("POST", "/api/v1/namespaces/none/configmaps", JSON), json!({"metadata": {"name": "x"}}).to_string(), (404, "NotFound"), "namespaces \"none\" not found"),
        case(("DELETE", &here, JSON), json!({"preconditions": {"uid": "1"}}).to_string(), (409, "Conflict"),
            "Operation cannot be fulfilled on ConfigMap \"here\": the UID in the precondition (1) does not match the UID in record (…"),
        case(("POST", &here, JSON), "{}", (405, "MethodNotAllowed"), "the server does not allow this method on the requested resource"),
        case(("GET", "/api/v1/nothings", JSON), "", (404, "NotFound"), "the server could not find the requested resource"),
        case(("GET", &format!("{CMS}?labelSelector=a%20in"), JSON), "", BAD, "unable to parse requirement: …"),
        case(("GET", &format!("{CMS}?fieldSelector=x%3Dy"), JSON), "", BAD, "…"),
        case(("GET", &format!("{CMS}?continue=x"), JSON), "", BAD, "continue key is not valid: …"),
    ])
    .await;
}

#[tokio::test]
async fn patches_that_do_not_fit() {
    let (here, web) = (format!("{CMS}/here"), format!("{DEPLOYMENTS}/web"));
    let patch = |path: &str, kind: &'static str, body: Value, answer: (u16, &'static str), message: &str| {
        case(("PATCH", path, kind), body.to_string(), answer, message)
    };
    let strict = format!("{web}?fieldValidation=Strict");
    check(vec![
        patch(&here, JSON, json!({}), (415, "UnsupportedMediaType"),
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"),
        patch(&here, PATCH, json!([{"op": "remove", "path": "/data/none"}]), INVALID, "the server rejected our request due to an error in our request"),
        patch(&here, PATCH, json!([{"op": "test", "path": "/data/a", "value": "c"}]), INVALID, "the server rejected our request due to an error in our request"),
        patch(&here, PATCH, json!([{"op": "turn", "path": "/data/a"}]), INVALID, "the server rejected our request due to an error in our request"),
        patch(&here, PATCH, json!({}), BAD, "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
        patch(&here, PATCH, json!([1]), BAD, "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp"),
        patch(&format!("{here}?fieldValidation=Strict"), PATCH, json!([{"op": "test", "path": "/data/a", "value": "b", "vlue": 1}]), INVALID, " \"\" is invalid: patch: Invalid value: …"),
        patch(&here, MERGE, json!([]), BAD, "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        case(("PATCH", &here, MERGE), "{\"a\"", BAD, "error decoding patch: unexpected end of JSON input"),
        case(("PATCH", &here, STRATEGIC), "{\"a\"", BAD, "unexpected end of JSON input"),
        patch(&here, MERGE, json!({"data": {"a": 1}}), INVALID, " \"\" is invalid: patch: Invalid value: \"{\\\"apiVersion\\\":\\\"v1\\\",\\\"data\\\":{\\\"a\\\":1},\\\"kind\\\":\\\"ConfigMap\\\",…"),
        patch(&here, MERGE, json!({"metadata": {"resourceVersion": "1"}}), (409, "Conflict"),
            "Operation cannot be fulfilled on configmaps \"here\": the object has been modified; please apply your changes to the latest version and try again"),
        patch(&here, MERGE, json!({"metadata": {"name": "there"}}), BAD, "the name of the object (there) does not match the name on the URL (here)"),
        patch(&format!("{CMS}/none"), MERGE, json!({}), (404, "NotFound"), "configmaps \"none\" not found"),
        patch(&web, STRATEGIC, json!({"spec": {"replicas": "three"}}), INVALID, " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:three]]\": unrecognized type: int32"),
        patch(&web, STRATEGIC, json!({"spec": {"paused": {}, "selector": 5}}), INVALID, " \"\" is invalid: patch: Invalid value: \"map[spec:map[paused:map[] selector:5]]\": …"),
        patch(&web, STRATEGIC, json!({"spec": {"template": {"spec": {"containers": "x"}}}}), INVALID,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[template:map[spec:map[containers:x]]]]\": cannot restore slice from string"),
        patch(&web, STRATEGIC, json!({"spec": {"template": {"spec": {"containers": [{"image": "j"}]}}}}), (500, ""),
            "map: map[image:j] does not contain declared merge key: name"),
        patch(&strict, STRATEGIC, json!({"spec": {"replicaz": 3}}), INVALID,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicaz:3]]\": strict decoding error: unknown field \"spec.replicaz\""),
        patch(&here, APPLY, json!({}), INVALID, "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"),
    ])
    .await;
}

#[tokio::test]
async fn configurations_that_cannot_be_applied() {
    let web = format!("{DEPLOYMENTS}/web?fieldManager=m");
    let apply = |query: &str, body: &str, answer: (u16, &'static str), message: &str| {
        case(("PATCH", &format!("{web}{query}"), APPLY), body, answer, message)
    };
    let head = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: default\n";
    let unknown = format!("{head}spec:\n  replicaz: 3\n");
    let undeclared = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replicaz: field not declared in schema";
    let twice = format!("{head}spec:\n  paused: true\n  paused: true\n");
    check(vec![
        apply("", "a: [", BAD, "error decoding YAML: error converting YAML to JSON: yaml: …"),
        apply("", "- a\n", BAD, "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        apply("", "", BAD, "Incorrect version specified in apply patch. Specified patch version: , expected: apps/v1"),
        apply("", "apiVersion: v1\nkind: Deployment\n", BAD, "Incorrect version specified in apply patch. Specified patch version: v1, expected: apps/v1"),
        apply("", &unknown, (500, ""), undeclared),
        apply("&fieldValidation=Ignore", &unknown, (500, ""), undeclared),
        apply("&fieldValidation=Strict", &twice, BAD, "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 8: key \"paused\" already set in map"),
        apply("", &head.replace("  name: web", "  managedFields: []\n  name: web"), BAD, "metadata.managedFields must be nil"),
        apply("", &head.replace("name: web", "name: other"), BAD, "the name of the object (other) does not match the name on the URL (web)"),
    ])
    .await;
    let api = server().await;
    let warned = api.send("PATCH", &web, APPLY, twice).await;
    assert_eq!(warned.warnings(), ["299 - \"line 8: key \\\"paused\\\" already set in map\""]);
    warned.expect(200);
}

#[tokio::test]
async fn clients_that_accept_nothing_we_have() {
    let api = server().await;
    for method in ["GET", "POST"] {
        let reply = api.send_as(&api.who, method, CMS, &[("accept", "image/png"), ("content-type", JSON)], "{}").await;
        let message = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
        assert_eq!((reply.code.as_u16(), reply.message().as_str()), (406, message));
        assert_eq!(reply.json()["reason"], "NotAcceptable");
    }
}

#[test]
fn kubectl_shows_them_as_people_know_them() {
    let server = start();
    let fails = |arguments: &[&str], input: &str, expected: &str| {
        let outcome = server.kubectl_with(arguments, input);
        assert!(!outcome.ok && outcome.err.contains(expected), "{arguments:?}: {}{}", outcome.out, outcome.err);
    };
    let manifest = deployment("web").to_string();
    server.kubectl_in(&["create", "-f", "-"], &manifest);
    let unknown = manifest.replace("\"replicas\"", "\"replicaz\"");
    let strict = "Error from server (BadRequest): error when creating \"STDIN\": Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replicaz\"";
    fails(&["create", "-f", "-"], &unknown, strict);
    fails(
        &["create", "-f", "-"],
        &manifest,
        "Error from server (AlreadyExists): error when creating \"STDIN\": deployments.apps \"web\" already exists",
    );
    let patch = "{\"spec\":{\"replicas\":\"three\"}}";
    fails(
        &["patch", "deployment", "web", "-p", patch],
        "",
        "The request is invalid: patch: Invalid value: \"map[spec:map[replicas:three]]\": unrecognized type: int32",
    );
    let gone = "[{\"op\":\"remove\",\"path\":\"/spec/none\"}]";
    fails(
        &["patch", "deployment", "web", "--type=json", "-p", gone],
        "",
        "The request is invalid: the server rejected our request due to an error in our request",
    );
    let undeclared = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replicaz: field not declared in schema";
    fails(&["apply", "--server-side", "--validate=false", "-f", "-"], &unknown, undeclared);
    fails(&["get", "pods", "--field-selector", "spec.x=y"], "", "field label not supported: spec.x");
}
