//! List, then watch from where the list ended, for ever: the one way in which objects come in.
//!
//! An object that cannot be read is told of and passed over: it must not keep the others from coming in.

use std::marker::PhantomData;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// A watch that is older than this is taken for dead. The server ends it after 290 s.
const WATCH_LIMIT: Duration = Duration::from_secs(310);
/// Objects per page of a list.
const PAGE: u32 = 500;

/// What can come in.
pub trait Item: Clone + DeserializeOwned + Send + 'static {
    /// The revision the object was last changed at.
    fn revision(&self) -> u64;
    /// Drops what nobody needs, as early as possible.
    fn slim(&mut self) {}
}

/// Takes what comes in.
pub trait Sink<T> {
    /// The whole list, as of a revision.
    fn listed(&self, items: Vec<T>, at: u64);
    /// An object was added or changed. Everything up to revision `at` has been delivered.
    fn changed(&self, item: T, at: u64);
    /// An object was deleted.
    fn deleted(&self, item: T, at: u64);
    /// Nothing else happened up to this revision.
    fn passed(&self, at: u64);
}

/// Where objects come from.
pub struct Source<T> {
    /// The server.
    pub client: Client,
    /// The collection.
    pub request: kube::core::Request,
    /// Only what this field selector matches.
    pub fields: Option<String>,
    /// Only metadata.
    pub metadata_only: bool,
    /// The kind of item.
    pub item: PhantomData<fn() -> T>,
}

/// A list as it comes over the wire: only what matters here.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    token: Option<String>,
}

/// Why a watch ended early.
enum End {
    /// The server no longer has the revision: list anew.
    Expired,
    Failed(String),
}

impl From<kube::Error> for End {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl<T: Item> Source<T> {
    /// The whole list, page by page, and the revision it shows.
    pub async fn list(&self) -> Result<(Vec<T>, u64), kube::Error> {
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(PAGE);
        let mut items = Vec::new();
        let mut at = None;
        loop {
            let list =
                if self.metadata_only { self.request.list_metadata(&params) } else { self.request.list(&params) };
            let page: Page = self.client.request(list.map_err(kube::Error::BuildRequest)?).await?;
            at = at.or_else(|| page.metadata.resource_version.parse().ok());
            items.extend(page.items.iter().filter_map(|item| self.read(item)));
            match page.metadata.token.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok((items, at.unwrap_or(0))),
            }
        }
    }

    fn read(&self, item: &RawValue) -> Option<T> {
        let mut item: T = serde_json::from_str(item.get()).map_err(|error| self.passed_over(&error)).ok()?;
        item.slim();
        Some(item)
    }

    fn passed_over(&self, error: &dyn std::fmt::Display) {
        tracing::warn!(url = self.request.url_path, %error, "an object cannot be read and is passed over");
    }

    async fn open(&self, from: u64) -> Result<impl Stream<Item = Result<WatchEvent<T>, kube::Error>> + use<T>, End> {
        let params = WatchParams { field_selector: self.fields.clone(), ..WatchParams::default() };
        let from = from.to_string();
        let watch = if self.metadata_only {
            self.request.watch_metadata(&params, &from)
        } else {
            self.request.watch(&params, &from)
        };
        Ok(self.client.request_events(watch.map_err(kube::Error::BuildRequest)?).await?)
    }

    /// Keeps the sink in step with the server, for ever.
    pub async fn follow(&self, sink: &impl Sink<T>) {
        let mut failures = 0;
        loop {
            match self.list().await {
                Ok((items, at)) => {
                    failures = 0;
                    sink.listed(items, at);
                    self.watch(sink, at).await;
                }
                Err(error) => {
                    tracing::debug!(url = self.request.url_path, %error, "list failed");
                    pause(failures).await;
                    failures += 1;
                }
            }
        }
    }

    /// Watches from a revision until the server no longer has it.
    async fn watch(&self, sink: &impl Sink<T>, from: u64) {
        let mut at = from;
        let mut failures = 0;
        loop {
            let before = at;
            match self.watch_once(sink, &mut at).await {
                Ok(()) => {}
                Err(End::Expired) => return,
                Err(End::Failed(error)) => tracing::debug!(url = self.request.url_path, %error, "watch failed"),
            }
            if at > before {
                failures = 0;
            } else {
                pause(failures).await;
                failures += 1;
            }
        }
    }

    async fn watch_once(&self, sink: &impl Sink<T>, at: &mut u64) -> Result<(), End> {
        let deadline = tokio::time::Instant::now() + WATCH_LIMIT;
        let opening = tokio::time::timeout_at(deadline, self.open(*at)).await;
        let mut events = std::pin::pin!(opening.map_err(|_| End::Failed("no answer".into()))??);
        while let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.next()).await {
            let event = match event {
                Err(error) if is_unreadable(&error) => {
                    self.passed_over(&error);
                    continue;
                }
                event => event?,
            };
            match event {
                WatchEvent::Added(mut item) | WatchEvent::Modified(mut item) => {
                    item.slim();
                    *at = (*at).max(item.revision());
                    sink.changed(item, *at);
                }
                WatchEvent::Deleted(item) => {
                    *at = (*at).max(item.revision());
                    sink.deleted(item, *at);
                }
                WatchEvent::Bookmark(bookmark) => {
                    *at = (*at).max(bookmark.metadata.resource_version.parse().unwrap_or(0));
                    sink.passed(*at);
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
        Ok(())
    }
}

/// Whether an event of a watch could not be read. The client takes it for a status, of which then nothing is set.
fn is_unreadable(error: &kube::Error) -> bool {
    match error {
        kube::Error::SerdeError(_) => true,
        kube::Error::Api(status) => status.code == 0,
        _ => false,
    }
}

/// Waits before a retry: 50 ms, doubled per failure, at most 5 s.
async fn pause(failures: u32) {
    tokio::time::sleep(Duration::from_millis(50 << failures.min(7)).min(Duration::from_secs(5))).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::Service;
    use kube::Resource;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    impl Item for Service {
        fn revision(&self) -> u64 {
            crate::cache::revision(self)
        }
    }

    #[derive(Default)]
    struct Names(Mutex<Vec<String>>);

    impl Names {
        fn note(&self, what: &str, service: &Service, at: u64) {
            let name = service.metadata.name.clone().unwrap_or_default();
            self.0.lock().expect("no panic").push(format!("{what} {name} {at}"));
        }
    }

    impl Sink<Service> for Names {
        fn listed(&self, items: Vec<Service>, at: u64) {
            items.iter().for_each(|item| self.note("listed", item, at));
        }

        fn changed(&self, item: Service, at: u64) {
            self.note("changed", &item, at);
        }

        fn deleted(&self, item: Service, at: u64) {
            self.note("deleted", &item, at);
        }

        fn passed(&self, _at: u64) {}
    }

    async fn answer(request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        let service = |name: &str, revision: &str, conditions: serde_json::Value| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "resourceVersion": revision},
                "status": {"conditions": conditions}})
        };
        let odd = json!([{"type": "Told", "status": "True", "reason": "", "message": ""}]);
        let answer = if request.uri().query().unwrap_or_default().contains("watch") {
            let event = |object| format!("{}\n", json!({"type": "ADDED", "object": object}));
            event(service("odd", "6", odd)) + &event(service("c", "7", json!([])))
        } else {
            let items = [service("a", "1", json!([])), service("odd", "2", odd), service("b", "3", json!([]))];
            json!({"metadata": {"resourceVersion": "5"}, "items": items}).to_string()
        };
        Ok(Response::new(Body::from(answer.into_bytes())))
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_does_not_keep_others_out() {
        let source = Source {
            client: Client::new(tower::service_fn(answer), "default"),
            request: kube::core::Request::new(Service::url_path(&(), None)),
            fields: None,
            metadata_only: false,
            item: PhantomData::<fn() -> Service>,
        };
        let names = Names::default();
        let _ = tokio::time::timeout(Duration::from_millis(10), source.follow(&names)).await;
        assert_eq!(names.0.lock().expect("no panic")[..3], ["listed a 5", "listed b 5", "changed c 7"]);
    }
}
