//! What users ask of a bridge, as its nodes keep it for one another until it is done (DESIGN section 5): a request
//! that was answered "accepted" outlives the coordinator that took it.

use ledger::{AccountIndex, AccountKey, Operation, OperationError, SequenceNumber};
use serde::{Deserialize, Serialize};

use crate::{
    api::MAX_PENDING,
    deposit::{DepositTerms, TermsError, TermsHash},
    vault::Vault,
};

/// Most requests in one answer; about 400 bytes each at most.
pub const MAX_AT_ONCE: usize = 2_000;

/// A request of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRequest {
    /// "Watch the deposit address of these terms."
    Terms(DepositTerms),
    /// "Carry out this signed operation."
    Signed(Operation),
}

/// Names a request: the same name is the same place in a node's store. In the order in which requests are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RequestName {
    /// Terms, by their hash.
    Terms([u8; 32]),
    /// A signed operation, by its account and its nonce: an account signs one operation a nonce.
    Signed(u32, u64),
}

/// Why a request is not kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Terms that this vault does not offer.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// A deposit is found on the chain; nobody asks for it.
    #[error("a deposit is no request")]
    Deposit,
    /// It can never be in a batch.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Its fee is below the vault's smallest.
    #[error("the fee is below the vault's smallest")]
    Fee,
    /// Too far ahead of the account.
    #[error("nonce {nonce} is {MAX_PENDING} or more ahead of the account's next, {next}")]
    TooFarAhead {
        /// The operation's.
        nonce: u64,
        /// The account's.
        next: u64,
    },
}

/// What has to be known of a ledger to judge a signed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The account's key.
    pub key: AccountKey,
    /// The account's next nonce.
    pub nonce: u64,
    /// Sequence number of the next batch.
    pub next: SequenceNumber,
}

impl UserRequest {
    /// Its name; `None` for a deposit, which is no request.
    pub fn name(&self) -> Option<RequestName> {
        match self {
            Self::Terms(terms) => Some(RequestName::Terms(terms.hash().0)),
            Self::Signed(operation) => Some(RequestName::Signed(
                operation.sender()?.0,
                operation.nonce()?,
            )),
        }
    }

    /// Whose operation it is.
    pub fn sender(&self) -> Option<AccountIndex> {
        match self {
            Self::Terms(_) => None,
            Self::Signed(operation) => operation.sender(),
        }
    }
}

/// Checks terms that another node wants kept.
///
/// # Errors
/// [`RequestError::Terms`].
pub fn check_terms(terms: &DepositTerms, vault: &Vault) -> Result<TermsHash, RequestError> {
    terms.check(vault.id(), vault.parameters())?;
    terms.address(&vault.group_key())?;
    Ok(terms.hash())
}

/// Checks a signed operation that another node wants kept: it is its sender's, and a batch may hold it by and by. What
/// the balance covers is not asked: money may come first.
///
/// # Errors
/// [`RequestError`].
pub fn check_signed(
    operation: &Operation,
    sender: Option<Sender>,
    vault: &Vault,
) -> Result<(), RequestError> {
    let (Some(index), Some(nonce), Some(last_valid)) = (
        operation.sender(),
        operation.nonce(),
        operation.last_valid(),
    ) else {
        return Err(RequestError::Deposit);
    };
    let Sender {
        key,
        nonce: expected,
        next,
    } = sender.ok_or(OperationError::UnknownSender(index))?;
    operation.check_form()?;
    if operation.fee() < vault.parameters().smallest_fee(operation) {
        return Err(RequestError::Fee);
    }
    if next > last_valid {
        return Err(OperationError::Expired {
            last_valid,
            sequence: next,
        }
        .into());
    }
    if nonce < expected {
        return Err(OperationError::StaleNonce {
            expected,
            found: nonce,
        }
        .into());
    }
    let ahead = u64::try_from(MAX_PENDING).unwrap_or(u64::MAX);
    if nonce.saturating_sub(expected) >= ahead {
        return Err(RequestError::TooFarAhead {
            nonce,
            next: expected,
        });
    }
    if !operation.is_signed_by(&key, &vault.id()) {
        return Err(OperationError::BadSignature.into());
    }
    Ok(())
}
