//! The one task that owns the swarm: commands in, events out, nothing else touches a connection.

mod connections;
mod gossip;
mod questions;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    request_response::{OutboundRequestId, ResponseChannel},
    swarm::SwarmEvent,
};
use protocol::identity::PeerKey;
use tokio::sync::{mpsc, oneshot};

use crate::{
    GOSSIP_BURST, GOSSIP_RATE,
    behaviour::{Behaviour, BehaviourEvent},
    codec::Answer,
    inbox::Inbox,
    limits::TokenBucket,
    names::Names,
    network::{AskError, AskOutcome, Board, Command},
    peer::Peer,
    settings::{Roster, StartError},
};

/// How often calls, heartbeats and waiting questions are looked after.
const TICK: Duration = Duration::from_millis(100);
/// For all listeners to come up.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// We publish a little slower than others accept, because clocks and arrival times differ.
const OWN_RATE_PERCENT: u32 = 80;

/// What the node, or a heartbeat, has answered.
struct Answered {
    to: PeerKey,
    channel: ResponseChannel<Answer>,
    answer: Answer,
    is_heartbeat: bool,
}

/// What was asked of a peer.
enum Asked {
    Question {
        answer: oneshot::Sender<AskOutcome>,
        bytes: usize,
    },
    Heartbeat {
        number: u64,
        sent: Instant,
    },
}

pub(crate) struct EventLoop {
    swarm: Swarm<Behaviour>,
    names: Names,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    commands: mpsc::Receiver<Command>,
    inbox: Inbox,
    board: Arc<Board>,
    own_gossip: TokenBucket,
    /// Addresses that are being looked up: at most one for each peer.
    resolving: FuturesUnordered<BoxFuture<'static, (PeerKey, io::Result<Vec<Multiaddr>>)>>,
    /// Questions that the node is answering: at most [`crate::MAX_OPEN_ASKS_PER_PEER`] and a heartbeat for each
    /// peer.
    answering: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Own questions: at most [`crate::MAX_ASKS_IN_FLIGHT_PER_PEER`] and a few heartbeats for each peer.
    asked: HashMap<OutboundRequestId, (PeerKey, Asked)>,
}

impl EventLoop {
    pub fn new(
        swarm: Swarm<Behaviour>,
        own: PeerKey,
        roster: Roster,
        names: Names,
        heartbeat: Duration,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let now = Instant::now();
        let peer = |(key, (id, addresses))| {
            let peer = Peer::new(id, addresses, own < key, heartbeat, now);
            (key, peer)
        };
        let share = |bound: u32| bound.saturating_mul(OWN_RATE_PERCENT) / 100;
        Self {
            swarm,
            names,
            keys: roster.keys,
            peers: roster.addresses.into_iter().map(peer).collect(),
            commands,
            inbox: Inbox::default(),
            board: Arc::default(),
            own_gossip: TokenBucket::new(share(GOSSIP_RATE), share(GOSSIP_BURST), now),
            resolving: FuturesUnordered::new(),
            answering: FuturesUnordered::new(),
            asked: HashMap::new(),
        }
    }

    /// Where events go.
    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Where the handle reads.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Returns when every address is being listened on.
    pub async fn listen(&mut self, addresses: Vec<Multiaddr>) -> Result<(), StartError> {
        let failed = |address: &Multiaddr, why: String| StartError::Listen {
            address: address.to_string(),
            why,
        };
        let mut pending = HashMap::new();
        for address in addresses {
            check_free(&address).map_err(|error| failed(&address, error.to_string()))?;
            let listener = self
                .swarm
                .listen_on(address.clone())
                .map_err(|error| failed(&address, error.to_string()))?;
            pending.insert(listener, address);
        }
        let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
        while let Some(some) = pending.values().next().cloned() {
            let next = tokio::time::timeout_at(deadline, self.swarm.select_next_some());
            let event = next
                .await
                .map_err(|_| failed(&some, "no answer in time".to_owned()))?;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    pending.remove(listener_id);
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason: Err(error),
                    ..
                } => {
                    let address = pending.get(listener_id).unwrap_or(&some);
                    return Err(failed(address, error.to_string()));
                }
                _ => {}
            }
            self.on_swarm(event);
        }
        self.show();
        Ok(())
    }

    /// Until the node shuts down or lets go of the last handle.
    pub async fn run(&mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event),
                Some(answered) = self.answering.next() => self.on_answer(answered),
                Some((peer, found)) = self.resolving.next() => self.call(peer, found),
                command = self.commands.recv() => match command {
                    Some(Command::Publish { data, done }) => {
                        let _ = done.send(self.publish(data));
                    }
                    Some(Command::Ask { peer, data, answer }) => self.ask(peer, data, answer),
                    Some(Command::ShutDown) | None => return,
                },
                _ = tick.tick() => self.on_tick(),
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.give_up_late(now);
        self.part_with_mutes(now);
        self.call_due(now);
        self.beat(now);
        self.show();
    }

    /// Renews what [`crate::Network::peers`] shows.
    fn show(&self) {
        let now = Instant::now();
        let peers = self.peers.iter();
        *self.board.peers() = peers
            .map(|(key, peer)| peer.status(*key, self.inbox.waiting(key), now))
            .collect();
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.linked(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => self.unlinked(peer_id, connection_id, cause.map(|cause| cause.to_string())),
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                self.board.counters.connections_refused(1);
                tracing::debug!(from = %send_back_addr, %error, "refused a connection");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                self.call_failed(peer_id, &error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.board.listening().insert(address.to_string());
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.board.listening().remove(&address.to_string());
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip_event(event),
            BehaviourEvent::Ask(event) => self.on_ask_event(event),
            BehaviourEvent::Identify(event) => self.identified(event),
            // A connection that does not answer is dead, whatever TCP believes.
            BehaviourEvent::Ping(event) if event.result.is_err() => {
                self.swarm.close_connection(event.connection);
            }
            _ => {}
        }
    }
}

/// libp2p lets several TCP sockets of one user listen on one port, and the system then shares the calls out
/// among them. Two nodes set to the same port must hear about it instead. (A QUIC port has one owner.)
fn check_free(address: &Multiaddr) -> std::io::Result<()> {
    use libp2p::multiaddr::Protocol::{Ip4, Ip6, Tcp};
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Ip4(ip)) => ip.into(),
        Some(Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Tcp(port)) => std::net::TcpListener::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

impl Drop for EventLoop {
    /// Nobody who waits is left without an answer.
    fn drop(&mut self) {
        for peer in self.peers.values_mut() {
            while let Some(ask) = peer.take_waiting() {
                let _ = ask.answer.send(Err(AskError::ShutDown));
            }
        }
        let open: HashSet<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in open {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        self.board.connected().clear();
        self.board.listening().clear();
        self.board.peers().clear();
        self.inbox.close();
    }
}
