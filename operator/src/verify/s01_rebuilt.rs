//! S1: sign only a transaction rebuilt from own data: own prevouts, own sighashes, own node.
//!
//! The candidate says which txid its transaction has. This operator builds the transaction that its own
//! treasury, its own node's deposits and the operations mean; only if that has the same txid, which
//! commits to every input and output, are the two one.

use ledger::{SequenceNumber, Transition};
use protocol::{
    message::{Refusal, Rule},
    transaction::{BatchPlan, BatchTransaction, Commitment},
};
use threshold::sign::Message;

use super::{Evidence, s02_inputs::Inputs};

pub(super) fn check(
    evidence: &Evidence,
    inputs: &Inputs,
    transition: &Transition,
) -> Result<BatchTransaction, Refusal> {
    let plan = BatchPlan {
        treasury: &evidence.head,
        deposits: &inputs.deposits,
        top_ups: &inputs.top_ups,
        withdrawals: &evidence.body.withdrawals(),
        next: Commitment {
            sequence: SequenceNumber(evidence.head.commitment.sequence.0.saturating_add(1)),
            supply: transition.after.supply,
            digest: transition.digest_after().to_bytes(),
        },
        fee: evidence.candidate.fee,
    };
    let built = BatchTransaction::build(evidence.vault.key(), &plan)
        .map_err(|error| Refusal::new(Rule::S1, format!("no transaction can be built: {error}")))?;
    let txid = built.unsigned.compute_txid();
    if txid != evidence.candidate.txid {
        return Err(Refusal::new(
            Rule::S1,
            format!(
                "rebuilt from own data the transaction is {txid}, not {}",
                evidence.candidate.txid
            ),
        ));
    }
    Ok(built)
}

pub(super) fn messages(transaction: &BatchTransaction) -> Result<Vec<Message>, Refusal> {
    transaction
        .messages()
        .map_err(|error| Refusal::new(Rule::S1, error.to_string()))
}

#[cfg(test)]
pub(super) mod cases {
    use bitcoin::{Amount, Txid, hashes::Hash as _};
    use protocol::message::Rule;

    use crate::verify::fixture::{Case, outpoint};

    pub(in crate::verify) fn all() -> Vec<Case> {
        vec![
            (
                "another transaction",
                |e| e.candidate.txid = Txid::all_zeros(),
                Rule::S1,
                "rebuilt from own data",
            ),
            (
                "another fee than stated",
                |e| e.candidate.fee += Amount::ONE_SAT,
                Rule::S1,
                "rebuilt from own data",
            ),
            (
                "a top-up that is left out",
                |e| e.candidate.top_ups = vec![outpoint(9)],
                Rule::S1,
                "rebuilt from own data",
            ),
            (
                "a fee that nothing can pay",
                |e| e.candidate.fee = Amount::from_sat(1_000_000),
                Rule::S1,
                "can't pay",
            ),
        ]
    }
}
