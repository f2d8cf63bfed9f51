//! Who signs: a FROST identifier that follows from a roster identity key.

use std::fmt;

use frost_secp256k1_tr::Identifier;
use serde::{Deserialize, Serialize};

use crate::hash;

/// A signer's FROST identifier: a non-zero scalar of secp256k1, the x-coordinate at which the shared
/// polynomial is evaluated (RFC 9591 section 5). Ordered, hashed and stored as its 32 big-endian
/// bytes; hex where people read it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignerId(Identifier);

impl SignerId {
    /// The identifier of the operator whose roster identity key is `identity` (any 32 bytes).
    ///
    /// Derived by hashing, so that nobody chooses an identifier and no registry has to number the
    /// operators.
    #[allow(
        clippy::expect_used,
        reason = "a hash that is zero has never been found"
    )]
    pub fn derive(identity: &[u8; 32]) -> Self {
        let digest = hash::tagged("drawbridge/signer", [identity.as_slice()]);
        Self(Identifier::derive(&digest).expect("SHA-256 to a scalar is not zero"))
    }

    /// The 32 big-endian bytes of the scalar.
    pub fn to_bytes(self) -> [u8; 32] {
        // The ciphersuite's scalars are always 32 bytes long.
        self.0.serialize().try_into().unwrap_or([0; 32])
    }

    pub(crate) fn frost(self) -> Identifier {
        self.0
    }
}

impl From<Identifier> for SignerId {
    fn from(identifier: Identifier) -> Self {
        Self(identifier)
    }
}

impl fmt::Display for SignerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for SignerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = hex::encode(self.to_bytes().get(..4).unwrap_or_default());
        write!(f, "SignerId({short})")
    }
}
