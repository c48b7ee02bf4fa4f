//! Syntax of names. Each check returns what is wrong, in the words clients know; an empty list means valid.

/// Longest DNS label.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// `must be no more than N characters`.
pub fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

/// `must be between LOW and HIGH, inclusive`.
pub fn outside(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The explanation of a text that does not match a pattern.
pub fn mismatch(rule: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{rule} (regex used for validation is '{pattern}')");
    }
    let examples = examples.iter().map(|example| format!("'{example}', ")).collect::<Vec<_>>().join(" or ");
    format!("{rule} (e.g. {examples}regex used for validation is '{pattern}')")
}

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Non-empty, edges satisfy `edge`, everything satisfies `edge` or is one of `inner`.
fn has_shape(text: &str, edge: impl Fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            edge(*first) && edge(*last) && bytes.iter().all(|byte| edge(*byte) || inner.contains(byte))
        }
        _ => false,
    }
}

fn label_shape(text: &str) -> bool {
    has_shape(text, lower_alnum, b"-")
}

fn subdomain_shape(text: &str) -> bool {
    text.split('.').all(label_shape)
}

fn subdomain_pattern() -> String {
    format!("{DNS1123_LABEL}(\\.{DNS1123_LABEL})*")
}

/// A label of a DNS name (RFC 1123): `my-name`, `123-abc`.
pub fn is_dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if label_shape(text) {
        return errors;
    }
    errors.push(if subdomain_shape(text) {
        "must not contain dots".to_owned()
    } else {
        mismatch(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            DNS1123_LABEL,
            &["my-name", "123-abc"],
        )
    });
    errors
}

/// A DNS subdomain (RFC 1123): `example.com`.
pub fn is_dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !subdomain_shape(text) {
        errors.push(mismatch(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &subdomain_pattern(),
            &["example.com"],
        ));
    }
    errors
}

/// A DNS subdomain that begins with `*.`.
pub fn is_wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(subdomain_shape) {
        errors.push(mismatch(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{}", subdomain_pattern()),
            &["*.example.com"],
        ));
    }
    errors
}

/// A label of a DNS name that begins with a letter (RFC 1035): names of services.
pub fn is_dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !(label_shape(text) && text.as_bytes()[0].is_ascii_lowercase()) {
        errors.push(mismatch(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A label key or the like: `app`, `example.com/app`.
pub fn is_qualified_name(text: &str) -> Vec<String> {
    const RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let explain =
        |subject: &str| mismatch(&format!("{subject} {RULE}"), QUALIFIED_NAME, &["MyName", "my.name", "123-abc"]);
    let mut errors = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(is_dns1123_subdomain(prefix).into_iter().map(|error| format!("prefix part {error}")));
            }
            name
        }
        _ => {
            let explained = explain("a valid label key");
            return vec![format!(
                "{explained} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !has_shape(name, |byte| byte.is_ascii_alphanumeric(), b"-_.") {
        errors.push(explain("name part"));
    }
    errors
}

/// The value of a label: empty, or like the name part of a key.
pub fn is_label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !has_shape(text, |byte| byte.is_ascii_alphanumeric(), b"-_.") {
        errors.push(mismatch(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_NAME})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn is_env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// The name of an environment variable as shells know it; stricter than [`is_env_var_name`].
pub fn is_strict_env_var_name(text: &str) -> Vec<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let mut errors = Vec::new();
    let starts_well = text.bytes().next().is_some_and(|first| allowed(first) && !first.is_ascii_digit());
    if !starts_well || !text.bytes().all(allowed) {
        errors.push(mismatch(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errors.extend(climbs(text));
    errors
}

/// The key of an entry in a ConfigMap or Secret.
pub fn is_config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        errors.push(mismatch(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(climbs(text));
    errors
}

/// Names that would leave their directory when used as a file name.
fn climbs(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of a port: at most 15 of `[-a-z0-9]`, at least one letter.
pub fn is_port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push(too_long(15));
    }
    if text.is_empty() || !text.bytes().all(|byte| lower_alnum(byte) || byte == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A port number that one can listen on.
pub fn is_port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![outside(1, 65535)] }
}

/// A share such as `25%`.
pub fn is_percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    vec![mismatch(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// The name of an HTTP header.
pub fn is_http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    vec![mismatch(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A path segment of a URL: names of RBAC objects.
pub fn is_path_segment(text: &str) -> Vec<String> {
    match text {
        "." => return vec!["may not be '.'".to_owned()],
        ".." => return vec!["may not be '..'".to_owned()],
        _ => {}
    }
    ["/", "%"].iter().filter(|bad| text.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// The name to check for a prefix that a random suffix will follow: a trailing hyphen is fine.
pub fn mask_generated(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_and_subdomains() {
        assert!(is_dns1123_label("my-name").is_empty());
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            is_dns1123_subdomain("Bad_Name"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            is_dns1035_label("1a"),
            [
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(is_dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn label_keys_and_values() {
        assert!(is_qualified_name("example.com/My.Name").is_empty());
        assert_eq!(is_qualified_name("/x"), ["prefix part must be non-empty"]);
        assert!(is_qualified_name("a/b/c")[0].starts_with("a valid label key must consist of"));
        assert!(is_label_value("").is_empty());
        assert!(!is_label_value("-x").is_empty());
    }

    #[test]
    fn ports_keys_and_variables() {
        assert!(is_port_name("http-2").is_empty());
        assert_eq!(is_port_name("80"), ["must contain at least one letter (a-z)"]);
        assert!(is_env_var_name("odd name").is_empty());
        assert!(!is_env_var_name("a=b").is_empty());
        assert_eq!(is_config_map_key(".."), ["must not be '..'"]);
        assert!(is_percent("25%").is_empty() && !is_percent("%").is_empty());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            for check in [is_dns1123_label, is_dns1123_subdomain, is_wildcard_dns1123_subdomain, is_dns1035_label, is_qualified_name,
                is_label_value, is_env_var_name, is_strict_env_var_name, is_config_map_key, is_port_name, is_percent,
                is_http_header_name, is_path_segment] {
                let _ = check(&text);
            }
            let _ = mask_generated(&text);
        }

        #[test]
        fn a_label_is_a_subdomain(text in "[a-z0-9.-]{1,70}") {
            if is_dns1123_label(&text).is_empty() {
                prop_assert!(is_dns1123_subdomain(&text).is_empty());
            }
        }
    }
}
