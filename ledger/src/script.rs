//! Which scripts a withdrawal may pay: the standard outputs, above dust.

use bitcoin::{Amount, Script};

/// Longest standard output script here (p2wsh and p2tr have 34 bytes; 42 is BIP-141's longest witness program).
pub const MAX_SCRIPT_BYTES: usize = 42;

/// Why an output is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// Not p2pkh, p2sh, p2wpkh, p2wsh or p2tr.
    #[error("the script is not a standard one (p2pkh, p2sh, p2wpkh, p2wsh or p2tr)")]
    NonStandard,
    /// Bitcoin Core would not relay so small an output.
    #[error("the amount is below the dust limit of {} sat for this script", minimum.to_sat())]
    Dust {
        /// Smallest amount that is relayed for this script.
        minimum: Amount,
    },
}

/// Checks that `script` is a standard output and `amount` is not dust for it, by Bitcoin Core's default dust
/// relay fee of 3 sat/vB.
///
/// # Errors
/// [`ScriptError`] names which of the two fails.
pub fn check_output_script(script: &Script, amount: Amount) -> Result<(), ScriptError> {
    let standard = script.is_p2pkh()
        || script.is_p2sh()
        || script.is_p2wpkh()
        || script.is_p2wsh()
        || script.is_p2tr();
    if !standard || script.len() > MAX_SCRIPT_BYTES {
        return Err(ScriptError::NonStandard);
    }
    let minimum = script.minimal_non_dust();
    if amount < minimum {
        return Err(ScriptError::Dust { minimum });
    }
    Ok(())
}
