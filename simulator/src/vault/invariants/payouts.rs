use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Transaction;
use ledger::{Ledger, Operation, OperationId, SequenceNumber, VaultId};
use protocol::{batch::Body, invariants::Violation};

/// A withdrawal is paid at most once, by the outputs of its batch: one a withdrawal, amount for amount, and no other.
/// `ids` are the batch's operations, `done` holds the operations of the batches before.
///
/// # Errors
/// [`Violation`].
pub fn payouts(
    transaction: &Transaction,
    body: &Body,
    ids: &[OperationId],
    done: &mut BTreeSet<OperationId>,
) -> Result<(), Violation> {
    let broken = |what: String| Violation {
        invariant: "payouts",
        what,
    };
    for id in ids {
        if !done.insert(*id) {
            return Err(broken(format!("operation {id} is carried out twice")));
        }
    }
    let paid = transaction.output.get(2..).unwrap_or_default();
    if paid != body.withdrawals().as_slice() {
        return Err(broken(format!(
            "batch {} pays {paid:?} for {:?}",
            body.sequence,
            body.withdrawals()
        )));
    }
    Ok(())
}

/// Under fairness every accepted operation is carried out: one that is not must be one that can't be, as the ledger stands.
/// Gives those that could be and are not.
pub fn due(
    accepted: &BTreeMap<OperationId, Operation>,
    done: &BTreeSet<OperationId>,
    ledger: &Ledger,
    vault: &VaultId,
    next: SequenceNumber,
) -> Vec<OperationId> {
    accepted
        .iter()
        .filter(|(id, _)| !done.contains(id))
        .filter(|(_, operation)| ledger.check(operation, vault, next).is_ok())
        .map(|(id, _)| *id)
        .collect()
}
