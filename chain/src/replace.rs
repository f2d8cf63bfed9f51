//! What a transaction must pay to replace one that waits in mempools (BIP-125), and what it should pay.
//!
//! A replacement pushes everything out that spends from what it replaces: a payout's receiver may have spent it
//! already. Nodes take the replacement only if it pays for all of that, and for its own relay beside.

use bitcoin::{Amount, FeeRate, Weight};

use crate::{
    fees::FeeSettings,
    rpc::{MempoolEntry, MempoolInfo},
};

/// Transactions that one replacement may push out (BIP-125, rule 5).
pub const MAX_EVICTED: u64 = 100;

/// Weight units in a virtual byte.
const PER_VBYTE: u64 = 4;

/// What a replacement stands in for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// What was signed last of the same batch; `None` for another batch.
    pub signed: Option<Signed>,
    /// What the own node's mempool holds that spends the same treasury: of this batch or of another one, made here or
    /// elsewhere. `None` when nothing is there.
    pub entry: Option<MempoolEntry>,
}

/// The transaction of a batch that a higher fee is for (S7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What it pays.
    pub fee: Amount,
    /// What it weighs, with its witnesses.
    pub weight: Weight,
}

/// What a replacement may pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// Less than this is refused by nodes, or by the operators (S7).
    pub least: Amount,
    /// What it should pay; at least `least`, and not above the ceiling.
    pub wanted: Amount,
}

/// Why there is no replacement.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReplaceError {
    /// Paying enough would cost more than the settings allow.
    #[error(
        "a replacement must pay at least {least}, above the {most} that the ceiling of {ceiling} sat/vB allows"
    )]
    AtCeiling {
        /// What nodes ask for.
        least: Amount,
        /// The ceiling, for a transaction of this weight.
        most: Amount,
        /// The ceiling's rate.
        ceiling: u64,
    },
    /// Nodes refuse to evict so many.
    #[error(
        "a replacement would push {0} transactions out of the mempool, nodes allow {MAX_EVICTED}"
    )]
    TooMany(u64),
    /// An amount left the range of 64 bits.
    #[error("the fee of a replacement overflows")]
    Overflow,
}

/// What a replacement of that `weight` pays. `rate` is the rate of [`crate::fees::current_fee_rate`], for a transaction
/// built now.
///
/// # Errors
/// [`ReplaceError`]; what is there stays.
pub fn raise(
    replaced: &Replaced,
    weight: Weight,
    rate: FeeRate,
    mempool: &MempoolInfo,
    settings: &FeeSettings,
) -> Result<Raise, ReplaceError> {
    if let Some(entry) = &replaced.entry
        && entry.descendants > MAX_EVICTED
    {
        return Err(ReplaceError::TooMany(entry.descendants));
    }
    let at = |rate: FeeRate| {
        rate.fee_wu(whole_vbytes(weight))
            .ok_or(ReplaceError::Overflow)
    };
    // Rule 4; where nodes ask for nothing, S7 asks for a satoshi.
    let relay = at(mempool.incremental_fee_rate)?.max(Amount::ONE_SAT);
    let plus_relay = |fee: Amount| fee.checked_add(relay).ok_or(ReplaceError::Overflow);
    let vbytes = weight.to_vbytes_ceil();
    let signed = match replaced.signed {
        Some(signed) => scaled(signed.fee, vbytes, signed.weight.to_vbytes_ceil())?,
        None => Amount::ZERO,
    };
    // Rule 3: all that is evicted. Nodes want a higher rate, too, however much larger the replacement is.
    let evicted = match &replaced.entry {
        Some(entry) => scaled(entry.fee, vbytes, entry.vsize)?.max(entry.descendant_fees),
        None => Amount::ZERO,
    };
    let above = signed.max(evicted);
    let raised = if above == Amount::ZERO {
        above
    } else {
        plus_relay(above)?
    };
    let least = raised.max(at(mempool.min_fee_rate.max(mempool.min_relay_fee_rate))?);
    let ceiling = FeeRate::from_sat_per_vb(settings.ceiling_sat_per_vb);
    let most = at(ceiling.ok_or(ReplaceError::Overflow)?)?;
    if least > most {
        return Err(ReplaceError::AtCeiling {
            least,
            most,
            ceiling: settings.ceiling_sat_per_vb,
        });
    }
    let step = stepped(signed, settings.bump_percent);
    Ok(Raise {
        least,
        wanted: least.max(step).max(at(rate)?).min(most),
    })
}

/// Nodes count whole virtual bytes.
fn whole_vbytes(weight: Weight) -> Weight {
    Weight::from_wu(weight.to_vbytes_ceil().saturating_mul(PER_VBYTE))
}

/// Saturates, since the ceiling cuts off what is absurd.
fn stepped(fee: Amount, percent: u32) -> Amount {
    let factor = u128::from(percent).saturating_add(100);
    let sats = u128::from(fee.to_sat())
        .saturating_mul(factor)
        .div_ceil(100);
    Amount::from_sat(u64::try_from(sats).unwrap_or(u64::MAX))
}

/// The fee that pays the same rate at another size, in virtual bytes, rounded up.
fn scaled(fee: Amount, vbytes: u64, before: u64) -> Result<Amount, ReplaceError> {
    let sats = u128::from(fee.to_sat())
        .saturating_mul(vbytes.into())
        .div_ceil(before.max(1).into());
    // Never less than before: the operators compare fees, not rates (S7).
    u64::try_from(sats)
        .map(|sats| Amount::from_sat(sats).max(fee))
        .map_err(|_| ReplaceError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::DEFAULT_DUST_FEE_RATE;

    const WEIGHT: Weight = Weight::from_wu(2_000);

    fn settings() -> FeeSettings {
        FeeSettings {
            target_blocks: 6,
            margin_percent: 20,
            floor_sat_per_vb: 2,
            ceiling_sat_per_vb: 200,
            fallback_sat_per_vb: None,
            bump_after_blocks: 6,
            bump_percent: 25,
        }
    }

    fn rate(sat_per_vb: u64) -> FeeRate {
        FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
    }

    fn mempool() -> MempoolInfo {
        MempoolInfo {
            size: 1,
            min_fee_rate: rate(1),
            min_relay_fee_rate: rate(1),
            incremental_fee_rate: rate(1),
            dust_fee_rate: DEFAULT_DUST_FEE_RATE,
        }
    }

    /// 500 vbytes that pay 2 sat/vB.
    fn replaced(entry: Option<(u64, u64)>) -> Replaced {
        Replaced {
            signed: Some(Signed {
                fee: Amount::from_sat(1_000),
                weight: WEIGHT,
            }),
            entry: entry.map(|(descendants, fees)| MempoolEntry {
                wtxid: "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"
                    .parse()
                    .unwrap(),
                vsize: 500,
                fee: Amount::from_sat(1_000),
                descendants,
                descendant_fees: Amount::from_sat(fees),
                ancestors: 1,
                time: 0,
            }),
        }
    }

    fn sats(
        entry: Option<(u64, u64)>,
        weight: Weight,
        now: u64,
    ) -> Result<(u64, u64), ReplaceError> {
        raise(&replaced(entry), weight, rate(now), &mempool(), &settings())
            .map(|raise| (raise.least.to_sat(), raise.wanted.to_sat()))
    }

    #[test]
    fn a_replacement_pays_for_its_own_relay_and_at_least_a_step_more() {
        assert_eq!(sats(Some((1, 1_000)), WEIGHT, 2), Ok((1_500, 1_500)));
        assert_eq!(sats(None, WEIGHT, 2), Ok((1_500, 1_500)));
        let generous = FeeSettings {
            bump_percent: 100,
            ..settings()
        };
        let raised = raise(&replaced(None), WEIGHT, rate(2), &mempool(), &generous).unwrap();
        assert_eq!(raised.wanted, Amount::from_sat(2_000));
    }

    #[test]
    fn a_replacement_pays_for_everything_that_it_pushes_out() {
        assert_eq!(sats(Some((3, 9_000)), WEIGHT, 2), Ok((9_500, 9_500)));
        assert_eq!(
            sats(Some((101, 9_000)), WEIGHT, 2),
            Err(ReplaceError::TooMany(101))
        );
    }

    #[test]
    fn a_larger_replacement_still_pays_a_higher_rate() {
        // 600 vbytes: 1,200 sats at the old rate, and 600 for the relay.
        assert_eq!(sats(None, Weight::from_wu(2_400), 2), Ok((1_800, 1_800)));
        // One that is smaller does not pay less: S7 counts sats.
        assert_eq!(sats(None, Weight::from_wu(1_600), 2), Ok((1_400, 1_400)));
    }

    #[test]
    fn a_replacement_follows_the_estimate_up_to_the_ceiling_and_stops_there() {
        assert_eq!(sats(None, WEIGHT, 50), Ok((1_500, 25_000)));
        assert_eq!(sats(Some((2, 99_500)), WEIGHT, 50), Ok((100_000, 100_000)));
        assert_eq!(
            sats(Some((2, 99_501)), WEIGHT, 50),
            Err(ReplaceError::AtCeiling {
                least: Amount::from_sat(100_001),
                most: Amount::from_sat(100_000),
                ceiling: 200
            })
        );
    }

    #[test]
    fn another_batch_pays_for_the_one_that_waits_and_no_more_than_the_estimate_beyond() {
        let other = |entry, weight, now| {
            let replaced = Replaced {
                signed: None,
                ..replaced(entry)
            };
            raise(&replaced, weight, rate(now), &mempool(), &settings())
                .map(|raise| (raise.least.to_sat(), raise.wanted.to_sat()))
        };
        // Half as large, and it pays for the whole of what it pushes out.
        let half = Weight::from_wu(1_000);
        assert_eq!(other(Some((1, 1_000)), half, 2), Ok((1_250, 1_250)));
        assert_eq!(other(Some((4, 7_000)), half, 2), Ok((7_250, 7_250)));
        assert_eq!(other(Some((4, 7_000)), half, 50), Ok((7_250, 12_500)));
        // A larger one pays a higher rate.
        let larger = Weight::from_wu(4_000);
        assert_eq!(other(Some((1, 1_000)), larger, 2), Ok((3_000, 3_000)));
        // Where nothing waits it is a batch like any other.
        assert_eq!(other(None, half, 2), Ok((250, 500)));
    }

    #[test]
    fn a_full_mempool_is_heeded_though_nothing_is_in_it_to_replace() {
        let full = MempoolInfo {
            min_fee_rate: rate(30),
            ..mempool()
        };
        let raised = raise(&replaced(None), WEIGHT, rate(30), &full, &settings()).unwrap();
        assert_eq!(raised.least, Amount::from_sat(15_000));
    }
}
