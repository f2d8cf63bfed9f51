//! Questions to one peer and their answers, both ways, and the heartbeat that goes the same way.

use std::time::{Duration, Instant};

use futures::FutureExt as _;
use libp2p::{
    PeerId,
    request_response::{self, Message, OutboundFailure, OutboundRequestId, ResponseChannel},
};
use protocol::identity::PeerKey;
use tokio::sync::oneshot;

use super::{Answered, Asked, EventLoop};
use crate::{
    ASK_WAIT, MAX_OPEN_ASKS_PER_PEER,
    codec::{Answer, Question, Refusal},
    network::{AskError, AskOutcome, Reply},
    peer::{PendingAsk, after},
    pulse::Beat,
};

impl EventLoop {
    pub(super) fn ask(&mut self, key: PeerKey, data: Vec<u8>, answer: oneshot::Sender<AskOutcome>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            let _ = answer.send(Err(AskError::UnknownPeer(key)));
            return;
        };
        let give_up = after(Instant::now(), ASK_WAIT);
        let dropped = peer.wait(PendingAsk {
            data,
            answer,
            give_up,
        });
        for oldest in dropped {
            let _ = oldest.answer.send(Err(AskError::TooMany));
            self.board.counters.asks_dropped(1);
        }
        self.send_waiting(key);
    }

    /// Sends what waits for this peer, as far as its share of streams goes.
    pub(super) fn send_waiting(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        while let Some(PendingAsk { data, answer, .. }) = peer.take_sendable() {
            let bytes = data.len();
            let question = Question::Bytes { data, room: None };
            let ask = &mut self.swarm.behaviour_mut().ask;
            let id = ask.send_request(&peer.id, question);
            self.asked
                .insert(id, (key, Asked::Question { answer, bytes }));
        }
    }

    /// Questions that have waited for too long end here.
    pub(super) fn give_up_late(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            for late in peer.take_late(now) {
                let _ = late.answer.send(Err(AskError::NotConnected));
            }
        }
    }

    pub(super) fn beat(&mut self, now: Instant) {
        let mut silent = Vec::new();
        for (key, peer) in &mut self.peers {
            if !peer.has_pulse() {
                continue;
            }
            match peer.pulse.beat(now) {
                Beat::Wait => {}
                Beat::Ask { number, missed } => {
                    if missed {
                        self.board.counters.heartbeats_missed(1);
                    }
                    let ask = &mut self.swarm.behaviour_mut().ask;
                    let id = ask.send_request(&peer.id, Question::Heartbeat);
                    self.asked
                        .insert(id, (*key, Asked::Heartbeat { number, sent: now }));
                }
                Beat::Dead => {
                    self.board.counters.heartbeats_missed(1);
                    silent.push(*key);
                }
            }
        }
        for key in silent {
            self.silent(key);
        }
    }

    pub(super) fn on_ask_event(&mut self, event: request_response::Event<Question, Answer>) {
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
        let inbox = self.inbox.clone();
        let Some((key, peer)) = self.peer(&from) else {
            return;
        };
        let (answer, answered) = oneshot::channel();
        let (bytes, is_heartbeat) = match &asked {
            Question::Bytes { data, .. } => (data.len(), false),
            Question::Heartbeat => (0, true),
        };
        let refusal = if !peer.asks.take(bytes, Instant::now()) {
            self.board.counters.asks_over_rate(1);
            Refusal::TooFast
        } else if !is_heartbeat && peer.open_asks >= MAX_OPEN_ASKS_PER_PEER {
            self.board.counters.asks_busy(1);
            Refusal::Busy
        } else {
            match asked {
                Question::Bytes { data, room } => {
                    peer.open_asks = peer.open_asks.saturating_add(1);
                    let reply = Reply {
                        answer,
                        _room: room,
                    };
                    inbox.question(key, data, reply);
                }
                Question::Heartbeat => inbox.heartbeat(
                    key,
                    Reply {
                        answer,
                        _room: None,
                    },
                ),
            }
            let answer = answered.map(move |sent| Answered {
                to: key,
                channel,
                answer: sent.unwrap_or(Err(Refusal::NoAnswer)),
                is_heartbeat,
            });
            self.answering.push(answer.boxed());
            return;
        };
        let ask = &mut self.swarm.behaviour_mut().ask;
        // One who has gone away needs no refusal.
        let _ = ask.send_response(channel, Err(refusal));
    }

    pub(super) fn on_answer(&mut self, answered: Answered) {
        let Answered {
            to,
            channel,
            answer,
            is_heartbeat,
        } = answered;
        if let Some(peer) = self.peers.get_mut(&to)
            && !is_heartbeat
        {
            peer.open_asks = peer.open_asks.saturating_sub(1);
        }
        let ask = &mut self.swarm.behaviour_mut().ask;
        if ask.send_response(channel, answer).is_err() {
            tracing::debug!(peer = %to, "answered too late");
        }
    }

    fn on_outcome(&mut self, id: OutboundRequestId, outcome: AskOutcome) {
        let Some((key, asked)) = self.asked.remove(&id) else {
            return;
        };
        match asked {
            Asked::Question { answer, bytes } => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.sent(bytes);
                }
                let _ = answer.send(outcome);
            }
            // Without an answer it counts as missed when the next is due.
            Asked::Heartbeat { number, sent } => {
                if outcome.is_ok() {
                    self.alive(key, number, sent.elapsed());
                }
            }
        }
        self.send_waiting(key);
    }

    fn alive(&mut self, key: PeerKey, number: u64, took: Duration) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.pulse.answered(number, took);
        peer.alive();
        if let Some(rtt) = peer.pulse.rtt {
            metrics::gauge!("p2p_peer_rtt_seconds", "peer" => key.to_string())
                .set(rtt.as_secs_f64());
        }
        self.board.counters.heartbeats(1);
        self.settle(key);
    }
}
