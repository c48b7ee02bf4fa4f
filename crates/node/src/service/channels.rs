//! Forwarding ports over the channels of a WebSocket, as the clients for Python and JavaScript do it: of the port with
//! index `n`, channel `2n` carries the data and channel `2n + 1` says why it failed. Each begins with the port's number
//! in two bytes, the low one first.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::portforward::{CHUNK_BYTES, Place, WAITING_MAX};
use super::socket::{Socket, payload};

/// What clients offer that speak so.
pub const PROTOCOL: &str = "v4.channel.k8s.io";
/// Ports of one WebSocket.
pub const PORTS_MAX: usize = 64;

/// Connects to each port at once; ends when all connections have ended, or the client leaves.
pub async fn forward(socket: Socket, place: Arc<Place>, ports: Vec<u16>) {
    let (mut sink, mut stream) = socket.split();
    let (sender, mut outgoing) = mpsc::channel::<Bytes>(WAITING_MAX);
    let (mut connections, mut inputs) = (JoinSet::new(), Vec::new());
    for (channel, port) in (0_u8..).step_by(2).zip(ports) {
        let (input, pieces) = mpsc::channel(WAITING_MAX);
        inputs.push(Some(input));
        connections.spawn(connection(place.clone(), port, channel, sender.clone(), pieces));
    }
    // The connections hold the others: when they have ended, there is nothing more to write.
    drop(sender);
    let writer = async {
        while let Some(piece) = outgoing.recv().await {
            if sink.send(Message::Binary(piece)).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await;
        let _ = sink.close().await;
    };
    let reader = async {
        while let Some(Ok(message)) = stream.next().await {
            let Some(bytes) = payload(message) else { continue };
            let Some(slot) = bytes.first().filter(|c| *c % 2 == 0).and_then(|c| inputs.get_mut(usize::from(c / 2)))
            else {
                continue;
            };
            if let Some(input) = slot
                && bytes.len() > 1
                && input.send(bytes.slice(1..)).await.is_err()
            {
                *slot = None;
            }
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
}

fn message(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(1 + bytes.len());
    message.push(channel);
    message.extend_from_slice(bytes);
    message.into()
}

async fn connection(
    place: Arc<Place>,
    port: u16,
    channel: u8,
    sender: mpsc::Sender<Bytes>,
    mut pieces: mpsc::Receiver<Bytes>,
) {
    for channel in [channel, channel + 1] {
        if sender.send(message(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let stream = match place.dial(port).await {
        Ok(stream) => stream,
        Err(reason) => {
            let _ = sender.send(message(channel + 1, place.failure(port, &reason).as_bytes())).await;
            return;
        }
    };
    let (mut read, mut write) = stream.into_split();
    let up = async move {
        while let Some(piece) = pieces.recv().await {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = read.read(&mut chunk).await {
            if sender.send(message(channel, &chunk[..count])).await.is_err() {
                return;
            }
        }
    };
    // What the pod says ends the connection; that the client says nothing more does not.
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}
