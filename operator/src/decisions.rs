//! What this operator's administrator has decided (S6): whether signing is paused, which operations are approved or
//! rejected; and which operations wait for such a decision. On disk before it has any effect, and there after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Address, Network};
use ledger::{Operation, OperationId, SequenceNumber};
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

/// Most operations that wait for a decision; the one that was seen first gives way, and comes back when it is
/// proposed again.
pub const MAX_WAITING: usize = 1_000;
/// Most decisions about operations that are not final yet.
pub const MAX_DECIDED: usize = 10_000;
/// Longest reason of a pause, in bytes.
pub const MAX_REASON_BYTES: usize = 200;

/// Why signing is paused; no row when it is not.
const PAUSE: Table<(), Pause> = Table::new("pause", 1);
/// Operations that wait for a decision, by id.
const WAITING: Table<[u8; 32], Waiting> = Table::new("waiting_operations", 1);
/// Decisions, by operation id.
const DECIDED: Table<[u8; 32], Decision> = Table::new("decided_operations", 1);
/// Sequence number up to which final batches were taken off the tables above.
const SETTLED: Table<(), u64> = Table::new("decisions_settled", 1);

/// The tables of this module.
pub const TABLES: [ColumnName; 4] = [PAUSE.name(), WAITING.name(), DECIDED.name(), SETTLED.name()];

/// Signing is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The administrator's words; may be empty.
    pub reason: String,
    /// Since when, in Unix ms.
    pub since_ms: u64,
}

impl Pause {
    /// For people.
    pub fn describe(&self) -> String {
        if self.reason.is_empty() {
            "paused by its administrator".to_owned()
        } else {
            format!("paused by its administrator: {}", self.reason)
        }
    }
}

/// An operation that waits for a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The operation.
    pub operation: Operation,
    /// The latest batch that it was proposed in.
    pub sequence: SequenceNumber,
    /// When it was proposed first, in Unix ms.
    pub first_seen_ms: u64,
}

/// What waits, and what was decided, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Operations that wait for a decision, oldest first.
    pub pending: Vec<Listed>,
    /// Decisions about operations that are not final yet, oldest first.
    pub decided: Vec<Listed>,
}

/// One operation of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its id.
    pub operation: String,
    /// What was decided; `None` while it waits.
    pub verdict: Option<Verdict>,
    /// When it was decided, in Unix ms.
    pub decided_ms: Option<u64>,
    /// What it asks for; `None` when it was rejected before it was seen.
    pub about: Option<About>,
}

/// What a listed operation asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// `deposit`, `transfer` or `withdrawal`.
    pub kind: String,
    /// What is moved.
    pub amount_sat: u64,
    /// Where to: a Bitcoin address, or an account key in hex.
    pub destination: String,
    /// When it was proposed first, in Unix ms.
    pub first_seen_ms: u64,
    /// The latest batch that it was proposed in.
    pub batch: u64,
}

impl Waiting {
    fn about(&self, network: Network) -> About {
        let (kind, destination) = match &self.operation {
            Operation::Deposit { account, .. } => ("deposit", hex::encode(account.to_bytes())),
            Operation::Transfer { recipient, .. } => {
                ("transfer", hex::encode(recipient.to_bytes()))
            }
            Operation::Withdraw { script_pubkey, .. } => (
                "withdrawal",
                Address::from_script(script_pubkey, network).map_or_else(
                    |_| script_pubkey.to_hex_string(),
                    |address| address.to_string(),
                ),
            ),
        };
        About {
            kind: kind.to_owned(),
            amount_sat: self.operation.amount().to_sat(),
            destination,
            first_seen_ms: self.first_seen_ms,
            batch: self.sequence.0,
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may be signed although its amount is above the policy's threshold.
    Approved,
    /// No batch with it is signed.
    Rejected,
}

/// A decision about an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What.
    pub verdict: Verdict,
    /// When, in Unix ms.
    pub at_ms: u64,
    /// The operation; `None` when it was rejected before it was seen.
    pub about: Option<Waiting>,
}

/// Why a decision was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// Nothing to approve.
    #[error("no operation {0} waits for approval here")]
    Unknown(OperationId),
    /// The table is full.
    #[error("{MAX_DECIDED} decisions are kept, and none of their operations is final or expired")]
    Full,
    /// Fatal (S11).
    #[error("the decision could not be written")]
    Commit(#[from] CommitError),
}

/// All decisions in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    pause: Option<Pause>,
    waiting: BTreeMap<OperationId, Waiting>,
    decided: BTreeMap<OperationId, Decision>,
    settled: SequenceNumber,
}

impl Decisions {
    /// Reads what was decided before the restart.
    ///
    /// # Errors
    /// A damaged database.
    pub fn load(store: &Store) -> Result<Self, ReadError> {
        let mut decisions = Self {
            pause: store.get(&PAUSE, &())?,
            settled: SequenceNumber(store.get(&SETTLED, &())?.unwrap_or(0)),
            ..Self::default()
        };
        for row in store.iter(&WAITING, .., Direction::Forward, MAX_WAITING)? {
            let (id, waiting) = row?;
            decisions.waiting.insert(OperationId(id), waiting);
        }
        for row in store.iter(&DECIDED, .., Direction::Forward, MAX_DECIDED)? {
            let (id, decision) = row?;
            decisions.decided.insert(OperationId(id), decision);
        }
        Ok(decisions)
    }

    /// The pause, if signing is paused.
    pub fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// What was decided about an operation.
    pub fn verdict(&self, id: &OperationId) -> Option<Verdict> {
        self.decided.get(id).map(|decision| decision.verdict)
    }

    /// Operations that wait for a decision.
    pub fn waiting(&self) -> &BTreeMap<OperationId, Waiting> {
        &self.waiting
    }

    /// Decisions about operations that are not final yet.
    pub fn decided(&self) -> &BTreeMap<OperationId, Decision> {
        &self.decided
    }

    /// Everything that waits or was decided, for people.
    pub fn listing(&self, network: Network) -> Listing {
        let pending = self.waiting.iter().map(|(id, row)| Listed {
            operation: id.to_string(),
            verdict: None,
            decided_ms: None,
            about: Some(row.about(network)),
        });
        let decided = self.decided.iter().map(|(id, row)| Listed {
            operation: id.to_string(),
            verdict: Some(row.verdict),
            decided_ms: Some(row.at_ms),
            about: row.about.as_ref().map(|about| about.about(network)),
        });
        let mut listing = Listing {
            pending: pending.collect(),
            decided: decided.collect(),
        };
        let seen = |row: &Listed| row.about.as_ref().map(|about| about.first_seen_ms);
        listing.pending.sort_by_key(seen);
        listing.decided.sort_by_key(|row| row.decided_ms);
        listing
    }

    /// Sequence number up to which [`Self::settle`] has been told of final batches.
    pub fn settled(&self) -> SequenceNumber {
        self.settled
    }

    /// Moves [`Self::settled`] while nothing is kept that could be settled.
    pub fn skip_to(&mut self, last_final: SequenceNumber) {
        if self.waiting.is_empty() && self.decided.is_empty() {
            self.settled = last_final;
        }
    }

    /// Stops signing until [`Self::resume`].
    ///
    /// # Errors
    /// Fatal (S11).
    pub fn pause_signing(
        &mut self,
        store: &Store,
        mut reason: String,
        now_ms: u64,
    ) -> Result<(), CommitError> {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        let pause = Pause {
            reason,
            since_ms: now_ms,
        };
        let mut changes = Changes::new();
        changes.put(&PAUSE, &(), &pause);
        store.commit(changes)?;
        self.pause = Some(pause);
        Ok(())
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// Fatal (S11).
    pub fn resume(&mut self, store: &Store) -> Result<(), CommitError> {
        let mut changes = Changes::new();
        changes.delete(&PAUSE, &());
        store.commit(changes)?;
        self.pause = None;
        Ok(())
    }

    /// Notes that these operations of a batch wait for a decision. Gives those that were not known to.
    ///
    /// # Errors
    /// Fatal (S11).
    pub fn wait(
        &mut self,
        store: &Store,
        operations: Vec<(OperationId, Operation)>,
        sequence: SequenceNumber,
        now_ms: u64,
    ) -> Result<Vec<OperationId>, CommitError> {
        let mut changes = Changes::new();
        let mut waiting = self.waiting.clone();
        let mut new = Vec::new();
        for (id, operation) in operations {
            let known = waiting.get(&id);
            if known.is_some_and(|known| known.sequence == sequence) {
                continue;
            }
            if known.is_none() {
                new.push(id);
            }
            let row = Waiting {
                operation,
                sequence,
                first_seen_ms: known.map_or(now_ms, |known| known.first_seen_ms),
            };
            changes.put(&WAITING, &id.0, &row);
            waiting.insert(id, row);
        }
        while waiting.len() > MAX_WAITING {
            let oldest = waiting.iter().min_by_key(|(_, row)| row.first_seen_ms);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                break;
            };
            waiting.remove(&oldest);
            changes.delete(&WAITING, &oldest.0);
        }
        if !changes.is_empty() {
            store.commit(changes)?;
        }
        self.waiting = waiting;
        Ok(new)
    }

    /// Lets an operation that waits, or was rejected, be signed in spite of its amount.
    ///
    /// # Errors
    /// [`DecideError`]; nothing has changed then.
    pub fn approve(
        &mut self,
        store: &Store,
        id: OperationId,
        now_ms: u64,
    ) -> Result<(), DecideError> {
        if !self.waiting.contains_key(&id) && !self.decided.contains_key(&id) {
            return Err(DecideError::Unknown(id));
        }
        self.decide(store, id, Verdict::Approved, now_ms)
    }

    /// Keeps an operation out of every batch that is signed here, whether it waits or not.
    ///
    /// # Errors
    /// [`DecideError`]; nothing has changed then.
    pub fn reject(
        &mut self,
        store: &Store,
        id: OperationId,
        now_ms: u64,
    ) -> Result<(), DecideError> {
        self.decide(store, id, Verdict::Rejected, now_ms)
    }

    fn decide(
        &mut self,
        store: &Store,
        id: OperationId,
        verdict: Verdict,
        at_ms: u64,
    ) -> Result<(), DecideError> {
        let before = self.decided.get(&id);
        if before.is_none() && self.decided.len() >= MAX_DECIDED {
            return Err(DecideError::Full);
        }
        let about = self.waiting.get(&id).cloned();
        let decision = Decision {
            verdict,
            at_ms,
            about: about.or_else(|| before.and_then(|before| before.about.clone())),
        };
        let mut changes = Changes::new();
        changes.put(&DECIDED, &id.0, &decision);
        changes.delete(&WAITING, &id.0);
        store.commit(changes)?;
        self.waiting.remove(&id);
        self.decided.insert(id, decision);
        Ok(())
    }

    /// Forgets operations that can't be in a batch any more: those in final batches, and those that expired
    /// before `last_final`.
    ///
    /// # Errors
    /// Fatal (S11).
    pub fn settle(
        &mut self,
        store: &Store,
        last_final: SequenceNumber,
        done: &BTreeSet<OperationId>,
    ) -> Result<(), CommitError> {
        let over = |id: &OperationId, about: Option<&Waiting>| {
            let last_valid = about.and_then(|about| about.operation.last_valid());
            done.contains(id) || last_valid.is_some_and(|last_valid| last_valid <= last_final)
        };
        let mut changes = Changes::new();
        let mut left = self.clone();
        left.settled = last_final;
        left.waiting.retain(|id, row| !over(id, Some(row)));
        left.decided.retain(|id, row| !over(id, row.about.as_ref()));
        for id in self.waiting.keys() {
            if !left.waiting.contains_key(id) {
                changes.delete(&WAITING, &id.0);
            }
        }
        for id in self.decided.keys() {
            if !left.decided.contains_key(id) {
                changes.delete(&DECIDED, &id.0);
            }
        }
        changes.put(&SETTLED, &(), &last_final.0);
        store.commit(changes)?;
        *self = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn id(n: u8) -> OperationId {
        OperationId([n; 32])
    }

    /// Valid up to batch 10.
    fn operation() -> Operation {
        testing::withdrawal(50_000)
    }

    fn wait(decisions: &mut Decisions, store: &Store, n: u8, sequence: u64) -> Vec<OperationId> {
        let operations = vec![(id(n), operation())];
        decisions
            .wait(store, operations, SequenceNumber(sequence), u64::from(n))
            .unwrap()
    }

    #[test]
    fn decisions_pause_and_what_waits_are_there_after_a_restart() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::load(&store).unwrap();
        assert_eq!(decisions, Decisions::default());
        for n in 1..=4 {
            wait(&mut decisions, &store, n, 1);
        }
        decisions.approve(&store, id(1), 10).unwrap();
        decisions.reject(&store, id(2), 11).unwrap();
        decisions
            .pause_signing(&store, "a drill".to_owned(), 12)
            .unwrap();
        assert_eq!(Decisions::load(&store).unwrap(), decisions);
        assert_eq!(decisions.verdict(&id(1)), Some(Verdict::Approved));
        assert_eq!(decisions.verdict(&id(2)), Some(Verdict::Rejected));
        assert_eq!(decisions.verdict(&id(3)), None);
        assert_eq!(decisions.waiting().len(), 2);
        assert!(decisions.decided()[&id(1)].about.is_some());
        let listing = decisions.listing(Network::Regtest);
        assert_eq!((listing.pending.len(), listing.decided.len()), (2, 2));
        let about = listing.pending[0].about.as_ref().unwrap();
        let address = testing::vault_key().address().unwrap().to_string();
        assert_eq!((about.amount_sat, &about.destination), (50_000, &address));

        decisions.resume(&store).unwrap();
        let done = BTreeSet::from([id(1), id(3)]);
        decisions.settle(&store, SequenceNumber(1), &done).unwrap();
        assert_eq!(Decisions::load(&store).unwrap(), decisions);
        assert!(decisions.pause().is_none());
        assert_eq!(decisions.verdict(&id(1)), None);
        assert_eq!(decisions.verdict(&id(2)), Some(Verdict::Rejected));
        assert_eq!(decisions.waiting().len(), 1);

        // Operations that have expired are over as well.
        let none = BTreeSet::new();
        decisions.settle(&store, SequenceNumber(9), &none).unwrap();
        assert_eq!(decisions.decided().len(), 1);
        decisions.settle(&store, SequenceNumber(10), &none).unwrap();
        assert!(decisions.decided().is_empty() && decisions.waiting().is_empty());
        assert_eq!(Decisions::load(&store).unwrap(), decisions);
    }

    #[test]
    fn an_operation_is_new_once_and_keeps_the_time_at_which_it_was_seen_first() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        assert_eq!(wait(&mut decisions, &store, 7, 1), [id(7)]);
        let again = vec![(id(7), operation())];
        let new = decisions
            .wait(&store, again, SequenceNumber(2), 99)
            .unwrap();
        assert!(new.is_empty());
        let row = &decisions.waiting()[&id(7)];
        assert_eq!((row.first_seen_ms, row.sequence), (7, SequenceNumber(2)));
    }

    #[test]
    fn only_what_was_seen_is_approved_and_a_decision_can_be_changed() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        let unknown = decisions.approve(&store, id(1), 0);
        assert!(matches!(unknown, Err(DecideError::Unknown(_))));
        decisions.reject(&store, id(1), 0).unwrap();
        assert_eq!(decisions.verdict(&id(1)), Some(Verdict::Rejected));
        decisions.approve(&store, id(1), 1).unwrap();
        assert_eq!(decisions.verdict(&id(1)), Some(Verdict::Approved));
        assert_eq!(Decisions::load(&store).unwrap(), decisions);
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_gives_way() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        let one = operation();
        let many = (0..=MAX_WAITING).map(|n| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&u64::try_from(n).unwrap().to_be_bytes());
            (OperationId(bytes), one.clone())
        });
        let first = vec![(id(9), operation())];
        decisions.wait(&store, first, SequenceNumber(1), 0).unwrap();
        decisions
            .wait(&store, many.skip(1).collect(), SequenceNumber(1), 5)
            .unwrap();
        assert_eq!(decisions.waiting().len(), MAX_WAITING);
        assert!(!decisions.waiting().contains_key(&id(9)));
        assert_eq!(Decisions::load(&store).unwrap(), decisions);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        decisions
            .pause_signing(&store, "ö".repeat(MAX_REASON_BYTES), 0)
            .unwrap();
        assert_eq!(decisions.pause().unwrap().reason.len(), MAX_REASON_BYTES);
        assert!(decisions.pause().unwrap().describe().starts_with("paused"));
    }
}
