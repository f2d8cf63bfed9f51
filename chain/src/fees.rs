//! The fee rate to build a batch with: the node's estimate, within the operator's bounds.
//!
//! Fails closed. Without an estimate there is no rate, unless the settings name one, which is for
//! networks where nodes never have an estimate.

use bitcoin::{FeeRate, Network};
use serde::{Deserialize, Serialize};

use crate::rpc::{BitcoinRpc, RpcError};

/// Longest target that bitcoind estimates for: a week of blocks.
pub const MAX_TARGET_BLOCKS: u16 = 1_008;

/// How fee rates are chosen. Rates are in satoshi per virtual byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeeSettings {
    /// Blocks within which a batch should confirm, 1 to 1,008.
    pub target_blocks: u16,
    /// Percent added to the node's estimate.
    pub margin_percent: u32,
    /// Never less than this, whatever the estimate.
    pub floor_sat_per_vb: u64,
    /// Never more than this, whatever the estimate.
    pub ceiling_sat_per_vb: u64,
    /// Used when the node has no estimate, as on regtest. Refused on mainnet, where a missing
    /// estimate means that the node knows too little to spend money by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_sat_per_vb: Option<u64>,
    /// Blocks that a batch waits for a block before it is replaced by one that pays more, and again before each
    /// further replacement; at least 1.
    #[serde(default = "default_bump_after_blocks")]
    pub bump_after_blocks: u16,
    /// Percent by which a replacement's fee rate exceeds the one before, even if the estimate asks for less.
    #[serde(default = "default_bump_percent")]
    pub bump_percent: u32,
}

fn default_bump_after_blocks() -> u16 {
    6
}

fn default_bump_percent() -> u32 {
    25
}

/// Why there is no fee rate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeeError {
    /// The node did not answer.
    #[error("bitcoind gave no fee rate")]
    Rpc(#[from] RpcError),
    /// The settings contradict themselves or the network.
    #[error("fee settings: {0}")]
    Settings(&'static str),
    /// The node has no estimate and no fallback is set.
    #[error("bitcoind has no fee estimate yet, and no fallback is configured")]
    NoEstimate,
    /// The mempool refuses what the ceiling allows.
    #[error("the mempool asks for {asked} sat/vB, above the ceiling of {ceiling} sat/vB")]
    AboveCeiling {
        /// The mempool's least rate, rounded up.
        asked: u64,
        /// The configured ceiling.
        ceiling: u64,
    },
}

impl FeeSettings {
    /// Checks the settings against themselves and against `network`.
    pub fn check(&self, network: Network) -> Result<(), FeeError> {
        if self.target_blocks == 0 || self.target_blocks > MAX_TARGET_BLOCKS {
            return Err(FeeError::Settings("target_blocks must be 1 to 1,008"));
        }
        if self.floor_sat_per_vb == 0 || self.floor_sat_per_vb > self.ceiling_sat_per_vb {
            return Err(FeeError::Settings(
                "the floor must be at least 1 sat/vB and no more than the ceiling",
            ));
        }
        if self.bump_after_blocks == 0 {
            return Err(FeeError::Settings("bump_after_blocks must be at least 1"));
        }
        if self.fallback_sat_per_vb.is_some() && network == Network::Bitcoin {
            return Err(FeeError::Settings("no fallback is allowed on mainnet"));
        }
        Ok(())
    }
}

/// The fee rate for a transaction built now.
pub async fn current_fee_rate(
    rpc: &BitcoinRpc,
    settings: &FeeSettings,
    network: Network,
) -> Result<FeeRate, FeeError> {
    settings.check(network)?;
    let estimate = rpc.estimate_fee_rate(settings.target_blocks).await?;
    let mempool = rpc.mempool_info().await?;
    let least = mempool.min_fee_rate.max(mempool.min_relay_fee_rate);
    choose_fee_rate(estimate, least, settings)
}

/// Estimate plus margin, at least the floor and the mempool's least rate, at most the ceiling.
///
/// # Errors
/// [`FeeError::NoEstimate`] without estimate and fallback; [`FeeError::AboveCeiling`] if the mempool
/// would refuse the ceiling.
pub fn choose_fee_rate(
    estimate: Option<FeeRate>,
    mempool_least: FeeRate,
    settings: &FeeSettings,
) -> Result<FeeRate, FeeError> {
    let per_vb =
        |sats| FeeRate::from_sat_per_vb(sats).ok_or(FeeError::Settings("a rate is absurd"));
    let floor = per_vb(settings.floor_sat_per_vb)?;
    let ceiling = per_vb(settings.ceiling_sat_per_vb)?;
    let wanted = match (estimate, settings.fallback_sat_per_vb) {
        (Some(rate), _) => with_margin(rate, settings.margin_percent),
        (None, Some(sats)) => per_vb(sats)?,
        (None, None) => return Err(FeeError::NoEstimate),
    };
    if mempool_least > ceiling {
        return Err(FeeError::AboveCeiling {
            asked: mempool_least.to_sat_per_vb_ceil(),
            ceiling: settings.ceiling_sat_per_vb,
        });
    }
    Ok(wanted.max(floor).max(mempool_least).min(ceiling))
}

/// Saturates, since the ceiling cuts off what is absurd.
fn with_margin(rate: FeeRate, percent: u32) -> FeeRate {
    let factor = u128::from(percent).saturating_add(100);
    let raised = u128::from(rate.to_sat_per_kwu())
        .saturating_mul(factor)
        .div_ceil(100);
    FeeRate::from_sat_per_kwu(u64::try_from(raised).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn chosen(estimate: Option<u64>, least: u64) -> FeeRate {
        choose_fee_rate(estimate.map(rate), rate(least), &settings()).unwrap()
    }

    #[test]
    fn the_estimate_gets_its_margin_within_floor_and_ceiling() {
        assert_eq!(chosen(Some(10), 1), rate(12));
        assert_eq!(chosen(Some(1), 1), rate(2));
        assert_eq!(chosen(Some(190), 1), rate(200));
        assert_eq!(chosen(Some(10), 30), rate(30));
        let absurd = choose_fee_rate(
            Some(FeeRate::from_sat_per_kwu(u64::MAX)),
            rate(1),
            &settings(),
        );
        assert_eq!(absurd.unwrap(), rate(200));
    }

    #[test]
    fn without_estimate_there_is_a_rate_only_if_settings_name_one() {
        let none = choose_fee_rate(None, rate(1), &settings());
        assert!(matches!(none, Err(FeeError::NoEstimate)));
        let mut with_fallback = settings();
        with_fallback.fallback_sat_per_vb = Some(5);
        assert_eq!(
            choose_fee_rate(None, rate(1), &with_fallback).unwrap(),
            rate(5)
        );
        assert!(with_fallback.check(Network::Regtest).is_ok());
        assert!(with_fallback.check(Network::Bitcoin).is_err());
    }

    #[test]
    fn a_mempool_that_asks_for_more_than_the_ceiling_stops_us() {
        let error = choose_fee_rate(Some(rate(10)), rate(201), &settings()).unwrap_err();
        assert!(matches!(
            error,
            FeeError::AboveCeiling {
                asked: 201,
                ceiling: 200
            }
        ));
    }

    #[test]
    fn contradictory_settings_are_refused() {
        let broken: [fn(&mut FeeSettings); 5] = [
            |s| s.target_blocks = 0,
            |s| s.target_blocks = 1_009,
            |s| s.floor_sat_per_vb = 0,
            |s| s.floor_sat_per_vb = 201,
            |s| s.bump_after_blocks = 0,
        ];
        for breaking in broken {
            let mut settings = settings();
            breaking(&mut settings);
            assert!(settings.check(Network::Regtest).is_err(), "{settings:?}");
        }
        assert!(settings().check(Network::Bitcoin).is_ok());
    }
}
