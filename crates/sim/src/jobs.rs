//! The rules for jobs: every pod is counted once, and never too many run.
//!
//! * A job never has more active pods than its parallelism, nor more than its missing completions.
//! * A pod is not gone before its job has let go of it.
//! * When all has settled, a job's counts are those of the pods it has let go of.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::node::text;

const TRACKING: &str = "batch.kubernetes.io/job-tracking";

struct Job {
    key: String,
    parallelism: i64,
    completions: i64,
    status: Value,
    /// Pods that ended and were let go.
    counted: i64,
    /// Those of them that succeeded and were not replaced.
    succeeded: i64,
    /// Pods that succeeded after they were replaced. Kubernetes counts a pod that is told to go as failed, and the index of
    /// one that succeeds as completed: such a pod may count as both.
    ambiguous: i64,
}

impl Job {
    fn count(&mut self, pod: &Pod) {
        self.counted += 1;
        self.ambiguous += i64::from(pod.succeeded && pod.replaced);
        self.succeeded += i64::from(pod.succeeded && !pod.replaced);
    }
}

struct Pod {
    key: String,
    job: String,
    tracked: bool,
    succeeded: bool,
    active: bool,
    /// It was told to go before it had ended: its job may have replaced it, and it may have succeeded all the same.
    replaced: bool,
}

/// Judges jobs and their pods.
#[derive(Default)]
pub struct Jobs {
    uids: BTreeMap<String, String>,
    jobs: BTreeMap<String, Job>,
    pods: BTreeMap<String, Pod>,
}

impl Jobs {
    /// Forgets everything: events were missed.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Takes in a change, and judges it.
    pub fn event(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        let is_job = key.starts_with("/registry/batch/jobs/");
        if !is_job && !key.starts_with("/registry/core/pods/") {
            return Ok(());
        }
        let Some(value) = value else { return self.gone(key) };
        let object: Value = serde_json::from_slice(value).map_err(|error| format!("{key} holds no JSON: {error}"))?;
        let uid = text(&object["metadata"]["uid"]);
        self.uids.insert(key.to_owned(), uid.clone());
        if is_job { self.job(key, uid, &object) } else { self.pod(key, uid, &object) }
    }

    fn gone(&mut self, key: &str) -> Result<(), String> {
        let Some(uid) = self.uids.remove(key) else { return Ok(()) };
        self.jobs.remove(&uid);
        let Some(pod) = self.pods.remove(&uid).filter(|pod| pod.tracked) else { return Ok(()) };
        let Some(job) = self.jobs.get_mut(&pod.job) else { return Ok(()) };
        if pod.active {
            return Err(format!("pod {key} is gone, and its job has not counted it"));
        }
        // A pod that only waited for its job's finalizer goes with the very write that takes it off.
        job.count(&pod);
        Ok(())
    }

    fn job(&mut self, key: &str, uid: String, object: &Value) -> Result<(), String> {
        let job = self.jobs.entry(uid).or_insert_with(|| Job {
            key: key.to_owned(),
            parallelism: object["spec"]["parallelism"].as_i64().unwrap_or(1),
            completions: object["spec"]["completions"].as_i64().unwrap_or(1),
            status: Value::Null,
            counted: 0,
            succeeded: 0,
            ambiguous: 0,
        });
        let (before, after) = (&job.status["succeeded"], &object["status"]["succeeded"]);
        if before.as_i64() > after.as_i64() {
            return Err(format!("job {key} had {before} successes and now has {after}"));
        }
        job.status = object["status"].clone();
        Ok(())
    }

    fn pod(&mut self, key: &str, uid: String, object: &Value) -> Result<(), String> {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let Some(owner) = owners.into_iter().find(|owner| owner["kind"] == "Job") else { return Ok(()) };
        let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
        let going = object["metadata"]["deletionTimestamp"].is_string();
        let ended = matches!(phase, "Succeeded" | "Failed");
        let known = self.pods.get(&uid);
        let pod = Pod {
            replaced: known.is_some_and(|before| before.replaced)
                || going && known.is_none_or(|before| before.active) && !ended,
            key: key.to_owned(),
            job: text(&owner["uid"]),
            tracked: finalizers.into_iter().any(|finalizer| finalizer == TRACKING),
            succeeded: phase == "Succeeded",
            active: !ended && !going,
        };
        let before = self.pods.get(&uid).map(|before| before.tracked);
        if let Some(job) = self.jobs.get_mut(&pod.job)
            && before == Some(true)
            && !pod.tracked
        {
            if pod.active {
                return Err(format!("{} lets go of {}, which runs", job.key, pod.key));
            }
            job.count(&pod);
        }
        let job = pod.job.clone();
        self.pods.insert(uid, pod);
        if before.is_none() { self.judge_number(&job) } else { Ok(()) }
    }

    fn judge_number(&self, uid: &str) -> Result<(), String> {
        let Some(job) = self.jobs.get(uid) else { return Ok(()) };
        let own = || self.pods.values().filter(|pod| pod.job == uid);
        let active = own().filter(|pod| pod.active).count() as i64;
        let waiting = own().filter(|pod| pod.tracked && pod.succeeded && !pod.replaced).count() as i64;
        let missing = job.completions - job.succeeded - waiting;
        if active > job.parallelism.min(missing) {
            return Err(format!(
                "job {} runs {active} pods, {} at once are allowed and {missing} completions are missing",
                job.key, job.parallelism
            ));
        }
        Ok(())
    }

    /// Jobs whose counts are wrong, or that have not ended.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for job in self.jobs.values() {
            let count = |field: &str| job.status[field].as_i64().unwrap_or(0);
            let conditions = job.status["conditions"].as_array().into_iter().flatten();
            let mut true_ones = conditions.filter(|condition| condition["status"] == "True");
            let end = true_ones.find(|condition| matches!(condition["type"].as_str(), Some("Complete" | "Failed")));
            match end.map(|end| text(&end["type"])) {
                None => faults.push(format!("job {} has not ended: {}", job.key, job.status)),
                Some(end) if end == "Complete" && count("succeeded") != job.completions => {
                    faults.push(format!("job {} is complete with {} successes", job.key, count("succeeded")));
                }
                Some(_) => {}
            }
            let counted = count("succeeded") + count("failed");
            if !(job.counted..=job.counted + job.ambiguous).contains(&counted) {
                faults
                    .push(format!("job {}: {} pods were let go, its status says {}", job.key, job.counted, job.status));
            }
        }
        faults
    }
}
