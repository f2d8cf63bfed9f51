//! S5: treasury after >= supply after, and >= dust. Miner fee, fee rate, and fees spent beyond fees earned in a
//! rolling window stay under this operator's caps.

use bitcoin::Amount;
use ledger::{Operation, Transition};
use protocol::{
    batch::Body,
    message::{Refusal, Rule},
    transaction::{BatchTransaction, TREASURY_DUST},
};

use super::Evidence;

pub(super) fn check(
    evidence: &Evidence,
    transaction: &BatchTransaction,
    transition: &Transition,
) -> Result<(), Refusal> {
    let value = transaction.treasury.value;
    let supply = transition.after.supply;
    if value < supply {
        return Err(refuse(format!(
            "the treasury would hold {value} for a supply of {supply}"
        )));
    }
    if value < TREASURY_DUST {
        return Err(refuse(format!(
            "the treasury would hold {value}, below the dust limit"
        )));
    }
    check_caps(evidence, transaction)
}

fn check_caps(evidence: &Evidence, transaction: &BatchTransaction) -> Result<(), Refusal> {
    let caps = &evidence.caps;
    let fee = transaction.fee;
    if fee > caps.max_fee() {
        return Err(refuse(format!(
            "a miner fee of {fee} is above this operator's cap of {}",
            caps.max_fee()
        )));
    }
    let vbytes = transaction.weight().to_vbytes_ceil();
    if u128::from(fee.to_sat())
        > u128::from(caps.max_fee_rate_sat_per_vb).saturating_mul(u128::from(vbytes))
    {
        return Err(refuse(format!(
            "{fee} for {vbytes} vbytes is above this operator's cap of {} sat/vB",
            caps.max_fee_rate_sat_per_vb
        )));
    }
    let net = evidence.recent_net_fees.saturating_add(net_fees(
        fee,
        &evidence.body,
        &evidence.vault.parameters().deposit_fee,
    ));
    if net > i128::from(caps.max_net_fees_sat) {
        return Err(refuse(format!(
            "miner fees would exceed users' fees by {net} sats within {} blocks, the cap is {}",
            caps.window_blocks, caps.max_net_fees_sat
        )));
    }
    Ok(())
}

/// A batch's miner fee less what its users paid, in sats.
pub(crate) fn net_fees(fee: Amount, body: &Body, deposit_fee: &Amount) -> i128 {
    let earned = body.operations.iter().fold(0_i128, |sum, operation| {
        let paid = match operation {
            Operation::Deposit { .. } => *deposit_fee,
            _ => operation.fee(),
        };
        sum.saturating_add(i128::from(paid.to_sat()))
    });
    i128::from(fee.to_sat()).saturating_sub(earned)
}

fn refuse(reason: String) -> Refusal {
    Refusal::new(Rule::S5, reason)
}
