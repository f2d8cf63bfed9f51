//! S5: treasury after >= supply after, and >= dust. The transaction is one that the own node relays, as far as fee and
//! amounts go; the miner fee, its rate, and fees spent beyond fees earned in a rolling window stay under this operator's
//! caps.

use bitcoin::Amount;
use ledger::{Operation, Transition};
use protocol::{
    batch::Body,
    message::{Refusal, Rule},
    transaction::{BatchTransaction, TREASURY_DUST},
};

use super::{Evidence, Standing};

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
    let mempool = &evidence.mempool;
    let dust = mempool.dust_limit(evidence.vault.script_pubkey());
    if value < TREASURY_DUST.max(dust) {
        return Err(refuse(format!(
            "the treasury would hold {value}, below the dust limit"
        )));
    }
    // What no node relays could not confirm, and would stand in the way of others for the replacement delay (S7).
    let fee = transaction.fee;
    let vbytes = transaction.weight().to_vbytes_ceil();
    let least = mempool.least_fee(transaction.weight());
    if fee < least {
        return Err(refuse(format!(
            "{fee} for {vbytes} vbytes is less than nodes relay: this operator's asks for {least}"
        )));
    }
    for operation in &evidence.body.operations {
        let Operation::Withdraw {
            amount,
            script_pubkey,
            ..
        } = operation
        else {
            continue;
        };
        let dust = mempool.dust_limit(script_pubkey);
        if *amount < dust {
            let id = operation.id(&evidence.body.vault);
            let why =
                format!("a payout of {amount} is dust for this operator's node, below {dust}");
            return Err(refuse(why).of(id));
        }
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
    use bitcoin::{Amount, FeeRate};
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
                "a fee that the own node does not relay",
                |e| e.mempool.min_relay_fee_rate = FeeRate::from_sat_per_vb(10).unwrap(),
                Rule::S5,
                "less than nodes relay",
            ),
            (
                "a payout that the own node does not relay",
                |e| e.mempool.dust_fee_rate = FeeRate::from_sat_per_vb(205).unwrap(),
                Rule::S5,
                "is dust for this operator's node",
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
