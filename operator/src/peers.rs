//! The other nodes, in the protocol's own words: `p2p` carries bytes, this file encodes and decodes them once, at
//! the edge. What does not decode is answered with a reason and changes nothing (S12).

use std::{collections::BTreeSet, sync::Arc};

use p2p::{Event, Events, PeerAddress, StartError};
use protocol::{
    hash,
    identity::{Identity, PeerKey},
    message::{self, Answer, Ask, Gossip, MessageError, Refusal, Rule},
    parameters::Parameters,
    roster::Roster,
};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The network.
    #[error(transparent)]
    Network(#[from] p2p::AskError),
    /// The answer is no message.
    #[error("the answer can't be read: {0}")]
    Message(#[from] MessageError),
}

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
    pub fn send(self, answer: Answer) {
        self.0.send(message::encode(&answer));
    }
}

/// The name under which all nodes of this roster and these parameters meet.
pub fn network_name(roster: &Roster, parameters: &Parameters) -> String {
    hex::encode(hash::tagged(
        "drawbridge/network",
        &[&roster.hash(), &parameters.hash()],
    ))
}

/// Listens, and calls everyone in the roster. Nobody else may connect.
///
/// # Errors
/// [`StartError`] says which setting is wrong.
pub async fn start(
    listen: &[String],
    roster: Arc<Roster>,
    parameters: &Parameters,
    identity: &Identity,
) -> Result<(Peers, Inbox), StartError> {
    let own = identity.public();
    let others = roster.members().filter(|member| member.key != own);
    let settings = p2p::Settings {
        listen: listen.to_vec(),
        peers: others
            .map(|member| PeerAddress {
                key: member.key,
                addresses: member.addresses.clone(),
            })
            .collect(),
        network: network_name(&roster, parameters),
        heartbeat: p2p::HEARTBEAT_INTERVAL,
    };
    let (network, events) = p2p::start(identity, &settings).await?;
    Ok((Peers { network, roster }, Inbox(events)))
}

/// For monitors: who refuses often is being lied to, or set up wrongly.
pub fn count_refusal(rule: Rule) {
    metrics::counter!("operator_refusals", "rule" => format!("{rule:?}")).increment(1);
}

/// The events that come in.
pub struct Inbox(Events);

impl Inbox {
    /// The next one that makes sense; `None` once the network is shut down.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.0.recv().await? {
                Event::Gossip { from, data } => match message::decode(&data) {
                    Ok(gossip) => return Some(Heard::Gossip(from, gossip)),
                    Err(error) => {
                        tracing::warn!(%from, %error, "gossip that can't be read");
                        count_refusal(Rule::S12);
                    }
                },
                Event::Ask { from, data, reply } => match message::decode(&data) {
                    Ok(ask) => return Some(Heard::Asked(from, ask, Reply(reply))),
                    Err(error) => {
                        tracing::warn!(%from, %error, "a question that can't be read");
                        count_refusal(Rule::S12);
                        let refusal = Refusal::new(Rule::S12, error.to_string());
                        Reply(reply).send(Answer::Refused(refusal));
                    }
                },
                Event::Connected(peer) | Event::Disconnected(peer) => {
                    return Some(Heard::Changed(peer));
                }
            }
        }
    }
}

/// The way to the others. Clones share it.
#[derive(Clone)]
pub struct Peers {
    network: p2p::Network,
    roster: Arc<Roster>,
}

impl Peers {
    /// Asks one peer.
    ///
    /// # Errors
    /// [`AskError`]; the peer may have acted all the same.
    pub async fn ask(&self, peer: PeerKey, ask: &Ask) -> Result<Answer, AskError> {
        let answer = self.network.ask(peer, message::encode(ask)).await?;
        Ok(message::decode(&answer)?)
    }

    /// Everyone who is connected.
    pub fn connected(&self) -> BTreeSet<PeerKey> {
        self.network.connected().into_iter().collect()
    }

    /// The operators who are connected.
    pub fn operators(&self) -> BTreeSet<PeerKey> {
        self.connected()
            .into_iter()
            .filter(|peer| self.roster.is_operator(peer))
            .collect()
    }

    /// Closes all connections.
    pub async fn shut_down(&self) {
        self.network.shutdown().await;
    }
}
