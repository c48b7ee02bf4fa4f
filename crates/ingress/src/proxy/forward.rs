//! To an endpoint and back.
//!
//! ```text
//!  pick ─► connection ─┬─ none: another endpoint
//!                      └─► request ─┬─ nothing of it was sent: again
//!                                   ├─ broke off, and it may be repeated (RFC 9110, section 9.2.2): again
//!                                   ├─ too slow: 504
//!                                   └─► answer
//! ```

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Extensions, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use mycelium_api::error::chain;
use tokio::time::{Instant, timeout_at};

use crate::annotations::Settings;
use crate::limit::Present;
use crate::proxy::body::{Download, Upload};
use crate::proxy::upstream::{Channel, ConnectError, Need, Place};
use crate::proxy::{Peer, Shared, answer, handle, headers, tunnel};
use crate::rules::backend::Choice;
use crate::rules::table::Route;

/// How often a request is tried, on whatever endpoints.
const TRIES_MAX: usize = 5;

/// A request on its way.
pub struct Job<'a> {
    shared: &'a Arc<Shared>,
    route: &'a Arc<Route>,
    head: Parts,
    body: Upload,
    /// The client's side of a change of protocol, and which.
    upgrade: Option<(OnUpgrade, HeaderValue)>,
    present: Option<Present>,
}

/// An answer, and the endpoint that gave it.
pub struct Outcome {
    /// The answer.
    pub response: Response<Download>,
    /// Its place among the targets of the backend; none if the answer is ours.
    pub endpoint: Option<usize>,
}

/// Why there is no answer.
enum Lost {
    /// Nothing of the request was sent: here it is again.
    Unsent(Box<Request<Upload>>),
    Broken(hyper::Error),
    TooSlow,
    TooLarge,
}

impl<'a> Job<'a> {
    /// Makes a client's request into one for a backend; none if its host is not usable.
    pub fn new(
        shared: &'a Arc<Shared>,
        peer: &Peer,
        route: &'a Arc<Route>,
        mut request: Request<Incoming>,
        target: Option<PathAndQuery>,
        present: Option<Present>,
    ) -> Option<Self> {
        let settings = &route.settings;
        let protocol = route.backend.protocol;
        let host = handle::authority(request.uri(), request.headers())?;
        let upgrade = wanted_protocol(&request).filter(|_| !protocol.multiplexed());
        let upgrade = upgrade.map(|wanted| (hyper::upgrade::on(&mut request), wanted));
        let (mut head, body) = request.into_parts();
        head.extensions = Extensions::new();
        headers::outgoing(&mut head.headers, peer, &host, settings, &shared.env);
        let target = target.or_else(|| head.uri.path_and_query().cloned());
        let mut uri = Uri::builder().path_and_query(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        if protocol.multiplexed() {
            let host = head.headers.remove(header::HOST)?;
            uri = uri.scheme(if protocol.tls() { "https" } else { "http" }).authority(host.as_bytes());
        } else {
            headers::join_cookies(&mut head.headers, head.version);
        }
        head.uri = uri.build().ok()?;
        head.version = if protocol.multiplexed() { Version::HTTP_2 } else { Version::HTTP_11 };
        if let Some((_, wanted)) = &upgrade {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, wanted.clone());
        }
        Some(Self { shared, route, head, body: Upload::new(body, settings.body_max), upgrade, present })
    }

    /// Finds an endpoint that answers.
    pub async fn run(mut self, choice: &Choice<'_>) -> Outcome {
        let repeatable = self.body.progress().is_none() && self.upgrade.is_none() && is_idempotent(&self.head.method);
        let spare = repeatable.then(|| self.head.clone());
        let head = std::mem::replace(&mut self.head, Request::new(()).into_parts().0);
        let mut request = Some(Request::from_parts(head, std::mem::take(&mut self.body)));
        let need = if self.upgrade.is_some() { Need::Upgrade } else { Need::Any };
        let (mut tried, mut need) = (Vec::new(), need);
        let mut answer = answer::bad_gateway();
        for _ in 0..TRIES_MAX {
            let Some(endpoint) = self.route.backend.pick(choice, &tried) else { break };
            let Some(message) = request.take() else { break };
            let mut channel = match self.connect(endpoint, need).await {
                Ok(channel) => channel,
                Err(error) => {
                    self.log(endpoint, &error);
                    if let ConnectError::TimedOut(_) = error {
                        answer = answer::timed_out();
                    }
                    tried.push(endpoint);
                    request = Some(message);
                    continue;
                }
            };
            let used = channel.used();
            match exchange(&mut channel, message, &self.route.settings).await {
                Ok(response) => {
                    let response = self.passed(response, channel);
                    return Outcome { response, endpoint: Some(endpoint) };
                }
                Err(Lost::Unsent(message)) => request = Some(*message),
                Err(Lost::Broken(error)) => {
                    self.log(endpoint, &error);
                    request = spare.clone().map(|head| Request::from_parts(head, Upload::default()));
                }
                Err(Lost::TooSlow) => return Outcome { response: answer::timed_out(), endpoint: None },
                Err(Lost::TooLarge) => return Outcome { response: answer::too_large(), endpoint: None },
            }
            // A connection that had served before may have been closed just now, which says nothing of the endpoint.
            if need == Need::Any {
                need = Need::Fresh;
            }
            if !used {
                tried.push(endpoint);
            }
        }
        Outcome { response: answer, endpoint: None }
    }

    async fn connect(&self, endpoint: usize, need: Need) -> Result<Channel, ConnectError> {
        let backend = &self.route.backend;
        let place = Place { address: backend.targets[endpoint].address.clone(), protocol: backend.protocol };
        self.shared.upstreams.channel(&place, self.route.settings.connect_timeout, need).await
    }

    fn log(&self, endpoint: usize, error: &(dyn std::error::Error + 'static)) {
        let address = &self.route.backend.targets[endpoint].address;
        tracing::debug!(backend = self.route.backend.name, %address, error = chain(error), "an endpoint failed");
    }

    /// Makes a backend's answer into one for the client.
    fn passed(self, mut response: Response<Incoming>, channel: Channel) -> Response<Download> {
        let silence_max = self.route.settings.read_timeout;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some((client, wanted)) = self.upgrade else { return answer::bad_gateway() };
            let backend = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel::join(client, backend, silence_max, self.present));
            let (mut head, _) = response.into_parts();
            headers::remove_hop_by_hop(&mut head.headers);
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, wanted);
            head.extensions = Extensions::new();
            return Response::from_parts(head, Download::empty());
        }
        let (mut head, body) = response.into_parts();
        headers::remove_hop_by_hop(&mut head.headers);
        head.version = Version::HTTP_11;
        head.extensions = Extensions::new();
        Response::from_parts(head, Download::passed(body, channel.lease(), silence_max, self.present))
    }
}

/// Sends a request and waits for the head of the answer: as long as the body goes on, and then as long as a backend may be
/// silent.
async fn exchange(
    channel: &mut Channel,
    request: Request<Upload>,
    settings: &Settings,
) -> Result<Response<Incoming>, Lost> {
    let progress = request.body().progress();
    let begun = Instant::now();
    let mut sending = std::pin::pin!(channel.send(request));
    loop {
        let deadline = match progress.as_ref().map(|progress| progress.last()) {
            None => begun + settings.read_timeout,
            Some((last, true)) => last + settings.read_timeout,
            Some((last, false)) => last + settings.send_timeout,
        };
        match timeout_at(deadline, &mut sending).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(_)) if progress.as_ref().is_some_and(|progress| progress.too_large()) => return Err(Lost::TooLarge),
            Ok(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                return Err(unsent.map_or_else(|| Lost::Broken(error.into_error()), Lost::Unsent));
            }
            // It may have gone on meanwhile.
            Err(_)
                if progress.as_ref().is_some_and(|progress| {
                    progress.last().0 + settings.read_timeout.min(settings.send_timeout) > Instant::now()
                }) => {}
            Err(_) => return Err(Lost::TooSlow),
        }
    }
}

/// The protocol that a client wants to change to.
fn wanted_protocol(request: &Request<Incoming>) -> Option<HeaderValue> {
    let lists = request.headers().get_all(header::CONNECTION);
    let mut tokens = lists.iter().filter_map(|list| list.to_str().ok()).flat_map(|list| list.split(','));
    let asks =
        request.version() == Version::HTTP_11 && tokens.any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let wanted = request.headers().get(header::UPGRADE)?;
    // HTTP/2 is no concern of the backend's.
    (asks && !wanted.as_bytes().starts_with(b"h2")).then(|| wanted.clone())
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}
