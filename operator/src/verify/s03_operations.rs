//! S3: deposits and inputs, withdrawals and outputs match one to one, amount for amount; standard output
//! scripts above dust only; operations not expired; no empty batch.
//!
//! The match itself comes from the way that the transaction is built: [`super::s02_inputs`] makes one input
//! of every deposit, `Body::withdrawals` one output of every withdrawal, and [`super::s01_rebuilt`]
//! allows no other transaction. Here are the conditions on the operations themselves. That these
//! operations are the ones that the proofs commit to is [`super::s04_ledger`]'s to see to.

use std::collections::BTreeSet;

use bitcoin::Amount;
use ledger::Operation;
use protocol::message::{Refusal, Rule};

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
    let parameters = evidence.vault.parameters();
    let least = match operation {
        Operation::Deposit { .. } => Amount::ZERO,
        Operation::Transfer { .. } => parameters.transfer_fee,
        Operation::Withdraw { .. } => parameters.withdraw_fee,
    };
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
