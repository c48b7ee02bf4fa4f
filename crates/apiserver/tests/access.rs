//! Who may do what: certificates, tokens, roles, reviews; and what anyone may see.
#![allow(missing_docs)]

mod common;

use common::local;
use mycelium_apiserver::Identity;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn roles_decide() {
    let api = local().await;
    let ann = Identity::new("ann", &["dev"]);
    let refused = api.send_as(&ann, "GET", PODS, &[], "").await;
    assert_eq!(
        refused.message(),
        "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    refused.expect(403);
    let binding = json!({"metadata": {"name": "readers"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "Group", "name": "dev",
        "apiGroup": "rbac.authorization.k8s.io"}]});
    api.post(&format!("{RBAC}/namespaces/default/rolebindings"), &binding).await.expect(201);
    api.send_as(&ann, "GET", PODS, &[], "").await.expect(200);
    let secrets = api.send_as(&ann, "GET", "/api/v1/namespaces/default/secrets/x", &[], "").await;
    assert!(secrets.message().starts_with("secrets \"x\" is forbidden: User \"ann\" cannot get resource \"secrets\""));
    let nodes = api.send_as(&ann, "GET", "/api/v1/nodes", &[], "").await;
    assert!(nodes.message().ends_with("at the cluster scope"), "{}", nodes.message());
    api.delete(&format!("{RBAC}/namespaces/default/rolebindings/readers")).await.expect(200);
    api.send_as(&ann, "GET", PODS, &[], "").await.expect(403);
}

#[tokio::test]
async fn the_anonymous_see_health_and_version_only() {
    let api = local().await;
    let nobody = Identity::anonymous();
    for path in ["/healthz", "/livez", "/readyz", "/readyz?verbose", "/version", "/livez/ping"] {
        assert_eq!(api.send_as(&nobody, "GET", path, &[], "").await.code, 200, "{path}");
    }
    for path in ["/api", "/apis", "/openapi/v3", "/metrics", "/", PODS, "/versions"] {
        let reply = api.send_as(&nobody, "GET", path, &[], "").await;
        assert_eq!(reply.code, 403, "{path}");
        assert!(reply.message().contains("User \"system:anonymous\" cannot"), "{}", reply.message());
    }
    let known = Identity::new("ann", &[]);
    for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/openapi/v3", "/openapi/v3/apis/apps/v1"] {
        assert_eq!(api.send_as(&known, "GET", path, &[], "").await.code, 200, "{path}");
    }
    assert_eq!(api.get("/metrics").await.code, 200);
    assert_eq!(api.get("/apis/none/v1").await.code, 404);
    let headers = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    assert!(api.send_as(&known, "GET", "/openapi/v2", &headers, "").await.bytes.len() > 100_000);
    let headers = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let groups = api.send_as(&known, "GET", "/apis", &headers, "").await.expect(200);
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
    assert!(groups["items"].as_array().is_some_and(|g| g.iter().any(|g| g["metadata"]["name"] == "apps")));
}

#[tokio::test]
async fn tokens_of_service_accounts_open_the_door() {
    let api = local().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    api.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    let request = |spec: Value| json!({"spec": spec});
    let path = format!("{accounts}/robot/token");
    let made = api.post(&path, &request(json!({"expirationSeconds": 700}))).await.expect(201);
    let token = made["status"]["token"].as_str().unwrap_or_default().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let nobody = Identity::anonymous();
    let refused = api.send_as(&nobody, "GET", PODS, &headers, "").await;
    assert!(refused.message().contains("User \"system:serviceaccount:default:robot\" cannot list"));
    let whoami = api
        .send_as(&nobody, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &headers, "{}")
        .await
        .expect(201);
    let groups = whoami["status"]["userInfo"]["groups"].to_string();
    assert!(groups.contains("system:serviceaccounts:default") && groups.contains("system:authenticated"), "{groups}");
    let review = json!({"spec": {"token": token}});
    let reviewed = api.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.expect(201);
    assert_eq!(reviewed["status"]["authenticated"], true);
    let headers = [("authorization", "Bearer nonsense")];
    api.send_as(&nobody, "GET", PODS, &headers, "").await.expect(401);
    let other = api.post(&path, &request(json!({"audiences": ["vault"]}))).await.expect(201);
    let other = format!("Bearer {}", other["status"]["token"].as_str().unwrap_or_default());
    api.send_as(&nobody, "GET", PODS, &[("authorization", other.as_str())], "").await.expect(401);
    api.post(&path, &request(json!({"expirationSeconds": 60}))).await.expect(422);
    api.post(&path, &request(json!({"boundObjectRef": {"kind": "Pod", "name": "none"}}))).await.expect(404);
    api.delete(&format!("{accounts}/robot")).await.expect(200);
    api.send_as(&nobody, "GET", PODS, &[("authorization", bearer.as_str())], "").await.expect(401);
}

#[tokio::test]
async fn reviews_answer_and_masters_impersonate() {
    let api = local().await;
    let want = |user: &str, verb: &str| json!({"spec": {"user": user, "resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(api.post(reviews, &want("ann", "get")).await.expect(201)["status"]["allowed"], false);
    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(api.post(own, &want("", "get")).await.expect(201)["status"]["allowed"], true);
    let headers = [("impersonate-user", "ann")];
    api.send_as(&api.who, "GET", PODS, &headers, "").await.expect(403);
    let ann = Identity::new("ann", &[]);
    let refused = api.send_as(&ann, "GET", PODS, &[("impersonate-user", "bob")], "").await;
    assert!(refused.message().contains("cannot impersonate resource \"users\""), "{}", refused.message());
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let headers = [("content-type", "application/json")];
    let body = json!({"spec": {"namespace": "default"}}).to_string();
    let mine = api.send_as(&ann, "POST", rules, &headers, body).await.expect(201);
    assert!(mine["status"]["resourceRules"].to_string().contains("selfsubjectreviews"), "{mine}");
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let api = local().await;
    let bind = |name: &str, role: &str, user: &str| {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": role}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]})
    };
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    api.post(&bindings, &bind("ann", "admin", "ann")).await.expect(201);
    let ann = Identity::new("ann", &[]);
    let headers = [("content-type", "application/json")];
    let send = |path: String, body: Value| {
        let (api, ann, headers) = (&api, &ann, &headers);
        async move { api.send_as(ann, "POST", &path, headers, body.to_string()).await }
    };
    send(bindings.clone(), bind("bob", "view", "bob")).await.expect(201);
    let refused = send(bindings.clone(), bind("eve", "cluster-admin", "ann")).await;
    assert!(
        refused.message().contains("is attempting to grant RBAC permissions not currently held"),
        "{}",
        refused.message()
    );
    refused.expect(403);
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |group: &str, resource: &str| json!({"metadata": {"name": resource}, "rules": [{"verbs": ["get"], "apiGroups": [group], "resources": [resource]}]});
    send(roles.clone(), role("", "pods")).await.expect(201);
    let refused = send(roles, role("", "nodes")).await;
    assert!(
        refused.message().ends_with("{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"),
        "{}",
        refused.message()
    );
}
