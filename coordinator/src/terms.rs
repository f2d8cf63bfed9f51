//! Deposit terms that were shown to somebody: stored, counted, and their addresses watched.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::{deposit::DepositAddress, identity::PeerKey, request, roster::Roster};
use storage::{Changes, Direction, Store};

use crate::{
    live::Watched,
    pipeline::stop_on_failed_write,
    records::{TERMS, TERMS_FROM},
};

/// Most deposit terms that are kept, and so most addresses that are watched.
pub const MAX_TERMS: usize = 1_000_000;

/// Why terms were not kept; their address must not be shown.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// No room.
    #[error("no more deposit addresses can be kept")]
    Full,
    /// The database.
    #[error("the terms could not be stored: {0}")]
    Storage(String),
}

/// The terms that are kept.
pub struct Shown {
    store: Store,
    watched: Watched,
    roster: Arc<Roster>,
    /// `None` when they could not be counted.
    count: Mutex<Option<usize>>,
}

impl Shown {
    /// Counts what is stored.
    pub fn new(store: Store, watched: Watched, roster: Arc<Roster>) -> Self {
        let count = || -> Result<usize, storage::ReadError> {
            let rows = store.iter(&TERMS, .., Direction::Forward, MAX_TERMS)?;
            rows.map(|row| row.map(|_| 1)).sum()
        };
        let count = count()
            .inspect_err(
                |error| tracing::error!(%error, "the stored deposit terms can't be counted"),
            )
            .ok();
        Self {
            store,
            watched,
            roster,
            count: Mutex::new(count),
        }
    }

    /// Stores terms durably and watches their address; `from` says which other node has handed them on, which has its
    /// share of the room only. The same again changes nothing.
    ///
    /// # Errors
    /// [`KeepError`]. A failed write stops the process (S11).
    pub fn keep(&self, address: &DepositAddress, from: Option<PeerKey>) -> Result<(), KeepError> {
        let hash = address.terms.hash();
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let storage = |error: &dyn std::fmt::Display| KeepError::Storage(error.to_string());
        let known = self
            .store
            .get(&TERMS, &hash.0)
            .map_err(|error| storage(&error))?;
        if known.is_none() {
            let more = count
                .and_then(|count| count.checked_add(1))
                .filter(|count| *count <= MAX_TERMS)
                .ok_or(KeepError::Full)?;
            let mut changes = Changes::new();
            if let Some(giver) = from {
                let given = self
                    .store
                    .get(&TERMS_FROM, &giver.0)
                    .map_err(|error| storage(&error))?
                    .unwrap_or(0);
                let most = request::share_of(MAX_TERMS, &self.roster, &giver);
                if usize::try_from(given).is_ok_and(|given| given >= most) {
                    return Err(KeepError::Full);
                }
                changes.put(&TERMS_FROM, &giver.0, &given.saturating_add(1));
            }
            changes.put(&TERMS, &hash.0, &address.terms);
            self.store
                .commit(changes)
                .unwrap_or_else(|error| stop_on_failed_write(&error));
            *count = Some(more);
        }
        drop(count);
        // Stored, so a restart watches it too. Watched before anybody can pay it.
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        watched.insert(address.script_pubkey.clone(), hash);
        Ok(())
    }
}
