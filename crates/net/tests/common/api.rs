//! An API server in a few lines: lists and watches what the test puts in, and notes what is patched.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use kube::Client;
use kube::client::Body;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

#[derive(Default)]
struct State {
    revision: u64,
    /// Plural to name to object.
    objects: BTreeMap<String, BTreeMap<String, Json>>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    patches: Vec<(String, Json)>,
}

#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

type Stream = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

fn plural(object: &Json) -> String {
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

impl Api {
    /// Creates or updates an object.
    pub fn put(&self, mut object: Json) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        if object["kind"] != "Namespace" {
            object["metadata"]["namespace"] = json!("shop");
        }
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let plural = plural(&object);
        let known = state.objects.entry(plural.clone()).or_default().insert(name, object.clone()).is_some();
        state.tell(&plural, if known { "MODIFIED" } else { "ADDED" }, &object);
    }

    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let object = state.objects.get_mut(plural).unwrap().remove(name).unwrap();
        state.tell(plural, "DELETED", &object);
    }

    #[allow(dead_code, reason = "each test file uses a part")]
    pub fn patches(&self) -> Vec<(String, Json)> {
        self.0.lock().unwrap().patches.clone()
    }

    pub fn client(&self) -> Client {
        let api = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(Response::new(api.answer(request).await)) }
            }),
            "shop",
        )
    }

    async fn answer(&self, request: Request<Body>) -> Stream {
        let path = request.uri().path().to_owned();
        if request.method() == Method::PATCH {
            let body = request.into_body().collect_bytes().await.unwrap();
            self.0.lock().unwrap().patches.push((path, serde_json::from_slice(&body).unwrap()));
            return once(json!({"metadata": {"name": "x"}}));
        }
        let plural = path.rsplit('/').next().unwrap().to_owned();
        let mut state = self.0.lock().unwrap();
        if request.uri().query().unwrap_or_default().contains("watch=true") {
            let (sender, receiver) = mpsc::unbounded_channel();
            state.watchers.push((plural, sender));
            let frames =
                futures::stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
            return StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes))).boxed());
        }
        let items: Vec<Json> = state.objects.get(&plural).into_iter().flat_map(BTreeMap::values).cloned().collect();
        once(json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items}))
    }
}

impl State {
    fn tell(&mut self, plural: &str, kind: &str, object: &Json) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        self.watchers.retain(|(watched, sender)| watched != plural || sender.send(line.clone()).is_ok());
    }
}

fn once(value: Json) -> Stream {
    let bytes = Bytes::from(value.to_string());
    StreamBody::new(futures::stream::once(async { Ok(Frame::data(bytes)) }).boxed())
}
