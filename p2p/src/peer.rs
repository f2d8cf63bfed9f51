//! What we keep about one peer: whether it is connected, when to call it again, what it may still say,
//! and what we want to ask it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use rand::Rng as _;
use tokio::sync::oneshot;

use crate::{
    ASK_BURST, ASK_RATE, GOSSIP_BURST, GOSSIP_RATE, RELAY_BURST, RELAY_RATE,
    limits::{Seen, TokenBucket},
    network::AskOutcome,
};

/// First and longest wait before a peer is called again, before jitter.
const FIRST_REDIAL: Duration = Duration::from_millis(250);
const LONGEST_REDIAL: Duration = Duration::from_secs(15);
/// Of two peers, the one with the larger key gives the other this long to call first, so that they
/// seldom call each other at once and end up with two connections.
const COURTESY: Duration = Duration::from_secs(1);

/// A question that is on its way out.
#[derive(Debug)]
pub(crate) struct PendingAsk {
    pub data: Vec<u8>,
    pub answer: oneshot::Sender<AskOutcome>,
    pub give_up: Instant,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub id: PeerId,
    pub addresses: Vec<Multiaddr>,
    pub is_connected: bool,
    /// What the node was told last.
    pub announced: bool,
    failed_calls: u32,
    pub next_call: Instant,
    /// Gossip it wrote, gossip it passed on, questions it asked.
    pub authored: TokenBucket,
    pub relayed: TokenBucket,
    pub asks: TokenBucket,
    pub seen: Seen,
    /// Questions of it that the node has not answered.
    pub open_asks: usize,
    /// Our questions to it.
    pub waiting: VecDeque<PendingAsk>,
    pub in_flight: usize,
}

impl Peer {
    pub fn new(id: PeerId, addresses: Vec<Multiaddr>, we_call_first: bool, now: Instant) -> Self {
        Self {
            id,
            addresses,
            is_connected: false,
            announced: false,
            failed_calls: 0,
            next_call: if we_call_first {
                now
            } else {
                after(now, COURTESY)
            },
            authored: TokenBucket::new(GOSSIP_RATE, GOSSIP_BURST, now),
            relayed: TokenBucket::new(RELAY_RATE, RELAY_BURST, now),
            asks: TokenBucket::new(ASK_RATE, ASK_BURST, now),
            seen: Seen::default(),
            open_asks: 0,
            waiting: VecDeque::new(),
            in_flight: 0,
        }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        !self.is_connected && !self.addresses.is_empty() && self.next_call <= now
    }

    /// We are calling: unless it connects, the next call comes after a wait that doubles each time.
    pub fn called(&mut self, now: Instant) {
        self.next_call = after(now, wait_after(self.failed_calls));
        self.failed_calls = self.failed_calls.saturating_add(1);
    }

    pub fn connected(&mut self) {
        self.is_connected = true;
        self.failed_calls = 0;
    }

    pub fn disconnected(&mut self, now: Instant) {
        self.is_connected = false;
        self.next_call = after(now, wait_after(0));
    }
}

/// Half of it is random, so that peers do not call in step.
fn wait_after(failed_calls: u32) -> Duration {
    let doubled = FIRST_REDIAL.saturating_mul(1_u32 << failed_calls.min(16));
    doubled
        .min(LONGEST_REDIAL)
        .mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
}

pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_calls_grow_to_a_bound_and_start_again_after_a_connection() {
        let now = Instant::now();
        let mut peer = Peer::new(PeerId::random(), vec![], true, now);
        let mut waits = Vec::new();
        for _ in 0..40 {
            peer.called(now);
            waits.push(peer.next_call - now);
        }
        assert!(waits[0] <= FIRST_REDIAL && waits[0] >= FIRST_REDIAL / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_REDIAL));
        assert!(waits[20..].iter().all(|wait| *wait >= LONGEST_REDIAL / 2));
        peer.connected();
        peer.disconnected(now);
        assert!(peer.next_call - now <= FIRST_REDIAL);
    }
}
