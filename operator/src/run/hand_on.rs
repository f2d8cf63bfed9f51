//! Signed batch transactions: kept, submitted to the own node until they confirm, and handed on to the others, so that one
//! survives a coordinator that signed it and vanished.

use bitcoin::Transaction;
use chain::submit::Submission;
use ledger::SequenceNumber;
use node::history;
use protocol::{batch::Candidate, identity::PeerKey, message::Gossip};

use super::{Event, Node, RunError, blocking};
use crate::{
    held,
    promises::stop_on_failed_write,
    signed::{self, KeepError, Signed},
};

/// Heartbeats of the loop between two submissions of what is unconfirmed: 30 s. Mempools forget.
const RESUBMIT_TICKS: u32 = 120;
/// How often a signed transaction is handed to an own node that does not answer, and the pause between.
const SUBMIT_TRIES: u32 = 10;
const SUBMIT_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

impl Node {
    /// Every operator submits a signed batch to its own node, from whomever it comes. Only batches whose data is here: it is
    /// bitcoind that checks the signatures.
    pub(super) fn hear_signed(
        &self,
        from: PeerKey,
        candidate: Candidate,
        transaction: Transaction,
    ) -> Result<(), RunError> {
        let txid = transaction.compute_txid();
        let kept = history::kept_candidate(&self.store, &txid)?;
        let known = kept.is_some_and(|kept| kept == candidate)
            || blocking(|| held::is_held(&self.store, &candidate))?;
        if txid != candidate.txid || !known {
            tracing::debug!(%txid, "a signed transaction that is not known here");
            return Ok(());
        }
        let signed = Signed {
            candidate,
            transaction,
            from,
            is_taken: false,
        };
        if settled(blocking(|| signed::keep(&self.store, &signed)))? {
            self.submit(signed);
        }
        Ok(())
    }

    /// Once a start, and now and then after it: what is not confirmed is submitted again, and handed on.
    pub(super) fn submit_again(&self) -> Result<(), RunError> {
        let Some(head) = self.head_sequence() else {
            return Ok(());
        };
        if self.ticks % RESUBMIT_TICKS != 1 {
            return Ok(());
        }
        for signed in signed::after(&self.store, head)? {
            if signed.is_taken {
                let (peers, gossip) = (
                    self.peers.clone(),
                    Gossip::Signed {
                        candidate: signed.candidate.clone(),
                        transaction: signed.transaction.clone(),
                    },
                );
                tokio::spawn(async move {
                    if let Err(error) = peers.tell(&gossip).await {
                        tracing::debug!(%error, "a signed transaction was not handed on");
                    }
                });
            }
            self.submit(signed);
        }
        Ok(())
    }

    fn submit(&self, signed: Signed) {
        let rpc = self.rpc.clone();
        self.spawn(async move {
            let sequence = signed.candidate.sequence.0;
            let txid = signed.candidate.txid;
            for _ in 0..SUBMIT_TRIES {
                match chain::submit::submit(&rpc, &signed.transaction).await {
                    Ok(outcome) => return Some(Event::Submitted(Box::new(signed), outcome)),
                    Err(error) => {
                        tracing::warn!(sequence, %txid, error = %error.rpc(), "submitting failed")
                    }
                }
                tokio::time::sleep(SUBMIT_PAUSE).await;
            }
            None
        });
    }

    /// What the own node said.
    pub(super) fn submitted(&self, signed: &Signed, outcome: &Submission) -> Result<(), RunError> {
        let sequence = signed.candidate.sequence.0;
        let txid = signed.candidate.txid;
        match outcome {
            outcome if outcome.is_held() => {
                tracing::info!(stage = "broadcast", sequence, %txid, ?outcome, "the own node has the batch");
                if !signed.is_taken {
                    settled(blocking(|| signed::taken(&self.store, signed)))?;
                }
            }
            // Another version, with other witnesses, may still be right. What is refused for anything else, as for its fee
            // while the mempool is full, may be taken later.
            outcome if outcome.is_unsigned() && !signed.is_taken => {
                tracing::warn!(sequence, %txid, from = %signed.from, ?outcome, "the own node does not take the batch");
                settled(blocking(|| signed::refused(&self.store, signed)))?;
            }
            _ => {
                tracing::warn!(sequence, %txid, ?outcome, "the own node does not take the batch now");
            }
        }
        Ok(())
    }

    /// Final batches need not be submitted again.
    pub(super) fn drop_signed(&self, last: SequenceNumber) -> Result<(), RunError> {
        settled(blocking(|| signed::drop_up_to(&self.store, last)))
    }
}

fn settled<T>(result: Result<T, KeepError>) -> Result<T, RunError> {
    match result {
        Ok(value) => Ok(value),
        Err(KeepError::Read(error)) => Err(error.into()),
        Err(KeepError::Commit(error)) => stop_on_failed_write(&error),
    }
}
