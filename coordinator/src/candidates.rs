//! The transactions that a batch has been given. All of them spend the same treasury for the same operations, so at most
//! one is ever in the chain; whichever that is, the batch is confirmed, and its record says so.

use bitcoin::{Transaction, Txid};
use node::history::{Confirmed, kept_candidate};
use storage::{ReadError, Store};

use crate::records::{BatchRecord, SignedCandidate, TOP_UPS};

/// Makes a signed candidate the latest of its batch.
pub fn signed(record: &mut BatchRecord, signed: SignedCandidate) {
    choose(record, &signed);
    record.candidates.push(signed);
    record.bump = None;
    record.bump_failure = None;
}

/// Makes the highest of its candidates the batch's own again, for none of them is in a block any more.
pub fn prefer_highest(record: &mut BatchRecord) {
    let highest = record
        .candidates
        .iter()
        .max_by_key(|signed| signed.candidate.fee);
    if let Some(signed) = highest.cloned() {
        choose(record, &signed);
    }
}

/// Adds the confirmed transaction of a batch that was signed elsewhere.
pub fn complete(record: &mut BatchRecord, transaction: Transaction, height: u32, now: u64) {
    let Some(candidate) = record.candidate.clone() else {
        return;
    };
    let signed = SignedCandidate {
        candidate,
        top_ups: record.top_ups.clone(),
        transaction,
        height,
        at_ms: now,
    };
    choose(record, &signed);
    record.candidates.push(signed);
}

/// All that were signed, the highest fee first.
pub fn highest_first(record: &BatchRecord) -> Vec<&SignedCandidate> {
    let mut all: Vec<_> = record.candidates.iter().collect();
    all.sort_by_key(|signed| std::cmp::Reverse(signed.candidate.fee));
    all
}

/// Makes a record that of the candidate which a block has. Gives whether that is one of this batch: signed here, or known
/// from elsewhere and of the same body.
///
/// # Errors
/// A damaged database.
pub fn take(store: &Store, record: &mut BatchRecord, block: &Confirmed) -> Result<bool, ReadError> {
    if record.txid() == Some(block.txid) {
        return Ok(true);
    }
    if let Some(signed) = find(record, &block.txid).cloned() {
        choose(record, &signed);
        return Ok(true);
    }
    let kept = kept_candidate(store, &block.txid)?;
    let Some(candidate) = kept.filter(|kept| record.body == Some(kept.body)) else {
        return Ok(false);
    };
    let mut top_ups = Vec::new();
    for outpoint in &candidate.top_ups {
        top_ups.extend(store.get(&TOP_UPS, outpoint)?.map(|row| row.top_up));
    }
    let (inputs, outputs) = record.shape;
    let inputs = inputs
        .saturating_sub(record.top_ups.len())
        .saturating_add(candidate.top_ups.len());
    record.shape = (inputs, outputs);
    record.top_ups = top_ups;
    record.fee = candidate.fee;
    record.treasury = block.treasury.value;
    record.transaction = None;
    record.candidate = Some(candidate);
    Ok(true)
}

fn find<'a>(record: &'a BatchRecord, txid: &Txid) -> Option<&'a SignedCandidate> {
    let mut all = record.candidates.iter();
    all.find(|signed| signed.candidate.txid == *txid)
}

fn choose(record: &mut BatchRecord, signed: &SignedCandidate) {
    let SignedCandidate {
        candidate,
        top_ups,
        transaction,
        ..
    } = signed;
    record.shape = (transaction.input.len(), transaction.output.len());
    if let Some(output) = transaction.output.first() {
        record.treasury = output.value;
    }
    record.top_ups.clone_from(top_ups);
    record.fee = candidate.fee;
    record.candidate = Some(candidate.clone());
    record.transaction = Some(transaction.clone());
}

#[cfg(test)]
mod tests {
    use bitcoin::{
        Amount, OutPoint, ScriptBuf, Sequence, TxIn, TxOut, Witness, absolute::LockTime,
        hashes::Hash as _, transaction::Version,
    };
    use ledger::{SequenceNumber, VaultId};
    use protocol::{
        api::{BatchStatus, StageTimes},
        batch::{BodyHash, Candidate},
        transaction::{Commitment, TopUp, Treasury},
    };
    use storage::{Changes, Schema};

    use super::*;
    use crate::records::{Bump, BumpFailure, columns};

    const FUNDS: u64 = 100_000;

    fn top_up() -> TopUp {
        TopUp {
            outpoint: OutPoint::new(Txid::from_byte_array([7; 32]), 0),
            value: Amount::from_sat(4_000),
        }
    }

    /// Pays `fee` out of [`FUNDS`]; with a top-up from 5,000 sats on.
    fn candidate(fee: u64) -> SignedCandidate {
        let top_ups = if fee < 5_000 { vec![] } else { vec![top_up()] };
        let spent = [OutPoint::null()]
            .into_iter()
            .chain(top_ups.iter().map(|top_up| top_up.outpoint));
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: spent
                .map(|previous_output| TxIn {
                    previous_output,
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                    witness: Witness::new(),
                })
                .collect(),
            output: vec![TxOut {
                value: Amount::from_sat(FUNDS - fee),
                script_pubkey: ScriptBuf::new(),
            }],
        };
        SignedCandidate {
            candidate: Candidate {
                vault: VaultId([1; 32]),
                sequence: SequenceNumber(1),
                parent: OutPoint::null(),
                body: BodyHash([5; 32]),
                top_ups: top_ups.iter().map(|top_up| top_up.outpoint).collect(),
                fee: Amount::from_sat(fee),
                txid: transaction.compute_txid(),
            },
            top_ups,
            transaction,
            height: 100,
            at_ms: 1,
        }
    }

    fn record() -> BatchRecord {
        BatchRecord {
            sequence: SequenceNumber(1),
            tries: 0,
            status: BatchStatus::Broadcast,
            reason: None,
            requests: Vec::new(),
            operations: Vec::new(),
            terms: Vec::new(),
            values: Vec::new(),
            top_ups: Vec::new(),
            fee: Amount::ZERO,
            body: Some(BodyHash([5; 32])),
            candidate: None,
            transaction: None,
            candidates: Vec::new(),
            bump: Some(Bump {
                candidate: candidate(1).candidate,
                top_ups: Vec::new(),
            }),
            bump_failure: Some(BumpFailure {
                reason: "refused".to_owned(),
                height: 100,
                refused: None,
            }),
            shape: (0, 0),
            treasury: Amount::ZERO,
            supply: Amount::ZERO,
            signers: Vec::new(),
            blamed: Vec::new(),
            refusals: Vec::new(),
            attempts: 0,
            signing_ms: None,
            broadcast_ms: None,
            height: None,
            stage_ms: StageTimes::default(),
        }
    }

    fn block(of: &SignedCandidate) -> Confirmed {
        Confirmed {
            treasury: Treasury {
                outpoint: OutPoint::new(of.candidate.txid, 0),
                value: of.transaction.output[0].value,
                commitment: Commitment {
                    sequence: SequenceNumber(1),
                    supply: Amount::ZERO,
                    digest: [0; 32],
                },
            },
            height: 101,
            txid: of.candidate.txid,
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let schema = Schema {
            kind: "coordinator",
            network: "test",
            columns: &columns(),
        };
        let store = Store::open(dir.path().join("db"), &schema).unwrap();
        (dir, store)
    }

    fn shown(record: &BatchRecord) -> (Option<Txid>, u64, u64, usize, usize) {
        let (fee, treasury) = (record.fee.to_sat(), record.treasury.to_sat());
        let inputs = record.shape.0;
        (record.txid(), fee, treasury, inputs, record.top_ups.len())
    }

    #[test]
    fn whichever_candidate_a_block_has_becomes_the_batch() {
        let (_dir, store) = store();
        let (first, second) = (candidate(1_000), candidate(6_000));
        let mut record = record();
        signed(&mut record, first.clone());
        signed(&mut record, second.clone());
        let txid = Some(second.candidate.txid);
        assert_eq!(shown(&record), (txid, 6_000, FUNDS - 6_000, 2, 1));
        assert_eq!((&record.bump, &record.bump_failure), (&None, &None));
        assert!(take(&store, &mut record, &block(&second)).unwrap());
        assert!(take(&store, &mut record, &block(&first)).unwrap());
        let txid = Some(first.candidate.txid);
        assert_eq!(shown(&record), (txid, 1_000, FUNDS - 1_000, 1, 0));
        assert_eq!(record.transaction, Some(first.transaction));
        assert_eq!(record.candidates.len(), 2);
        // Its block left the chain: what pays most is what the batch is again.
        prefer_highest(&mut record);
        let txid = Some(second.candidate.txid);
        assert_eq!(shown(&record), (txid, 6_000, FUNDS - 6_000, 2, 1));
        let fees = |signed: &&SignedCandidate| signed.candidate.fee.to_sat();
        let order: Vec<_> = highest_first(&record).iter().map(fees).collect();
        assert_eq!(order, [6_000, 1_000]);
    }

    #[test]
    fn a_candidate_of_the_same_body_that_was_signed_elsewhere_is_the_same_batch_and_no_other_is() {
        let (_dir, store) = store();
        let (own, elsewhere) = (candidate(1_000), candidate(6_000));
        let mut record = record();
        signed(&mut record, own.clone());
        assert!(!take(&store, &mut record, &block(&elsewhere)).unwrap());
        assert_eq!(record.txid(), Some(own.candidate.txid));
        let other_body = Candidate {
            body: BodyHash([6; 32]),
            ..elsewhere.candidate.clone()
        };
        for (kept, is_taken) in [(other_body, false), (elsewhere.candidate.clone(), true)] {
            let mut changes = Changes::new();
            node::history::keep_in(&mut changes, &kept, b"body");
            store.commit(changes).unwrap();
            assert_eq!(
                take(&store, &mut record, &block(&elsewhere)).unwrap(),
                is_taken
            );
        }
        let txid = Some(elsewhere.candidate.txid);
        assert_eq!(shown(&record), (txid, 6_000, FUNDS - 6_000, 2, 0));
        assert_eq!(record.transaction, None);
        // Its block has the witnesses.
        complete(&mut record, elsewhere.transaction.clone(), 101, 2);
        assert_eq!(record.transaction, Some(elsewhere.transaction));
        assert_eq!(record.txid(), Some(elsewhere.candidate.txid));
        assert_eq!(record.candidates.len(), 2);
    }
}
