//! S9 for nonces that are handed out ahead of time, so that a batch is signed in one round trip. An entry is a vector of
//! [`POOL_PAIRS`](crate::message::POOL_PAIRS) pairs, for one coordinator; a pool is of one key share, so an entry is of one
//! epoch.
//!
//! ```text
//! Ask::Pool --> entry --the first request that names it--> bound to (session, attempt, package) --promise--> one share
//!                 '--a minute, a jump of the clocks, a pause--> gone <--session closed-----------------'
//! ```
//!
//! An entry that was named is out of the pool, whatever comes of it: no second package is ever compared with it. A batch
//! uses the first pairs of an entry; the rest are destroyed at that moment, so that no two batches share an entry.
//!
//! What nonces are is the holder's business: nothing here looks at them, copies them or keeps them longer.

use std::collections::{BTreeMap, VecDeque};

use threshold::SignerId;

use crate::{
    identity::PeerKey,
    message::{MAX_POOL, SessionId},
};

/// How long an entry is good for, in ms, as all nonces.
pub const LIFE_MS: u64 = 60_000;
/// A coordinator gets at most its limit of new entries in this time, in ms: whoever uses entries up has an operator make
/// no more than that.
pub const REFILL_MS: u64 = LIFE_MS / 4;
/// An entry that is as old as this is not handed out any more, in ms: what a coordinator has just been given serves for
/// another half of its life.
pub const YOUNG_MS: u64 = LIFE_MS / 2;

struct Entry<N, C> {
    nonces: N,
    commitments: C,
    made_ms: u64,
}

struct Entries<N, C> {
    unused: Vec<Entry<N, C>>,
    /// When entries were made, as far as that limits the next.
    made: VecDeque<u64>,
}

/// An entry that a request has named.
struct Bound<N, C> {
    coordinator: PeerKey,
    attempt: u32,
    commitments: BTreeMap<SignerId, C>,
    nonces: N,
    made_ms: u64,
}

/// A pooled sign request, as far as an entry is bound to it.
#[derive(Debug)]
pub struct Request<'a, C> {
    /// Who asks.
    pub coordinator: &'a PeerKey,
    /// The session.
    pub session: SessionId,
    /// The attempt.
    pub attempt: u32,
    /// The signers of the attempt and their commitments.
    pub commitments: &'a BTreeMap<SignerId, C>,
}

/// The entries of all coordinators. `N` are nonces, `C` their commitments.
pub struct Pool<N, C> {
    limit: usize,
    generation: u64,
    of: BTreeMap<PeerKey, Entries<N, C>>,
    bound: BTreeMap<SessionId, Bound<N, C>>,
}

impl<N, C: Clone + PartialEq> Pool<N, C> {
    /// An empty pool that gives each coordinator at most so many entries, and never more than [`MAX_POOL`].
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_POOL),
            generation: 0,
            of: BTreeMap::new(),
            bound: BTreeMap::new(),
        }
    }

    /// How often everything was dropped. Whoever makes entries beside the loop puts none of an earlier generation in.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now_ms: u64) {
        let lives = |made_ms: u64| now_ms.saturating_sub(made_ms) < LIFE_MS;
        for entries in self.of.values_mut() {
            entries.unused.retain(|entry| lives(entry.made_ms));
        }
        self.bound.retain(|_, bound| lives(bound.made_ms));
    }

    /// Drops all nonces. How many may be made does not begin anew.
    pub fn clear(&mut self) {
        for entries in self.of.values_mut() {
            entries.unused.clear();
        }
        self.bound.clear();
        self.generation = self.generation.saturating_add(1);
    }

    /// Drops what is bound to sessions that are not open any more.
    pub fn forget(&mut self, is_open: impl Fn(&SessionId) -> bool) {
        self.bound.retain(|session, _| is_open(session));
    }

    /// Whether a coordinator is to get another entry: it lacks one that will not expire soon, and the rate allows it.
    pub fn wants(&mut self, now_ms: u64, coordinator: &PeerKey) -> bool {
        let Some(entries) = self.of.get_mut(coordinator) else {
            return self.limit > 0;
        };
        entries
            .made
            .retain(|made_ms| now_ms.saturating_sub(*made_ms) < REFILL_MS);
        let young = entries.unused.iter().filter(|entry| entry.is_young(now_ms));
        young.count() < self.limit && entries.made.len() < self.limit
    }

    /// Puts a fresh entry in. It is dropped if the coordinator is not to get another.
    pub fn put(&mut self, now_ms: u64, coordinator: PeerKey, nonces: N, commitments: C) {
        if !self.wants(now_ms, &coordinator) {
            return;
        }
        let entries = self.of.entry(coordinator).or_insert_with(|| Entries {
            unused: Vec::new(),
            made: VecDeque::new(),
        });
        entries.unused.push(Entry {
            nonces,
            commitments,
            made_ms: now_ms,
        });
        entries.made.push_back(now_ms);
    }

    /// What a coordinator may use: the entries that will not expire soon.
    pub fn young(&self, now_ms: u64, coordinator: &PeerKey) -> Vec<C> {
        let entries = self.of.get(coordinator).into_iter();
        entries
            .flat_map(|entries| &entries.unused)
            .filter(|entry| entry.is_young(now_ms))
            .map(|entry| entry.commitments.clone())
            .collect()
    }

    /// Entries that nobody has named yet.
    pub fn unused(&self) -> usize {
        let counts = self.of.values().map(|entries| entries.unused.len());
        counts.fold(0, usize::saturating_add)
    }

    /// Binds the entry that a request of this coordinator names to that request, for good, and keeps of it what `cut`
    /// leaves. Says whether it is bound to it: another request of the session, another coordinator's entry and one that
    /// was named before are not.
    pub fn bind(
        &mut self,
        request: &Request<'_, C>,
        names: impl Fn(&C) -> bool,
        cut: impl FnOnce(N) -> Option<N>,
    ) -> bool {
        let (session, attempt) = (request.session, request.attempt);
        if self.bound.contains_key(&session) {
            return self.look(&session, attempt, request.commitments).is_some();
        }
        let own = self.bound.values();
        let own = own.filter(|bound| bound.coordinator == *request.coordinator);
        if own.count() >= self.limit {
            return false;
        }
        let Some(entries) = self.of.get_mut(request.coordinator) else {
            return false;
        };
        let place = entries.unused.iter();
        let Some(place) = place.enumerate().find_map(|(place, entry)| {
            let is_named = names(&entry.commitments);
            is_named.then_some(place)
        }) else {
            return false;
        };
        let entry = entries.unused.swap_remove(place);
        let Some(nonces) = cut(entry.nonces) else {
            return false;
        };
        let bound = Bound {
            coordinator: *request.coordinator,
            attempt,
            commitments: request.commitments.clone(),
            nonces,
            made_ms: entry.made_ms,
        };
        self.bound.insert(session, bound);
        true
    }

    /// The nonces that are bound to exactly this request.
    pub fn look(
        &self,
        session: &SessionId,
        attempt: u32,
        commitments: &BTreeMap<SignerId, C>,
    ) -> Option<&N> {
        self.bound
            .get(session)
            .filter(|bound| bound.attempt == attempt && bound.commitments == *commitments)
            .map(|bound| &bound.nonces)
    }

    /// The same, for one share. They are not here any more.
    pub fn take(
        &mut self,
        session: &SessionId,
        attempt: u32,
        commitments: &BTreeMap<SignerId, C>,
    ) -> Option<N> {
        self.look(session, attempt, commitments)?;
        self.bound.remove(session).map(|bound| bound.nonces)
    }
}

impl<N, C> Entry<N, C> {
    fn is_young(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.made_ms) < YOUNG_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COORDINATOR: PeerKey = PeerKey([9; 32]);
    const OTHER: PeerKey = PeerKey([8; 32]);
    const SESSION: SessionId = SessionId([1; 32]);
    const SECOND: SessionId = SessionId([2; 32]);

    /// A pool with entries 0, 1, ... of one coordinator. Nonces are strings, which can't be copied by accident.
    fn filled(limit: usize) -> Pool<String, u32> {
        let mut pool = Pool::new(limit);
        for number in 0_u32.. {
            if !pool.wants(0, &COORDINATOR) {
                break;
            }
            pool.put(0, COORDINATOR, number.to_string(), number);
        }
        pool
    }

    fn package(own: u32, of_another: u32) -> BTreeMap<SignerId, u32> {
        [
            (SignerId::derive(&[1; 32]), own),
            (SignerId::derive(&[2; 32]), of_another),
        ]
        .into()
    }

    fn bind(
        pool: &mut Pool<String, u32>,
        coordinator: &PeerKey,
        (session, attempt): (SessionId, u32),
        commitments: &BTreeMap<SignerId, u32>,
    ) -> bool {
        let own = commitments[&SignerId::derive(&[1; 32])];
        let request = Request {
            coordinator,
            session,
            attempt,
            commitments,
        };
        pool.bind(&request, |entry| *entry == own, Some)
    }

    #[test]
    fn an_entry_serves_the_first_request_that_names_it_and_no_other() {
        let mut pool = filled(4);
        let first = package(0, 70);
        assert!(bind(&mut pool, &COORDINATOR, (SESSION, 1), &first));
        // The same again is the same request; everything else is another one, before its share is made and after.
        for is_used in [false, true] {
            assert_eq!(
                bind(&mut pool, &COORDINATOR, (SESSION, 1), &first),
                !is_used
            );
            assert!(!bind(
                &mut pool,
                &COORDINATOR,
                (SESSION, 1),
                &package(0, 71)
            ));
            assert!(!bind(&mut pool, &COORDINATOR, (SESSION, 2), &first));
            assert!(!bind(&mut pool, &COORDINATOR, (SECOND, 1), &first));
            assert!(pool.look(&SESSION, 1, &package(0, 71)).is_none());
            assert!(pool.look(&SESSION, 2, &first).is_none());
            assert!(pool.look(&SECOND, 1, &first).is_none());
            let taken = pool.take(&SESSION, 1, &first);
            assert_eq!(taken.is_some(), !is_used);
        }
    }

    #[test]
    fn an_entry_belongs_to_the_coordinator_that_it_was_handed_to() {
        let mut pool = filled(4);
        pool.put(0, OTHER, "other".to_owned(), 100);
        assert!(!bind(&mut pool, &OTHER, (SESSION, 1), &package(0, 70)));
        assert!(!bind(
            &mut pool,
            &COORDINATOR,
            (SESSION, 1),
            &package(100, 70)
        ));
        assert!(bind(&mut pool, &OTHER, (SESSION, 1), &package(100, 70)));
    }

    #[test]
    fn entries_are_bounded_in_number_in_rate_and_in_life() {
        let mut pool = filled(MAX_POOL + 5);
        assert_eq!(pool.unused(), MAX_POOL);
        for number in 0..u32::try_from(MAX_POOL).unwrap() {
            let session = SessionId([10 + u8::try_from(number).unwrap(); 32]);
            assert!(bind(
                &mut pool,
                &COORDINATOR,
                (session, 1),
                &package(number, 70)
            ));
        }
        // All are used up at once: no more are made for a while, and no more are bound than that.
        assert!(!pool.wants(REFILL_MS - 1, &COORDINATOR));
        assert!(pool.wants(REFILL_MS, &COORDINATOR));
        pool.put(REFILL_MS, COORDINATOR, "late".to_owned(), 50);
        assert!(!bind(
            &mut pool,
            &COORDINATOR,
            (SESSION, 1),
            &package(50, 70)
        ));
        assert_eq!(pool.young(REFILL_MS, &COORDINATOR), [50]);
        assert!(pool.young(REFILL_MS + YOUNG_MS, &COORDINATOR).is_empty());
        pool.expire(REFILL_MS + LIFE_MS);
        assert_eq!(pool.unused(), 0);
        let oldest = SessionId([10; 32]);
        assert!(pool.look(&oldest, 1, &package(0, 70)).is_none());
    }

    #[test]
    fn what_is_dropped_is_dropped_with_what_is_bound_and_begins_a_generation() {
        let mut pool = filled(2);
        let first = package(0, 70);
        assert!(bind(&mut pool, &COORDINATOR, (SESSION, 1), &first));
        pool.forget(|session| *session == SESSION);
        assert!(pool.look(&SESSION, 1, &first).is_some());
        pool.forget(|_| false);
        assert!(pool.look(&SESSION, 1, &first).is_none());
        assert!(bind(&mut pool, &COORDINATOR, (SESSION, 1), &package(1, 70)));
        let before = pool.generation();
        pool.clear();
        assert_ne!(pool.generation(), before);
        assert!(pool.take(&SESSION, 1, &package(1, 70)).is_none());
        // The rate outlives it.
        assert!(!pool.wants(1, &COORDINATOR));
        assert_eq!(pool.unused(), 0);
    }

    #[test]
    fn nothing_is_handed_out_when_that_is_off() {
        let mut pool = filled(0);
        pool.put(0, COORDINATOR, "forced".to_owned(), 7);
        assert_eq!(pool.unused(), 0);
        assert!(!bind(
            &mut pool,
            &COORDINATOR,
            (SESSION, 1),
            &package(7, 70)
        ));
    }
}
