//! S3: deposits and inputs, withdrawals and outputs match one to one, amount for amount; standard output
//! scripts above dust only; operations not expired; no empty batch.
//!
//! The match itself comes from the way that the transaction is built: [`super::s02_inputs`] makes one input
//! of every deposit, `Body::withdrawals` one output of every withdrawal, and [`super::s01_rebuilt`]
//! allows no other transaction. Here are the conditions on the operations themselves. That these
//! operations are the ones that the proofs commit to is [`super::s04_ledger`]'s to see to.

use std::collections::BTreeSet;

use ledger::Operation;
use protocol::message::{Refusal, Rule};
use threshold::sign::max_messages;

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Result<(), Refusal> {
    let Evidence {
        vault,
        candidate,
        body,
        ..
    } = evidence;
    if body.vault != vault.id() || candidate.vault != vault.id() {
        return Err(refuse("the batch is for another vault"));
    }
    if body.sequence != candidate.sequence {
        return Err(refuse(format!(
            "the body is batch {}, the candidate batch {}",
            body.sequence, candidate.sequence
        )));
    }
    let most = usize::from(vault.parameters().max_operations);
    if body.operations.is_empty() {
        return Err(refuse("the batch is empty"));
    }
    if body.operations.len() > most {
        return Err(refuse(format!(
            "{} operations, more than {most}",
            body.operations.len()
        )));
    }
    let group = vault.group();
    let inputs = body
        .deposits()
        .count()
        .saturating_add(candidate.top_ups.len())
        .saturating_add(1);
    check_inputs(inputs, group.signers().len(), group.threshold().into())?;
    let mut seen = BTreeSet::new();
    for operation in &body.operations {
        let id = operation.id(&body.vault);
        let check = if seen.insert(id) {
            check_operation(evidence, operation)
        } else {
            Err(refuse("the operation is in the batch twice"))
        };
        check.map_err(|refusal| refusal.of(id))?;
    }
    Ok(())
}

/// One session signs all inputs, and has a bound of its own.
fn check_inputs(inputs: usize, signers: usize, needed: usize) -> Result<(), Refusal> {
    let most = max_messages(signers, needed);
    if inputs > most {
        return Err(refuse(format!(
            "{inputs} inputs, more than the {most} that one session of {needed} of {signers} signs"
        )));
    }
    Ok(())
}

fn check_operation(evidence: &Evidence, operation: &Operation) -> Result<(), Refusal> {
    operation
        .check_form()
        .map_err(|error| refuse(error.to_string()))?;
    let sequence = evidence.body.sequence;
    if let Some(last_valid) = operation
        .last_valid()
        .filter(|last_valid| *last_valid < sequence)
    {
        return Err(refuse(format!(
            "expired: valid up to batch {last_valid}, this is batch {sequence}"
        )));
    }
    let least = evidence.vault.parameters().smallest_fee(operation);
    if operation.fee() < least {
        return Err(refuse(format!(
            "a fee of {} is below the vault's {least}",
            operation.fee()
        )));
    }
    Ok(())
}

fn refuse(reason: impl Into<String>) -> Refusal {
    Refusal::new(Rule::S3, reason)
}

#[cfg(test)]
pub(super) mod cases {
    use bitcoin::{Amount, ScriptBuf};
    use ledger::{Operation, SequenceNumber};
    use protocol::message::Rule;

    use crate::verify::fixture::{Case, op};

    pub(in crate::verify) fn all() -> Vec<Case> {
        vec![
            (
                "another vault's body",
                |e| e.body.vault.0[0] ^= 1,
                Rule::S3,
                "another vault",
            ),
            (
                "another vault's candidate",
                |e| e.candidate.vault.0[0] ^= 1,
                Rule::S3,
                "another vault",
            ),
            (
                "another number in the candidate",
                |e| e.candidate.sequence.0 = 2,
                Rule::S3,
                "the candidate batch 2",
            ),
            (
                "no operations",
                |e| e.body.operations.clear(),
                Rule::S3,
                "empty",
            ),
            (
                "too many operations",
                |e| e.body.operations = vec![e.body.operations[2].clone(); 65],
                Rule::S3,
                "more than 64",
            ),
            (
                "an operation twice",
                |e| *op(e, 3) = op(e, 2).clone(),
                Rule::S3,
                "in the batch twice",
            ),
            (
                "a fee that is too small",
                |e| {
                    let Operation::Transfer { fee, .. } = op(e, 2) else {
                        panic!()
                    };
                    *fee = Amount::from_sat(99);
                },
                Rule::S3,
                "below the vault's",
            ),
            (
                "an expired operation",
                |e| {
                    let Operation::Withdraw { last_valid, .. } = op(e, 3) else {
                        panic!()
                    };
                    *last_valid = SequenceNumber(0);
                },
                Rule::S3,
                "expired",
            ),
            (
                "a payout that is dust",
                |e| {
                    let Operation::Withdraw { amount, .. } = op(e, 3) else {
                        panic!()
                    };
                    *amount = Amount::from_sat(293);
                },
                Rule::S3,
                "at least 294",
            ),
            (
                "a payout to no standard script",
                |e| {
                    let Operation::Withdraw { script_pubkey, .. } = op(e, 3) else {
                        panic!()
                    };
                    *script_pubkey = ScriptBuf::from_bytes(vec![0x51]);
                },
                Rule::S3,
                "standard",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use protocol::message::Rule;
    use threshold::sign::max_messages;

    use super::check_inputs;

    #[test]
    fn a_batch_with_more_inputs_than_a_session_signs_is_refused_with_both_numbers() {
        for (signers, needed) in [(5, 3), (16, 12), (100, 67)] {
            let most = max_messages(signers, needed);
            assert!(check_inputs(most, signers, needed).is_ok());
            let refusal = check_inputs(most + 1, signers, needed).unwrap_err();
            assert_eq!(refusal.rule, Rule::S3);
            let reason = format!("{} inputs, more than the {most} that", most + 1);
            assert!(refusal.reason.starts_with(&reason), "{refusal}");
        }
    }
}
