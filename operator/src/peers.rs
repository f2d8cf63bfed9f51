//! The other nodes, in the protocol's own words: `p2p` carries bytes, which are encoded and decoded once, at the edge:
//! what comes in by [`node::inbox`], the rest here.

use std::{collections::BTreeSet, sync::Arc};

pub use node::inbox::{Heard, Inbox, Reply};
use p2p::{PeerAddress, StartError};
use protocol::{
    admission::Admission,
    hash,
    identity::{Identity, PeerKey},
    message::{self, Answer, Ask, Gossip, MessageError, Rule},
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
    let admission = Admission::new(roster.clone(), own);
    let inbox = Inbox::new(events, admission, count_refusal);
    Ok((Peers { network, roster }, inbox))
}

/// For monitors: who refuses often is being lied to, or set up wrongly.
pub fn count_refusal(rule: Rule) {
    metrics::counter!("operator_refusals", "rule" => format!("{rule:?}")).increment(1);
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
    #[track_caller]
    pub fn ask(
        &self,
        peer: PeerKey,
        ask: &Ask,
    ) -> impl Future<Output = Result<Answer, AskError>> + use<'_> {
        let asking = self.network.ask(peer, message::encode(ask));
        async move { Ok(message::decode(&asking.await?)?) }
    }

    /// Tells everyone who can be reached now.
    ///
    /// # Errors
    /// [`p2p::PublishError`]; nobody was told.
    #[track_caller]
    pub fn tell(
        &self,
        gossip: &Gossip,
    ) -> impl Future<Output = Result<(), p2p::PublishError>> + use<'_> {
        self.network.publish(message::encode(gossip))
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
