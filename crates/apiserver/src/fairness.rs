//! Who is served next, when more is asked than can be done at once.
//!
//! A client is a user, or a token, or everyone without either. Each request takes one of the seats; with none free it
//! waits in the queue of its client, and freed seats go to the clients in turn: a client with a thousand requests
//! waits for itself, not others for it. No client holds more than three quarters of the seats, and a queue that is
//! full answers 429. Watches and streams to containers hold no seat. Requests within the process pass by.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Request;
use http::header::AUTHORIZATION;
use tokio::sync::oneshot;

use crate::auth::Identity;
use crate::error::ApiError;
use crate::request;

/// Requests that are worked on at once.
pub const SEATS: usize = 256;
/// The most seats of one client.
const SHARE: usize = SEATS / 4 * 3;
/// Requests of one client that wait.
const QUEUE: usize = 512;

/// The seats, and who waits for one.
#[derive(Default)]
pub struct Seats {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    held: BTreeMap<String, usize>,
    waiting: BTreeMap<String, VecDeque<oneshot::Sender<Seat>>>,
    /// Clients that wait, the next first.
    turns: VecDeque<String>,
}

/// A seat; given up when dropped.
pub struct Seat {
    seats: Arc<Seats>,
    client: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        Seats::release(&self.seats, &self.client);
    }
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a seat.
    pub async fn take(self: &Arc<Self>, client: &str) -> Result<Seat, ApiError> {
        let waiting = {
            let mut state = self.lock();
            if state.has_room(client) && !state.waiting.contains_key(client) {
                return Ok(state.seat(self, client));
            }
            if state.waiting.get(client).is_some_and(|queue| queue.len() >= QUEUE) {
                return Err(ApiError::TooManyRequests("Too many requests, please try again later.".to_owned()));
            }
            let (sender, receiver) = oneshot::channel();
            if !state.waiting.contains_key(client) {
                state.turns.push_back(client.to_owned());
            }
            state.waiting.entry(client.to_owned()).or_default().push_back(sender);
            receiver
        };
        waiting.await.map_err(|_| ApiError::Unavailable("the server is shutting down".to_owned()))
    }

    fn release(seats: &Arc<Self>, client: &str) {
        // A seat that nobody takes any more comes back here when it is dropped, outside the lock.
        let mut given = Vec::new();
        {
            let mut state = seats.lock();
            state.taken -= 1;
            match state.held.get_mut(client) {
                Some(held) if *held > 1 => *held -= 1,
                _ => drop(state.held.remove(client)),
            }
            while let Some((sender, next)) = state.next() {
                let seat = state.seat(seats, &next);
                given.push((sender, seat));
            }
        }
        for (sender, seat) in given {
            drop(sender.send(seat));
        }
    }
}

impl State {
    fn has_room(&self, client: &str) -> bool {
        self.taken < SEATS && self.held.get(client).is_none_or(|held| *held < SHARE)
    }

    fn seat(&mut self, seats: &Arc<Seats>, client: &str) -> Seat {
        self.taken += 1;
        *self.held.entry(client.to_owned()).or_default() += 1;
        Seat { seats: seats.clone(), client: client.to_owned() }
    }

    /// The next request that can be given a seat: the first of the first client in turn that may have another.
    fn next(&mut self) -> Option<(oneshot::Sender<Seat>, String)> {
        for _ in 0..self.turns.len() {
            let client = self.turns.pop_front()?;
            if !self.has_room(&client) {
                self.turns.push_back(client);
                continue;
            }
            let Some(queue) = self.waiting.get_mut(&client) else { continue };
            let sender = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&client);
            } else {
                self.turns.push_back(client.clone());
            }
            match sender {
                // Whoever hung up has no turn.
                Some(sender) if sender.is_closed() => {}
                Some(sender) => return Some((sender, client)),
                None => {}
            }
        }
        None
    }
}

/// The client of a request.
pub fn client<B>(request: &Request<B>, who: &Identity) -> String {
    match request.headers().get(AUTHORIZATION) {
        Some(token) if who.is_anonymous() => {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            token.as_bytes().hash(&mut hasher);
            format!("token {:x}", hasher.finish())
        }
        _ => who.user.clone(),
    }
}

/// Whether a request is answered as long as its client likes.
pub fn is_long<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let watches = query.split('&').any(|part| matches!(part, "watch" | "watch=true" | "watch=1" | "follow=true"));
    let path = request::parse_path(request.uri().path());
    watches
        || path.is_some_and(|path| {
            path.watch || matches!(path.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log")
        })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_greedy_client_waits_for_itself() {
        let seats = Arc::new(Seats::default());
        let mut greedy = Vec::new();
        for _ in 0..SHARE {
            greedy.push(seats.take("greedy").now_or_never().expect("room").expect("a seat"));
        }
        let mut queued: Vec<_> = (0..QUEUE).map(|_| Box::pin(seats.take("greedy"))).collect();
        assert!(queued.iter_mut().all(|wait| wait.now_or_never().is_none()));
        assert!(matches!(seats.take("greedy").now_or_never(), Some(Err(ApiError::TooManyRequests(_)))));
        // Others come through at once, and when all is taken, in turn.
        let others: Vec<_> =
            (0..SEATS - SHARE).map(|_| seats.take("modest").now_or_never().expect("room").expect("a seat")).collect();
        let mut modest = Box::pin(seats.take("modest"));
        assert!((&mut modest).now_or_never().is_none());
        drop(greedy.pop());
        drop(greedy.pop());
        assert!((&mut modest).now_or_never().expect("its turn").is_ok());
        drop((greedy, others, queued));
        let free = seats.lock();
        assert_eq!((free.taken, free.waiting.len()), (0, 0));
    }
}
