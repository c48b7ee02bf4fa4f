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

/// The first of `protocols` that the client offers.
fn choose(headers: &HeaderMap, protocols: &[&'static str]) -> Option<&'static str> {
    protocols.iter().copied().find(|protocol| offers(headers, protocol))
}

/// Answers the handshake; `serve` runs with the socket once the connection is upgraded.
pub fn upgrade<F, S>(request: Request<Body>, protocols: &[&'static str], serve: F) -> Response<Body>
where
    F: FnOnce(Socket) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let headers = request.headers();
    if !has(headers, UPGRADE, "websocket") {
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
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(empty());
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MESSAGE_BYTES_MAX))
                    .max_frame_size(Some(MESSAGE_BYTES_MAX));
                let io = TokioIo::new(upgraded);
                serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await).await;
            }
            Err(error) => tracing::debug!(%error, "a client left before its connection was upgraded"),
        }
    });
    response.unwrap_or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &e.to_string()))
}
