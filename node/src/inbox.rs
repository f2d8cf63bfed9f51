//! What other nodes say, on its way to this node's loop: admitted by its first bytes, and decoded beside the loop.
//!
//! ```text
//! p2p::Events --first bytes--> refused, undecoded
//!                        '---> decoding, a few at a time for each peer --> Inbox::next
//! ```
//!
//! The loop itself takes the events, because that answers heartbeats; decoding a large message would hold it up. One peer's
//! messages may overtake one another here, as they may on the network.

use std::{collections::BTreeMap, sync::Arc};

use p2p::{Event, Events};
use protocol::{
    admission::Admission,
    identity::PeerKey,
    message::{self, Answer, Ask, Gossip, Refusal, Rule},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task,
};

/// Messages of one peer that are being decoded, or wait for the loop after it. As many as it may have questions open,
/// and as much gossip.
const MAX_DECODING_PER_PEER: usize = 2 * p2p::MAX_OPEN_ASKS_PER_PEER;
/// Decoded messages of all peers that wait for the loop; more wait in their peers' places.
const MAX_DECODED: usize = 64;

/// What comes in.
pub enum Heard {
    /// Somebody of the roster told everyone something.
    Gossip(PeerKey, Gossip),
    /// Somebody of the roster asks.
    Asked(PeerKey, Ask, Reply),
    /// Somebody came or went.
    Changed(PeerKey),
}

/// Where an answer goes.
pub struct Reply(p2p::Reply);

impl Reply {
    /// Answers.
    #[track_caller]
    pub fn send(self, answer: Answer) {
        self.0.send(message::encode(&answer));
    }
}

/// The events that come in.
pub struct Inbox {
    events: Events,
    admission: Admission,
    refused: fn(Rule),
    places: BTreeMap<PeerKey, Arc<Semaphore>>,
    decoded: mpsc::Sender<Heard>,
    ready: mpsc::Receiver<Heard>,
}

impl Inbox {
    /// Takes the network's events. `refused` counts what is refused here.
    pub fn new(events: Events, admission: Admission, refused: fn(Rule)) -> Self {
        let (decoded, ready) = mpsc::channel(MAX_DECODED);
        Self {
            events,
            admission,
            refused,
            places: BTreeMap::new(),
            decoded,
            ready,
        }
    }

    /// The next event that makes sense; `None` once the network is shut down.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            let event = tokio::select! {
                Some(heard) = self.ready.recv() => return Some(heard),
                event = self.events.recv() => event?,
            };
            match event {
                Event::Gossip { from, data } => self.hear(from, data),
                Event::Ask { from, data, reply } => self.asked(from, data, Reply(reply)),
                Event::Connected(peer) | Event::Disconnected(peer) => {
                    return Some(Heard::Changed(peer));
                }
            }
        }
    }

    fn hear(&mut self, from: PeerKey, data: Vec<u8>) {
        let refusal = match self.admission.gossip(&from, &data) {
            Ok(()) => match self.place(from) {
                Some(place) => {
                    let refused = self.refused;
                    return self.beside(place, move || match decode::<Gossip>(&data) {
                        Ok(gossip) => Some(Heard::Gossip(from, gossip)),
                        Err(refusal) => {
                            note(&from, &refusal, refused);
                            None
                        }
                    });
                }
                None => busy(),
            },
            Err(error) => error.into(),
        };
        note(&from, &refusal, self.refused);
    }

    fn asked(&mut self, from: PeerKey, data: Vec<u8>, reply: Reply) {
        let refusal = match self.admission.ask(&from, &data) {
            Ok(()) => match self.place(from) {
                Some(place) => {
                    let refused = self.refused;
                    return self.beside(place, move || match decode::<Ask>(&data) {
                        Ok(ask) => Some(Heard::Asked(from, ask, reply)),
                        Err(refusal) => {
                            note(&from, &refusal, refused);
                            reply.send(Answer::Refused(refusal));
                            None
                        }
                    });
                }
                None => busy(),
            },
            Err(error) => error.into(),
        };
        note(&from, &refusal, self.refused);
        reply.send(Answer::Refused(refusal));
    }

    fn place(&mut self, from: PeerKey) -> Option<OwnedSemaphorePermit> {
        let places = self
            .places
            .entry(from)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_DECODING_PER_PEER)));
        places.clone().try_acquire_owned().ok()
    }

    fn beside(
        &self,
        place: OwnedSemaphorePermit,
        work: impl FnOnce() -> Option<Heard> + Send + 'static,
    ) {
        let decoded = self.decoded.clone();
        tokio::spawn(async move {
            if let Ok(Some(heard)) = task::spawn_blocking(work).await {
                // A loop that has ended needs nothing any more.
                let _ = decoded.send(heard).await;
            }
            drop(place);
        });
    }
}

fn decode<T: Serialize + DeserializeOwned>(data: &[u8]) -> Result<T, Refusal> {
    message::decode(data).map_err(|error| Refusal::new(Rule::S12, error.to_string()))
}

fn busy() -> Refusal {
    Refusal::new(
        Rule::S12,
        "too many messages of this peer wait to be decoded",
    )
}

fn note(from: &PeerKey, refusal: &Refusal, refused: fn(Rule)) {
    tracing::warn!(%from, reason = refusal.reason, "a message is refused");
    refused(refusal.rule);
}
