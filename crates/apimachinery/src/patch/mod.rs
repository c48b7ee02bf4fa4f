//! The patch types of the API: JSON patch, merge patch, strategic merge patch. (Server-side apply is
//! [`crate::apply`].)

mod order;
mod strategic;

use json_patch::{Patch, PatchErrorKind, PatchOperation};
use serde_json::{Map, Value};

pub use strategic::{go_text, strategic};

/// Most operations of a JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// Most bytes that the `copy` operations of one patch may copy together.
const MAX_COPIED: usize = 3 << 20;

/// Deepest nesting that a patch may make.
const MAX_DEPTH: usize = 512;

/// A patch that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is no patch; the answer is 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is one, but not of this object; the answer is 422.
    #[error("{0}")]
    Failed(String),
    /// What Kubernetes has no code for: its answer is a 500 with this text.
    #[error("{0}")]
    Unfit(String),
    /// The patch has too many operations; the answer is 413.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooLarge(usize),
}

/// Applies a JSON patch (RFC 6902): all of it or nothing.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if let Some(operations) = patch.as_array().filter(|o| o.len() > MAX_OPERATIONS) {
        return Err(PatchError::TooLarge(operations.len()));
    }
    check_operations(patch)?;
    let operations: Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Failed(error.to_string()))?;
    let mut copy = target.clone();
    let mut copied = 0;
    for operation in operations.0 {
        check_growth(&copy, &operation, &mut copied)?;
        if tests_absence(&copy, &operation) {
            continue;
        }
        json_patch::patch_unsafe(&mut copy, std::slice::from_ref(&operation)).map_err(|e| failure(&operation, &e))?;
    }
    *target = copy;
    Ok(())
}

/// Whether an operation tests that a member is null which is not there: in Kubernetes that holds, and clients' finalizers rely on it.
fn tests_absence(target: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let parent = path.rsplit_once('/').and_then(|(parent, _)| target.pointer(parent));
    test.value.is_null() && parent.is_some_and(Value::is_object) && target.pointer(path).is_none()
}

/// A patch is a list of objects, whose members that are texts are no numbers; what else is wrong with them shows only
/// when they are applied.
fn check_operations(patch: &Value) -> Result<(), PatchError> {
    let refuse = |found: &Value, place: &str| {
        let found = crate::decode::json_kind(found);
        Err(PatchError::Malformed(format!("error decoding patch: json: cannot unmarshal {found} into Go {place}")))
    };
    let Value::Array(operations) = patch else { return refuse(patch, "value of type []handlers.jsonPatchOp") };
    for operation in operations {
        let Value::Object(members) = operation else {
            return refuse(operation, "value of type handlers.jsonPatchOp");
        };
        for name in ["op", "path", "from"] {
            match members.get(name) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(other) => return refuse(other, &format!("struct field jsonPatchOp.{name} of type string")),
            }
        }
    }
    Ok(())
}

/// Refuses an operation that would nest too deeply or that copies without end.
fn check_growth(document: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let from = |pointer: &str| document.pointer(pointer).unwrap_or(&Value::Null);
    let value = match operation {
        PatchOperation::Add(op) => &op.value,
        PatchOperation::Replace(op) => &op.value,
        PatchOperation::Move(op) => from(op.from.as_str()),
        PatchOperation::Copy(op) => {
            let source = from(op.from.as_str());
            *copied += source.to_string().len();
            source
        }
        _ => return Ok(()),
    };
    if *copied > MAX_COPIED {
        return Err(PatchError::Failed(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
        )));
    }
    if operation.path().as_str().matches('/').count() + depth(value) > MAX_DEPTH {
        return Err(PatchError::Failed("exceeded max depth".to_owned()));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn failure(operation: &PatchOperation, error: &json_patch::PatchError) -> PatchError {
    let name = match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    };
    PatchError::Failed(match error.kind {
        PatchErrorKind::TestFailed => format!("testing path {} value failed: test failed", error.path),
        _ => format!("{name} operation does not apply: doc is missing path: {:?}: missing value", error.path.as_str()),
    })
}

/// Applies a merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}
