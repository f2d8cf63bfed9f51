//! Transactions that a reorganisation has taken out of the best chain: which of them may come back, and which can't,
//! because the chain now spends otherwise what they spend.
//!
//! ```text
//! block leaves --> displaced --in a block again------------------------------> forgotten
//!                      '-------a block spends one of its inputs otherwise----> lost, with all that spend its outputs
//! ```
//!
//! Only what the own node has shown is known: a node that has not seen the block that left knows nothing of it, and says
//! of no transaction that it is lost.

use std::collections::{BTreeMap, HashMap, HashSet};

use bitcoin::{Block, OutPoint, Txid};
use serde::{Deserialize, Serialize};
use storage::{Changes, Direction, ReadError, Store, Table};

/// Displaced transactions.
pub const DISPLACED: Table<Txid, Displaced> = Table::new("displaced", 1);
/// Most displaced transactions that are remembered: dozens of full blocks. Those beyond are never called lost.
const MAX_DISPLACED: usize = 200_000;
/// Blocks after which a displaced transaction is forgotten: a week.
const REMEMBERED_BLOCKS: u32 = 1_008;

/// A transaction that was in a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Displaced {
    inputs: Vec<OutPoint>,
    /// Height of the block that it was in.
    height: u32,
    lost: Option<Lost>,
}

/// Why a transaction can't be confirmed any more, as the chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// What spends an input of it, or of one that it builds on.
    pub by: Txid,
    /// Height of the block with that.
    pub height: u32,
}

/// All displaced transactions.
#[derive(Debug, Default)]
pub struct DisplacedSet {
    rows: BTreeMap<Txid, Displaced>,
    spent: HashMap<OutPoint, HashSet<Txid>>,
}

impl DisplacedSet {
    /// Reads what is stored.
    ///
    /// # Errors
    /// A damaged database.
    pub fn load(store: &Store) -> Result<Self, ReadError> {
        let mut set = Self::default();
        for row in store.iter(&DISPLACED, .., Direction::Forward, MAX_DISPLACED)? {
            let (txid, row) = row?;
            set.insert(txid, row);
        }
        Ok(set)
    }

    /// Whether, and since when, a transaction is lost.
    pub fn lost(&self, txid: &Txid) -> Option<Lost> {
        self.rows.get(txid)?.lost
    }

    /// All that are lost.
    pub fn all_lost(&self) -> impl Iterator<Item = (Txid, Lost)> {
        self.rows
            .iter()
            .filter_map(|(txid, row)| Some((*txid, row.lost?)))
    }

    /// A block has left the chain: what it held is displaced, and what it had made lost may come back.
    pub fn leave(&mut self, height: u32, block: Option<&Block>, changes: &mut Changes) {
        for (txid, row) in &mut self.rows {
            if row.lost.is_some_and(|lost| lost.height >= height) {
                row.lost = None;
                changes.put(&DISPLACED, txid, row);
            }
        }
        let held = block.into_iter().flat_map(|block| &block.txdata);
        for transaction in held.filter(|transaction| !transaction.is_coinbase()) {
            if self.rows.len() >= MAX_DISPLACED {
                tracing::warn!(height, "too many displaced transactions to remember all");
                return;
            }
            let row = Displaced {
                inputs: transaction
                    .input
                    .iter()
                    .map(|input| input.previous_output)
                    .collect(),
                height,
                lost: None,
            };
            let txid = transaction.compute_txid();
            changes.put(&DISPLACED, &txid, &row);
            self.insert(txid, row);
        }
    }

    /// A block has joined the chain.
    pub fn join(&mut self, height: u32, block: &Block, changes: &mut Changes) {
        if self.rows.is_empty() {
            return;
        }
        let mut lost = HashMap::new();
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            self.forget(&txid, changes);
            for input in &transaction.input {
                for other in self.spent.get(&input.previous_output).into_iter().flatten() {
                    lost.entry(*other).or_insert(Lost { by: txid, height });
                }
            }
        }
        self.lose(lost, changes);
        let old: Vec<Txid> = self
            .rows
            .iter()
            .filter(|(_, row)| row.height.saturating_add(REMEMBERED_BLOCKS) < height)
            .map(|(txid, _)| *txid)
            .collect();
        for txid in old {
            self.forget(&txid, changes);
        }
    }

    /// Marks what is lost, and then what spends its outputs, and so on.
    fn lose(&mut self, mut found: HashMap<Txid, Lost>, changes: &mut Changes) {
        while !found.is_empty() {
            for (txid, lost) in &found {
                // The first spend counts; a later one of another input must not begin the wait again.
                if let Some(row) = self.rows.get_mut(txid).filter(|row| row.lost.is_none()) {
                    row.lost = Some(*lost);
                    changes.put(&DISPLACED, txid, row);
                }
            }
            let parents = std::mem::take(&mut found);
            for (txid, row) in self.rows.iter().filter(|(_, row)| row.lost.is_none()) {
                let cause = row.inputs.iter().find_map(|input| parents.get(&input.txid));
                if let Some(lost) = cause {
                    found.insert(*txid, *lost);
                }
            }
        }
    }

    fn insert(&mut self, txid: Txid, row: Displaced) {
        for input in &row.inputs {
            self.spent.entry(*input).or_default().insert(txid);
        }
        self.rows.insert(txid, row);
    }

    fn forget(&mut self, txid: &Txid, changes: &mut Changes) {
        let Some(row) = self.rows.remove(txid) else {
            return;
        };
        changes.delete(&DISPLACED, txid);
        for input in &row.inputs {
            if let Some(others) = self.spent.get_mut(input) {
                others.remove(txid);
                if others.is_empty() {
                    self.spent.remove(input);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{
        Amount, Network, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
        absolute::LockTime, hashes::Hash as _, transaction::Version,
    };

    use super::*;

    fn spend(inputs: &[OutPoint], sats: u64) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: inputs
                .iter()
                .map(|previous_output| TxIn {
                    previous_output: *previous_output,
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::MAX,
                    witness: Witness::new(),
                })
                .collect(),
            output: vec![TxOut {
                value: Amount::from_sat(sats),
                script_pubkey: ScriptBuf::new(),
            }],
        }
    }

    fn coin(tag: u8) -> OutPoint {
        OutPoint::new(Txid::from_byte_array([tag; 32]), 0)
    }

    fn output(transaction: &Transaction) -> OutPoint {
        OutPoint::new(transaction.compute_txid(), 0)
    }

    fn block(transactions: &[&Transaction]) -> Block {
        let mut block = bitcoin::constants::genesis_block(Network::Regtest);
        block.txdata.extend(
            transactions
                .iter()
                .map(|transaction| (*transaction).clone()),
        );
        block
    }

    #[test]
    fn what_is_in_a_block_again_is_not_displaced() {
        let (payment, changes) = (spend(&[coin(1)], 10), &mut Changes::new());
        let mut set = DisplacedSet::default();
        set.leave(7, Some(&block(&[&payment])), changes);
        assert_eq!(set.lost(&payment.compute_txid()), None);
        set.join(7, &block(&[]), changes);
        set.join(8, &block(&[&payment]), changes);
        set.join(9, &block(&[]), changes);
        assert_eq!(set.lost(&payment.compute_txid()), None);
        assert!(set.rows.is_empty() && set.spent.is_empty());
    }

    #[test]
    fn a_double_spend_loses_the_payment_and_all_that_builds_on_it_and_no_other() {
        let changes = &mut Changes::new();
        let parent = spend(&[coin(1), coin(2)], 10);
        let child = spend(&[coin(3), output(&parent)], 9);
        let grandchild = spend(&[output(&child)], 8);
        let other = spend(&[coin(4)], 7);
        let mut set = DisplacedSet::default();
        set.leave(8, Some(&block(&[&grandchild])), changes);
        set.leave(7, Some(&block(&[&parent, &child, &other])), changes);
        let theft = spend(&[coin(2)], 9);
        set.join(7, &block(&[&theft]), changes);
        let lost = Some(Lost {
            by: theft.compute_txid(),
            height: 7,
        });
        for gone in [&parent, &child, &grandchild] {
            assert_eq!(set.lost(&gone.compute_txid()), lost);
        }
        assert_eq!(set.lost(&other.compute_txid()), None);
        assert_eq!(set.all_lost().count(), 3);

        // The block with the double spend leaves the chain as well.
        set.leave(7, Some(&block(&[&theft])), changes);
        assert_eq!(set.all_lost().count(), 0);
        set.join(7, &block(&[&parent]), changes);
        assert_eq!(
            set.lost(&theft.compute_txid()).map(|lost| lost.height),
            Some(7)
        );
        assert_eq!(set.lost(&grandchild.compute_txid()), None);
    }

    #[test]
    fn it_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let schema = storage::Schema {
            kind: "test",
            network: "test",
            columns: &[DISPLACED.name()],
        };
        let store = Store::open(folder.path().join("db"), &schema).unwrap();
        let (payment, theft) = (spend(&[coin(1)], 10), spend(&[coin(1)], 9));
        let mut set = DisplacedSet::default();
        let mut changes = Changes::new();
        set.leave(7, Some(&block(&[&payment])), &mut changes);
        store.commit(changes).unwrap();
        let mut set = DisplacedSet::load(&store).unwrap();
        let mut changes = Changes::new();
        set.join(7, &block(&[&theft]), &mut changes);
        store.commit(changes).unwrap();
        let set = DisplacedSet::load(&store).unwrap();
        assert!(set.lost(&payment.compute_txid()).is_some());
    }
}
