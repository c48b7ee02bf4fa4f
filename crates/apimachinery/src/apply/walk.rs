//! How a value looks through its type: where ownership stops (a leaf), and what the elements below are.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::schema::{ANY, Field, ListKind, Name, Shape, Type};

/// A value as owners see it.
pub(super) enum View<'a> {
    /// Owned as a whole.
    Leaf,
    /// A list of items that are told apart.
    List(Items<'a>),
    /// Entries, each owned on its own.
    Map(&'a Type),
}

/// How the items of a list are told apart.
#[derive(Clone, Copy)]
pub(super) struct Items<'a> {
    pub ty: &'a Type,
    pub keys: &'a [Name],
}

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// The view of a value. Null looks like the empty value of its type.
pub(super) fn view<'a>(ty: &'a Type, value: &Value) -> View<'a> {
    match (&ty.shape, value) {
        (Shape::List { item, kind: ListKind::Set, .. }, Value::Array(_) | Value::Null) => {
            View::List(Items { ty: item, keys: &[] })
        }
        (Shape::List { item, kind: ListKind::Map(keys), .. }, Value::Array(_) | Value::Null) => {
            View::List(Items { ty: item, keys })
        }
        (Shape::Map { atomic: false, .. } | Shape::Struct { atomic: false, .. }, Value::Object(_) | Value::Null) => {
            View::Map(ty)
        }
        (Shape::Any, Value::Object(_)) => View::Map(&ANY),
        _ => View::Leaf,
    }
}

/// The view that two values share; values that look different are leaves.
pub(super) fn common_view<'a>(ty: &'a Type, left: Option<&Value>, right: Option<&Value>) -> View<'a> {
    match (left, right) {
        (None, None) => View::Leaf,
        (Some(one), None) | (None, Some(one)) => view(ty, one),
        (Some(left), Some(Value::Null)) => view(ty, left),
        (Some(Value::Null), Some(right)) => view(ty, right),
        (Some(left), Some(right)) => match (view(ty, left), view(ty, right)) {
            (View::List(_), view @ View::List(_)) | (View::Map(_), view @ View::Map(_)) => view,
            _ => View::Leaf,
        },
    }
}

/// The entries of an object; none for anything else.
pub(super) fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The items of a list; none for anything else.
pub(super) fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The type of an entry, and whether it is a declared field.
pub(super) fn entry<'a>(ty: &'a Type, key: &str) -> (&'a Type, Option<&'a Field>) {
    let known = ty.field(key);
    (known.map_or_else(|| ty.child(key).unwrap_or(&ANY), |f| &f.ty), known)
}

impl Items<'_> {
    /// The element of an item; none if it has no value for any key.
    pub fn element(&self, item: &Value) -> Option<String> {
        if self.keys.is_empty() {
            return (!item.is_object() && !item.is_array()).then(|| format!("v:{item}"));
        }
        let map = item.as_object()?;
        let mut keys = Map::new();
        for key in self.keys {
            let default = || self.ty.field(key).and_then(|f| f.default.as_ref());
            if let Some(value) = map.get(key.as_ref()).filter(|v| !v.is_null()).or_else(default) {
                keys.insert(key.clone().into_owned(), value.clone());
            }
        }
        (!keys.is_empty()).then(|| format!("k:{}", Value::Object(keys)))
    }

    /// The elements of a list's items. An item without one is told by its place.
    pub fn elements(&self, items: &[Value]) -> Vec<String> {
        items.iter().enumerate().map(|(i, item)| self.element(item).unwrap_or_else(|| format!("i:{i}"))).collect()
    }
}

/// Whether two values are equal; numbers are by value.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(l), Value::Number(r)) => l == r || l.as_f64() == r.as_f64(),
        (Value::Array(l), Value::Array(r)) => l.len() == r.len() && l.iter().zip(r).all(|(l, r)| same(l, r)),
        (Value::Object(l), Value::Object(r)) => {
            l.len() == r.len() && l.iter().all(|(key, l)| r.get(key).is_some_and(|r| same(l, r)))
        }
        _ => left == right,
    }
}

/// What Go writes for a field that is not set, inside an object that is there: `{}` for a struct that is no pointer,
/// `null` for a list or map that is required. A client that sets such a field changes it rather than adds it.
pub(super) fn implied(ty: &Type, field: &Field) -> Option<&'static Value> {
    if field.value_struct {
        return Some(&EMPTY);
    }
    let built_in = !ty.name.is_empty();
    (built_in && field.required && matches!(field.ty.shape, Shape::List { .. } | Shape::Map { .. }))
        .then_some(&Value::Null)
}
