//! Strategic merge patch: a merge patch that knows, from the type, which lists to merge and by which key, and that
//! carries directives.
//!
//! | directive | where | effect |
//! |---|---|---|
//! | `$patch: replace` | map, list item | the rest of the patch replaces the map, the list |
//! | `$patch: delete` | map, list item | the map becomes empty, the item with that merge key goes |
//! | `$retainKeys` | map | fields that are not named go |
//! | `$deleteFromPrimitiveList/F` | beside list `F` | these values go |
//! | `$setElementOrder/F` | beside list `F` | the order of the items that the patch names |

use serde_json::{Map, Value};

use super::PatchError;
use super::order::{Identity, normalize};
use crate::schema::{ANY, Field, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch. On an error `target` is as it was.
pub fn strategic(ty: &Type, target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(malformed("strategic merge patch format is not supported"));
    };
    let original = match target {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    *target = Value::Object(merge_map(ty, original, patch.clone())?);
    Ok(())
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

fn unfit(text: impl Into<String>) -> PatchError {
    PatchError::Unfit(text.into())
}

/// What the type says about one field.
struct Strategy<'a> {
    ty: &'a Type,
    merge_lists: bool,
    replace_maps: bool,
    key: Option<&'a str>,
}

impl<'a> Strategy<'a> {
    fn of(ty: &'a Type, field: &str) -> Self {
        let known: Option<&Field> = ty.field(field);
        Self {
            ty: ty.child(field).unwrap_or(&ANY),
            merge_lists: known.is_some_and(|f| f.patch_merge),
            replace_maps: known.is_some_and(|f| f.patch_strategy.as_deref() == Some("replace")),
            key: known.and_then(|f| f.merge_key.as_deref()),
        }
    }

    fn item(&self) -> &'a Type {
        match &self.ty.shape {
            Shape::List { item, .. } => item,
            _ => &ANY,
        }
    }
}

fn merge_map(ty: &Type, mut original: Object, mut patch: Object) -> Result<Object, PatchError> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) if directive == "replace" => return Ok(patch),
        Some(Value::String(directive)) if directive == "delete" => return Ok(Map::new()),
        Some(other) => {
            patch.insert(DIRECTIVE.to_owned(), other.clone());
            return Err(unknown_directive(&other, &Value::Object(patch)));
        }
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(ty, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (field, delete) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(field) => (field, true),
            None => (key.as_str(), false),
        };
        if value.is_null() {
            original.remove(field);
            continue;
        }
        let strategy = Strategy::of(ty, field);
        match (original.get_mut(field), value) {
            (Some(Value::Array(old)), Value::Array(new)) => {
                *old = merge_list(&strategy, std::mem::take(old), new, delete)?;
            }
            _ if delete => {}
            (Some(Value::Object(old)), Value::Object(new)) if !strategy.replace_maps => {
                *old = merge_map(strategy.ty, std::mem::take(old), new)?;
            }
            (_, value) => match new_value(value) {
                Some(value) => drop(original.insert(field.to_owned(), value)),
                None => drop(original.remove(field)),
            },
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, item: &Value) -> PatchError {
    unfit(format!("unknown patch type: {} in map: {}", directive.as_str().unwrap_or_default(), go_text(item)))
}

/// Carries out `$retainKeys`.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(malformed("invalid patch format of retainKeys")) };
    let retained = |name: &str| keys.iter().any(|k| k.as_str() == Some(name));
    let is_directive = |name: &str| name.starts_with(DELETE_FROM_LIST) || name.starts_with(SET_ORDER);
    if patch.iter().any(|(name, value)| !value.is_null() && !is_directive(name) && !retained(name)) {
        return Err(malformed("invalid patch format of retainKeys"));
    }
    original.retain(|name, _| retained(name));
    Ok(())
}

/// Merges the lists that come with a `$setElementOrder` and takes them out of the patch.
fn merge_ordered_lists(ty: &Type, original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let ordered: Vec<String> = patch.keys().filter_map(|k| k.strip_prefix(SET_ORDER)).map(str::to_owned).collect();
    for field in ordered {
        let Some(Value::Array(order)) = patch.remove(&format!("{SET_ORDER}{field}")) else {
            return Err(malformed("invalid patch format of setElementOrder list"));
        };
        let strategy = Strategy::of(ty, &field);
        let identity = Identity(strategy.key);
        if order.iter().any(|item| identity.of(item).is_none()) {
            return Err(malformed("invalid patch format of setElementOrder list"));
        }
        if let Some(Value::Array(items)) = patch.get(&field) {
            check_order(items, &order, identity)?;
        }
        let Some(server) = take_list(original, &field)? else {
            // A list that is new, or deleted by a null, needs no order but its own.
            continue;
        };
        let delete = patch.remove(&format!("{DELETE_FROM_LIST}{field}"));
        let mut merged = server.clone();
        if let Some(Value::Array(gone)) = delete {
            merged.retain(|item| !gone.contains(item));
        }
        match patch.get(&field) {
            Some(Value::Null) => continue,
            None => {}
            Some(Value::Array(_)) => {
                let Some(Value::Array(items)) = patch.remove(&field) else { continue };
                merged = merge_list(&strategy, merged, items, false)?;
            }
            Some(_) => return Err(unfit(format!("expected a list in field {field:?}"))),
        }
        original.insert(field, Value::Array(normalize(merged, &order, &server, identity)));
    }
    Ok(())
}

fn take_list(original: &mut Object, field: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match original.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(_) => Err(unfit(format!("expected a list in field {field:?}"))),
    }
}

/// The items of the patch that stay must come in the stated order.
fn check_order(items: &[Value], order: &[Value], identity: Identity<'_>) -> Result<(), PatchError> {
    let directive = |item: &Value| item.get(DIRECTIVE).cloned();
    let mut staying = items.iter().filter(|item| directive(item) != Some("delete".into())).peekable();
    let mut order_left = order.iter();
    // Other directives are passed over while the order lasts.
    while let (Some(item), false) = (staying.peek(), order_left.as_slice().is_empty()) {
        let found = match directive(item) {
            Some(_) => true,
            None => order_left.next().and_then(|o| identity.of(o)) == identity.of(item),
        };
        if found {
            staying.next();
        }
    }
    if staying.peek().is_none() || order.is_empty() || items.is_empty() {
        return Ok(());
    }
    Err(unfit(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        go_list(items),
        go_list(order)
    )))
}

/// A value as Go prints it.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
}

fn merge_list(
    strategy: &Strategy<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
    delete: bool,
) -> Result<Vec<Value>, PatchError> {
    if delete {
        return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
    }
    if !strategy.merge_lists {
        return Ok(patch.into_iter().map(new_item).collect());
    }
    if original.iter().chain(&patch).all(Value::is_object) && !(original.is_empty() && patch.is_empty()) {
        let Some(key) = strategy.key else {
            return Err(unfit(format!("cannot merge lists without merge key for {}", strategy.ty.go_name())));
        };
        return merge_objects(strategy.item(), original, patch, key);
    }
    if original.iter().chain(&patch).any(|item| item.is_object() || item.is_array()) {
        return Err(match original.iter().chain(&patch).any(Value::is_array) {
            true => PatchError::Failed("lists of lists are not supported".to_owned()),
            false => unfit("list element types are not identical"),
        });
    }
    let mut merged: Vec<Value> = Vec::new();
    for item in original.iter().chain(&patch) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    Ok(normalize(merged, &patch, &original, Identity(None)))
}

fn merge_objects(ty: &Type, mut original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<Vec<Value>, PatchError> {
    let identity = Identity(Some(key));
    let no_key = |item: &Value| unfit(format!("map: {} does not contain declared merge key: {key}", go_text(item)));
    let mut replace = false;
    let mut items = Vec::new();
    for item in patch {
        match item.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => items.push(item),
            Some("replace") => replace = true,
            Some("delete") => {
                let gone = identity.of(&item).ok_or_else(|| no_key(&item))?;
                original.retain(|other| identity.of(other) != Some(gone));
            }
            Some("merge") => return Err(unfit("merging lists cannot yet be specified in the patch")),
            Some(_) => return Err(unknown_directive(&item[DIRECTIVE], &item)),
        }
    }
    if replace {
        return Ok(items.into_iter().map(new_item).collect());
    }
    let mut merged = original.clone();
    for item in &items {
        identity.of(item).ok_or_else(|| no_key(item))?;
        match identity.position(&merged, item).map(|i| &mut merged[i]) {
            Some(Value::Object(old)) => {
                let new = item.as_object().cloned().unwrap_or_default();
                *old = merge_map(ty, std::mem::take(old), new)?;
            }
            _ => merged.push(new_item(item.clone())),
        }
    }
    Ok(normalize(merged, &items, &original, identity))
}

/// A value that is new in the object, without what is meant for something that was there before: nulls, and maps
/// and items with a directive. None if nothing of it is meant for here.
fn new_value(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(plain_entries(map, new_value))),
        other => new_list_or_scalar(other),
    }
}

/// An item that is new in a merged list. Unlike in a [`new_value`], maps with a directive stay, without it.
fn new_item(item: Value) -> Value {
    match item {
        Value::Object(map) => {
            let entries = plain_entries(map, |value| match value {
                Value::Object(_) => Some(new_item(value)),
                other => new_list_or_scalar(other),
            });
            Value::Object(entries)
        }
        other => other,
    }
}

fn new_list_or_scalar(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(new_value).collect())),
        other => Some(other),
    }
}

fn plain_entries(map: Object, convert: impl Fn(Value) -> Option<Value>) -> Object {
    let is_directive = |key: &str| {
        key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ORDER)
    };
    let entries = map.into_iter().filter(|(key, _)| !is_directive(key));
    entries.filter_map(|(key, value)| Some((key, convert(value)?))).collect()
}
