//! Deposit terms that were shown to somebody: stored, counted, and their addresses watched.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

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
        self.keep_all(std::slice::from_ref(address), from)
    }

    /// [`Self::keep`] of several in one write. At the first without room the others are not kept either.
    ///
    /// # Errors
    /// [`KeepError`]; what came before the one without room is kept.
    pub fn keep_all(
        &self,
        addresses: &[DepositAddress],
        from: Option<PeerKey>,
    ) -> Result<(), KeepError> {
        let storage = |error: &dyn std::fmt::Display| KeepError::Storage(error.to_string());
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut giver = match from {
            Some(giver) => {
                let given = self.store.get(&TERMS_FROM, &giver.0);
                let given = given.map_err(|error| storage(&error))?.unwrap_or(0);
                let most = request::share_of(MAX_TERMS, &self.roster, &giver);
                Some((giver, given, u64::try_from(most).unwrap_or(u64::MAX)))
            }
            None => None,
        };
        let (mut changes, mut more, mut is_full) = (Changes::new(), *count, false);
        let (mut new, mut kept) = (BTreeSet::new(), Vec::new());
        for address in addresses {
            let hash = address.terms.hash();
            let known = self.store.get(&TERMS, &hash.0);
            let is_known = known.map_err(|error| storage(&error))?.is_some();
            if !is_known && !new.contains(&hash.0) {
                let after = more.and_then(|count| count.checked_add(1));
                let has_share = giver.is_none_or(|(_, given, most)| given < most);
                let Some(after) = after.filter(|count| *count <= MAX_TERMS && has_share) else {
                    is_full = true;
                    break;
                };
                more = Some(after);
                if let Some((_, given, _)) = &mut giver {
                    *given = given.saturating_add(1);
                }
                changes.put(&TERMS, &hash.0, &address.terms);
                new.insert(hash.0);
            }
            kept.push((address.script_pubkey.clone(), hash));
        }
        if !new.is_empty() {
            if let Some((giver, given, _)) = giver {
                changes.put(&TERMS_FROM, &giver.0, &given);
            }
            self.store
                .commit(changes)
                .unwrap_or_else(|error| stop_on_failed_write(&error));
            *count = more;
        }
        drop(count);
        // Stored, so a restart watches them too. Watched before anybody can pay them.
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        watched.extend(kept);
        if is_full {
            Err(KeepError::Full)
        } else {
            Ok(())
        }
    }
}
