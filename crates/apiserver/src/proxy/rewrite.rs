//! What is proxied lies below a path of the API: absolute links in answers are led there, so that a browser stays.

use http::{HeaderMap, HeaderValue, Response, header};

use crate::body::{self, Body};
use crate::error::ApiError;

/// Pages beyond this go through as they are, if they say so.
const PAGE_MAX: usize = 8 << 20;

/// Attributes of HTML that hold a link.
const LINKS: [&str; 16] = [
    "href",
    "src",
    "action",
    "formaction",
    "cite",
    "data",
    "longdesc",
    "usemap",
    "profile",
    "manifest",
    "background",
    "codebase",
    "classid",
    "icon",
    "poster",
    "ping",
];

/// Leads the links of an answer below `prefix`, which ends without a slash. `authority` is who answered.
pub async fn response(answer: Response<Body>, prefix: &str, authority: &str) -> Result<Response<Body>, ApiError> {
    let (mut parts, body) = answer.into_parts();
    location(&mut parts.headers, prefix, authority);
    if !is_page(&parts.headers) {
        return Ok(Response::from_parts(parts, body));
    }
    let page = body::read_up_to(body, PAGE_MAX).await.map_err(|why| ApiError::Unavailable(why.to_string()))?;
    parts.headers.remove(header::CONTENT_LENGTH);
    let page = match std::str::from_utf8(&page) {
        Ok(text) => html(text, prefix).into(),
        Err(_) => page,
    };
    Ok(Response::from_parts(parts, body::full(page)))
}

fn is_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let small = text(header::CONTENT_LENGTH).parse::<usize>().map_or(true, |length| length <= PAGE_MAX);
    text(header::CONTENT_TYPE).starts_with("text/html") && text(header::CONTENT_ENCODING).is_empty() && small
}

fn location(headers: &mut HeaderMap, prefix: &str, authority: &str) {
    let Some(place) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let own = ["http://", "https://"].iter().find_map(|scheme| place.strip_prefix(scheme)?.strip_prefix(authority));
    let path = own.map(|rest| if rest.is_empty() { "/" } else { rest }).unwrap_or(place);
    if let Some(led) = led(path, prefix).and_then(|path| HeaderValue::from_str(&path).ok()) {
        headers.insert(header::LOCATION, led);
    }
}

/// A path of the answering server as one below the prefix; nothing if it is no such path.
fn led(path: &str, prefix: &str) -> Option<String> {
    let ours = path.starts_with('/') && !path.starts_with("//") && !path.starts_with(prefix);
    ours.then(|| format!("{prefix}{path}"))
}

/// Leads the absolute links of a page below the prefix.
fn html(text: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(text.len() + prefix.len());
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let end = tag.find('>').map_or(tag.len(), |at| at + 1);
        attributes(&tag[..end], prefix, &mut out);
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

fn attributes(tag: &str, prefix: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        out.push_str(before);
        let name = before[..equals].trim_end().rsplit(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let trimmed = after.trim_start();
        out.push_str(&after[..after.len() - trimmed.len()]);
        let (quote, value) = match trimmed.as_bytes().first() {
            Some(b'"') => ("\"", &trimmed[1..]),
            Some(b'\'') => ("'", &trimmed[1..]),
            _ => ("", trimmed),
        };
        out.push_str(quote);
        let ends = |c: char| if quote.is_empty() { c.is_whitespace() || c == '>' } else { quote.starts_with(c) };
        let end = value.find(ends).unwrap_or(value.len());
        let link = LINKS.iter().any(|known| known.eq_ignore_ascii_case(name));
        match led(&value[..end], prefix).filter(|_| link) {
            Some(led) => out.push_str(&led),
            None => out.push_str(&value[..end]),
        }
        rest = &value[end..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_links_are_led_below_the_prefix_and_all_else_stays() {
        let page = r#"<a class="/x" href="/a?b=c">1</a><img src='/i.png'><a HREF=/b>2</a> a = /no <a href="//h/c" x><a href="d">"#;
        let led = r#"<a class="/x" href="/p/a?b=c">1</a><img src='/p/i.png'><a HREF=/p/b>2</a> a = /no <a href="//h/c" x><a href="d">"#;
        assert_eq!(html(page, "/p"), led);
        assert_eq!(html(led, "/p"), led);
        assert_eq!(html("<a href=", "/p"), "<a href=");
    }

    #[test]
    fn redirects_are_led_below_the_prefix() {
        for (given, expected) in
            [("/login", "/p/login"), ("http://10.0.0.1:80/x", "/p/x"), ("https://elsewhere/x", "https://elsewhere/x")]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, HeaderValue::from_static(given));
            location(&mut headers, "/p", "10.0.0.1:80");
            assert_eq!(headers[header::LOCATION], expected);
        }
    }
}
