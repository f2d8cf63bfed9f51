//! The one task that owns the swarm: commands in, events out, nothing else touches a connection.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId},
    request_response::{self, Message, OutboundFailure, OutboundRequestId, ResponseChannel},
    swarm::{
        DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use protocol::identity::PeerKey;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ASK_WAIT, GOSSIP_BURST, GOSSIP_RATE, MAX_ASKS_IN_FLIGHT_PER_PEER, MAX_GOSSIP_BYTES,
    MAX_OPEN_ASKS_PER_PEER, MAX_WAITING_ASKS_PER_PEER,
    behaviour::{Behaviour, BehaviourEvent},
    codec::{Answer, Question, Refusal},
    limits::TokenBucket,
    names::Names,
    network::{AskError, AskOutcome, Board, Command, Event, PublishError, Reply},
    peer::{Peer, PendingAsk, after},
    settings::{Roster, StartError},
};

/// How often calls, waiting questions and news of connections are looked after.
const TICK: Duration = Duration::from_millis(200);
/// For all listeners to come up.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// We publish a little slower than others accept, because clocks and arrival times differ.
const OWN_RATE_PERCENT: u32 = 80;

type Answered = (PeerKey, ResponseChannel<Answer>, Answer);

pub(crate) struct EventLoop {
    swarm: Swarm<Behaviour>,
    names: Names,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    board: Arc<Board>,
    own_gossip: TokenBucket,
    /// Questions that the node is answering: at most [`MAX_OPEN_ASKS_PER_PEER`] for each peer.
    answering: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Own questions: at most [`MAX_ASKS_IN_FLIGHT_PER_PEER`] for each peer.
    asked: HashMap<OutboundRequestId, (PeerKey, oneshot::Sender<AskOutcome>)>,
}

impl EventLoop {
    pub fn new(
        swarm: Swarm<Behaviour>,
        own: PeerKey,
        roster: Roster,
        names: Names,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        board: Arc<Board>,
    ) -> Self {
        let now = Instant::now();
        let peer = |(key, (id, addresses))| (key, Peer::new(id, addresses, own < key, now));
        let share = |bound: u32| bound.saturating_mul(OWN_RATE_PERCENT) / 100;
        Self {
            swarm,
            names,
            keys: roster.keys,
            peers: roster.addresses.into_iter().map(peer).collect(),
            commands,
            events,
            board,
            own_gossip: TokenBucket::new(share(GOSSIP_RATE), share(GOSSIP_BURST), now),
            answering: FuturesUnordered::new(),
            asked: HashMap::new(),
        }
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
        Ok(())
    }

    /// Until the node shuts down or lets go of the last handle.
    pub async fn run(&mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event),
                Some((peer, channel, answer)) = self.answering.next() => {
                    self.on_answer(peer, channel, answer);
                }
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

    fn publish(&mut self, data: Vec<u8>) -> Result<(), PublishError> {
        if !self.own_gossip.take(data.len(), Instant::now()) {
            return Err(PublishError::TooFast);
        }
        let topic = self.names.topic.hash();
        match self.swarm.behaviour_mut().gossip.publish(topic, data) {
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(PublishError::NoPeers),
            Err(gossipsub::PublishError::AllQueuesFull(_)) => Err(PublishError::Busy),
            Err(error) => Err(PublishError::Failed(error.to_string())),
        }
    }

    fn ask(&mut self, key: PeerKey, data: Vec<u8>, answer: oneshot::Sender<AskOutcome>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            let _ = answer.send(Err(AskError::UnknownPeer(key)));
            return;
        };
        if peer.waiting.len() >= MAX_WAITING_ASKS_PER_PEER {
            let _ = answer.send(Err(AskError::TooMany));
            return;
        }
        let give_up = after(Instant::now(), ASK_WAIT);
        peer.waiting.push_back(PendingAsk {
            data,
            answer,
            give_up,
        });
        self.send_waiting(key);
    }

    /// Sends what waits for this peer, as far as its share of streams goes.
    fn send_waiting(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        while peer.is_connected && peer.in_flight < MAX_ASKS_IN_FLIGHT_PER_PEER {
            let Some(ask) = peer.waiting.pop_front() else {
                return;
            };
            if ask.answer.is_closed() {
                continue;
            }
            let question = Question {
                data: ask.data,
                room: None,
            };
            let id = self
                .swarm
                .behaviour_mut()
                .ask
                .send_request(&peer.id, question);
            peer.in_flight = peer.in_flight.saturating_add(1);
            self.asked.insert(id, (key, ask.answer));
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, peer) in &mut self.peers {
            peer.waiting.retain(|ask| !ask.answer.is_closed());
            // In order of time: the first that may wait longer ends the search.
            while peer.waiting.front().is_some_and(|ask| ask.give_up <= now) {
                if let Some(ask) = peer.waiting.pop_front() {
                    let _ = ask.answer.send(Err(AskError::NotConnected));
                }
            }
            if peer.is_due(now) {
                peer.called(now);
                due.push((*key, peer.id, peer.addresses.clone()));
            }
        }
        for (key, id, addresses) in due {
            self.call(key, id, addresses);
        }
        self.announce();
    }

    fn call(&mut self, key: PeerKey, id: PeerId, addresses: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(id)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            // From the listening port, a call back to the same peer could meet its own old connection.
            .allocate_new_port()
            .build();
        match self.swarm.dial(options) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => tracing::debug!(peer = %key, %error, "cannot call"),
        }
    }

    /// Tells the node who came and went. What does not fit now is told at the next tick.
    fn announce(&mut self) {
        for (key, peer) in &mut self.peers {
            if peer.announced != peer.is_connected {
                let event = if peer.is_connected {
                    Event::Connected(*key)
                } else {
                    Event::Disconnected(*key)
                };
                if self.events.try_send(event).is_ok() {
                    peer.announced = peer.is_connected;
                }
            }
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => self.on_connected(peer_id),
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                cause,
                ..
            } => {
                self.on_disconnected(peer_id, cause.map(|cause| cause.to_string()));
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                self.board.counters.connections_refused();
                tracing::debug!(from = %send_back_addr, %error, "refused a connection");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(peer = ?peer_id, %error, "could not connect");
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

    fn on_connected(&mut self, id: PeerId) {
        let Some(key) = self.keys.get(&id).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.is_connected {
            tracing::info!(peer = %key, "connected");
        }
        peer.connected();
        self.board.connected().insert(key);
        self.announce();
        self.send_waiting(key);
    }

    fn on_disconnected(&mut self, id: PeerId, cause: Option<String>) {
        let Some(key) = self.keys.get(&id).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        tracing::info!(peer = %key, cause = cause.unwrap_or_default(), "disconnected");
        peer.disconnected(Instant::now());
        self.board.connected().remove(&key);
        self.announce();
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => self.on_gossip(propagation_source, &message_id, message),
            BehaviourEvent::Ask(event) => self.on_ask_event(event),
            // A connection that does not answer is dead, whatever TCP believes.
            BehaviourEvent::Ping(event) if event.result.is_err() => {
                self.swarm.close_connection(event.connection);
            }
            _ => {}
        }
    }

    fn on_gossip(&mut self, via: PeerId, id: &MessageId, message: gossipsub::Message) {
        let acceptance = self.judge(via, &message);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, &via, acceptance);
        if !matches!(acceptance, MessageAcceptance::Accept) {
            return;
        }
        if let Some(from) = message
            .source
            .and_then(|author| self.keys.get(&author).copied())
            && self
                .events
                .try_send(Event::Gossip {
                    from,
                    data: message.data,
                })
                .is_err()
        {
            self.board.counters.gossip_dropped();
        }
    }

    /// Whether to take a message and pass it on. gossipsub has checked the author's signature.
    fn judge(&mut self, via: PeerId, message: &gossipsub::Message) -> MessageAcceptance {
        let (now, len) = (Instant::now(), message.data.len());
        let counters = &self.board.counters;
        let neighbour = self.keys.get(&via).and_then(|key| self.peers.get_mut(key));
        if !neighbour.is_some_and(|peer| peer.relayed.take(len, now)) {
            counters.gossip_over_rate();
            return MessageAcceptance::Ignore;
        }
        let author = message.source.and_then(|author| self.keys.get(&author));
        let Some(author) = author.and_then(|key| self.peers.get_mut(key)) else {
            counters.gossip_invalid();
            return MessageAcceptance::Reject;
        };
        if len > MAX_GOSSIP_BYTES {
            counters.gossip_invalid();
            return MessageAcceptance::Reject;
        }
        if !message
            .sequence_number
            .is_some_and(|number| author.seen.is_new(number))
        {
            counters.gossip_invalid();
            return MessageAcceptance::Ignore;
        }
        if !author.authored.take(len, now) {
            counters.gossip_over_rate();
            return MessageAcceptance::Ignore;
        }
        MessageAcceptance::Accept
    }

    fn on_ask_event(&mut self, event: request_response::Event<Question, Answer>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request {
                    request, channel, ..
                } => {
                    self.on_question(peer, request, channel);
                }
                Message::Response {
                    request_id,
                    response,
                } => {
                    self.on_outcome(request_id, response.map_err(AskError::Refused));
                }
            },
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => {
                let error = match error {
                    OutboundFailure::Timeout => AskError::Timeout,
                    other => AskError::Failed(other.to_string()),
                };
                self.on_outcome(request_id, Err(error));
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "a question failed");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_question(&mut self, from: PeerId, asked: Question, channel: ResponseChannel<Answer>) {
        let Some(key) = self.keys.get(&from).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let counters = &self.board.counters;
        let refusal = if !peer.asks.take(asked.data.len(), Instant::now()) {
            counters.asks_over_rate();
            Refusal::TooFast
        } else if peer.open_asks >= MAX_OPEN_ASKS_PER_PEER {
            counters.asks_busy();
            Refusal::Busy
        } else {
            let (answer, answered) = oneshot::channel();
            let reply = Reply {
                answer,
                _room: asked.room,
            };
            match self.events.try_send(Event::Ask {
                from: key,
                data: asked.data,
                reply,
            }) {
                Ok(()) => {
                    peer.open_asks = peer.open_asks.saturating_add(1);
                    let answer = answered.map(|sent| sent.unwrap_or(Err(Refusal::NoAnswer)));
                    self.answering
                        .push(answer.map(move |answer| (key, channel, answer)).boxed());
                    return;
                }
                Err(_) => {
                    counters.asks_busy();
                    Refusal::Busy
                }
            }
        };
        let _ = self
            .swarm
            .behaviour_mut()
            .ask
            .send_response(channel, Err(refusal));
    }

    fn on_answer(&mut self, key: PeerKey, channel: ResponseChannel<Answer>, answer: Answer) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.open_asks = peer.open_asks.saturating_sub(1);
        }
        if self
            .swarm
            .behaviour_mut()
            .ask
            .send_response(channel, answer)
            .is_err()
        {
            tracing::debug!(peer = %key, "answered too late");
        }
    }

    fn on_outcome(&mut self, id: OutboundRequestId, outcome: AskOutcome) {
        let Some((key, answer)) = self.asked.remove(&id) else {
            return;
        };
        let _ = answer.send(outcome);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
        }
        self.send_waiting(key);
    }
}

/// libp2p lets several sockets of one user listen on one port, and the system then shares the calls out
/// among them. Two nodes set to the same port must hear about it instead.
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
            for ask in peer.waiting.drain(..) {
                let _ = ask.answer.send(Err(AskError::ShutDown));
            }
        }
        let open: HashSet<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in open {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        self.board.connected().clear();
        self.board.listening().clear();
    }
}
