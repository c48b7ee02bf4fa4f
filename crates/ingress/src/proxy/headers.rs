//! Which headers pass, and which are made.
//!
//! What a client says about where it comes from is not believed: the headers that tell a backend about the client are made
//! here, and what the client sent under their names goes no further, as with ingress-nginx by default. Names with an
//! underscore go no further either: some servers read `X_Real_IP` as `X-Real-IP`.

use std::fmt::Write;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version};
use mycelium_api::env::Env;

use crate::annotations::Settings;
use crate::proxy::Peer;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const ORIGINAL_FOR: HeaderName = HeaderName::from_static("x-original-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const X_SCHEME: HeaderName = HeaderName::from_static("x-scheme");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
/// Made here or by nobody.
const FORGED: [HeaderName; 4] =
    [header::FORWARDED, HeaderName::from_static("proxy"), HeaderName::from_static("x-original-url"), PREFIX];
/// Longest request id of a client that is passed on.
const REQUEST_ID_MAX: usize = 128;

/// The host that a request is for, in lower case, without port and dot at the end; none if it is not clear.
pub fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let mut given = headers.get_all(header::HOST).into_iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return None;
    }
    let text = match (uri.authority(), first) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().ok()?,
        (None, None) => return None,
    };
    let name = match text.strip_prefix('[') {
        Some(_) => &text[..=text.find(']')?],
        None => text.split_once(':').map_or(text, |(name, _)| name),
    };
    let rest = &text[name.len()..];
    let port_is_fine =
        rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    let name = name.strip_suffix('.').unwrap_or(name);
    (port_is_fine && name.bytes().all(allowed)).then(|| name.to_ascii_lowercase())
}

/// Takes away what concerns only one connection (RFC 9110, section 7.6.1).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most say only keep-alive or close, if anything.
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive") || value == "close";
    if !headers.get_all(header::CONNECTION).iter().all(plain) {
        let lists: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        let names = lists.iter().flat_map(|list| list.to_str().unwrap_or_default().split(','));
        for name in names.filter_map(|name| HeaderName::try_from(name.trim()).ok()) {
            headers.remove(name);
        }
    }
    headers.remove(header::CONNECTION);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::UPGRADE);
    // How long a body is, hyper says in its own way; where a client says it in two ways, this one counts.
    if headers.remove(header::TRANSFER_ENCODING).is_some() {
        headers.remove(header::CONTENT_LENGTH);
    }
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if !trailers {
        headers.remove(header::TE);
    }
}

/// Makes a client's headers those that its backend gets.
pub fn outgoing(headers: &mut HeaderMap, peer: &Peer, host: &HeaderValue, settings: &Settings, env: &Env) {
    remove_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    for name in FORGED {
        headers.remove(name);
    }
    let underscored: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in underscored {
        headers.remove(name);
    }
    let client = from_text(&peer.client.to_string());
    let original = headers.insert(FOR, client.clone());
    match original {
        Some(original) => headers.insert(ORIGINAL_FOR, original),
        None => headers.remove(ORIGINAL_FOR),
    };
    headers.insert(REAL_IP, client);
    headers.insert(HOST, host.clone());
    headers.insert(PORT, HeaderValue::from(peer.port));
    let scheme = HeaderValue::from_static(peer.scheme());
    for name in [PROTO, SCHEME, X_SCHEME] {
        headers.insert(name, scheme.clone());
    }
    let known = headers.get(REQUEST_ID).is_some_and(|id| (1..=REQUEST_ID_MAX).contains(&id.len()));
    if !known {
        let mut id = String::with_capacity(32);
        let _ = write!(id, "{:016x}{:016x}", env.random(), env.random());
        headers.insert(REQUEST_ID, from_text(&id));
    }
    if let Some(prefix) = &settings.prefix {
        headers.insert(PREFIX, prefix.clone());
    }
    headers.insert(header::HOST, settings.vhost.clone().unwrap_or_else(|| host.clone()));
}

/// Of HTTP/2 a cookie may come in pieces (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap, version: Version) {
    if version != Version::HTTP_2 || headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

fn from_text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::try_from(*name).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn env() -> Env {
        Env::new(|| jiff::Timestamp::UNIX_EPOCH, || 7)
    }

    const PEER: Peer =
        Peer { client: std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), secure: true, port: 443 };

    #[test]
    fn what_clients_forge_goes_no_further() {
        let mut headers = headers(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-original-forwarded-for", "7.7.7.7"),
            ("x-real-ip", "6.6.6.6"),
            ("x-real-ip", "8.8.8.8"),
            ("x_real_ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-forwarded-proto", "http"),
            ("proxy", "http://evil"),
            ("x-request-id", "mine"),
            ("connection", "close, x-secret, x-real-ip"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
        ]);
        outgoing(&mut headers, &PEER, &HeaderValue::from_static("a.test"), &Settings::default(), &env());
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(all("x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(all("x-original-forwarded-for"), ["6.6.6.6"]);
        assert_eq!(all("x-real-ip"), ["192.0.2.1"]);
        assert_eq!(all("x-forwarded-proto"), ["https"]);
        assert_eq!(all("x-forwarded-port"), ["443"]);
        assert_eq!(all("x-request-id"), ["mine"]);
        for gone in
            ["x_real_ip", "forwarded", "proxy", "x-secret", "te", "transfer-encoding", "content-length", "connection"]
        {
            assert!(all(gone).is_empty(), "{gone}");
        }
    }

    #[test]
    fn hosts_are_read_one_way_only() {
        let of = |uri: &str, pairs: &[(&str, &str)]| host(&uri.parse().expect("a target"), &headers(pairs));
        assert_eq!(of("/", &[("host", "A.test:8080")]).as_deref(), Some("a.test"));
        assert_eq!(of("/", &[("host", "a.test.")]).as_deref(), Some("a.test"));
        assert_eq!(of("http://b.test/", &[("host", "a.test")]).as_deref(), Some("b.test"));
        assert_eq!(of("/", &[("host", "[::1]:80")]).as_deref(), Some("[::1]"));
        for bad in ["a b", "a/b", "a.test:x", "user@a", "[::1", "a.test:80:80"] {
            assert_eq!(of("/", &[("host", bad)]), None, "{bad}");
        }
        assert_eq!(of("/", &[]), None);
        assert_eq!(of("/", &[("host", "a"), ("host", "b")]), None);
    }

    proptest! {
        #[test]
        fn no_host_makes_it_fail(text in "[ -~]{0,24}") {
            if let Ok(value) = HeaderValue::from_str(&text) {
                let mut headers = HeaderMap::new();
                headers.insert(header::HOST, value);
                if let Some(host) = host(&Uri::from_static("/"), &headers) {
                    prop_assert_eq!(host.to_ascii_lowercase(), host);
                }
            }
        }
    }
}
