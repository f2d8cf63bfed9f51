//! Requests of users that coordinators have this operator keep (DESIGN section 5), so that they outlive the
//! coordinator that took them. Each was checked when it came; none is carried out here.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use ledger::{Operation, SequenceNumber};
use protocol::{
    deposit::DepositTerms,
    identity::PeerKey,
    request::{self, MAX_AT_ONCE, RequestName, UserRequest},
    roster::Roster,
};
use storage::{Changes, ColumnName, CommitError, Direction, ReadError, Store, Table};

/// Most deposit terms that are kept: as many as a coordinator keeps.
pub const MAX_TERMS: usize = 1_000_000;
/// Most signed operations that are kept at a time.
pub const MAX_SIGNED: usize = 100_000;

/// Terms by their hash. Kept forever: a deposit may come at any time.
const TERMS: Table<[u8; 32], DepositTerms> = Table::new("requested_terms", 1);
/// How many of the terms came from each node.
const TERMS_FROM: Table<[u8; 32], u64> = Table::new("requested_terms_from", 1);
/// Operations by account and nonce, until a batch with them is final, and who gave them.
const SIGNED: Table<(u32, u64), (Operation, PeerKey)> = Table::new("requested_operations", 1);

/// The tables of this module.
pub const TABLES: [ColumnName; 3] = [TERMS.name(), TERMS_FROM.name(), SIGNED.name()];

/// Why a request is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Not one that can be kept.
    #[error("a deposit is no request")]
    Deposit,
    /// The account has signed another operation with the same nonce.
    #[error("another operation of this account with nonce {0} is kept")]
    NonceTaken(u64),
    /// No room, for this giver or at all.
    #[error("no more of these requests can be kept for this node")]
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
    roster: Arc<Roster>,
    /// Signed operations from each node. Held while one is written.
    signed_from: Mutex<BTreeMap<PeerKey, usize>>,
}

impl Requests {
    /// Counts what is there.
    ///
    /// # Errors
    /// A damaged database.
    pub fn open(store: Store, roster: Arc<Roster>) -> Result<Self, ReadError> {
        let mut signed_from = BTreeMap::new();
        for row in store.iter(&SIGNED, .., Direction::Forward, MAX_SIGNED)? {
            let (_, (_, from)) = row?;
            let count: &mut usize = signed_from.entry(from).or_default();
            *count = count.saturating_add(1);
        }
        Ok(Self {
            store,
            roster,
            signed_from: Mutex::new(signed_from),
        })
    }

    /// Keeps a request durably that `from` has given; the caller has checked it. The same one again changes nothing. An
    /// operation of the same account and nonce that `is_void` now gives way: a reorganisation can give an account's place to
    /// somebody else.
    ///
    /// # Errors
    /// [`KeepError`]; nothing was changed.
    pub fn keep(
        &self,
        request: &UserRequest,
        from: PeerKey,
        is_void: impl Fn(&Operation) -> bool,
    ) -> Result<(), KeepError> {
        // One writer at a time: two operations with one nonce must not both be "kept".
        let mut signed_from = self
            .signed_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::new();
        match (request, request.name()) {
            (UserRequest::Terms(terms), Some(RequestName::Terms(hash))) => {
                if self.store.get(&TERMS, &hash)?.is_some() {
                    return Ok(());
                }
                let count = self.store.get(&TERMS_FROM, &from.0)?.unwrap_or(0);
                let most = request::share_of(MAX_TERMS, &self.roster, &from);
                if usize::try_from(count).is_ok_and(|count| count >= most) {
                    return Err(KeepError::Full);
                }
                changes.put(&TERMS_FROM, &from.0, &count.saturating_add(1));
                changes.put(&TERMS, &hash, terms);
                self.store.commit(changes)?;
            }
            (UserRequest::Signed(operation), Some(RequestName::Signed(sender, nonce))) => {
                let gives_way = match self.store.get(&SIGNED, &(sender, nonce))? {
                    Some((there, _)) if there == *operation => return Ok(()),
                    Some((there, giver)) if is_void(&there) => Some(giver),
                    Some(_) => return Err(KeepError::NonceTaken(nonce)),
                    None => None,
                };
                let count = signed_from.get(&from).copied().unwrap_or(0);
                if count >= request::share_of(MAX_SIGNED, &self.roster, &from) {
                    return Err(KeepError::Full);
                }
                changes.put(&SIGNED, &(sender, nonce), &(operation.clone(), from));
                self.store.commit(changes)?;
                if let Some(count) = gives_way.and_then(|giver| signed_from.get_mut(&giver)) {
                    *count = count.saturating_sub(1);
                }
                let count = signed_from.entry(from).or_default();
                *count = count.saturating_add(1);
            }
            _ => return Err(KeepError::Deposit),
        }
        Ok(())
    }

    /// The requests behind `after`, in the order of their names, at most [`MAX_AT_ONCE`].
    ///
    /// # Errors
    /// A damaged database.
    pub fn list(&self, after: Option<RequestName>) -> Result<Vec<UserRequest>, ReadError> {
        let mut found = Vec::new();
        if let Some(start) = RequestName::terms_after(after) {
            let range = (start, Bound::Unbounded);
            for row in self
                .store
                .iter(&TERMS, range, Direction::Forward, MAX_AT_ONCE)?
            {
                found.push(UserRequest::Terms(row?.1));
            }
        }
        let room = MAX_AT_ONCE.saturating_sub(found.len());
        let range = (RequestName::signed_after(after), Bound::Unbounded);
        for row in self.store.iter(&SIGNED, range, Direction::Forward, room)? {
            found.push(UserRequest::Signed(row?.1.0));
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
        let mut signed_from = self
            .signed_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::new();
        let mut left = signed_from.clone();
        for row in self
            .store
            .iter(&SIGNED, .., Direction::Forward, MAX_SIGNED)?
        {
            let ((sender, nonce), (operation, from)) = row?;
            let expired = operation.last_valid().is_some_and(|last| next > last);
            if expired || is_done(sender, nonce) {
                changes.delete(&SIGNED, &(sender, nonce));
                if let Some(count) = left.get_mut(&from) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        if !changes.is_empty() {
            self.store.commit(changes)?;
            *signed_from = left;
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

    fn open(store: Store) -> Requests {
        Requests::open(store, Arc::new(testing::roster().clone())).unwrap()
    }

    fn coordinator() -> PeerKey {
        testing::roster().coordinators[0].key
    }

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
        let requests = open(store.clone());
        let all = [
            terms(1),
            terms(2),
            transfer(1, 0, 5),
            transfer(1, 1, 5),
            transfer(2, 0, 5),
        ];
        for request in &all {
            requests.keep(request, coordinator(), |_| false).unwrap();
            requests.keep(request, coordinator(), |_| false).unwrap();
        }
        drop(requests);
        let requests = open(store);
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
        let requests = open(store);
        let first = transfer(1, 0, 5);
        requests.keep(&first, coordinator(), |_| false).unwrap();
        let second = requests.keep(&transfer(1, 0, 6), coordinator(), |_| false);
        assert!(
            matches!(second, Err(KeepError::NonceTaken(0))),
            "{second:?}"
        );
        assert_eq!(requests.list(None).unwrap(), [first]);
        // But for one that can't be carried out any more.
        let third = transfer(1, 0, 7);
        requests.keep(&third, coordinator(), |_| true).unwrap();
        assert_eq!(requests.list(None).unwrap(), [third]);
        assert_eq!(
            requests.signed_from.lock().unwrap().get(&coordinator()),
            Some(&1)
        );
    }

    #[test]
    fn what_is_done_or_has_expired_goes_and_terms_stay() {
        let (_folder, store) = testing::store();
        let requests = open(store);
        let [terms, done, open, other] = [
            terms(1),
            transfer(1, 3, 5),
            transfer(1, 4, 5),
            transfer(2, 4, 5),
        ];
        for request in [&terms, &done, &open, &other] {
            requests.keep(request, coordinator(), |_| false).unwrap();
        }
        let is_done = |sender, nonce| (sender, nonce) < (1, 4);
        requests.settle(is_done, SequenceNumber(9)).unwrap();
        assert_eq!(requests.list(None).unwrap(), [terms.clone(), open, other]);
        requests.settle(is_done, SequenceNumber(10)).unwrap();
        assert_eq!(requests.list(None).unwrap(), [terms]);
    }
    #[test]
    fn one_node_fills_its_share_and_no_more_and_a_restart_does_not_help_it() {
        let (_folder, store) = testing::store();
        let (bad, good) = (coordinator(), testing::roster().operators[0].key);
        let share = request::share_of(MAX_TERMS, testing::roster(), &bad);
        let mut changes = Changes::new();
        let almost = u64::try_from(share).unwrap() - 1;
        changes.put(&TERMS_FROM, &bad.0, &almost);
        store.commit(changes).unwrap();
        let requests = open(store.clone());
        requests.keep(&terms(1), bad, |_| false).unwrap();
        drop(requests);
        let requests = open(store);
        let full = requests.keep(&terms(2), bad, |_| false);
        assert!(matches!(full, Err(KeepError::Full)), "{full:?}");
        requests.keep(&terms(1), bad, |_| false).unwrap();
        requests.keep(&terms(2), good, |_| false).unwrap();
        let stranger = requests.keep(&terms(3), PeerKey([0xee; 32]), |_| false);
        assert!(matches!(stranger, Err(KeepError::Full)), "{stranger:?}");
    }

    #[test]
    fn room_for_operations_is_shared_and_free_again_when_they_are_done() {
        let (_folder, store) = testing::store();
        let requests = open(store.clone());
        requests
            .keep(&transfer(1, 0, 5), coordinator(), |_| false)
            .unwrap();
        let counts = |requests: &Requests| requests.signed_from.lock().unwrap().clone();
        let one = BTreeMap::from([(coordinator(), 1)]);
        assert_eq!(counts(&requests), one);
        assert_eq!(counts(&open(store)), one, "as counted from the disk");
        let share = request::share_of(MAX_SIGNED, testing::roster(), &coordinator());
        requests
            .signed_from
            .lock()
            .unwrap()
            .insert(coordinator(), share);
        let full = requests.keep(&transfer(1, 1, 5), coordinator(), |_| false);
        assert!(matches!(full, Err(KeepError::Full)), "{full:?}");
        requests.settle(|_, _| true, SequenceNumber(1)).unwrap();
        assert_eq!(counts(&requests)[&coordinator()], share - 1);
        requests
            .keep(&transfer(1, 1, 5), coordinator(), |_| false)
            .unwrap();
    }
}
