//! Signed batch transactions that this operator has heard of, kept until they are final, so that any operator can hand
//! on what a coordinator signed and then took with it.
//!
//! Only a Bitcoin node checks the witnesses. Until the own node has taken a transaction, one version by each peer is kept:
//! nobody can keep the right one out with a wrong one. A peer's next version is looked at when the node has judged the one
//! before, so that a peer who sends many has this operator write no faster than its node answers.

use bitcoin::{Transaction, Txid};
use ledger::SequenceNumber;
use protocol::{batch::Candidate, identity::PeerKey};
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

/// Rows looked at at a time: a few batches, by everybody of the largest roster.
const MAX_ROWS: usize = 1_024;

/// By sequence number, transaction id, and who gave it.
const SIGNED: Table<(u64, Txid, [u8; 32]), Signed> = Table::new("signed", 1);

/// The tables of this module.
pub const TABLES: [ColumnName; 1] = [SIGNED.name()];

/// A batch transaction with witnesses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Its candidate.
    pub candidate: Candidate,
    /// With witnesses.
    pub transaction: Transaction,
    /// Who gave it.
    pub from: PeerKey,
    /// The own node has taken it: its witnesses are right.
    pub is_taken: bool,
}

/// Why a signed transaction was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// A damaged database.
    #[error("reading signed transactions failed")]
    Read(#[from] ReadError),
    /// Fatal (S11).
    #[error("writing a signed transaction failed")]
    Commit(#[from] CommitError),
}

/// Keeps a signed transaction durably. Gives whether it is new here.
///
/// # Errors
/// [`KeepError`].
pub fn keep(store: &Store, signed: &Signed) -> Result<bool, KeepError> {
    let there = of(store, signed.candidate.sequence, &signed.candidate.txid)?;
    if there.iter().any(|kept| {
        kept.is_taken || kept.from == signed.from || kept.transaction == signed.transaction
    }) {
        return Ok(false);
    }
    let mut changes = Changes::new();
    changes.put(&SIGNED, &key(signed), signed);
    store.commit(changes)?;
    Ok(true)
}

/// The own node has taken this one; other versions of it go.
///
/// # Errors
/// [`KeepError`].
pub fn taken(store: &Store, signed: &Signed) -> Result<(), KeepError> {
    let mut changes = Changes::new();
    for other in of(store, signed.candidate.sequence, &signed.candidate.txid)? {
        if other.from != signed.from {
            changes.delete(&SIGNED, &key(&other));
        }
    }
    let row = Signed {
        is_taken: true,
        ..signed.clone()
    };
    changes.put(&SIGNED, &key(&row), &row);
    Ok(store.commit(changes)?)
}

/// The own node says that its witnesses are wrong.
///
/// # Errors
/// [`KeepError`].
pub fn refused(store: &Store, signed: &Signed) -> Result<(), KeepError> {
    let mut changes = Changes::new();
    changes.delete(&SIGNED, &key(signed));
    Ok(store.commit(changes)?)
}

/// All that are kept for batches after that one.
///
/// # Errors
/// A damaged database.
pub fn after(store: &Store, sequence: SequenceNumber) -> Result<Vec<Signed>, ReadError> {
    let from = first_key(sequence.0.saturating_add(1));
    store
        .iter(&SIGNED, from.., Direction::Forward, MAX_ROWS)?
        .map(|row| row.map(|(_, signed)| signed))
        .collect()
}

/// Drops what is kept up to a batch, one that is deep in the chain.
///
/// # Errors
/// [`KeepError`].
pub fn drop_up_to(store: &Store, sequence: SequenceNumber) -> Result<(), KeepError> {
    let to = first_key(sequence.0.saturating_add(1));
    let mut changes = Changes::new();
    for row in store.iter(&SIGNED, ..to, Direction::Forward, MAX_ROWS)? {
        changes.delete(&SIGNED, &row?.0);
    }
    if !changes.is_empty() {
        store.commit(changes)?;
    }
    Ok(())
}

fn of(store: &Store, sequence: SequenceNumber, txid: &Txid) -> Result<Vec<Signed>, ReadError> {
    let mut all = after(store, SequenceNumber(sequence.0.saturating_sub(1)))?;
    all.retain(|signed| signed.candidate.sequence == sequence && signed.candidate.txid == *txid);
    Ok(all)
}

fn key(signed: &Signed) -> (u64, Txid, [u8; 32]) {
    let Candidate { sequence, txid, .. } = &signed.candidate;
    (sequence.0, *txid, signed.from.0)
}

fn first_key(sequence: u64) -> (u64, Txid, [u8; 32]) {
    (sequence, bitcoin::hashes::Hash::all_zeros(), [0; 32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// Two versions of one batch's transaction, which differ in their witnesses.
    fn versions() -> (Signed, Signed) {
        let (candidate, _, transaction) = testing::confirmed_batch(5_000);
        let [wrong, right] = [1, 2].map(|by| {
            let mut transaction = transaction.clone();
            transaction.input[0].witness = bitcoin::Witness::from_slice(&[[by; 64]]);
            Signed {
                candidate: candidate.clone(),
                transaction,
                from: PeerKey([by; 32]),
                is_taken: false,
            }
        });
        (wrong, right)
    }

    #[test]
    fn a_wrong_version_keeps_no_right_one_out_and_goes_when_the_node_takes_that() {
        let (_dir, store) = testing::store();
        let (wrong, right) = versions();
        let before = SequenceNumber(wrong.candidate.sequence.0 - 1);
        assert!(keep(&store, &wrong).unwrap());
        assert!(keep(&store, &right).unwrap());
        // The same by another peer is not new.
        assert!(
            !keep(
                &store,
                &Signed {
                    from: PeerKey([3; 32]),
                    ..right.clone()
                }
            )
            .unwrap()
        );
        assert_eq!(after(&store, before).unwrap().len(), 2);
        taken(&store, &right).unwrap();
        let kept = after(&store, before).unwrap();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].is_taken && kept[0].transaction == right.transaction);
        assert!(!keep(&store, &wrong).unwrap(), "the right one is known");
    }

    #[test]
    fn a_peers_next_version_waits_until_the_node_has_judged_the_one_before() {
        let (_dir, store) = testing::store();
        let (wrong, right) = versions();
        let next = Signed {
            from: wrong.from,
            ..right
        };
        assert!(keep(&store, &wrong).unwrap());
        assert!(!keep(&store, &next).unwrap());
        refused(&store, &wrong).unwrap();
        assert!(keep(&store, &next).unwrap());
    }

    #[test]
    fn what_the_node_refuses_is_forgotten_and_what_is_final_is_dropped() {
        let (_dir, store) = testing::store();
        let (wrong, right) = versions();
        let sequence = right.candidate.sequence;
        let before = SequenceNumber(sequence.0 - 1);
        keep(&store, &wrong).unwrap();
        refused(&store, &wrong).unwrap();
        assert_eq!(after(&store, before).unwrap(), []);
        keep(&store, &right).unwrap();
        drop_up_to(&store, before).unwrap();
        assert_eq!(after(&store, before).unwrap(), [right]);
        assert_eq!(after(&store, sequence).unwrap(), []);
        drop_up_to(&store, sequence).unwrap();
        assert_eq!(after(&store, before).unwrap(), []);
    }
}
