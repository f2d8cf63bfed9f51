//! A copy of the ledger on disk, so that a start reads it instead of replaying all batches.
//!
//! ```text
//! batch 1 ... batch k | k+1 ... head
//! accounts on disk ---' '--- replayed at the start; can be undone in memory
//! ```
//!
//! It follows [`MAX_UNDO`](super::MAX_UNDO) batches behind the head, in a write a batch, so no reorganisation but a deep
//! one touches it. Nothing rests on it: it counts only if its accounts give the digest that batch k commits to in the
//! best chain, and whatever else is found there is replayed over, from the genesis.

use ledger::{Digest, Ledger, Replayed, SequenceNumber, StoredAccount, StoredError};
use serde::{Deserialize, Serialize};
use storage::{Changes, Direction, ReadError, Store, Table};

use super::Trail;

/// Accounts by index, as they are after the batch that [`SNAPSHOT`] names. Rows beyond its number of accounts are left
/// from what a deep reorganisation undid, and are overwritten before they count.
pub const ACCOUNTS: Table<u32, StoredAccount> = Table::new("accounts", 1);
/// How far [`ACCOUNTS`] are; written with them.
pub const SNAPSHOT: Table<(), Snapshot> = Table::new("snapshot", 1);

/// Which ledger the stored accounts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last batch that they have in them.
    pub sequence: SequenceNumber,
    /// How many there are.
    pub accounts: u32,
}

/// Why the snapshot can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    /// A row is damaged, or of another format version.
    #[error("it can't be read")]
    Read(#[from] ReadError),
    /// Its batch has left the best chain, or another one is in its place.
    #[error("it is of batch {0}, which is not in the best chain")]
    NoBatch(SequenceNumber),
    /// Its batch commits to no field element.
    #[error("its batch commits to no digest")]
    Commitment,
    /// Rows are missing.
    #[error("account {0} is missing")]
    Gap(u32),
    /// The accounts are not those after its batch.
    #[error("it is not the ledger of its batch")]
    Ledger(#[from] StoredError),
}

/// The stored ledger and its batch; `None` if nothing was stored yet.
pub(super) fn load(
    store: &Store,
    trail: &Trail,
) -> Result<Option<(Ledger, SequenceNumber)>, SnapshotError> {
    let Some(Snapshot { sequence, accounts }) = store.get(&SNAPSHOT, &())? else {
        return Ok(None);
    };
    let batch = trail.at(sequence).ok_or(SnapshotError::NoBatch(sequence))?;
    let expected = Digest::from_bytes(&batch.treasury.commitment.digest)
        .map_err(|_| SnapshotError::Commitment)?;
    let mut stored = Vec::new();
    let mut indices = 0..accounts;
    for row in store.iter(&ACCOUNTS, ..accounts, Direction::Forward, usize::MAX)? {
        let (index, account) = row?;
        let next = indices.next();
        if next != Some(index) {
            return Err(SnapshotError::Gap(next.unwrap_or(index)));
        }
        stored.push(account);
    }
    if let Some(missing) = indices.next() {
        return Err(SnapshotError::Gap(missing));
    }
    let ledger = Ledger::from_stored(&stored, &expected)?;
    Ok(Some((ledger, sequence)))
}

/// Takes the next batch into the snapshot: its accounts and its number, in one write.
pub fn settle(changes: &mut Changes, sequence: SequenceNumber, batch: &Replayed) {
    for (index, account) in batch.changed() {
        changes.put(&ACCOUNTS, &index.0, &StoredAccount::from(account));
    }
    let snapshot = Snapshot {
        sequence,
        // A tree has 2^24 leaves.
        accounts: u32::try_from(batch.accounts()).unwrap_or(u32::MAX),
    };
    changes.put(&SNAPSHOT, &(), &snapshot);
}
