//! Small names: account index, sequence number, vault id, operation id.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encoding::{DecodeError, serde_as_bytes};

/// Where an account's leaf is in the tree: 0 to 2^24 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountIndex(pub u32);

impl fmt::Display for AccountIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A batch's place in the chain of treasuries: genesis is 0, the first batch 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SequenceNumber(pub u64);

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one vault: the hash of group key, genesis outpoint, verifying-key hash and parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VaultId(pub [u8; 32]);

impl VaultId {
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Any 32 bytes are a vault id.
    ///
    /// # Errors
    /// None today; the signature is that of the other encodings.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, DecodeError> {
        Ok(Self(*bytes))
    }
}

serde_as_bytes!(VaultId, 32);

/// Names one operation in one vault: the Poseidon hash that its signature signs, or, for a deposit, the hash of
/// vault, outpoint, account and amount. Does not depend on the signature, so signing again gives the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub [u8; 32]);

impl OperationId {
    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Any 32 bytes may name an operation.
    ///
    /// # Errors
    /// None today; the signature is that of the other encodings.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, DecodeError> {
        Ok(Self(*bytes))
    }
}

serde_as_bytes!(OperationId, 32);
