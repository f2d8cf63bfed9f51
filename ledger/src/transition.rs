//! What a batch did to the ledger: everything that the prover needs, and everything that undoes it.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use crate::{
    Account, AccountIndex, CHUNK_ROWS, ChunkInputs, Digest, Field, MerklePath, Signature, State,
    poseidon::Native,
    statement::{Row, commitment},
};

/// One leaf before and after one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafUpdate {
    /// What the operation asks for.
    pub row: Row,
    /// The sender's signature, in signed rows.
    pub signature: Option<Signature>,
    /// Which leaf.
    pub index: AccountIndex,
    /// The account before; none if the leaf was unused.
    pub before: Option<Account>,
    /// The account after; none only for a padding row on an unused leaf.
    pub after: Option<Account>,
    /// Siblings, the same before and after.
    pub path: MerklePath,
}

/// What one proof proves: [`CHUNK_ROWS`] leaf updates between two states. Can be sent to another machine to prove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkWitness {
    /// Where the commitment starts; depends on the vault only.
    pub start: Digest,
    /// The state before the first row.
    pub before: State,
    /// The state after the last row.
    pub after: State,
    /// The rows, padded to [`CHUNK_ROWS`].
    pub updates: Vec<LeafUpdate>,
}

impl ChunkWitness {
    /// The public inputs of this chunk's proof.
    pub fn inputs(&self) -> ChunkInputs {
        let messages: Vec<Field> = self
            .updates
            .iter()
            .map(|update| update.row.message())
            .collect();
        ChunkInputs {
            digest_before: self.before.digest(),
            digest_after: self.after.digest(),
            commitment: Digest(commitment(&mut Native, self.start.0, &messages)),
        }
    }

    /// Whether it has exactly as many rows as the circuit.
    pub fn is_full(&self) -> bool {
        self.updates.len() == CHUNK_ROWS
    }
}

/// Sums over a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Sats credited by deposits.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub deposited: Amount,
    /// Sats paid by withdrawals, without their fees.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub withdrawn: Amount,
    /// Sats moved by transfers, without their fees.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub transferred: Amount,
    /// Fees of transfers and withdrawals. Supply after = before + deposited - withdrawn - fees.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub fees: Amount,
}

/// A batch's effect on the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The state before.
    pub before: State,
    /// The state after.
    pub after: State,
    /// Accounts before; later ones are new.
    pub accounts_before: u32,
    /// The leaf updates, in proofs' portions.
    pub chunks: Vec<ChunkWitness>,
    /// Sums over the batch.
    pub totals: Totals,
}

impl Transition {
    /// Digest of the state before.
    pub fn digest_before(&self) -> Digest {
        self.before.digest()
    }

    /// Digest of the state after.
    pub fn digest_after(&self) -> Digest {
        self.after.digest()
    }

    /// The digests that link the chunks up: one more than there are chunks. With the operations they give the
    /// proofs' public inputs ([`crate::chunk_inputs`]).
    pub fn digests(&self) -> Vec<Digest> {
        std::iter::once(self.digest_before())
            .chain(self.chunks.iter().map(|chunk| chunk.after.digest()))
            .collect()
    }

    /// The public inputs of each chunk's proof.
    pub fn chunk_inputs(&self) -> Vec<ChunkInputs> {
        self.chunks.iter().map(ChunkWitness::inputs).collect()
    }

    /// All leaf updates in order, padding included.
    pub fn updates(&self) -> impl Iterator<Item = &LeafUpdate> {
        self.chunks.iter().flat_map(|chunk| &chunk.updates)
    }
}
