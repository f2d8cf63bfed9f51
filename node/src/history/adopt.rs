//! Takes the data of a confirmed batch from a peer, once it is shown to be the batch that the chain has.

use bitcoin::Amount;
use protocol::{
    batch::{Body, Candidate},
    transaction::{self, BatchPlan, BatchTransaction, Swept, TopUp, Treasury},
};

use super::{Confirmed, History, HistoryError, is_committed_to};

impl History {
    /// Takes a batch that a peer has sent, if it is the first one that the history misses: replayed on the
    /// ledger it must give the digest and the supply that the confirmed transaction commits to, and built
    /// anew its transaction must be the confirmed one. Says whether it was taken.
    ///
    /// # Errors
    /// [`HistoryError`]; a failed write is fatal (S11).
    pub fn adopt(&mut self, candidate: &Candidate, body: &[u8]) -> Result<bool, HistoryError> {
        let Some((sequence, txid)) = self.missing() else {
            return Ok(false);
        };
        let Some(confirmed) = self.confirmed(sequence).copied() else {
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
        let operations = &decoded.operations;
        let Ok(replayed) = self.ledger.replay(operations, &self.vault.id(), sequence) else {
            return Ok(false);
        };
        let parent = self.parent(sequence);
        let is_it = is_committed_to(&replayed, &confirmed.treasury.commitment)
            && candidate.vault == self.vault.id()
            && parent.is_some_and(|parent| {
                candidate.parent == parent.outpoint
                    && self.is_carried(candidate, &decoded, &parent, &confirmed)
            });
        let kept = if is_it {
            super::keep(&self.store, candidate, body)
        } else {
            Ok(())
        };
        if !is_it || kept.is_err() {
            self.take_back(&replayed);
            return Ok(kept.map(|()| false)?);
        }
        self.follow(replayed)?;
        self.catch_up()?;
        Ok(true)
    }

    /// Whether the confirmed transaction is the one that candidate and body mean. With that the stated fee, which
    /// counts in the window, is the one that was paid. Only where there are top-ups it may be overstated: what they held
    /// can't be looked up any more.
    fn is_carried(
        &self,
        candidate: &Candidate,
        body: &Body,
        parent: &Treasury,
        confirmed: &Confirmed,
    ) -> bool {
        let deposit_fee = self.vault.parameters().deposit_fee;
        let group = self.vault.group_key();
        let deposits = body
            .deposits()
            .zip(&body.terms)
            .map(|((outpoint, credited), terms)| {
                Some(Swept {
                    outpoint: *outpoint,
                    value: credited.checked_add(deposit_fee)?,
                    address: terms.address(&group).ok()?,
                })
            });
        let Some(deposits) = deposits.collect::<Option<Vec<_>>>() else {
            return false;
        };
        let withdrawals = body.withdrawals();
        let held = |amounts: &mut dyn Iterator<Item = Amount>| transaction::sum(amounts).ok();
        let paid = withdrawals.iter().map(|output| output.value);
        let (Some(spent), Some(made)) = (
            held(
                &mut deposits
                    .iter()
                    .map(|swept| swept.value)
                    .chain([parent.value]),
            ),
            held(&mut paid.chain([candidate.fee, confirmed.treasury.value])),
        ) else {
            return false;
        };
        // What the other inputs leave open, the top-ups must have held.
        let Some(topped_up) = made.checked_sub(spent) else {
            return false;
        };
        if candidate.top_ups.is_empty() && topped_up != Amount::ZERO {
            return false;
        }
        let values = std::iter::once(topped_up).chain(std::iter::repeat(Amount::ZERO));
        let top_ups: Vec<TopUp> = candidate
            .top_ups
            .iter()
            .zip(values)
            .map(|(outpoint, value)| TopUp {
                outpoint: *outpoint,
                value,
            })
            .collect();
        let plan = BatchPlan {
            treasury: parent,
            deposits: &deposits,
            top_ups: &top_ups,
            withdrawals: &withdrawals,
            next: confirmed.treasury.commitment,
            fee: candidate.fee,
        };
        BatchTransaction::build(self.vault.key(), &plan)
            .is_ok_and(|built| built.unsigned.compute_txid() == confirmed.txid)
    }
}
