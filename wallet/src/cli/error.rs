//! Everything that can go wrong, as one line for people and a stable code for programs.

use std::error::Error as _;
use std::path::PathBuf;

use bitcoin::Network;
use chain::{RpcError, SettingsError};
use serde_json::{Value, json};
use wallet::account::AccountError;
use wallet::core_refund::CoreImportError;
use wallet::deposit::BackupError;
use wallet::send::PayeeError;
use wallet::{
    ClientError, DepositAddressError, FolderError, KeyFileError, RefundError, SendError,
    VaultError, WaitError,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("the runtime cannot start")]
    Runtime(#[source] std::io::Error),
    #[error("there is no home folder; name the wallet's folder with --wallet")]
    NoHome,
    #[error("name the network: --network bitcoin, testnet, testnet4, signet or regtest")]
    NoNetwork,
    #[error("this wallet is for {wallet}, not for {asked}")]
    OtherNetwork { wallet: Network, asked: Network },
    #[error(
        "no passphrase: give it with --passphrase-file or $DRAWBRIDGE_PASSPHRASE where there is no terminal"
    )]
    NoTerminal(#[source] std::io::Error),
    #[error("the two passphrases differ; nothing was written")]
    PassphrasesDiffer,
    #[error("the passphrase file {} cannot be read", path.display())]
    PassphraseFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the vault parameters {} cannot be read: {reason}", path.display())]
    Parameters { path: PathBuf, reason: String },
    #[error(
        "this wallet has not shown a deposit address yet{0}; run 'drawbridge deposit-address' first"
    )]
    NoBackup(&'static str),
    #[error(
        "the wallet's account address is unreadable; restore wallet.json from a backup, or remove it"
    )]
    Identity,
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    DepositAddress(#[from] DepositAddressError),
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error(transparent)]
    Refund(#[from] RefundError),
    #[error(transparent)]
    CoreImport(#[from] CoreImportError),
}

impl CliError {
    /// The error and its causes in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let words = error.to_string();
            // Layers of HTTP repeat one another.
            if !line.contains(&words) {
                line.push_str(&format!(": {words}"));
            }
            cause = error.source();
        }
        line.replace(['\n', '\r'], " ")
    }

    /// `{"error":{"code","message"}}`
    pub fn to_json(&self) -> Value {
        json!({ "error": { "code": self.code(), "message": self.line() } })
    }

    /// Stable, in snake_case; a coordinator's problem document keeps its own.
    pub fn code(&self) -> &str {
        match self {
            Self::Runtime(_) => "runtime",
            Self::NoHome => "no_home",
            Self::NoNetwork => "no_network",
            Self::OtherNetwork { .. } => "wrong_network",
            Self::NoTerminal(_) => "no_passphrase",
            Self::PassphrasesDiffer => "passphrases_differ",
            Self::PassphraseFile { .. } => "passphrase_file",
            Self::Parameters { .. } => "vault_parameters",
            Self::NoBackup(_) => "no_deposit_address",
            Self::Identity => "wallet_damaged",
            Self::Settings(_) => "bitcoind_settings",
            Self::KeyFile(error) => key_file(error),
            Self::Folder(error) => folder(error),
            Self::Client(error) => client(error),
            Self::DepositAddress(error) => deposit_address(error),
            Self::Account(error) => account(error),
            Self::Send(error) => send(error),
            Self::Wait(error) => wait(error),
            Self::Refund(error) => refund(error),
            Self::CoreImport(error) => match error {
                CoreImportError::Backup(error) => backup(error),
                CoreImportError::OtherKey => "other_refund_key",
                CoreImportError::Checksum(_) => "descriptor",
            },
        }
    }
}

fn key_file(error: &KeyFileError) -> &str {
    match error {
        KeyFileError::Exists(_) => "key_file_exists",
        KeyFileError::EmptyPassphrase => "empty_passphrase",
        KeyFileError::WrongPassphrase(_) => "wrong_passphrase",
        KeyFileError::Truncated(_) => "key_file_truncated",
        KeyFileError::Unusable { .. } | KeyFileError::Content { .. } => "key_file_damaged",
        KeyFileError::Seal(_) => "encryption",
        KeyFileError::Folder(error) => folder(error),
    }
}

fn folder(error: &FolderError) -> &str {
    match error {
        FolderError::Missing(_) => "wallet_missing",
        FolderError::Exists(_) => "file_exists",
        FolderError::Permissions { .. } => "wallet_permissions",
        FolderError::TooLong(_) | FolderError::Damaged { .. } | FolderError::Foreign(_) => {
            "wallet_damaged"
        }
        FolderError::Io { .. } => "wallet_io",
    }
}

fn client(error: &ClientError) -> &str {
    match error {
        ClientError::Url { .. } => "coordinator_url",
        ClientError::Unreachable { .. } => "coordinator_unreachable",
        ClientError::Problem(problem) => &problem.code,
        ClientError::BadAnswer { .. } => "coordinator_bad_answer",
        _ => "http_client",
    }
}

fn vault(error: &VaultError) -> &str {
    match error {
        VaultError::Client(error) => client(error),
        VaultError::NotReady(_) => "vault_not_ready",
        VaultError::Malformed(_) => "coordinator_bad_answer",
        VaultError::Network { .. } => "wrong_network",
        VaultError::NotItsId | VaultError::Certificate => "vault_not_certified",
        VaultError::Unexpected { .. } => "vault_unexpected",
        VaultError::Changed { .. } => "vault_changed",
        VaultError::Folder(error) => folder(error),
    }
}

fn deposit_address(error: &DepositAddressError) -> &str {
    match error {
        DepositAddressError::Vault(error) => vault(error),
        DepositAddressError::Client(error) => client(error),
        DepositAddressError::Terms(_) => "deposit_terms",
        DepositAddressError::Differs { .. } => "deposit_address_differs",
        DepositAddressError::Folder(error) => folder(error),
    }
}

fn account(error: &AccountError) -> &str {
    match error {
        AccountError::Client(error) => client(error),
        AccountError::OtherAccount | AccountError::NotProven => "account_not_proven",
        AccountError::Malformed(_) => "coordinator_bad_answer",
        AccountError::Unsteady => "try_again",
    }
}

fn payee(error: &PayeeError) -> &'static str {
    match error {
        PayeeError::NotAnAddress { .. } => "bad_bitcoin_address",
        PayeeError::WrongNetwork { .. } => "wrong_network",
        PayeeError::NonStandard { .. } => "non_standard_script",
        PayeeError::Dust { .. } => "below_dust",
    }
}

fn send(error: &SendError) -> &str {
    match error {
        SendError::Recipient { source, .. } => match source {
            ledger::AddressError::Network { .. } => "wrong_network",
            _ => "bad_account_address",
        },
        SendError::Payee(error) => payee(error),
        SendError::ZeroAmount => "zero_amount",
        SendError::Vault(error) => vault(error),
        SendError::Account(error) => account(error),
        SendError::NoAccount => "unknown_account",
        SendError::Balance { .. } => "insufficient_balance",
        SendError::FeeTooLow { .. } => "fee_too_low",
        SendError::FeeTooHigh(_) => "fee_too_high",
        SendError::Expired => "expired",
        SendError::NoRequest => "operation",
        SendError::Client(error) => client(error),
        SendError::Unanswered { .. } => "unanswered",
        SendError::OtherOperation { .. } => "operation_differs",
    }
}

fn wait(error: &WaitError) -> &str {
    match error {
        WaitError::Refused { .. } => "refused",
        WaitError::TimedOut { .. } => "timed_out",
        WaitError::Client(error) => client(error),
    }
}

fn backup(error: &BackupError) -> &'static str {
    match error {
        BackupError::Malformed(_) | BackupError::Terms(_) | BackupError::Differs(_) => {
            "deposit_backup_damaged"
        }
    }
}

fn refund(error: &RefundError) -> &str {
    match error {
        RefundError::NotUnspent(_) => "not_unspent",
        RefundError::NotOurs { .. } => "not_our_deposit",
        RefundError::OtherKey => "other_refund_key",
        RefundError::Immature { .. } => "time_lock",
        RefundError::FeeRate => "fee_rate",
        RefundError::FeeAboveValue { .. } => "fee_above_value",
        RefundError::Payee(error) => payee(error),
        RefundError::Backup(error) => backup(error),
        RefundError::Folder(error) => folder(error),
        RefundError::Satisfy(_) => "refund_leaf",
        RefundError::Rpc(RpcError::WrongNetwork { .. }) => "wrong_network",
        RefundError::Rpc(error) if error.is_transient() => "bitcoind_unreachable",
        RefundError::Rpc(_) => "bitcoind",
    }
}
