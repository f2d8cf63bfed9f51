//! The coordinator's own settings; what all nodes agree on is in the roster and the vault parameters.

use std::{net::SocketAddr, path::PathBuf};

use chain::{fees::FeeSettings, rpc::RpcSettings};
use serde::{Deserialize, Serialize};

use crate::{
    api::MAX_STREAMS,
    token::{self, AdminToken},
};

/// A coordinator's settings file (TOML). Paths are relative to the file's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder for the database and the identity.
    pub data_dir: PathBuf,
    /// The roster that all nodes share.
    pub roster: PathBuf,
    /// The vault parameters that all nodes share.
    pub parameters: PathBuf,
    /// Folder with the proving and the verifying key.
    pub keys: PathBuf,
    /// Where to listen for other nodes, as multiaddresses.
    pub listen: Vec<String>,
    /// Where to listen for HTTP.
    pub http: SocketAddr,
    /// Own Bitcoin node.
    pub bitcoind: RpcSettings,
    /// How miner fees are chosen.
    pub fees: FeeSettings,
    /// A batch collects top-ups if the treasury would hold less than this beyond the supply, in sats.
    #[serde(default = "default_top_up_below")]
    pub top_up_below_sat: u64,
    /// When a batch is formed.
    #[serde(default)]
    pub batching: Batching,
    /// Other nodes that must have stored a request before it is called accepted, 0 to all of them.
    #[serde(default = "default_copies")]
    pub copies: usize,
    /// Whether to use nonces that operators hand out ahead of time, so that batches are signed in one round trip.
    #[serde(default)]
    pub nonce_pool: bool,
    /// Most requests a second from one address; bursts of twice as many pass.
    #[serde(default = "default_rate")]
    pub requests_per_second: u32,
    /// Most streams of events at a time from one address.
    #[serde(default = "default_event_streams")]
    pub event_streams_per_address: usize,
    /// Who may use `/v1/admin`; nobody when empty.
    #[serde(default)]
    pub admin_tokens: Vec<AdminToken>,
}

fn default_top_up_below() -> u64 {
    1_000_000
}

fn default_rate() -> u32 {
    50
}

fn default_event_streams() -> usize {
    8
}

fn default_copies() -> usize {
    2
}

/// When a batch is formed: as soon as one of these holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// This many requests wait.
    pub size: usize,
    /// The oldest request has waited this long, in ms.
    pub age_ms: u64,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            size: 32,
            age_ms: 60_000,
        }
    }
}

impl Settings {
    /// Reads the file and makes its paths absolute.
    ///
    /// # Errors
    /// A file that is missing, has an unknown field, or values out of range.
    pub fn load(path: &std::path::Path) -> anyhow::Result<Self> {
        let mut settings: Self = node::files::load_toml(path)?;
        let folder = path.parent().unwrap_or(std::path::Path::new("."));
        for file in [
            &mut settings.data_dir,
            &mut settings.roster,
            &mut settings.parameters,
            &mut settings.keys,
        ] {
            *file = folder.join(&*file);
        }
        anyhow::ensure!(
            settings.batching.size > 0,
            "batching.size must be at least 1"
        );
        anyhow::ensure!(
            settings.requests_per_second > 0,
            "requests_per_second must be at least 1"
        );
        anyhow::ensure!(
            (1..=MAX_STREAMS).contains(&settings.event_streams_per_address),
            "event_streams_per_address must be from 1 to {MAX_STREAMS}, which is the most of all addresses"
        );
        token::check(&settings.admin_tokens)?;
        Ok(settings)
    }
}
