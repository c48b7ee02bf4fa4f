//! What an Ingress asks for besides its rules, with the defaults of ingress-nginx.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

use super::template::Template;

/// Everything that annotations can set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Why requests are refused, if they are.
    pub closed: Option<String>,
    /// What the request's target becomes.
    pub rewrite: Option<Template>,
    /// Paths are patterns.
    pub use_regex: bool,
    /// Plain HTTP is sent to HTTPS where the host has a certificate.
    pub ssl_redirect: bool,
    /// Plain HTTP is sent to HTTPS.
    pub force_ssl_redirect: bool,
    /// How long a connection to a backend may take.
    pub connect_timeout: Duration,
    /// How long a backend may be silent.
    pub read_timeout: Duration,
    /// How long a backend may take in nothing.
    pub send_timeout: Duration,
    /// Longest body of a request in bytes; 0 for any.
    pub body_max: u64,
    /// Where everything is redirected to.
    pub redirect: Option<(StatusCode, Template)>,
    /// Where `/` is redirected to.
    pub app_root: Option<HeaderValue>,
    /// Clients that are let in; all if empty.
    pub allow: Vec<IpNet>,
    /// Clients that are not.
    pub deny: Vec<IpNet>,
    /// Answers carry headers for other origins.
    pub cors: bool,
    /// Which.
    pub cors_values: Cors,
    /// How much one client may ask for.
    pub limits: Limits,
    /// A client keeps its endpoint by a cookie.
    pub affinity: bool,
    /// The cookie.
    pub cookie: Cookie,
    /// What backends speak; their services say it if this does not.
    pub protocol: Option<Protocol>,
    /// What chooses the endpoint.
    pub hash_by: Option<Template>,
    /// The Host that backends see.
    pub vhost: Option<HeaderValue>,
    /// The header X-Forwarded-Prefix.
    pub prefix: Option<HeaderValue>,
    /// More hosts with the same rules.
    pub aliases: Vec<String>,
    /// It only diverts a part of another's requests.
    pub canary: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            closed: None,
            rewrite: None,
            use_regex: false,
            ssl_redirect: true,
            force_ssl_redirect: false,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            body_max: 1 << 20,
            redirect: None,
            app_root: None,
            allow: Vec::new(),
            deny: Vec::new(),
            cors: false,
            cors_values: Cors::default(),
            limits: Limits::default(),
            affinity: false,
            cookie: Cookie::default(),
            protocol: None,
            hash_by: None,
            vhost: None,
            prefix: None,
            aliases: Vec::new(),
            canary: false,
        }
    }
}

/// Headers for other origins.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// `*`, origins, or origins whose first label is `*`.
    pub origins: Vec<String>,
    /// Allowed methods.
    pub methods: HeaderValue,
    /// Allowed headers.
    pub headers: HeaderValue,
    /// Headers that scripts may see.
    pub expose: Option<HeaderValue>,
    /// Cookies may be sent along.
    pub credentials: bool,
    /// How long an answer may be remembered.
    pub max_age_s: u32,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            origins: vec!["*".to_owned()],
            methods: HeaderValue::from_static("GET, PUT, POST, DELETE, PATCH, OPTIONS"),
            headers: HeaderValue::from_static(
                "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,\
                 Authorization",
            ),
            expose: None,
            credentials: true,
            max_age_s: 1_728_000,
        }
    }
}

impl Cors {
    /// What to tell a client of this origin; none if it is not allowed.
    pub fn origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        let text = origin.to_str().ok()?;
        let matches = |allowed: &String| match allowed.split_once("*.") {
            Some((scheme, domain)) => {
                let host = text.strip_prefix(scheme).and_then(|rest| rest.strip_suffix(domain));
                let label = host.and_then(|rest| rest.strip_suffix('.'));
                label.is_some_and(|label| {
                    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
            }
            None => allowed == text,
        };
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(matches).then(|| origin.clone())
    }
}

/// How much one client may ask for; 0 for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub per_second: u32,
    /// Requests a minute.
    pub per_minute: u32,
    /// Requests at once.
    pub connections: u32,
    /// How many times the rate may come at once.
    pub burst: u32,
    /// Clients without a limit.
    pub exempt: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_second: 0, per_minute: 0, connections: 0, burst: 5, exempt: Vec::new() }
    }
}

impl Limits {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.per_second > 0 || self.per_minute > 0 || self.connections > 0
    }
}

/// The cookie that names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// Its path; the route's own if none.
    pub path: Option<String>,
    /// Its domain.
    pub domain: Option<String>,
    /// Seconds until it expires, as a date.
    pub expires_s: Option<u32>,
    /// Seconds until it expires.
    pub max_age_s: Option<u32>,
    /// Only for HTTPS; if not given, when it was given out over HTTPS.
    pub secure: Option<bool>,
    /// `SameSite`.
    pub same_site: Option<&'static str>,
    /// A client whose endpoint failed gets another for good.
    pub change_on_failure: bool,
    /// Clients stay even where that leaves new endpoints idle; it is so here in any case.
    pub persistent: bool,
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: "INGRESSCOOKIE".to_owned(),
            path: None,
            domain: None,
            expires_s: None,
            max_age_s: None,
            secure: None,
            same_site: None,
            change_on_failure: false,
            persistent: false,
        }
    }
}

/// What a backend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 over TLS; the certificate is not verified, as there.
    Https,
    /// HTTP/2 without TLS.
    Grpc,
    /// HTTP/2 over TLS.
    Grpcs,
}

impl Protocol {
    /// Reads the value of `backend-protocol`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.trim().to_ascii_uppercase().as_str() {
            "HTTP" => Self::Http,
            "HTTPS" => Self::Https,
            "GRPC" => Self::Grpc,
            "GRPCS" => Self::Grpcs,
            _ => return None,
        })
    }

    /// Over TLS.
    pub fn tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }

    /// HTTP/2.
    pub fn multiplexed(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
pub fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart() {
        let cors = Cors { origins: vec!["https://a.test".into(), "https://*.b.test".into()], ..Cors::default() };
        let told = |origin: &'static str| cors.origin(&HeaderValue::from_static(origin)).is_some();
        assert!(told("https://a.test") && told("https://x.b.test"));
        for other in
            ["http://a.test", "https://b.test", "https://x.y.b.test", "https://evilb.test", "https://e/.b.test"]
        {
            assert!(!told(other), "{other}");
        }
        assert_eq!(Cors::default().origin(&HeaderValue::from_static("https://z")), Some(HeaderValue::from_static("*")));
    }
}
