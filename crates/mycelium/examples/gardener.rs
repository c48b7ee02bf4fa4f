//! A small operator with kube's runtime, as people write them: a Garden keeps a Deployment and says how it is.
//!
//! The tests run it from outside, with the kubeconfig of a user: `gardener --name NAME --namespace NAMESPACE`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind, Object};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event as Told, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Spec {
    size: i32,
    image: String,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    ready: i32,
    gardener: String,
    observed_generation: i64,
}

type Garden = Object<Spec, Status>;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API refused")]
    Api(#[from] kube::Error),
    #[error("the finalizer could not be kept")]
    Finalizer(#[from] Box<kube::runtime::finalizer::Error<Error>>),
}

struct Gardener {
    client: Client,
    kind: ApiResource,
    name: String,
    events: Recorder,
}

impl Gardener {
    fn gardens(&self, namespace: &str) -> Api<Garden> {
        Api::namespaced_with(self.client.clone(), namespace, &self.kind)
    }

    async fn apply(&self, garden: &Garden) -> Result<Action, Error> {
        let (name, namespace) = (garden.name_any(), garden.namespace().unwrap_or_default());
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let plants = self.plants(garden);
        let ours = PatchParams::apply("gardener").force();
        let plants = deployments.patch(&name, &ours, &Patch::Apply(&plants)).await?;
        let ready = plants.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        let observed_generation = garden.metadata.generation.unwrap_or_default();
        let status = Status { ready, gardener: self.name.clone(), observed_generation };
        if garden.status.as_ref() != Some(&status) {
            let patch = Patch::Merge(json!({ "status": status }));
            self.gardens(&namespace).patch_status(&name, &PatchParams::default(), &patch).await?;
            self.tell(garden, "Tended", format!("{ready} of {} grow", garden.spec.size)).await?;
        }
        Ok(Action::requeue(Duration::from_secs(300)))
    }

    fn plants(&self, garden: &Garden) -> Value {
        let labels = json!({ "garden": garden.name_any() });
        let container = json!({"name": "plant", "image": garden.spec.image, "command": ["sleep", "100000"]});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": garden.name_any(), "ownerReferences": [garden.controller_owner_ref(&self.kind)]},
            "spec": {
                "replicas": garden.spec.size, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels},
                    "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}},
            },
        })
    }

    /// Notes the garden down in a place that outlives it.
    async fn bury(&self, garden: &Garden) -> Result<Action, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &garden.namespace().unwrap_or_default());
        let data = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "graveyard"},
            "data": {garden.name_any(): self.name},
        });
        maps.patch("graveyard", &PatchParams::apply("gardener").force(), &Patch::Apply(&data)).await?;
        Ok(Action::await_change())
    }

    async fn tell(&self, garden: &Garden, reason: &str, note: String) -> Result<(), Error> {
        let told = Told {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Tend".to_owned(),
            secondary: None,
        };
        Ok(self.events.publish(&told, &garden.object_ref(&self.kind)).await?)
    }
}

async fn reconcile(garden: Arc<Garden>, gardener: Arc<Gardener>) -> Result<Action, Error> {
    let api = gardener.gardens(&garden.namespace().unwrap_or_default());
    let outcome = finalizer(&api, "example.com/graveyard", garden, |event| async {
        match event {
            Event::Apply(garden) => gardener.apply(&garden).await,
            Event::Cleanup(garden) => gardener.bury(&garden).await,
        }
    });
    outcome.await.map_err(|error| Error::Finalizer(Box::new(error)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), kube::Error> {
    let words: Vec<String> = std::env::args().collect();
    let after = |flag: &str| words.iter().skip_while(|word| *word != flag).nth(1).cloned();
    let name = after("--name").unwrap_or_else(|| "gardener".to_owned());
    let namespace = after("--namespace").unwrap_or_else(|| "default".to_owned());
    let client = Client::try_default().await?;
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", "v1", "Garden"), "gardens");
    let reporter = Reporter { controller: "gardener".to_owned(), instance: Some(name.clone()) };
    let events = Recorder::new(client.clone(), reporter);
    let gardens: Api<Garden> = Api::namespaced_with(client.clone(), &namespace, &kind);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let gardener = Arc::new(Gardener { client, kind: kind.clone(), name, events });
    Controller::new_with(gardens, watcher::Config::default(), kind)
        .owns(deployments, watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), gardener)
        .for_each(|outcome| async {
            if let Err(error) = outcome {
                eprintln!("{error:?}");
            }
        })
        .await;
    Ok(())
}
