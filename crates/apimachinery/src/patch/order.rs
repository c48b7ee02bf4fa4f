//! The order of a merged list: what the patch says about its own items, the object's order for the others, the two
//! interleaved by the order they had in the object.

use serde_json::Value;

/// What identifies an item: the value of its merge key, or itself.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a>(pub Option<&'a str>);

impl Identity<'_> {
    /// The identity of an item; none if it lacks the merge key.
    pub fn of(self, item: &Value) -> Option<&Value> {
        match self.0 {
            None => Some(item),
            Some(key) => item.get(key),
        }
    }

    /// The place in `list` of the item with the identity of `item`.
    pub fn position(self, list: &[Value], item: &Value) -> Option<usize> {
        let wanted = self.of(item)?;
        list.iter().position(|other| self.of(other) == Some(wanted))
    }
}

/// Orders `merged`: items that `patch` names as `patch` has them, the others as `server` has them.
pub(super) fn normalize(merged: Vec<Value>, patch: &[Value], server: &[Value], identity: Identity<'_>) -> Vec<Value> {
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| identity.position(patch, item).is_some());
    let last = usize::MAX;
    ours.sort_by_key(|item| identity.position(patch, item).unwrap_or(last));
    theirs.sort_by_key(|item| identity.position(server, item).unwrap_or(last));
    let mut all = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let theirs_first = match (theirs.peek(), ours.peek()) {
            (None, None) => return all,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => match (identity.position(server, left), identity.position(server, right)) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
        };
        all.extend(if theirs_first { theirs.next() } else { ours.next() });
    }
}
