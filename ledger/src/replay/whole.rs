//! Replay of batches whose proofs nobody makes here: no paths, and each leaf and node that a batch touches is hashed
//! once, on all cores. Every rule of [`Ledger::apply`] is checked as there.

use std::collections::BTreeMap;

use super::{Account, Ledger, OperationError, RevertError, State, add_up, leaves};
use crate::{AccountIndex, Operation, SequenceNumber, Totals, VaultId};

/// What a replayed batch has changed: enough to take it back, and to store it.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The state before.
    pub before: State,
    /// The state after.
    pub after: State,
    accounts_before: usize,
    /// Accounts that were there before, as they were.
    replaced: Vec<(AccountIndex, Account)>,
    changed: Vec<(AccountIndex, Account)>,
}

impl Replayed {
    /// The accounts that it has changed or added, by index, as they are after it.
    pub fn changed(&self) -> &[(AccountIndex, Account)] {
        &self.changed
    }

    /// How many accounts there are after it.
    pub fn accounts(&self) -> usize {
        let last = self.changed.last();
        let used = last.map_or(0, |(index, _)| (index.0 as usize).saturating_add(1));
        used.max(self.accounts_before)
    }
}

impl Ledger {
    /// Applies a batch's operations in order, all or none, to the same state as [`Ledger::apply_batch`] and with the same
    /// errors.
    ///
    /// # Errors
    /// The position of the first operation that cannot be applied, and why; the ledger is then as before.
    pub fn replay(
        &mut self,
        operations: &[Operation],
        vault: &VaultId,
        sequence: SequenceNumber,
    ) -> Result<Replayed, (usize, OperationError)> {
        let (before, accounts_before) = (self.state(), self.accounts.len());
        // What each touched account was before the batch; none if it is new.
        let mut touched: BTreeMap<AccountIndex, Option<Account>> = BTreeMap::new();
        let mut totals = Totals::default();
        for (position, operation) in operations.iter().enumerate() {
            let planned = self.plan(operation, vault, sequence);
            match planned.and_then(|plan| add_up(&mut totals, operation).map(|()| plan)) {
                Ok(plan) => {
                    self.supply = plan.supply;
                    for step in plan.steps.into_iter().flatten() {
                        touched.entry(step.index).or_insert(step.before);
                        self.put(step.index, step.after);
                    }
                }
                Err(error) => {
                    let replaced = replaced(&touched);
                    self.put_back(accounts_before, &replaced, before.supply);
                    return Err((position, error));
                }
            }
        }
        let changed: Vec<(AccountIndex, Account)> = touched
            .keys()
            .filter_map(|index| Some((*index, *self.account(*index)?)))
            .collect();
        self.tree.restore(self.accounts.len(), leaves(&changed));
        Ok(Replayed {
            before,
            after: self.state(),
            accounts_before,
            replaced: replaced(&touched),
            changed,
        })
    }

    /// Undoes the batch that was replayed last.
    ///
    /// # Errors
    /// [`RevertError`] if the ledger is not in the batch's state after; it is then as before.
    pub fn take_back(&mut self, batch: &Replayed) -> Result<(), RevertError> {
        let (at, end) = (self.digest(), batch.after.digest());
        if at != end {
            return Err(RevertError { at, end });
        }
        self.put_back(batch.accounts_before, &batch.replaced, batch.before.supply);
        self.tree
            .restore(batch.accounts_before, leaves(&batch.replaced));
        Ok(())
    }
}

fn replaced(touched: &BTreeMap<AccountIndex, Option<Account>>) -> Vec<(AccountIndex, Account)> {
    touched
        .iter()
        .filter_map(|(index, before)| Some((*index, (*before)?)))
        .collect()
}
