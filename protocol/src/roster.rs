//! Who takes part: the operators that hold shares, and the coordinators they listen to.

use std::collections::BTreeSet;

use attestation::{Requirement, RequirementError};
use serde::{Deserialize, Serialize};
use threshold::SignerId;

use crate::{hash, identity::PeerKey};

/// The most operators that a roster can have.
pub const MAX_OPERATORS: usize = 128;
/// The most coordinators that a roster can have.
pub const MAX_COORDINATORS: usize = 16;

/// One node of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// A name for people; it has no meaning for the protocol.
    pub name: String,
    /// Its identity.
    pub key: PeerKey,
    /// The identity that it took part in key generation with, if that was replaced since (a repair). Its FROST
    /// identifier, and with it the roster's hash, stay those of this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founding_key: Option<PeerKey>,
    /// Where it listens, as multiaddresses (`/ip4/192.0.2.7/tcp/9000`).
    pub addresses: Vec<String>,
}

impl Member {
    /// The key that its FROST identifier is derived from.
    pub fn founding(&self) -> PeerKey {
        self.founding_key.unwrap_or(self.key)
    }

    /// Its FROST identifier, if it is an operator.
    pub fn signer(&self) -> SignerId {
        SignerId::derive(&self.founding().0)
    }
}

/// All nodes of a vault and how many operators must sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// Signers needed (t), 2 to the number of operators.
    pub threshold: u16,
    /// The operators (n), at most [`MAX_OPERATORS`].
    pub operators: Vec<Member>,
    /// The coordinators, at most [`MAX_COORDINATORS`].
    pub coordinators: Vec<Member>,
    /// The attestation that operators want of each other before they make a key together; none if left out.
    #[serde(default, skip_serializing_if = "Requirement::is_none")]
    pub attestation: Requirement,
}

/// Why a roster can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RosterError {
    /// The threshold is below 2 or above the number of operators.
    #[error("threshold {threshold} must be between 2 and the number of operators ({operators})")]
    Threshold {
        /// What the roster says.
        threshold: u16,
        /// How many operators it lists.
        operators: usize,
    },
    /// Too many or no nodes of a kind.
    #[error(
        "the roster needs 2 to {MAX_OPERATORS} operators and 1 to {MAX_COORDINATORS} coordinators"
    )]
    Size,
    /// One key appears twice.
    #[error("the key {0} appears twice in the roster")]
    Duplicate(PeerKey),
    /// Nobody could meet the attestation that is required.
    #[error(transparent)]
    Attestation(#[from] RequirementError),
    /// A coordinator has a founding key.
    #[error("the coordinator {0} has a founding key, which only operators can have")]
    Founding(String),
}

impl Roster {
    /// Checks sizes, threshold and that no key appears twice, founding keys included.
    ///
    /// # Errors
    /// The first [`RosterError`] found.
    pub fn validate(&self) -> Result<(), RosterError> {
        let n = self.operators.len();
        if !(2..=MAX_OPERATORS).contains(&n)
            || !(1..=MAX_COORDINATORS).contains(&self.coordinators.len())
        {
            return Err(RosterError::Size);
        }
        if self.threshold < 2 || usize::from(self.threshold) > n {
            return Err(RosterError::Threshold {
                threshold: self.threshold,
                operators: n,
            });
        }
        let mut seen = BTreeSet::new();
        for member in self.members() {
            for key in [Some(member.key), member.founding_key]
                .into_iter()
                .flatten()
            {
                if !seen.insert(key) {
                    return Err(RosterError::Duplicate(key));
                }
            }
        }
        let mut coordinators = self.coordinators.iter();
        if let Some(member) = coordinators.find(|member| member.founding_key.is_some()) {
            return Err(RosterError::Founding(member.name.clone()));
        }
        Ok(self.attestation.validate()?)
    }

    /// Operators, then coordinators.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.operators.iter().chain(&self.coordinators)
    }

    /// Is this key an operator's?
    pub fn is_operator(&self, key: &PeerKey) -> bool {
        self.operators.iter().any(|member| member.key == *key)
    }

    /// Is this key a coordinator's?
    pub fn is_coordinator(&self, key: &PeerKey) -> bool {
        self.coordinators.iter().any(|member| member.key == *key)
    }

    /// The FROST identifier of an operator; `None` for anybody else.
    pub fn signer(&self, key: &PeerKey) -> Option<SignerId> {
        let mut operators = self.operators.iter();
        operators
            .find(|member| member.key == *key)
            .map(Member::signer)
    }

    /// The operator with a FROST identifier.
    pub fn operator(&self, signer: SignerId) -> Option<&Member> {
        self.operators
            .iter()
            .find(|member| member.signer() == signer)
    }

    /// All FROST identifiers.
    pub fn signers(&self) -> BTreeSet<SignerId> {
        self.operators.iter().map(Member::signer).collect()
    }

    /// What key generation binds a polynomial to, beside the parameters: the operators' founding keys and t.
    /// Names, addresses, replaced identities, coordinators and the required attestation can change without a new key.
    pub fn hash(&self) -> [u8; 32] {
        let founding = self.operators.iter().map(|member| member.founding().0);
        let mut keys: Vec<_> = founding.collect();
        keys.sort_unstable();
        hash::tagged(
            "drawbridge/roster",
            &[&self.threshold.to_le_bytes(), &keys.concat()],
        )
    }
}
