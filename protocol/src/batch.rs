//! A batch: its body (operations, deposit terms, proofs), and a candidate (the Bitcoin transaction that
//! carries the body). A candidate names everything that determines its transaction, so each operator
//! builds that transaction by itself; no transaction travels before it is signed (S1).

use bitcoin::{Amount, OutPoint, TxOut, Txid};
use ledger::{Operation, OperationId, SequenceNumber, VaultId};
use serde::{Deserialize, Serialize};

use crate::{deposit::DepositTerms, hash};

/// Largest encoded body in bytes.
pub const MAX_BODY_BYTES: usize = 4 << 20;
/// Most top-ups in one batch.
pub const MAX_TOP_UPS: usize = 8;
/// Largest encoded proof of a chunk in bytes.
pub const MAX_PROOF_BYTES: usize = 256;
const BODY_VERSION: u8 = 1;

hash::id!(
    /// Hash of an encoded body: names a batch and its proofs, whatever transaction carries it.
    BodyHash
);

hash::id!(
    /// Names a batch by what it does, whoever has proved it: proofs of one and the same thing differ each time.
    BatchHash
);

/// What a batch does to the ledger, and the proofs of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// The vault.
    pub vault: VaultId,
    /// The parent's sequence number plus one.
    pub sequence: SequenceNumber,
    /// In ledger order.
    pub operations: Vec<Operation>,
    /// The terms of every deposit among the operations, in their order.
    pub terms: Vec<DepositTerms>,
    /// Ledger digests before the first chunk, between chunks, and after the last.
    pub digests: Vec<[u8; 32]>,
    /// One Groth16 proof a chunk.
    pub proofs: Vec<Vec<u8>>,
}

/// Why bytes are no body.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BodyError {
    /// More than [`MAX_BODY_BYTES`].
    #[error("a body of {0} bytes is larger than the {MAX_BODY_BYTES} allowed")]
    TooLarge(usize),
    /// Written by another version.
    #[error("body version {0:?} is not known here; this node reads version {BODY_VERSION}")]
    Version(Option<u8>),
    /// The bytes are no encoding of a body, or not the only one.
    #[error("the body's encoding is not valid")]
    Encoding,
    /// The lists in it don't fit together.
    #[error("the body's {0} do not fit its operations")]
    Shape(&'static str),
}

impl Body {
    /// The bytes that are hashed, stored and sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![BODY_VERSION];
        bytes.extend(postcard::to_stdvec(self).unwrap_or_default());
        bytes
    }

    /// Reads [`Self::encode`] back and checks sizes. Accepts the one canonical encoding only, so that
    /// a body has one hash.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
        if bytes.len() > MAX_BODY_BYTES {
            return Err(BodyError::TooLarge(bytes.len()));
        }
        let Some((&BODY_VERSION, rest)) = bytes.split_first() else {
            return Err(BodyError::Version(bytes.first().copied()));
        };
        let (body, rest): (Self, _) =
            postcard::take_from_bytes(rest).map_err(|_| BodyError::Encoding)?;
        if !rest.is_empty() || body.encode() != bytes {
            return Err(BodyError::Encoding);
        }
        if body.deposits().count() != body.terms.len() {
            return Err(BodyError::Shape("deposit terms"));
        }
        if body.digests.len() != body.proofs.len().saturating_add(1) {
            return Err(BodyError::Shape("digests"));
        }
        if body
            .proofs
            .iter()
            .any(|proof| proof.len() > MAX_PROOF_BYTES)
        {
            return Err(BodyError::Shape("proofs"));
        }
        Ok(body)
    }

    /// The hash of the encoded body.
    pub fn hash(&self) -> BodyHash {
        Self::hash_encoded(&self.encode())
    }

    /// [`Self::hash`] of bytes at hand.
    pub fn hash_encoded(bytes: &[u8]) -> BodyHash {
        BodyHash(hash::tagged("drawbridge/body", &[bytes]))
    }

    /// What makes two bodies the same batch (S7): the operations, by their ids, and the digest that they lead to. Users'
    /// signatures, like proofs, differ each time that the same thing is signed.
    pub fn batch(&self) -> BatchHash {
        let Self {
            vault,
            sequence,
            operations: _,
            terms: _,
            digests,
            proofs: _,
        } = self;
        let operations: Vec<OperationId> = self.operation_ids().collect();
        // Postcard does not fail on these types; a failure would only give a hash that nobody else has.
        let bytes = postcard::to_stdvec(&(vault, sequence, operations, digests.last()));
        BatchHash(hash::tagged(
            "drawbridge/batch",
            &[&bytes.unwrap_or_default()],
        ))
    }

    /// (outpoint, credited amount) of every deposit, in order.
    pub fn deposits(&self) -> impl Iterator<Item = (&OutPoint, Amount)> {
        self.operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Deposit {
                    outpoint, amount, ..
                } => Some((outpoint, *amount)),
                _ => None,
            })
    }

    /// The payouts, in order.
    pub fn withdrawals(&self) -> Vec<TxOut> {
        self.operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Withdraw {
                    amount,
                    script_pubkey,
                    ..
                } => Some(TxOut {
                    value: *amount,
                    script_pubkey: script_pubkey.clone(),
                }),
                _ => None,
            })
            .collect()
    }

    /// Ids of all operations, in order.
    pub fn operation_ids(&self) -> impl Iterator<Item = OperationId> {
        self.operations
            .iter()
            .map(|operation| operation.id(&self.vault))
    }
}

/// One Bitcoin transaction for a body. Fee bumps make other candidates for the same body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The vault.
    pub vault: VaultId,
    /// The body's sequence number.
    pub sequence: SequenceNumber,
    /// The treasury that it spends.
    pub parent: OutPoint,
    /// The body.
    pub body: BodyHash,
    /// UTXOs of the vault that it collects, in outpoint order, at most [`MAX_TOP_UPS`].
    pub top_ups: Vec<OutPoint>,
    /// Miner fee.
    pub fee: Amount,
    /// What the transaction's id must come out as.
    pub txid: Txid,
}

impl Candidate {
    /// Names all that is said of a transaction.
    pub fn hash(&self) -> [u8; 32] {
        // Postcard does not fail on this type; a failure would only give a hash that nobody else has.
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        hash::tagged("drawbridge/candidate", &[&bytes])
    }
}
