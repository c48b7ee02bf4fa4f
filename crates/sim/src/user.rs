//! The user: creates, scales, updates, rolls back and deletes at random.

use serde_json::{Value, json};

use crate::api::{Api, Failure};
use crate::checker::Checker;
use crate::network::Complaints;
use crate::node::text;
use crate::random::Random;

/// What a user remembers beyond the life of the engine's process.
#[derive(Debug)]
pub struct User {
    random: Random,
    made: u64,
    /// Whether pods may be deleted behind the controllers' back.
    rough: bool,
}

impl User {
    /// A user with a seed.
    pub fn new(random: Random, rough: bool) -> Self {
        Self { random, made: 0, rough }
    }

    /// Does one thing.
    pub async fn act(&mut self, api: &Api, checker: &Checker, complaints: &Complaints) {
        let kind = self.random.below(100);
        let (what, result) = match kind {
            0..13 => ("create deployment", self.create_deployment(api).await),
            13..19 => ("create stateful set", self.create_stateful_set(api).await),
            19..25 => ("create job", self.create_job(api).await),
            25..42 => ("scale", self.scale(api).await),
            42..62 => ("update", self.update(api).await),
            62..70 => ("roll back", self.roll_back(api).await),
            70..75 => ("delete deployment", self.delete_deployment(api).await),
            75..77 => ("delete stateful set", self.delete_some(api, "/apis/apps/v1", "statefulsets").await),
            77..78 => ("delete job", self.delete_some(api, "/apis/batch/v1", "jobs").await),
            78..86 => ("create service", self.create_service(api).await),
            86..90 => ("delete service", self.delete_some(api, "/api/v1", "services").await),
            90..94 => ("delete namespace", self.delete_namespace(api).await),
            _ if self.rough => ("delete pod", self.delete_some(api, "/api/v1", "pods").await),
            _ => ("create namespace", self.namespace(api).await.map(|_| Value::Null)),
        };
        match result {
            Ok(object) => checker.acknowledged(&object["metadata"]["resourceVersion"]),
            Err(failure) if matches!(failure.code(), None | Some(403 | 404 | 409 | 429 | 500 | 503)) => {
                tracing::debug!(what, %failure, "the user is refused");
            }
            Err(failure) => complaints.add(format!("the user's request ({what}) was refused: {failure}")),
        }
    }

    /// A namespace that is there, created if need be.
    async fn namespace(&mut self, api: &Api) -> Result<String, Failure> {
        let name = format!("ns-{}", self.random.below(3));
        match api.post("/api/v1/namespaces", &json!({"metadata": {"name": name}})).await {
            Ok(_) | Err(Failure::Refused { code: 409, .. }) => Ok(name),
            Err(failure) => Err(failure),
        }
    }

    async fn create_deployment(&mut self, api: &Api) -> Result<Value, Failure> {
        let namespace = self.namespace(api).await?;
        self.made += 1;
        let name = format!("web-{}", self.made);
        let strategy = match self.random.below(5) {
            0 => json!({"type": "Recreate"}),
            1 => {
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": self.random.below(3), "maxUnavailable": 1 + self.random.below(2)}})
            }
            2 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}),
            3 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "34%"}}),
            _ => json!({"type": "RollingUpdate"}),
        };
        let labels = json!({"app": name, "tier": format!("t{}", self.random.below(3))});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
            "spec": {"replicas": self.random.below(7), "strategy": strategy, "revisionHistoryLimit": self.random.below(4),
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 3,
                    "containers": [{"name": "main", "image": "web:1", "resources": {"requests": {"cpu": "10m"}}}]}}}});
        api.post(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), &deployment).await
    }

    /// A kind that can be scaled and updated.
    fn kind(&self) -> &'static str {
        if self.random.chance(700) { "deployments" } else { "statefulsets" }
    }

    async fn create_stateful_set(&mut self, api: &Api) -> Result<Value, Failure> {
        let namespace = self.namespace(api).await?;
        self.made += 1;
        let name = format!("db-{}", self.made);
        let policy = if self.random.chance(500) { "OrderedReady" } else { "Parallel" };
        let labels = json!({"app": name, "tier": format!("t{}", self.random.below(3))});
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
            "spec": {"replicas": self.random.below(5), "podManagementPolicy": policy, "serviceName": name,
                "revisionHistoryLimit": self.random.below(3), "selector": {"matchLabels": {"app": name}},
                "updateStrategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"partition": 0, "maxUnavailable": 1 + self.random.below(2)}},
                "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 3,
                    "containers": [{"name": "main", "image": "web:1", "resources": {"requests": {"cpu": "10m"}}}]}}}});
        api.post(&format!("/apis/apps/v1/namespaces/{namespace}/statefulsets"), &set).await
    }

    async fn create_job(&mut self, api: &Api) -> Result<Value, Failure> {
        let namespace = self.namespace(api).await?;
        self.made += 1;
        let image = if self.random.chance(500) { "job:ok" } else { "job:flaky" };
        let mode = if self.random.chance(500) { "Indexed" } else { "NonIndexed" };
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": format!("job-{}", self.made)},
            "spec": {"completions": 1 + self.random.below(6), "parallelism": 1 + self.random.below(4),
                "completionMode": mode, "backoffLimit": self.random.below(5),
                "template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 3,
                    "containers": [{"name": "main", "image": image, "resources": {"requests": {"cpu": "10m"}}}]}}}});
        api.post(&format!("/apis/batch/v1/namespaces/{namespace}/jobs"), &job).await
    }

    /// The path of one of the existing objects.
    async fn some(&self, api: &Api, group: &str, resource: &str) -> Result<(String, Value), Failure> {
        let list = api.get(&format!("{group}/{resource}")).await?;
        let items: Vec<&Value> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|item| item["metadata"]["namespace"].as_str().is_some_and(|ns| ns.starts_with("ns-")))
            .collect();
        let item = self.random.pick(&items).ok_or(Failure::Refused { code: 404, message: format!("no {resource}") })?;
        let (namespace, name) = (text(&item["metadata"]["namespace"]), text(&item["metadata"]["name"]));
        Ok((format!("{group}/namespaces/{namespace}/{resource}/{name}"), (*item).clone()))
    }

    async fn scale(&mut self, api: &Api) -> Result<Value, Failure> {
        let (path, _) = self.some(api, "/apis/apps/v1", self.kind()).await?;
        api.merge(&format!("{path}/scale"), &json!({"spec": {"replicas": self.random.below(8)}})).await
    }

    async fn update(&mut self, api: &Api) -> Result<Value, Failure> {
        let (path, _) = self.some(api, "/apis/apps/v1", self.kind()).await?;
        self.made += 1;
        let image = format!("web:{}", 2 + self.made % 5);
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
        api.strategic(&path, &patch).await
    }

    /// As `kubectl rollout undo` does: an older ReplicaSet's template becomes the deployment's.
    async fn roll_back(&mut self, api: &Api) -> Result<Value, Failure> {
        let (path, deployment) = self.some(api, "/apis/apps/v1", "deployments").await?;
        let namespace = text(&deployment["metadata"]["namespace"]);
        let sets = api.get(&format!("/apis/apps/v1/namespaces/{namespace}/replicasets")).await?;
        let own = |set: &&Value| {
            let owners = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            owners.into_iter().any(|owner| owner["uid"] == deployment["metadata"]["uid"])
        };
        let own: Vec<&Value> = sets["items"].as_array().into_iter().flatten().filter(own).collect();
        let set = self.random.pick(&own).ok_or(Failure::Refused { code: 404, message: "no history".into() })?;
        let mut template = set["spec"]["template"].clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        api.json_patch(&path, &json!([{"op": "replace", "path": "/spec/template", "value": template}])).await
    }

    async fn delete_deployment(&mut self, api: &Api) -> Result<Value, Failure> {
        let (path, _) = self.some(api, "/apis/apps/v1", "deployments").await?;
        let policy = ["Background", "Foreground", "Background", "Orphan"][self.random.below(4) as usize];
        api.delete(&path, &json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy})).await
    }

    async fn delete_some(&mut self, api: &Api, group: &str, resource: &str) -> Result<Value, Failure> {
        let (path, _) = self.some(api, group, resource).await?;
        api.delete(&path, &json!({"apiVersion": "v1", "kind": "DeleteOptions"})).await
    }

    async fn create_service(&mut self, api: &Api) -> Result<Value, Failure> {
        let namespace = self.namespace(api).await?;
        self.made += 1;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{}", self.made)},
            "spec": {"selector": {"tier": format!("t{}", self.random.below(3))}, "ports": [{"port": 80, "targetPort": 8080}]}});
        api.post(&format!("/api/v1/namespaces/{namespace}/services"), &service).await
    }

    async fn delete_namespace(&mut self, api: &Api) -> Result<Value, Failure> {
        let path = format!("/api/v1/namespaces/ns-{}", self.random.below(3));
        api.delete(&path, &json!({"apiVersion": "v1", "kind": "DeleteOptions"})).await
    }
}
