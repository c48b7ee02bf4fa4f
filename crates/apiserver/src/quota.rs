//! ResourceQuotas: every write into a namespace that has some is charged to them in its own transaction.
//!
//! ```text
//!  ops ─► lock of the namespace ─► use before and after ─► refuse, or ops + new status of the quotas ─► store
//! ```
//!
//! A quota's `status.used` therefore is exact at every revision: no controller counts behind the writers. Writers of
//! one namespace with quotas take turns; namespaces without any pay one look into a set. A client that may write a
//! quota's status can make it say otherwise for a moment, as in Kubernetes: then it is counted anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mycelium_kinds::admission::quota::{self, Counted};
use mycelium_store::{CommitError, Committed, Expect, Op, Store};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::codec;
use crate::server::Inner;

const PREFIX: &str = "/registry/core/resourcequotas/";
/// How long a status stays that a client wrote.
const RESTATED_AFTER: Duration = Duration::from_secs(2);

/// Why a charged transaction was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ChargeError {
    /// A quota does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The store.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Whether use beyond a quota refuses the write. Only what a client asks for is refused; what follows is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// It does.
    Enforced,
    /// It is only counted.
    Counted,
}

/// The namespaces that have, or had, quotas, and whose turn it is to write there.
#[derive(Default)]
pub struct Quotas {
    turns: Mutex<Option<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// Every write passes it beside others, that of a quota alone: what was under way when a namespace got its first quota
    /// would be counted by nobody.
    gate: tokio::sync::RwLock<()>,
}

impl Quotas {
    /// Waits for the turn in each namespace of a transaction that has quotas.
    async fn turns(&self, store: &Store, ops: &[Op]) -> BTreeMap<String, OwnedMutexGuard<()>> {
        let mut taken = BTreeMap::new();
        for (namespace, turn) in self.locks(store, ops) {
            taken.insert(namespace, turn.lock_owned().await);
        }
        taken
    }

    fn locks(&self, store: &Store, ops: &[Op]) -> BTreeMap<String, Arc<tokio::sync::Mutex<()>>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let known = turns.get_or_insert_with(|| {
            let entries = store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
            entries.iter().filter_map(|e| Some((place(&e.key)?.1.to_owned(), Arc::default()))).collect()
        });
        let mut wanted = BTreeMap::new();
        for (counted, namespace) in ops.iter().filter_map(|op| place(changed(op)?)) {
            if counted.resource == "resourcequotas" && !known.contains_key(namespace) {
                known.insert(namespace.to_owned(), Arc::default());
            }
            if let Some(turn) = known.get(namespace) {
                wanted.insert(namespace.to_owned(), turn.clone());
            }
        }
        wanted
    }
}

fn changed(op: &Op) -> Option<&str> {
    match op {
        Op::Put { key, .. } | Op::Delete { key, .. } => Some(key),
        Op::Check { .. } => None,
    }
}

/// Kind and namespace of a key.
fn place(key: &str) -> Option<(Counted<'_>, &str)> {
    let mut parts = key.strip_prefix("/registry/")?.split('/');
    let (group, resource, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    let group = if group == "core" { "" } else { group };
    Some((Counted { group, resource }, namespace))
}

/// A quota as the transaction leaves it.
struct Account {
    key: String,
    revision: u64,
    quota: Value,
    changed: bool,
}

/// Writes to the store, charging the quotas of the namespaces concerned.
pub async fn commit(server: &Inner, mut ops: Vec<Op>, limits: Limits, dry: bool) -> Result<Committed, ChargeError> {
    let opens = ops.iter().filter_map(changed).any(|key| key.starts_with(PREFIX));
    let gate = &server.quotas.gate;
    let _alone = if opens { Some(gate.write().await) } else { None };
    let _beside = if opens { None } else { Some(gate.read().await) };
    let turns = server.quotas.turns(&server.store, &ops).await;
    for namespace in turns.keys() {
        charge(&server.store, namespace, &mut ops, limits).map_err(ChargeError::Refused)?;
    }
    if dry {
        return Ok(Committed { revision: 0, entries: Vec::new() });
    }
    Ok(server.store.commit(ops).await?)
}

/// Adds to a transaction what it changes in the quotas of a namespace.
fn charge(store: &Store, namespace: &str, ops: &mut Vec<Op>, limits: Limits) -> Result<(), String> {
    let prefix = format!("{PREFIX}{namespace}/");
    let entries = store.range(&prefix, None, 0, None).map(|page| page.entries).unwrap_or_default();
    let mut accounts: Vec<Account> = Vec::new();
    for entry in entries {
        let Ok(quota) = codec::parse_entry(&entry) else { continue };
        accounts.push(Account { key: entry.key.to_string(), revision: entry.mod_revision, quota, changed: false });
    }
    let written: BTreeSet<&str> = ops.iter().filter_map(changed).filter(|key| key.starts_with(&prefix)).collect();
    accounts.retain(|account| !written.contains(account.key.as_str()));
    for op in ops.iter() {
        apply(store, namespace, op, &mut accounts, limits)?;
    }
    for op in ops.iter_mut() {
        if let Op::Put { key, value, .. } = op
            && key.starts_with(&prefix)
            && let Ok(quota) = codec::parse(value, 0)
        {
            *value = codec::encode(&opened(store, namespace, key, quota));
        }
    }
    for account in accounts.into_iter().filter(|account| account.changed) {
        let expect = Expect::Revision(account.revision);
        ops.push(Op::Put { key: account.key, value: codec::encode(&account.quota), expect });
    }
    Ok(())
}

/// An object's status was written by a client: that of a quota is made true again in a moment.
pub fn status_written(server: &Arc<Inner>, key: &str) {
    if !key.starts_with(PREFIX) {
        return;
    }
    let (server, key) = (Arc::downgrade(server), key.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(RESTATED_AFTER).await;
        if let Some(server) = server.upgrade()
            && let Err(error) = restate(&server, &key).await
        {
            tracing::warn!(%error, key, "a quota's status cannot be written");
        }
    });
}

async fn restate(server: &Inner, key: &str) -> Result<(), CommitError> {
    let Some((_, namespace)) = place(key) else { return Ok(()) };
    let _beside = server.quotas.gate.read().await;
    let op = |value, revision| Op::Put { key: key.to_owned(), value, expect: Expect::Revision(revision) };
    let _turn = server.quotas.turns(&server.store, &[op(Bytes::new(), 0)]).await;
    let Some(entry) = server.store.get(key) else { return Ok(()) };
    let Ok(mut quota) = codec::parse_entry(&entry) else { return Ok(()) };
    let written = quota["status"].take();
    let (hard, used) = (quota::hard(&quota), count(&server.store, namespace, &quota));
    quota::set_status(&mut quota, &hard, &used);
    if quota["status"] == written {
        return Ok(());
    }
    // Whoever was faster wrote it whole.
    match server.store.commit(vec![op(codec::encode(&quota), entry.mod_revision)]).await {
        Err(CommitError::Conflict { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Charges one operation to the quotas that are not themselves written.
fn apply(store: &Store, namespace: &str, op: &Op, accounts: &mut [Account], limits: Limits) -> Result<(), String> {
    let Some((key, (counted, of))) = changed(op).and_then(|key| Some((key, place(key)?))) else { return Ok(()) };
    let concerned = |account: &Account| quota::hard(&account.quota).keys().any(|name| counted.uses(name));
    if of != namespace || !accounts.iter().any(concerned) {
        return Ok(());
    }
    let before = store.get(key).and_then(|entry| codec::parse_entry(&entry).ok());
    let after = match op {
        Op::Put { value, .. } => codec::parse(value, 0).ok(),
        _ => None,
    };
    for account in accounts.iter_mut().filter(|account| concerned(account)) {
        let hard = quota::hard(&account.quota);
        let used_by = |object: &Option<Value>| match object {
            Some(object) if quota::in_scope(&account.quota, counted, object) => {
                quota::mask(&hard, &quota::usage(counted, object))
            }
            _ => BTreeMap::new(),
        };
        if limits == Limits::Enforced
            && before.is_none()
            && counted == (Counted { group: "", resource: "pods" })
            && let Some(pod) = after.as_ref().filter(|pod| quota::in_scope(&account.quota, counted, pod))
            && let Some(refusal) = quota::unstated(&account.quota, pod)
        {
            return Err(refusal);
        }
        let change = quota::difference(&used_by(&after), &used_by(&before));
        if change.is_empty() {
            continue;
        }
        if limits == Limits::Enforced
            && let Some(refusal) = quota::exceeded(&account.quota, &change)
        {
            return Err(refusal);
        }
        let (hard, mut used) = quota::status(&account.quota);
        for (name, amount) in change {
            *used.entry(name).or_default() += amount;
        }
        used.retain(|name, _| hard.contains_key(name));
        quota::set_status(&mut account.quota, &hard, &used);
        account.changed = true;
    }
    Ok(())
}

/// A new or changed quota with its status, for which everything in the namespace is counted once.
fn opened(store: &Store, namespace: &str, key: &str, mut quota: Value) -> Value {
    let hard = quota::hard(&quota);
    let before = store.get(key).and_then(|entry| codec::parse_entry(&entry).ok());
    let same_spec = before.as_ref().is_some_and(|before| before["spec"] == quota["spec"]);
    if same_spec && quota["status"]["hard"].is_object() {
        return quota;
    }
    let mut used = count(store, namespace, &quota);
    // A new quota is not in the store yet, and may be among what it counts.
    let own = Counted { group: "", resource: "resourcequotas" };
    for (name, amount) in quota::mask(&hard, &quota::usage(own, &quota)) {
        if before.is_none() && own.uses(&name) {
            *used.entry(name).or_default() += amount;
        }
    }
    quota::set_status(&mut quota, &hard, &used);
    quota
}

/// What the objects of a namespace use of what a quota limits.
fn count(store: &Store, namespace: &str, quota: &Value) -> quota::Amounts {
    let hard = quota::hard(quota);
    let mut used: quota::Amounts = hard.keys().map(|name| (name.clone(), Default::default())).collect();
    let kinds: BTreeSet<Counted<'_>> = hard.keys().map(|name| quota::counted_by(name)).collect();
    for counted in kinds {
        let group = if counted.group.is_empty() { "core" } else { counted.group };
        let prefix = format!("/registry/{group}/{}/{namespace}/", counted.resource);
        let entries = store.range(&prefix, None, 0, None).map(|page| page.entries).unwrap_or_default();
        for object in entries.iter().filter_map(|entry| codec::parse_entry(entry).ok()) {
            if quota::in_scope(quota, counted, &object) {
                let mine = quota::usage(counted, &object);
                for (name, amount) in quota::mask(&hard, &mine).into_iter().filter(|(name, _)| counted.uses(name)) {
                    *used.entry(name).or_default() += amount;
                }
            }
        }
    }
    used
}
