//! Groth16 proofs that a chunk of leaf updates follows the ledger's rules.
//!
//! The statement is `ledger::statement`; this crate adds the constraints that make it binding.
//!
//! ```text
//! ledger::ChunkWitness ──chunk──> variables ──prove──> ChunkProof
//!                          │ row (leaf, path, signature, carry), curve, bits
//! ledger::ChunkInputs  ────────────────────verify────> accepted or not
//! ```
//!
//! What a proof says, for the prover's choice of everything but the public inputs: eight rows in sequence lead from
//! the state behind `digest_before` to the one behind `digest_after`, and their messages are those that
//! `commitment` commits to. It relies on three facts that are checked elsewhere: account keys are of prime order
//! (`ledger::AccountKey`), the chain of digests starts at an empty ledger, and whoever verifies computes the
//! commitment from the operations. Which index a new key gets is not proven; replay decides that.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod bits;
mod builder;
mod chunk;
mod curve;
mod keys;
mod prove;
mod row;
mod verify;

#[cfg(test)]
mod tampering;

pub use keys::{
    CIRCUIT_VERSION, KeyError, Keys, PROVING_KEY_FILE, ProvingKey, SETUP_LABEL, SetupStep,
    VERIFYING_KEY_FILE, VerifyingKey, VerifyingKeyHash,
};
pub use prove::{ProveError, circuit_digest, constraint_count, prove_chunk};
pub use verify::{
    ChunkProof, PROOF_BYTES, ProofDecodeError, VerifyError, verify_chunk, verify_chunks,
};
