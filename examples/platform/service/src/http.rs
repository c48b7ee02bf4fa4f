//! The HTTP side: three routes over hyper.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::hosted::Platform;

/// A body larger than any state name is refused.
const BODY_BYTES_MAX: usize = 64;

/// Accepts connections for ever.
pub async fn serve(listener: &TcpListener, platform: &Arc<Platform>) -> Infallible {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let platform = platform.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let platform = platform.clone();
                async move { Ok::<_, Infallible>(answer(&platform, peer, request).await) }
            });
            // A client that goes away in mid-request is its own affair.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(platform: &Platform, peer: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/health") => {
            let health = platform.health();
            let code = if health.status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            json(code, &health)
        }
        (&Method::GET, "/ready") => {
            let ready = platform.ready();
            let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            json(code, &serde_json::json!({ "ready": ready }))
        }
        (&Method::GET, "/") => {
            let pod = std::env::var("HOSTNAME").unwrap_or_default();
            json(StatusCode::OK, &serde_json::json!({ "service": "symphainy-platform", "pod": pod }))
        }
        (&Method::PUT, path) => match path.strip_prefix("/services/") {
            Some(_) if !peer.ip().is_loopback() => fault(StatusCode::FORBIDDEN, "allowed from loopback only"),
            Some(name) => set(platform, name, request).await,
            None => fault(StatusCode::NOT_FOUND, "no such path"),
        },
        _ => fault(StatusCode::NOT_FOUND, "no such path; try /health, /ready"),
    }
}

async fn set(platform: &Platform, name: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Ok(body) = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await else {
        return fault(StatusCode::PAYLOAD_TOO_LARGE, "the body is `running` or `stopped`");
    };
    let running = match body.to_bytes().trim_ascii() {
        b"running" => true,
        b"stopped" => false,
        _ => return fault(StatusCode::BAD_REQUEST, "the body is `running` or `stopped`"),
    };
    if !platform.set(name, running) {
        return fault(StatusCode::NOT_FOUND, "no service of that name; see /health for the names");
    }
    println!("service {name} is now {}", if running { "running" } else { "stopped" });
    json(StatusCode::OK, &platform.health())
}

fn fault(code: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(code, &serde_json::json!({ "error": message }))
}

fn json(code: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
