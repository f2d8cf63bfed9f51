//! The user's side of the bridge: keys, a client of the coordinator's REST API, and the way back to
//! one's own bitcoin without anyone's help.
//!
//! ```text
//!  key_file ── account secret, refund key ──┐
//!  vault    ── pinned vault id, GROUP ──────┼──> deposit ──> address, compared with the coordinator's
//!                                           ├──> send    ──> signed transfer or withdrawal ──> wait
//!                                           └──> refund  ──> script-path spend through the user's own bitcoind
//! ```
//!
//! A coordinator is never trusted with money: addresses are derived here and compared, operations are
//! signed for the pinned vault only, and balances come with a Merkle path that is checked.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod account;
pub mod client;
pub mod core_refund;
pub mod deposit;
#[cfg(test)]
mod fake_coordinator;
pub mod folder;
pub mod key_file;
pub mod refund;
pub mod send;
pub mod vault;
pub mod wait;

use std::path::PathBuf;

use bitcoin::{Network, XOnlyPublicKey};
use ledger::{AccountKey, VaultId};
use protocol::parameters::Parameters;

pub use client::{Client, ClientError};
pub use deposit::{DepositAddressError, DepositBackup};
pub use folder::{Folder, FolderError, Identity};
pub use key_file::{KeyFileError, Secrets};
pub use refund::{RefundError, RefundOrder};
pub use send::{PayeeError, SendError, SendOptions, Sent};
pub use vault::{PinnedVault, VaultError};
pub use wait::{Progress, Request, Target, WaitError};

/// An opened wallet: a folder and the secrets of its key file.
#[derive(Debug)]
pub struct Wallet {
    folder: Folder,
    secrets: Secrets,
    expected_vault: Option<VaultId>,
    expected_parameters: Option<Parameters>,
}

impl Wallet {
    /// Makes fresh keys and writes them, encrypted under `passphrase`, into `dir`, which is made if
    /// it is missing (mode 0700; the key file has 0600).
    ///
    /// # Errors
    /// [`KeyFileError::Exists`] when there is a key file already: it is never overwritten.
    pub fn create(
        dir: impl Into<PathBuf>,
        passphrase: &str,
        network: Network,
    ) -> Result<Self, KeyFileError> {
        let folder = Folder::create(dir)?;
        let secrets = Secrets::generate(network);
        key_file::write_new(&folder, &secrets, passphrase)?;
        folder.save_identity(&secrets.identity())?;
        Ok(Self::of(folder, secrets))
    }

    /// Opens the wallet in `dir`.
    ///
    /// # Errors
    /// [`KeyFileError`] tells a wrong passphrase from a missing, truncated, damaged or readable-by-others file.
    pub fn open(dir: impl Into<PathBuf>, passphrase: &str) -> Result<Self, KeyFileError> {
        let folder = Folder::open(dir)?;
        let secrets = key_file::read(&folder, passphrase)?;
        folder.check_or_save_identity(&secrets.identity())?;
        Ok(Self::of(folder, secrets))
    }

    fn of(folder: Folder, secrets: Secrets) -> Self {
        Self {
            folder,
            secrets,
            expected_vault: None,
            expected_parameters: None,
        }
    }

    /// Accepts no other vault than this one, not even at first use.
    #[must_use]
    pub fn expecting_vault(mut self, vault: VaultId) -> Self {
        self.expected_vault = Some(vault);
        self
    }

    /// Accepts no other vault parameters than these. With [`Self::expecting_vault`] every term of a
    /// deposit is then known beforehand, as the vault id commits to the parameters' hash.
    #[must_use]
    pub fn expecting_parameters(mut self, parameters: Parameters) -> Self {
        self.expected_parameters = Some(parameters);
        self
    }

    /// Where it is kept.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Which Bitcoin network its keys are for.
    pub fn network(&self) -> Network {
        self.secrets.network()
    }

    /// The account's key.
    pub fn account_key(&self) -> AccountKey {
        self.secrets.account().public()
    }

    /// The account's address.
    pub fn address(&self) -> String {
        self.account_key().to_address(self.network())
    }

    /// The key that can take an uncredited deposit back.
    pub fn refund_key(&self) -> XOnlyPublicKey {
        self.secrets.refund_key()
    }
}
