//! Custom resources.
#![allow(missing_docs)]

mod common;

use common::{local, start};
use serde_json::{Value, json};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: mushrooms.forest.example.com}
spec:
  group: forest.example.com
  scope: Namespaced
  names: {plural: mushrooms, kind: Mushroom, shortNames: [mush]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Caps, type: integer, jsonPath: .spec.caps}
    - {name: Phase, type: string, jsonPath: .status.phase}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [caps]
            properties:
              caps: {type: integer, minimum: 1}
              colour: {type: string, default: red, enum: [red, brown]}
          status: {type: object, properties: {phase: {type: string}}}
";

const MUSHROOM: &str = "
apiVersion: forest.example.com/v1
kind: Mushroom
metadata: {name: fly-agaric}
spec: {caps: 3}
";

#[test]
fn kubectl_uses_custom_resources() {
    let server = start();
    server.kubectl_in(&["apply", "-f", "-"], DEFINITION);
    server.kubectl(&["wait", "--for=condition=Established", "crd/mushrooms.forest.example.com", "--timeout=5s"]);
    server.kubectl_in(&["apply", "-f", "-"], MUSHROOM);
    assert!(server.kubectl_in(&["apply", "-f", "-"], MUSHROOM).contains("unchanged"));
    server.kubectl_in(&["apply", "-f", "-"], &MUSHROOM.replace("caps: 3", "caps: 4"));
    server.kubectl_in(
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        &MUSHROOM.replace("caps: 3", "caps: 5"),
    );
    let shown = server.kubectl(&["get", "mush"]);
    assert!(shown.contains("CAPS") && shown.contains("fly-agaric   5"), "{shown}");
    assert_eq!(server.kubectl(&["get", "mush", "fly-agaric", "-o", "jsonpath={.spec.colour}"]), "red");
    assert!(server.kubectl(&["explain", "mushroom.spec"]).contains("caps"));
    assert!(server.kubectl(&["api-resources", "--api-group=forest.example.com"]).contains("mushrooms"));
    let refused = server.kubectl_with(&["apply", "-f", "-"], &MUSHROOM.replace("caps: 3", "caps: 0"));
    assert!(refused.err.contains("should be greater than or equal to 1"), "{}", refused.err);
    server.kubectl(&["delete", "crd", "mushrooms.forest.example.com"]);
    assert!(!server.kubectl_with(&["get", "mush"], "").ok);
}

#[tokio::test]
async fn objects_follow_their_schema() {
    let api = local().await;
    let created =
        api.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/yaml", DEFINITION);
    let definition = created.await.expect(201);
    assert_eq!(definition["status"]["acceptedNames"]["listKind"], "MushroomList");
    let path = "/apis/forest.example.com/v1/namespaces/default/mushrooms";
    let made = api
        .post(path, &json!({"metadata": {"name": "a"}, "spec": {"caps": 1, "x": 1}, "status": {"phase": "no"}}))
        .await;
    assert_eq!(made.warnings(), ["299 - \"unknown field \\\"spec.x\\\"\""]);
    let made = made.expect(201);
    assert_eq!(made["spec"], json!({"caps": 1, "colour": "red"}));
    assert!(made.get("status").is_none());
    assert_eq!(made["metadata"]["generation"], 1);
    let wrong = api.post(path, &json!({"metadata": {"name": "b"}, "spec": {"caps": "many"}})).await;
    assert!(wrong.message().contains("spec.caps in body must be of type integer: \"string\""), "{}", wrong.message());
    wrong.expect(422);
    let change = json!({"status": {"phase": "Grown"}, "spec": {"caps": 9}});
    let grown = api.patch(&format!("{path}/a/status"), "merge", &change).await.expect(200);
    assert_eq!((&grown["status"]["phase"], &grown["spec"]["caps"]), (&json!("Grown"), &json!(1)));
    api.patch(&format!("{path}/a"), "strategic-merge", &json!({})).await.expect(415);
    assert_eq!(api.get(path).await.expect(200)["kind"], "MushroomList");
    api.delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/mushrooms.forest.example.com")
        .await
        .expect(200);
    api.get(path).await.expect(404);
}

#[tokio::test]
async fn what_is_read_has_defaults_that_came_after_it() {
    let api = local().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.send("POST", definitions, "application/yaml", DEFINITION).await.expect(201);
    let path = "/apis/forest.example.com/v1/namespaces/default/mushrooms";
    api.post(path, &json!({"metadata": {"name": "a"}, "spec": {"caps": 1}})).await.expect(201);
    let before = api.get(&format!("{path}/a")).await.expect(200);
    let gills = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/gills";
    let add = json!([{"op": "add", "path": gills, "value": {"type": "string", "default": "white"}}]);
    api.patch(&format!("{definitions}/mushrooms.forest.example.com"), "json", &add).await.expect(200);

    let mut expected = before.clone();
    expected["spec"]["gills"] = json!("white");
    assert_eq!(api.get(&format!("{path}/a")).await.expect(200), expected);
    assert_eq!(api.get(path).await.expect(200)["items"][0], expected);
    let watched = api.get(&format!("{path}?watch=true&timeoutSeconds=1")).await.text();
    let event: Value = serde_json::from_str(watched.lines().next().expect("an event")).expect("JSON");
    assert_eq!(event["object"], expected);
    // What nobody changed is not written, and what somebody changes is written with all of it.
    let same = api.put(&format!("{path}/a"), &expected).await.expect(200);
    assert_eq!(same, expected);
    let changed = api.patch(&format!("{path}/a"), "merge", &json!({"spec": {"caps": 2}})).await.expect(200);
    assert_eq!((&changed["spec"]["gills"], &changed["metadata"]["generation"]), (&json!("white"), &json!(2)));
}
