//! Which vault this wallet pays to and signs for: checked, pinned at first use, and never changed.
//!
//! ```text
//! vault document ──> genesis fields hash to the vault id? certificate verifies under GROUP?
//!                ──> as expected beforehand (vault id, parameters)?
//!                ──> as pinned? (at first use: pin)
//! ```

use bitcoin::secp256k1::{Message, Secp256k1, schnorr};
use bitcoin::{Amount, Network, OutPoint, XOnlyPublicKey};
use ledger::VaultId;
use protocol::api::VaultDocument;
use protocol::vault::Genesis;
use serde::{Deserialize, Serialize};

use crate::{
    Client, ClientError, Wallet,
    folder::{Folder, FolderError},
};

/// The pin's name in the wallet's folder.
const VAULT_FILE: &str = "vault.json";

/// What of a vault never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedVault {
    /// Bitcoin network.
    pub network: Network,
    /// Vault id.
    pub vault_id: VaultId,
    /// GROUP, the internal key of every address.
    pub group_key: XOnlyPublicKey,
    /// Relative time-lock of a refund, in blocks.
    pub refund_delay_blocks: u16,
    /// Smaller payments are not credited.
    pub min_deposit_sat: u64,
    /// Taken from each payment.
    pub deposit_fee_sat: u64,
}

/// Why a vault is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The coordinator did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Key generation or genesis is not done.
    #[error("the vault has no {0} yet; wait until 'drawbridge status' says ready")]
    NotReady(&'static str),
    /// A field can't be read.
    #[error("the coordinator's vault document has an unreadable {0}")]
    Malformed(&'static str),
    /// Another Bitcoin network.
    #[error(
        "the coordinator's vault is on {found}, this wallet is for {wallet}; use another coordinator or wallet"
    )]
    Network {
        /// The wallet's.
        wallet: Network,
        /// The coordinator's.
        found: Network,
    },
    /// The vault id is not the hash of what the document says.
    #[error("DO NOT USE this coordinator: its vault id is not the hash of its genesis")]
    NotItsId,
    /// The genesis certificate is not the group's.
    #[error(
        "DO NOT USE this coordinator: its genesis certificate does not verify under its group key"
    )]
    Certificate,
    /// Not what was asked for with `--vault-id` or `--vault-parameters`.
    #[error("DO NOT USE this coordinator: its {what} is {found}, you expect {expected}")]
    Unexpected {
        /// Which field.
        what: &'static str,
        /// The user's.
        expected: String,
        /// The coordinator's.
        found: String,
    },
    /// Not what was pinned at first use.
    #[error(
        "DO NOT USE this coordinator: its {what} is {found}, but this wallet has pinned {pinned}; if you mean another vault, use another wallet folder"
    )]
    Changed {
        /// Which field.
        what: &'static str,
        /// At first use.
        pinned: String,
        /// Now.
        found: String,
    },
    /// The pin can't be read or written.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl PinnedVault {
    /// Reads and checks a coordinator's document: the vault id is the hash of the genesis, and the
    /// group has signed it.
    ///
    /// # Errors
    /// [`VaultError`]; see its variants.
    pub fn from_document(network: Network, document: &VaultDocument) -> Result<Self, VaultError> {
        let found: Network = parse(&document.network, "network")?;
        if found != network {
            return Err(VaultError::Network {
                wallet: network,
                found,
            });
        }
        let group_key: XOnlyPublicKey = required(&document.group_key, "group key")?;
        let vault_id: VaultId = required(&document.vault_id, "genesis")?;
        let outpoint: OutPoint = required(&document.genesis, "genesis")?;
        let amount = document
            .genesis_sat
            .ok_or(VaultError::NotReady("genesis"))?;
        let signature: schnorr::Signature =
            required(&document.genesis_signature, "genesis certificate")?;
        let genesis = Genesis {
            group_key,
            outpoint,
            amount: Amount::from_sat(amount),
            verifying_key_hash: hash(&document.verifying_key_hash, "verifying key hash")?,
            parameters_hash: hash(&document.parameters_hash, "parameters hash")?,
            roster_hash: hash(&document.roster_hash, "roster hash")?,
        };
        if genesis.vault_id() != vault_id {
            return Err(VaultError::NotItsId);
        }
        let message = Message::from_digest(genesis.digest());
        Secp256k1::verification_only()
            .verify_schnorr(&signature, &message, &group_key)
            .map_err(|_| VaultError::Certificate)?;
        Ok(Self {
            network,
            vault_id,
            group_key,
            refund_delay_blocks: document.refund_delay_blocks,
            min_deposit_sat: document.min_deposit_sat,
            deposit_fee_sat: document.deposit_fee_sat,
        })
    }

    /// Each field by name, the pinned value first.
    fn differences(&self, found: &Self) -> Option<(&'static str, String, String)> {
        let field = |name, pinned: &dyn ToString, found: &dyn ToString| {
            (name, pinned.to_string(), found.to_string())
        };
        [
            field("network", &self.network, &found.network),
            field("vault id", &self.vault_id, &found.vault_id),
            field("group key", &self.group_key, &found.group_key),
            field(
                "refund delay",
                &self.refund_delay_blocks,
                &found.refund_delay_blocks,
            ),
            field(
                "smallest deposit",
                &self.min_deposit_sat,
                &found.min_deposit_sat,
            ),
            field("deposit fee", &self.deposit_fee_sat, &found.deposit_fee_sat),
        ]
        .into_iter()
        .find(|(_, pinned, found)| pinned != found)
    }
}

/// The vault that `folder` has pinned, if any.
///
/// # Errors
/// [`FolderError`] when the pin can't be read.
pub fn pinned(folder: &Folder) -> Result<Option<PinnedVault>, FolderError> {
    match folder.read_json(VAULT_FILE) {
        Ok(vault) => Ok(Some(vault)),
        Err(FolderError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Wallet {
    /// Checks the coordinator's vault document against what was expected and what is pinned, and
    /// pins the vault at first use.
    ///
    /// # Errors
    /// [`VaultError`]; nothing is pinned then.
    pub async fn check_vault(&self, client: &Client) -> Result<PinnedVault, VaultError> {
        self.accept_vault(&client.vault().await?)
    }

    /// As [`Self::check_vault`], with a document that is there already.
    pub(crate) fn accept_vault(&self, document: &VaultDocument) -> Result<PinnedVault, VaultError> {
        let found = PinnedVault::from_document(self.network(), document)?;
        if let Some(expected) = self.expected_vault
            && expected != found.vault_id
        {
            return Err(unexpected("vault id", expected, found.vault_id));
        }
        if let Some(expected) = &self.expected_parameters {
            let hash = hex::encode(expected.hash());
            if hash != document.parameters_hash {
                return Err(unexpected(
                    "parameters hash",
                    hash,
                    &document.parameters_hash,
                ));
            }
            // The vault id commits to the hash; what stands beside the hash must agree as well.
            let expected = PinnedVault {
                refund_delay_blocks: expected.refund_delay,
                min_deposit_sat: expected.min_deposit.to_sat(),
                deposit_fee_sat: expected.deposit_fee.to_sat(),
                ..found.clone()
            };
            if let Some((what, expected, found)) = expected.differences(&found) {
                return Err(unexpected(what, expected, found));
            }
        }
        match pinned(self.folder())? {
            None => self.folder().save_json(VAULT_FILE, &found)?,
            Some(pinned) => {
                if let Some((what, pinned, found)) = pinned.differences(&found) {
                    return Err(VaultError::Changed {
                        what,
                        pinned,
                        found,
                    });
                }
            }
        }
        Ok(found)
    }
}

fn unexpected(what: &'static str, expected: impl ToString, found: impl ToString) -> VaultError {
    VaultError::Unexpected {
        what,
        expected: expected.to_string(),
        found: crate::client::printable(&found.to_string()),
    }
}

fn parse<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T, VaultError> {
    text.parse().map_err(|_| VaultError::Malformed(what))
}

fn required<T: std::str::FromStr>(
    text: &Option<String>,
    what: &'static str,
) -> Result<T, VaultError> {
    parse(text.as_deref().ok_or(VaultError::NotReady(what))?, what)
}

fn hash(text: &str, what: &'static str) -> Result<[u8; 32], VaultError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| VaultError::Malformed(what))?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use bitcoin::hashes::Hash as _;
    use bitcoin::secp256k1::Keypair;
    use protocol::parameters::Parameters;

    use super::*;

    /// A vault whose group key is one ordinary key.
    pub(crate) fn document() -> VaultDocument {
        document_of(7, &Parameters::defaults(Network::Regtest))
    }

    pub(crate) fn document_of(group: u8, parameters: &Parameters) -> VaultDocument {
        let secp = Secp256k1::new();
        let pair = Keypair::from_seckey_slice(&secp, &[group; 32]).unwrap();
        let group_key = pair.x_only_public_key().0;
        let genesis = Genesis {
            group_key,
            outpoint: OutPoint::new(bitcoin::Txid::from_byte_array([3; 32]), 1),
            amount: Amount::from_sat(100_000),
            verifying_key_hash: [4; 32],
            parameters_hash: parameters.hash(),
            roster_hash: [5; 32],
        };
        let signature = secp.sign_schnorr(&Message::from_digest(genesis.digest()), &pair);
        VaultDocument {
            network: parameters.network.to_string(),
            vault_id: Some(genesis.vault_id().to_string()),
            group_key: Some(group_key.to_string()),
            epoch: Some(0),
            address: None,
            descriptor: None,
            threshold: 3,
            operators: 5,
            genesis: Some(genesis.outpoint.to_string()),
            genesis_sat: Some(100_000),
            genesis_signature: Some(signature.to_string()),
            verifying_key_hash: hex::encode(genesis.verifying_key_hash),
            setup: "single-party".to_owned(),
            parameters_hash: hex::encode(genesis.parameters_hash),
            roster_hash: hex::encode(genesis.roster_hash),
            treasury: None,
            treasury_sat: 100_000,
            supply_sat: 0,
            surplus_sat: 100_000,
            sequence: 0,
            digest: None,
            refund_delay_blocks: parameters.refund_delay,
            min_deposit_sat: parameters.min_deposit.to_sat(),
            deposit_fee_sat: parameters.deposit_fee.to_sat(),
            deposit_confirmations: parameters.deposit_confirmations,
            final_confirmations: parameters.final_confirmations,
        }
    }

    fn wallet() -> (tempfile::TempDir, Wallet) {
        let dir = tempfile::tempdir().unwrap();
        let wallet = Wallet::create(dir.path().join("w"), "pass", Network::Regtest).unwrap();
        (dir, wallet)
    }

    #[test]
    fn a_vault_id_commits_to_the_genesis_and_the_group_signs_it() {
        let changes: [&dyn Fn(&mut VaultDocument); 7] = [
            &|vault| vault.genesis_sat = Some(1),
            &|vault| vault.genesis = Some(OutPoint::null().to_string()),
            &|vault| vault.verifying_key_hash = hex::encode([9; 32]),
            &|vault| vault.parameters_hash = hex::encode([9; 32]),
            &|vault| vault.roster_hash = hex::encode([9; 32]),
            &|vault| vault.vault_id = Some(hex::encode([9; 32])),
            &|vault| {
                vault.group_key = document_of(8, &Parameters::defaults(Network::Regtest)).group_key;
            },
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut changed = document();
            change(&mut changed);
            let error = PinnedVault::from_document(Network::Regtest, &changed).unwrap_err();
            assert!(matches!(error, VaultError::NotItsId), "{i}: {error}");
        }
        let mut unsigned = document();
        unsigned.genesis_signature =
            document_of(8, &Parameters::defaults(Network::Regtest)).genesis_signature;
        let error = PinnedVault::from_document(Network::Regtest, &unsigned).unwrap_err();
        assert!(matches!(error, VaultError::Certificate), "{error}");
        let error = PinnedVault::from_document(Network::Bitcoin, &document()).unwrap_err();
        assert!(matches!(error, VaultError::Network { .. }), "{error}");
        let mut early = document();
        early.vault_id = None;
        let error = PinnedVault::from_document(Network::Regtest, &early).unwrap_err();
        assert!(matches!(error, VaultError::NotReady("genesis")), "{error}");
    }

    #[test]
    fn a_pinned_vault_does_not_change() {
        let (_dir, wallet) = wallet();
        let first = wallet.accept_vault(&document()).unwrap();
        assert_eq!(pinned(wallet.folder()).unwrap(), Some(first));
        wallet.accept_vault(&document()).unwrap();
        let other = document_of(8, &Parameters::defaults(Network::Regtest));
        let mut longer = document();
        longer.refund_delay_blocks += 1;
        let mut dearer = document();
        dearer.deposit_fee_sat += 1;
        for (document, field) in [
            (other, "vault id"),
            (longer, "refund delay"),
            (dearer, "deposit fee"),
        ] {
            match wallet.accept_vault(&document).unwrap_err() {
                VaultError::Changed { what, .. } => assert_eq!(what, field),
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn an_expected_vault_is_the_only_one_at_first_use() {
        let parameters = Parameters::defaults(Network::Regtest);
        let (_dir, wallet) = wallet();
        let wallet = wallet.expecting_vault(VaultId([1; 32]));
        let error = wallet.accept_vault(&document()).unwrap_err();
        assert!(
            matches!(
                error,
                VaultError::Unexpected {
                    what: "vault id",
                    ..
                }
            ),
            "{error}"
        );
        let id: VaultId = document().vault_id.unwrap().parse().unwrap();
        let wallet = wallet.expecting_vault(id);

        let mut other = parameters.clone();
        other.max_operations += 1;
        let wallet = wallet.expecting_parameters(other);
        let error = wallet.accept_vault(&document()).unwrap_err();
        assert!(
            matches!(
                error,
                VaultError::Unexpected {
                    what: "parameters hash",
                    ..
                }
            ),
            "{error}"
        );

        let wallet = wallet.expecting_parameters(parameters);
        let mut lying = document();
        lying.refund_delay_blocks = 60_000;
        let error = wallet.accept_vault(&lying).unwrap_err();
        assert!(
            matches!(
                error,
                VaultError::Unexpected {
                    what: "refund delay",
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(pinned(wallet.folder()).unwrap(), None);
        wallet.accept_vault(&document()).unwrap();
    }
}
