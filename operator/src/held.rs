//! Batch data that other operators have asked this one to keep (S8). It is not verified yet, so it stays
//! apart from the history until the chain, by a digest, says that it is the right one.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::Txid;
use ledger::SequenceNumber;
use protocol::{
    batch::{Body, Candidate},
    identity::PeerKey,
    message::{Refusal, Rule},
    vault::Vault,
};
use serde::{Deserialize, Serialize};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

/// Batches of one peer that are kept for one sequence number.
pub const MAX_PER_PEER: usize = 4;
/// Further candidates of one peer, for bodies that are here already: more than a bump window brings.
pub const MAX_BUMPS_PER_PEER: usize = 64;
/// How far ahead of this operator's head a batch may be, which the others may have seen confirmed earlier.
pub const MAX_AHEAD: u64 = 2;
/// Rows looked at for one sequence number: more than a roster can fill.
const MAX_ROWS: usize = (MAX_PER_PEER + MAX_BUMPS_PER_PEER) * protocol::roster::MAX_OPERATORS;

/// By sequence number, transaction id, and hash of the candidate: several peers may say different things of one
/// transaction, and the chain tells which of them fits. Nothing that is said later takes the place of what is there.
const HELD: Table<(u64, Txid, [u8; 32]), Held> = Table::new("held", 2);

/// The tables of this module.
pub const TABLES: [ColumnName; 1] = [HELD.name()];

/// A batch that somebody else vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What is said to carry the body.
    pub candidate: Candidate,
    /// The encoded body; its hash is the candidate's. On disk it is empty where another row of the sequence number has
    /// it: a fee bump is another candidate for the same body.
    pub body: Vec<u8>,
    from: PeerKey,
}

/// One of the batches that are held.
#[derive(Clone, Debug)]
pub struct Found {
    /// What is said to carry the body.
    pub candidate: Candidate,
    /// The encoded body.
    pub body: Arc<Vec<u8>>,
}

/// Why a batch was not kept.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The peer asks for something that is not done here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A damaged database.
    #[error("reading held batches failed")]
    Read(#[from] ReadError),
    /// Fatal (S11).
    #[error("writing a held batch failed")]
    Commit(#[from] CommitError),
}

/// Keeps a batch durably for an operator.
///
/// # Errors
/// [`HoldError::Refused`] when the data is malformed, not of the next batches, or one too many.
pub fn hold(
    store: &Store,
    vault: &Vault,
    head: SequenceNumber,
    from: PeerKey,
    candidate: Candidate,
    body: Vec<u8>,
) -> Result<(), HoldError> {
    let sequence = candidate.sequence.0;
    if candidate.vault != vault.id() {
        return Err(refuse("the batch is of another vault"));
    }
    if sequence <= head.0 || sequence > head.0.saturating_add(MAX_AHEAD) {
        return Err(refuse(format!(
            "batch {sequence} is not one of the next after {head}"
        )));
    }
    if Body::hash_encoded(&body) != candidate.body {
        return Err(refuse("the body is not the candidate's"));
    }
    let decoded = Body::decode(&body).map_err(|error| refuse(error.to_string()))?;
    if decoded.sequence != candidate.sequence || decoded.vault != candidate.vault {
        return Err(refuse("the body is of another batch than its candidate"));
    }
    let there = rows(store, candidate.sequence)?;
    if there.iter().any(|held| held.candidate == candidate) {
        return Ok(());
    }
    let is_here = there
        .iter()
        .any(|held| held.is_full() && held.candidate.body == candidate.body);
    let (most, what) = if is_here {
        (MAX_BUMPS_PER_PEER, "further candidates")
    } else {
        (MAX_PER_PEER, "batches")
    };
    let own = there
        .iter()
        .filter(|held| held.from == from && held.is_full() != is_here);
    if own.count() >= most {
        return Err(refuse(format!(
            "{most} {what} of this peer are held for this sequence number"
        )));
    }
    let key = (sequence, candidate.txid, candidate.hash());
    let held = Held {
        candidate,
        body: if is_here { Vec::new() } else { body },
        from,
    };
    let mut changes = Changes::new();
    changes.put(&HELD, &key, &held);
    store.commit(changes)?;
    Ok(())
}

impl Held {
    fn is_full(&self) -> bool {
        !self.body.is_empty()
    }
}

/// Whether this very candidate is held.
///
/// # Errors
/// A damaged database.
pub fn is_held(store: &Store, candidate: &Candidate) -> Result<bool, ReadError> {
    let key = (candidate.sequence.0, candidate.txid, candidate.hash());
    let held = store.get(&HELD, &key)?;
    Ok(held.is_some_and(|held| held.candidate == *candidate))
}

/// What others have sent as the batch with that number and transaction id. Candidates with one body share it: a peer may
/// name many.
///
/// # Errors
/// A damaged database.
pub fn find(store: &Store, sequence: SequenceNumber, txid: &Txid) -> Result<Vec<Found>, ReadError> {
    let mut bodies = BTreeMap::new();
    let mut candidates = Vec::new();
    for held in rows(store, sequence)? {
        if held.is_full() {
            bodies.insert(held.candidate.body, Arc::new(held.body));
        }
        if held.candidate.txid == *txid {
            candidates.push(held.candidate);
        }
    }
    let with_body = |candidate: Candidate| {
        let body = bodies.get(&candidate.body).cloned()?;
        Some(Found { candidate, body })
    };
    Ok(candidates.into_iter().filter_map(with_body).collect())
}

/// Everything held for a sequence number, as it is on disk.
fn rows(store: &Store, sequence: SequenceNumber) -> Result<Vec<Held>, ReadError> {
    let from = first_key(sequence.0);
    let to = first_key(sequence.0.saturating_add(1));
    store
        .iter(&HELD, from..to, Direction::Forward, MAX_ROWS)?
        .map(|row| row.map(|(_, held)| held))
        .collect()
}

/// Drops what is held up to a sequence number, one that is deep in the chain.
///
/// # Errors
/// Fatal (S11) when it is a write that fails.
pub fn drop_up_to(store: &Store, sequence: SequenceNumber) -> Result<(), HoldError> {
    let to = first_key(sequence.0.saturating_add(1));
    let mut changes = Changes::new();
    for row in store.iter(&HELD, ..to, Direction::Forward, MAX_ROWS)? {
        let (key, _) = row?;
        changes.delete(&HELD, &key);
    }
    if !changes.is_empty() {
        store.commit(changes)?;
    }
    Ok(())
}

fn first_key(sequence: u64) -> (u64, Txid, [u8; 32]) {
    (sequence, bitcoin::hashes::Hash::all_zeros(), [0; 32])
}

fn refuse(reason: impl Into<String>) -> HoldError {
    HoldError::Refused(Refusal::new(Rule::S12, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn peer(n: u8) -> PeerKey {
        PeerKey([n; 32])
    }

    fn batch(sequence: u64, n: u8) -> (Candidate, Vec<u8>) {
        let (mut candidate, mut body) = testing::candidate_and_body();
        body.sequence = SequenceNumber(sequence);
        body.digests[0][0] ^= n;
        candidate.sequence = body.sequence;
        candidate.txid = bitcoin::hashes::Hash::from_byte_array([n; 32]);
        candidate.body = body.hash();
        (candidate, body.encode())
    }

    fn refusal(result: Result<(), HoldError>) -> Refusal {
        match result {
            Err(HoldError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_is_kept_once_and_found_by_its_transaction() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let (candidate, body) = batch(1, 5);
        for _ in 0..2 {
            hold(
                &store,
                vault,
                SequenceNumber(0),
                peer(1),
                candidate.clone(),
                body.clone(),
            )
            .unwrap();
        }
        let found = find(&store, SequenceNumber(1), &candidate.txid).unwrap();
        let [held] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((&held.candidate, &*held.body), (&candidate, &body));
        drop_up_to(&store, SequenceNumber(1)).unwrap();
        assert!(
            find(&store, SequenceNumber(1), &candidate.txid)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_liar_that_comes_first_does_not_keep_the_right_data_out() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let (right, right_body) = batch(1, 5);
        let (mut wrong, mut wrong_body) = (right.clone(), batch(1, 5).1);
        let mut body = Body::decode(&wrong_body).unwrap();
        body.digests = vec![[1; 32]];
        wrong_body = body.encode();
        wrong.body = Body::hash_encoded(&wrong_body);
        for (by, candidate, body) in [(1, &wrong, &wrong_body), (2, &right, &right_body)] {
            let (candidate, body) = (candidate.clone(), body.clone());
            hold(&store, vault, SequenceNumber(0), peer(by), candidate, body).unwrap();
        }
        let found = find(&store, SequenceNumber(1), &right.txid).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().any(|held| held.candidate == right));
    }

    #[test]
    fn nobody_can_fill_the_disk() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let max = u8::try_from(MAX_PER_PEER).unwrap();
        let offer = |by: u8, sequence: u64, n: u8| {
            let (candidate, body) = batch(sequence, n);
            hold(&store, vault, SequenceNumber(3), peer(by), candidate, body)
        };
        for n in 0..max {
            offer(1, 4, n).unwrap();
        }
        assert!(refusal(offer(1, 4, max)).reason.contains("of this peer"));
        offer(2, 4, max).unwrap();
        offer(1, 5, 0).unwrap();
        for sequence in [0, 3, 6, u64::MAX] {
            assert!(
                refusal(offer(2, sequence, 0))
                    .reason
                    .contains("not one of the next"),
                "{sequence}"
            );
        }
    }

    /// The same batch in another transaction.
    fn bump(candidate: &Candidate, n: u8) -> Candidate {
        Candidate {
            txid: bitcoin::hashes::Hash::from_byte_array([n; 32]),
            fee: candidate.fee + bitcoin::Amount::from_sat(n.into()),
            ..candidate.clone()
        }
    }

    #[test]
    fn every_bump_of_a_batch_is_found_with_its_body_and_keeps_no_other_batch_out() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let offer = |by: u8, candidate: &Candidate, body: &[u8]| {
            let (candidate, body) = (candidate.clone(), body.to_vec());
            hold(&store, vault, SequenceNumber(0), peer(by), candidate, body)
        };
        let (candidate, body) = batch(1, 5);
        offer(1, &candidate, &body).unwrap();
        let bumps: Vec<_> = (100..).take(MAX_BUMPS_PER_PEER).collect();
        for n in &bumps {
            offer(1, &bump(&candidate, *n), &body).unwrap();
        }
        for n in &bumps {
            let bump = bump(&candidate, *n);
            let found = find(&store, SequenceNumber(1), &bump.txid).unwrap();
            let [held] = found.as_slice() else {
                panic!("{found:?}")
            };
            assert_eq!((&held.candidate, &*held.body), (&bump, &body));
        }
        let one_more = offer(1, &bump(&candidate, 99), &body);
        assert!(refusal(one_more).reason.contains("of this peer"));
        offer(2, &bump(&candidate, 99), &body).unwrap();
        let (other, other_body) = batch(1, 6);
        offer(1, &other, &other_body).unwrap();
    }

    #[test]
    fn what_is_held_stays_though_somebody_says_otherwise_of_its_transaction() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let (candidate, body) = batch(1, 5);
        let mut other_fee = candidate.clone();
        other_fee.fee += bitcoin::Amount::ONE_SAT;
        let mut other_top_ups = candidate.clone();
        other_top_ups.top_ups = vec![candidate.parent];
        let said = [candidate.clone(), other_fee, other_top_ups];
        for (by, candidate) in (1..).zip(&said) {
            let (candidate, body) = (candidate.clone(), body.clone());
            hold(&store, vault, SequenceNumber(0), peer(by), candidate, body).unwrap();
        }
        let found = find(&store, SequenceNumber(1), &candidate.txid).unwrap();
        assert_eq!(found.len(), said.len());
        assert!(
            found
                .iter()
                .all(|held| Arc::ptr_eq(&held.body, &found[0].body))
        );
        for said in &said {
            let held = found.iter().find(|held| held.candidate == *said);
            assert_eq!(held.map(|held| &*held.body), Some(&body));
            assert!(is_held(&store, said).unwrap());
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (_dir, store) = testing::store();
        let vault = testing::vault();
        let offer = |change: &dyn Fn(&mut Candidate, &mut Vec<u8>)| {
            let (mut candidate, mut body) = batch(1, 1);
            change(&mut candidate, &mut body);
            hold(&store, vault, SequenceNumber(0), peer(1), candidate, body)
        };
        for change in [
            &(|_: &mut Candidate, body: &mut Vec<u8>| body.push(0))
                as &dyn Fn(&mut Candidate, &mut Vec<u8>),
            &|candidate, body| {
                *body = vec![9; 10];
                candidate.body = Body::hash_encoded(body);
            },
            &|candidate, _| candidate.vault.0[0] ^= 1,
            &|candidate, body| {
                *body = batch(2, 1).1;
                candidate.body = Body::hash_encoded(body);
            },
        ] {
            assert_eq!(refusal(offer(change)).rule, Rule::S12);
        }
        offer(&|_, _| {}).unwrap();
    }
}
