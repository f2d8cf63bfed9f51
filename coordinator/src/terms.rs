//! Deposit terms that were shown to somebody: stored, counted, and their addresses watched.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use bitcoin::{Block, Script, ScriptBuf, XOnlyPublicKey};
use protocol::{
    deposit::{DepositAddress, TermsHash},
    identity::PeerKey,
    request,
    roster::Roster,
};
use storage::{Changes, CommitError, Direction, ReadError, Store};

use crate::{
    pipeline::stop_on_failed_write,
    records::{TERMS, TERMS_FROM, WATCHED, WATCHED_ALL},
};

/// Most deposit terms that are kept, and so most addresses that are watched.
pub const MAX_TERMS: usize = 1_000_000;

/// Addresses that are written at once by [`watch_all`].
const AT_ONCE: usize = 10_000;

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
    roster: Arc<Roster>,
    /// `None` when they could not be counted.
    count: Mutex<Option<usize>>,
}

impl Shown {
    /// Counts what is stored.
    pub fn new(store: Store, roster: Arc<Roster>) -> Self {
        let count = store
            .count(&TERMS)
            .inspect_err(
                |error| tracing::error!(%error, "the stored deposit terms can't be counted"),
            )
            .ok();
        Self {
            store,
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
        let mut new = BTreeSet::new();
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
                put(&mut changes, address);
                new.insert(hash.0);
            }
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
        if is_full {
            Err(KeepError::Full)
        } else {
            Ok(())
        }
    }
}

/// Writes terms, and has blocks searched for their address.
pub fn put(changes: &mut Changes, address: &DepositAddress) {
    changes.put(&TERMS, &address.terms.hash().0, &address.terms);
    watch(changes, address);
}

fn watch(changes: &mut Changes, address: &DepositAddress) {
    if let Some(key) = output_key(&address.script_pubkey) {
        changes.put(&WATCHED, &key, &address.terms.hash().0);
    }
}

/// Has blocks searched for the addresses of all stored terms, if an earlier release has written some of them.
///
/// # Errors
/// A damaged database. A failed write is fatal (S11).
pub fn watch_all(store: &Store, group: &XOnlyPublicKey) -> Result<(), WatchError> {
    if store.get(&WATCHED_ALL, &())?.is_some() {
        return Ok(());
    }
    let mut changes = Changes::new();
    let rows = store.iter(&TERMS, .., Direction::Forward, usize::MAX)?;
    for (row, number) in rows.zip(1_usize..) {
        let (_, terms) = row?;
        match terms.address(group) {
            Ok(address) => watch(&mut changes, &address),
            Err(error) => tracing::error!(%error, "stored terms give no address"),
        }
        if number.is_multiple_of(AT_ONCE) {
            store.commit(std::mem::take(&mut changes))?;
        }
    }
    changes.put(&WATCHED_ALL, &(), &());
    Ok(store.commit(changes)?)
}

/// Why the addresses of stored terms could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The database.
    #[error("reading the stored deposit terms failed")]
    Read(#[from] ReadError),
    /// The disk (S11).
    #[error("writing the addresses of deposit terms failed")]
    Commit(#[from] CommitError),
}

/// The shown addresses that a block pays, and of which terms they are.
///
/// # Errors
/// A damaged database.
pub fn paid_in(store: &Store, block: &Block) -> Result<HashMap<ScriptBuf, TermsHash>, ReadError> {
    let mut paid = HashMap::new();
    for output in block.txdata.iter().flat_map(|paying| &paying.output) {
        let script = &output.script_pubkey;
        if let Some(key) = output_key(script)
            && let Some(hash) = store.get(&WATCHED, &key)?
        {
            paid.insert(script.clone(), TermsHash(hash));
        }
    }
    Ok(paid)
}

/// The key of a Taproot output, as all deposit addresses have one.
fn output_key(script: &Script) -> Option<[u8; 32]> {
    let (_, key) = script.as_bytes().split_at_checked(2)?;
    let is_taproot = script.is_p2tr();
    key.try_into().ok().filter(|_| is_taproot)
}
