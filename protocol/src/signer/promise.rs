//! What this operator has put its name to, and which other candidates that excludes (S7).

use bitcoin::{Amount, OutPoint, Txid};
use ledger::SequenceNumber;
use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchHash, BodyHash, Candidate},
    message::{Refusal, Rule},
};

/// What this operator has put its name to, stored before its share leaves (S7, S11).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Promise {
    /// The batch's sequence number.
    pub sequence: SequenceNumber,
    /// The treasury that it spends.
    pub parent: OutPoint,
    /// The batch.
    pub batch: BatchHash,
    /// The body that it was signed with last. Others may have proved it, too.
    pub body: BodyHash,
    /// Highest fee signed for this batch.
    pub fee: Amount,
    /// The transaction with that fee.
    pub txid: Txid,
    /// Height of this operator's chain when it first signed this batch.
    pub height: u32,
}

/// S7: may this candidate of that batch be signed after that promise? Gives the promise to store.
///
/// # Errors
/// A [`Refusal`] under [`Rule::S7`].
pub fn judge(
    promise: Option<&Promise>,
    candidate: &Candidate,
    batch: BatchHash,
    height: u32,
    replacement_delay: u32,
) -> Result<Promise, Refusal> {
    let fresh = Promise {
        sequence: candidate.sequence,
        parent: candidate.parent,
        batch,
        body: candidate.body,
        fee: candidate.fee,
        txid: candidate.txid,
        height,
    };
    let Some(promise) = promise else {
        return Ok(fresh);
    };
    // A promise for another treasury can no longer confirm: its input is not the chain's treasury.
    if promise.sequence != candidate.sequence || promise.parent != candidate.parent {
        return Ok(fresh);
    }
    let same = Promise {
        height: promise.height,
        ..fresh
    };
    let is_same = promise.batch == batch;
    if is_same && (candidate.txid == promise.txid || candidate.fee > promise.fee) {
        return Ok(same);
    }
    // The same transaction as another batch, as with transfers in another order: what was promised stays promised.
    if candidate.txid == promise.txid {
        return Ok(promise.clone());
    }
    // The promise binds no longer. The same batch for less is no worse then than another one.
    if height.saturating_sub(promise.height) >= replacement_delay {
        return Ok(Promise { height, ..same });
    }
    if is_same {
        return Err(Refusal::new(
            Rule::S7,
            format!(
                "this batch was signed with a fee of {}; a replacement must pay more than that",
                promise.fee
            ),
        ));
    }
    Err(Refusal::new(
        Rule::S7,
        format!(
            "batch {} was signed for sequence number {} at height {}; another has to wait {replacement_delay} blocks",
            promise.batch, promise.sequence.0, promise.height
        ),
    ))
}
