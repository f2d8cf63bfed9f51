//! The ledger itself, and the replay of operations on it.
//!
//! Each operation is planned first, against the ledger as it is, and only then written: a refused one leaves
//! no trace. A batch is all or nothing.

mod stored;
mod whole;

use std::collections::HashMap;

use bitcoin::Amount;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    AccountIndex, AccountKey, CAPACITY, CHUNK_ROWS, ChunkWitness, Digest, Field, LeafUpdate,
    MerklePath, Operation, SequenceNumber, Signature, Totals, Transition, Tree, VaultId,
    poseidon::Native,
    script::ScriptError,
    statement::{self, Kind, Row, commitment_start, split_chunks},
    tree::MIN_HASHES_A_CORE,
};

pub use stored::{StoredAccount, StoredError};
pub use whole::Replayed;

/// One account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Who may spend; never changes.
    pub key: AccountKey,
    /// Sats.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub balance: Amount,
    /// Operations signed so far, and so the next one's nonce.
    pub nonce: u64,
}

impl Account {
    /// The account's leaf.
    pub fn leaf(&self) -> Digest {
        let point = self.key.point();
        let balance = Field::from(self.balance.to_sat());
        Digest(statement::leaf(
            &mut Native,
            [point.x, point.y],
            balance,
            Field::from(self.nonce),
        ))
    }
}

/// What a state digest opens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Root of the accounts' tree.
    pub root: Digest,
    /// Sum of all balances, in sats.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub supply: Amount,
}

impl State {
    /// Poseidon of root and supply: what a batch's OP_RETURN holds.
    pub fn digest(&self) -> Digest {
        let supply = Field::from(self.supply.to_sat());
        Digest(statement::state_digest(&mut Native, self.root.0, supply))
    }
}

/// Why an operation cannot be applied. Nothing has changed when one is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// No account has the sender's index.
    #[error("account {0} does not exist")]
    UnknownSender(AccountIndex),
    /// The nonce has been used.
    #[error("stale nonce {found}: the account's next is {expected}")]
    StaleNonce {
        /// The account's next nonce.
        expected: u64,
        /// The operation's.
        found: u64,
    },
    /// Earlier operations of the sender are missing.
    #[error("future nonce {found}: the account's next is {expected}")]
    FutureNonce {
        /// The account's next nonce.
        expected: u64,
        /// The operation's.
        found: u64,
    },
    /// The sender cannot pay amount and fee.
    #[error("insufficient balance: {balance} sat, {needed} needed")]
    InsufficientBalance {
        /// Sats the sender has.
        balance: u64,
        /// Sats the operation takes.
        needed: u64,
    },
    /// The batch comes after the operation's last valid one.
    #[error("expired: valid up to batch {last_valid}, this is batch {sequence}")]
    Expired {
        /// The operation's last batch.
        last_valid: SequenceNumber,
        /// The batch that would hold it.
        sequence: SequenceNumber,
    },
    /// Not signed by the sender's key, or signed for other content or another vault.
    #[error("the signature is not the sender's for this operation and vault")]
    BadSignature,
    /// A sum does not fit into 64 bits.
    #[error("an amount overflows")]
    Overflow,
    /// The withdrawal's output would be dust.
    #[error("a withdrawal to this script needs at least {} sat", minimum.to_sat())]
    Dust {
        /// Smallest output for the script.
        minimum: Amount,
    },
    /// The withdrawal's script is not a standard one.
    #[error("the script is not a standard one (p2pkh, p2sh, p2wpkh, p2wsh or p2tr)")]
    NonStandardScript,
    /// All 2^24 accounts are in use.
    #[error("the ledger is full")]
    LedgerFull,
    /// Nothing to move.
    #[error("the amount is zero")]
    ZeroAmount,
}

impl From<ScriptError> for OperationError {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::NonStandard => Self::NonStandardScript,
            ScriptError::Dust { minimum } => Self::Dust { minimum },
        }
    }
}

/// Why accounts do not make a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// More than 2^24.
    #[error("more accounts than the tree has leaves")]
    TooMany,
    /// Two accounts with one key.
    #[error("account {0} repeats an earlier account's key")]
    RepeatedKey(AccountIndex),
    /// The balances do not add up to 64 bits.
    #[error("the balances overflow")]
    Overflow,
}

/// The transition is not the last one applied to this ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger is at digest {at}, not at the transition's end {end}")]
pub struct RevertError {
    /// The ledger's digest.
    pub at: Digest,
    /// The transition's digest after.
    pub end: Digest,
}

/// One leaf's change, before it is written.
#[derive(Clone, Copy)]
struct Step {
    row: Row,
    signature: Option<Signature>,
    index: AccountIndex,
    before: Option<Account>,
    after: Account,
}

/// What an operation will do.
struct Plan {
    steps: [Option<Step>; statement::MAX_ROWS_PER_OPERATION],
    supply: u64,
}

/// Accounts, their tree, and the supply.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    tree: Tree,
    accounts: Vec<Account>,
    by_key: HashMap<AccountKey, AccountIndex>,
    supply: u64,
}

impl Ledger {
    /// An empty ledger: the state of a vault at genesis.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty ledger on a tree of so many levels, for simulations: see [`Tree::shallow`].
    pub fn shallow(height: usize) -> Self {
        Self {
            tree: Tree::shallow(height),
            ..Self::default()
        }
    }

    /// A ledger with these accounts at indices 0, 1, ... Hashes on all cores.
    ///
    /// # Errors
    /// [`LedgerError`] if they cannot be one ledger's accounts.
    pub fn from_accounts(accounts: Vec<Account>) -> Result<Self, LedgerError> {
        if accounts.len() > CAPACITY {
            return Err(LedgerError::TooMany);
        }
        let mut by_key = HashMap::with_capacity(accounts.len());
        let mut supply = 0u64;
        for (index, account) in (0u32..).map(AccountIndex).zip(&accounts) {
            if by_key.insert(account.key, index).is_some() {
                return Err(LedgerError::RepeatedKey(index));
            }
            supply = supply
                .checked_add(account.balance.to_sat())
                .ok_or(LedgerError::Overflow)?;
        }
        let tree = Tree::from_leaves(accounts.par_iter().map(Account::leaf).collect());
        Ok(Self {
            tree,
            accounts,
            by_key,
            supply,
        })
    }

    /// Root and supply.
    pub fn state(&self) -> State {
        State {
            root: self.tree.root(),
            supply: Amount::from_sat(self.supply),
        }
    }

    /// Digest of the state.
    pub fn digest(&self) -> Digest {
        self.state().digest()
    }

    /// Sum of all balances.
    pub fn supply(&self) -> Amount {
        Amount::from_sat(self.supply)
    }

    /// All accounts, by index.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The account at `index`.
    pub fn account(&self, index: AccountIndex) -> Option<&Account> {
        self.accounts.get(usize::try_from(index.0).ok()?)
    }

    /// The account with `key`, and its index.
    pub fn account_by_key(&self, key: &AccountKey) -> Option<(AccountIndex, &Account)> {
        let index = *self.by_key.get(key)?;
        Some((index, self.account(index)?))
    }

    /// The siblings of an account's leaf.
    pub fn path(&self, index: AccountIndex) -> Option<MerklePath> {
        self.account(index).map(|_| self.tree.path(index))
    }

    /// Whether `operation` could be applied now, in the batch with this sequence number.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn check(
        &self,
        operation: &Operation,
        vault: &VaultId,
        sequence: SequenceNumber,
    ) -> Result<(), OperationError> {
        self.plan(operation, vault, sequence).map(drop)
    }

    /// Applies one operation in the batch with this sequence number.
    ///
    /// # Errors
    /// [`OperationError`] says why not; the ledger is then as before.
    pub fn apply(
        &mut self,
        operation: &Operation,
        vault: &VaultId,
        sequence: SequenceNumber,
    ) -> Result<Vec<LeafUpdate>, OperationError> {
        let plan = self.plan(operation, vault, sequence)?;
        Ok(self.write(plan))
    }

    /// Applies a batch's operations in order, all or none.
    ///
    /// # Errors
    /// The position of the first operation that cannot be applied, and why; the ledger is then as before.
    pub fn apply_batch(
        &mut self,
        operations: &[Operation],
        vault: &VaultId,
        sequence: SequenceNumber,
    ) -> Result<Transition, (usize, OperationError)> {
        let mut transition = Transition {
            before: self.state(),
            after: self.state(),
            // At most 2^24.
            accounts_before: u32::try_from(self.accounts.len()).unwrap_or(u32::MAX),
            chunks: Vec::new(),
            totals: Totals::default(),
        };
        let start = commitment_start(vault);
        let mut position = 0;
        for operations in split_chunks(operations) {
            let before = self.state();
            let mut updates = Vec::with_capacity(CHUNK_ROWS);
            for operation in operations {
                let applied = self.apply(operation, vault, sequence).and_then(|rows| {
                    updates.extend(rows);
                    add_up(&mut transition.totals, operation)
                });
                if let Err(error) = applied {
                    self.undo(&transition, &updates);
                    return Err((position, error));
                }
                position += 1;
            }
            updates.resize_with(CHUNK_ROWS, || self.padding());
            transition.chunks.push(ChunkWitness {
                start,
                before,
                after: self.state(),
                updates,
            });
        }
        transition.after = self.state();
        Ok(transition)
    }

    /// A chunk that changes nothing: what the circuit looks like, with no operation in it.
    pub fn padding_chunk(&self, vault: &VaultId) -> ChunkWitness {
        let state = self.state();
        ChunkWitness {
            start: commitment_start(vault),
            before: state,
            after: state,
            updates: std::iter::repeat_with(|| self.padding())
                .take(CHUNK_ROWS)
                .collect(),
        }
    }

    /// Undoes the transition that was applied last.
    ///
    /// # Errors
    /// [`RevertError`] if the ledger is not in the transition's state after; it is then as before.
    pub fn revert(&mut self, transition: &Transition) -> Result<(), RevertError> {
        let (at, end) = (self.digest(), transition.digest_after());
        if at != end {
            return Err(RevertError { at, end });
        }
        self.undo(transition, &[]);
        Ok(())
    }

    fn plan(
        &self,
        operation: &Operation,
        vault: &VaultId,
        sequence: SequenceNumber,
    ) -> Result<Plan, OperationError> {
        operation.check_form()?;
        let (first, second) = Row::of(operation, vault);
        match operation {
            Operation::Deposit { account, .. } => {
                let (credit, supply) = self.plan_credit(first, account, self.supply, None)?;
                Ok(Plan {
                    steps: [Some(credit), None],
                    supply,
                })
            }
            Operation::Transfer {
                sender,
                last_valid,
                signature,
                recipient,
                ..
            } => {
                let (debit, supply) =
                    self.plan_debit(first, *sender, *last_valid, signature, sequence)?;
                let second = second.unwrap_or_else(Row::noop);
                let (credit, supply) = self.plan_credit(second, recipient, supply, Some(&debit))?;
                Ok(Plan {
                    steps: [Some(debit), Some(credit)],
                    supply,
                })
            }
            Operation::Withdraw {
                sender,
                last_valid,
                signature,
                ..
            } => {
                let (debit, supply) =
                    self.plan_debit(first, *sender, *last_valid, signature, sequence)?;
                Ok(Plan {
                    steps: [Some(debit), None],
                    supply,
                })
            }
        }
    }

    fn plan_debit(
        &self,
        row: Row,
        sender: AccountIndex,
        last_valid: SequenceNumber,
        signature: &Signature,
        sequence: SequenceNumber,
    ) -> Result<(Step, u64), OperationError> {
        let before = *self
            .account(sender)
            .ok_or(OperationError::UnknownSender(sender))?;
        if sequence > last_valid {
            return Err(OperationError::Expired {
                last_valid,
                sequence,
            });
        }
        let (expected, found) = (before.nonce, row.nonce);
        if found < expected {
            return Err(OperationError::StaleNonce { expected, found });
        }
        if found > expected {
            return Err(OperationError::FutureNonce { expected, found });
        }
        let (mut after, supply) = update(&row, before, self.supply)?;
        after.nonce = expected.checked_add(1).ok_or(OperationError::Overflow)?;
        if !before.key.verify(&Digest(row.message()), signature) {
            return Err(OperationError::BadSignature);
        }
        let step = Step {
            row,
            signature: Some(*signature),
            index: sender,
            before: Some(before),
            after,
        };
        Ok((step, supply))
    }

    /// `earlier` is the step that comes before this one and is not yet in the ledger.
    fn plan_credit(
        &self,
        row: Row,
        key: &AccountKey,
        supply: u64,
        earlier: Option<&Step>,
    ) -> Result<(Step, u64), OperationError> {
        let (index, before) = match (self.account_by_key(key), earlier) {
            (Some((index, _)), Some(earlier)) if earlier.index == index => {
                (index, Some(earlier.after))
            }
            (Some((index, account)), _) => (index, Some(*account)),
            (None, _) if self.accounts.len() >= self.tree.capacity() => {
                return Err(OperationError::LedgerFull);
            }
            (None, _) => (
                AccountIndex(
                    u32::try_from(self.accounts.len()).map_err(|_| OperationError::LedgerFull)?,
                ),
                None,
            ),
        };
        let account = before.unwrap_or(Account {
            key: *key,
            balance: Amount::ZERO,
            nonce: 0,
        });
        let (after, supply) = update(&row, account, supply)?;
        Ok((
            Step {
                row,
                signature: None,
                index,
                before,
                after,
            },
            supply,
        ))
    }

    fn write(&mut self, plan: Plan) -> Vec<LeafUpdate> {
        self.supply = plan.supply;
        let steps = plan.steps.into_iter().flatten();
        steps
            .map(
                |Step {
                     row,
                     signature,
                     index,
                     before,
                     after,
                 }| {
                    let path = self.tree.path(index);
                    let written = self.tree.set(index, after.leaf());
                    debug_assert!(written, "plans name used leaves or the first unused one");
                    self.put(index, after);
                    LeafUpdate {
                        row,
                        signature,
                        index,
                        before,
                        after: Some(after),
                        path,
                    }
                },
            )
            .collect()
    }

    /// A row that changes nothing, on leaf 0.
    fn padding(&self) -> LeafUpdate {
        let index = AccountIndex(0);
        let account = self.account(index).copied();
        LeafUpdate {
            row: Row {
                kind: Kind::Noop,
                ..Row::noop()
            },
            signature: None,
            index,
            before: account,
            after: account,
            path: self.tree.path(index),
        }
    }

    /// Writes an account, at a used index or the first unused one, and leaves the tree alone.
    fn put(&mut self, index: AccountIndex, after: Account) {
        match self.accounts.get_mut(index.0 as usize) {
            Some(account) => *account = after,
            None => {
                self.accounts.push(after);
                self.by_key.insert(after.key, index);
            }
        }
    }

    /// Puts back what the transition's chunks and some more updates changed.
    fn undo(&mut self, transition: &Transition, more: &[LeafUpdate]) {
        let len = transition.accounts_before as usize;
        // The first update of a leaf says what it was.
        let mut first: HashMap<AccountIndex, Account> = HashMap::new();
        for update in transition.updates().chain(more) {
            if let Some(before) = update.before {
                first.entry(update.index).or_insert(before);
            }
        }
        let first: Vec<(AccountIndex, Account)> = first.into_iter().collect();
        self.put_back(len, &first, transition.before.supply);
        self.tree.restore(len, leaves(&first));
    }

    /// Back to the first `len` accounts, with some of them replaced, and to a supply; leaves the tree alone.
    fn put_back(&mut self, len: usize, replaced: &[(AccountIndex, Account)], supply: Amount) {
        for account in self.accounts.drain(len.min(self.accounts.len())..) {
            self.by_key.remove(&account.key);
        }
        for (index, before) in replaced {
            if let Some(account) = self.accounts.get_mut(index.0 as usize) {
                *account = *before;
            }
        }
        self.supply = supply.to_sat();
    }
}

/// The leaves of some accounts, hashed on all cores where there are many.
fn leaves(accounts: &[(AccountIndex, Account)]) -> Vec<(AccountIndex, Digest)> {
    accounts
        .par_iter()
        .with_min_len(MIN_HASHES_A_CORE)
        .map(|(index, account)| (*index, account.leaf()))
        .collect()
}

/// Balance and supply after a row.
fn update(row: &Row, account: Account, supply: u64) -> Result<(Account, u64), OperationError> {
    let effect = row.kind.effect();
    let balance = effect
        .balance
        .apply(account.balance.to_sat(), row.amount, row.fee)?;
    let supply = effect.supply.apply(supply, row.amount, row.fee)?;
    Ok((
        Account {
            balance: Amount::from_sat(balance),
            ..account
        },
        supply,
    ))
}

fn add_up(totals: &mut Totals, operation: &Operation) -> Result<(), OperationError> {
    let sum = match operation {
        Operation::Deposit { .. } => &mut totals.deposited,
        Operation::Transfer { .. } => &mut totals.transferred,
        Operation::Withdraw { .. } => &mut totals.withdrawn,
    };
    *sum = sum
        .checked_add(operation.amount())
        .ok_or(OperationError::Overflow)?;
    totals.fees = totals
        .fees
        .checked_add(operation.fee())
        .ok_or(OperationError::Overflow)?;
    Ok(())
}
