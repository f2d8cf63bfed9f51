//! The vault's history with what this operator derives from it: the fees of the last blocks (S5), and the check
//! that a batch from a peer is the one that the chain has confirmed.

use std::collections::BTreeMap;

use bitcoin::{Amount, Txid};
use ledger::SequenceNumber;
use node::history::{self, History, HistoryError};
use protocol::batch::{Body, Candidate};
use storage::Store;

use crate::verify;

/// The history, and the net fees of the batches in the window.
pub struct Books {
    /// The confirmed batches and their ledger.
    pub history: History,
    store: Store,
    deposit_fee: Amount,
    net_fees: BTreeMap<Txid, i128>,
}

impl Books {
    /// Books of an open history.
    pub fn new(history: History, store: Store, deposit_fee: Amount) -> Self {
        Self {
            history,
            store,
            deposit_fee,
            net_fees: BTreeMap::new(),
        }
    }

    /// Miner fees less users' fees, in sats, of the batches confirmed within the last `blocks` blocks.
    ///
    /// # Errors
    /// [`HistoryError`] for damaged data.
    pub fn recent_net_fees(&mut self, blocks: u32) -> Result<i128, HistoryError> {
        let first = self
            .history
            .height()
            .saturating_sub(blocks)
            .saturating_add(1);
        let mut recent = BTreeMap::new();
        let mut sequence = self.history.head().commitment.sequence;
        while let Some(batch) = self
            .history
            .confirmed(sequence)
            .copied()
            .filter(|batch| batch.height >= first)
        {
            if let Some(net) = self.net_fees.get(&batch.txid) {
                recent.insert(batch.txid, *net);
            } else {
                let candidate = history::kept_candidate(&self.store, &batch.txid)?;
                // What is not at hand can't be counted; the ledger is not current then, and nothing is signed.
                if let (Some(candidate), Some(body)) = (candidate, self.history.body_of(&batch)?) {
                    let net = verify::net_fees(candidate.fee, &body, &self.deposit_fee);
                    recent.insert(batch.txid, net);
                }
            }
            sequence = SequenceNumber(sequence.0.saturating_sub(1));
        }
        self.net_fees = recent;
        Ok(self
            .net_fees
            .values()
            .fold(0, |sum, net| sum.saturating_add(*net)))
    }

    /// Takes a batch that a peer has sent, if it is the first one that the history misses: replayed on the
    /// ledger it must give the digest and the supply that the confirmed transaction commits to. Says
    /// whether it was taken.
    ///
    /// # Errors
    /// [`HistoryError`]; a failed write is fatal (S11).
    pub fn adopt(&mut self, candidate: &Candidate, body: &[u8]) -> Result<bool, HistoryError> {
        let Some((sequence, txid)) = self.history.missing() else {
            return Ok(false);
        };
        let Some(confirmed) = self.history.confirmed(sequence).copied() else {
            return Ok(false);
        };
        if candidate.txid != txid
            || candidate.sequence != sequence
            || Body::hash_encoded(body) != candidate.body
        {
            return Ok(false);
        }
        let Ok(decoded) = Body::decode(body) else {
            return Ok(false);
        };
        if decoded.sequence != sequence || decoded.vault != candidate.vault {
            return Ok(false);
        }
        let Ok(transition) = self.history.replay(&decoded.operations, sequence) else {
            return Ok(false);
        };
        let commitment = confirmed.treasury.commitment;
        if transition.after.supply != commitment.supply
            || transition.digest_after().to_bytes() != commitment.digest
        {
            return Ok(false);
        }
        history::keep(&self.store, candidate, body)?;
        self.history.catch_up()?;
        Ok(true)
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
        Books::new(history, store.clone(), testing::parameters().deposit_fee)
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
        assert!(!books.adopt(&lie, &other.encode()).unwrap());
        let mut cut = body.encode();
        cut.pop();
        assert!(!books.adopt(&candidate, &cut).unwrap());
        let elsewhere = Candidate {
            txid: bitcoin::hashes::Hash::all_zeros(),
            ..candidate.clone()
        };
        assert!(!books.adopt(&elsewhere, &body.encode()).unwrap());
        assert!(!books.history.is_current());
        assert_eq!(books.history.ledger().supply(), Amount::ZERO);

        assert!(books.adopt(&candidate, &body.encode()).unwrap());
        assert!(books.history.is_current());
        assert_eq!(books.history.ledger().supply(), Amount::from_sat(50_000));
        assert!(
            !books.adopt(&candidate, &body.encode()).unwrap(),
            "there is nothing more to take"
        );
    }

    #[test]
    fn net_fees_count_the_batches_of_the_window_and_no_others() {
        let (_folder, store) = testing::store();
        let mut books = books(&store);
        assert_eq!(books.recent_net_fees(10).unwrap(), 0);
        let (candidate, body, transaction) = testing::confirmed_batch(50_000);
        history::keep(&store, &candidate, &body.encode()).unwrap();
        books.history.take(block(START, &[transaction])).unwrap();
        // 2,000 sats to miners, 1,000 from the depositor.
        assert_eq!(books.recent_net_fees(1).unwrap(), 1_000);
        for height in START + 1..START + 10 {
            books.history.take(block(height, &[])).unwrap();
        }
        assert_eq!(books.recent_net_fees(10).unwrap(), 1_000);
        assert_eq!(books.recent_net_fees(9).unwrap(), 0);
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
    }
}
