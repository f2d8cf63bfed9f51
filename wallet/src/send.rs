//! Transfers and withdrawals: checked, signed for the pinned vault, sent, and the id compared.

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Amount, Network};
use ledger::{
    AccountKey, AddressError, Operation, OperationId, ScriptError, SequenceNumber, TransferRequest,
    WithdrawRequest, check_output_script,
};
use protocol::api::{OperationDocument, OperationRequest};

use crate::account::{AccountError, ProvenAccount};
use crate::client::printable;
use crate::{Client, ClientError, VaultError, Wallet, account};

/// Batches from the latest one in which an operation may still be included.
pub const DEFAULT_VALID_FOR: u64 = 144;
/// The highest fee that is paid because the coordinator says so; above it the user must name it.
pub const MAX_UNASKED_FEE: Amount = Amount::from_sat(20_000);
/// Times that an operation is sent while the coordinator does not answer. Sending twice is harmless.
const SEND_ATTEMPTS: usize = 3;

/// What a user may leave to the wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOptions {
    /// The fee; `None` for the vault's smallest.
    pub fee: Option<Amount>,
    /// Valid for this many batches after the latest confirmed one.
    pub valid_for: u64,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            fee: None,
            valid_for: DEFAULT_VALID_FOR,
        }
    }
}

/// An operation that the coordinator has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id, computed here.
    pub id: OperationId,
    /// What was signed.
    pub operation: Operation,
    /// The coordinator's answer.
    pub document: OperationDocument,
}

/// Why a Bitcoin address is not paid.
#[derive(Debug, thiserror::Error)]
pub enum PayeeError {
    /// No Bitcoin address.
    #[error("'{address}' is no Bitcoin address")]
    NotAnAddress {
        /// As given.
        address: String,
        /// What is wrong.
        source: bitcoin::address::ParseError,
    },
    /// An address of another network.
    #[error("'{address}' is a Bitcoin address of another network, this wallet is for {network}")]
    WrongNetwork {
        /// As given.
        address: String,
        /// The wallet's.
        network: Network,
    },
    /// Bitcoin nodes would not relay the payout.
    #[error(
        "the vault does not pay to '{address}'; use a p2pkh, p2sh, p2wpkh, p2wsh or p2tr address"
    )]
    NonStandard {
        /// As given.
        address: String,
    },
    /// Bitcoin nodes would not relay so small a payout.
    #[error("{} sat to this address is dust; withdraw at least {} sat", amount.to_sat(), minimum.to_sat())]
    Dust {
        /// As given.
        amount: Amount,
        /// Smallest for this script.
        minimum: Amount,
    },
}

/// Why nothing was sent, or it is unknown what became of it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The recipient is no account of this network.
    #[error("'{address}' is no account address for {network}")]
    Recipient {
        /// As given.
        address: String,
        /// The wallet's.
        network: Network,
        /// What is wrong.
        source: AddressError,
    },
    /// The Bitcoin address can't be paid.
    #[error(transparent)]
    Payee(#[from] PayeeError),
    /// Nothing to send.
    #[error("the amount is zero")]
    ZeroAmount,
    /// The vault is not accepted.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The account can't be told.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// There is no money yet.
    #[error("this account has nothing yet; make a deposit first ('drawbridge deposit-address')")]
    NoAccount,
    /// Too little money.
    #[error("the balance is {} sat, but amount and fee together are {} sat", balance.to_sat(), needed.to_sat())]
    Balance {
        /// After the latest confirmed batch.
        balance: Amount,
        /// Amount and fee.
        needed: Amount,
    },
    /// Below what the vault takes.
    #[error("the fee of {} sat is below the vault's smallest, {} sat", fee.to_sat(), minimum.to_sat())]
    FeeTooLow {
        /// As given.
        fee: Amount,
        /// The vault's.
        minimum: Amount,
    },
    /// The coordinator names a fee that no user expects.
    #[error("the coordinator asks for a fee of {} sat; if you accept that, name it with --fee", .0.to_sat())]
    FeeTooHigh(Amount),
    /// The payee's script was checked to be standard, and those have addresses.
    #[error("the operation cannot be put into words for the coordinator")]
    NoRequest,
    /// The operation is not valid for any batch.
    #[error("--valid-for must be at least 1")]
    Expired,
    /// The coordinator did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It may have arrived or not.
    #[error(
        "operation {id} was sent, but whether it was accepted is unknown; before you send another one, see what became of it with: drawbridge wait {id}"
    )]
    Unanswered {
        /// Its id.
        id: OperationId,
        /// What went wrong.
        source: ClientError,
    },
    /// The coordinator speaks of another operation.
    #[error("DO NOT TRUST this coordinator: it answers with operation {theirs}, sent was {ours}")]
    OtherOperation {
        /// Computed here.
        ours: OperationId,
        /// The coordinator's.
        theirs: String,
    },
}

/// Where a withdrawal goes, checked.
///
/// # Errors
/// [`PayeeError`]: not an address, one of another network, a script that is not standard, or dust.
pub fn payee(network: Network, address: &str, amount: Amount) -> Result<Address, PayeeError> {
    let shown = printable(address);
    let parsed: Address<NetworkUnchecked> = match address.parse() {
        Ok(parsed) => parsed,
        Err(source) => {
            return Err(PayeeError::NotAnAddress {
                address: shown,
                source,
            });
        }
    };
    let Ok(payee) = parsed.require_network(network) else {
        return Err(PayeeError::WrongNetwork {
            address: shown,
            network,
        });
    };
    match check_output_script(&payee.script_pubkey(), amount) {
        Ok(()) => Ok(payee),
        Err(ScriptError::NonStandard) => Err(PayeeError::NonStandard { address: shown }),
        Err(ScriptError::Dust { minimum }) => Err(PayeeError::Dust { amount, minimum }),
    }
}

/// An operation's sender, and the vault that it is signed for.
struct Funded {
    account: ProvenAccount,
    vault: ledger::VaultId,
    fee: Amount,
    last_valid: SequenceNumber,
}

impl Wallet {
    /// Sends `amount` of zkBTC to an account.
    ///
    /// # Errors
    /// [`SendError`]; after [`SendError::Unanswered`] it is unknown whether the operation arrived.
    pub async fn transfer(
        &self,
        client: &Client,
        to: &str,
        amount: Amount,
        options: SendOptions,
    ) -> Result<Sent, SendError> {
        let network = self.network();
        let recipient =
            AccountKey::from_address(network, to).map_err(|source| SendError::Recipient {
                address: printable(to),
                network,
                source,
            })?;
        let minimum = Amount::from_sat(client.fees().await?.transfer_fee_sat);
        let funded = self.fund(client, amount, minimum, options).await?;
        let request = TransferRequest {
            sender: funded.account.index,
            nonce: funded.account.nonce,
            amount,
            fee: funded.fee,
            recipient,
            last_valid: funded.last_valid,
        };
        let operation = request.sign(self.secrets.account(), &funded.vault);
        self.send(client, operation, &funded.vault).await
    }

    /// Burns `amount` of zkBTC and has the vault pay as much to a Bitcoin address.
    ///
    /// # Errors
    /// [`SendError`]; after [`SendError::Unanswered`] it is unknown whether the operation arrived.
    pub async fn withdraw(
        &self,
        client: &Client,
        to: &str,
        amount: Amount,
        options: SendOptions,
    ) -> Result<Sent, SendError> {
        let payee = payee(self.network(), to, amount)?;
        let minimum = Amount::from_sat(client.fees().await?.withdraw_fee_sat);
        let funded = self.fund(client, amount, minimum, options).await?;
        let request = WithdrawRequest {
            sender: funded.account.index,
            nonce: funded.account.nonce,
            amount,
            fee: funded.fee,
            script_pubkey: payee.script_pubkey(),
            last_valid: funded.last_valid,
        };
        let operation = request.sign(self.secrets.account(), &funded.vault);
        self.send(client, operation, &funded.vault).await
    }

    /// The proven account, if it can pay.
    async fn fund(
        &self,
        client: &Client,
        amount: Amount,
        minimum: Amount,
        options: SendOptions,
    ) -> Result<Funded, SendError> {
        if amount == Amount::ZERO {
            return Err(SendError::ZeroAmount);
        }
        if options.valid_for == 0 {
            return Err(SendError::Expired);
        }
        let fee = match options.fee {
            Some(fee) if fee < minimum => return Err(SendError::FeeTooLow { fee, minimum }),
            Some(fee) => fee,
            None if minimum > MAX_UNASKED_FEE => return Err(SendError::FeeTooHigh(minimum)),
            None => minimum,
        };
        let vault = self.check_vault(client).await?.vault_id;
        let account = account::read(client, &self.account_key(), &self.address()).await?;
        let account = account.ok_or(SendError::NoAccount)?;
        let balance = account.balance;
        let needed = amount.checked_add(fee).unwrap_or(Amount::MAX);
        if needed > balance {
            return Err(SendError::Balance { balance, needed });
        }
        let last_valid = SequenceNumber(account.sequence.saturating_add(options.valid_for));
        Ok(Funded {
            account,
            vault,
            fee,
            last_valid,
        })
    }

    async fn send(
        &self,
        client: &Client,
        operation: Operation,
        vault: &ledger::VaultId,
    ) -> Result<Sent, SendError> {
        let id = operation.id(vault);
        let request =
            OperationRequest::of(self.network(), &operation).ok_or(SendError::NoRequest)?;
        let mut attempt = 1;
        let mut may_have_arrived = false;
        let document = loop {
            let error = match client.submit(&request).await {
                Ok(document) => break document,
                Err(error) => error,
            };
            may_have_arrived |= error.may_have_arrived();
            let is_worth_trying = matches!(error, ClientError::Unreachable { .. });
            if is_worth_trying && attempt < SEND_ATTEMPTS {
                attempt += 1;
            } else if may_have_arrived {
                return Err(SendError::Unanswered { id, source: error });
            } else {
                return Err(error.into());
            }
        };
        if document.operation_id != id.to_string() {
            let theirs = printable(&document.operation_id);
            return Err(SendError::OtherOperation { ours: id, theirs });
        }
        Ok(Sent {
            id,
            operation,
            document,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payee_is_a_standard_address_of_the_own_network_above_dust() {
        let amount = Amount::from_sat(330);
        let pay = |address: &str, amount| payee(Network::Regtest, address, amount);
        pay("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", amount).unwrap();

        let error = pay("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", amount).unwrap_err();
        assert!(matches!(error, PayeeError::WrongNetwork { .. }), "{error}");
        let error = pay("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt081", amount).unwrap_err();
        assert!(matches!(error, PayeeError::NotAnAddress { .. }), "{error}");
        let error = pay("", amount).unwrap_err();
        assert!(matches!(error, PayeeError::NotAnAddress { .. }), "{error}");
    }

    #[test]
    fn dust_is_refused_with_the_smallest_amount() {
        let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V1, &[2; 32]).unwrap();
        let taproot = Address::from_witness_program(program, Network::Regtest).to_string();
        match payee(Network::Regtest, &taproot, Amount::from_sat(329)).unwrap_err() {
            PayeeError::Dust { minimum, .. } => assert_eq!(minimum, Amount::from_sat(330)),
            error => panic!("{error}"),
        }
        payee(Network::Regtest, &taproot, Amount::from_sat(330)).unwrap();
    }

    #[test]
    fn an_unknown_witness_version_is_no_standard_script() {
        let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V5, &[2; 32]).unwrap();
        let future = Address::from_witness_program(program, Network::Regtest).to_string();
        let error = payee(Network::Regtest, &future, Amount::from_sat(10_000)).unwrap_err();
        assert!(matches!(error, PayeeError::NonStandard { .. }), "{error}");
    }
}
