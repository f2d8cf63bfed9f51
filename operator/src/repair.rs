//! Repair of a lost share (`threshold::repair`): what is on disk about it, the helpers' side and the member's.
//!
//! ```text
//! helper:  administrator approves the member's new key --> on disk --> Helping answers that member, and no other
//! member:  administrator asks for the repair --> on disk --> Repairing: group from t equal answers, t helpers that are
//!          ready, one run; a liar or a silent one is left out of the next --> share, checked --> sealed file
//! ```
//!
//! Approvals hold for one epoch: the refresh that follows a repair ends them.

mod helping;
mod repairing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use protocol::identity::PeerKey;
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};
use threshold::SignerId;

pub use helping::Helping;
pub use repairing::{Repairing, Shown};

/// Approved members, by identity key.
const APPROVALS: Table<[u8; 32], Approval> = Table::new("repair_approvals", 1);
/// The repair of the own share.
const OWN: Table<(), OwnRepair> = Table::new("own_repair", 1);

/// The tables of this module.
pub const TABLES: [ColumnName; 2] = [APPROVALS.name(), OWN.name()];

/// The most approvals that are kept: one for every operator that can be.
const MAX_APPROVALS: usize = protocol::roster::MAX_OPERATORS;

/// An administrator's word that the holder of a key may have its share repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Whose share.
    pub signer: SignerId,
    /// The epoch at which it was given, and the only one for which it holds.
    pub epoch: u32,
}

/// A member whose repair an administrator is asked to approve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name in the roster.
    pub name: String,
    /// The identity that would get the share.
    pub key: String,
    /// The identity that it took part in key generation with.
    pub founding_key: String,
    /// Its FROST identifier.
    pub signer: String,
    /// The epoch of the shares: the approval ends with it.
    pub epoch: u32,
    /// Whether it is approved already.
    pub approved: bool,
}

/// Where the repair of the own share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnRepair {
    /// The administrator has asked for it.
    Asked,
    /// Done, at this epoch: until the next one, somebody may hold what was lost.
    Done {
        /// The epoch.
        epoch: u32,
    },
}

/// The approvals on disk.
///
/// # Errors
/// A damaged database.
pub fn load_approvals(store: &Store) -> Result<BTreeMap<PeerKey, Approval>, ReadError> {
    let mut approvals = BTreeMap::new();
    for row in store.iter(&APPROVALS, .., Direction::Forward, MAX_APPROVALS)? {
        let (key, approval) = row?;
        approvals.insert(PeerKey(key), approval);
    }
    Ok(approvals)
}

/// Writes an approval. It is there to stay when this returns.
///
/// # Errors
/// A failed write.
pub fn save_approval(store: &Store, key: &PeerKey, approval: &Approval) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&APPROVALS, &key.0, approval);
    store.commit(changes)
}

/// Takes approvals back, or forgets those of an epoch that is over.
///
/// # Errors
/// A failed write.
pub fn delete_approvals<'a>(
    store: &Store,
    keys: impl IntoIterator<Item = &'a PeerKey>,
) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    for key in keys {
        changes.delete(&APPROVALS, &key.0);
    }
    store.commit(changes)
}

/// Where the repair of the own share is; `None` if there never was one.
///
/// # Errors
/// A damaged database.
pub fn load_own(store: &Store) -> Result<Option<OwnRepair>, ReadError> {
    store.get(&OWN, &())
}

/// Writes where the repair of the own share is.
///
/// # Errors
/// A failed write.
pub fn save_own(store: &Store, own: &OwnRepair) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&OWN, &(), own);
    store.commit(changes)
}
