//! Errors as one sentence.

use std::error::Error;

/// An error and its causes as one sentence; a cause whose words are there already is not said twice.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn causes_follow_and_nothing_is_said_twice() {
        let told = |text, cause: Option<Told>| Told(text, cause.map(Box::new));
        let error = told("it failed: no disk", Some(told("no disk", Some(told("unplugged", None)))));
        assert_eq!(chain(&error), "it failed: no disk: unplugged");
    }
}
