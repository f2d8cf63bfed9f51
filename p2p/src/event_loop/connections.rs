//! Who is called, who has come, who may be talked to, who is gone.

use std::{error::Error, time::Instant};

use futures::FutureExt as _;
use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    identify,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use protocol::identity::PeerKey;

use super::EventLoop;
use crate::{
    MISSED_HEARTBEATS, PROTOCOL_VERSION, address::Address, names::printable, peer::Peer,
    status::PeerState,
};

impl EventLoop {
    pub(super) fn peer(&mut self, id: &PeerId) -> Option<(PeerKey, &mut Peer)> {
        let key = self.keys.get(id).copied()?;
        Some((key, self.peers.get_mut(&key)?))
    }

    /// Calls everyone whose time has come, each at one address.
    pub(super) fn call_due(&mut self, now: Instant) {
        let due: Vec<(PeerKey, Address)> = self
            .peers
            .iter_mut()
            .filter_map(|(key, peer)| Some((*key, peer.take_call(now)?)))
            .collect();
        for (key, address) in due {
            let resolved = address.resolve();
            self.resolving
                .push(resolved.map(move |found| (key, found)).boxed());
        }
    }

    pub(super) fn call(&mut self, key: PeerKey, found: std::io::Result<Vec<Multiaddr>>) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(error) => return peer.call_failed(error.to_string(), now),
        };
        let options = DialOpts::peer_id(peer.id)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            // From the listening port, a call back to the same peer could meet its own old connection.
            .allocate_new_port()
            .build();
        match self.swarm.dial(options) {
            Ok(()) => {}
            Err(DialError::DialPeerConditionFalse(_)) => peer.call_dropped(now),
            Err(error) => peer.call_failed(reason(&error), now),
        }
    }

    pub(super) fn call_failed(&mut self, id: Option<PeerId>, error: &DialError) {
        let why = reason(error);
        let Some((key, peer)) = id.and_then(|id| self.peer(&id)) else {
            return;
        };
        tracing::debug!(peer = %key, why, "could not connect");
        let now = Instant::now();
        peer.call_failed(why, now);
        // The next address at once, if there is one.
        self.call_due(now);
    }

    pub(super) fn linked(&mut self, id: PeerId, link: ConnectionId, endpoint: &ConnectedPoint) {
        let address = endpoint.get_remote_address().clone();
        if let Some((key, peer)) = self.peer(&id) {
            peer.linked(link, address, endpoint.is_dialer(), Instant::now());
            self.settle(key);
        }
    }

    pub(super) fn unlinked(&mut self, id: PeerId, link: ConnectionId, cause: Option<String>) {
        let Some((key, peer)) = self.peer(&id) else {
            return;
        };
        if peer.unlinked(link, Instant::now()) {
            let cause = cause.map(|cause| printable(&cause));
            tracing::info!(peer = %key, cause = cause.as_deref().unwrap_or_default(), "disconnected");
            if peer.why.is_none() {
                peer.why = Some(cause.unwrap_or_else(|| "the connection was closed".to_owned()));
            }
        }
        self.settle(key);
    }

    /// What identify brings. It is shown, and says whether we fit; addresses come from the roster alone.
    pub(super) fn identified(&mut self, event: identify::Event) {
        let names = self.names.clone();
        match event {
            identify::Event::Received { peer_id, info, .. } => {
                let Some((key, peer)) = self.peer(&peer_id) else {
                    return;
                };
                peer.agent = Some(printable(&info.agent_version));
                peer.sees_us_at = Some(printable(&info.observed_addr.to_string()));
                match names.agree(&info.protocol_version) {
                    Ok(_) => {
                        peer.greeted(Instant::now());
                        self.settle(key);
                        self.send_waiting(key);
                    }
                    Err(mismatch) => self.unfit(key, mismatch.to_string()),
                }
            }
            identify::Event::Error { peer_id, error, .. } => {
                if let Some((key, peer)) = self.peer(&peer_id)
                    && peer.state() == PeerState::Greeting
                {
                    let why = format!("it does not say what it runs: {error}");
                    self.part(key, printable(&why));
                }
            }
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => {}
        }
    }

    fn unfit(&mut self, key: PeerKey, why: String) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let agent = peer.agent.clone().unwrap_or_default();
        if peer.state() != PeerState::Unfit || peer.why.as_ref() != Some(&why) {
            tracing::warn!(peer = %key, agent, version = PROTOCOL_VERSION, "this peer can't be talked to: {why}");
        }
        peer.unfit(Instant::now());
        self.board.counters.peers_unfit(1);
        self.part(key, why);
    }

    /// Those who say nothing after the handshake.
    pub(super) fn part_with_mutes(&mut self, now: Instant) {
        let mutes: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_mute(now))
            .map(|(key, _)| *key)
            .collect();
        for key in mutes {
            self.part(key, "it does not say what it runs".to_owned());
        }
    }

    /// A peer whose node does not answer is called again: the line may be dead where nobody sees it.
    pub(super) fn silent(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        tracing::warn!(peer = %key, "no answer to heartbeats; calling again");
        peer.silent();
        self.board.counters.peers_silent(1);
        self.part(
            key,
            format!("it left {MISSED_HEARTBEATS} heartbeats unanswered"),
        );
    }

    fn part(&mut self, key: PeerKey, why: String) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.why = Some(why);
        let id = peer.id;
        // Nobody there is what we want.
        let _ = self.swarm.disconnect_peer_id(id);
        self.settle(key);
    }

    /// Tells the node and the board if it stands differently with a peer now.
    pub(super) fn settle(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(state) = peer.settle(Instant::now()) else {
            return;
        };
        let is_connected = state == PeerState::Connected;
        if is_connected {
            let agent = peer.agent.clone().unwrap_or_default();
            tracing::info!(peer = %key, agent, "connected");
            self.board.connected().insert(key);
        } else {
            self.board.connected().remove(&key);
        }
        self.inbox.connected(key, is_connected);
        self.show();
    }
}

/// Why a call failed, for people.
fn reason(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { address, .. } => format!("somebody else answers at {address}"),
        DialError::Transport(failed) => failed.first().map_or_else(
            || "it has no address".to_owned(),
            |(address, error)| {
                let mut innermost: &dyn Error = error;
                while let Some(source) = innermost.source() {
                    innermost = source;
                }
                format!("{address}: {}", printable(&innermost.to_string()))
            },
        ),
        other => printable(&other.to_string()),
    }
}
