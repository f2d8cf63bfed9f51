//! Lies about the miner fee (S5), and about what was stated of it (S1).

use anyhow::ensure;
use bitcoin::Amount;
use ledger::Operation;
use protocol::message::Rule;

use super::{
    lie::{Kind, Layer, Lie, one_less, one_more},
    stage::Stage,
};

const S1: &[Rule] = &[Rule::S1];
const S5: &[Rule] = &[Rule::S5];

/// All of them.
///
/// # Errors
/// When the caps leave no room for the drip.
pub fn lies(stage: &Stage) -> anyhow::Result<Vec<Lie>> {
    let caps = stage.caps;
    let vbytes = stage.transaction.weight().to_vbytes_ceil();
    let honest = stage.honest.fee;
    let reserves = stage
        .transaction
        .treasury
        .value
        .checked_sub(stage.transaction.treasury.commitment.supply)
        .unwrap_or_default();
    let with = |name, changed, rules, says, fee: Amount| {
        Lie::new(
            Kind::new(Layer::Fee, name, changed, rules, says),
            &stage.honest,
        )
        .draft(|draft| draft.fee = fee)
    };
    let stated = |name, changed, fee: Amount| {
        Lie::new(
            Kind::new(Layer::Fee, name, changed, S1, "rebuilt from own data"),
            &stage.honest,
        )
        .twist(move |proposal| proposal.candidate.fee = fee)
    };
    Ok(vec![
        with(
            "fee above the cap",
            "one sat more than the operators' highest fee",
            S5,
            "cap",
            Amount::from_sat(caps.max_fee_sat.saturating_add(1)),
        ),
        with(
            "fee rate above the cap",
            "one sat per vbyte more than the operators' highest rate",
            S5,
            "sat/vB",
            Amount::from_sat(
                caps.max_fee_rate_sat_per_vb
                    .saturating_add(1)
                    .saturating_mul(vbytes),
            ),
        ),
        with(
            "fee out of the reserves",
            "a fee that leaves the treasury one sat below the supply",
            S5,
            "for a supply of",
            one_more(honest.checked_add(reserves).unwrap_or(Amount::MAX)),
        ),
        with(
            "fee beyond all money",
            "a fee of 2^64 - 1 sats",
            S1,
            "no transaction can be built",
            Amount::from_sat(u64::MAX),
        ),
        with(
            "fee too low for relay",
            "a fee below one sat per vbyte: it would hold the sequence number and never confirm",
            S5,
            "relay",
            Amount::from_sat(vbytes.saturating_sub(1)),
        ),
        with("no fee", "a fee of nothing", S5, "relay", Amount::ZERO),
        drip(stage, vbytes)?,
        stated(
            "fee stated one sat high",
            "a stated fee one sat above the transaction's",
            one_more(honest),
        ),
        stated(
            "fee stated one sat low",
            "a stated fee one sat below the transaction's",
            one_less(honest),
        ),
    ])
}

/// Each batch by itself is under every cap; together with those before it is not.
fn drip(stage: &Stage, vbytes: u64) -> anyhow::Result<Lie> {
    let deposit_fee = stage.standing.vault.parameters().deposit_fee;
    let cap = i128::from(stage.caps.max_net_fees_sat);
    let recent: i128 = stage
        .standing
        .past
        .iter()
        .map(|(candidate, body)| net(candidate.fee, &body.operations, deposit_fee))
        .sum();
    let earned = net(Amount::ZERO, &stage.honest.operations, deposit_fee);
    // One sat beyond what is left of the window.
    let fee = cap
        .saturating_sub(recent)
        .saturating_sub(earned)
        .saturating_add(1);
    ensure!(
        recent > 0 && fee.saturating_add(earned) <= cap,
        "earlier batches earned more than they cost ({recent} sats): there is nothing to drip"
    );
    let fee = u64::try_from(fee)?;
    ensure!(
        fee <= stage.caps.max_fee_sat
            && fee <= stage.caps.max_fee_rate_sat_per_vb.saturating_mul(vbytes),
        "a fee of {fee} is above another cap"
    );
    let kind = Kind::new(
        Layer::Fee,
        "drip",
        "a fee under every cap of one batch, one sat more than earlier batches left of the window",
        S5,
        "within",
    );
    Ok(Lie::new(kind, &stage.honest).draft(|draft| draft.fee = Amount::from_sat(fee)))
}

/// Miner fee less users' fees.
fn net(fee: Amount, operations: &[Operation], deposit_fee: Amount) -> i128 {
    let earned: i128 = operations
        .iter()
        .map(|operation| match operation {
            Operation::Deposit { .. } => i128::from(deposit_fee.to_sat()),
            signed => i128::from(signed.fee().to_sat()),
        })
        .sum();
    i128::from(fee.to_sat()).saturating_sub(earned)
}
