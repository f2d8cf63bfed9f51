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
        Self { history, store, deposit_fee, net_fees: BTreeMap::new() }
    }

    /// Miner fees less users' fees, in sats, of the batches confirmed within the last `blocks` blocks.
    ///
    /// # Errors
    /// [`HistoryError`] for damaged data.
    pub fn recent_net_fees(&mut self, blocks: u32) -> Result<i128, HistoryError> {
        let first = self.history.height().saturating_sub(blocks).saturating_add(1);
        let mut recent = BTreeMap::new();
        let mut sequence = self.history.head().commitment.sequence;
        while let Some(batch) = self.history.confirmed(sequence).copied().filter(|batch| batch.height >= first) {
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
        Ok(self.net_fees.values().fold(0, |sum, net| sum.saturating_add(*net)))
    }

    /// Takes a batch that a peer has sent, if it is the first one that the history misses: replayed on the
    /// ledger it must give the digest and the supply that the confirmed transaction commits to. Says
    /// whether it was taken.
    ///
    /// # Errors
    /// [`HistoryError`]; a failed write is fatal (S11).
    pub fn adopt(&mut self, candidate: &Candidate, body: &[u8]) -> Result<bool, HistoryError> {
        let Some((sequence, txid)) = self.history.missing() else { return Ok(false) };
        let Some(confirmed) = self.history.confirmed(sequence).copied() else { return Ok(false) };
        if candidate.txid != txid || candidate.sequence != sequence || Body::hash_encoded(body) != candidate.body {
            return Ok(false);
        }
        let Ok(decoded) = Body::decode(body) else { return Ok(false) };
        if decoded.sequence != sequence || decoded.vault != candidate.vault {
            return Ok(false);
        }
        let Ok(transition) = self.history.replay(&decoded.operations, sequence) else { return Ok(false) };
        let commitment = confirmed.treasury.commitment;
        if transition.after.supply != commitment.supply || transition.digest_after().to_bytes() != commitment.digest {
            return Ok(false);
        }
        history::keep(&self.store, candidate, body)?;
        self.history.catch_up()?;
        Ok(true)
    }
}
