//! What has come in and waits for the node, in one bounded queue for each peer. The node takes from the
//! peers in turn, so that one who says much fills its own queue and nobody else's.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::identity::PeerKey;
use tokio::sync::Notify;

use crate::{
    MAX_GOSSIP_WAITING_PER_PEER, MAX_OPEN_ASKS_PER_PEER,
    network::{Event, Reply},
};

/// Gossip of one author that waits, in bytes.
const MAX_GOSSIP_WAITING_BYTES: usize = 1024 * 1024;

/// Events of one peer.
#[derive(Debug, Default)]
struct Queue {
    is_connected: bool,
    /// What the node was told last.
    announced: bool,
    heartbeat: Option<Reply>,
    questions: VecDeque<(Vec<u8>, Reply)>,
    gossip: VecDeque<Vec<u8>>,
    gossip_bytes: usize,
    /// Stands in the line of those who have something.
    in_line: bool,
}

impl Queue {
    fn has_something(&self) -> bool {
        self.is_connected != self.announced
            || self.heartbeat.is_some()
            || !self.questions.is_empty()
            || !self.gossip.is_empty()
    }

    fn take(&mut self, from: PeerKey) -> Option<Taken> {
        if let Some(reply) = self.heartbeat.take() {
            return Some(Taken::Heartbeat(reply));
        }
        if self.is_connected != self.announced {
            self.announced = self.is_connected;
            return Some(Taken::Event(if self.announced {
                Event::Connected(from)
            } else {
                Event::Disconnected(from)
            }));
        }
        if let Some((data, reply)) = self.questions.pop_front() {
            return Some(Taken::Event(Event::Ask { from, data, reply }));
        }
        let data = self.gossip.pop_front()?;
        self.gossip_bytes = self.gossip_bytes.saturating_sub(data.len());
        Some(Taken::Event(Event::Gossip { from, data }))
    }
}

enum Taken {
    Event(Event),
    Heartbeat(Reply),
}

#[derive(Debug, Default)]
struct Queues {
    peers: BTreeMap<PeerKey, Queue>,
    line: VecDeque<PeerKey>,
    is_closed: bool,
}

impl Queues {
    fn take(&mut self) -> Option<Taken> {
        while let Some(key) = self.line.pop_front() {
            let Some(queue) = self.peers.get_mut(&key) else {
                continue;
            };
            let taken = queue.take(key);
            queue.in_line = queue.has_something();
            if queue.in_line {
                self.line.push_back(key);
            }
            if taken.is_some() {
                return taken;
            }
        }
        None
    }
}

/// The network's end: puts in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    queues: Arc<Mutex<Queues>>,
    more: Arc<Notify>,
}

impl Inbox {
    /// The node's end.
    pub fn events(&self) -> Events {
        Events(self.clone())
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, key: PeerKey, put: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queues = self.queues();
        let queue = queues.peers.entry(key).or_default();
        let result = put(queue);
        if queue.has_something() && !queue.in_line {
            queue.in_line = true;
            queues.line.push_back(key);
        }
        drop(queues);
        self.more.notify_one();
        result
    }

    /// A peer has come or gone. The node hears of it unless the opposite follows before it looks.
    pub fn connected(&self, key: PeerKey, is_connected: bool) {
        self.with(key, |queue| queue.is_connected = is_connected);
    }

    /// Gives how many older messages of this author had to go.
    pub fn gossip(&self, key: PeerKey, data: Vec<u8>) -> u64 {
        self.with(key, |queue| {
            queue.gossip_bytes = queue.gossip_bytes.saturating_add(data.len());
            queue.gossip.push_back(data);
            let mut dropped = 0_u64;
            while queue.gossip.len() > MAX_GOSSIP_WAITING_PER_PEER
                || queue.gossip_bytes > MAX_GOSSIP_WAITING_BYTES
            {
                let Some(oldest) = queue.gossip.pop_front() else {
                    break;
                };
                queue.gossip_bytes = queue.gossip_bytes.saturating_sub(oldest.len());
                dropped = dropped.saturating_add(1);
            }
            dropped
        })
    }

    /// A question. The caller lets no more than [`MAX_OPEN_ASKS_PER_PEER`] of one peer be open.
    pub fn question(&self, key: PeerKey, data: Vec<u8>, reply: Reply) {
        self.with(key, |queue| {
            // Those whom nobody waits for any more make room.
            if queue.questions.len() >= MAX_OPEN_ASKS_PER_PEER {
                queue.questions.pop_front();
            }
            queue.questions.push_back((data, reply));
        });
    }

    /// A heartbeat. One that the node has not taken yet is forgotten.
    pub fn heartbeat(&self, key: PeerKey, reply: Reply) {
        self.with(key, |queue| queue.heartbeat = Some(reply));
    }

    /// Gossip of this author that waits.
    pub fn waiting(&self, key: &PeerKey) -> usize {
        self.queues()
            .peers
            .get(key)
            .map_or(0, |queue| queue.gossip.len())
    }

    fn next(&self) -> Option<Event> {
        loop {
            let taken = self.queues().take()?;
            match taken {
                Taken::Event(event) => return Some(event),
                Taken::Heartbeat(reply) => reply.send(vec![]),
            }
        }
    }

    /// Nothing comes any more.
    pub fn close(&self) {
        self.queues().is_closed = true;
        self.more.notify_one();
    }
}

/// The events that come in, of all peers in turn. Taking them answers the peers' heartbeats: a node that does
/// not look here is taken for dead, and rightly.
#[derive(Debug)]
pub struct Events(Inbox);

impl Events {
    /// The next event; `None` once the network is shut down and all has been taken.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            let more = self.0.more.notified();
            if let Some(event) = self.0.next() {
                return Some(event);
            }
            if self.0.queues().is_closed {
                return None;
            }
            more.await;
        }
    }

    /// An event that is there already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.0.next()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::{MAX_GOSSIP_BYTES, codec::Answer};

    fn key(byte: u8) -> PeerKey {
        PeerKey([byte; 32])
    }

    fn gossip(event: Option<Event>) -> (PeerKey, Vec<u8>) {
        match event {
            Some(Event::Gossip { from, data }) => (from, data),
            other => panic!("{other:?}"),
        }
    }

    fn reply() -> (Reply, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        (
            Reply {
                answer,
                _room: None,
            },
            answered,
        )
    }

    #[test]
    fn peers_are_heard_in_turn_however_much_one_says() {
        let inbox = Inbox::default();
        let mut events = inbox.events();
        for i in 0..100 {
            inbox.gossip(key(1), vec![i]);
        }
        inbox.gossip(key(2), vec![200]);
        inbox.gossip(key(3), vec![201]);
        let first: Vec<_> = (0..4).map(|_| gossip(events.try_recv()).0).collect();
        assert_eq!(first, [key(1), key(2), key(3), key(1)]);
    }

    #[test]
    fn a_full_queue_loses_the_oldest_of_that_peer_and_counts_them() {
        let inbox = Inbox::default();
        let mut events = inbox.events();
        inbox.gossip(key(2), vec![9]);
        let count = u32::try_from(MAX_GOSSIP_WAITING_PER_PEER).unwrap() + 5;
        let dropped: u64 = (0..count)
            .map(|i| inbox.gossip(key(1), i.to_be_bytes().to_vec()))
            .sum();
        assert_eq!(dropped, 5);
        assert_eq!(inbox.waiting(&key(1)), MAX_GOSSIP_WAITING_PER_PEER);
        assert_eq!(gossip(events.try_recv()), (key(2), vec![9]));
        assert_eq!(
            gossip(events.try_recv()),
            (key(1), 5_u32.to_be_bytes().to_vec())
        );
        // Large ones are bounded by their bytes.
        let large = MAX_GOSSIP_WAITING_BYTES / MAX_GOSSIP_BYTES;
        let dropped: u64 = (0..large + 3)
            .map(|_| inbox.gossip(key(3), vec![0; MAX_GOSSIP_BYTES]))
            .sum();
        assert_eq!(dropped, 3);
    }

    #[test]
    fn questions_come_before_gossip_and_heartbeats_are_answered_by_looking() {
        let inbox = Inbox::default();
        let mut events = inbox.events();
        inbox.gossip(key(1), vec![1]);
        let (question, _asked) = reply();
        inbox.question(key(1), vec![2], question);
        let (heartbeat, mut answer) = reply();
        inbox.heartbeat(key(1), heartbeat);
        assert!(answer.try_recv().is_err(), "nobody has looked yet");
        assert!(matches!(events.try_recv(), Some(Event::Ask { .. })));
        assert_eq!(answer.try_recv().unwrap(), Ok(vec![]));
        assert_eq!(gossip(events.try_recv()), (key(1), vec![1]));
        assert!(events.try_recv().is_none());
    }

    #[tokio::test]
    async fn comings_and_goings_are_told_once_and_the_end_comes_after_what_was_left() {
        let inbox = Inbox::default();
        let mut events = inbox.events();
        inbox.connected(key(1), true);
        inbox.connected(key(2), true);
        inbox.connected(key(2), false);
        inbox.connected(key(1), true);
        inbox.close();
        assert!(matches!(events.recv().await, Some(Event::Connected(peer)) if peer == key(1)));
        assert!(events.recv().await.is_none());
    }
}
