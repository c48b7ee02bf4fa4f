//! What a request asks for: its path and query, taken apart.

use http::Method;

use crate::error::ApiError;

/// The parts of a resource path: `/apis/apps/v1/namespaces/default/deployments/web/scale`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for cluster scope or all namespaces.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Object name; empty for a collection.
    pub name: String,
    /// Subresource; empty for none.
    pub subresource: String,
    /// What follows the subresource, for proxies.
    pub rest: String,
    /// The legacy `/watch/` form.
    pub watch: bool,
}

/// Takes a resource path apart. `None` when the path is not one (discovery, health, ...).
pub fn parse_path(path: &str) -> Option<ResourcePath> {
    let mut parts = path.split('/').skip(1);
    let mut out = ResourcePath::default();
    match parts.next()? {
        "api" => {}
        "apis" => out.group = non_empty(parts.next()?)?,
        _ => return None,
    }
    out.version = non_empty(parts.next()?)?;
    let mut rest: Vec<String> = parts.map(percent_decode).collect();
    if rest.last().is_some_and(String::is_empty) && rest.len() > 1 && !rest.iter().any(|p| p == "proxy") {
        rest.pop();
    }
    if rest.first().is_some_and(|p| p == "watch") {
        out.watch = true;
        rest.remove(0);
    }
    if rest.len() >= 3 && rest[0] == "namespaces" && !matches!(rest[2].as_str(), "status" | "finalize" | "") {
        out.namespace = non_empty(&rest[1])?;
        rest.drain(..2);
    }
    let mut rest = rest.into_iter();
    out.resource = non_empty(&rest.next()?)?;
    out.name = rest.next().unwrap_or_default();
    out.subresource = rest.next().unwrap_or_default();
    out.rest = rest.collect::<Vec<_>>().join("/");
    if !out.rest.is_empty() && out.subresource != "proxy" {
        return None;
    }
    Some(out)
}

fn non_empty(part: &str) -> Option<String> {
    (!part.is_empty()).then(|| part.to_owned())
}

/// Decodes `%XX`. Malformed escapes stay as they are.
pub fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Query parameters, in order, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the part of a URI behind `?`.
    pub fn parse(query: Option<&str>) -> Self {
        let decode = |s: &str| percent_decode(&s.replace('+', " "));
        let pairs = query.unwrap_or("").split('&').filter(|p| !p.is_empty());
        Self(
            pairs
                .map(|p| p.split_once('=').map_or((decode(p), String::new()), |(k, v)| (decode(k), decode(v))))
                .collect(),
        )
    }

    /// The first value of `key`, if it is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean as Go's `strconv.ParseBool`-based conversion reads it: present and neither `false` nor `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    /// A boolean that may be absent.
    pub fn optional_flag(&self, key: &str) -> Option<bool> {
        let value = self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())?;
        Some(!matches!(value, "false" | "0"))
    }

    /// A whole number.
    pub fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::bad(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }
}

/// The verb that authorisation sees.
pub fn verb(method: &Method, path: &ResourcePath, watch: bool) -> Option<&'static str> {
    let named = !path.name.is_empty();
    Some(match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", true) => "update",
        ("PATCH", true) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_apart() {
        let parse = |p: &str| parse_path(p).map(|r| (r.group, r.namespace, r.resource, r.name, r.subresource));
        let s = |a: &str, b: &str, c: &str, d: &str, e: &str| Some((a.into(), b.into(), c.into(), d.into(), e.into()));
        assert_eq!(parse("/api/v1/pods"), s("", "", "pods", "", ""));
        assert_eq!(parse("/api/v1/namespaces"), s("", "", "namespaces", "", ""));
        assert_eq!(parse("/api/v1/namespaces/a"), s("", "", "namespaces", "a", ""));
        assert_eq!(parse("/api/v1/namespaces/a/finalize"), s("", "", "namespaces", "a", "finalize"));
        assert_eq!(parse("/api/v1/namespaces/a/pods/b/log"), s("", "a", "pods", "b", "log"));
        assert_eq!(parse("/apis/apps/v1/namespaces/a/deployments"), s("apps", "a", "deployments", "", ""));
        assert_eq!(parse("/apis/apps/v1"), None);
        assert_eq!(parse("/healthz"), None);
        assert_eq!(parse_path("/api/v1/nodes/n/proxy/stats/summary").map(|r| r.rest), Some("stats/summary".into()));
        assert!(parse_path("/api/v1/watch/namespaces/a/pods").is_some_and(|p| p.watch && p.namespace == "a"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(path in ".{0,80}", query in ".{0,80}") {
            let _ = parse_path(&format!("/api/{path}"));
            let query = Query::parse(Some(&query));
            let _ = (query.get("a"), query.number("limit"), query.flag("watch"));
        }
    }

    #[test]
    fn queries_decode() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&watch&limit=5&x=a+b"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch"));
        assert_eq!(query.number("limit").ok().flatten(), Some(5));
        assert_eq!(query.get("x"), Some("a b"));
        assert!(Query::parse(Some("limit=x")).number("limit").is_err());
    }
}
