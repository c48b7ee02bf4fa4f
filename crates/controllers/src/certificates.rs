//! Certificates by request: what was approved is signed by the cluster's authority, which the composition passes in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest as Request, CertificateSigningRequestSpec as Spec};
use serde_json::{Value, json};

use crate::cache::{Cache, Key};
use crate::context::Context;
use crate::queue::Queue;
use crate::write::{Error, Part};

/// The authority: the certificate as PEM, why it is refused, or nothing for a signer that it does not serve.
type Sign = dyn Fn(&Spec) -> Option<Result<String, String>> + Send + Sync;

/// Signs requests.
#[derive(Clone)]
pub struct Signer(Arc<Sign>);

impl Signer {
    /// A signer: the certificate as PEM, why it is refused, or nothing for requests to others.
    pub fn new(sign: impl Fn(&Spec) -> Option<Result<String, String>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(sign))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

/// Whether a request is approved, and neither signed nor given up.
pub fn is_due(request: &Request) -> bool {
    let Some(status) = &request.status else { return false };
    let has = |kind: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == kind);
    status.certificate.is_none() && has("Approved") && !has("Denied") && !has("Failed")
}

/// The new status of a request that was signed, or refused.
fn answer(request: &Request, signed: Result<String, String>, now: jiff::Timestamp) -> Value {
    match signed {
        Ok(certificate) => json!({"status": {"certificate": ByteString(certificate.into_bytes())}}),
        Err(why) => {
            let held = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut conditions: Vec<Value> = held.map(|condition| json!(condition)).collect();
            let at = jiff::Timestamp::from_second(now.as_second()).unwrap_or(now);
            conditions.push(json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                "message": why, "lastUpdateTime": at, "lastTransitionTime": at}));
            json!({"status": {"conditions": conditions}})
        }
    }
}

/// Follows requests, and returns the controller's work.
pub fn start(context: &Context, signer: Signer) -> impl Future<Output = ()> + Send + use<> {
    let requests = Cache::<Request>::default();
    let queue = Queue::<Key>::default();
    let added = queue.clone();
    requests.subscribe(move |change| added.add(change.key()));
    let context = context.clone();
    async move {
        let following = requests.clone().follow(context.writer.client().clone());
        let working = async {
            requests.synced().await;
            let work = |key| reconcile(context.clone(), requests.clone(), signer.clone(), key);
            queue.work("certificates-controller", 1, || requests.keys(), work).await;
        };
        tokio::select! {
            () = following => {}
            () = working => {}
        }
    }
}

async fn reconcile(
    context: Context,
    requests: Cache<Request>,
    signer: Signer,
    key: Key,
) -> Result<Option<Duration>, Error> {
    let Some(request) = requests.get(&key).filter(|request| is_due(request)) else { return Ok(None) };
    let Some(signed) = (signer.0)(&request.spec) else { return Ok(None) };
    let patch = answer(&request, signed, context.env.now());
    match context.writer.patch(&requests, request.as_ref(), &patch, Part::Status).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(conditions: Value, certificate: Option<&str>) -> Request {
        let spec = json!({"request": "", "signerName": "kubernetes.io/kube-apiserver-client", "usages": []});
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec,
            "status": {"conditions": conditions, "certificate": certificate}}))
        .expect("a request")
    }

    #[test]
    fn only_what_is_approved_and_open_is_signed() {
        let one = |kind: &str| json!([{"type": kind, "status": "True"}]);
        assert!(is_due(&request(one("Approved"), None)));
        assert!(!is_due(&request(one("Denied"), None)) && !is_due(&request(json!([]), None)));
        assert!(!is_due(&request(one("Approved"), Some("AAAA"))));
        let failed = answer(&request(one("Approved"), None), Err("no".into()), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(failed["status"]["conditions"][1]["reason"], "SignerValidationFailure");
        let now_held: Request = request(failed["status"]["conditions"].clone(), None);
        assert!(!is_due(&now_held));
    }
}
