//! The vault's history with what this operator derives from it: what the batches of the last blocks add up to (S5, S6).

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{Amount, Txid};
use ledger::SequenceNumber;
use node::history::{self, History, HistoryError};
use protocol::{
    batch::{Body, Candidate},
    vault::Vault,
};
use storage::Store;

use crate::verify;

/// What the confirmed batches of a window add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// Miner fees less users' fees, in sats.
    pub net_fees: i128,
    /// Paid out.
    pub withdrawn: Amount,
    /// Number of payouts.
    pub withdrawals: u64,
}

impl Recent {
    fn of(candidate: &Candidate, body: &Body, deposit_fee: &Amount) -> Self {
        let payouts = body.withdrawals();
        let sats = payouts.iter().map(|payout| payout.value.to_sat());
        Self {
            net_fees: verify::net_fees(candidate.fee, body, deposit_fee),
            withdrawn: Amount::from_sat(sats.fold(0, u64::saturating_add)),
            withdrawals: u64::try_from(payouts.len()).unwrap_or(u64::MAX),
        }
    }

    fn add(self, other: &Self) -> Self {
        let withdrawn = self.withdrawn.to_sat();
        Self {
            net_fees: self.net_fees.saturating_add(other.net_fees),
            withdrawn: Amount::from_sat(withdrawn.saturating_add(other.withdrawn.to_sat())),
            withdrawals: self.withdrawals.saturating_add(other.withdrawals),
        }
    }
}

/// The history, and what the batches in the window were.
pub struct Books {
    /// The confirmed batches and their ledger.
    pub history: History,
    store: Store,
    vault: Arc<Vault>,
    recent: BTreeMap<Txid, Recent>,
}

impl Books {
    /// Books of an open history.
    pub fn new(history: History, store: Store, vault: Arc<Vault>) -> Self {
        Self {
            history,
            store,
            vault,
            recent: BTreeMap::new(),
        }
    }

    /// What the batches add up to that were confirmed within the last `blocks` blocks.
    ///
    /// # Errors
    /// [`HistoryError`] for damaged data.
    pub fn recent(&mut self, blocks: u32) -> Result<Recent, HistoryError> {
        let first = self
            .history
            .height()
            .saturating_sub(blocks)
            .saturating_add(1);
        let deposit_fee = self.vault.parameters().deposit_fee;
        let mut recent = BTreeMap::new();
        let mut sequence = self.history.head().commitment.sequence;
        while let Some(batch) = self
            .history
            .confirmed(sequence)
            .copied()
            .filter(|batch| batch.height >= first)
        {
            if let Some(known) = self.recent.get(&batch.txid) {
                recent.insert(batch.txid, *known);
            } else {
                let candidate = history::kept_candidate(&self.store, &batch.txid)?;
                // What is not at hand can't be counted; the ledger is not current then, and nothing is signed.
                if let (Some(candidate), Some(body)) = (candidate, self.history.body_of(&batch)?) {
                    recent.insert(batch.txid, Recent::of(&candidate, &body, &deposit_fee));
                }
            }
            sequence = SequenceNumber(sequence.0.saturating_sub(1));
        }
        self.recent = recent;
        let all = self.recent.values();
        Ok(all.fold(Recent::default(), Recent::add))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::{Block, Network, Transaction};
    use chain::{ChainEvent, Position, Step};

    use super::*;
    use crate::testing;

    const START: u32 = testing::GENESIS_HEIGHT;

    fn books(store: &Store) -> Books {
        let history = History::open(store.clone(), testing::vault().clone(), START).unwrap();
        Books::new(history, store.clone(), testing::vault().clone())
    }

    /// A block at `height` with these transactions. The history trusts its follower for the rest.
    fn block(height: u32, transactions: &[Transaction]) -> Step {
        let mut block: Block = bitcoin::constants::genesis_block(Network::Regtest);
        block.txdata.extend_from_slice(transactions);
        let hash = block.block_hash();
        Step {
            event: ChainEvent::Connected {
                height,
                hash,
                block: Box::new(block),
            },
            position: Position::starting_at(height + 1),
        }
    }

    #[test]
    fn a_peers_batch_is_taken_only_if_it_replays_to_what_the_chain_says() {
        let (_folder, store) = testing::store();
        let mut books = books(&store);
        let (candidate, body, transaction) = testing::confirmed_batch(50_000);
        books.history.take(block(START, &[transaction])).unwrap();
        assert!(!books.history.is_current());

        // Another body under the same transaction id, with a hash that fits.
        let (_, other, _) = testing::confirmed_batch(60_000);
        let lie = Candidate {
            body: other.hash(),
            ..candidate.clone()
        };
        assert!(!books.history.adopt(&lie, &other.encode()).unwrap());
        let mut cut = body.encode();
        cut.pop();
        assert!(!books.history.adopt(&candidate, &cut).unwrap());
        let elsewhere = Candidate {
            txid: bitcoin::hashes::Hash::all_zeros(),
            ..candidate.clone()
        };
        assert!(!books.history.adopt(&elsewhere, &body.encode()).unwrap());
        for fee in [1_999, 2_001] {
            let cheaper = Candidate {
                fee: Amount::from_sat(fee),
                ..candidate.clone()
            };
            assert!(
                !books.history.adopt(&cheaper, &body.encode()).unwrap(),
                "{fee}"
            );
        }
        let topped_up = Candidate {
            top_ups: vec![candidate.parent],
            ..candidate.clone()
        };
        assert!(!books.history.adopt(&topped_up, &body.encode()).unwrap());
        assert!(!books.history.is_current());
        assert_eq!(books.history.ledger().supply(), Amount::ZERO);

        assert!(books.history.adopt(&candidate, &body.encode()).unwrap());
        assert!(books.history.is_current());
        assert_eq!(books.history.ledger().supply(), Amount::from_sat(50_000));
        assert!(
            !books.history.adopt(&candidate, &body.encode()).unwrap(),
            "there is nothing more to take"
        );
    }

    #[test]
    fn the_batches_of_the_window_count_and_no_others() {
        let (_folder, store) = testing::store();
        let mut books = books(&store);
        assert_eq!(books.recent(10).unwrap(), Recent::default());
        let (candidate, body, transaction) = testing::confirmed_batch(50_000);
        history::keep(&store, &candidate, &body.encode()).unwrap();
        books.history.take(block(START, &[transaction])).unwrap();
        // 2,000 sats to miners, 1,000 from the depositor.
        let first = Recent {
            net_fees: 1_000,
            ..Recent::default()
        };
        assert_eq!(books.recent(1).unwrap(), first);
        for height in START + 1..START + 10 {
            books.history.take(block(height, &[])).unwrap();
        }
        assert_eq!(books.recent(10).unwrap(), first);
        assert_eq!(books.recent(9).unwrap(), Recent::default());
    }

    #[test]
    fn payouts_count_by_amount_and_number() {
        let (candidate, mut body, _) = testing::confirmed_batch(50_000);
        for amount in [7_000, 5_000] {
            body.operations.push(testing::withdrawal(amount));
        }
        let fee = testing::parameters().deposit_fee;
        let one = Recent::of(&candidate, &body, &fee);
        assert_eq!((one.withdrawn.to_sat(), one.withdrawals), (12_000, 2));
        // 2,000 sats to miners, 1,000 from the depositor, 1,500 from each of the others.
        assert_eq!(one.net_fees, -2_000);
        let two = one.add(&one);
        assert_eq!((two.withdrawn.to_sat(), two.withdrawals), (24_000, 4));
    }

    #[test]
    fn an_unknown_spend_of_the_treasury_is_seen() {
        let (_folder, store) = testing::store();
        let mut books = books(&store);
        let (_, _, mut transaction) = testing::confirmed_batch(50_000);
        transaction.output.truncate(1);
        let moved = books
            .history
            .take(block(START, &[transaction.clone()]))
            .unwrap();
        assert_eq!(moved.unknown_spend, Some(transaction.compute_txid()));
        assert!(moved.connected.is_empty());
        // The block is not seen again after a crash: the alarm is in the same write.
        let alarm = crate::promises::load(&store).unwrap().alarm;
        assert_eq!(alarm, moved.alarm());
    }
}
