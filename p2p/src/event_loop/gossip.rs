//! What everyone is told, and what everyone tells.

use std::time::Instant;

use libp2p::{
    PeerId,
    gossipsub::{self, FailedMessages, MessageAcceptance, MessageId},
};

use super::EventLoop;
use crate::{MAX_GOSSIP_BYTES, network::PublishError};

impl EventLoop {
    pub(super) fn publish(&mut self, data: Vec<u8>) -> Result<(), PublishError> {
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

    pub(super) fn on_gossip_event(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => self.on_gossip(propagation_source, &message_id, message),
            gossipsub::Event::SlowPeer {
                peer_id,
                failed_messages,
            } => self.on_slow_peer(peer_id, &failed_messages),
            gossipsub::Event::Subscribed { .. }
            | gossipsub::Event::Unsubscribed { .. }
            | gossipsub::Event::GossipsubNotSupported { .. } => {}
        }
    }

    fn on_gossip(&mut self, via: PeerId, id: &MessageId, message: gossipsub::Message) {
        let acceptance = self.judge(via, &message);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, &via, acceptance);
        if !matches!(acceptance, MessageAcceptance::Accept) {
            return;
        }
        let inbox = self.inbox.clone();
        if let Some((from, peer)) = message.source.and_then(|author| self.peer(&author)) {
            let dropped = inbox.gossip(from, message.data);
            if dropped > 0 {
                peer.gossip_dropped = peer.gossip_dropped.saturating_add(dropped);
                self.board.counters.gossip_dropped(dropped);
            }
        }
    }

    /// Whether to take a message and pass it on. gossipsub has checked the author's signature.
    fn judge(&mut self, via: PeerId, message: &gossipsub::Message) -> MessageAcceptance {
        let (now, len) = (Instant::now(), message.data.len());
        let counters = &self.board.counters;
        let neighbour = self.keys.get(&via).and_then(|key| self.peers.get_mut(key));
        if !neighbour.is_some_and(|peer| peer.relayed.take(len, now)) {
            counters.gossip_over_rate(1);
            return MessageAcceptance::Ignore;
        }
        let author = message.source.and_then(|author| self.keys.get(&author));
        let Some(author) = author.and_then(|key| self.peers.get_mut(key)) else {
            counters.gossip_invalid(1);
            return MessageAcceptance::Reject;
        };
        if len > MAX_GOSSIP_BYTES {
            counters.gossip_invalid(1);
            return MessageAcceptance::Reject;
        }
        if !message
            .sequence_number
            .is_some_and(|number| author.seen.is_new(number))
        {
            counters.gossip_invalid(1);
            return MessageAcceptance::Ignore;
        }
        if !author.authored.take(len, now) {
            counters.gossip_over_rate(1);
            return MessageAcceptance::Ignore;
        }
        MessageAcceptance::Accept
    }

    /// A neighbour has not taken what waited for it. If its node leaves heartbeats open too, the connection is
    /// given up, and what is old goes with its queue.
    fn on_slow_peer(&mut self, id: PeerId, failed: &FailedMessages) {
        let Some((key, peer)) = self.peer(&id) else {
            return;
        };
        let count = failed.priority.saturating_add(failed.non_priority);
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        peer.gossip_unsent = peer.gossip_unsent.saturating_add(count);
        let is_late = peer.has_pulse() && peer.pulse.is_late();
        tracing::debug!(peer = %key, count, "too slow to take gossip");
        self.board.counters.gossip_unsent(count);
        if is_late {
            self.silent(key);
        }
    }
}
