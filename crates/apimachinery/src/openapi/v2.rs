//! OpenAPI version 2: as JSON, and as protobuf (the message `openapi.v2.Document` of the gnostic project), which is the
//! only form in which `kubectl` reads it.

use serde_json::{Map, Value, json};

use super::Custom;
use super::paths::{OperationSpec, PathSpec, of_custom, of_resource, patch_types};
use super::protobuf::Message;
use super::schema::Dialect;
use crate::schema::{resources, types};

/// What `/openapi/v2` answers, as JSON.
pub fn v2_json(customs: &[Custom<'_>]) -> Value {
    let specs = resources().iter().flat_map(of_resource).chain(customs.iter().flat_map(of_custom));
    let paths: Map<String, Value> = specs.map(|spec| (spec.path.clone(), path_value(&spec))).collect();
    let built_in = types().all().iter().map(|ty| (ty.name.to_string(), Dialect::V2.definition(ty)));
    let custom = customs.iter().flat_map(|custom| Dialect::V2.custom(custom));
    let definitions: Map<String, Value> = built_in.chain(custom).collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "definitions": definitions,
    })
}

fn path_value(spec: &PathSpec) -> Value {
    let mut item = Map::new();
    let named =
        |name: &&str| json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true});
    if !spec.parameters.is_empty() {
        item.insert("parameters".to_owned(), spec.parameters.iter().map(named).collect());
    }
    for operation in &spec.operations {
        item.insert(operation.method.to_owned(), operation_value(operation));
    }
    Value::Object(item)
}

fn operation_value(spec: &OperationSpec) -> Value {
    let query = |(name, ty): &(&str, &str)| json!({"name": name, "in": "query", "type": ty, "uniqueItems": true});
    let body = spec.body.as_ref().map(|body| {
        let schema = Dialect::V2.reference(body);
        json!({"name": "body", "in": "body", "required": spec.action != "delete", "schema": schema})
    });
    let media = if spec.action == "patch" { patch_types(&spec.gvk) } else { &["*/*"] };
    let parameters: Vec<Value> = body.into_iter().chain(spec.query.iter().map(query)).collect();
    let mut ok = json!({"description": "OK"});
    if let Some(response) = &spec.response {
        ok["schema"] = Dialect::V2.reference(response);
    }
    let [group, version, kind] = &spec.gvk;
    json!({
        "operationId": spec.id,
        "tags": [spec.tag],
        "schemes": ["https"],
        "consumes": media,
        "produces": ["application/json"],
        "parameters": parameters,
        "responses": {"200": ok, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": spec.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    })
}

/// What `/openapi/v2` answers, as protobuf.
pub fn v2_protobuf(customs: &[Custom<'_>]) -> Vec<u8> {
    let specs = resources().iter().flat_map(of_resource).chain(customs.iter().flat_map(of_custom));
    let paths = specs.map(|spec| named(&spec.path, path(&spec)));
    let built_in = types().all().iter().map(|ty| named(&ty.name, schema(&Dialect::V2.definition(ty))));
    let custom = customs.iter().flat_map(|c| Dialect::V2.custom(c)).map(|(name, value)| named(&name, schema(&value)));
    Message::default()
        .text(1, "2.0")
        .message(2, Message::default().text(1, "Kubernetes").text(2, "v1.35.0"))
        .message(8, Message::default().messages(2, paths))
        .message(9, Message::default().messages(1, built_in.chain(custom)))
        .into_bytes()
}

/// All `Named..` messages have a name and a value.
fn named(name: &str, value: Message) -> Message {
    Message::default().text(1, name).message(2, value)
}

/// A value of any kind is carried as YAML, of which JSON is a part.
fn extension(name: &str, value: &Value) -> Message {
    named(name, Message::default().text(2, &value.to_string()))
}

fn path(spec: &PathSpec) -> Message {
    let parameters = spec.parameters.iter().map(|name| {
        let parameter = Message::default().flag(1, true).text(2, "path").text(4, name).text(5, "string");
        non_body(4, parameter)
    });
    let mut item = Message::default();
    for operation in &spec.operations {
        let field = match operation.method {
            "get" => 2,
            "put" => 3,
            "post" => 4,
            "delete" => 5,
            _ => 8,
        };
        item = item.message(field, self::operation(operation));
    }
    item.messages(9, parameters)
}

/// `ParametersItem` > `Parameter` > `NonBodyParameter` > the one that `field` names.
fn non_body(field: u32, parameter: Message) -> Message {
    let non_body = Message::default().message(field, parameter);
    Message::default().message(1, Message::default().message(2, non_body))
}

fn operation(spec: &OperationSpec) -> Message {
    let mut operation = Message::default().text(1, &spec.tag).text(5, &spec.id).text(6, "application/json");
    let media = if spec.action == "patch" { patch_types(&spec.gvk) } else { &["*/*"] };
    for media in media {
        operation = operation.text(7, media);
    }
    if let Some(body) = &spec.body {
        let body = Message::default()
            .text(2, "body")
            .text(3, "body")
            .flag(4, spec.action != "delete")
            .message(5, schema(&Dialect::V2.reference(body)));
        operation = operation.message(8, Message::default().message(1, Message::default().message(1, body)));
    }
    for (name, ty) in &spec.query {
        let parameter = Message::default().text(2, "query").text(4, name).text(6, ty).flag(20, true);
        operation = operation.message(8, non_body(3, parameter));
    }
    let mut ok = Message::default().text(1, "OK");
    if let Some(response) = &spec.response {
        ok = ok.message(2, Message::default().message(1, schema(&Dialect::V2.reference(response))));
    }
    let denied = Message::default().text(1, "Unauthorized");
    let response = |code: &str, response| named(code, Message::default().message(1, response));
    let [group, version, kind] = &spec.gvk;
    let gvk = serde_json::json!({"group": group, "version": version, "kind": kind});
    operation
        .message(9, Message::default().messages(1, [response("200", ok), response("401", denied)]))
        .text(10, "https")
        .messages(
            13,
            [
                extension("x-kubernetes-action", &Value::String(spec.action.to_owned())),
                extension("x-kubernetes-group-version-kind", &gvk),
            ],
        )
}

/// A JSON schema as a `Schema` message. What has no field there is left out.
fn schema(value: &Value) -> Message {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut message = Message::default().text(1, text("$ref")).text(2, text("format"));
    for name in value.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        message = message.text(19, name);
    }
    match value.get("additionalProperties") {
        Some(Value::Bool(flag)) => message = message.message(21, Message::default().flag(2, *flag)),
        Some(inner) => message = message.message(21, Message::default().message(1, schema(inner))),
        None => {}
    }
    if !text("type").is_empty() {
        message = message.message(22, Message::default().text(1, text("type")));
    }
    if let Some(items) = value.get("items") {
        message = message.message(23, Message::default().message(1, schema(items)));
    }
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        let properties = properties.iter().map(|(name, value)| named(name, schema(value)));
        message = message.message(25, Message::default().messages(1, properties));
    }
    let extensions = value.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-"));
    message.messages(31, extensions.map(|(key, value)| extension(key, value)))
}
