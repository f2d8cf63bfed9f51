//! Hands a signed transaction to the node and says what became of it.
//!
//! Submitting is idempotent: every operator does it, and again after each restart.

use std::panic::Location;

use bitcoin::Transaction;

use crate::rpc::{BitcoinRpc, RpcError, code};

/// Refusals of bitcoind which mean that another transaction is in the way: it spends the same
/// output in the chain or in the mempool, and this one does not replace it.
const CONFLICTS: [&str; 6] = [
    "bad-txns-inputs-missingorspent",
    "missing-inputs",
    "txn-mempool-conflict",
    "insufficient fee",
    "bad-txns-spends-conflicting-tx",
    "too many potential replacements",
];

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submission {
    /// It entered the mempool now.
    Accepted,
    /// It is in the mempool already; the node announces it again.
    AlreadyKnown,
    /// It is in the chain: an output of it is confirmed and unspent.
    Confirmed,
    /// The node refuses it for what it is: invalid, non-standard, or paying too little.
    Rejected {
        /// bitcoind's error code.
        code: i64,
        /// bitcoind's words.
        reason: String,
    },
    /// An input is spent, by the chain or by a transaction of the mempool that this one does not
    /// replace, or the node does not know it. A transaction of ours that was confirmed, and whose
    /// outputs were all spent since, looks like this too: only the blocks tell.
    Conflict {
        /// bitcoind's words.
        reason: String,
    },
}

impl Submission {
    /// Whether the node says that the transaction's witnesses are wrong, which no waiting mends.
    #[must_use]
    pub fn is_unsigned(&self) -> bool {
        match self {
            Self::Rejected { code, reason } => {
                *code == code::DESERIALIZATION_ERROR || reason.contains("script-verify-flag")
            }
            _ => false,
        }
    }

    /// Whether the transaction is in the mempool or in the chain.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Accepted | Self::AlreadyKnown | Self::Confirmed)
    }
}

/// Why it is unknown what became of a transaction. Submit it again.
#[derive(Debug, thiserror::Error)]
#[error("the transaction could not be handed to bitcoind")]
pub struct SubmitError(#[from] RpcError);

impl SubmitError {
    /// What the call to bitcoind failed with.
    #[must_use]
    pub fn rpc(&self) -> &RpcError {
        &self.0
    }
}

/// Submits a signed transaction.
#[track_caller]
pub fn submit<'a>(
    rpc: &'a BitcoinRpc,
    transaction: &'a Transaction,
) -> impl Future<Output = Result<Submission, SubmitError>> + use<'a> {
    let place = Location::caller();
    async move {
        let known = rpc.mempool_entry(transaction.compute_txid()).await?;
        match rpc.send_transaction_for(place, transaction).await {
            Ok(_) if known.is_some() => Ok(Submission::AlreadyKnown),
            Ok(_) => Ok(Submission::Accepted),
            Err(RpcError::Rpc { code, message, .. }) => explain(code, message).map_err(SubmitError),
            Err(error) => Err(error.into()),
        }
    }
}

fn explain(code: i64, message: String) -> Result<Submission, RpcError> {
    match code {
        code::ALREADY_IN_UTXO_SET => Ok(Submission::Confirmed),
        code::VERIFY_ERROR | code::VERIFY_REJECTED
            if CONFLICTS.iter().any(|words| message.starts_with(words)) =>
        {
            Ok(Submission::Conflict { reason: message })
        }
        code::VERIFY_ERROR | code::VERIFY_REJECTED | code::DESERIALIZATION_ERROR => {
            Ok(Submission::Rejected {
                code,
                reason: message,
            })
        }
        code => Err(RpcError::Rpc {
            method: "sendrawtransaction".to_owned(),
            code,
            message,
        }),
    }
}
