//! How nodes talk: authenticated connections among the roster and the coordinators, gossip to all of
//! them, and direct questions to one.
//!
//! ```text
//!   publish ──> gossip (signed by its author) ──> every peer ──> Event::Gossip
//!   ask ──────> one peer ──> Event::Ask ──> Reply::send ──────> the answer
//! ```
//!
//! Who may connect is fixed when the node starts: everyone else is refused as soon as the handshake (Noise
//! over TCP, TLS 1.3 in QUIC) has shown who it is (S12). Every message is bounded in size before memory is
//! taken for it, and in rate per peer; every queue belongs to one peer and has a bound; what does not fit is
//! refused, or pushes out the oldest, and is counted. Nothing here knows what the bytes mean: the caller decodes and judges them. See `docs/network.md`.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod address;
mod behaviour;
mod codec;
mod counts;
mod event_loop;
pub mod fuzzing;
mod inbox;
mod limits;
mod names;
mod network;
mod peer;
mod pulse;
mod settings;
mod status;
mod transport;

use std::time::Duration;

pub use address::Transport;
pub use codec::Refusal;
pub use counts::Counts;
pub use inbox::Events;
pub use names::Names;
pub use network::{AskError, Event, Network, PublishError, Reply, start};
pub use settings::{PeerAddress, Settings, StartError};
pub use status::{PeerState, PeerStatus};

/// Version of the wire protocol; part of every protocol name, so that another version is not spoken
/// to by mistake.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most peers a node can have.
pub const MAX_PEERS: usize = 256;
/// Largest gossip message, in bytes.
pub const MAX_GOSSIP_BYTES: usize = 64 * 1024;
/// Largest question or answer, in bytes.
pub const MAX_ASK_BYTES: usize = 8 * 1024 * 1024;

/// A message of n bytes counts as 1 + n / this many against the rates below.
pub const RATE_UNIT_BYTES: usize = 16 * 1024;
/// Gossip of one author, in messages a second, and how many may come at once.
pub const GOSSIP_RATE: u32 = 500;
/// See [`GOSSIP_RATE`].
pub const GOSSIP_BURST: u32 = 2_000;
/// Gossip that one neighbour passes on, whoever wrote it.
pub const RELAY_RATE: u32 = 4 * GOSSIP_RATE;
/// See [`RELAY_RATE`].
pub const RELAY_BURST: u32 = 4 * GOSSIP_BURST;
/// Questions of one peer, in messages a second, and how many may come at once.
pub const ASK_RATE: u32 = 500;
/// See [`ASK_RATE`].
pub const ASK_BURST: u32 = 2_000;

/// Gossip of one author that waits for the node. Beyond this, its oldest is dropped.
pub const MAX_GOSSIP_WAITING_PER_PEER: usize = 256;
/// Questions of one peer that the node has not answered yet.
pub const MAX_OPEN_ASKS_PER_PEER: usize = 16;
/// Own questions to one peer that are under way; further ones wait for these.
pub const MAX_ASKS_IN_FLIGHT_PER_PEER: usize = 16;
/// Own questions to one peer that wait, for a connection or for others to be answered. Beyond this, the
/// oldest is given up.
pub const MAX_WAITING_ASKS_PER_PEER: usize = 256;
/// The same in bytes; as much again may be under way.
pub const MAX_WAITING_ASK_BYTES_PER_PEER: usize = 32 * 1024 * 1024;
/// Memory for questions of others above [`SMALL_ASK_BYTES`] that are being read or answered, in bytes.
pub const MAX_OPEN_ASK_BYTES: usize = 256 * 1024 * 1024;
/// Smaller questions need no share of [`MAX_OPEN_ASK_BYTES`], so large ones cannot crowd them out.
pub const SMALL_ASK_BYTES: usize = 64 * 1024;

/// How long a question waits for its peer to be connected and free.
pub const ASK_WAIT: Duration = Duration::from_secs(10);
/// From sending a question to having its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// The same bytes by the same author within this time are one message.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);
/// Time between two heartbeats to a peer.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A peer that leaves so many heartbeats in a row without an answer is silent, and called again.
pub const MISSED_HEARTBEATS: u32 = 3;
