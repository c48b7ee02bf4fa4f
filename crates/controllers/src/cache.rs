//! One watched copy of each kind, shared by every controller of the process.
//!
//! A cache lists its kind, then follows a watch from the list's revision. Three rules make it safe to act on:
//!
//! - An object replaces another only if its revision is higher.
//! - What this process writes is put into the cache at once ([`Cache::observe`]), so a controller sees its own writes
//!   before the watch delivers them and never creates something twice. A write that the watch has already
//!   passed is ignored, so that an object deleted meanwhile does not come back.
//! - Subscribers are told *that* something changed, with the object before and after, and look up the rest themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::{Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::stream::{Item, Sink, Source};

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What a cache can hold.
pub trait Object: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Object for K where K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static {}

/// An object before and after a change; never both absent.
pub struct Change<K> {
    /// As it was.
    pub old: Option<Arc<K>>,
    /// As it is.
    pub new: Option<Arc<K>>,
}

impl<K: Object> Change<K> {
    /// The key of the object that changed.
    pub fn key(&self) -> Key {
        Key::of(self.any())
    }

    /// The object as it is, or as it was if it is gone.
    pub fn any(&self) -> &K {
        self.new.as_deref().or(self.old.as_deref()).expect("a change has an old or a new object")
    }

    /// Both states that exist, old first.
    pub fn both(&self) -> impl Iterator<Item = &K> {
        self.old.as_deref().into_iter().chain(self.new.as_deref())
    }
}

type Subscriber<K> = Arc<dyn Fn(&Change<K>) + Send + Sync>;

/// Gives the terms under which [`Cache::by_index`] finds an object.
pub type Indexer<K> = fn(&K) -> Vec<String>;

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    index: BTreeMap<String, BTreeSet<Key>>,
    indexer: Option<Indexer<K>>,
    subscribers: Vec<Subscriber<K>>,
    /// Every event up to this revision has been delivered by list or watch.
    seen: u64,
    /// Objects (by uid) that the server no longer has, though the watch has not told so yet.
    gone: BTreeSet<String>,
}

/// A watched copy of one kind. Cheap to clone.
pub struct Cache<K> {
    state: Arc<Mutex<State<K>>>,
    synced: Arc<watch::Sender<bool>>,
    scope: Scope,
}

/// The part of a kind that a cache follows.
#[derive(Clone, Debug, Default)]
struct Scope {
    namespace: Option<String>,
    fields: Option<String>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), synced: self.synced.clone(), scope: self.scope.clone() }
    }
}

impl<K: Object> Default for Cache<K> {
    fn default() -> Self {
        Self::new(None)
    }
}

impl<K: Object> Cache<K> {
    /// An empty cache that indexes by `indexer`.
    pub fn new(indexer: Option<Indexer<K>>) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            index: BTreeMap::new(),
            indexer,
            subscribers: Vec::new(),
            seen: 0,
            gone: BTreeSet::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            synced: Arc::new(watch::Sender::new(false)),
            scope: Scope::default(),
        }
    }

    /// Follows only one namespace.
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.scope.namespace = Some(namespace.to_owned());
        self
    }

    /// Follows only what the field selector matches.
    pub fn with_fields(mut self, selector: &str) -> Self {
        self.scope.fields = Some(selector.to_owned());
        self
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `handler` for every change from now on. It runs on the watching task and must not block.
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.lock().subscribers.push(Arc::new(handler));
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.lock().objects.get(key).cloned()
    }

    /// Every object, by key.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.lock().objects.values().cloned().collect()
    }

    /// Every key.
    pub fn keys(&self) -> Vec<Key> {
        self.lock().objects.keys().cloned().collect()
    }

    /// The objects of one namespace, by name.
    pub fn namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let start = Key::new(namespace, "");
        let state = self.lock();
        state.objects.range(start..).take_while(|(k, _)| k.namespace == namespace).map(|(_, v)| v.clone()).collect()
    }

    /// The objects that the indexer filed under `term`, by key.
    pub fn by_index(&self, term: &str) -> Vec<Arc<K>> {
        let state = self.lock();
        let keys = state.index.get(term).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in an object this process has just read or written.
    pub fn observe(&self, object: K) {
        let changes = {
            let mut state = self.lock();
            if revision(&object) <= state.seen { None } else { state.put(object) }
        };
        self.notify(changes);
    }

    /// Takes in the deletion of an object by this process: `object` is what the cache held when it was deleted.
    pub fn observe_deleted(&self, object: &K) {
        let change = {
            let mut state = self.lock();
            let key = Key::of(object);
            let same = state.objects.get(&key).is_some_and(|held| held.meta().uid == object.meta().uid);
            if same { state.remove(&key) } else { None }
        };
        self.notify(change);
    }

    /// Takes in that the server does not have this object: a late event of the watch will not bring it back.
    pub fn observe_gone(&self, object: &K) {
        {
            let mut state = self.lock();
            let held = state.objects.get(&Key::of(object)).is_some_and(|held| held.meta().uid == object.meta().uid);
            if let Some(uid) = object.meta().uid.clone().filter(|_| held) {
                state.gone.insert(uid);
            }
        }
        self.observe_deleted(object);
    }

    /// Takes in what the server has in place of an object: it, a newer state of it, another of its name, or nothing.
    pub fn observe_live(&self, held: &K, live: Option<K>) {
        if live.as_ref().is_none_or(|live| live.meta().uid != held.meta().uid) {
            self.observe_gone(held);
        }
        if let Some(live) = live {
            self.observe(live);
        }
    }

    fn notify(&self, changes: impl IntoIterator<Item = Change<K>>) {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return;
        }
        let subscribers = self.lock().subscribers.clone();
        for change in changes {
            subscribers.iter().for_each(|subscriber| subscriber(&change));
        }
    }

    fn replace(&self, items: Vec<K>, at: u64) {
        let changes = self.lock().replace(items, at);
        self.notify(changes);
        self.synced.send_replace(true);
    }

    fn source(&self, client: &Client, namespace: Option<&str>) -> Source<Whole<K>> {
        Source {
            client: client.clone(),
            request: kube::core::Request::new(K::url_path(&(), namespace)),
            fields: self.scope.fields.clone(),
            metadata_only: false,
            item: PhantomData,
        }
    }

    /// Reads the objects of one namespace from the server, for when it is unknown whether a write was applied.
    pub async fn refresh(&self, client: &Client, namespace: &str) -> Result<(), kube::Error> {
        let (items, _) = self.source(client, Some(namespace)).list().await?;
        items.into_iter().for_each(|item| self.observe(item.0));
        Ok(())
    }

    /// Keeps the cache in step with the server, for ever.
    pub async fn follow(self, client: Client) {
        self.source(&client, self.scope.namespace.as_deref()).follow(&self).await;
    }
}

/// A whole object, as lists and watches bring it.
#[derive(Clone, Deserialize)]
#[serde(transparent, bound = "K: DeserializeOwned")]
struct Whole<K>(K);

impl<K: Object> Item for Whole<K> {
    fn revision(&self) -> u64 {
        revision(&self.0)
    }

    fn slim(&mut self) {
        self.0.meta_mut().managed_fields = None;
    }
}

impl<K: Object> Sink<Whole<K>> for Cache<K> {
    fn listed(&self, items: Vec<Whole<K>>, at: u64) {
        self.replace(items.into_iter().map(|item| item.0).collect(), at);
    }

    fn changed(&self, item: Whole<K>, at: u64) {
        let change = self.lock().watched(at, |state| state.put(item.0));
        self.notify(change);
    }

    fn deleted(&self, item: Whole<K>, at: u64) {
        let change = self.lock().watched(at, |state| state.deleted(&item.0));
        self.notify(change);
    }

    fn passed(&self, at: u64) {
        self.lock().watched(at, |_| None);
    }
}

impl<K: Object> State<K> {
    /// Applies what a watch delivered, up to revision `at`.
    fn watched(&mut self, at: u64, apply: impl FnOnce(&mut Self) -> Option<Change<K>>) -> Option<Change<K>> {
        self.seen = self.seen.max(at);
        apply(self)
    }

    fn put(&mut self, mut object: K) -> Option<Change<K>> {
        let key = Key::of(&object);
        if object.meta().uid.as_ref().is_some_and(|uid| self.gone.contains(uid)) {
            return None;
        }
        let held = self.objects.get(&key);
        if held.is_some_and(|held| revision(held.as_ref()) >= revision(&object)) {
            return None;
        }
        object.meta_mut().managed_fields = None;
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        self.reindex(&key, old.as_deref(), Some(&new));
        Some(Change { old, new: Some(new) })
    }

    fn remove(&mut self, key: &Key) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        self.reindex(key, Some(&old), None);
        Some(Change { old: Some(old), new: None })
    }

    fn deleted(&mut self, object: &K) -> Option<Change<K>> {
        let key = Key::of(object);
        if let Some(uid) = &object.meta().uid {
            self.gone.remove(uid);
        }
        let newer = self.objects.get(&key).is_some_and(|held| revision(held.as_ref()) > revision(object));
        if newer { None } else { self.remove(&key) }
    }

    /// Takes in a whole list made at revision `at`; what was written later stays.
    fn replace(&mut self, items: Vec<K>, at: u64) -> Vec<Change<K>> {
        self.gone.clear();
        let listed: BTreeSet<Key> = items.iter().map(Key::of).collect();
        let gone: Vec<Key> = (self.objects.iter())
            .filter(|(key, held)| !listed.contains(key) && revision(held.as_ref()) <= at)
            .map(|(key, _)| key.clone())
            .collect();
        let mut changes: Vec<_> = gone.iter().filter_map(|key| self.remove(key)).collect();
        changes.extend(items.into_iter().filter_map(|item| self.put(item)));
        self.seen = self.seen.max(at);
        changes
    }

    fn reindex(&mut self, key: &Key, old: Option<&K>, new: Option<&K>) {
        let Some(indexer) = self.indexer else { return };
        let (old, new) = (old.map(indexer).unwrap_or_default(), new.map(indexer).unwrap_or_default());
        for term in old.iter().filter(|term| !new.contains(term)) {
            if let Some(keys) = self.index.get_mut(term) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(term);
                }
            }
        }
        for term in new {
            self.index.entry(term).or_default().insert(key.clone());
        }
    }
}

/// The revision of an object; 0 if it has none.
pub fn revision(object: &impl Resource) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn map(name: &str, revision: u64) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(revision.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn cache() -> Cache<ConfigMap> {
        Cache::new(Some(|map| vec![map.metadata.name.clone().unwrap_or_default()[..1].to_owned()]))
    }

    #[test]
    fn own_writes_show_at_once_and_stale_ones_never() {
        let cache = cache();
        cache.replace(vec![map("a", 1)], 5);
        cache.observe(map("b", 7));
        assert_eq!(cache.keys().len(), 2);
        cache.observe(map("c", 4));
        assert_eq!(cache.keys().len(), 2, "the watch has passed revision 4, so that object is gone already");
        let older = cache.lock().watched(6, |state| state.put(map("b", 6)));
        assert!(older.is_none());
        let deleted = cache.lock().watched(8, |state| state.deleted(&map("b", 8)));
        assert!(deleted.is_some());
        cache.observe(map("b", 7));
        assert_eq!(cache.keys(), [Key::new("ns", "a")]);
    }

    #[test]
    fn late_events_do_not_bring_back_what_is_gone() {
        let cache = cache();
        cache.replace(vec![map("a", 1)], 5);
        cache.observe_live(&map("a", 1), None);
        assert!(cache.lock().watched(6, |state| state.put(map("a", 6))).is_none());
        assert!(cache.keys().is_empty());
        cache.lock().watched(7, |state| state.deleted(&map("a", 7)));
        assert!(cache.lock().gone.is_empty());
    }

    #[test]
    fn a_list_replaces_all_but_later_writes() {
        let cache = cache();
        cache.replace(vec![map("a", 1), map("ab", 2)], 5);
        cache.observe(map("b", 9));
        cache.replace(vec![map("a", 1)], 8);
        assert_eq!(cache.keys(), [Key::new("ns", "a"), Key::new("ns", "b")]);
        assert_eq!(cache.by_index("a").len(), 1);
        assert_eq!(cache.by_index("b").len(), 1);
        assert!(cache.by_index("c").is_empty());
    }
}
