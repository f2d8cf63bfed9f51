//! What is known about one peer, for people, monitors and whoever chooses signers.

use protocol::identity::PeerKey;
use serde::Serialize;

use crate::address::Transport;

/// How it stands with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// There is no connection.
    #[default]
    Away,
    /// There is one; the peer has not said yet what it runs.
    Greeting,
    /// It can be talked to.
    Connected,
    /// It leaves heartbeats unanswered: its network is there and its node is not, or the line is dead.
    Silent,
    /// It speaks another version of the protocol or is of another vault or roster. It is called again
    /// from time to time.
    Unfit,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its identity.
    pub key: PeerKey,
    /// How it stands.
    pub state: PeerState,
    /// For how long, in seconds.
    pub since_s: u64,
    /// Why it is not connected, as far as is known.
    pub why: Option<String>,
    /// What carries the connection.
    pub transport: Option<Transport>,
    /// The other end of the connection.
    pub address: Option<String>,
    /// What it says that it runs.
    pub agent: Option<String>,
    /// Where it says that it sees this node.
    pub sees_us_at: Option<String>,
    /// A question to its node and the answer, smoothed, in microseconds.
    pub rtt_us: Option<u64>,
    /// Heartbeats that it has answered.
    pub heartbeats: u64,
    /// Heartbeats that it has not answered in time.
    pub heartbeats_missed: u64,
    /// Own questions to it that are under way.
    pub asks_in_flight: usize,
    /// Own questions to it that wait.
    pub asks_waiting: usize,
    /// Own questions to it that newer ones have pushed out.
    pub asks_dropped: u64,
    /// Its questions that this node has not answered yet.
    pub asks_open: usize,
    /// Gossip to it that it was too slow to take.
    pub gossip_unsent: u64,
    /// Its gossip that waits for this node.
    pub gossip_waiting: usize,
    /// Its gossip that this node was too slow to take.
    pub gossip_dropped: u64,
}
