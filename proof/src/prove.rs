//! Making a chunk's proof.

use ark_bn254::{Bn254, Fr};
use ark_ff::UniformRand as _;
use ark_groth16::{Groth16, prepare_verifying_key};
use ark_relations::gr1cs::SynthesisError;
use ledger::{CHUNK_ROWS, ChunkWitness};
use rand::rngs::OsRng;

use crate::{
    ChunkProof, ProvingKey,
    chunk::{CONSTRAINTS, ChunkAssignment, assign, public},
};

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// A chunk has exactly [`CHUNK_ROWS`] rows.
    #[error("a chunk has {CHUNK_ROWS} rows, this one {0}")]
    Rows(usize),
    /// The witness breaks a rule, so no proof of it exists.
    #[error("the chunk does not follow the rules: constraint {0} is not satisfied")]
    Unsatisfied(usize),
    /// The proving key is not one for this circuit.
    #[error("the proving key does not fit the circuit")]
    Key(#[source] Option<SynthesisError>),
}

/// Constraints of the circuit: of all of a chunk's rows together.
pub fn constraint_count() -> usize {
    CONSTRAINTS.len()
}

/// SHA-256 of all constraints: says whether two programs have the same circuit.
pub fn circuit_digest() -> [u8; 32] {
    CONSTRAINTS.digest()
}

/// Proves `chunk`, on all cores. Takes seconds.
///
/// # Errors
/// [`ProveError::Unsatisfied`] if the chunk is not what `Ledger::apply_batch` makes.
pub fn prove_chunk(key: &ProvingKey, chunk: &ChunkWitness) -> Result<ChunkProof, ProveError> {
    if !chunk.is_full() {
        return Err(ProveError::Rows(chunk.updates.len()));
    }
    let public = public(&chunk.inputs());
    let variables = assign(public, &ChunkAssignment::from(chunk));
    if let Some(constraint) = CONSTRAINTS.unsatisfied(&variables) {
        return Err(ProveError::Unsatisfied(constraint));
    }
    // arkworks indexes the key by the circuit's sizes.
    if !key.fits() {
        return Err(ProveError::Key(None));
    }
    let proof = Groth16::<Bn254>::create_proof_with_reduction_and_matrices(
        key.inner(),
        Fr::rand(&mut OsRng),
        Fr::rand(&mut OsRng),
        &CONSTRAINTS.matrices,
        CONSTRAINTS.inputs(),
        CONSTRAINTS.len(),
        &variables,
    )
    .map_err(|error| ProveError::Key(Some(error)))?;
    // A key for another circuit of the same size gives a proof of nothing; better to find out here.
    let prepared = prepare_verifying_key(&key.inner().vk);
    match Groth16::<Bn254>::verify_proof(&prepared, &proof, &public) {
        Ok(true) => Ok(ChunkProof::new(proof)),
        Ok(false) => Err(ProveError::Key(None)),
        Err(error) => Err(ProveError::Key(Some(error))),
    }
}
