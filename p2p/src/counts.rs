//! What was refused, and why: for tests here, and as Prometheus counters for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something was refused or lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gossip of an author or neighbour above its rate.
    pub gossip_over_rate: u64,
    /// Gossip by somebody outside the roster, too large, or a replay.
    pub gossip_invalid: u64,
    /// Gossip that the node was too slow to take: the oldest of its author.
    pub gossip_dropped: u64,
    /// Gossip to a peer that was too slow to take it.
    pub gossip_unsent: u64,
    /// Questions above the peer's rate.
    pub asks_over_rate: u64,
    /// Questions refused because too much was waiting already.
    pub asks_busy: u64,
    /// Own questions that were given up because too many newer ones waited for the same peer.
    pub asks_dropped: u64,
    /// Connections that failed before or at the check of who it is.
    pub connections_refused: u64,
    /// Connections with peers of another version, vault or roster.
    pub peers_unfit: u64,
    /// Heartbeats that peers have answered.
    pub heartbeats: u64,
    /// Heartbeats that had no answer before the next was due.
    pub heartbeats_missed: u64,
    /// Connections given up because too many heartbeats in a row had no answer.
    pub peers_silent: u64,
}

macro_rules! counters {
    ($($field:ident => $name:literal),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $($field: AtomicU64),* }

        impl Counters {
            pub fn snapshot(&self) -> Counts {
                Counts { $($field: self.$field.load(Ordering::Relaxed)),* }
            }

            $(pub fn $field(&self, count: u64) {
                self.$field.fetch_add(count, Ordering::Relaxed);
                metrics::counter!($name).increment(count);
            })*
        }
    };
}

counters! {
    gossip_over_rate => "p2p_gossip_over_rate_total",
    gossip_invalid => "p2p_gossip_invalid_total",
    gossip_dropped => "p2p_gossip_dropped_total",
    gossip_unsent => "p2p_gossip_unsent_total",
    asks_over_rate => "p2p_asks_over_rate_total",
    asks_busy => "p2p_asks_busy_total",
    asks_dropped => "p2p_asks_dropped_total",
    connections_refused => "p2p_connections_refused_total",
    peers_unfit => "p2p_peers_unfit_total",
    heartbeats => "p2p_heartbeats_total",
    heartbeats_missed => "p2p_heartbeats_missed_total",
    peers_silent => "p2p_peers_silent_total",
}
