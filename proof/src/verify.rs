//! A chunk's proof: its encoding and its verification.

use std::{fmt, str::FromStr};

use ark_bn254::{Bn254, Fr, G1Projective};
use ark_ec::{AffineRepr as _, CurveGroup as _, VariableBaseMSM as _, pairing::Pairing};
use ark_ff::Zero as _;
use ark_groth16::{Groth16, Proof};
use ark_serialize::{CanonicalDeserialize as _, CanonicalSerialize as _};
use ledger::ChunkInputs;
use rand::{RngCore as _, rngs::OsRng};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{VerifyingKey, chunk::public};

/// Bytes in a proof: A and C in G1, B in G2, compressed.
pub const PROOF_BYTES: usize = 128;

/// A Groth16 proof. Its points are on their curves and in their subgroups.
///
/// Anyone can make another proof of the same statement from it, so a proof's bytes name nothing.
#[derive(Clone, PartialEq)]
pub struct ChunkProof(Proof<Bn254>);

/// The bytes are not a proof's canonical encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not {PROOF_BYTES} bytes that encode a proof: wrong length, not canonical, or a point off its curve or subgroup"
)]
pub struct ProofDecodeError;

impl ChunkProof {
    pub(crate) fn new(proof: Proof<Bn254>) -> Self {
        Self(proof)
    }

    /// The canonical encoding.
    pub fn to_bytes(&self) -> [u8; PROOF_BYTES] {
        let mut bytes = [0; PROOF_BYTES];
        // The encoding is exactly as long as the buffer, so writing it cannot fail.
        let written = self.0.serialize_compressed(bytes.as_mut_slice());
        debug_assert!(written.is_ok());
        bytes
    }

    /// Reads the canonical encoding.
    ///
    /// # Errors
    /// [`ProofDecodeError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofDecodeError> {
        if bytes.len() != PROOF_BYTES {
            return Err(ProofDecodeError);
        }
        let proof = Self(Proof::deserialize_compressed(bytes).map_err(|_| ProofDecodeError)?);
        if proof.to_bytes() != *bytes {
            return Err(ProofDecodeError);
        }
        Ok(proof)
    }
}

impl fmt::Debug for ChunkProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkProof({})", hex::encode(self.to_bytes()))
    }
}

impl FromStr for ChunkProof {
    type Err = ProofDecodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(&hex::decode(text).map_err(|_| ProofDecodeError)?)
    }
}

impl Serialize for ChunkProof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&hex::encode(self.to_bytes()))
        } else {
            serializer.serialize_bytes(&self.to_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for ChunkProof {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ChunkProof;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "a proof of {PROOF_BYTES} bytes, in hexadecimal where the format is text"
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ChunkProof, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<ChunkProof, E> {
                ChunkProof::from_bytes(bytes).map_err(E::custom)
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Visitor)
        } else {
            deserializer.deserialize_bytes(Visitor)
        }
    }
}

/// Why a proof is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It does not prove the statement with these public inputs under this key.
    #[error("the proof does not prove the chunk's public inputs")]
    Invalid,
}

/// Verifies one chunk's proof; takes milliseconds.
///
/// # Errors
/// [`VerifyError::Invalid`].
pub fn verify_chunk(
    key: &VerifyingKey,
    inputs: &ChunkInputs,
    proof: &ChunkProof,
) -> Result<(), VerifyError> {
    match Groth16::<Bn254>::verify_proof(key.prepared(), &proof.0, &public(inputs)) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(VerifyError::Invalid),
    }
}

/// Verifies many proofs at once, for about a third of the cost each. Says only that one of them is invalid, not
/// which: [`verify_chunk`] finds it. A false proof passes with probability 2^-128.
///
/// # Errors
/// [`VerifyError::Invalid`].
pub fn verify_chunks(
    key: &VerifyingKey,
    chunks: &[(ChunkInputs, ChunkProof)],
) -> Result<(), VerifyError> {
    if let [(inputs, proof)] = chunks {
        return verify_chunk(key, inputs, proof);
    }
    // The product of all equations, each to a power that no prover can foresee.
    let vk = key.key();
    let weights: Vec<Fr> = chunks.iter().map(|_| random_weight()).collect();
    let weight_sum: Fr = weights.iter().sum();

    let mut input_weights = vec![weight_sum];
    for i in 0..vk.gamma_abc_g1.len().saturating_sub(1) {
        let weighted = weights.iter().zip(chunks).map(|(weight, (inputs, _))| {
            *weight * public(inputs).get(i).copied().unwrap_or_default()
        });
        input_weights.push(weighted.sum());
    }
    let inputs =
        G1Projective::msm(&vk.gamma_abc_g1, &input_weights).map_err(|_| VerifyError::Invalid)?;
    let c_points: Vec<_> = chunks.iter().map(|(_, proof)| proof.0.c).collect();
    let c = G1Projective::msm(&c_points, &weights).map_err(|_| VerifyError::Invalid)?;
    let alpha = vk.alpha_g1.into_group() * weight_sum;

    let mut left: Vec<_> = chunks
        .iter()
        .zip(&weights)
        .map(|((_, proof), weight)| (proof.0.a * weight).into_affine())
        .collect();
    let mut right: Vec<_> = chunks.iter().map(|(_, proof)| proof.0.b).collect();
    left.extend([-alpha, -inputs, -c].map(|point| point.into_affine()));
    right.extend([vk.beta_g2, vk.gamma_g2, vk.delta_g2]);
    if Bn254::multi_pairing(left, right).is_zero() {
        Ok(())
    } else {
        Err(VerifyError::Invalid)
    }
}

/// 128 random bits, not zero.
fn random_weight() -> Fr {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    Fr::from(u128::from_le_bytes(bytes).max(1))
}
