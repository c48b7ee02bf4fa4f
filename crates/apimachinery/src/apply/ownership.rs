//! The rules by which fields change hands.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use serde_json::Value;

use super::compare::{Changes, compare, fields_of};
use super::managed::{ManagerId, Managers, Owned};
use super::merge::{merge, remove, with_named_fields};
use super::set::FieldSet;
use crate::schema::Type;

/// Fields that have no owner.
const UNOWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages name it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub path: String,
}

impl Conflict {
    /// The message of the status cause, whose reason is `FieldManagerConflict`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// The fields that kept a configuration from being applied. Displays as the message of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    fields: BTreeMap<ManagerId, FieldSet>,
}

impl Conflicts {
    /// The conflicts, by manager.
    pub fn causes(&self) -> Vec<Conflict> {
        let of = |(id, set): (&ManagerId, &FieldSet)| {
            let manager = id.describe();
            set.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path }).collect::<Vec<_>>()
        };
        self.fields.iter().flat_map(of).collect()
    }

    /// What is left when some fields do not matter; none if nothing is.
    pub(super) fn without(&self, allowed: &FieldSet) -> Option<Self> {
        let mut fields: BTreeMap<_, _> =
            self.fields.iter().map(|(id, set)| (id.clone(), set.clone().difference(allowed))).collect();
        fields.retain(|_, set| !set.is_empty());
        (!fields.is_empty()).then_some(Self { fields })
    }
}

impl std::error::Error for Conflicts {}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes = self.causes();
        if let [one] = causes.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path);
        }
        let mut lines = Vec::new();
        for (id, set) in &self.fields {
            lines.push(format!("conflicts with {}:", id.describe()));
            lines.extend(set.paths().into_iter().map(|path| format!("- {path}")));
        }
        write!(f, "Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
    }
}

/// An object after a write, and its owners.
pub(super) struct Taken {
    pub object: Value,
    pub managers: Managers,
}

/// The type of the object and the fields that the write does not own.
pub(super) struct Context<'a> {
    pub ty: &'a Type,
    ignored: FieldSet,
}

impl<'a> Context<'a> {
    pub fn new(ty: &'a Type, ignored: &[&[&str]]) -> Self {
        Self { ty, ignored: fields_named(ignored) }
    }

    /// What the write may own of a set.
    fn owned(&self, mut set: FieldSet) -> FieldSet {
        static UNOWNED_FIELDS: LazyLock<FieldSet> = LazyLock::new(|| fields_named(&UNOWNED));
        set.subtract_trees(&self.ignored);
        set.subtract(&UNOWNED_FIELDS);
        set
    }

    /// Records a write other than apply. Takes from all managers what changed or went, and returns what changed.
    pub fn update(&self, old: &Value, new: &Value, managers: &mut Managers) -> FieldSet {
        let changes = compare(self.ty, old, new).without(&self.ignored);
        for owned in managers.values_mut() {
            owned.set.subtract(&changes.modified);
            owned.set.subtract(&changes.added);
            owned.set.subtract(&changes.removed);
        }
        managers.retain(|_, owned| !owned.set.is_empty());
        self.owned(changes.modified.union(changes.added))
    }

    /// Applies a configuration.
    pub fn apply(
        &self,
        live: &Value,
        config: &Value,
        mut managers: Managers,
        id: &ManagerId,
        version: &str,
        force: bool,
    ) -> Result<Taken, Conflicts> {
        let last = managers.remove(id);
        // Fields without an owner count until the end: they keep `metadata` from being taken for abandoned.
        let mut set = fields_of(self.ty, config);
        set.subtract_trees(&self.ignored);
        let time = last.as_ref().and_then(|owned| owned.time.clone());
        managers.insert(id.clone(), Owned { set, api_version: version.to_owned(), time });
        let mut object = merge(self.ty, live, config);
        if let Some(last) = last {
            object = self.pruned(object, &managers, &last.set);
        }
        let changes = compare(self.ty, live, &object).without(&self.ignored);
        take(&changes, &mut managers, id, force)?;
        if let Some(mine) = managers.get_mut(id) {
            mine.set = self.owned(std::mem::take(&mut mine.set));
        }
        managers.retain(|_, owned| !owned.set.is_empty());
        Ok(Taken { object, managers })
    }

    /// The object without the fields that were applied last time and that nobody owns now.
    fn pruned(&self, object: Value, managers: &Managers, last: &FieldSet) -> Value {
        let named = |set: &FieldSet| with_named_fields(self.ty, set);
        let of = |value: &Value| named(&fields_of(self.ty, value));
        let without =
            |set: &FieldSet| remove(self.ty, &object, set).unwrap_or_else(|| Value::Object(Default::default()));
        let (all, last) = (of(&object), named(last));
        let owned = managers.values().fold(FieldSet::default(), |union, owned| union.union(owned.set.clone()));
        // Everything applied last time goes, but comes back if it has an owner, or if it was not applied last time.
        let bare = without(&last);
        let kept = without(&all.clone().difference(&of(&bare).union(named(&owned))));
        without(&all.difference(&of(&kept)).intersection(&last))
    }
}

fn fields_named(paths: &[&[&str]]) -> FieldSet {
    paths.iter().fold(FieldSet::default(), |set, path| set.union(FieldSet::of_field(path)))
}

/// Takes changed fields from all managers but one, if they let go of them.
fn take(changes: &Changes, managers: &mut Managers, winner: &ManagerId, force: bool) -> Result<(), Conflicts> {
    let changed = changes.modified.clone().union(changes.added.clone());
    let mut fields = BTreeMap::new();
    for (id, owned) in managers.iter().filter(|(id, _)| *id != winner) {
        let lost = owned.set.intersection(&changed);
        if !lost.is_empty() {
            fields.insert(id.clone(), lost);
        }
    }
    if !force && !fields.is_empty() {
        return Err(Conflicts { fields });
    }
    for (id, owned) in managers.iter_mut().filter(|(id, _)| *id != winner) {
        let lost = fields.remove(id).unwrap_or_default();
        owned.set.subtract(&lost);
        owned.set.subtract(&changes.removed);
    }
    managers.retain(|_, owned| !owned.set.is_empty());
    Ok(())
}
