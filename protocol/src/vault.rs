//! The vault: one FROST group key, its genesis, and the output that holds the treasury.
//!
//! ```text
//! roster + parameters --key generation--> GROUP --funding--> genesis outpoint --all n sign--> certificate
//! vault id = H(GROUP, genesis outpoint, verifying-key hash, parameters, roster)
//! ```

use bitcoin::{
    Amount, OutPoint, ScriptBuf, XOnlyPublicKey,
    secp256k1::{Message, Secp256k1, VerifyOnly, schnorr},
};
use ledger::VaultId;
use miniscript::Descriptor;
use serde::{Deserialize, Serialize};
use threshold::{GroupInfo, sign::Tweak};

use crate::{
    epoch::{EpochCertificate, EpochError},
    hash,
    parameters::{Parameters, ParametersError},
    roster::{Roster, RosterError},
};

/// The claim that an outpoint is a vault's first treasury, before it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The vault's group key (GROUP).
    pub group_key: XOnlyPublicKey,
    /// The output that becomes the first treasury.
    pub outpoint: OutPoint,
    /// Its amount.
    pub amount: Amount,
    /// SHA-256 of the verifying key that all proofs of this vault verify under.
    #[serde(with = "hex::serde")]
    pub verifying_key_hash: [u8; 32],
    /// [`Parameters::hash`].
    #[serde(with = "hex::serde")]
    pub parameters_hash: [u8; 32],
    /// [`Roster::hash`].
    #[serde(with = "hex::serde")]
    pub roster_hash: [u8; 32],
}

impl Genesis {
    /// The vault's name: a hash of everything that makes it this vault and no other.
    pub fn vault_id(&self) -> VaultId {
        VaultId(hash::tagged(
            "drawbridge/vault",
            &[
                &self.group_key.serialize(),
                &bitcoin::consensus::serialize(&self.outpoint),
                &self.amount.to_sat().to_le_bytes(),
                &self.verifying_key_hash,
                &self.parameters_hash,
                &self.roster_hash,
            ],
        ))
    }

    /// What all n operators sign, untweaked, with GROUP.
    pub fn digest(&self) -> [u8; 32] {
        hash::tagged("drawbridge/genesis-certificate", &[&self.vault_id().0])
    }
}

/// A genesis with the signature that all n operators made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisCertificate {
    /// What is certified.
    pub genesis: Genesis,
    /// BIP-340 signature of [`Genesis::digest`] under GROUP.
    pub signature: schnorr::Signature,
}

/// Why a vault can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The roster is not usable.
    #[error("the roster is not usable")]
    Roster(#[from] RosterError),
    /// The parameters are not usable.
    #[error("the vault parameters are not usable")]
    Parameters(#[from] ParametersError),
    /// The certificate speaks of another vault.
    #[error("the genesis certificate is for another {0}")]
    Other(&'static str),
    /// The certificate's signature is not the group's.
    #[error("the genesis certificate's signature does not verify under the group key")]
    Signature,
    /// The descriptor is not valid; the recovery keys are the only part that can be wrong.
    #[error("the vault descriptor is not valid: {0}")]
    Descriptor(String),
}

/// A vault before genesis: its key and its script.
#[derive(Clone, Debug)]
pub struct VaultKey {
    group: GroupInfo,
    parameters: Parameters,
    roster: Roster,
    script_pubkey: ScriptBuf,
    tweak: Tweak,
}

impl VaultKey {
    /// From the agreed parts.
    ///
    /// # Errors
    /// When roster or parameters are not usable.
    pub fn new(
        group: GroupInfo,
        parameters: Parameters,
        roster: Roster,
    ) -> Result<Self, VaultError> {
        roster.validate()?;
        parameters.validate()?;
        let text = descriptor_text(&group.group_key().to_x_only(), &parameters);
        let descriptor: Descriptor<XOnlyPublicKey> = text
            .parse()
            .map_err(|error: miniscript::Error| VaultError::Descriptor(error.to_string()))?;
        let root = match &descriptor {
            Descriptor::Tr(tr) => tr.spend_info().merkle_root(),
            _ => None,
        };
        let tweak = Tweak::KeyPath(root.map(|root| *bitcoin::hashes::Hash::as_byte_array(&root)));
        Ok(Self {
            script_pubkey: descriptor.script_pubkey(),
            tweak,
            group,
            parameters,
            roster,
        })
    }

    /// Public data of the threshold key.
    pub fn group(&self) -> &GroupInfo {
        &self.group
    }

    /// GROUP, the internal key of every output of the vault.
    pub fn group_key(&self) -> XOnlyPublicKey {
        self.group.group_key().to_x_only()
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The roster.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The output script of the treasury and of top-ups.
    pub fn script_pubkey(&self) -> &ScriptBuf {
        &self.script_pubkey
    }

    /// How GROUP is tweaked to spend [`Self::script_pubkey`] by key path (BIP-341).
    pub fn tweak(&self) -> &Tweak {
        &self.tweak
    }

    /// The treasury's output descriptor, with checksum.
    pub fn descriptor(&self) -> String {
        descriptor_text(&self.group_key(), &self.parameters)
            .parse::<Descriptor<XOnlyPublicKey>>()
            .map(|descriptor| descriptor.to_string())
            .unwrap_or_default()
    }

    /// The treasury's address.
    pub fn address(&self) -> Option<bitcoin::Address> {
        bitcoin::Address::from_script(&self.script_pubkey, self.parameters.network).ok()
    }

    /// The genesis claim for an outpoint that pays this vault.
    pub fn genesis(
        &self,
        outpoint: OutPoint,
        amount: Amount,
        verifying_key_hash: [u8; 32],
    ) -> Genesis {
        Genesis {
            group_key: self.group_key(),
            outpoint,
            amount,
            verifying_key_hash,
            parameters_hash: self.parameters.hash(),
            roster_hash: self.roster.hash(),
        }
    }
}

fn descriptor_text(group: &XOnlyPublicKey, parameters: &Parameters) -> String {
    match &parameters.recovery {
        None => format!("tr({group})"),
        Some(recovery) => {
            let keys: String = recovery.keys.iter().map(|key| format!(",{key}")).collect();
            format!(
                "tr({group},and_v(v:multi_a({}{keys}),older({})))",
                recovery.needed, recovery.delay
            )
        }
    }
}

/// A vault whose genesis all n operators have certified.
#[derive(Clone, Debug)]
pub struct Vault {
    key: VaultKey,
    certificate: GenesisCertificate,
    id: VaultId,
}

impl std::ops::Deref for Vault {
    type Target = VaultKey;

    fn deref(&self) -> &VaultKey {
        &self.key
    }
}

impl Vault {
    /// Checks the certificate against this node's own key, parameters, roster and verifying key.
    ///
    /// # Errors
    /// [`VaultError`] that names what differs.
    pub fn open(
        key: VaultKey,
        certificate: GenesisCertificate,
        verifying_key_hash: [u8; 32],
    ) -> Result<Self, VaultError> {
        let genesis = &certificate.genesis;
        let own = key.genesis(genesis.outpoint, genesis.amount, verifying_key_hash);
        for (same, name) in [
            (own.group_key == genesis.group_key, "group key"),
            (
                own.verifying_key_hash == genesis.verifying_key_hash,
                "verifying key (circuit or setup)",
            ),
            (
                own.parameters_hash == genesis.parameters_hash,
                "set of vault parameters",
            ),
            (own.roster_hash == genesis.roster_hash, "roster"),
        ] {
            if !same {
                return Err(VaultError::Other(name));
            }
        }
        let secp: Secp256k1<VerifyOnly> = Secp256k1::verification_only();
        secp.verify_schnorr(
            &certificate.signature,
            &Message::from_digest(genesis.digest()),
            &key.group_key(),
        )
        .map_err(|_| VaultError::Signature)?;
        Ok(Self {
            id: genesis.vault_id(),
            key,
            certificate,
        })
    }

    /// The same vault with the shares of a certified epoch.
    ///
    /// # Errors
    /// [`EpochError`] if the certificate is not of this vault.
    pub fn at_epoch(&self, certificate: &EpochCertificate) -> Result<Self, EpochError> {
        certificate.verify(self)?;
        let mut vault = self.clone();
        vault.key.group = certificate.group.clone();
        Ok(vault)
    }

    /// The vault's id.
    pub fn id(&self) -> VaultId {
        self.id
    }

    /// The genesis.
    pub fn genesis_output(&self) -> &Genesis {
        &self.certificate.genesis
    }

    /// The certificate.
    pub fn certificate(&self) -> &GenesisCertificate {
        &self.certificate
    }

    /// The key and scripts.
    pub fn key(&self) -> &VaultKey {
        &self.key
    }
}
