//! The own chain moves: batches confirm, the treasury moves on, missing batch data is fetched; and an unknown
//! spend of the treasury stops everything (S14).

use chain::Step;
use ledger::SequenceNumber;
use protocol::{
    batch::Candidate,
    message::{Answer, Ask},
    signer,
};

use super::{Event, Node, RunError, blocking, fatal, lock};
use crate::{held, promises};

/// Operators asked for one missing batch, one after the other.
const MAX_ASKED: usize = 8;

impl Node {
    pub(super) fn follow(&mut self, step: Step) -> Result<(), RunError> {
        let Some(open) = self.open.clone() else {
            return Ok(());
        };
        let moved = blocking(|| lock(&open.books).history.take(step)).map_err(fatal)?;
        for batch in &moved.connected {
            let treasury = &batch.treasury;
            tracing::info!(
                stage = "confirm",
                sequence = treasury.commitment.sequence.0,
                txid = %batch.txid,
                height = batch.height,
                treasury_sat = treasury.value.to_sat(),
                supply_sat = treasury.commitment.supply.to_sat(),
                "batch confirmed"
            );
            metrics::counter!("operator_batches_confirmed").increment(1);
        }
        for batch in &moved.disconnected {
            tracing::warn!(
                sequence = batch.treasury.commitment.sequence.0,
                txid = %batch.txid,
                "a batch left the best chain"
            );
        }
        if let Some(reason) = moved.alarm() {
            self.raise_alarm(reason);
        }
        self.chain_moved();
        self.ask_missing()?;
        self.drop_held()?;
        self.propose_early();
        Ok(())
    }

    /// The history has written it with the block.
    fn raise_alarm(&mut self, reason: String) {
        tracing::error!(%reason, "ALARM: signing stops (S14)");
        self.clear_pool();
        self.step(signer::Input::Alarm(reason));
        self.show();
    }

    /// Signs again after an alarm that somebody has looked at. Gives what the alarm was; while the treasury is gone
    /// there is nothing to go on with.
    pub(super) fn clear_alarm(&mut self, why: &str) -> Result<Option<String>, String> {
        let Some(alarm) = self.state.alarm.clone() else {
            return Ok(None);
        };
        let open = self.open.as_ref();
        if let Some(txid) = open.and_then(|open| lock(&open.books).history.unknown_spend()) {
            return Err(format!(
                "the alarm stays: {txid} is in the chain and spends the treasury"
            ));
        }
        tracing::warn!(%alarm, why, "the alarm is cleared by the administrator (S14)");
        blocking(|| {
            if let Err(error) = promises::clear_alarm(&self.store) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.step(signer::Input::AlarmCleared);
        self.show();
        Ok(Some(alarm))
    }

    /// Data of batches that are final, and in the history, need not be held for others.
    fn drop_held(&mut self) -> Result<(), RunError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let last = {
            let books = lock(&open.books);
            if !books.history.is_current() {
                return Ok(());
            }
            let depth = self.parameters.final_confirmations;
            let last_final = books.history.height().saturating_sub(depth);
            let mut last = books.history.head().commitment.sequence;
            while books
                .history
                .confirmed(last)
                .is_some_and(|batch| batch.height > last_final)
            {
                last = SequenceNumber(last.0.saturating_sub(1));
            }
            last
        };
        self.settle_decisions(last)?;
        self.drop_signed(last)?;
        self.settle_requests(last)?;
        match blocking(|| held::drop_up_to(&self.store, last)) {
            Ok(()) => Ok(()),
            Err(held::HoldError::Commit(error)) => promises::stop_on_failed_write(&error),
            Err(held::HoldError::Read(error)) => Err(error.into()),
            Err(held::HoldError::Refused(_)) => Ok(()),
        }
    }

    /// Fetches the first confirmed batch whose data is not here: from what others had this operator keep,
    /// else by asking them.
    pub(super) fn ask_missing(&mut self) -> Result<(), RunError> {
        let Some(open) = self.open.clone().filter(|_| !self.asking_missing) else {
            return Ok(());
        };
        loop {
            let Some((sequence, txid)) = lock(&open.books).history.missing() else {
                return Ok(());
            };
            let held = held::find(&self.store, sequence, &txid)?;
            let mut adopted = false;
            for held in &held {
                let adopt = || lock(&open.books).history.adopt(&held.candidate, &held.body);
                adopted = blocking(adopt).map_err(fatal)?;
                if adopted {
                    break;
                }
                tracing::warn!(
                    sequence = sequence.0,
                    "held batch data is not what was confirmed"
                );
            }
            if !adopted {
                break;
            }
            self.chain_moved();
        }
        let Some((sequence, txid)) = lock(&open.books).history.missing() else {
            return Ok(());
        };
        self.asking_missing = true;
        // Each time another peer is asked first: one that answers with the wrong data stops nobody for long.
        self.missing_turn = self.missing_turn.wrapping_add(1);
        let (peers, turn) = (self.peers.clone(), self.missing_turn);
        self.spawn(async move {
            let connected: Vec<_> = peers.connected().into_iter().collect();
            let first = turn.checked_rem(connected.len()).unwrap_or(0);
            let in_turn = connected.iter().cycle().skip(first).copied();
            for peer in in_turn.take(connected.len().min(MAX_ASKED)) {
                if let Ok(Answer::Batch(Some((candidate, body)))) =
                    peers.ask(peer, &Ask::Batch(sequence)).await
                    && candidate.txid == txid
                {
                    return Some(Event::Missing(Some((candidate, body))));
                }
            }
            Some(Event::Missing(None))
        });
        Ok(())
    }

    pub(super) fn take_missing(
        &mut self,
        batch: Option<(Candidate, Vec<u8>)>,
    ) -> Result<(), RunError> {
        self.asking_missing = false;
        let (Some((candidate, body)), Some(open)) = (batch, self.open.clone()) else {
            return Ok(());
        };
        if blocking(|| lock(&open.books).history.adopt(&candidate, &body)).map_err(fatal)? {
            tracing::info!(
                stage = "confirm",
                sequence = candidate.sequence.0,
                "missing batch data was fetched"
            );
            self.chain_moved();
            self.ask_missing()?;
        }
        Ok(())
    }

    /// Looks again at what was ahead of the own chain.
    pub(super) fn propose_early(&mut self) {
        for early in std::mem::take(&mut self.early) {
            self.hear_proposal(early);
        }
    }
}
