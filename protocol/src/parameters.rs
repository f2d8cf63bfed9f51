//! Vault parameters: what every node and user of one vault must agree on. Their hash is in the vault id.
//! A node's own settings (paths, ports, caps) are elsewhere, in each binary's `settings`.

use bitcoin::{Amount, Network, XOnlyPublicKey};
use ledger::Operation;
use serde::{Deserialize, Serialize};

use crate::hash;

/// Coinbase outputs need this many confirmations (Bitcoin's consensus rule, `COINBASE_MATURITY`).
pub const COINBASE_MATURITY: u32 = 100;

/// The optional recovery leaf: m of these keys after a long time without a batch (DESIGN section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Keys needed.
    pub needed: u16,
    /// The recovery keys.
    pub keys: Vec<XOnlyPublicKey>,
    /// Relative time-lock in blocks, 1 to 65,535 (BIP-68).
    pub delay: u16,
}

/// What all nodes of a vault agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Which Bitcoin network.
    pub network: Network,
    /// Confirmations that a deposit or top-up needs before it is credited.
    pub deposit_confirmations: u32,
    /// Confirmations that the genesis output needs.
    pub genesis_confirmations: u32,
    /// Confirmations after which a batch counts as final.
    pub final_confirmations: u32,
    /// Blocks after which a depositor can take an uncredited deposit back (BIP-68 relative lock).
    pub refund_delay: u16,
    /// Smallest deposit, in sats, before the deposit fee.
    pub min_deposit: Amount,
    /// What a deposit pays to the treasury, in sats.
    pub deposit_fee: Amount,
    /// Smallest fee of a transfer, in sats.
    pub transfer_fee: Amount,
    /// Smallest fee of a withdrawal, in sats.
    pub withdraw_fee: Amount,
    /// Most operations in one batch.
    pub max_operations: u16,
    /// Blocks for which one candidate of a batch excludes another one (S7).
    pub replacement_delay: u16,
    /// Blocks in which a signed batch may still be fee-bumped (S2).
    pub bump_window: u16,
    /// Recovery leaf of the vault; `None` for a vault that only the operators can open.
    pub recovery: Option<Recovery>,
}

/// Why parameters can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParametersError {
    /// The refund could open while a batch with the deposit may still confirm.
    #[error(
        "refund_delay {0} leaves no time: it must exceed deposit_confirmations + replacement_delay + bump_window"
    )]
    RefundDelay(u16),
    /// A count that must be at least 1 is 0, or above its bound.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// The smallest deposit would credit nothing.
    #[error("min_deposit must exceed deposit_fee by at least the dust limit of 330 sats")]
    MinDeposit,
}

impl Parameters {
    /// Sensible values for a network: short on regtest, long elsewhere.
    pub fn defaults(network: Network) -> Self {
        let quick = matches!(network, Network::Regtest);
        Self {
            network,
            deposit_confirmations: if quick { 2 } else { 6 },
            genesis_confirmations: if quick { 3 } else { 100 },
            final_confirmations: if quick { 3 } else { 6 },
            refund_delay: if quick { 144 } else { 4320 },
            min_deposit: Amount::from_sat(20_000),
            deposit_fee: Amount::from_sat(1_000),
            transfer_fee: Amount::from_sat(100),
            withdraw_fee: Amount::from_sat(1_500),
            max_operations: 64,
            replacement_delay: if quick { 12 } else { 72 },
            bump_window: if quick { 24 } else { 144 },
            recovery: None,
        }
    }

    /// Checks that the parameters can work together.
    ///
    /// # Errors
    /// The first [`ParametersError`] found.
    pub fn validate(&self) -> Result<(), ParametersError> {
        for (value, name) in [
            (self.deposit_confirmations, "deposit_confirmations"),
            (self.genesis_confirmations, "genesis_confirmations"),
            (self.final_confirmations, "final_confirmations"),
        ] {
            if !(1..=10_000).contains(&value) {
                return Err(ParametersError::OutOfRange(name));
            }
        }
        if !(1..=2_000).contains(&self.max_operations) {
            return Err(ParametersError::OutOfRange("max_operations"));
        }
        let needed = u64::from(self.deposit_confirmations)
            + u64::from(self.replacement_delay)
            + u64::from(self.bump_window);
        if u64::from(self.refund_delay) <= needed {
            return Err(ParametersError::RefundDelay(self.refund_delay));
        }
        let credited = self.min_deposit.checked_sub(self.deposit_fee);
        if credited.is_none_or(|amount| amount < Amount::from_sat(330)) {
            return Err(ParametersError::MinDeposit);
        }
        if let Some(recovery) = &self.recovery
            && (recovery.delay == 0
                || recovery.needed == 0
                || usize::from(recovery.needed) > recovery.keys.len()
                || recovery.keys.len() > 20)
        {
            return Err(ParametersError::OutOfRange("recovery"));
        }
        Ok(())
    }

    /// The smallest fee of an operation; none for a deposit, whose fee is taken before it is credited.
    pub fn smallest_fee(&self, operation: &Operation) -> Amount {
        match operation {
            Operation::Deposit { .. } => Amount::ZERO,
            Operation::Transfer { .. } => self.transfer_fee,
            Operation::Withdraw { .. } => self.withdraw_fee,
        }
    }

    /// Commits to every parameter.
    pub fn hash(&self) -> [u8; 32] {
        // Postcard does not fail on this type; a failure would only give a hash that nobody else has.
        hash::tagged(
            "drawbridge/parameters",
            &[&postcard::to_stdvec(self).unwrap_or_default()],
        )
    }
}
