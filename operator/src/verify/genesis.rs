//! S2 for the first treasury: the outpoint pays this vault's script the stated amount, is deep in the own
//! node's chain and unspent; and everything that the certificate speaks of is what this operator has.

use bitcoin::OutPoint;
use chain::rpc::UnspentOutput;
use protocol::{
    message::{Refusal, Rule},
    parameters::COINBASE_MATURITY,
    transaction::TREASURY_DUST,
    vault::{Genesis, VaultKey},
};
use threshold::sign::{Message, Tweak};

/// A genesis that this operator is willing to certify.
#[derive(Clone, Debug)]
pub struct VerifiedGenesis {
    genesis: Genesis,
    height: u32,
    messages: [Message; 1],
}

impl VerifiedGenesis {
    /// The genesis output.
    pub fn outpoint(&self) -> OutPoint {
        self.genesis.outpoint
    }

    /// Height of its block.
    pub fn height(&self) -> u32 {
        self.height
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }
}

/// Judges a genesis. `output` is what the own node says of its outpoint, with its chain's height.
///
/// # Errors
/// A [`Refusal`] under S2.
pub fn check(
    vault: &VaultKey,
    verifying_key_hash: [u8; 32],
    genesis: &Genesis,
    output: Option<(&UnspentOutput, u32)>,
) -> Result<VerifiedGenesis, Refusal> {
    let own = vault.genesis(genesis.outpoint, genesis.amount, verifying_key_hash);
    for (same, name) in [
        (own.group_key == genesis.group_key, "group key"),
        (
            own.verifying_key_hash == genesis.verifying_key_hash,
            "verifying key",
        ),
        (
            own.parameters_hash == genesis.parameters_hash,
            "set of vault parameters",
        ),
        (own.roster_hash == genesis.roster_hash, "roster"),
    ] {
        if !same {
            return Err(refuse(format!("the genesis names another {name}")));
        }
    }
    let outpoint = genesis.outpoint;
    let (output, tip) = output.ok_or_else(|| {
        refuse(format!(
            "{outpoint} is not an unspent output of the best chain"
        ))
    })?;
    if output.script_pubkey != *vault.script_pubkey() {
        return Err(refuse(format!("{outpoint} does not pay the vault")));
    }
    if output.value != genesis.amount {
        return Err(refuse(format!(
            "{outpoint} holds {}, not {}",
            output.value, genesis.amount
        )));
    }
    if output.value < TREASURY_DUST {
        return Err(refuse(format!(
            "{outpoint} holds {}, below the dust limit",
            output.value
        )));
    }
    let parameter = vault.parameters().genesis_confirmations;
    let needed = if output.coinbase {
        parameter.max(COINBASE_MATURITY)
    } else {
        parameter
    };
    if output.confirmations < needed {
        return Err(refuse(format!(
            "{outpoint} has {} of {needed} confirmations",
            output.confirmations
        )));
    }
    Ok(VerifiedGenesis {
        height: tip.saturating_add(1).saturating_sub(output.confirmations),
        messages: [Message {
            digest: genesis.digest(),
            tweak: Tweak::Untweaked,
        }],
        genesis: genesis.clone(),
    })
}

fn refuse(reason: String) -> Refusal {
    Refusal::new(Rule::S2, reason)
}
