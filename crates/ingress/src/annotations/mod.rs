//! What the annotations of an Ingress ask for. Pure.
//!
//! Names and meaning are those of ingress-nginx, because that is what people's manifests carry. Every annotation with its
//! prefix that is not served here, or whose value cannot be used, is reported; the others of the same Ingress hold. Where
//! leaving one out would let in more than its author wanted (`auth-*`, a source range that cannot be read), the Ingress
//! is closed: it answers 503 until the annotation is mended.

pub mod parse;
pub mod settings;
pub mod template;

pub use settings::{Cookie, Cors, Limits, Protocol, Settings};

use std::collections::BTreeMap;

use http::{HeaderValue, StatusCode};

use template::Template;

/// What the annotations begin with.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// An annotation that does not do what its author wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name, without the prefix.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// Those whose absence would open what is meant to be closed.
const PROTECTING: [&str; 4] = ["auth-", "modsecurity", "enable-modsecurity", "enable-owasp"];

/// Reads the annotations of an Ingress.
pub fn read(annotations: &BTreeMap<String, String>) -> (Settings, Vec<Fault>) {
    let mut reader = Reader { annotations, settings: Settings::default(), faults: Vec::new() };
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        match reader.one(name, value) {
            Taken::Yes => {}
            Taken::Bad(allowed) => reader.fault(name, format!("its value {value:?} is not {allowed}")),
            Taken::No if PROTECTING.iter().any(|prefix| name.starts_with(prefix)) => {
                reader.close(name, "it is not served here, and without it everybody would be let in".to_owned());
            }
            Taken::No => reader.fault(name, "it is not served here and has no effect".to_owned()),
        }
    }
    if reader.settings.canary {
        reader.fault("canary", "canaries are not served here; the Ingress is left out".to_owned());
    }
    (reader.settings, reader.faults)
}

enum Taken {
    Yes,
    /// Served, but not this value; what would be right.
    Bad(&'static str),
    No,
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    settings: Settings,
    faults: Vec<Fault>,
}

/// Puts a parsed value into its place.
fn put<T>(place: &mut T, value: Option<T>, allowed: &'static str) -> Taken {
    match value {
        Some(value) => {
            *place = value;
            Taken::Yes
        }
        None => Taken::Bad(allowed),
    }
}

const BOOLEAN: &str = "\"true\" or \"false\"";
const TIME: &str = "a number of seconds, for instance \"60\"";
const COUNT: &str = "a whole number";
const CIDRS: &str = "a list of address ranges, for instance \"10.0.0.0/8,192.0.2.1\"";
const TEMPLATE: &str = "a text whose variables are known here ($1 to $9, $host, $request_uri, $uri, $args, $scheme, \
                        $remote_addr, $http_*, $arg_*, $cookie_*)";
const HEADER: &str = "a text that fits into a header";

impl Reader<'_> {
    fn fault(&mut self, name: &str, why: String) {
        self.faults.push(Fault { name: name.to_owned(), why });
    }

    fn close(&mut self, name: &str, why: String) {
        self.settings.closed = Some(format!("{PREFIX}{name}: {why}"));
        self.fault(name, format!("{why}; the Ingress answers 503 until it is mended"));
    }

    fn other(&self, name: &str) -> Option<&str> {
        self.annotations.get(&format!("{PREFIX}{name}")).map(String::as_str)
    }

    fn one(&mut self, name: &str, value: &str) -> Taken {
        let settings = &mut self.settings;
        match name {
            "rewrite-target" => put(&mut settings.rewrite, Template::parse(value).map(Some), TEMPLATE),
            "use-regex" => put(&mut settings.use_regex, parse::boolean(value), BOOLEAN),
            "ssl-redirect" => put(&mut settings.ssl_redirect, parse::boolean(value), BOOLEAN),
            "force-ssl-redirect" => put(&mut settings.force_ssl_redirect, parse::boolean(value), BOOLEAN),
            "proxy-connect-timeout" => put(&mut settings.connect_timeout, parse::time(value), TIME),
            "proxy-read-timeout" => put(&mut settings.read_timeout, parse::time(value), TIME),
            "proxy-send-timeout" => put(&mut settings.send_timeout, parse::time(value), TIME),
            "proxy-body-size" => put(&mut settings.body_max, parse::size(value), "a size, for instance \"8m\""),
            "app-root" => {
                let root = Some(value).filter(|path| path.starts_with('/')).map(HeaderValue::from_str);
                put(&mut settings.app_root, root.and_then(Result::ok).map(Some), "an absolute path")
            }
            "backend-protocol" => {
                let protocol = Protocol::parse(value).map(Some);
                put(&mut settings.protocol, protocol, "one of HTTP, HTTPS, GRPC, GRPCS")
            }
            "upstream-hash-by" => put(&mut settings.hash_by, Template::parse(value).map(Some), TEMPLATE),
            "upstream-vhost" => put(&mut settings.vhost, HeaderValue::from_str(value).ok().map(Some), HEADER),
            "x-forwarded-prefix" => put(&mut settings.prefix, HeaderValue::from_str(value).ok().map(Some), HEADER),
            "server-alias" => put(&mut settings.aliases, parse::list(value), "a list of host names"),
            "canary" => put(&mut settings.canary, parse::boolean(value), BOOLEAN),
            // What nginx has to be told, and is so here anyway.
            "proxy-buffering" | "proxy-request-buffering" if value == "off" => Taken::Yes,
            "proxy-http-version" if value == "1.1" => Taken::Yes,
            _ if name.starts_with("cors-") || name == "enable-cors" => self.cors(name, value),
            _ if name.starts_with("limit-") => self.limits(name, value),
            _ if name.starts_with("session-cookie-") || name.starts_with("affinity") => self.affinity(name, value),
            _ if name.contains("-redirect") => self.redirect(name, value),
            _ if name.ends_with("-source-range") => self.sources(name, value),
            _ => Taken::No,
        }
    }

    fn sources(&mut self, name: &str, value: &str) -> Taken {
        let place = match name {
            "whitelist-source-range" | "allowlist-source-range" => &mut self.settings.allow,
            "denylist-source-range" => &mut self.settings.deny,
            _ => return Taken::No,
        };
        match parse::ranges(value) {
            Some(ranges) => *place = ranges,
            None => self.close(name, format!("its value {value:?} is not {CIDRS}")),
        }
        Taken::Yes
    }

    fn redirect(&mut self, name: &str, value: &str) -> Taken {
        let code = |text: Option<&str>, usual: StatusCode| match text {
            Some(text) => text.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(usual),
            None => usual,
        };
        let redirecting = |text: &str| text.parse().ok().filter(|code: &u16| (300..400).contains(code)).is_some();
        let (code, wins) = match name {
            "permanent-redirect" => (code(self.other("permanent-redirect-code"), StatusCode::MOVED_PERMANENTLY), false),
            // It wins over the permanent one, as there.
            "temporal-redirect" => (code(self.other("temporal-redirect-code"), StatusCode::FOUND), true),
            "permanent-redirect-code" | "temporal-redirect-code" => {
                return if redirecting(value) { Taken::Yes } else { Taken::Bad("a code from 300 to 399") };
            }
            _ => return Taken::No,
        };
        let code = if code.is_redirection() { code } else { StatusCode::FOUND };
        match Template::parse(value).filter(|_| !value.is_empty() && HeaderValue::from_str(value).is_ok()) {
            Some(target) if wins || self.settings.redirect.is_none() => self.settings.redirect = Some((code, target)),
            Some(_) => {}
            None => return Taken::Bad("a URL"),
        }
        Taken::Yes
    }

    fn cors(&mut self, name: &str, value: &str) -> Taken {
        let cors = &mut self.settings.cors_values;
        let header = || HeaderValue::from_str(value).ok();
        match name {
            "enable-cors" => put(&mut self.settings.cors, parse::boolean(value), BOOLEAN),
            "cors-allow-origin" => put(&mut cors.origins, parse::list(value), "a list of origins"),
            "cors-allow-methods" => put(&mut cors.methods, header(), HEADER),
            "cors-allow-headers" => put(&mut cors.headers, header(), HEADER),
            "cors-expose-headers" => put(&mut cors.expose, header().map(Some), HEADER),
            "cors-allow-credentials" => put(&mut cors.credentials, parse::boolean(value), BOOLEAN),
            "cors-max-age" => put(&mut cors.max_age_s, parse::count(value), COUNT),
            _ => Taken::No,
        }
    }

    fn limits(&mut self, name: &str, value: &str) -> Taken {
        let limits = &mut self.settings.limits;
        match name {
            "limit-rps" => put(&mut limits.per_second, parse::count(value), COUNT),
            "limit-rpm" => put(&mut limits.per_minute, parse::count(value), COUNT),
            "limit-connections" => put(&mut limits.connections, parse::count(value), COUNT),
            "limit-burst-multiplier" => {
                put(&mut limits.burst, parse::count(value).filter(|burst| *burst > 0), "a positive number")
            }
            "limit-whitelist" | "limit-allowlist" => put(&mut limits.exempt, parse::ranges(value), CIDRS),
            _ => Taken::No,
        }
    }

    fn affinity(&mut self, name: &str, value: &str) -> Taken {
        let cookie = &mut self.settings.cookie;
        let text = || HeaderValue::from_str(value).ok().filter(|_| !value.contains(';')).map(|_| value.to_owned());
        match name {
            "affinity" => match value {
                "cookie" => put(&mut self.settings.affinity, Some(true), ""),
                _ => Taken::Bad("\"cookie\""),
            },
            "affinity-mode" => match value {
                "balanced" => put(&mut cookie.persistent, Some(false), ""),
                "persistent" => put(&mut cookie.persistent, Some(true), ""),
                _ => Taken::Bad("\"balanced\" or \"persistent\""),
            },
            "session-cookie-name" => {
                let usable = |name: &String| !name.is_empty() && name.bytes().all(settings::in_token);
                put(&mut cookie.name, text().filter(usable), "a name for a cookie")
            }
            "session-cookie-path" => put(&mut cookie.path, text().map(Some), "a path"),
            "session-cookie-domain" => put(&mut cookie.domain, text().map(Some), "a domain"),
            "session-cookie-expires" => put(&mut cookie.expires_s, parse::count(value).map(Some), COUNT),
            "session-cookie-max-age" => put(&mut cookie.max_age_s, parse::count(value).map(Some), COUNT),
            "session-cookie-secure" => put(&mut cookie.secure, parse::boolean(value).map(Some), BOOLEAN),
            "session-cookie-change-on-failure" => put(&mut cookie.change_on_failure, parse::boolean(value), BOOLEAN),
            "session-cookie-samesite" => {
                let known = ["None", "Lax", "Strict"].iter().find(|known| known.eq_ignore_ascii_case(value));
                put(&mut cookie.same_site, known.map(|known| Some(*known)), "one of None, Lax, Strict")
            }
            _ => Taken::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Settings, Vec<Fault>) {
        read(&pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect())
    }

    #[test]
    fn one_that_is_bad_or_unknown_is_named_and_the_others_hold() {
        let (settings, faults) = of(&[
            ("proxy-body-size", "8m"),
            ("proxy-read-timeout", "soon"),
            ("websocket-services", "api"),
            ("rate-limit", "100"),
            ("rate-limit-window", "1m"),
            ("configuration-snippet", "return 200;"),
            ("limit-rps", "10"),
        ]);
        assert_eq!((settings.body_max, settings.limits.per_second), (8 << 20, 10));
        assert_eq!(settings.read_timeout, Duration::from_secs(60));
        let names: Vec<&str> = faults.iter().map(|fault| fault.name.as_str()).collect();
        let expected =
            ["configuration-snippet", "proxy-read-timeout", "rate-limit", "rate-limit-window", "websocket-services"];
        assert_eq!(names, expected);
        assert!(faults[1].why.contains("\"soon\""), "{faults:?}");
        assert_eq!(settings.closed, None);
    }

    #[test]
    fn what_protects_closes_when_it_cannot_be_served() {
        for pair in [("auth-type", "basic"), ("auth-url", "http://x"), ("whitelist-source-range", "10.0.0.0/99")] {
            let (settings, faults) = of(&[pair]);
            assert!(settings.closed.is_some() && faults.len() == 1, "{pair:?}: {faults:?}");
        }
        let (settings, _) = of(&[("whitelist-source-range", "10.0.0.0/8")]);
        assert!(settings.closed.is_none() && settings.allow.len() == 1);
    }

    proptest! {
        #[test]
        fn no_value_makes_reading_fail(name in 0_usize..NAMES.len(), value in "\\PC{0,20}") {
            let (_, faults) = of(&[(NAMES[name], &value)]);
            prop_assert!(faults.len() <= 1);
        }
    }

    const NAMES: [&str; 20] = [
        "rewrite-target",
        "use-regex",
        "ssl-redirect",
        "proxy-read-timeout",
        "proxy-body-size",
        "app-root",
        "backend-protocol",
        "upstream-hash-by",
        "cors-allow-origin",
        "cors-max-age",
        "limit-rps",
        "limit-whitelist",
        "affinity",
        "session-cookie-name",
        "session-cookie-samesite",
        "permanent-redirect",
        "temporal-redirect-code",
        "whitelist-source-range",
        "server-alias",
        "anything",
    ];
}
