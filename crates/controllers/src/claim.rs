//! Who manages what: an owner takes over orphans its selector matches, and lets go of what it no longer matches.

use std::sync::Arc;

use kube::Resource;

use crate::labels::Matcher;
use crate::objects::{controller_of, labels};

/// How the candidates relate to an owner.
#[derive(Clone, Debug)]
pub struct Claims<K> {
    /// Managed by the owner, including what it is about to adopt.
    pub mine: Vec<Arc<K>>,
    /// Orphans to take over.
    pub adopt: Vec<Arc<K>>,
    /// Managed by the owner, but no longer matched.
    pub release: Vec<Arc<K>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { mine: Vec::new(), adopt: Vec::new(), release: Vec::new() }
    }
}

/// Sorts out the candidates. An owner that is being deleted neither adopts nor releases.
pub fn claim<K: Resource>(owner: &impl Resource, selector: &Matcher, candidates: &[Arc<K>]) -> Claims<K> {
    let uid = owner.meta().uid.as_deref();
    let deleting = owner.meta().deletion_timestamp.is_some();
    let mut claims = Claims::default();
    for candidate in candidates {
        let meta = candidate.meta();
        let matches = selector.matches(labels(meta));
        match controller_of(meta) {
            Some(manager) if Some(manager.uid.as_str()) == uid => {
                if matches {
                    claims.mine.push(candidate.clone());
                } else if !deleting {
                    claims.release.push(candidate.clone());
                }
            }
            Some(_) => {}
            None => {
                if matches && !deleting && meta.deletion_timestamp.is_none() {
                    claims.mine.push(candidate.clone());
                    claims.adopt.push(candidate.clone());
                }
            }
        }
    }
    claims
}
