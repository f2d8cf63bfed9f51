//! What must be on disk before something leaves this machine (S7, S11, S14). A write that fails ends
//! the process: going on could mean to sign twice.
//!
//! A share is made of a [`Promised`] and of nothing else, and there is one way to it:
//!
//! ```text
//! Evidence --verify::batch--> Verified --durable write--> Kept --verify::affirm--> Affirmed --.
//!                                                                                            |-- durable write --> Promised
//! proposal, receipts, sign request --protocol::signer--> Grant ------------------------------'
//! ```

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::OutPoint;
use ledger::SequenceNumber;
use node::history::ALARM;
use protocol::{
    message::SessionId,
    signer::{Grant, MAX_PROMISES, Promise, Quarantine, Signable},
};
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};
use threshold::GroupKey;

use crate::verify::{Affirmed, Verified, VerifiedGenesis};

/// The batches that a share was given for (S7), by sequence number and treasury.
const PROMISES: Table<(u64, OutPoint), Promise> = Table::new("promises", 2);
/// The one genesis that a share was given for.
const GENESIS: Table<(), GenesisPromise> = Table::new("genesis_promise", 1);
/// The key with which nothing was ever promised that is not in this database. A share of another key, or one that
/// finds no entry, comes from a backup or a repair.
const COMPLETE: Table<(), GroupKey> = Table::new("promises_complete", 1);
/// What an operator that has lost its promises waits for (S7).
const QUARANTINE: Table<(), Quarantine> = Table::new("quarantine", 2);

/// The tables of this module.
pub const TABLES: [ColumnName; 4] = [
    PROMISES.name(),
    GENESIS.name(),
    COMPLETE.name(),
    QUARANTINE.name(),
];

/// A genesis that this operator has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisPromise {
    /// The output.
    pub outpoint: OutPoint,
    /// Height of its block.
    pub height: u32,
}

impl GenesisPromise {
    /// The promise of a genesis that was verified.
    pub fn of(genesis: &VerifiedGenesis) -> Self {
        Self {
            outpoint: genesis.outpoint(),
            height: genesis.height(),
        }
    }
}

/// Everything promised so far.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// The latest batches, as many as `signer` holds.
    pub batches: BTreeMap<(SequenceNumber, OutPoint), Promise>,
    /// The genesis.
    pub genesis: Option<GenesisPromise>,
    /// The alarm.
    pub alarm: Option<String>,
    /// The quarantine, if promises were lost.
    pub quarantine: Option<Quarantine>,
}

/// A promise on disk: leave to make the shares of one attempt. Not to be copied: it is good for one.
#[derive(Debug)]
pub struct Promised {
    session: SessionId,
    attempt: u32,
    verified: Arc<Verified>,
}

/// Why a promise was not made.
#[derive(Debug, thiserror::Error)]
pub enum PromiseError {
    /// The signing machine and the verifier speak of different things; a fault of our own.
    #[error("the grant is not for what was verified in its session")]
    Mismatch,
    /// Fatal (S11).
    #[error("the promise could not be written")]
    Commit(#[from] CommitError),
}

impl Promised {
    /// Writes the promise that was granted, for what is kept, verified, and stood by now.
    ///
    /// # Errors
    /// [`PromiseError`]; nothing may be signed then.
    pub fn write(store: &Store, grant: Grant, affirmed: Affirmed) -> Result<Self, PromiseError> {
        let verified = affirmed.into_verified();
        match (grant.promise(), &*verified) {
            (Signable::Batch(promise), Verified::Batch(batch))
                if promise.txid == batch.candidate().txid
                    && (promise.body != batch.candidate().body
                        || promise.batch == batch.batch())
                    && promise.sequence == batch.candidate().sequence
                    && promise.parent == batch.candidate().parent =>
            {
                save_batch(store, promise)?;
            }
            (Signable::Genesis(outpoint), Verified::Genesis(genesis))
                if *outpoint == genesis.outpoint() =>
            {
                save_genesis(store, &GenesisPromise::of(genesis))?;
            }
            // The share of the new epoch stands for the promise: it was on disk before the claim was verified, and
            // stays there until a certificate.
            (Signable::Epoch(claim), Verified::Epoch(epoch)) if claim == epoch.claim() => {}
            _ => return Err(PromiseError::Mismatch),
        }
        Ok(Self {
            session: grant.session(),
            attempt: grant.attempt(),
            verified,
        })
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The attempt.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What may be signed.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }
}

/// Reads what was promised before the restart.
///
/// # Errors
/// A damaged database.
pub fn load(store: &Store) -> Result<Promises, ReadError> {
    let mut batches = BTreeMap::new();
    for row in store.iter(&PROMISES, .., Direction::Back, MAX_PROMISES)? {
        let ((sequence, parent), promise) = row?;
        batches.insert((SequenceNumber(sequence), parent), promise);
    }
    Ok(Promises {
        batches,
        genesis: store.get(&GENESIS, &())?,
        alarm: store.get(&ALARM, &())?,
        quarantine: store.get(&QUARANTINE, &())?,
    })
}

/// Whether everything that was promised with this key is in this database.
///
/// # Errors
/// A damaged database.
pub fn are_complete(store: &Store, key: GroupKey) -> Result<bool, ReadError> {
    Ok(store.get(&COMPLETE, &())? == Some(key))
}

/// Key generation has just given this key: nothing was promised with it yet.
///
/// # Errors
/// Fatal (S11).
pub fn save_complete(store: &Store, key: GroupKey) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&COMPLETE, &(), &key);
    store.commit(changes)
}

/// A share of this key has come from a backup or a repair: what was promised with it is lost. From now on this
/// database has all promises, and the quarantine covers those before. `lost_ms` is now, in Unix ms.
///
/// # Errors
/// Fatal (S11).
pub fn save_lost(store: &Store, key: GroupKey, lost_ms: u64) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&COMPLETE, &(), &key);
    changes.put(&QUARANTINE, &(), &Quarantine::Syncing { lost_ms });
    store.commit(changes)
}

/// Writes how long the quarantine lasts.
///
/// # Errors
/// Fatal (S11).
pub fn save_quarantine(store: &Store, quarantine: &Quarantine) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&QUARANTINE, &(), quarantine);
    store.commit(changes)
}

/// Writes a batch's promise.
///
/// # Errors
/// Fatal (S11).
fn save_batch(store: &Store, promise: &Promise) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&PROMISES, &(promise.sequence.0, promise.parent), promise);
    store.commit(changes)
}

/// Writes the genesis promise.
///
/// # Errors
/// Fatal (S11).
fn save_genesis(store: &Store, promise: &GenesisPromise) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&GENESIS, &(), promise);
    store.commit(changes)
}

/// Takes the alarm back, after somebody has looked.
///
/// # Errors
/// Fatal (S11).
pub fn clear_alarm(store: &Store) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.delete(&ALARM, &());
    store.commit(changes)
}

/// Ends the process at once, before anything else can leave it (S11).
pub fn stop_on_failed_write(error: &CommitError) -> ! {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "a safety write failed; stopping (S11)"
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use bitcoin::{Amount, XOnlyPublicKey, hashes::Hash as _};
    use protocol::{batch::Candidate, deposit::NUMS, message::Subject};

    use super::*;
    use crate::{
        testing,
        verify::fixture::{self, Users},
    };

    #[test]
    fn promises_and_alarm_are_there_after_a_restart() {
        let (_folder, store) = testing::store();
        let (candidate, body) = testing::candidate_and_body();
        let promise = Promise {
            sequence: candidate.sequence,
            parent: candidate.parent,
            batch: body.batch(),
            body: candidate.body,
            fee: Amount::from_sat(7),
            txid: bitcoin::Txid::all_zeros(),
            height: 9,
        };
        let genesis = GenesisPromise {
            outpoint: candidate.parent,
            height: 101,
        };
        assert!(load(&store).unwrap().batches.is_empty());
        save_batch(&store, &promise).unwrap();
        save_genesis(&store, &genesis).unwrap();
        let mut changes = Changes::new();
        changes.put(&ALARM, &(), &"somebody took the money".to_owned());
        store.commit(changes).unwrap();
        let loaded = load(&store).unwrap();
        let key = (promise.sequence, promise.parent);
        assert_eq!(loaded.batches.get(&key), Some(&promise));
        assert_eq!(loaded.genesis, Some(genesis));
        assert_eq!(loaded.alarm.as_deref(), Some("somebody took the money"));
        clear_alarm(&store).unwrap();
        assert_eq!(load(&store).unwrap().alarm, None);
    }

    #[test]
    fn a_share_without_its_promises_is_noticed_once_and_quarantined() {
        let (_folder, store) = testing::store();
        let key = testing::share(0).group().group_key();
        assert!(!are_complete(&store, key).unwrap());
        save_lost(&store, key, 5).unwrap();
        assert!(are_complete(&store, key).unwrap());
        assert_eq!(
            load(&store).unwrap().quarantine,
            Some(Quarantine::Syncing { lost_ms: 5 })
        );
        let began = Quarantine::Since {
            sequence: SequenceNumber(3),
            treasury: OutPoint::null(),
            height: 7,
        };
        save_quarantine(&store, &began).unwrap();
        assert_eq!(load(&store).unwrap().quarantine, Some(began));
    }

    #[test]
    fn a_share_of_another_key_finds_no_promises() {
        let (_folder, store) = testing::store();
        let key = testing::share(0).group().group_key();
        save_complete(&store, key).unwrap();
        assert!(are_complete(&store, key).unwrap());
        assert_eq!(load(&store).unwrap().quarantine, None);
        let other: XOnlyPublicKey = NUMS.parse().unwrap();
        assert!(!are_complete(&store, other.into()).unwrap());
    }

    #[test]
    fn nothing_is_promised_for_anything_but_what_was_verified() {
        let (_folder, store) = testing::store();
        let genesis = testing::affirmed(&store, testing::verified_genesis());
        let grant = testing::grant(Subject::Genesis(testing::genesis()), None, 1);
        let promised = Promised::write(&store, grant, genesis).unwrap();
        assert_eq!(promised.attempt(), 1);
        assert_eq!(promised.session(), testing::genesis_session());
        assert!(load(&store).unwrap().genesis.is_some());

        let (_folder, store) = testing::store();
        let batch = fixture::verified(&Users::new());
        let candidate = batch.candidate().clone();
        let other = Candidate {
            txid: bitcoin::Txid::all_zeros(),
            ..candidate.clone()
        };
        for subject in [Subject::Batch(other), Subject::Genesis(testing::genesis())] {
            let affirmed = testing::affirmed(&store, Verified::Batch(batch.clone()));
            let grant = testing::grant(subject, Some(batch.batch()), 1);
            let refused = Promised::write(&store, grant, affirmed);
            assert!(matches!(refused, Err(PromiseError::Mismatch)));
        }
        let promises = load(&store).unwrap();
        assert!(promises.batches.is_empty() && promises.genesis.is_none());
        let name = Some(batch.batch());
        let affirmed = testing::affirmed(&store, Verified::Batch(batch));
        let grant = testing::grant(Subject::Batch(candidate.clone()), name, 1);
        Promised::write(&store, grant, affirmed).unwrap();
        let kept = load(&store).unwrap().batches;
        assert_eq!(
            kept[&(candidate.sequence, candidate.parent)].txid,
            candidate.txid
        );
    }
}
