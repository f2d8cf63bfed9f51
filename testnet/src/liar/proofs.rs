//! Proofs of something else, and bytes that are no proof (S4). The batch itself is the honest one.

use ark_bn254::{Bn254, Fq2, Fr, G1Affine, G2Affine};
use ark_ff::{BigInteger as _, PrimeField as _};
use ark_groth16::Groth16;
use ark_relations::gr1cs::{
    ConstraintSynthesizer, ConstraintSystemRef, LinearCombination, SynthesisError, Variable,
};
use ark_serialize::{CanonicalDeserialize as _, CanonicalSerialize as _};
use ark_snark::SNARK as _;
use ledger::Operation;
use protocol::{batch::Body, message::Rule};
use rand::rngs::OsRng;

use super::{
    draft::{Draft, Proofs},
    ledger::ELSEWHERE,
    lie::{Kind, Layer, Lie},
    stage::Stage,
};

/// Bytes of a compressed G1 point; a proof is A, then B (twice as long), then C.
const G1_BYTES: usize = 32;
/// The bit that stands for the point at infinity in a compressed point's last byte.
const INFINITY: u8 = 0x40;

const fn kind(name: &'static str, changed: &'static str, says: &'static str) -> Kind {
    Kind::new(Layer::Ledger, name, changed, &[Rule::S4], says)
}

/// All of them.
///
/// # Errors
/// When a proof for one can't be made.
pub async fn lies(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let mut lies = other_proofs(stage).await?;
    lies.extend(damaged_proofs(stage));
    Ok(lies)
}

/// Good proofs, of something else.
async fn other_proofs(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let with = |name, changed, proof: Vec<u8>| {
        Lie::new(kind(name, changed, "does not verify"), &stage.honest).twist(move |proposal| {
            proposal.with_body(|body| body.proofs = vec![proof]);
        })
    };
    let earlier = stage
        .standing
        .past
        .last()
        .and_then(|(_, body)| body.proofs.first())
        .cloned()
        .unwrap_or_default();
    let mut elsewhere = stage.honest.clone();
    elsewhere.proven_for = ELSEWHERE;
    // Signed rows bind the vault in what was signed; deposits alone can be proven for any.
    only_deposits(&mut elsewhere);
    let mut here = stage.honest.clone();
    only_deposits(&mut here);
    let elsewhere = elsewhere.seal(&stage.standing, Proofs::Remade, &[]).await?;
    let elsewhere = elsewhere
        .body
        .as_deref()
        .map(Body::decode)
        .transpose()?
        .and_then(|body| body.proofs.first().cloned())
        .unwrap_or_default();
    let mut vault = with(
        "proof for another vault",
        "a proof of the same deposits in another vault",
        elsewhere,
    );
    vault.draft = here;
    Ok(vec![
        with(
            "proof of another batch",
            "the proof of the latest confirmed batch",
            earlier,
        ),
        vault,
        with(
            "proof of another circuit",
            "a valid proof of a small circuit with as many public inputs, under its own key",
            small_circuit()?,
        ),
    ])
}

fn only_deposits(draft: &mut Draft) {
    draft
        .operations
        .retain(|operation| matches!(operation, Operation::Deposit { .. }));
}

/// Any statement with three public inputs.
struct SmallCircuit;

impl ConstraintSynthesizer<Fr> for SmallCircuit {
    fn generate_constraints(self, cs: ConstraintSystemRef<Fr>) -> Result<(), SynthesisError> {
        let seven = Fr::from(7u8);
        for _ in 0..3 {
            let public = cs.new_input_variable(|| Ok(seven * seven))?;
            let root = cs.new_witness_variable(|| Ok(seven))?;
            let one =
                |variable: Variable| move || LinearCombination(vec![(Fr::from(1u8), variable)]);
            cs.enforce_r1cs_constraint(one(root), one(root), one(public))?;
        }
        Ok(())
    }
}

fn small_circuit() -> anyhow::Result<Vec<u8>> {
    let key =
        Groth16::<Bn254>::generate_random_parameters_with_reduction(SmallCircuit, &mut OsRng)?;
    let proof = Groth16::<Bn254>::prove(&key, SmallCircuit, &mut OsRng)?;
    let mut bytes = Vec::new();
    proof.serialize_compressed(&mut bytes)?;
    Ok(bytes)
}

/// Whether a proof's first point is one of the curve.
fn has_point(proof: &[u8]) -> bool {
    let point = proof.get(..G1_BYTES).unwrap_or_default();
    G1Affine::deserialize_compressed(point).is_ok()
}

/// A point of the curve over the quadratic extension that is not in the subgroup of prime order: most are not.
fn outside_the_subgroup() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut points = (1_u64..)
        .filter_map(|x| G2Affine::get_point_from_x_unchecked(Fq2::from(x), true))
        .filter(|point| !point.is_in_correct_subgroup_assuming_on_curve());
    if let Some(point) = points.next() {
        // A vector takes any encoding.
        let _ = point.serialize_compressed(&mut bytes);
    }
    bytes
}

/// Bytes that are no proof.
fn damaged_proofs(stage: &Stage) -> Vec<Lie> {
    let with = |name, changed, says, change: fn(&mut Vec<u8>)| {
        Lie::new(kind(name, changed, says), &stage.honest).twist(move |proposal| {
            proposal.with_body(|body| {
                if let Some(proof) = body.proofs.first_mut() {
                    change(proof);
                }
            });
        })
    };
    let no_proof = "does not decode";
    vec![
        with(
            "proof truncated",
            "a proof without its last byte",
            no_proof,
            |proof| {
                proof.pop();
            },
        ),
        with("proof empty", "a proof of no bytes", no_proof, Vec::clear),
        with(
            "proof with a byte more",
            "a proof with a trailing byte",
            no_proof,
            |proof| proof.push(0),
        ),
        with(
            "point off the curve",
            "a proof whose A has no y for its x",
            no_proof,
            |proof| {
                // Half of all x have none: the next one up, until one is found.
                while has_point(proof) {
                    if let Some(byte) = proof.first_mut() {
                        *byte = byte.wrapping_add(1);
                    }
                }
            },
        ),
        with(
            "point of another order",
            "a proof whose B is on the twist and not in the subgroup",
            no_proof,
            |proof| {
                if let Some(bytes) = proof.get_mut(G1_BYTES..3 * G1_BYTES) {
                    bytes.copy_from_slice(&outside_the_subgroup());
                }
            },
        ),
        with(
            "point at infinity",
            "a proof whose A is the identity",
            "does not verify",
            |proof| {
                if let Some(point) = proof.get_mut(..G1_BYTES) {
                    point.fill(0);
                    if let Some(last) = point.last_mut() {
                        *last = INFINITY;
                    }
                }
            },
        ),
        with(
            "non-canonical coordinate",
            "a proof whose A has its x plus the modulus",
            no_proof,
            |proof| {
                let modulus = ark_bn254::Fq::MODULUS.to_bytes_le();
                if let Some(point) = proof.first_chunk_mut::<G1_BYTES>() {
                    *point = plus(point, &modulus);
                }
            },
        ),
        with("proof of zeros", "128 zero bytes", no_proof, |proof| {
            proof.fill(0)
        }),
        with(
            "A and C exchanged",
            "a proof whose points changed places",
            "does not verify",
            |proof| {
                if let (Some(a), Some(c)) = (
                    proof.first_chunk::<G1_BYTES>().copied(),
                    proof.last_chunk::<G1_BYTES>().copied(),
                ) {
                    if let Some(to) = proof.first_chunk_mut::<G1_BYTES>() {
                        *to = c;
                    }
                    if let Some(to) = proof.last_chunk_mut::<G1_BYTES>() {
                        *to = a;
                    }
                }
            },
        ),
    ]
}

/// A sum of little-endian numbers of 32 bytes; what overflows is lost.
pub fn plus(a: &[u8; 32], b: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    let mut carry = 0_u16;
    for ((to, a), b) in sum.iter_mut().zip(a).zip(b) {
        let digit = u16::from(*a)
            .saturating_add(u16::from(*b))
            .saturating_add(carry);
        let [low, high] = digit.to_le_bytes();
        *to = low;
        carry = high.into();
    }
    sum
}
