//! A signed operation as people's programs send it and see it: text on one side, the ledger's types on the other.

use bitcoin::{
    Address, Amount, Network, Script, ScriptBuf,
    address::{NetworkUnchecked, ParseError},
};
use ledger::{
    AccountIndex, AccountKey, AddressError, DecodeError, Operation, SequenceNumber, Signature,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A signed operation, as the wallet sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum OperationRequest {
    /// Moves zkBTC between accounts.
    Transfer {
        /// Sender's leaf.
        sender: u32,
        /// Sender's nonce.
        nonce: u64,
        /// What the recipient gets.
        amount_sat: u64,
        /// What the sender pays beside it.
        fee_sat: u64,
        /// Recipient's address.
        recipient: String,
        /// Last batch that may hold it.
        last_valid: u64,
        /// Schnorr signature, 64 bytes of hex.
        signature: String,
    },
    /// Burns zkBTC and pays BTC.
    Withdraw {
        /// Sender's leaf.
        sender: u32,
        /// Sender's nonce.
        nonce: u64,
        /// What the address gets.
        amount_sat: u64,
        /// What the sender pays beside it.
        fee_sat: u64,
        /// Bitcoin address that is paid.
        address: String,
        /// Last batch that may hold it.
        last_valid: u64,
        /// Schnorr signature, 64 bytes of hex.
        signature: String,
    },
}

/// What is no value of its field.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// The recipient.
    #[error(transparent)]
    Recipient(#[from] AddressError),
    /// The Bitcoin address.
    #[error(transparent)]
    Address(#[from] ParseError),
    /// The Bitcoin address is one of another network.
    #[error("the Bitcoin address is not for {0}")]
    Network(Network),
    /// The signature.
    #[error(transparent)]
    Signature(#[from] DecodeError),
}

impl OperationRequest {
    /// An operation as it was sent; `None` for a deposit, which nobody sends. A script without an address, which no
    /// coordinator takes, is shown in hex.
    pub fn of(network: Network, operation: &Operation) -> Option<Self> {
        match operation {
            Operation::Deposit { .. } => None,
            Operation::Transfer {
                sender,
                nonce,
                amount,
                fee,
                recipient,
                last_valid,
                signature,
            } => Some(Self::Transfer {
                sender: sender.0,
                nonce: *nonce,
                amount_sat: amount.to_sat(),
                fee_sat: fee.to_sat(),
                recipient: recipient.to_address(network),
                last_valid: last_valid.0,
                signature: signature.to_string(),
            }),
            Operation::Withdraw {
                sender,
                nonce,
                amount,
                fee,
                script_pubkey,
                last_valid,
                signature,
            } => Some(Self::Withdraw {
                sender: sender.0,
                nonce: *nonce,
                amount_sat: amount.to_sat(),
                fee_sat: fee.to_sat(),
                address: shown(network, script_pubkey),
                last_valid: last_valid.0,
                signature: signature.to_string(),
            }),
        }
    }

    /// Text to types. What the ledger says about them comes later.
    ///
    /// # Errors
    /// [`FieldError`].
    pub fn operation(self, network: Network) -> Result<Operation, FieldError> {
        Ok(match self {
            Self::Transfer {
                sender,
                nonce,
                amount_sat,
                fee_sat,
                recipient,
                last_valid,
                signature,
            } => Operation::Transfer {
                sender: AccountIndex(sender),
                nonce,
                amount: Amount::from_sat(amount_sat),
                fee: Amount::from_sat(fee_sat),
                recipient: AccountKey::from_address(network, &recipient)?,
                last_valid: SequenceNumber(last_valid),
                signature: signature.parse::<Signature>()?,
            },
            Self::Withdraw {
                sender,
                nonce,
                amount_sat,
                fee_sat,
                address,
                last_valid,
                signature,
            } => Operation::Withdraw {
                sender: AccountIndex(sender),
                nonce,
                amount: Amount::from_sat(amount_sat),
                fee: Amount::from_sat(fee_sat),
                script_pubkey: script(network, &address)?,
                last_valid: SequenceNumber(last_valid),
                signature: signature.parse::<Signature>()?,
            },
        })
    }
}

fn script(network: Network, address: &str) -> Result<ScriptBuf, FieldError> {
    let address: Address<NetworkUnchecked> = address.parse()?;
    if !address.is_valid_for_network(network) {
        return Err(FieldError::Network(network));
    }
    Ok(address.assume_checked().script_pubkey())
}

fn shown(network: Network, script: &Script) -> String {
    Address::from_script(script, network)
        .map_or_else(|_| script.to_hex_string(), |address| address.to_string())
}
