//! Texts with variables, as nginx writes them: `https://$host$request_uri`, `/$2`.

use std::fmt::Write;

use http::{HeaderMap, Uri, header};
use regex::Captures;

/// A text with variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
    Host,
    RequestUri,
    Uri,
    Args,
    Scheme,
    RemoteAddress,
    Header(String),
    Argument(String),
    Cookie(String),
}

/// What variables are about.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Host that was asked for, without port.
    pub host: &'a str,
    /// The request's target.
    pub uri: &'a Uri,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The client.
    pub client: std::net::IpAddr,
}

impl Template {
    /// Reads a text; none if it has a variable that is not known here.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            if at > 0 {
                parts.push(Part::Text(rest[..at].to_owned()));
            }
            let (name, after) = variable(&rest[at + 1..])?;
            parts.push(Part::variable(name)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Some(Self(parts))
    }

    /// The text for a request; `groups` are what the path's pattern has caught.
    pub fn fill(&self, facts: &Facts<'_>, groups: Option<&Captures<'_>>) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Group(number) => {
                    let group = groups.and_then(|groups| groups.get(*number));
                    escape(group.map_or("", |group| group.as_str()), &mut text);
                }
                Part::Host => text.push_str(facts.host),
                Part::RequestUri => text.push_str(facts.uri.path_and_query().map_or("/", |target| target.as_str())),
                Part::Uri => text.push_str(facts.uri.path()),
                Part::Args => text.push_str(facts.uri.query().unwrap_or_default()),
                Part::Scheme => text.push_str(facts.scheme),
                Part::RemoteAddress => {
                    let _ = write!(text, "{}", facts.client);
                }
                Part::Header(name) => {
                    text.push_str(facts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default());
                }
                Part::Argument(name) => text.push_str(argument(facts.uri, name)),
                Part::Cookie(name) => text.push_str(cookie(facts.headers, name).unwrap_or_default()),
            }
        }
        text
    }
}

/// Splits off the variable's name, which may stand in braces.
fn variable(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix('{') {
        return braced.split_once('}');
    }
    // A group is one digit: `$12` is group 1 and a 2.
    let end = match text.as_bytes().first()? {
        b'0'..=b'9' => 1,
        _ => text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len()),
    };
    Some(text.split_at(end))
}

impl Part {
    fn variable(name: &str) -> Option<Self> {
        Some(match name {
            "host" | "http_host" | "best_http_host" => Self::Host,
            "request_uri" => Self::RequestUri,
            "uri" => Self::Uri,
            "args" | "query_string" => Self::Args,
            "scheme" => Self::Scheme,
            "remote_addr" | "binary_remote_addr" => Self::RemoteAddress,
            _ => {
                if let Ok(group) = name.parse::<usize>() {
                    return (1..=9).contains(&group).then_some(Self::Group(group));
                }
                let (kind, rest) = name.split_once('_').filter(|(_, rest)| !rest.is_empty())?;
                match kind {
                    "http" => Self::Header(rest.replace('_', "-")),
                    "arg" => Self::Argument(rest.to_owned()),
                    "cookie" => Self::Cookie(rest.to_owned()),
                    _ => return None,
                }
            }
        })
    }
}

/// Writes a part of a path that was compared without escapes as it may stand in a target (RFC 3986, section 3.3).
fn escape(part: &str, text: &mut String) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

fn argument<'a>(uri: &'a Uri, name: &str) -> &'a str {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map_or("", |(_, value)| value)
}

/// The value of a cookie that the client sent.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let texts = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn filled(template: &str, pattern: &str) -> Option<String> {
        let uri: Uri = "/api/v1/users?a=1&b=two".parse().expect("a target");
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, "x=1; sid=abc".parse().expect("a value"));
        let client = "192.0.2.7".parse().expect("an address");
        let facts = Facts { host: "a.test", uri: &uri, headers: &headers, scheme: "https", client };
        let groups = Regex::new(pattern).expect("a pattern");
        Some(Template::parse(template)?.fill(&facts, groups.captures(uri.path()).as_ref()))
    }

    #[test]
    fn variables_and_groups_are_filled_in() {
        let pattern = "^/api(/|$)(.*)";
        let cases = [
            ("/$2", "/v1/users"),
            ("/$22", "/v1/users2"),
            ("/${2}/x", "/v1/users/x"),
            ("https://$host$request_uri", "https://a.test/api/v1/users?a=1&b=two"),
            ("$remote_addr-$cookie_sid-$arg_b", "192.0.2.7-abc-two"),
            ("$9", ""),
        ];
        for (template, expected) in cases {
            assert_eq!(filled(template, pattern).as_deref(), Some(expected), "{template}");
        }
        for bad in ["$", "$nope", "${2", "$0", "$http_", "a$"] {
            assert_eq!(Template::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z$/{}0-9_]{0,30}") {
            let _ = filled(&text, "^/(a)(.*)");
        }
    }
}
