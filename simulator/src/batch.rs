//! The batch of all runs.

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{SequenceNumber, VaultId};
use protocol::{
    batch::{BodyHash, Candidate},
    message::Subject,
    transaction::{Commitment, Treasury},
};

/// What all coordinators have signed, and the treasury that it spends.
pub fn batch() -> (Subject, Treasury) {
    let outpoint = OutPoint::new(Txid::from_byte_array([4; 32]), 0);
    let commitment = Commitment {
        sequence: SequenceNumber(4),
        supply: Amount::ZERO,
        digest: [0; 32],
    };
    let head = Treasury {
        outpoint,
        value: Amount::from_sat(100_000),
        commitment,
    };
    let candidate = Candidate {
        vault: VaultId([0; 32]),
        sequence: SequenceNumber(5),
        parent: outpoint,
        body: BodyHash([1; 32]),
        top_ups: Vec::new(),
        fee: Amount::from_sat(1_000),
        txid: Txid::from_byte_array([5; 32]),
    };
    (Subject::Batch(candidate), head)
}
