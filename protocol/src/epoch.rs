//! Epochs: a refresh gives every operator a new share of the same key. All n sign, with the new shares, that
//! they hold them; that certificate, and nothing else, makes the new epoch the vault's.
//!
//! ```text
//! refresh finished at all n --claim(vault, epoch, hash of the group)--n new shares--> certificate --> everybody switches
//! ```
//!
//! Epochs only go up, and a certificate of a higher one stands above one of a lower: whoever sees both ends at the
//! same. An operator keeps a new share until a certificate of its epoch or a later one is here, so that all
//! that all n have signed for can be used by all.

use bitcoin::secp256k1::{Message, Secp256k1, VerifyOnly, schnorr};
use ledger::VaultId;
use serde::{Deserialize, Serialize};
use threshold::GroupInfo;

use crate::{hash, vault::Vault};

/// The claim that all n operators hold a share of this group, before it is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochClaim {
    /// The vault.
    pub vault: VaultId,
    /// The new epoch.
    pub epoch: u32,
    /// [`GroupInfo::digest`] of the group at that epoch.
    #[serde(with = "hex::serde")]
    pub group: [u8; 32],
}

impl EpochClaim {
    /// What is claimed of `group`.
    pub fn new(vault: VaultId, group: &GroupInfo) -> Self {
        Self {
            vault,
            epoch: group.epoch(),
            group: group.digest(),
        }
    }

    /// What all n operators sign, untweaked, with their shares of that epoch.
    pub fn digest(&self) -> [u8; 32] {
        hash::tagged(
            "drawbridge/epoch-certificate",
            &[&self.vault.0, &self.epoch.to_le_bytes(), &self.group],
        )
    }
}

/// A group at a new epoch with the signature that all n operators made with their new shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochCertificate {
    /// The vault.
    pub vault: VaultId,
    /// The group, with its epoch and verifying shares.
    pub group: GroupInfo,
    /// BIP-340 signature of [`EpochClaim::digest`] under GROUP.
    pub signature: schnorr::Signature,
}

impl EpochCertificate {
    /// What is certified.
    pub fn claim(&self) -> EpochClaim {
        EpochClaim::new(self.vault, &self.group)
    }

    /// Whether it makes this epoch the vault's. GROUP is what the genesis certificate names, so whoever holds that
    /// needs to trust nobody for this one.
    ///
    /// # Errors
    /// [`EpochError`] that names what differs.
    pub fn verify(&self, vault: &Vault) -> Result<(), EpochError> {
        let (group, known) = (&self.group, vault.group());
        for (same, name) in [
            (self.vault == vault.id(), "vault"),
            (group.group_key() == known.group_key(), "group key"),
            (group.threshold() == known.threshold(), "threshold"),
            (group.signers().eq(known.signers()), "set of operators"),
        ] {
            if !same {
                return Err(EpochError::Other(name));
            }
        }
        let secp: Secp256k1<VerifyOnly> = Secp256k1::verification_only();
        let message = Message::from_digest(self.claim().digest());
        secp.verify_schnorr(&self.signature, &message, &vault.group_key())
            .map_err(|_| EpochError::Signature)
    }
}

/// Why a certificate makes no epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// It speaks of another vault.
    #[error("the epoch certificate is for another {0}")]
    Other(&'static str),
    /// The signature is not the group's.
    #[error("the epoch certificate's signature does not verify under the group key")]
    Signature,
}
