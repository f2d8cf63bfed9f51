//! What the lying coordinator is started with; written by the local network.

use std::{collections::BTreeMap, path::PathBuf};

use chain::rpc::RpcSettings;
use serde::{Deserialize, Serialize};

/// The settings file (TOML). Paths are relative to the file's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The roster that all nodes share.
    pub roster: PathBuf,
    /// The vault parameters that all nodes share.
    pub parameters: PathBuf,
    /// Folder with the proving and the verifying key.
    pub keys: PathBuf,
    /// The identity that lies: a coordinator's of the roster.
    pub identity: PathBuf,
    /// Where it listens, as multiaddresses.
    pub listen: Vec<String>,
    /// A second coordinator's identity, which lies about the sessions of the first.
    pub second_identity: PathBuf,
    /// Where the second one listens.
    pub second_listen: Vec<String>,
    /// Secret of an account in the ledger whose owner signs whatever the liar wants, in hex.
    pub accomplice: String,
    /// The status pages of the operators, by their names in the roster.
    pub pages: BTreeMap<String, String>,
    /// What the operators' caps are; a lie about fees stays just below or just above one.
    pub caps: Caps,
    /// A Bitcoin node with a wallet that can pay, on regtest.
    pub bitcoind: RpcSettings,
}

/// Caps on miner fees of all operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Highest miner fee of one batch, in sats.
    pub max_fee_sat: u64,
    /// Highest fee rate of a batch, in sats per virtual byte.
    pub max_fee_rate_sat_per_vb: u64,
    /// Miner fees beyond users' fees within the window, in sats.
    pub max_net_fees_sat: u64,
    /// Length of the window in blocks.
    pub window_blocks: u32,
}

impl Settings {
    /// Reads the file and makes its paths absolute.
    ///
    /// # Errors
    /// A file that is missing or has an unknown field.
    pub fn load(path: &std::path::Path) -> anyhow::Result<Self> {
        let mut settings: Self = node::files::load_toml(path)?;
        let folder = path.parent().unwrap_or(std::path::Path::new("."));
        for file in [
            &mut settings.roster,
            &mut settings.parameters,
            &mut settings.keys,
            &mut settings.identity,
            &mut settings.second_identity,
        ] {
            *file = folder.join(&*file);
        }
        Ok(settings)
    }
}
