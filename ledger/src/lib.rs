//! The zkBTC ledger: accounts in a Poseidon Merkle tree, the operations that change them, and their replay.
//!
//! Pure: no I/O, no clock. A batch of operations goes in, a [`Transition`] comes out; the `proof` crate turns
//! its chunks into proofs, and every operator replays the same operations to reach the same digest.
//!
//! ```text
//! operations ──rows──> leaf updates ──apply──> Ledger (tree, accounts, supply)
//!                            │
//!                            └──chunks──> ChunkWitness ──(crate `proof`)──> ChunkProof
//!                                   └───> ChunkInputs: digest before, digest after, commitment
//! ```
//!
//! [`statement`] holds what both the native code and the circuit must agree on: how an operation becomes rows,
//! what each kind of row does, and which values are hashed in which order.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod encoding;
mod index;
mod key;
mod operation;
pub mod poseidon;
mod replay;
mod script;
pub mod statement;
mod transition;
mod tree;

pub use encoding::{DecodeError, Digest};
pub use index::{AccountIndex, OperationId, SequenceNumber, VaultId};
pub use key::{AccountKey, AccountSecret, AddressError, Signature};
pub use operation::{Operation, TransferRequest, WithdrawRequest};
pub use replay::{
    Account, Ledger, LedgerError, OperationError, Replayed, RevertError, State, StoredAccount,
    StoredError,
};
pub use script::{ScriptError, check_output_script};
pub use statement::{CHUNK_ROWS, ChunkInputs, ChunkInputsError, chunk_count, chunk_inputs};
pub use transition::{ChunkWitness, LeafUpdate, Totals, Transition};
pub use tree::{ARITY, CAPACITY, DEPTH, MerklePath, Tree};

/// The field that hashes, leaves and digests live in: the scalar field of BN254, which is the base field of
/// `ark-ed-on-bn254`.
pub type Field = ark_ed_on_bn254::Fq;
