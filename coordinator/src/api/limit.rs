//! Bounds on what clients can take: requests a second and connections of one address, requests and
//! connections of all, and time.
//!
//! ```text
//! connection --table full? one client's share used up?--> closed
//! request --rate of its address--> 429 --in flight--> 503 busy --time--> 503 timeout --> handler
//! ```
//!
//! Behind a reverse proxy all clients have the proxy's address; the proxy has to keep the rates then.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::sync::Semaphore;

use super::problem::{Code, Failure};

/// Addresses whose rates are known at a time; further ones share one rate.
const MAX_CLIENTS: usize = 16_384;
/// Requests in work at a time.
const MAX_IN_FLIGHT: usize = 256;
/// Longest time that an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A client may save up the requests of this many seconds.
const BURST_SECONDS: u64 = 2;
/// Pause between two looks for addresses that can be forgotten, in nanoseconds.
const SWEEP_NS: u64 = NS_PER_S;
const NS_PER_S: u64 = 1_000_000_000;

/// Who is limited: an IPv4 address, or the /64 that an IPv6 address is in.
pub fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

/// A token bucket an address, each kept as the time at which it will be full again (GCRA).
#[derive(Debug)]
pub struct Rates {
    interval_ns: u64,
    burst_ns: u64,
    full_at: HashMap<IpAddr, u64>,
    others_full_at: u64,
    swept_at: u64,
}

impl Rates {
    /// `per_second` requests of each address, and bursts of [`BURST_SECONDS`] times as many.
    pub fn new(per_second: u32) -> Self {
        Self {
            interval_ns: NS_PER_S
                .checked_div(per_second.into())
                .unwrap_or(NS_PER_S)
                .max(1),
            burst_ns: BURST_SECONDS.saturating_mul(NS_PER_S),
            full_at: HashMap::new(),
            others_full_at: 0,
            swept_at: 0,
        }
    }

    /// Takes a token; `now` is in nanoseconds since any fixed time. `false` when there is none.
    pub fn take(&mut self, client: IpAddr, now: u64) -> bool {
        let is_new = !self.full_at.contains_key(&client);
        if is_new
            && self.full_at.len() >= MAX_CLIENTS
            && now >= self.swept_at.saturating_add(SWEEP_NS)
        {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept_at = now;
        }
        let full_at = if is_new && self.full_at.len() >= MAX_CLIENTS {
            &mut self.others_full_at
        } else {
            self.full_at.entry(client).or_insert(0)
        };
        let after = (*full_at).max(now).saturating_add(self.interval_ns);
        let is_allowed = after.saturating_sub(now) <= self.burst_ns;
        if is_allowed {
            *full_at = after;
        }
        is_allowed
    }
}

/// The bounds of all requests.
pub struct Limits {
    started: Instant,
    rates: Mutex<Rates>,
    in_flight: Semaphore,
}

impl Limits {
    /// `per_second` requests of each address.
    pub fn new(per_second: u32) -> Self {
        Self {
            started: Instant::now(),
            rates: Mutex::new(Rates::new(per_second)),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        }
    }

    fn take(&self, client: IpAddr) -> bool {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Every value of the table is a valid one.
        self.rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(client, now)
    }
}

/// Lets a request pass if it is within all bounds.
pub async fn guard(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let from = from.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(from)| {
        from.ip()
    });
    if !limits.take(client(from)) {
        return Failure::new(Code::RateLimited, "wait a second; use fewer requests")
            .into_response();
    }
    let Ok(_slot) = limits.in_flight.try_acquire() else {
        let detail = format!("{MAX_IN_FLIGHT} requests are in work; try again");
        return Failure::new(Code::Busy, detail).into_response();
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail =
                "there was no answer in time; what was sent may still be done, so ask again";
            Failure::new(Code::Timeout, detail).into_response()
        }
    }
}

/// How many connections, or streams, each client has.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    most_per_client: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// Connections of all clients at a time.
pub const MAX_CONNECTIONS: usize = 1_024;
/// Connections of one client at a time.
pub const MAX_CONNECTIONS_PER_CLIENT: usize = 256;

impl Connections {
    /// With room for so many, and so many of one client.
    pub fn new(most: usize, most_per_client: usize) -> Self {
        Self {
            most,
            most_per_client,
            open: Mutex::new(HashMap::new()),
        }
    }

    /// Counts a connection until the slot is dropped; `None` at either bound.
    pub fn open(self: &Arc<Self>, client: IpAddr) -> Option<Slot> {
        let mut open = self.lock();
        if open
            .values()
            .fold(0, |all: usize, n| all.saturating_add(*n))
            >= self.most
        {
            return None;
        }
        let count = open.entry(client).or_insert(0);
        if *count >= self.most_per_client {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Slot {
            connections: Arc::clone(self),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct Slot {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        let left = open
            .get(&self.client)
            .copied()
            .unwrap_or(0)
            .saturating_sub(1);
        if left == 0 {
            open.remove(&self.client);
        } else {
            open.insert(self.client, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn nth(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_that_address_alone() {
        let mut rates = Rates::new(10);
        let passed = (0..50).filter(|_| rates.take(A, 5)).count();
        assert_eq!(passed, 20);
        assert!(rates.take(nth(1), 5));
        let tenth = NS_PER_S / 10;
        assert!(!rates.take(A, 5 + tenth - 1));
        assert!(rates.take(A, 5 + tenth));
        assert!(!rates.take(A, 5 + tenth));
        let later = (0..50).filter(|_| rates.take(A, 100 * NS_PER_S)).count();
        assert_eq!(later, 20);
    }

    #[test]
    fn the_table_is_bounded_and_idle_addresses_make_room() {
        let mut rates = Rates::new(10);
        let all = u32::try_from(MAX_CLIENTS).unwrap();
        for n in 0..all {
            assert!(rates.take(nth(n), NS_PER_S));
        }
        // No room: newcomers share one bucket.
        let shared = (0..50)
            .filter(|n| rates.take(nth(all + n), NS_PER_S))
            .count();
        assert_eq!((shared, rates.full_at.len()), (20, MAX_CLIENTS));
        assert!(rates.take(nth(all), 10 * NS_PER_S));
        assert_eq!(rates.full_at.len(), 1);
    }

    #[test]
    fn an_ipv6_client_is_a_64_and_a_mapped_one_its_ipv4_address() {
        let of = |text: &str| client(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), A);
    }

    #[test]
    fn a_client_has_a_share_of_the_connections_and_gets_it_back() {
        let connections = Arc::new(Connections::new(
            MAX_CONNECTIONS,
            MAX_CONNECTIONS_PER_CLIENT,
        ));
        let held: Vec<_> = std::iter::from_fn(|| connections.open(A))
            .take(10_000)
            .collect();
        assert_eq!(held.len(), MAX_CONNECTIONS_PER_CLIENT);
        assert!(connections.open(nth(1)).is_some());
        drop(held);
        assert!(connections.lock().is_empty());
        assert!(connections.open(A).is_some());
    }
}
