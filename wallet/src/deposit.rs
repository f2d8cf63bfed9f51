//! Deposit addresses: derived here, compared with the coordinator's, backed up, and only then shown.

use bitcoin::{Address, Amount, Network, ScriptBuf, XOnlyPublicKey};
use ledger::{AccountKey, VaultId};
use protocol::api::{DepositAddressDocument, DepositAddressRequest, Terms};
use protocol::deposit::{DepositAddress, DepositTerms, TermsError};
use serde::{Deserialize, Serialize};

use crate::client::printable;
use crate::vault::PinnedVault;
use crate::{Client, ClientError, FolderError, VaultError, Wallet};

/// Everything that a refund needs beside the refund key. One file in `deposits/` for each address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepositBackup {
    /// Bitcoin network.
    pub network: Network,
    /// GROUP.
    pub group_key: XOnlyPublicKey,
    /// What the address commits to.
    pub terms: Terms,
    /// Hash of the terms.
    pub terms_hash: String,
    /// Output descriptor with checksum.
    pub descriptor: String,
    /// The Bitcoin address.
    pub address: String,
    /// Its output script.
    pub script_pubkey: ScriptBuf,
}

/// Why no deposit address is shown.
#[derive(Debug, thiserror::Error)]
pub enum DepositAddressError {
    /// The vault is not accepted.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The coordinator did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The terms give no address.
    #[error("the vault's terms give no address")]
    Terms(#[from] TermsError),
    /// The coordinator offers something else than what follows from the vault and the own keys.
    #[error("DO NOT PAY: the coordinator's {field} is {theirs}, but it must be {ours}")]
    Differs {
        /// Which field.
        field: &'static str,
        /// Derived here.
        ours: String,
        /// The coordinator's.
        theirs: String,
    },
    /// The backup could not be written; an address without one is not shown.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Why a backup is not usable.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A field can't be read.
    #[error("the deposit backup has an unreadable {0}; restore it from a backup of the folder")]
    Malformed(&'static str),
    /// The terms give no address.
    #[error("the deposit backup's terms give no address")]
    Terms(#[from] TermsError),
    /// Descriptor, address or script are not those of the terms.
    #[error(
        "the deposit backup's {0} does not follow from its terms; restore it from a backup of the folder"
    )]
    Differs(&'static str),
}

impl DepositBackup {
    /// Derives all from a vault and a user's two keys.
    ///
    /// # Errors
    /// [`TermsError`] when miniscript refuses the descriptor.
    pub fn derive(
        vault: &PinnedVault,
        account: AccountKey,
        refund: XOnlyPublicKey,
    ) -> Result<Self, TermsError> {
        let terms = DepositTerms {
            vault: vault.vault_id,
            account,
            refund,
            refund_delay: vault.refund_delay_blocks,
            min_deposit: Amount::from_sat(vault.min_deposit_sat),
            fee: Amount::from_sat(vault.deposit_fee_sat),
        };
        Self::of(
            &terms.address(&vault.group_key)?,
            vault.network,
            vault.group_key,
        )
    }

    fn of(
        derived: &DepositAddress,
        network: Network,
        group_key: XOnlyPublicKey,
    ) -> Result<Self, TermsError> {
        let terms = &derived.terms;
        Ok(Self {
            network,
            group_key,
            terms: Terms {
                vault_id: terms.vault.to_string(),
                account: terms.account.to_address(network),
                refund_key: terms.refund.to_string(),
                refund_delay_blocks: terms.refund_delay,
                min_deposit_sat: terms.min_deposit.to_sat(),
                deposit_fee_sat: terms.fee.to_sat(),
            },
            terms_hash: terms.hash().to_string(),
            descriptor: derived.descriptor.to_string(),
            address: derived.address(network)?.to_string(),
            script_pubkey: derived.script_pubkey.clone(),
        })
    }

    /// The same as the coordinator would say it.
    pub fn document(&self) -> DepositAddressDocument {
        DepositAddressDocument {
            terms: self.terms.clone(),
            terms_hash: self.terms_hash.clone(),
            descriptor: self.descriptor.clone(),
            address: self.address.clone(),
        }
    }

    /// Derives the address again, so that a damaged backup is noticed before it is used.
    ///
    /// # Errors
    /// [`BackupError`] that names the field at fault.
    pub fn derived(&self) -> Result<DepositAddress, BackupError> {
        let vault: VaultId = self
            .terms
            .vault_id
            .parse()
            .map_err(|_| BackupError::Malformed("vault id"))?;
        let terms = DepositTerms {
            vault,
            account: AccountKey::from_address(self.network, &self.terms.account)
                .map_err(|_| BackupError::Malformed("account"))?,
            refund: self
                .terms
                .refund_key
                .parse()
                .map_err(|_| BackupError::Malformed("refund key"))?,
            refund_delay: self.terms.refund_delay_blocks,
            min_deposit: Amount::from_sat(self.terms.min_deposit_sat),
            fee: Amount::from_sat(self.terms.deposit_fee_sat),
        };
        let derived = terms.address(&self.group_key)?;
        let again = Self::of(&derived, self.network, self.group_key)?;
        for (same, field) in [
            (again.terms_hash == self.terms_hash, "terms hash"),
            (again.descriptor == self.descriptor, "descriptor"),
            (again.address == self.address, "address"),
            (again.script_pubkey == self.script_pubkey, "script"),
        ] {
            if !same {
                return Err(BackupError::Differs(field));
            }
        }
        Ok(derived)
    }

    /// The Bitcoin address, typed.
    ///
    /// # Errors
    /// [`BackupError`] as for [`Self::derived`].
    pub fn bitcoin_address(&self) -> Result<Address, BackupError> {
        Ok(self.derived()?.address(self.network)?)
    }

    /// Refuses an answer that differs in anything.
    fn compare(&self, theirs: &DepositAddressDocument) -> Result<(), DepositAddressError> {
        let ours = self.document();
        let field = |name, ours: &dyn ToString, theirs: &dyn ToString| {
            (name, ours.to_string(), theirs.to_string())
        };
        let (a, b) = (&ours.terms, &theirs.terms);
        let fields = [
            field("vault id", &a.vault_id, &b.vault_id),
            field("account", &a.account, &b.account),
            field("refund key", &a.refund_key, &b.refund_key),
            field(
                "refund delay",
                &a.refund_delay_blocks,
                &b.refund_delay_blocks,
            ),
            field("smallest deposit", &a.min_deposit_sat, &b.min_deposit_sat),
            field("deposit fee", &a.deposit_fee_sat, &b.deposit_fee_sat),
            field("terms hash", &ours.terms_hash, &theirs.terms_hash),
            field("descriptor", &ours.descriptor, &theirs.descriptor),
            field("address", &ours.address, &theirs.address),
        ];
        match fields.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            None => Ok(()),
            Some((field, ours, theirs)) => Err(DepositAddressError::Differs {
                field,
                ours,
                theirs: printable(&theirs),
            }),
        }
    }
}

impl Wallet {
    /// This wallet's deposit address. Derived here from the pinned vault and the own keys, compared
    /// with the coordinator's in every field, and backed up in the wallet's folder before it is returned.
    ///
    /// # Errors
    /// [`DepositAddressError::Differs`] when the coordinator says anything else; do not pay then.
    pub async fn deposit_address(
        &self,
        client: &Client,
    ) -> Result<DepositBackup, DepositAddressError> {
        let vault = self.check_vault(client).await?;
        let ours = DepositBackup::derive(&vault, self.account_key(), self.refund_key())?;
        let request = DepositAddressRequest {
            account: ours.terms.account.clone(),
            refund_key: ours.terms.refund_key.clone(),
        };
        ours.compare(&client.deposit_address(&request).await?)?;
        self.save_backup(&ours)?;
        Ok(ours)
    }

    /// Keeps a backup in the wallet's folder.
    ///
    /// # Errors
    /// [`FolderError`] when it can't be written.
    pub fn save_backup(&self, backup: &DepositBackup) -> Result<(), FolderError> {
        self.folder().save_backup(&backup.terms_hash, backup)
    }

    /// All deposit addresses that this wallet has shown.
    ///
    /// # Errors
    /// [`FolderError`] when one can't be read.
    pub fn backups(&self) -> Result<Vec<DepositBackup>, FolderError> {
        self.folder().backups()
    }
}
