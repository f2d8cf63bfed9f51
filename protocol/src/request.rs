//! What users ask of a bridge, as its nodes keep it for one another until it is done (DESIGN section 5): a request
//! that was answered "accepted" outlives the coordinator that took it.

use std::ops::Bound;

use ledger::{AccountKey, Operation, OperationError, SequenceNumber, VaultId};
use serde::{Deserialize, Serialize};

use crate::{
    api::MAX_PENDING,
    deposit::{DepositAddress, DepositTerms, TermsError},
    identity::PeerKey,
    parameters::Parameters,
    roster::Roster,
    vault::Vault,
};

/// Most requests in one answer; about 400 bytes each at most.
pub const MAX_AT_ONCE: usize = 2_000;
/// Most answers taken from one node: more than its bounds fill.
pub const MAX_PAGES: usize = 1_000;

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
}

impl RequestName {
    /// Where among the terms a list behind a name begins; `None` if it is behind all of them.
    pub fn terms_after(after: Option<Self>) -> Option<Bound<[u8; 32]>> {
        match after {
            None => Some(Bound::Unbounded),
            Some(Self::Terms(hash)) => Some(Bound::Excluded(hash)),
            Some(Self::Signed(..)) => None,
        }
    }

    /// Where among the signed operations a list behind a name begins.
    pub fn signed_after(after: Option<Self>) -> Bound<(u32, u64)> {
        match after {
            Some(Self::Signed(sender, nonce)) => Bound::Excluded((sender, nonce)),
            None | Some(Self::Terms(_)) => Bound::Unbounded,
        }
    }

    /// Where a list goes on behind a page that was asked for with `after`. `None` when the page is empty, too long, or
    /// leads nowhere: names only go up, so that every list ends.
    pub fn behind(page: &[UserRequest], after: Option<Self>) -> Option<Self> {
        let last = page.iter().filter_map(UserRequest::name).max();
        last.filter(|_| page.len() <= MAX_AT_ONCE && last > after)
    }
}

/// How much of a node's room for requests another node may fill. Half is for the coordinators, who take them from users,
/// and half for the operators, from whom only those are fetched that are not here: so nobody fills it alone, and what one
/// has no room left for comes from the next.
pub fn share_of(room: usize, roster: &Roster, giver: &PeerKey) -> usize {
    let among = if roster.is_coordinator(giver) {
        roster.coordinators.len()
    } else if roster.is_operator(giver) {
        roster.operators.len()
    } else {
        return 0;
    };
    room.checked_div(2)
        .and_then(|half| half.checked_div(among))
        .unwrap_or(0)
}

/// Checks terms that another node wants kept. Gives their address.
///
/// # Errors
/// [`RequestError::Terms`].
pub fn check_terms(terms: &DepositTerms, vault: &Vault) -> Result<DepositAddress, RequestError> {
    terms.check(vault.id(), vault.parameters())?;
    Ok(terms.address(&vault.group_key())?)
}

/// Checks a signed operation that another node wants kept: it is its sender's, and a batch may hold it by and by. What
/// the balance covers is not asked: money may come first.
///
/// # Errors
/// [`RequestError`].
pub fn check_signed(
    operation: &Operation,
    sender: Option<Sender>,
    vault: &VaultId,
    parameters: &Parameters,
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
    if operation.fee() < parameters.smallest_fee(operation) {
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
    if !operation.is_signed_by(&key, vault) {
        return Err(OperationError::BadSignature.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::{Amount, Network};
    use ledger::{AccountIndex, AccountSecret, TransferRequest};
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const VAULT: VaultId = VaultId([7; 32]);

    fn secret(seed: u64) -> AccountSecret {
        AccountSecret::generate(&mut StdRng::seed_from_u64(seed))
    }

    fn transfer(nonce: u64, fee: u64, last_valid: u64) -> Operation {
        let request = TransferRequest {
            sender: AccountIndex(3),
            nonce,
            amount: Amount::from_sat(1_000),
            fee: Amount::from_sat(fee),
            recipient: secret(2).public(),
            last_valid: SequenceNumber(last_valid),
        };
        request.sign(&secret(1), &VAULT)
    }

    fn check(operation: &Operation) -> Result<(), RequestError> {
        let sender = Sender {
            key: secret(1).public(),
            nonce: 5,
            next: SequenceNumber(9),
        };
        let parameters = Parameters::defaults(Network::Regtest);
        check_signed(operation, Some(sender), &VAULT, &parameters)
    }

    #[test]
    fn an_operation_is_kept_if_a_batch_may_hold_it_by_and_by() {
        let fee = Parameters::defaults(Network::Regtest).transfer_fee.to_sat();
        let ahead = u64::try_from(MAX_PENDING).unwrap();
        assert_eq!(check(&transfer(5, fee, 9)), Ok(()));
        assert_eq!(check(&transfer(5 + ahead - 1, fee, 9)), Ok(()));
        assert_eq!(
            check(&transfer(5 + ahead, fee, 9)),
            Err(RequestError::TooFarAhead {
                nonce: 5 + ahead,
                next: 5
            })
        );
        let stale = OperationError::StaleNonce {
            expected: 5,
            found: 4,
        };
        assert_eq!(check(&transfer(4, fee, 9)), Err(stale.into()));
        let expired = OperationError::Expired {
            last_valid: SequenceNumber(8),
            sequence: SequenceNumber(9),
        };
        assert_eq!(check(&transfer(5, fee, 8)), Err(expired.into()));
        assert_eq!(check(&transfer(5, fee - 1, 9)), Err(RequestError::Fee));
    }

    #[test]
    fn only_the_accounts_own_signature_in_this_vault_keeps_an_operation() {
        let operation = transfer(6, 100, 9);
        let parameters = Parameters::defaults(Network::Regtest);
        let sender = |seed| Sender {
            key: secret(seed).public(),
            nonce: 5,
            next: SequenceNumber(9),
        };
        let bad = Err(RequestError::Operation(OperationError::BadSignature));
        let judged =
            |seed, vault| check_signed(&operation, Some(sender(seed)), &vault, &parameters);
        assert_eq!(judged(1, VAULT), Ok(()));
        assert_eq!(judged(2, VAULT), bad);
        assert_eq!(judged(1, VaultId([8; 32])), bad);
        let unknown = check_signed(&operation, None, &VAULT, &parameters);
        assert_eq!(
            unknown,
            Err(OperationError::UnknownSender(AccountIndex(3)).into())
        );
    }

    #[test]
    fn nobody_fills_a_nodes_room_alone() {
        let member = |n: u8| crate::roster::Member {
            name: format!("node-{n}"),
            key: PeerKey([n; 32]),
            founding_key: None,
            addresses: Vec::new(),
        };
        let roster = Roster {
            threshold: 2,
            operators: (1..=3).map(member).collect(),
            coordinators: (4..=5).map(member).collect(),
            attestation: Default::default(),
        };
        let share = |n| share_of(1_200, &roster, &PeerKey([n; 32]));
        assert_eq!([1, 4, 9].map(share), [200, 300, 0]);
        assert!((1..=5).map(share).sum::<usize>() <= 1_200);
    }

    #[test]
    fn every_list_ends() {
        let page: Vec<_> = [5, 7, 6]
            .map(|nonce| UserRequest::Signed(transfer(nonce, 100, 9)))
            .into();
        let last = Some(RequestName::Signed(3, 7));
        assert_eq!(RequestName::behind(&page, None), last);
        assert_eq!(
            RequestName::behind(&page, Some(RequestName::Terms([0xff; 32]))),
            last
        );
        for after in [last, Some(RequestName::Signed(3, 8))] {
            assert_eq!(RequestName::behind(&page, after), None);
        }
        assert_eq!(RequestName::behind(&[], None), None);
        let long = vec![page[0].clone(); MAX_AT_ONCE + 1];
        assert_eq!(RequestName::behind(&long, None), None);
    }
}
