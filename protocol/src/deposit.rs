//! Deposit terms and the address that commits to them (DESIGN section 4).
//!
//! ```text
//! tr(GROUP,{and_v(v:pk(REFUND),older(CSV)),and_v(v:pk(NUMS),sha256(TERMS))})
//!    key path: the vault sweeps     refund leaf              only commits
//! ```

use bitcoin::{Address, Amount, Network, ScriptBuf, XOnlyPublicKey, hashes::Hash as _};
use ledger::{AccountKey, VaultId};
use miniscript::Descriptor;
use serde::{Deserialize, Serialize};
use threshold::sign::Tweak;

use crate::{hash, parameters::Parameters};

/// BIP-341's point whose discrete logarithm nobody knows: `lift_x` of the hash of the generator.
pub const NUMS: &str = "50929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0";

hash::id!(
    /// Hash of deposit terms: names a deposit address.
    TermsHash
);

/// What a deposit address promises. Users derive it themselves and compare.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepositTerms {
    /// The vault.
    pub vault: VaultId,
    /// Who is credited.
    pub account: AccountKey,
    /// Who can take an uncredited deposit back.
    pub refund: XOnlyPublicKey,
    /// After this many blocks (BIP-68).
    pub refund_delay: u16,
    /// Smaller payments are not credited; they can be refunded.
    pub min_deposit: Amount,
    /// Taken from the payment before it is credited.
    pub fee: Amount,
}

/// An address with all that is needed to check, watch and spend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepositAddress {
    /// The terms that it commits to.
    pub terms: DepositTerms,
    /// Output descriptor with checksum.
    pub descriptor: Descriptor<XOnlyPublicKey>,
    /// Output script.
    pub script_pubkey: ScriptBuf,
    /// How GROUP is tweaked to sweep it.
    pub tweak: Tweak,
}

/// Why terms give no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TermsError {
    /// The terms differ from what the vault offers.
    #[error("the deposit terms differ from the vault's in {0}")]
    Differ(&'static str),
    /// The keys give no valid descriptor.
    #[error("the deposit descriptor is not valid: {0}")]
    Descriptor(String),
}

impl DepositTerms {
    /// The terms that a vault offers for an account.
    pub fn offered(
        vault: VaultId,
        parameters: &Parameters,
        account: AccountKey,
        refund: XOnlyPublicKey,
    ) -> Self {
        Self {
            vault,
            account,
            refund,
            refund_delay: parameters.refund_delay,
            min_deposit: parameters.min_deposit,
            fee: parameters.deposit_fee,
        }
    }

    /// Are these the terms that the vault offers? Account and refund key are the user's to choose.
    ///
    /// # Errors
    /// [`TermsError::Differ`] that names the first field that is not.
    pub fn check(&self, vault: VaultId, parameters: &Parameters) -> Result<(), TermsError> {
        for (same, name) in [
            (self.vault == vault, "vault id"),
            (self.refund_delay == parameters.refund_delay, "refund delay"),
            (
                self.min_deposit == parameters.min_deposit,
                "smallest deposit",
            ),
            (self.fee == parameters.deposit_fee, "deposit fee"),
        ] {
            if !same {
                return Err(TermsError::Differ(name));
            }
        }
        Ok(())
    }

    /// TERMS in the descriptor: a tagged hash over every field in fixed width.
    pub fn hash(&self) -> TermsHash {
        TermsHash(hash::tagged(
            "drawbridge/terms",
            &[
                &self.vault.0,
                &self.account.to_bytes(),
                &self.refund.serialize(),
                &self.refund_delay.to_le_bytes(),
                &self.min_deposit.to_sat().to_le_bytes(),
                &self.fee.to_sat().to_le_bytes(),
            ],
        ))
    }

    /// What a payment of `value` credits; `None` when it is below the smallest deposit.
    pub fn credited(&self, value: Amount) -> Option<Amount> {
        if value < self.min_deposit {
            return None;
        }
        value
            .checked_sub(self.fee)
            .filter(|amount| *amount > Amount::ZERO)
    }

    /// Derives the address under a vault's group key.
    ///
    /// # Errors
    /// [`TermsError::Descriptor`] when miniscript refuses it.
    pub fn address(&self, group: &XOnlyPublicKey) -> Result<DepositAddress, TermsError> {
        let text = format!(
            "tr({group},{{and_v(v:pk({}),older({})),and_v(v:pk({NUMS}),sha256({}))}})",
            self.refund,
            self.refund_delay,
            self.hash(),
        );
        let descriptor: Descriptor<XOnlyPublicKey> = text
            .parse()
            .map_err(|error: miniscript::Error| TermsError::Descriptor(error.to_string()))?;
        let root = match &descriptor {
            Descriptor::Tr(tr) => tr.spend_info().merkle_root(),
            _ => None,
        };
        Ok(DepositAddress {
            terms: self.clone(),
            script_pubkey: descriptor.script_pubkey(),
            descriptor,
            tweak: Tweak::KeyPath(root.map(|root| *root.as_byte_array())),
        })
    }
}

impl DepositAddress {
    /// The address for people.
    ///
    /// # Errors
    /// Never for a Taproot script; the type says so for rust-bitcoin's sake.
    pub fn address(&self, network: Network) -> Result<Address, TermsError> {
        Address::from_script(&self.script_pubkey, network)
            .map_err(|error| TermsError::Descriptor(error.to_string()))
    }
}
