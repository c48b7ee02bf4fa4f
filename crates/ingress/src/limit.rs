//! How much one client may ask for: requests a second and a minute as leaky buckets, and requests at once.
//!
//! Bounded in memory: an attack from many addresses makes it forget, never grow.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::annotations::Limits;

/// Clients that are remembered by each bucket.
const CLIENTS_MAX: usize = 16_384;

/// The limits of an Ingress, and how far each client is.
#[derive(Debug)]
pub struct Limiter {
    /// What is allowed.
    pub limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    second: Buckets,
    minute: Buckets,
    present: HashMap<IpAddr, u32>,
}

/// What each client has asked for beyond its rate, and when that was worked out.
#[derive(Debug, Default)]
struct Buckets(HashMap<IpAddr, (f64, Instant)>);

impl Buckets {
    /// Takes in a request; says whether it is within `rate` a second and `burst` at once.
    fn take(&mut self, client: IpAddr, rate: f64, burst: f64, now: Instant) -> bool {
        let left = |excess: f64, at: Instant| (excess - now.duration_since(at).as_secs_f64() * rate).max(0.0);
        if self.0.len() >= CLIENTS_MAX && !self.0.contains_key(&client) {
            self.0.retain(|_, (excess, at)| left(*excess, *at) > 0.0);
            if self.0.len() >= CLIENTS_MAX {
                self.0.clear();
            }
        }
        let Some((excess, at)) = self.0.get_mut(&client) else {
            self.0.insert(client, (0.0, now));
            return true;
        };
        let wanted = left(*excess, *at) + 1.0;
        if wanted > burst {
            return false;
        }
        (*excess, *at) = (wanted, now);
        true
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct Present {
    limiter: Arc<Limiter>,
    client: IpAddr,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        if let Some(count) = state.present.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                state.present.remove(&self.client);
            }
        }
    }
}

impl Limiter {
    /// A limiter that has seen nobody.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a request of a client: an error if it is one too many; else what to hold while it is under way.
    pub fn admit(self: &Arc<Self>, client: IpAddr, now: Instant) -> Result<Option<Present>, TooMany> {
        let limits = &self.limits;
        if limits.exempt.iter().any(|range| range.contains(&client)) {
            return Ok(None);
        }
        let mut state = self.lock();
        let burst = f64::from(limits.burst);
        let rates = [(limits.per_second, 1.0), (limits.per_minute, Duration::from_secs(60).as_secs_f64())];
        let State { second, minute, present } = &mut *state;
        for (buckets, (count, span_s)) in [second, minute].into_iter().zip(rates) {
            let count = f64::from(count);
            if count > 0.0 && !buckets.take(client, count / span_s, count * burst, now) {
                return Err(TooMany);
            }
        }
        if limits.connections == 0 {
            return Ok(None);
        }
        let count = present.entry(client).or_insert(0);
        if *count >= limits.connections {
            return Err(TooMany);
        }
        *count += 1;
        drop(state);
        Ok(Some(Present { limiter: self.clone(), client }))
    }
}

/// One request too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: u32, connections: u32) -> Arc<Limiter> {
        Arc::new(Limiter::new(Limits { per_second, connections, burst: 2, ..Limits::default() }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_only_the_rate() {
        let (limiter, client) = (limiter(2, 0), IpAddr::from([192, 0, 2, 1]));
        let passed = || (0..20).filter(|_| limiter.admit(client, Instant::now()).is_ok()).count();
        assert_eq!(passed(), 5, "one, and twice the rate beyond it");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(passed(), 2);
        assert!(limiter.admit(IpAddr::from([192, 0, 2, 2]), Instant::now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_once_are_counted_until_they_end() {
        let (limiter, client) = (limiter(0, 2), IpAddr::from([192, 0, 2, 1]));
        let admit = || limiter.admit(client, Instant::now());
        let (first, _second) = (admit().expect("allowed"), admit().expect("allowed"));
        assert!(admit().is_err());
        drop(first);
        assert!(admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_do_not_fill_the_memory() {
        let limiter = limiter(1, 0);
        for number in 0..40_000_u32 {
            let _ = limiter.admit(IpAddr::from(number.to_be_bytes()), Instant::now());
        }
        assert!(limiter.lock().second.0.len() <= CLIENTS_MAX);
    }
}
