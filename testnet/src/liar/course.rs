//! What operations would do to a ledger that takes anything: no rule of form, expiry, fee or placement is
//! asked. Where the circuit does not ask either, a valid proof can be made of it, and it is the operators' other
//! rules that have to say no.

use bitcoin::Amount;
use ledger::{
    Account, AccountIndex, AccountKey, CHUNK_ROWS, ChunkWitness, Digest, LeafUpdate, Operation,
    State, Tree, VaultId,
    statement::{Row, commitment_start},
};

/// Where a credited account's leaf goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Where the ledger's rule says: the key's own leaf, or the next free one.
    #[default]
    Lawful,
    /// A new key's leaf leaves one free before it.
    Gap,
    /// A key that has a leaf gets another one.
    SecondLeaf,
}

/// The way from one state to another.
#[derive(Clone, Debug)]
pub struct Course {
    /// Before the first chunk, between chunks, after the last.
    pub digests: Vec<Digest>,
    /// What proofs are made of.
    pub chunks: Vec<ChunkWitness>,
    /// The supply at the end.
    pub supply: Amount,
}

/// The accounts on the way.
struct Leaves {
    accounts: Vec<Option<Account>>,
    supply: u64,
    placement: Placement,
}

/// Runs `operations` on `accounts`.
pub fn run(
    accounts: &[Account],
    operations: &[Operation],
    vault: &VaultId,
    placement: Placement,
) -> Course {
    let mut leaves = Leaves {
        accounts: accounts.iter().copied().map(Some).collect(),
        supply: accounts
            .iter()
            .fold(0, |sum, account| account.balance.to_sat().wrapping_add(sum)),
        placement,
    };
    let mut course = Course {
        digests: vec![leaves.state().digest()],
        chunks: Vec::new(),
        supply: Amount::ZERO,
    };
    for operations in chunks(operations) {
        let before = leaves.state();
        let mut updates: Vec<LeafUpdate> = operations
            .iter()
            .flat_map(|operation| leaves.apply(operation, vault))
            .collect();
        updates.resize_with(CHUNK_ROWS, || leaves.padding());
        let after = leaves.state();
        course.digests.push(after.digest());
        course.chunks.push(ChunkWitness {
            start: commitment_start(vault),
            before,
            after,
            updates,
        });
    }
    course.supply = Amount::from_sat(leaves.supply);
    course
}

/// As many operations in a chunk as there is room for; an operation's rows stay together.
fn chunks(operations: &[Operation]) -> Vec<&[Operation]> {
    let mut chunks = Vec::new();
    let mut rest = operations;
    while !rest.is_empty() {
        let mut rows = 0_usize;
        let fit = rest
            .iter()
            .take_while(|operation| {
                rows = rows.saturating_add(operation.row_count());
                rows <= CHUNK_ROWS
            })
            .count();
        let (chunk, more) = rest.split_at(fit.max(1));
        chunks.push(chunk);
        rest = more;
    }
    chunks
}

impl Leaves {
    fn tree(&self) -> Tree {
        let leaf = |account: &Option<Account>| account.map(|account| account.leaf());
        Tree::from_leaves(
            self.accounts
                .iter()
                .map(|account| leaf(account).unwrap_or_default())
                .collect(),
        )
    }

    fn state(&self) -> State {
        State {
            root: self.tree().root(),
            supply: Amount::from_sat(self.supply),
        }
    }

    fn account(&self, index: AccountIndex) -> Option<Account> {
        let index = usize::try_from(index.0).ok()?;
        self.accounts.get(index).copied().flatten()
    }

    fn place(&self, key: &AccountKey) -> AccountIndex {
        let own = self
            .accounts
            .iter()
            .position(|account| account.is_some_and(|account| account.key == *key));
        let free = self.accounts.len();
        let place = match (self.placement, own) {
            (Placement::Lawful | Placement::Gap, Some(own)) => own,
            (Placement::Gap, None) => free.saturating_add(1),
            (Placement::SecondLeaf, Some(_)) | (_, None) => free,
        };
        AccountIndex(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn apply(&mut self, operation: &Operation, vault: &VaultId) -> Vec<LeafUpdate> {
        let (first, second) = Row::of(operation, vault);
        let key = match operation {
            Operation::Deposit { account, .. } => Some(account),
            Operation::Transfer { recipient, .. } => Some(recipient),
            Operation::Withdraw { .. } => None,
        };
        [Some(first), second]
            .into_iter()
            .flatten()
            .filter_map(|row| self.update(row, operation, key))
            .collect()
    }

    /// Sums that leave their range stay at its end: there is no proof of such a row anyway.
    fn update(
        &mut self,
        row: Row,
        operation: &Operation,
        key: Option<&AccountKey>,
    ) -> Option<LeafUpdate> {
        let effect = row.kind.effect();
        let (index, signature) = if effect.signed {
            (row.sender, operation.signature().copied())
        } else {
            (self.place(key?), None)
        };
        let before = self.account(index);
        let account = match before {
            Some(account) => account,
            None => Account {
                key: *key.filter(|_| !effect.signed)?,
                balance: Amount::ZERO,
                nonce: 0,
            },
        };
        let apply = |change: ledger::statement::Change, value| {
            change.apply(value, row.amount, row.fee).unwrap_or_default()
        };
        let after = Account {
            balance: Amount::from_sat(apply(effect.balance, account.balance.to_sat())),
            nonce: account.nonce.saturating_add(u64::from(effect.signed)),
            ..account
        };
        let path = self.tree().path(index);
        self.supply = apply(effect.supply, self.supply);
        let place = usize::try_from(index.0).ok()?;
        if self.accounts.len() <= place {
            self.accounts.resize(place.saturating_add(1), None);
        }
        *self.accounts.get_mut(place)? = Some(after);
        Some(LeafUpdate {
            row,
            signature,
            index,
            before,
            after: Some(after),
            path,
        })
    }

    /// A row that changes nothing, on leaf 0.
    fn padding(&self) -> LeafUpdate {
        let index = AccountIndex(0);
        let account = self.account(index);
        LeafUpdate {
            row: Row::noop(),
            signature: None,
            index,
            before: account,
            after: account,
            path: self.tree().path(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{OutPoint, hashes::Hash as _};
    use ledger::{AccountSecret, Ledger, SequenceNumber, TransferRequest, WithdrawRequest};
    use rand::rngs::OsRng;

    use super::*;

    #[test]
    fn lawful_operations_take_the_ledgers_course() {
        let vault = VaultId([7; 32]);
        let (payer, payee) = (
            AccountSecret::generate(&mut OsRng),
            AccountSecret::generate(&mut OsRng),
        );
        let deposit = |account, vout| Operation::Deposit {
            account,
            amount: Amount::from_sat(100_000),
            outpoint: OutPoint::new(bitcoin::Txid::all_zeros(), vout),
        };
        let mut ledger = Ledger::new();
        ledger
            .apply_batch(&[deposit(payer.public(), 0)], &vault, SequenceNumber(1))
            .unwrap();
        let transfer = TransferRequest {
            sender: AccountIndex(0),
            nonce: 0,
            amount: Amount::from_sat(500),
            fee: Amount::from_sat(100),
            recipient: payee.public(),
            last_valid: SequenceNumber(9),
        };
        let withdraw = |nonce| WithdrawRequest {
            sender: AccountIndex(0),
            nonce,
            amount: Amount::from_sat(1_000),
            fee: Amount::from_sat(1_500),
            script_pubkey: bitcoin::ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::all_zeros()),
            last_valid: SequenceNumber(9),
        };
        // More rows than one chunk has, and a transfer that does not fit into the first.
        let mut operations: Vec<Operation> = (0..7)
            .map(|vout| deposit(AccountSecret::generate(&mut OsRng).public(), vout))
            .collect();
        operations.push(transfer.sign(&payer, &vault));
        operations.extend((1..3).map(|nonce| withdraw(nonce).sign(&payer, &vault)));
        let accounts = ledger.accounts().to_vec();
        let course = run(&accounts, &operations, &vault, Placement::Lawful);
        let transition = ledger
            .apply_batch(&operations, &vault, SequenceNumber(2))
            .unwrap();
        assert_eq!(course.digests, transition.digests());
        assert_eq!(course.chunks, transition.chunks);
        assert_eq!(course.supply, transition.after.supply);
        for placement in [Placement::Gap, Placement::SecondLeaf] {
            let credit = [deposit(payer.public(), 8), deposit(payee.public(), 9)];
            let lawful = run(&accounts, &credit, &vault, Placement::Lawful);
            let other = run(&accounts, &credit, &vault, placement);
            assert_ne!(lawful.digests, other.digests, "{placement:?}");
            assert_eq!(lawful.supply, other.supply);
        }
    }
}
