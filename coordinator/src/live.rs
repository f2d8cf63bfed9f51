//! What is known right now, for the API and for whoever waits: a copy in a `watch` channel, and the
//! history behind a lock that is held for as long as a look takes.

use std::sync::{Arc, RwLock};

use bitcoin::Amount;
use node::history::History;
use protocol::{
    identity::PeerKey,
    message::Refusal,
    parameters::Parameters,
    roster::Roster,
    vault::{Vault, VaultKey},
};
use storage::Store;
use tokio::sync::{Mutex, Notify, watch};

use crate::{copies::Copies, terms::Shown};

/// The confirmed history, once there is a genesis. Writers: the pipeline only.
pub type SharedHistory = Arc<RwLock<Option<History>>>;

/// What is known now.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// What the coordinator waits for or works at, in words.
    pub phase: String,
    /// The vault's key, once key generation is finished.
    pub key: Option<Arc<VaultKey>>,
    /// The vault, once its genesis is certified.
    pub vault: Option<Arc<Vault>>,
    /// Height of the chain as taken in.
    pub height: u32,
    /// The blocks from before the start are still being taken in.
    pub is_behind: bool,
    /// Roster members that are connected.
    pub connected: Vec<PeerKey>,
    /// What the last batch was priced with, sat/vB.
    pub fee_rate_sat_per_vb: Option<f64>,
    /// Did the Bitcoin node answer the last time it was looked at?
    pub bitcoind: bool,
    /// Who refuses the batch that is being signed, and why.
    pub refusals: Vec<(PeerKey, Refusal)>,
    /// What the vault must be topped up with, at least, for a miner fee that its surplus does not cover.
    pub top_up: Option<Amount>,
    /// Why signing has stopped (S14).
    pub alarm: Option<String>,
}

/// What the API reads, and how it reaches the pipeline.
#[derive(Clone)]
pub struct Reader {
    /// The database.
    pub store: Store,
    /// What is known now.
    pub live: watch::Receiver<Live>,
    /// The confirmed history.
    pub history: SharedHistory,
    /// The agreed parameters.
    pub parameters: Arc<Parameters>,
    /// The agreed roster.
    pub roster: Arc<Roster>,
    /// Hash of the verifying key.
    pub verifying_key_hash: [u8; 32],
    /// How the proving key was made.
    pub setup: String,
    /// Held while a record that another stage may change too is read, changed and written.
    pub writing: Arc<Mutex<()>>,
    /// Wakes the pipeline when a request was queued.
    pub wake: Arc<Notify>,
    /// The deposit terms that were shown.
    pub shown: Arc<Shown>,
    /// The nodes that keep requests too.
    pub copies: Copies,
}
