//! Who we listen for and whom we know.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    identity::{PublicKey, ed25519},
};
use protocol::identity::PeerKey;

use crate::{MAX_PEERS, address::Address};

/// A peer that may connect to us, and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its identity.
    pub key: PeerKey,
    /// Multiaddresses such as `/ip4/192.0.2.1/udp/7000/quic-v1`, `/ip4/192.0.2.1/tcp/7000` or
    /// `/dns4/operator.example/tcp/7000`, tried in turn. With none, we wait for it to call us.
    pub addresses: Vec<String>,
}

/// What the network needs to know to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Multiaddresses to listen on, without names; port 0 lets the system choose.
    pub listen: Vec<String>,
    /// Everyone who may connect: the roster and the coordinators. Our own key is ignored.
    pub peers: Vec<PeerAddress>,
    /// The network's name: 1 to 64 letters, digits, `-`, `_` or `.`, the same on all nodes.
    pub network: String,
    /// Time between two heartbeats to a peer, usually [`crate::HEARTBEAT_INTERVAL`].
    pub heartbeat: Duration,
}

/// Why the network did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not a name for a network.
    #[error("\"{0}\" cannot name a network: use 1 to 64 letters, digits, '-', '_' or '.'")]
    NetworkName(String),
    /// Not a multiaddress over TCP or QUIC.
    #[error(
        "\"{0}\" is not an address: write /ip4/192.0.2.1/tcp/7000, /ip4/192.0.2.1/udp/7000/quic-v1 or, for a peer, \
         /dns4/operator.example/tcp/7000"
    )]
    Address(String),
    /// A peer's key is not an Ed25519 public key.
    #[error("peer {0} has no valid Ed25519 key")]
    PeerKey(PeerKey),
    /// The same peer twice.
    #[error("peer {0} is listed twice")]
    DuplicatePeer(PeerKey),
    /// More than [`MAX_PEERS`].
    #[error("{0} peers, at most {MAX_PEERS} are allowed")]
    TooManyPeers(usize),
    /// The system does not let us listen there.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        why: String,
    },
    /// libp2p refuses its configuration: a fault in this program.
    #[error("the network cannot be set up: {0}")]
    Setup(String),
}

/// The peers as libp2p names them.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub keys: HashMap<PeerId, PeerKey>,
    pub addresses: BTreeMap<PeerKey, (PeerId, Vec<Address>)>,
}

impl Roster {
    pub fn new(own: PeerKey, peers: &[PeerAddress]) -> Result<Self, StartError> {
        let mut roster = Self::default();
        for peer in peers.iter().filter(|peer| peer.key != own) {
            let id = peer_id(peer.key)?;
            let addresses = peer
                .addresses
                .iter()
                .map(|text| address(text))
                .collect::<Result<_, _>>()?;
            if roster.addresses.insert(peer.key, (id, addresses)).is_some() {
                return Err(StartError::DuplicatePeer(peer.key));
            }
            roster.keys.insert(id, peer.key);
        }
        if roster.keys.len() > MAX_PEERS {
            return Err(StartError::TooManyPeers(roster.keys.len()));
        }
        Ok(roster)
    }
}

pub(crate) fn peer_id(key: PeerKey) -> Result<PeerId, StartError> {
    let public =
        ed25519::PublicKey::try_from_bytes(&key.0).map_err(|_| StartError::PeerKey(key))?;
    Ok(PublicKey::from(public).to_peer_id())
}

fn address(text: &str) -> Result<Address, StartError> {
    text.parse()
        .map_err(|_| StartError::Address(text.to_owned()))
}

/// Where to listen.
pub(crate) fn listen_address(text: &str) -> Result<Multiaddr, StartError> {
    address(text)?
        .to_listen()
        .ok_or_else(|| StartError::Address(text.to_owned()))
}
