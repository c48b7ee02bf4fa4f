//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Apply,
    Update,
}

/// What tells one entry from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerId {
    pub manager: String,
    pub kind: Kind,
    /// Empty for [`Kind::Apply`]: an applier has one entry whatever versions it uses.
    pub api_version: String,
    pub subresource: String,
}

impl ManagerId {
    pub fn new(manager: &str, kind: Kind, api_version: &str, subresource: &str) -> Self {
        let api_version = if kind == Kind::Apply { "" } else { api_version };
        Self {
            manager: manager.to_owned(),
            kind,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// The manager as messages name it.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.kind == Kind::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub set: FieldSet,
    pub api_version: String,
    pub time: Option<String>,
}

pub(super) type Managers = BTreeMap<ManagerId, Owned>;

fn list(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

/// The managers of an object from outside; none if one entry is malformed.
pub(super) fn read(object: &Value) -> Option<Managers> {
    read_with(object, FieldSet::from_fields_v1)
}

/// The managers of a stored object, which this module wrote.
pub(super) fn read_own(object: &Value) -> Option<Managers> {
    read_with(object, FieldSet::from_own_fields_v1)
}

/// Whether two objects have the same managers.
pub(super) fn are_equal(left: &Value, right: &Value) -> bool {
    list(left) == list(right)
}

fn read_with(object: &Value, set: impl Fn(&Value) -> Option<FieldSet>) -> Option<Managers> {
    let mut managers = Managers::new();
    for entry in list(object).into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = match text("operation") {
            "Apply" => Kind::Apply,
            "Update" => Kind::Update,
            _ => return None,
        };
        if text("fieldsType") != "FieldsV1" {
            return None;
        }
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => set(fields)?,
        };
        let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
        let id = ManagerId::new(text("manager"), kind, text("apiVersion"), text("subresource"));
        managers.insert(id, Owned { set: fields, api_version: text("apiVersion").to_owned(), time });
    }
    Some(managers)
}

/// Whether the client asks for all owners to be forgotten: a single empty entry.
pub(super) fn is_reset(object: &Value) -> bool {
    list(object).is_some_and(|entries| match entries.as_slice() {
        [one] => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    })
}

/// Takes the managers out of an object.
pub(super) fn clear(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// Writes the managers into an object: appliers first, then by time.
pub(super) fn write(object: &mut Value, managers: Managers) {
    clear(object);
    if managers.is_empty() || !object.is_object() {
        return;
    }
    let mut sorted: Vec<(ManagerId, Owned)> = managers.into_iter().collect();
    sorted.sort_by(|(a, x), (b, y)| {
        (a.kind, &x.time, &a.manager, &x.api_version, &a.subresource).cmp(&(
            b.kind,
            &y.time,
            &b.manager,
            &y.api_version,
            &b.subresource,
        ))
    });
    let entries = sorted.into_iter().map(|(id, owned)| entry(id, owned)).collect();
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata["managedFields"] = Value::Array(entries);
}

fn entry(id: ManagerId, owned: Owned) -> Value {
    let operation = match id.kind {
        Kind::Apply => "Apply",
        Kind::Update => "Update",
    };
    let mut entry = Map::new();
    let mut put = |key: &str, value: Value| drop(entry.insert(key.to_owned(), value));
    put("manager", id.manager.into());
    put("operation", operation.into());
    put("apiVersion", owned.api_version.into());
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", owned.set.into_fields_v1());
    if let Some(time) = owned.time {
        put("time", time.into());
    }
    if !id.subresource.is_empty() {
        put("subresource", id.subresource.into());
    }
    Value::Object(entry)
}

/// Most managers by update that are kept apart.
const MAX_UPDATERS: usize = 10;

/// The manager that the oldest updates are counted under when there are too many.
const ANCIENT: &str = "ancient-changes";

/// Joins the oldest managers by update, per version, until few enough are left.
pub(super) fn cap_updaters(managers: &mut Managers) {
    let mut updaters: Vec<ManagerId> = managers.keys().filter(|id| id.kind == Kind::Update).cloned().collect();
    let mut count = updaters.len();
    updaters.sort_by(|a, b| (&managers[a].time, a).cmp(&(&managers[b].time, b)));
    let mut first_of_version: BTreeMap<String, ManagerId> = BTreeMap::new();
    for id in updaters {
        if count <= MAX_UPDATERS {
            return;
        }
        let version = managers[&id].api_version.clone();
        let Some(first) = first_of_version.get(&version) else {
            first_of_version.insert(version, id);
            continue;
        };
        let bucket = ManagerId::new(ANCIENT, Kind::Update, &version, "");
        if *first != bucket
            && let Some(owned) = managers.remove(first)
        {
            join(managers, bucket.clone(), owned);
            first_of_version.insert(version, bucket.clone());
        }
        if id != bucket
            && let Some(owned) = managers.remove(&id)
        {
            join(managers, bucket, owned);
        }
        count -= 1;
    }
}

fn join(managers: &mut Managers, bucket: ManagerId, owned: Owned) {
    match managers.get_mut(&bucket) {
        None => {
            managers.insert(bucket, owned);
        }
        Some(existing) => {
            existing.set = std::mem::take(&mut existing.set).union(owned.set);
            existing.time = owned.time;
        }
    }
}
