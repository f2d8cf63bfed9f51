//! What this operator's administrator decides, and what follows from it at once (S6): open sessions are judged again,
//! and what was refused is judged anew.

use std::{collections::BTreeSet, sync::Arc};

use ledger::{Operation, OperationId, SequenceNumber};
use node::{clock, history::HistoryError};
use protocol::{
    batch::Candidate,
    message::{Refusal, Rule, SessionId},
    signer,
};
use storage::{CommitError, Store};

use super::{MAX_DENIED, Node, RunError, blocking, fatal, lock};
use crate::{
    books::Recent,
    decisions::{DecideError, Decision, Decisions, Pause},
    policy::Look,
    promises,
    verify::{self, Affirmed, Kept, Standing, Verified},
};

/// Final batches that are taken off the decisions after one block.
const MAX_SETTLED: u64 = 64;

impl Node {
    /// Where this operator stands towards a candidate, but for what its history says.
    pub(super) fn standing(&self, candidate: Option<&Candidate>) -> Standing {
        let promise = candidate
            .and_then(|candidate| self.state.binding(candidate.sequence, candidate.parent));
        Standing {
            height: self.state.height,
            alarm: self.state.alarm.clone(),
            promise: promise.cloned(),
            decisions: self.decisions.clone(),
            policy: self.policy.current().clone(),
            recent: Recent::default(),
        }
    }

    /// Judges what was verified by where this operator stands now.
    pub(super) fn again(&self, verified: &Verified) -> Result<(), Refusal> {
        verify::again(verified, &self.standing_now(verified)?)
    }

    /// The same at the sign request.
    pub(super) fn affirm(&self, kept: &Kept) -> Result<Affirmed, Refusal> {
        verify::affirm(kept, &self.standing_now(kept.verified())?)
    }

    fn standing_now(&self, verified: &Verified) -> Result<Standing, Refusal> {
        let candidate = match verified {
            Verified::Batch(batch) => Some(batch.candidate()),
            Verified::Genesis(_) | Verified::Epoch(_) => None,
        };
        let standing = self.standing(candidate);
        let recent = match &self.open {
            Some(open) => {
                let window = standing.policy.window_blocks();
                blocking(|| lock(&open.books).recent(window)).map_err(own_history)?
            }
            None => Recent::default(),
        };
        Ok(Standing { recent, ..standing })
    }

    /// Refuses what a session is about, and ends the session. What the own policy refuses is kept, to be judged anew
    /// when that changes; everything is when it is proposed again.
    pub(super) fn deny(&mut self, id: SessionId, refusal: Refusal) {
        if refusal.rule == Rule::S6
            && let Some(session) = self.state.session(&id)
        {
            let proposal = (session.coordinator, session.subject.clone());
            if !self.denied.contains(&proposal) {
                if self.denied.len() >= MAX_DENIED {
                    self.denied.pop_front();
                }
                self.denied.push_back(proposal);
            }
        }
        self.step(signer::Input::Refused(id, refusal));
    }

    /// Stops signing. Shares that are out stay out.
    pub(super) fn pause(&mut self, reason: String) -> Option<Pause> {
        tracing::warn!(reason, "signing is paused (S6)");
        count("paused");
        self.clear_pool();
        self.change(|decisions, store| decisions.pause_signing(store, reason, clock::now_ms()));
        self.reconsider();
        self.decisions.pause().cloned()
    }

    /// Signs again. Gives what the pause was, if there was one.
    pub(super) fn resume(&mut self) -> Option<Pause> {
        let before = self.decisions.pause().cloned();
        if before.is_some() {
            tracing::warn!("signing is resumed (S6)");
            count("resumed");
            self.change(|decisions, store| decisions.resume(store));
            self.reconsider();
        }
        before
    }

    /// Lets a withdrawal that waits be signed.
    pub(super) fn approve(&mut self, operation: &str) -> Result<Option<Decision>, String> {
        self.decide(operation, "approved", Decisions::approve)
    }

    /// Keeps an operation out of every batch that is signed here.
    pub(super) fn reject(&mut self, operation: &str) -> Result<Option<Decision>, String> {
        self.decide(operation, "rejected", Decisions::reject)
    }

    fn decide(
        &mut self,
        operation: &str,
        verdict: &'static str,
        change: fn(&mut Decisions, &Store, OperationId, u64) -> Result<(), DecideError>,
    ) -> Result<Option<Decision>, String> {
        let id: OperationId = operation
            .parse()
            .map_err(|_| "an operation id has 64 hex digits; 'pending' lists them".to_owned())?;
        let decided =
            self.change(
                |decisions, store| match change(decisions, store, id, clock::now_ms()) {
                    Err(DecideError::Commit(error)) => Err(error),
                    other => Ok(other),
                },
            );
        decided.map_err(|error| error.to_string())?;
        tracing::warn!(operation = %id, verdict, "the administrator has decided (S6)");
        count(verdict);
        self.reconsider();
        Ok(self.decisions.decided().get(&id).cloned())
    }

    /// The own policy, or a decision, has changed.
    fn reconsider(&mut self) {
        let denied = std::mem::take(&mut self.denied);
        let verified: Vec<_> = self
            .work
            .iter()
            .map(|(id, work)| (*id, work.verified.clone()))
            .collect();
        for (id, verified) in verified {
            if let Err(refusal) = self.again(&verified) {
                self.deny(id, refusal);
            }
        }
        for (from, subject) in denied {
            self.proposed(from, subject);
        }
        self.show();
    }

    /// Takes a changed policy file into use.
    pub(super) fn look_at_policy(&mut self) {
        match blocking(|| self.policy.look()) {
            Look::Same => {}
            Look::Changed => {
                tracing::info!("the policy has changed");
                count("policy changed");
                self.reconsider();
            }
            Look::Bad(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the policy file can't be used; the policy before it stays in force"
                );
                count("policy refused");
            }
        }
    }

    /// Operations of a refused batch that wait for approval.
    pub(super) fn note_held(
        &mut self,
        held: Vec<(OperationId, Operation)>,
        sequence: SequenceNumber,
    ) {
        if held.is_empty() {
            return;
        }
        let new =
            self.change(|decisions, store| decisions.wait(store, held, sequence, clock::now_ms()));
        for operation in new {
            tracing::warn!(%operation, sequence = sequence.0, "a withdrawal waits for approval (S6)");
            count("held");
        }
    }

    /// Forgets decisions about operations in batches that have become final.
    pub(super) fn settle_decisions(&mut self, last_final: SequenceNumber) -> Result<(), RunError> {
        let Some(open) = self.open.clone() else {
            return Ok(());
        };
        if self.decisions.waiting().is_empty() && self.decisions.decided().is_empty() {
            // Nothing to look for in the batches up to here.
            Arc::make_mut(&mut self.decisions).skip_to(last_final);
            return Ok(());
        }
        let settled = self.decisions.settled().0;
        let end = last_final.0.min(settled.saturating_add(MAX_SETTLED));
        if end <= settled {
            return Ok(());
        }
        let done = blocking(|| -> Result<BTreeSet<OperationId>, HistoryError> {
            let books = lock(&open.books);
            let mut done = BTreeSet::new();
            for sequence in settled.saturating_add(1)..=end {
                if let Some(batch) = books.history.confirmed(SequenceNumber(sequence))
                    && let Some(body) = books.history.body_of(batch)?
                {
                    done.extend(body.operation_ids());
                }
            }
            Ok(done)
        })
        .map_err(fatal)?;
        self.change(|decisions, store| decisions.settle(store, SequenceNumber(end), &done));
        Ok(())
    }

    /// Changes the decisions; on disk before anything follows from it.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Decisions, &Store) -> Result<T, CommitError>,
    ) -> T {
        let decisions = Arc::make_mut(&mut self.decisions);
        match blocking(|| change(decisions, &self.store)) {
            Ok(value) => value,
            Err(error) => promises::stop_on_failed_write(&error),
        }
    }
}

/// Counts a decision for the metrics.
fn count(decision: &'static str) {
    metrics::counter!("operator_decisions", "decision" => decision).increment(1);
}

/// Own data that can't be read is no fault of the batch.
pub(super) fn own_history(error: HistoryError) -> Refusal {
    Refusal::new(Rule::S5, format!("own history: {error}"))
}
