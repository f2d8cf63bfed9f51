//! What we keep about one peer: how it stands with it, when and where to call it again, what it may still
//! say, and what we want to ask it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use protocol::identity::PeerKey;
use rand::Rng as _;
use tokio::sync::oneshot;

use crate::{
    ASK_BURST, ASK_RATE, GOSSIP_BURST, GOSSIP_RATE, MAX_ASKS_IN_FLIGHT_PER_PEER,
    MAX_WAITING_ASK_BYTES_PER_PEER, MAX_WAITING_ASKS_PER_PEER, RELAY_BURST, RELAY_RATE,
    address::{Address, Transport},
    limits::{Seen, TokenBucket},
    network::AskOutcome,
    pulse::Pulse,
    status::{PeerState, PeerStatus},
};

/// First and longest wait before a peer is called again, before jitter.
const FIRST_REDIAL: Duration = Duration::from_millis(250);
const LONGEST_REDIAL: Duration = Duration::from_secs(15);
/// The same for one that could not be talked to: somebody has to change something first.
const UNFIT_REDIAL: Duration = Duration::from_secs(60);
/// Of two peers, the one with the larger key gives the other this long to call first, so that they
/// seldom call each other at once and end up with two connections.
const COURTESY: Duration = Duration::from_secs(1);
/// For a peer to say what it runs.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

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
    addresses: Vec<Address>,
    /// The open connections, oldest first, and their other ends.
    links: BTreeMap<ConnectionId, Multiaddr>,
    linked_at: Instant,
    /// It has said what it runs, and that fits.
    is_greeted: bool,
    is_silent: bool,
    is_unfit: bool,
    shown: PeerState,
    since: Instant,
    pub why: Option<String>,
    pub agent: Option<String>,
    pub sees_us_at: Option<String>,
    pub pulse: Pulse,

    is_calling: bool,
    next_call: Instant,
    /// The address to call next, and how many have failed since the last pause.
    next_address: usize,
    failed_addresses: usize,
    /// Pauses in a row.
    failed_rounds: u32,

    /// Gossip it wrote, gossip it passed on, questions it asked.
    pub authored: TokenBucket,
    pub relayed: TokenBucket,
    pub asks: TokenBucket,
    pub seen: Seen,
    /// Questions of it that the node has not answered.
    pub open_asks: usize,
    /// Our questions to it.
    waiting: VecDeque<PendingAsk>,
    waiting_bytes: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    pub asks_dropped: u64,
    pub gossip_unsent: u64,
    pub gossip_dropped: u64,
}

impl Peer {
    pub fn new(
        id: PeerId,
        addresses: Vec<Address>,
        we_call_first: bool,
        heartbeat: Duration,
        now: Instant,
    ) -> Self {
        Self {
            id,
            addresses,
            links: BTreeMap::new(),
            linked_at: now,
            is_greeted: false,
            is_silent: false,
            is_unfit: false,
            shown: PeerState::Away,
            since: now,
            why: None,
            agent: None,
            sees_us_at: None,
            pulse: Pulse::new(heartbeat, now),
            is_calling: false,
            next_call: if we_call_first {
                now
            } else {
                after(now, COURTESY)
            },
            next_address: 0,
            failed_addresses: 0,
            failed_rounds: 0,
            authored: TokenBucket::new(GOSSIP_RATE, GOSSIP_BURST, now),
            relayed: TokenBucket::new(RELAY_RATE, RELAY_BURST, now),
            asks: TokenBucket::new(ASK_RATE, ASK_BURST, now),
            seen: Seen::default(),
            open_asks: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            asks_dropped: 0,
            gossip_unsent: 0,
            gossip_dropped: 0,
        }
    }

    pub fn state(&self) -> PeerState {
        if self.is_unfit {
            PeerState::Unfit
        } else if self.is_silent {
            PeerState::Silent
        } else if self.links.is_empty() {
            PeerState::Away
        } else if self.is_greeted {
            PeerState::Connected
        } else {
            PeerState::Greeting
        }
    }

    pub fn is_connected(&self) -> bool {
        self.state() == PeerState::Connected
    }

    /// Notes when the state has changed. Gives the new one if so.
    pub fn settle(&mut self, now: Instant) -> Option<PeerState> {
        let state = self.state();
        if state == self.shown {
            return None;
        }
        self.shown = state;
        self.since = now;
        Some(state)
    }

    /// Where to call now, if it is time to.
    pub fn take_call(&mut self, now: Instant) -> Option<Address> {
        if self.is_calling || !self.links.is_empty() || self.next_call > now {
            return None;
        }
        let address = self.addresses.get(self.next_address)?.clone();
        self.is_calling = true;
        Some(address)
    }

    /// The call was not needed after all.
    pub fn call_dropped(&mut self, now: Instant) {
        self.is_calling = false;
        self.next_call = after(now, FIRST_REDIAL);
    }

    /// The next address comes at once; after the last, a pause that doubles each time.
    pub fn call_failed(&mut self, why: String, now: Instant) {
        self.is_calling = false;
        if self.links.is_empty() {
            self.why = Some(why);
        }
        let next = self.next_address.saturating_add(1);
        self.next_address = if next < self.addresses.len() { next } else { 0 };
        self.failed_addresses = self.failed_addresses.saturating_add(1);
        self.next_call = now;
        if self.failed_addresses >= self.addresses.len() {
            self.failed_addresses = 0;
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Instant) {
        self.next_call = after(now, wait_after(self.failed_rounds));
        self.failed_rounds = self.failed_rounds.saturating_add(1);
    }

    pub fn linked(
        &mut self,
        link: ConnectionId,
        address: Multiaddr,
        we_called: bool,
        now: Instant,
    ) {
        if self.links.is_empty() {
            self.linked_at = now;
        }
        if we_called {
            self.is_calling = false;
        }
        self.links.insert(link, address);
    }

    /// Gives whether that was the last connection.
    pub fn unlinked(&mut self, link: ConnectionId, now: Instant) -> bool {
        self.links.remove(&link);
        if !self.links.is_empty() {
            return false;
        }
        // One that never came as far as a greeting is called ever less often.
        let next_call = self.next_call;
        if self.is_greeted {
            self.failed_rounds = 0;
        }
        self.pause(now);
        self.next_call = self.next_call.max(next_call);
        self.is_greeted = false;
        true
    }

    /// It has said what it runs, and that fits.
    pub fn greeted(&mut self, now: Instant) {
        if !self.is_greeted {
            self.pulse.restart(now);
        }
        self.is_greeted = true;
        self.is_unfit = false;
        self.failed_rounds = 0;
        self.failed_addresses = 0;
        if !self.is_silent {
            self.why = None;
        }
    }

    pub fn unfit(&mut self, now: Instant) {
        self.is_unfit = true;
        self.is_greeted = false;
        self.next_call = after(now, jittered(UNFIT_REDIAL));
    }

    /// Has it not said what it runs for too long?
    pub fn is_mute(&self, now: Instant) -> bool {
        !self.links.is_empty()
            && !self.is_greeted
            && !self.is_silent
            && !self.is_unfit
            && now.saturating_duration_since(self.linked_at) > GREETING_TIMEOUT
    }

    pub fn silent(&mut self) {
        self.is_silent = true;
        self.is_greeted = false;
    }

    pub fn alive(&mut self) {
        if self.is_silent {
            self.is_silent = false;
            self.why = None;
        }
    }

    /// Can it be asked for a heartbeat?
    pub fn has_pulse(&self) -> bool {
        self.is_greeted && !self.links.is_empty()
    }

    /// A question waits. Gives the older ones that have to go for it.
    pub fn wait(&mut self, ask: PendingAsk) -> Vec<PendingAsk> {
        self.waiting_bytes = self.waiting_bytes.saturating_add(ask.data.len());
        self.waiting.push_back(ask);
        let mut dropped = Vec::new();
        while self.waiting.len() > MAX_WAITING_ASKS_PER_PEER
            || self.waiting_bytes > MAX_WAITING_ASK_BYTES_PER_PEER
        {
            let Some(oldest) = self.take_waiting() else {
                break;
            };
            dropped.push(oldest);
        }
        self.asks_dropped = self
            .asks_dropped
            .saturating_add(u64::try_from(dropped.len()).unwrap_or(u64::MAX));
        dropped
    }

    pub fn take_waiting(&mut self) -> Option<PendingAsk> {
        let ask = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(ask.data.len());
        Some(ask)
    }

    /// Those that have waited for too long. Those that nobody waits for are forgotten.
    pub fn take_late(&mut self, now: Instant) -> Vec<PendingAsk> {
        self.waiting.retain(|ask| !ask.answer.is_closed());
        self.waiting_bytes = self.waiting.iter().map(|ask| ask.data.len()).sum();
        let mut late = Vec::new();
        // In order of time: the first that may wait longer ends the search.
        while self.waiting.front().is_some_and(|ask| ask.give_up <= now) {
            late.extend(self.take_waiting());
        }
        late
    }

    /// The next question to send now, if it can be talked to and has a stream free.
    pub fn take_sendable(&mut self) -> Option<PendingAsk> {
        loop {
            let next = self.waiting.front()?.data.len();
            let fits = self.in_flight == 0
                || self.in_flight_bytes.saturating_add(next) <= MAX_WAITING_ASK_BYTES_PER_PEER;
            if !self.is_connected() || self.in_flight >= MAX_ASKS_IN_FLIGHT_PER_PEER || !fits {
                return None;
            }
            let ask = self.take_waiting()?;
            if ask.answer.is_closed() {
                continue;
            }
            self.in_flight = self.in_flight.saturating_add(1);
            self.in_flight_bytes = self.in_flight_bytes.saturating_add(next);
            return Some(ask);
        }
    }

    /// A question of so many bytes has come to an end.
    pub fn sent(&mut self, bytes: usize) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
    }

    pub fn status(&self, key: PeerKey, gossip_waiting: usize, now: Instant) -> PeerStatus {
        let address = self.links.values().next();
        let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        PeerStatus {
            key,
            state: self.state(),
            since_s: now.saturating_duration_since(self.since).as_secs(),
            why: self.why.clone(),
            transport: address.map(Transport::of),
            address: address.map(ToString::to_string),
            agent: self.agent.clone(),
            sees_us_at: self.sees_us_at.clone(),
            rtt_us: self.pulse.rtt.map(micros),
            heartbeats: self.pulse.answered,
            heartbeats_missed: self.pulse.missed,
            asks_in_flight: self.in_flight,
            asks_waiting: self.waiting.len(),
            asks_dropped: self.asks_dropped,
            asks_open: self.open_asks,
            gossip_unsent: self.gossip_unsent,
            gossip_waiting,
            gossip_dropped: self.gossip_dropped,
        }
    }
}

fn wait_after(failed_rounds: u32) -> Duration {
    let doubled = FIRST_REDIAL.saturating_mul(1_u32 << failed_rounds.min(16));
    jittered(doubled.min(LONGEST_REDIAL))
}

/// Half of it is random, so that peers do not call in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
}

pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_ASK_BYTES;

    fn peer(addresses: &[&str], now: Instant) -> Peer {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Peer::new(
            PeerId::random(),
            addresses,
            true,
            Duration::from_secs(5),
            now,
        )
    }

    #[test]
    fn waits_between_calls_grow_to_a_bound_and_start_again_after_a_connection() {
        let now = Instant::now();
        let mut peer = peer(&["/ip4/192.0.2.1/tcp/1"], now);
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..40 {
            peer.take_call(at).unwrap();
            assert!(peer.take_call(at).is_none(), "one call at a time");
            peer.call_failed("refused".to_owned(), at);
            waits.push(peer.next_call - at);
            assert!(peer.take_call(at).is_none());
            at = peer.next_call;
        }
        assert!(waits[0] <= FIRST_REDIAL && waits[0] >= FIRST_REDIAL / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_REDIAL));
        assert!(waits[20..].iter().all(|wait| *wait >= LONGEST_REDIAL / 2));
        let link = ConnectionId::new_unchecked(1);
        peer.linked(link, Multiaddr::empty(), false, at);
        assert_eq!(peer.state(), PeerState::Greeting);
        peer.greeted(at);
        assert_eq!(peer.state(), PeerState::Connected);
        assert!(peer.unlinked(link, at));
        assert!(peer.next_call - at <= FIRST_REDIAL);
        assert_eq!(peer.state(), PeerState::Away);
    }

    #[test]
    fn addresses_are_tried_in_turn_and_the_one_that_worked_comes_first_again() {
        let now = Instant::now();
        let all = [
            "/ip4/192.0.2.2/tcp/1",
            "/ip4/192.0.2.1/tcp/1",
            "/dns4/a.example/tcp/1",
        ];
        let mut peer = peer(&all, now);
        for address in all {
            // No pause between the addresses of one round.
            assert_eq!(peer.take_call(now).unwrap().to_string(), address);
            peer.call_failed("refused".to_owned(), now);
        }
        assert!(peer.take_call(now).is_none());
        let later = now + LONGEST_REDIAL;
        peer.take_call(later).unwrap();
        peer.call_failed("refused".to_owned(), later);
        assert_eq!(peer.take_call(later).unwrap().to_string(), all[1]);
        let link = ConnectionId::new_unchecked(1);
        peer.linked(link, Multiaddr::empty(), true, later);
        peer.greeted(later);
        peer.unlinked(link, later);
        let again = later + LONGEST_REDIAL;
        assert_eq!(peer.take_call(again).unwrap().to_string(), all[1]);
    }

    #[test]
    fn an_unfit_peer_is_called_seldom_and_a_silent_one_is_no_peer_before_it_answers() {
        let now = Instant::now();
        let mut peer = peer(&["/ip4/192.0.2.1/tcp/1"], now);
        let link = ConnectionId::new_unchecked(1);
        peer.linked(link, Multiaddr::empty(), true, now);
        peer.unfit(now);
        peer.unlinked(link, now);
        assert_eq!(peer.state(), PeerState::Unfit);
        assert!(peer.take_call(now + UNFIT_REDIAL / 3).is_none());
        assert!(peer.take_call(now + UNFIT_REDIAL).is_some());
        peer.linked(link, Multiaddr::empty(), true, now);
        peer.greeted(now);
        assert_eq!(peer.settle(now), Some(PeerState::Connected));
        peer.silent();
        assert_eq!(peer.settle(now), Some(PeerState::Silent));
        peer.greeted(now);
        assert!(!peer.is_connected());
        peer.alive();
        assert!(peer.is_connected());
    }

    #[test]
    fn of_too_many_waiting_questions_the_oldest_go() {
        let now = Instant::now();
        let mut peer = peer(&[], now);
        let ask = |bytes: usize| {
            let (answer, answered) = oneshot::channel();
            let data = vec![0; bytes];
            (
                PendingAsk {
                    data,
                    answer,
                    give_up: now,
                },
                answered,
            )
        };
        let mut answers = Vec::new();
        for i in 0..MAX_WAITING_ASKS_PER_PEER + 3 {
            let (ask, answer) = ask(i);
            answers.push(answer);
            let dropped = peer.wait(ask);
            let expected = i.checked_sub(MAX_WAITING_ASKS_PER_PEER);
            assert_eq!(dropped.first().map(|ask| ask.data.len()), expected);
        }
        let fit = MAX_WAITING_ASK_BYTES_PER_PEER / MAX_ASK_BYTES;
        for _ in 0..fit {
            let (ask, answer) = ask(MAX_ASK_BYTES);
            answers.push(answer);
            peer.wait(ask);
        }
        assert_eq!(peer.waiting.len(), fit);
        let all = u64::try_from(answers.len() - fit).unwrap();
        assert_eq!(peer.asks_dropped, all);
        assert_eq!(peer.take_late(now).len(), fit);
        assert_eq!(peer.waiting_bytes, 0);
    }
}
