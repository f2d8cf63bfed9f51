//! The batch of all runs.

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{SequenceNumber, VaultId};
use protocol::{
    batch::{BatchHash, BodyHash, Candidate},
    message::{SessionId, Subject},
    signer::Input,
    transaction::{Commitment, Treasury},
};

/// The verifier has finished with this subject. Here each body is a batch of its own.
pub fn verified(session: SessionId, subject: &Subject) -> Input {
    let batch = match subject {
        Subject::Batch(candidate) => Some(BatchHash(candidate.body.0)),
        Subject::Genesis(_) | Subject::Epoch(_) => None,
    };
    Input::Verified { session, batch }
}

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
