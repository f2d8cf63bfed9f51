//! S5: treasury after >= supply after, and >= dust. The miner fee is one that nodes relay; it, its rate, and fees
//! spent beyond fees earned in a rolling window stay under this operator's caps.

use bitcoin::Amount;
use ledger::{Operation, Transition};
use protocol::{
    batch::Body,
    message::{Refusal, Rule},
    transaction::{BatchTransaction, TREASURY_DUST},
};

use super::{Evidence, Standing};

/// Bitcoin Core's default minimum relay fee rate until version 29, in sats per virtual byte.
const MIN_RELAY_SAT_PER_VB: u64 = 1;

pub(super) fn check(
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
    let fee = transaction.fee;
    let vbytes = transaction.weight().to_vbytes_ceil();
    if fee.to_sat() < vbytes.saturating_mul(MIN_RELAY_SAT_PER_VB) {
        // It could not confirm, and would stand in the way of others for the replacement delay (S7).
        return Err(refuse(format!(
            "{fee} for {vbytes} vbytes is less than nodes relay"
        )));
    }
    Ok(())
}

pub(super) fn check_caps(
    evidence: &Evidence,
    standing: &Standing,
    transaction: &BatchTransaction,
) -> Result<(), Refusal> {
    let caps = standing.policy.fees();
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
    let net = standing.recent.net_fees.saturating_add(net_fees(
        fee,
        &evidence.body,
        &evidence.vault.parameters().deposit_fee,
    ));
    if net > i128::from(caps.max_net_fees_sat) {
        return Err(refuse(format!(
            "miner fees would exceed users' fees by {net} sats within {} blocks, the cap is {}",
            standing.policy.window_blocks(),
            caps.max_net_fees_sat
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

#[cfg(test)]
pub(super) mod cases {
    use bitcoin::Amount;
    use protocol::message::Rule;

    use crate::verify::fixture::{Case, rebuilt, set_fees};

    pub(in crate::verify) fn all() -> Vec<Case> {
        vec![
            (
                "a treasury below the supply",
                |e| {
                    // 128,400 sats of supply against 152,000 + 330 - 20,000 - 5,000.
                    e.head.value = Amount::from_sat(330);
                    e.candidate.fee = Amount::from_sat(5_000);
                    set_fees(e, "max_net_fees_sat = 10_000");
                    rebuilt(e);
                },
                Rule::S5,
                "for a supply of",
            ),
            (
                "a fee that no node relays",
                |e| {
                    e.candidate.fee = Amount::from_sat(300);
                    rebuilt(e);
                },
                Rule::S5,
                "less than nodes relay",
            ),
            (
                "a fee above the cap",
                |e| {
                    e.candidate.fee = Amount::from_sat(5_001);
                    rebuilt(e);
                },
                Rule::S5,
                "above this operator's cap",
            ),
            (
                "a fee rate above the cap",
                |e| set_fees(e, "max_fee_rate_sat_per_vb = 4"),
                Rule::S5,
                "sat/vB",
            ),
            (
                "fees above what users paid lately",
                |e| e.standing.recent.net_fees = 1_601,
                Rule::S5,
                "within 144 blocks",
            ),
        ]
    }
}
