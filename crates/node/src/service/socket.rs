//! Upgrading a request to a WebSocket.

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Body, empty, refuse};

/// A WebSocket of a client.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a message carries; the client for Python sends text.
pub fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(bytes) => Some(bytes),
        Message::Text(text) => Some(text.into()),
        _ => None,
    }
}

/// Larger messages are refused.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

fn has(headers: &HeaderMap, name: http::HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
}

/// Whether the client offers to speak a protocol.
pub fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    has(headers, SEC_WEBSOCKET_PROTOCOL, protocol)
}

/// Whether a request is for a WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    has(headers, UPGRADE, "websocket")
}

/// The first of `protocols` that the client offers; the one without a name is for clients that offer none.
fn choose(headers: &HeaderMap, protocols: &[&'static str]) -> Option<&'static str> {
    let offered = |protocol: &str| match protocol {
        "" => !headers.contains_key(SEC_WEBSOCKET_PROTOCOL),
        protocol => offers(headers, protocol),
    };
    protocols.iter().copied().find(|protocol| offered(protocol))
}

/// Answers the handshake; `serve` runs with the socket and the protocol's name once the connection is upgraded.
pub fn upgrade<F, S>(request: Request<Body>, protocols: &[&'static str], serve: F) -> Response<Body>
where
    F: FnOnce(Socket, &'static str) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    if !is_wanted(headers) {
        let text = "this server streams over WebSocket only: use a client that offers it (kubectl 1.31 or later)";
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", text);
    }
    let Some(protocol) = choose(headers, protocols) else {
        let text = format!("unable to negotiate protocol: server supports {protocols:?}");
        return refuse(StatusCode::FORBIDDEN, "Forbidden", &text);
    };
    let Some(accept) = headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", "the header Sec-WebSocket-Key is missing");
    };
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let response = response.body(empty());
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MESSAGE_BYTES_MAX))
                    .max_frame_size(Some(MESSAGE_BYTES_MAX));
                let io = TokioIo::new(upgraded);
                serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await, protocol).await;
            }
            Err(error) => tracing::debug!(%error, "a client left before its connection was upgraded"),
        }
    });
    response.unwrap_or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &e.to_string()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_servers_order_decides_and_no_offer_means_the_protocol_without_a_name() {
        let known = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
        let chosen = |offer: Option<&'static str>, known: &[&'static str]| {
            let mut headers = HeaderMap::new();
            if let Some(offer) = offer {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offer));
            }
            choose(&headers, known)
        };
        assert_eq!(chosen(Some("channel.k8s.io, v4.channel.k8s.io"), &known), Some("v4.channel.k8s.io"));
        assert_eq!(chosen(Some("channel.k8s.io"), &known), Some("channel.k8s.io"));
        assert_eq!(chosen(None, &known), None);
        assert_eq!(chosen(None, &["binary.k8s.io", ""]), Some(""));
        assert_eq!(chosen(Some("other"), &["binary.k8s.io", ""]), None);
    }
}
