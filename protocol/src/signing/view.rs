//! What can be asked of a session.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use threshold::SignerId;

use super::{Patience, Scheme, Session, Waiting};
use crate::message::Refusal;

impl<S: Scheme> Session<S> {
    /// The signers of the group.
    pub fn signers(&self) -> &BTreeSet<SignerId> {
        &self.signers
    }

    /// How many of them an attempt needs.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// Who has refused, and why.
    pub fn refused(&self) -> &BTreeMap<SignerId, Refusal> {
        &self.refused
    }

    /// Who has sent a bad share.
    pub fn blamed(&self) -> &BTreeSet<SignerId> {
        &self.blamed
    }

    /// Attempts started so far.
    pub fn attempts(&self) -> u32 {
        self.started
    }

    /// How often a pending signer has given up its place in an attempt by accepting anew.
    pub fn renewals(&self) -> u32 {
        let taken = self.renewals.values().map(|renewals| renewals.taken);
        taken.fold(0, u32::saturating_add)
    }

    /// Signers that have answered and wait for an attempt.
    pub fn ready(&self) -> impl ExactSizeIterator<Item = &SignerId> {
        self.ready.keys()
    }

    /// Whether an attempt is held back ([`Effect::Hold`], [`Effect::Wait`]).
    pub fn is_holding(&self) -> bool {
        self.patience == Patience::Holding || (self.wait == Patience::Holding && self.may_wait())
    }

    /// Signers that were asked and have not answered, and the attempt.
    pub fn pending(&self) -> &BTreeMap<SignerId, u32> {
        &self.pending
    }

    /// Attempts that are kept because they may still succeed.
    pub fn open_attempts(&self) -> usize {
        self.attempts.len()
    }

    /// Whether a signer belongs to an attempt that is kept.
    pub fn is_in_attempt(&self, signer: SignerId, attempt: u32) -> bool {
        self.commitments_in(attempt, signer).is_some()
    }

    /// Signers that neither refuse nor were blamed. With fewer than are needed, waiting does not help.
    pub fn possible(&self) -> usize {
        self.signers
            .iter()
            .filter(|signer| !self.refused.contains_key(signer) && !self.blamed.contains(signer))
            .count()
    }

    /// Signers that an attempt older than the one that succeeded still waits for.
    pub fn silent(&self) -> BTreeSet<SignerId> {
        let last = self.finished.unwrap_or(self.started);
        self.pending
            .iter()
            .filter(|(_, attempt)| **attempt < last)
            .map(|(signer, _)| *signer)
            .collect()
    }

    /// Signers that may have given a share: those who have answered, and those who were asked and have not refused.
    pub fn promised(&self) -> BTreeSet<SignerId> {
        let asked = self.pending.keys().filter(|signer| {
            !self.declined.contains_key(signer) && !self.refused.contains_key(signer)
        });
        asked.chain(&self.answered).copied().collect()
    }

    /// What keeps the session from its end; `None` when it has ended.
    pub fn waiting(&self) -> Option<Waiting> {
        if self.finished.is_some() {
            return None;
        }
        let unheard = self.signers.iter().filter(|signer| {
            !self.ready.contains_key(signer)
                && !self.pending.contains_key(signer)
                && !self.refused.contains_key(signer)
                && !self.blamed.contains(signer)
        });
        Some(Waiting {
            needed: self.needed,
            attempts: self.started,
            ready: self.ready.keys().copied().collect(),
            pending: self.pending.clone(),
            declined: self.declined.clone(),
            promised: self.promised(),
            unheard: unheard.copied().collect(),
            refused: self.refused.clone(),
            blamed: self.blamed.clone(),
        })
    }
}

impl<S: Scheme> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("attempts", &self.started)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}
