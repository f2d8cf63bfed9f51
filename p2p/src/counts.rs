//! What was refused, and why: for tests here, and as Prometheus counters for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something was refused or lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gossip of an author or neighbour above its rate.
    pub gossip_over_rate: u64,
    /// Gossip by somebody outside the roster, too large, or a replay.
    pub gossip_invalid: u64,
    /// Gossip that the node was too slow to take.
    pub gossip_dropped: u64,
    /// Questions above the peer's rate.
    pub asks_over_rate: u64,
    /// Questions refused because too much was waiting already.
    pub asks_busy: u64,
    /// Connections that failed before or at the check of who it is.
    pub connections_refused: u64,
}

macro_rules! counters {
    ($($field:ident => $name:literal),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $($field: AtomicU64),* }

        impl Counters {
            pub fn snapshot(&self) -> Counts {
                Counts { $($field: self.$field.load(Ordering::Relaxed)),* }
            }

            $(pub fn $field(&self) {
                self.$field.fetch_add(1, Ordering::Relaxed);
                metrics::counter!($name).increment(1);
            })*
        }
    };
}

counters! {
    gossip_over_rate => "p2p_gossip_over_rate_total",
    gossip_invalid => "p2p_gossip_invalid_total",
    gossip_dropped => "p2p_gossip_dropped_total",
    asks_over_rate => "p2p_asks_over_rate_total",
    asks_busy => "p2p_asks_busy_total",
    connections_refused => "p2p_connections_refused_total",
}
