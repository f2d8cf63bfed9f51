//! The libp2p protocols that run on each connection, and their bounds.

use std::time::Duration;

use libp2p::{
    Swarm,
    allow_block_list::{self, AllowedPeers},
    connection_limits::{self, ConnectionLimits},
    core::upgrade::Version,
    gossipsub::{
        self, IdentityTransform, MessageAuthenticity, MessageId, ValidationMode,
        WhitelistSubscriptionFilter,
    },
    identify,
    identity::Keypair,
    ping, request_response,
    request_response::ProtocolSupport,
    swarm::{self, NetworkBehaviour},
};
use protocol::identity::Identity;
use sha2::{Digest as _, Sha256};

use crate::{
    ASK_TIMEOUT, DUPLICATE_WINDOW, MAX_ASKS_IN_FLIGHT_PER_PEER, MAX_GOSSIP_BYTES,
    MAX_OPEN_ASKS_PER_PEER, MISSED_HEARTBEATS,
    codec::AskCodec,
    names::Names,
    settings::{Roster, StartError},
    transport::transport,
};

/// A gossip frame beyond its message: author, signature, sequence number, topic, control messages.
const GOSSIP_OVERHEAD_BYTES: usize = 4 * 1024;
/// Gossip messages in one frame.
const MAX_MESSAGES_PER_FRAME: usize = 256;
/// Frames that wait for one slow neighbour, and how long they may: the oldest go first.
const MAX_FRAMES_WAITING: usize = 256;
const MAX_FRAME_WAIT: Duration = Duration::from_secs(5);
/// Neighbours that each passes gossip on to. Own messages go to everyone directly; this is for those
/// who are not connected to the author.
const MESH: usize = 8;
const MESH_LOW: usize = 4;
const MESH_HIGH: usize = 16;
/// Pings keep connections alive and find dead ones.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Two when both call at once, and some that are dead without our knowing.
const MAX_CONNECTIONS_PER_PEER: u32 = 4;
/// Handshakes under way; strangers get no further.
const MAX_HANDSHAKES: u32 = 512;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // The first two decide about connections, before the others see them.
    pub allowed: allow_block_list::Behaviour<AllowedPeers>,
    pub limits: connection_limits::Behaviour,
    pub gossip: gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>,
    pub ask: request_response::Behaviour<AskCodec>,
    pub identify: identify::Behaviour,
    pub ping: ping::Behaviour,
}

pub(crate) fn swarm(
    identity: &Identity,
    roster: &Roster,
    names: &Names,
    heartbeat: Duration,
) -> Result<Swarm<Behaviour>, StartError> {
    let key = Keypair::ed25519_from_bytes(identity.secret_bytes().as_mut_slice()).map_err(setup)?;
    // One that reads nothing is silent before its connection is given up.
    let patience = heartbeat.saturating_mul(MISSED_HEARTBEATS.saturating_add(1));
    let transport = transport(&key, patience)?;
    let behaviour = behaviour(&key, roster, names)?;
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        // A question goes out with the name of its protocol, not after an answer about that: one round trip less.
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    let id = key.public().to_peer_id();
    Ok(Swarm::new(transport, behaviour, id, config))
}

fn setup(error: impl std::fmt::Display) -> StartError {
    StartError::Setup(error.to_string())
}

fn behaviour(key: &Keypair, roster: &Roster, names: &Names) -> Result<Behaviour, StartError> {
    let mut allowed = allow_block_list::Behaviour::<AllowedPeers>::default();
    for peer in roster.keys.keys() {
        allowed.allow_peer(*peer);
    }
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_HANDSHAKES))
        .with_max_pending_outgoing(Some(MAX_HANDSHAKES))
        .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER));
    let ask_config = request_response::Config::default()
        .with_request_timeout(ASK_TIMEOUT)
        // Twice: a stream ends a little after its question does.
        .with_max_concurrent_streams(2 * (MAX_ASKS_IN_FLIGHT_PER_PEER + MAX_OPEN_ASKS_PER_PEER));
    Ok(Behaviour {
        allowed,
        limits: connection_limits::Behaviour::new(limits),
        gossip: gossip(key, names)?,
        ask: request_response::Behaviour::new(
            [(names.ask.clone(), ProtocolSupport::Full)],
            ask_config,
        ),
        identify: identify::Behaviour::new(
            identify::Config::new(names.node.clone(), key.public())
                .with_agent_version(format!("drawbridge/{}", env!("CARGO_PKG_VERSION")))
                // Addresses come from the roster, never from hearsay.
                .with_cache_size(0)
                .with_hide_listen_addrs(true),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(PING_INTERVAL)
                .with_timeout(PING_TIMEOUT),
        ),
    })
}

fn gossip(
    key: &Keypair,
    names: &Names,
) -> Result<gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>, StartError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(names.gossip.clone())
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(MAX_GOSSIP_BYTES + GOSSIP_OVERHEAD_BYTES)
        .max_publish_messages(MAX_MESSAGES_PER_FRAME)
        .connection_handler_queue_len(MAX_FRAMES_WAITING)
        .publish_queue_duration(MAX_FRAME_WAIT)
        .forward_queue_duration(MAX_FRAME_WAIT)
        .duplicate_cache_time(DUPLICATE_WINDOW)
        .flood_publish(true)
        .mesh_n(MESH)
        .mesh_n_low(MESH_LOW)
        .mesh_n_high(MESH_HIGH)
        // Who called whom says nothing here: everyone is on the list.
        .mesh_outbound_min(0)
        .build()
        .map_err(setup)?;
    let only_ours = WhitelistSubscriptionFilter([names.topic.hash()].into());
    let authenticity = MessageAuthenticity::Signed(key.clone());
    let mut gossip =
        gossipsub::Behaviour::new_with_subscription_filter(authenticity, config, only_ours)
            .map_err(setup)?;
    gossip.subscribe(&names.topic).map_err(setup)?;
    Ok(gossip)
}

/// By author and content. By content alone, whoever signs somebody else's bytes first could make the
/// author's own message look like a repetition of his.
fn message_id(message: &gossipsub::Message) -> MessageId {
    let mut hash = Sha256::new();
    hash.update(
        message
            .source
            .map(|peer| peer.to_bytes())
            .unwrap_or_default(),
    );
    hash.update([0]);
    hash.update(&message.data);
    MessageId::new(&hash.finalize())
}
