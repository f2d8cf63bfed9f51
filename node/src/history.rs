//! The confirmed batches of one vault, as this node's own Bitcoin node shows them, and the ledger that
//! they make. A batch counts when its transaction is in the best chain; its body comes from what this
//! node has kept, and must give the digest that the chain committed to.
//!
//! ```text
//! genesis treasury --batch 1--> treasury --batch 2--> treasury ...   from blocks (take)
//!      ledger 0    --body 1-->  ledger 1 --body 2-->  ledger 2 ...   from kept bodies (catch_up)
//!                                  '--> accounts on disk, some batches behind (snapshot)
//! ```

mod adopt;
mod snapshot;
mod trail;

use std::{collections::VecDeque, sync::Arc};

use bitcoin::{Amount, Txid};
use chain::{
    follow::{ChainEvent, Step},
    position::Position,
};
use ledger::{Ledger, Operation, OperationError, Replayed, SequenceNumber, Transition};
use protocol::{
    batch::{Body, BodyError, BodyHash, Candidate},
    transaction::{Commitment, Treasury},
    vault::Vault,
};
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

use crate::displaced::{DISPLACED, DisplacedSet, Lost};

pub use snapshot::{ACCOUNTS, SNAPSHOT, Snapshot, settle};
pub use trail::Trail;

/// Encoded bodies by their hash. Kept forever.
pub const BODIES: Table<[u8; 32], Vec<u8>> = Table::new("bodies", 1);
/// Candidates by their transaction id. Kept forever.
pub const CANDIDATES: Table<Txid, Candidate> = Table::new("candidates", 1);
/// The treasury's chain in the best chain, by sequence number from 1.
pub const CONFIRMED: Table<u64, Confirmed> = Table::new("confirmed", 1);
/// Where the chain follower stands.
pub const POSITION: Table<(), Position> = Table::new("position", 1);
/// Height of the last block before the reorganisation that is being taken in.
const TOP: Table<(), u32> = Table::new("reorganised_from", 1);
/// The unknown transaction in the best chain that spends the treasury, and the height of its block.
const STOLEN: Table<(), (Txid, u32)> = Table::new("stolen", 1);
/// Why this node does not go on (S14); somebody has to look first.
pub const ALARM: Table<(), String> = Table::new("alarm", 1);
/// All tables that [`History`] and [`crate::certificate`] need.
pub const TABLES: [ColumnName; 12] = [
    BODIES.name(),
    CANDIDATES.name(),
    CONFIRMED.name(),
    POSITION.name(),
    TOP.name(),
    STOLEN.name(),
    ALARM.name(),
    ACCOUNTS.name(),
    SNAPSHOT.name(),
    DISPLACED.name(),
    crate::certificate::CERTIFICATE.name(),
    crate::certificate::EPOCH.name(),
];

/// Batches that can be undone in memory; a deeper reorganisation replays from genesis.
pub const MAX_UNDO: usize = 16;

/// A batch in the best chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The treasury that it made.
    pub treasury: Treasury,
    /// Height of its block.
    pub height: u32,
    /// Its transaction.
    pub txid: Txid,
}

/// What a block changed.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Batches that joined the best chain, in order.
    pub connected: Vec<Confirmed>,
    /// Batches that left it, newest first.
    pub disconnected: Vec<Confirmed>,
    /// A transaction that spends the treasury and is no batch of this vault (S14).
    pub unknown_spend: Option<Txid>,
    /// A reorganisation took what was final: so many blocks have left the chain.
    pub too_deep: Option<u32>,
}

impl Moved {
    /// Why signing must stop until somebody has looked at it (S14).
    pub fn alarm(&self) -> Option<String> {
        if let Some(txid) = self.unknown_spend {
            return Some(format!(
                "the unknown transaction {txid} spends the treasury"
            ));
        }
        let depth = self.too_deep?;
        Some(format!(
            "{depth} blocks left the chain, more than may after what is shown as final"
        ))
    }
}

/// Why the history can't go on. All of these are local faults, or a fault of the chain's digest.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The database.
    #[error("reading the history failed")]
    Read(#[from] ReadError),
    /// The disk (S11).
    #[error("writing the history failed")]
    Commit(#[from] CommitError),
    /// A kept body does not decode.
    #[error("the kept body of batch {0} is damaged")]
    Body(u64, #[source] BodyError),
    /// A kept body can't be replayed.
    #[error("operation {1} of confirmed batch {0} does not apply")]
    Operation(u64, usize, #[source] OperationError),
    /// Replaying gives another digest than the chain has.
    #[error("batch {0} replays to another digest or supply than its transaction commits to")]
    Digest(u64),
    /// Numbers in the table are not consecutive.
    #[error("batch {0} is missing from the history table")]
    Gap(u64),
}

/// Stores a batch's data durably: body and candidate in one write.
///
/// # Errors
/// A failed safety write: the caller stops (S11).
#[track_caller]
pub fn keep(store: &Store, candidate: &Candidate, body: &[u8]) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    keep_in(&mut changes, candidate, body);
    store.commit(changes)
}

/// [`keep`] as a part of a larger write.
pub fn keep_in(changes: &mut Changes, candidate: &Candidate, body: &[u8]) {
    changes.put(&BODIES, &candidate.body.0, &body.to_vec());
    changes.put(&CANDIDATES, &candidate.txid, candidate);
}

/// An encoded body that was kept.
///
/// # Errors
/// A damaged database.
pub fn kept_body(store: &Store, hash: &BodyHash) -> Result<Option<Vec<u8>>, ReadError> {
    store.get(&BODIES, &hash.0)
}

/// A candidate that was kept.
///
/// # Errors
/// A damaged database.
pub fn kept_candidate(store: &Store, txid: &Txid) -> Result<Option<Candidate>, ReadError> {
    store.get(&CANDIDATES, txid)
}

/// The confirmed batches and their ledger.
pub struct History {
    store: Store,
    vault: Arc<Vault>,
    position: Position,
    trail: Trail,
    ledger: Ledger,
    /// Batches that the ledger has applied; at most as many as are in the trail.
    applied: usize,
    undo: VecDeque<Replayed>,
    displaced: DisplacedSet,
}

impl History {
    /// Opens the history: the ledger from its snapshot on disk, then the kept batches that follow. `start` is the first
    /// block to look at when nothing is stored yet: any height from the genesis on, and none after the first batch.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn open(store: Store, vault: Arc<Vault>, start: u32) -> Result<Self, HistoryError> {
        let position = store
            .get(&POSITION, &())?
            .unwrap_or_else(|| Position::starting_at(start));
        let ledger = Ledger::new();
        let genesis = Treasury {
            outpoint: vault.genesis_output().outpoint,
            value: vault.genesis_output().amount,
            commitment: Commitment {
                sequence: SequenceNumber(0),
                supply: Amount::ZERO,
                digest: ledger.digest().to_bytes(),
            },
        };
        let mut confirmed = Vec::new();
        for row in store.iter(&CONFIRMED, .., Direction::Forward, usize::MAX)? {
            let (sequence, row) = row?;
            let expected = number(confirmed.len());
            if sequence != expected {
                return Err(HistoryError::Gap(expected));
            }
            confirmed.push(row);
        }
        let (displaced, top) = (DisplacedSet::load(&store)?, store.get(&TOP, &())?);
        let stolen = store.get(&STOLEN, &())?;
        let mut history = Self {
            store,
            vault,
            position,
            trail: Trail::new(genesis, confirmed, top, stolen),
            ledger,
            applied: 0,
            undo: VecDeque::new(),
            displaced,
        };
        history.start_over();
        history.catch_up()?;
        Ok(history)
    }

    /// The treasury at the end of the chain.
    pub fn head(&self) -> Treasury {
        self.trail.head()
    }

    /// Where the follower goes on.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Height of the last block taken in.
    pub fn height(&self) -> u32 {
        self.position.next_height().saturating_sub(1)
    }

    /// The ledger after the applied batches.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Batches that the ledger has applied: the sequence number of the last of them.
    pub fn applied(&self) -> u64 {
        number(self.applied).saturating_sub(1)
    }

    /// Has the ledger reached the head?
    pub fn is_current(&self) -> bool {
        self.applied == self.trail.confirmed().len()
    }

    /// A confirmed batch.
    pub fn confirmed(&self, sequence: SequenceNumber) -> Option<&Confirmed> {
        self.trail.at(sequence)
    }

    /// The unknown transaction in the best chain that spends the treasury, if there is one: no batch can follow then.
    pub fn unknown_spend(&self) -> Option<Txid> {
        self.trail.stolen().map(|(txid, _)| txid)
    }

    /// Why a transaction that was in a block can't be confirmed any more, if that is `confirmations` blocks deep.
    pub fn lost(&self, txid: &Txid, confirmations: u32) -> Option<Lost> {
        self.displaced
            .lost(txid)
            .filter(|lost| self.is_deep(lost, confirmations))
    }

    /// All transactions that can't be confirmed any more for as many blocks.
    pub fn all_lost(&self, confirmations: u32) -> Vec<(Txid, Lost)> {
        let all = self.displaced.all_lost();
        all.filter(|(_, lost)| self.is_deep(lost, confirmations))
            .collect()
    }

    fn is_deep(&self, lost: &Lost, confirmations: u32) -> bool {
        self.height().saturating_add(1).saturating_sub(lost.height) >= confirmations
    }

    /// The treasury that the batch of that number spends, if it is known.
    pub fn parent(&self, sequence: SequenceNumber) -> Option<Treasury> {
        match sequence.0.checked_sub(1)? {
            0 => Some(self.trail.genesis()),
            before => self
                .confirmed(SequenceNumber(before))
                .map(|batch| batch.treasury),
        }
    }

    /// The first confirmed batch whose body is not at hand.
    pub fn missing(&self) -> Option<(SequenceNumber, Txid)> {
        let next = self.trail.confirmed().get(self.applied)?;
        Some((next.treasury.commitment.sequence, next.txid))
    }

    /// Replays operations on the ledger and takes them back.
    ///
    /// # Errors
    /// The first operation that does not apply, and why.
    pub fn replay(
        &mut self,
        operations: &[Operation],
        sequence: SequenceNumber,
    ) -> Result<Transition, (usize, OperationError)> {
        let transition = self
            .ledger
            .apply_batch(operations, &self.vault.id(), sequence)?;
        if let Err(error) = self.ledger.revert(&transition) {
            // Can't happen right after an apply. If it did, the ledger would be wrong: rebuild it.
            tracing::error!(%error, "a previewed batch could not be taken back; replaying the history");
            self.start_over();
        }
        Ok(transition)
    }

    /// Takes one step of the chain in: stores the position with what follows from the block.
    ///
    /// # Errors
    /// [`HistoryError`]; a failed write is fatal (S11).
    pub fn take(&mut self, step: Step) -> Result<Moved, HistoryError> {
        let mut changes = Changes::new();
        let (top, stolen) = (self.trail.top(), self.trail.stolen());
        let moved = match step.event {
            ChainEvent::Connected { height, block, .. } => {
                self.displaced.join(height, &block, &mut changes);
                self.trail.connect(self.vault.key(), height, &block)
            }
            ChainEvent::Disconnected { height, block, .. } => {
                self.displaced.leave(height, block.as_deref(), &mut changes);
                let final_confirmations = self.vault.parameters().final_confirmations;
                self.trail.disconnect(height, final_confirmations)
            }
        };
        for row in &moved.disconnected {
            changes.delete(&CONFIRMED, &row.treasury.commitment.sequence.0);
        }
        for row in &moved.connected {
            changes.put(&CONFIRMED, &row.treasury.commitment.sequence.0, row);
        }
        if self.trail.top() != top {
            put_or_delete(&mut changes, &TOP, self.trail.top());
        }
        if self.trail.stolen() != stolen {
            put_or_delete(&mut changes, &STOLEN, self.trail.stolen());
        }
        // In the same write: the step is not seen again after a crash.
        if let Some(reason) = moved.alarm() {
            changes.put(&ALARM, &(), &reason);
        }
        changes.put(&POSITION, &(), &step.position);
        self.store.commit(changes)?;
        self.position = step.position;
        self.rewind();
        self.catch_up()?;
        Ok(moved)
    }

    /// Applies the bodies that are at hand, up to the head.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn catch_up(&mut self) -> Result<(), HistoryError> {
        while let Some(next) = self.trail.confirmed().get(self.applied).copied() {
            let Some(body) = self.body_of(&next)? else {
                return Ok(());
            };
            let commitment = next.treasury.commitment;
            let sequence = commitment.sequence.0;
            let replayed = self
                .ledger
                .replay(&body.operations, &self.vault.id(), commitment.sequence)
                .map_err(|(index, error)| HistoryError::Operation(sequence, index, error))?;
            if !is_committed_to(&replayed, &commitment) {
                return Err(HistoryError::Digest(sequence));
            }
            self.follow(replayed)?;
        }
        Ok(())
    }

    /// Counts the batch that the ledger has just replayed. What can't be undone any more goes to disk.
    fn follow(&mut self, replayed: Replayed) -> Result<(), HistoryError> {
        self.applied = self.applied.saturating_add(1);
        self.undo.push_back(replayed);
        if self.undo.len() > MAX_UNDO
            && let Some(settled) = self.undo.pop_front()
        {
            let left = self.undo.len().saturating_add(1);
            let sequence = SequenceNumber(number(self.applied.saturating_sub(left)));
            let mut changes = Changes::new();
            settle(&mut changes, sequence, &settled);
            self.store.commit(changes)?;
        }
        Ok(())
    }

    /// Takes a batch back that the ledger has just replayed and that does not count.
    fn take_back(&mut self, replayed: &Replayed) {
        if let Err(error) = self.ledger.take_back(replayed) {
            // As in [`Self::replay`].
            tracing::error!(%error, "a batch could not be taken back; replaying the history");
            self.start_over();
        }
    }

    /// The body of a confirmed batch, if it is kept.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn body_of(&self, batch: &Confirmed) -> Result<Option<Body>, HistoryError> {
        let Some(candidate) = kept_candidate(&self.store, &batch.txid)? else {
            return Ok(None);
        };
        let Some(bytes) = kept_body(&self.store, &candidate.body)? else {
            return Ok(None);
        };
        Body::decode(&bytes)
            .map(Some)
            .map_err(|error| HistoryError::Body(batch.treasury.commitment.sequence.0, error))
    }

    /// Takes batches back that are no longer confirmed.
    fn rewind(&mut self) {
        while self.applied > self.trail.confirmed().len() {
            let undone = self
                .undo
                .pop_back()
                .is_some_and(|batch| self.ledger.take_back(&batch).is_ok());
            if !undone {
                self.start_over();
                return;
            }
            self.applied = self.applied.saturating_sub(1);
        }
    }

    /// Back to the snapshot, or to the genesis if it is of no use; [`Self::catch_up`] does the rest.
    fn start_over(&mut self) {
        self.undo.clear();
        let loaded = snapshot::load(&self.store, &self.trail).unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "the ledger's snapshot is of no use; replaying all batches"
            );
            None
        });
        (self.ledger, self.applied) = match loaded {
            Some((ledger, sequence)) => {
                // As many batches as the trail has at least.
                let applied = usize::try_from(sequence.0).unwrap_or(usize::MAX);
                (ledger, applied)
            }
            None => (Ledger::new(), 0),
        };
    }
}

/// Whether a batch has led to the state that a transaction commits to.
fn is_committed_to(replayed: &Replayed, commitment: &Commitment) -> bool {
    replayed.after.digest().to_bytes() == commitment.digest
        && replayed.after.supply == commitment.supply
}

fn put_or_delete<T: Serialize + serde::de::DeserializeOwned>(
    changes: &mut Changes,
    table: &Table<(), T>,
    value: Option<T>,
) {
    match value {
        Some(value) => changes.put(table, &(), &value),
        None => changes.delete(table, &()),
    }
}

/// Sequence number of the batch at a place of the list.
fn number(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1)
}
