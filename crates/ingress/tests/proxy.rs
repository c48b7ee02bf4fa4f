//! The proxy between real sockets: tables compiled from objects, backends of the test's own, and what goes wrong between.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use common::{Proxy, annotated, backend, closed_port, get, http2, raw, request, slow_backend, stale_backend};
use futures::SinkExt;
use futures::channel::mpsc;
use http::{Request, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn hosts_and_paths_lead_to_endpoints_and_headers_are_made() {
    let (a, b) = (backend("a").await, backend("b").await);
    let proxy = Proxy::start().await;
    proxy.route(&[
        annotated("one", json!({}), "a.test", &[("/", "Prefix", &[a]), ("/b", "Exact", &[b])]),
        annotated("two", json!({}), "*.wild.test", &[("/", "Prefix", &[b])]),
    ]);
    let (status, text) =
        get(&proxy, "a.test", "/x?y=1", &[("x-forwarded-for", "6.6.6.6"), ("x-real-ip", "6.6.6.6")]).await;
    assert_eq!(status, StatusCode::OK);
    for expected in
        ["a GET /x?y=1", "host: a.test", "x-real-ip: 127.0.0.1", "x-forwarded-for: 127.0.0.1", "x-request-id: "]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.contains("x-original-forwarded-for: 6.6.6.6") && !text.contains("x-real-ip: 6.6.6.6"), "{text}");
    for (host, path, status, starts) in [
        ("A.TEST:8080", "/b", 200, "b "),
        ("a.test", "/b/", 200, "a "),
        ("a.test", "/x/%2e%2e/b", 200, "b "),
        ("x.wild.test", "/", 200, "b "),
        ("x.y.wild.test", "/", 404, "no Ingress"),
        ("nobody.test", "/", 404, "no Ingress"),
    ] {
        let (found, text) = get(&proxy, host, path, &[]).await;
        assert!(found.as_u16() == status && text.starts_with(starts), "{host} {path}: {found} {text}");
    }
    assert_eq!(get(&proxy, "a.test", "/../b", &[]).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn endpoints_that_fail_are_passed_over() {
    let good = backend("good").await;
    let proxy = Proxy::start().await;
    proxy.route(&[
        annotated("one", json!({}), "a.test", &[("/", "Prefix", &[closed_port(), good, closed_port()])]),
        annotated("two", json!({}), "b.test", &[("/", "Prefix", &[stale_backend().await])]),
        annotated("three", json!({}), "c.test", &[("/", "Prefix", &[closed_port()])]),
        annotated("four", json!({}), "d.test", &[("/", "Prefix", &[])]),
    ]);
    for _ in 0..20 {
        assert_eq!(get(&proxy, "a.test", "/", &[]).await.0, StatusCode::OK);
        assert_eq!(get(&proxy, "b.test", "/", &[]).await.0, StatusCode::OK, "it closes connections when it likes");
    }
    assert_eq!(get(&proxy, "c.test", "/", &[]).await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(get(&proxy, "d.test", "/", &[]).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let posted =
        request(&proxy, Request::post("/").header("host", "a.test").body(Full::from("body")).expect("a request")).await;
    assert_eq!(posted.0, StatusCode::OK, "nothing was sent to those that refused");
}

#[tokio::test]
async fn connections_stand_through_changes_of_the_table() {
    let (a, b) = (backend("a").await, backend("b").await);
    let proxy = Proxy::start().await;
    let table = |to: SocketAddr| [annotated("one", json!({}), "a.test", &[("/", "Prefix", &[to])])];
    proxy.route(&table(a));
    let stream = TcpStream::connect(proxy.http).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    for (to, name) in [(a, "a "), (b, "b "), (a, "a ")] {
        proxy.route(&table(to));
        let request = Request::get("/").header("host", "a.test").body(Full::<Bytes>::default()).expect("a request");
        sender.ready().await.expect("the same connection");
        let body = sender.send_request(request).await.expect("an answer").into_body().collect().await.expect("a body");
        assert!(body.to_bytes().starts_with(name.as_bytes()));
    }
}

#[tokio::test]
async fn settings_of_an_ingress_are_kept() {
    let to = [backend("a").await];
    let slow = [slow_backend().await];
    let proxy = Proxy::start().await;
    let paths: &[(&str, &str, &[SocketAddr])] = &[("/", "Prefix", &to)];
    let rewritten: &[(&str, &str, &[SocketAddr])] = &[("/api(/|$)(.*)", "ImplementationSpecific", &to)];
    proxy.route(&[
        annotated("size", json!({"proxy-body-size": "10"}), "size.test", paths),
        annotated("rewrite", json!({"rewrite-target": "/$2"}), "rewrite.test", rewritten),
        annotated("root", json!({"rewrite-target": "/"}), "root.test", &[("/api", "Prefix", &to)]),
        annotated("deny", json!({"denylist-source-range": "127.0.0.0/8"}), "deny.test", paths),
        annotated("allow", json!({"whitelist-source-range": "10.0.0.0/8"}), "allow.test", paths),
        annotated("auth", json!({"auth-type": "basic", "auth-secret": "x"}), "auth.test", paths),
        annotated("limit", json!({"limit-rps": "1"}), "limit.test", paths),
        annotated("moved", json!({"permanent-redirect": "https://else.test$request_uri"}), "moved.test", paths),
        annotated("app", json!({"app-root": "/app"}), "app.test", paths),
        annotated("slow", json!({"proxy-read-timeout": "1"}), "slow.test", &[("/", "Prefix", &slow)]),
        annotated("cors", json!({"enable-cors": "true", "cors-allow-origin": "https://o.test"}), "cors.test", paths),
    ]);
    let status = async |host: &str, path: &str| get(&proxy, host, path, &[]).await;
    assert!(
        status("rewrite.test", "/api/v1/a b?q=1".replace(' ', "%20").as_str())
            .await
            .1
            .starts_with("a GET /v1/a%20b?q=1\n")
    );
    assert!(status("rewrite.test", "/api").await.1.starts_with("a GET /\n"));
    assert!(status("root.test", "/api/users").await.1.starts_with("a GET /\n"));
    assert_eq!(status("root.test", "/apix").await.0, 404);
    assert_eq!(status("deny.test", "/").await.0, 403);
    assert_eq!(status("allow.test", "/").await.0, 403);
    assert_eq!(status("auth.test", "/").await.0, 503);
    assert_eq!(status("slow.test", "/").await.0, 504);
    assert_eq!(status("app.test", "/").await.0, 302);
    let mut limited = 0;
    for _ in 0..20 {
        limited += usize::from(status("limit.test", "/").await.0 == 503);
    }
    assert!(limited >= 10, "{limited} of 20 were refused");
    let moved = raw(&proxy, "GET /x?y HTTP/1.1\r\nhost: moved.test\r\nconnection: close\r\n\r\n").await;
    assert!(moved.starts_with("HTTP/1.1 301") && moved.contains("location: https://else.test/x?y\r\n"), "{moved}");
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: cors.test\r\norigin: https://o.test\r\nconnection: close\r\n\r\n";
    let preflight = raw(&proxy, preflight).await;
    assert!(preflight.starts_with("HTTP/1.1 204") && preflight.contains("access-control-allow-origin: https://o.test"));
    too_large(&proxy).await;
}

async fn too_large(proxy: &Proxy) {
    let post = |length: usize| {
        let body = "x".repeat(length);
        format!("POST / HTTP/1.1\r\nhost: size.test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    assert!(raw(proxy, &post(10)).await.starts_with("HTTP/1.1 200"));
    assert!(raw(proxy, &post(11)).await.starts_with("HTTP/1.1 413"));
    let chunks = "6\r\nxxxxxx\r\n6\r\nxxxxxx\r\n0\r\n\r\n";
    let chunked = "POST / HTTP/1.1\r\nhost: size.test\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = raw(proxy, &format!("{chunked}{chunks}")).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn requests_are_read_one_way_only() {
    let proxy = Proxy::start().await;
    proxy.route(&[annotated("one", json!({}), "a.test", &[("/", "Prefix", &[backend("a").await])])]);
    // Two lengths; a length and chunks, with a request hidden behind; two hosts; bare line ends in a value.
    for bad in [
        "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 1\r\ncontent-length: 2\r\nconnection: close\r\n\r\nxx",
        "POST / HTTP/1.1\r\nhost: a.test\r\nhost: b.test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked, identity\r\nconnection: close\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a.test\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
        "CONNECT a.test:80 HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n",
    ] {
        let answer = raw(&proxy, bad).await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{bad:?}: {answer}");
    }
    let hidden = "POST /first HTTP/1.1\r\nhost: a.test\r\ncontent-length: 60\r\ntransfer-encoding: chunked\r\n\
                  connection: close\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: a.test\r\nx: ";
    let answer = raw(&proxy, hidden).await;
    assert!(!answer.contains("/hidden"), "{answer}");
}

#[tokio::test]
async fn bodies_flow_both_ways_at_once_and_trailers_follow() {
    let echo = common::echo_over_http2().await;
    let proxy = Proxy::start().await;
    proxy.route(&[annotated("grpc", json!({"backend-protocol": "GRPC"}), "grpc.test", &[("/", "Prefix", &[echo])])]);
    let mut sender = http2(proxy.http).await;
    let (mut pieces, body) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let request = Request::post("http://grpc.test/echo.Echo/Both")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(body))
        .expect("a request");
    let answer = tokio::spawn(async move { sender.send_request(request).await.expect("an answer") });
    pieces.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.expect("sent");
    let mut body = answer.await.expect("no panic").into_body();
    for piece in ["one", "two"] {
        if piece == "two" {
            pieces.send(Ok(Frame::data(Bytes::from_static(b"two")))).await.expect("sent");
        }
        let frame = body.frame().await.expect("a piece").expect("whole");
        assert_eq!(frame.into_data().expect("data"), piece, "it came back while the request goes on");
    }
    drop(pieces);
    let trailers = body.frame().await.expect("trailers").expect("whole").into_trailers().expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_changed_protocol_passes_bytes_until_one_side_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello ")
            .await
            .expect("sent");
        let (mut reads, mut writes) = stream.split();
        tokio::io::copy(&mut reads, &mut writes).await.expect("echoes");
    });
    let proxy = Proxy::start().await;
    proxy.route(&[annotated("ws", json!({}), "ws.test", &[("/", "Prefix", &[address])])]);
    let mut client = TcpStream::connect(proxy.http).await.expect("connects");
    let head = "GET /ws HTTP/1.1\r\nhost: ws.test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(format!("{head}world").as_bytes()).await.expect("sent");
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\nhello world") {
        text.push(client.read_u8().await.expect("more"));
    }
    assert!(text.starts_with(b"HTTP/1.1 101 "));
    client.shutdown().await.expect("half closed");
    assert_eq!(client.read(&mut [0]).await.expect("the end"), 0, "the backend's end follows");
}

#[tokio::test]
async fn clients_keep_their_endpoint_by_cookie_or_hash() {
    let all = [backend("a").await, backend("b").await, backend("c").await];
    let proxy = Proxy::start().await;
    let sticky = json!({"affinity": "cookie", "session-cookie-name": "route", "session-cookie-samesite": "Lax"});
    proxy.route(&[
        annotated("cookie", sticky, "cookie.test", &[("/", "Prefix", &all)]),
        annotated("hash", json!({"upstream-hash-by": "$arg_user"}), "hash.test", &[("/", "Prefix", &all)]),
    ]);
    let first = raw(&proxy, "GET / HTTP/1.1\r\nhost: cookie.test\r\nconnection: close\r\n\r\n").await;
    let cookie = first.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie").to_owned();
    assert!(cookie.starts_with("route=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    let name = |text: &str| text.split("\r\n\r\n").last().map(|body| body[..1].to_owned());
    for _ in 0..5 {
        let again = raw(
            &proxy,
            &format!("GET / HTTP/1.1\r\nhost: cookie.test\r\ncookie: x=1; {pair}\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(!again.contains("set-cookie"), "{again}");
        assert_eq!(name(&again), name(&first));
    }
    let (_, one) = get(&proxy, "hash.test", "/?user=7", &[]).await;
    for _ in 0..5 {
        assert_eq!(get(&proxy, "hash.test", "/?user=7", &[]).await.1[..2], one[..2]);
    }
}

#[tokio::test]
async fn each_host_shows_its_certificate_and_a_new_one_at_once() {
    let proxy = Proxy::start().await;
    let to = [backend("a").await];
    let (one, two) = (common::certificate("a.test"), common::certificate("b.test"));
    let ingress = |host: &str, secret: &str| {
        common::with_tls(annotated(host, json!({}), host, &[("/", "Prefix", &to)]), host, secret)
    };
    let all = [ingress("a.test", "one"), ingress("b.test", "two")];
    proxy.route_with(&all, &[("one", &one), ("two", &two)]);
    assert_eq!(proxy.https_get("a.test", &one, b"http/1.1").await, Some("HTTP/1.1 200 OK".to_owned()));
    assert_eq!(proxy.https_get("b.test", &two, b"http/1.1").await, Some("HTTP/1.1 200 OK".to_owned()));
    assert_eq!(proxy.https_get("a.test", &two, b"http/1.1").await, None, "that is another's");
    assert!(proxy.https_speaks("a.test", &one, b"h2").await);
    let newer = common::certificate("a.test");
    proxy.route_with(&all, &[("one", &newer), ("two", &two)]);
    assert_eq!(proxy.https_get("a.test", &newer, b"http/1.1").await, Some("HTTP/1.1 200 OK".to_owned()));
    assert_eq!(proxy.https_get("a.test", &one, b"http/1.1").await, None);
    let redirected = raw(&proxy, "GET /x HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await;
    let location = format!("location: https://a.test:{}/x\r\n", proxy.https.port());
    assert!(redirected.starts_with("HTTP/1.1 308") && redirected.contains(&location), "{redirected}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let proxy = Proxy::start().await;
    let slow = [slow_backend().await];
    proxy.route(&[annotated("one", json!({"limit-connections": "1"}), "a.test", &[("/", "Prefix", &slow)])]);
    let mut first = TcpStream::connect(proxy.http).await.expect("connects");
    first.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await.expect("sent");
    let another = async || {
        let text = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
        tokio::time::timeout(Duration::from_millis(300), raw(&proxy, text)).await
    };
    common::eventually("the first is under way", async || {
        another().await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 503"))
    })
    .await;
    drop(first);
    common::eventually("its place is free, and the next one waits for the backend", async || another().await.is_err())
        .await;
}
