//! S4: the digest chain starts at the digest in the treasury's OP_RETURN and ends at the digest in this one,
//! which opens to the stated supply; the sequence number is the parent's plus one; every proof verifies
//! under the own verifying key; and replaying the operations on the own ledger gives the same.

use ledger::{Digest, Transition, chunk_inputs};
use proof::VerifyingKey;
use protocol::{
    batch::Body,
    message::{Refusal, Rule},
};

use super::Evidence;

pub(super) fn check(
    evidence: &Evidence,
    proofs: impl FnOnce(&Body, &[Digest]) -> Result<(), Refusal>,
) -> Result<&Transition, Refusal> {
    let Evidence { body, head, .. } = evidence;
    let parent = head.commitment.sequence.0;
    if parent.checked_add(1) != Some(body.sequence.0) {
        return Err(refuse(format!(
            "sequence number {} does not follow {parent}",
            body.sequence
        )));
    }
    let transition = evidence.replay.as_ref().map_err(|(index, error)| {
        let refusal = refuse(format!("operation {index} does not apply: {error}"));
        match body.operations.get(*index) {
            Some(operation) => refusal.of(operation.id(&body.vault)),
            None => refusal,
        }
    })?;
    // The ledger stands where the treasury says; if not, this operator has something to catch up on.
    if transition.digest_before().to_bytes() != head.commitment.digest
        || transition.before.supply != head.commitment.supply
    {
        return Err(refuse("the own ledger is not at the treasury's digest yet"));
    }
    let digests = transition.digests();
    if !digests
        .iter()
        .map(|digest| digest.to_bytes())
        .eq(body.digests.iter().copied())
    {
        return Err(refuse(
            "the digests are not those that replaying the operations gives",
        ));
    }
    proofs(body, &digests)?;
    Ok(transition)
}

/// Every chunk has its proof, and every proof verifies.
pub(super) fn check_proofs(
    body: &Body,
    digests: &[Digest],
    key: &VerifyingKey,
) -> Result<(), Refusal> {
    let inputs = chunk_inputs(&body.vault, &body.operations, digests)
        .map_err(|error| refuse(error.to_string()))?;
    if inputs.len() != body.proofs.len() {
        return Err(refuse(format!(
            "{} proofs for {} chunks",
            body.proofs.len(),
            inputs.len()
        )));
    }
    for (index, (inputs, proof)) in inputs.iter().zip(&body.proofs).enumerate() {
        let bad = |what: String| refuse(format!("the proof of chunk {index} {what}"));
        let proof = proof::ChunkProof::from_bytes(proof)
            .map_err(|error| bad(format!("does not decode: {error}")))?;
        proof::verify_chunk(key, inputs, &proof)
            .map_err(|error| bad(format!("does not verify: {error}")))?;
    }
    Ok(())
}

fn refuse(reason: impl Into<String>) -> Refusal {
    Refusal::new(Rule::S4, reason)
}

#[cfg(test)]
pub(super) mod cases {
    use bitcoin::Amount;
    use ledger::{Operation, OperationError};
    use protocol::message::Rule;

    use crate::verify::fixture::{Case, op};

    pub(in crate::verify) fn all() -> Vec<Case> {
        vec![
            (
                "a number that does not follow",
                |e| {
                    e.body.sequence.0 = 2;
                    e.candidate.sequence.0 = 2;
                },
                Rule::S4,
                "does not follow",
            ),
            (
                "an operation that does not apply",
                |e| e.replay = Err((3, OperationError::BadSignature)),
                Rule::S4,
                "operation 3",
            ),
            (
                "another digest at the treasury",
                |e| e.head.commitment.digest[0] ^= 1,
                Rule::S4,
                "own ledger",
            ),
            (
                "another supply at the treasury",
                |e| e.head.commitment.supply = Amount::ONE_SAT,
                Rule::S4,
                "own ledger",
            ),
            (
                "another digest at the end",
                |e| e.body.digests[1][0] ^= 1,
                Rule::S4,
                "digests",
            ),
            (
                "a digest too many",
                |e| e.body.digests.push([0; 32]),
                Rule::S4,
                "digests",
            ),
            (
                "no proof",
                |e| e.body.proofs.clear(),
                Rule::S4,
                "0 proofs for 1",
            ),
            (
                "a cut proof",
                |e| e.body.proofs[0].truncate(127),
                Rule::S4,
                "does not decode",
            ),
            (
                "a proof of the wrong half",
                |e| e.body.proofs[0].rotate_left(32),
                Rule::S4,
                "the proof of chunk 0",
            ),
            (
                // What the proof commits to is the operations that are paid, not others.
                "a proof of another amount",
                |e| {
                    let Operation::Withdraw { amount, .. } = op(e, 3) else {
                        panic!()
                    };
                    *amount = Amount::from_sat(30_000);
                },
                Rule::S4,
                "does not verify",
            ),
        ]
    }
}
