//! Paths in the form in which rules are compared with them. Pure.

use std::borrow::Cow;

/// A path without escapes, empty and dot segments; none if it leads out of the root or is not text.
///
/// Rules are compared with this form, so that no spelling of a path gets around a rule; the backend gets what the client
/// wrote.
pub fn normal(path: &str) -> Option<Cow<'_, str>> {
    let plain = path.starts_with('/') && !path.contains('%') && !path.contains("//") && !path.contains("/.");
    if plain {
        return Some(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let folder = decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..");
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop()?;
            }
            segment => segments.push(segment),
        }
    }
    let mut text = String::with_capacity(decoded.len());
    for segment in &segments {
        text.push('/');
        text.push_str(segment);
    }
    if folder || segments.is_empty() {
        text.push('/');
    }
    Some(Cow::Owned(text))
}

fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| rest.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let byte = digit(0)? * 16 + digit(1)?;
        if byte == 0 {
            return None;
        }
        bytes.push(u8::try_from(byte).ok()?);
        rest = &rest[2..];
    }
    // Bytes that are no text are compared as if they were unknown letters.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_path_are_one() {
        let cases = [
            ("/a/b", Some("/a/b")),
            ("/a//b/", Some("/a/b/")),
            ("/a/./b/../c", Some("/a/c")),
            ("/public/%2e%2e/admin", Some("/admin")),
            ("/%61dmin", Some("/admin")),
            ("/", Some("/")),
            ("/a/..", Some("/")),
            ("/../etc", None),
            ("/a%00b", None),
            ("/a%zz", None),
            ("*", Some("/*")),
        ];
        for (path, expected) in cases {
            assert_eq!(normal(path).as_deref(), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(path in "[a-z%2e./]{0,24}") {
            if let Some(once) = normal(&path) {
                prop_assert!(once.starts_with('/') && !once.contains("//"));
                if !once.contains('%') {
                    prop_assert_eq!(normal(&once), Some(once.clone()));
                }
            }
        }
    }
}
