//! Requests of users that coordinators have this operator keep (DESIGN section 5), so that they outlive the
//! coordinator that took them. Each was checked when it came; none is carried out here.

use std::{
    ops::Bound,
    sync::{Mutex, PoisonError},
};

use ledger::{Operation, SequenceNumber};
use protocol::{
    deposit::DepositTerms,
    request::{MAX_AT_ONCE, RequestName, UserRequest},
};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

/// Most deposit terms that are kept: as many as a coordinator keeps.
pub const MAX_TERMS: usize = 1_000_000;
/// Most signed operations that are kept at a time.
pub const MAX_SIGNED: usize = 100_000;

/// Terms by their hash. Kept forever: a deposit may come at any time.
const TERMS: Table<[u8; 32], DepositTerms> = Table::new("requested_terms", 1);
/// Operations by account and nonce, until a batch with them is final.
const SIGNED: Table<(u32, u64), Operation> = Table::new("requested_operations", 1);

/// The tables of this module.
pub const TABLES: [ColumnName; 2] = [TERMS.name(), SIGNED.name()];

/// Why a request is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Not one that can be kept.
    #[error("a deposit is no request")]
    Deposit,
    /// The account has signed another operation with the same nonce.
    #[error("another operation of this account with nonce {0} is kept")]
    NonceTaken(u64),
    /// No room.
    #[error("no more of these requests can be kept")]
    Full,
    /// A damaged database.
    #[error("reading the kept requests failed")]
    Read(#[from] ReadError),
    /// Fatal (S11).
    #[error("writing a request failed")]
    Commit(#[from] CommitError),
}

/// The requests that are kept.
pub struct Requests {
    store: Store,
    kept: Mutex<Counts>,
}

/// How many there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deposit terms.
    pub terms: usize,
    /// Signed operations.
    pub signed: usize,
}

impl Requests {
    /// Counts what is there.
    ///
    /// # Errors
    /// A damaged database.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let mut kept = Counts::default();
        for row in store.iter(&TERMS, .., Direction::Forward, MAX_TERMS)? {
            row?;
            kept.terms = kept.terms.saturating_add(1);
        }
        for row in store.iter(&SIGNED, .., Direction::Forward, MAX_SIGNED)? {
            row?;
            kept.signed = kept.signed.saturating_add(1);
        }
        Ok(Self {
            store,
            kept: Mutex::new(kept),
        })
    }

    /// How many are kept.
    pub fn counts(&self) -> Counts {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a request durably; the caller has checked it. The same one again changes nothing.
    ///
    /// # Errors
    /// [`KeepError`]; nothing was changed.
    pub fn keep(&self, request: &UserRequest) -> Result<(), KeepError> {
        // One writer at a time: two operations with one nonce must not both be "kept".
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::new();
        let more = |count: usize, most: usize| {
            count
                .checked_add(1)
                .filter(|count| *count <= most)
                .ok_or(KeepError::Full)
        };
        let mut counts = *kept;
        match (request, request.name()) {
            (UserRequest::Terms(terms), Some(RequestName::Terms(hash))) => {
                if self.store.get(&TERMS, &hash)?.is_some() {
                    return Ok(());
                }
                counts.terms = more(counts.terms, MAX_TERMS)?;
                changes.put(&TERMS, &hash, terms);
            }
            (UserRequest::Signed(operation), Some(RequestName::Signed(sender, nonce))) => {
                match self.store.get(&SIGNED, &(sender, nonce))? {
                    Some(there) if there == *operation => return Ok(()),
                    Some(_) => return Err(KeepError::NonceTaken(nonce)),
                    None => {}
                }
                counts.signed = more(counts.signed, MAX_SIGNED)?;
                changes.put(&SIGNED, &(sender, nonce), operation);
            }
            _ => return Err(KeepError::Deposit),
        }
        self.store.commit(changes)?;
        *kept = counts;
        Ok(())
    }

    /// The requests behind `after`, in the order of their names, at most [`MAX_AT_ONCE`].
    ///
    /// # Errors
    /// A damaged database.
    pub fn list(&self, after: Option<RequestName>) -> Result<Vec<UserRequest>, ReadError> {
        let mut found = Vec::new();
        let terms_after = match after {
            None => Some(Bound::Unbounded),
            Some(RequestName::Terms(hash)) => Some(Bound::Excluded(hash)),
            Some(RequestName::Signed(..)) => None,
        };
        if let Some(start) = terms_after {
            let range = (start, Bound::Unbounded);
            for row in self
                .store
                .iter(&TERMS, range, Direction::Forward, MAX_AT_ONCE)?
            {
                found.push(UserRequest::Terms(row?.1));
            }
        }
        let start = match after {
            Some(RequestName::Signed(sender, nonce)) => Bound::Excluded((sender, nonce)),
            _ => Bound::Unbounded,
        };
        let room = MAX_AT_ONCE.saturating_sub(found.len());
        let range = (start, Bound::Unbounded);
        for row in self.store.iter(&SIGNED, range, Direction::Forward, room)? {
            found.push(UserRequest::Signed(row?.1));
        }
        Ok(found)
    }

    /// Drops the operations that are done, by account and nonce, or can't be in the next batch or any later one.
    ///
    /// # Errors
    /// [`KeepError`]; fatal when it is a write that fails (S11).
    pub fn settle(
        &self,
        is_done: impl Fn(u32, u64) -> bool,
        next: SequenceNumber,
    ) -> Result<(), KeepError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::new();
        let mut left = *kept;
        for row in self
            .store
            .iter(&SIGNED, .., Direction::Forward, MAX_SIGNED)?
        {
            let ((sender, nonce), operation) = row?;
            let expired = operation.last_valid().is_some_and(|last| next > last);
            if expired || is_done(sender, nonce) {
                changes.delete(&SIGNED, &(sender, nonce));
                left.signed = left.signed.saturating_sub(1);
            }
        }
        if !changes.is_empty() {
            self.store.commit(changes)?;
            *kept = left;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;
    use ledger::{AccountIndex, AccountSecret, TransferRequest};
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::testing;

    fn transfer(sender: u32, nonce: u64, sats: u64) -> UserRequest {
        let mut rng = StdRng::seed_from_u64(7);
        let secret = AccountSecret::generate(&mut rng);
        let request = TransferRequest {
            sender: AccountIndex(sender),
            nonce,
            amount: Amount::from_sat(sats),
            fee: Amount::from_sat(100),
            recipient: secret.public(),
            last_valid: SequenceNumber(9),
        };
        UserRequest::Signed(request.sign(&secret, &testing::vault().id()))
    }

    fn terms(n: u8) -> UserRequest {
        let mut rng = StdRng::seed_from_u64(n.into());
        let mut terms = testing::terms();
        terms.account = AccountSecret::generate(&mut rng).public();
        UserRequest::Terms(terms)
    }

    #[test]
    fn what_is_kept_is_listed_in_order_and_survives_a_restart() {
        let (_folder, store) = testing::store();
        let requests = Requests::open(store.clone()).unwrap();
        let all = [
            terms(1),
            terms(2),
            transfer(1, 0, 5),
            transfer(1, 1, 5),
            transfer(2, 0, 5),
        ];
        for request in &all {
            requests.keep(request).unwrap();
            requests.keep(request).unwrap();
        }
        drop(requests);
        let requests = Requests::open(store).unwrap();
        assert_eq!(
            requests.counts(),
            Counts {
                terms: 2,
                signed: 3
            }
        );
        let listed = requests.list(None).unwrap();
        assert_eq!(listed.len(), 5);
        assert!(listed.iter().map(UserRequest::name).is_sorted());
        for (place, request) in listed.iter().enumerate() {
            let behind = requests.list(request.name()).unwrap();
            assert_eq!(behind, listed[place + 1..]);
        }
    }

    #[test]
    fn the_first_operation_with_a_nonce_stays() {
        let (_folder, store) = testing::store();
        let requests = Requests::open(store).unwrap();
        let first = transfer(1, 0, 5);
        requests.keep(&first).unwrap();
        let second = requests.keep(&transfer(1, 0, 6));
        assert!(
            matches!(second, Err(KeepError::NonceTaken(0))),
            "{second:?}"
        );
        assert_eq!(requests.list(None).unwrap(), [first]);
    }

    #[test]
    fn what_is_done_or_has_expired_goes_and_terms_stay() {
        let (_folder, store) = testing::store();
        let requests = Requests::open(store).unwrap();
        let [terms, done, open, other] = [
            terms(1),
            transfer(1, 3, 5),
            transfer(1, 4, 5),
            transfer(2, 4, 5),
        ];
        for request in [&terms, &done, &open, &other] {
            requests.keep(request).unwrap();
        }
        let is_done = |sender, nonce| (sender, nonce) < (1, 4);
        requests.settle(is_done, SequenceNumber(9)).unwrap();
        assert_eq!(requests.list(None).unwrap(), [terms.clone(), open, other]);
        requests.settle(is_done, SequenceNumber(10)).unwrap();
        assert_eq!(requests.list(None).unwrap(), [terms]);
        assert_eq!(
            requests.counts(),
            Counts {
                terms: 1,
                signed: 0
            }
        );
    }
}
