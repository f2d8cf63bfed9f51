//! The log of a program: to stderr, as `RUST_LOG` says.

use tracing_subscriber::EnvFilter;

/// What a node says where `RUST_LOG` does not ask for anything else.
pub const OF_A_NODE: &str = "info,libp2p=warn,yamux=warn";

/// Begins the log, with `filter` where `RUST_LOG` is not set.
pub fn init(filter: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| filter.into()))
        .with_writer(std::io::stderr)
        .init();
}
