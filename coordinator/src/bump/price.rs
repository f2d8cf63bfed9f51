//! What a replacement pays, and with which top-ups: pure but for what the own node says of fees and of its mempool.

use bitcoin::{Amount, FeeRate};
use chain::{
    fees::{self, FeeError},
    replace::{Raise, ReplaceError, Replaced, Signed, raise},
    rpc::RpcError,
};
use ledger::Transition;
use protocol::{batch::Candidate, transaction::BatchTransaction};

use crate::{
    batch::affordable,
    pipeline::{Pipeline, StageError},
    records::{BatchRecord, Bump, RefusedFee},
    top_up,
};

/// Why there is no higher fee now.
#[derive(Debug, thiserror::Error)]
pub(super) enum PriceError {
    #[error(transparent)]
    Fee(FeeError),
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error(
        "the surplus does not cover a miner fee of {fee}: top the vault up with at least {lacking}"
    )]
    Surplus { fee: Amount, lacking: Amount },
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl From<FeeError> for PriceError {
    fn from(error: FeeError) -> Self {
        match error {
            FeeError::Rpc(error) => Self::Stage(error.into()),
            other => Self::Fee(other),
        }
    }
}

impl From<RpcError> for PriceError {
    fn from(error: RpcError) -> Self {
        Self::Stage(error.into())
    }
}

/// The candidate with the fee that is wanted, or the highest below it that the surplus allows and nodes relay.
pub(super) async fn price(
    pipeline: &Pipeline,
    record: &BatchRecord,
    transition: &Transition,
) -> Result<Bump, PriceError> {
    let settings = &pipeline.settings.fees;
    let network = pipeline.vault.parameters().network;
    let rate = fees::current_fee_rate(&pipeline.rpc, settings, network).await?;
    let mempool = pipeline.rpc.mempool_info().await?;
    let replaced = replaced(pipeline, record).await?;
    let mut trial = record.clone();
    // What has left the chain in a reorganisation is not signed for again (S2); others can take its place.
    trial.top_ups = top_up::still_ripe(pipeline, &record.top_ups).await?;
    let mut spare = top_up::ripe(pipeline).await?;
    spare.retain(|top_up| !record.top_ups.contains(top_up));
    loop {
        let built = pipeline.transaction(&trial, transition)?;
        let mut range = raise(&replaced, built.weight(), rate, &mempool, settings)?;
        stay_below_caps(&mut range, last_refused(record));
        let most = affordable(&built);
        if most < range.wanted
            && top_up::collect(&mut spare, &mut trial.top_ups, paid(range.wanted, &built))
        {
            continue;
        }
        trial.fee = pay(&range, most)?;
        let built = pipeline.transaction(&trial, transition)?;
        let parent = record.candidate.clone();
        let parent = parent.ok_or_else(|| StageError::Fault("no candidate".into()))?;
        return Ok(Bump {
            candidate: candidate(parent, &trial, &built),
            top_ups: trial.top_ups,
        });
    }
}

/// The highest fee that was signed, and what the own node's mempool holds that spends the same treasury: a candidate of
/// this batch, or another batch.
async fn replaced(pipeline: &Pipeline, record: &BatchRecord) -> Result<Replaced, StageError> {
    let highest = record
        .candidates
        .iter()
        .max_by_key(|signed| signed.candidate.fee)
        .ok_or_else(|| StageError::Fault("nothing is signed".into()))?;
    let treasury = highest.candidate.parent;
    let entry = pipeline.rpc.mempool_spender(treasury).await?;
    let fee = match last_refused(record) {
        Some(RefusedFee::TooLow(refused)) => highest.candidate.fee.max(refused),
        _ => highest.candidate.fee,
    };
    let weight = highest.transaction.weight();
    let signed = Some(Signed { fee, weight });
    Ok(Replaced { signed, entry })
}

/// After a fee that was too high for the operators (S5), half the way back to the least.
fn stay_below_caps(range: &mut Raise, refused: Option<RefusedFee>) {
    if let Some(RefusedFee::TooHigh(refused)) = refused
        && refused > range.least
    {
        let middle = range.least.to_sat().midpoint(refused.to_sat());
        range.wanted = range.wanted.min(Amount::from_sat(middle));
    }
}

pub(super) fn last_refused(record: &BatchRecord) -> Option<RefusedFee> {
    record.bump_failure.as_ref()?.refused
}

/// The rate at which a transaction pays that fee.
fn paid(fee: Amount, built: &BatchTransaction) -> FeeRate {
    let weight = built.weight().to_wu().max(1);
    FeeRate::from_sat_per_kwu(fee.to_sat().saturating_mul(1_000).div_ceil(weight))
}

/// Pays what is wanted, or as much as there is, if that is enough.
fn pay(range: &Raise, most: Amount) -> Result<Amount, PriceError> {
    if most >= range.least {
        return Ok(range.wanted.min(most));
    }
    Err(PriceError::Surplus {
        fee: range.least,
        lacking: range.least.checked_sub(most).unwrap_or(range.least),
    })
}

fn candidate(before: Candidate, record: &BatchRecord, built: &BatchTransaction) -> Candidate {
    Candidate {
        top_ups: record
            .top_ups
            .iter()
            .map(|top_up| top_up.outpoint)
            .collect(),
        fee: record.fee,
        txid: built.unsigned.compute_txid(),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Raise = Raise {
        least: Amount::from_sat(1_500),
        wanted: Amount::from_sat(3_000),
    };

    #[test]
    fn the_surplus_pays_what_it_can_or_says_what_is_lacking() {
        for (most, paid) in [
            (9_000, 3_000),
            (3_000, 3_000),
            (2_000, 2_000),
            (1_500, 1_500),
        ] {
            let found = pay(&RANGE, Amount::from_sat(most)).unwrap();
            assert_eq!(found, Amount::from_sat(paid));
        }
        let error = pay(&RANGE, Amount::from_sat(1_200)).unwrap_err();
        let PriceError::Surplus { fee, lacking } = error else {
            panic!("{error}");
        };
        assert_eq!((fee.to_sat(), lacking.to_sat()), (1_500, 300));
    }

    #[test]
    fn a_fee_above_the_caps_goes_half_the_way_back_and_never_below_the_least() {
        let mut range = RANGE;
        stay_below_caps(
            &mut range,
            Some(RefusedFee::TooHigh(Amount::from_sat(2_500))),
        );
        assert_eq!(range.wanted, Amount::from_sat(2_000));
        for refused in [
            None,
            Some(RefusedFee::TooHigh(Amount::from_sat(1_500))),
            Some(RefusedFee::TooLow(Amount::from_sat(2_500))),
        ] {
            let mut range = RANGE;
            stay_below_caps(&mut range, refused);
            assert_eq!(range, RANGE);
        }
    }
}
