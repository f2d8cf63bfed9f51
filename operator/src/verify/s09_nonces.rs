//! S9: a nonce serves one share. It lives in memory only, expires within a minute, and dies with anything that might
//! mean that this process has been copied or rolled back: a restart, another boot, a clock that jumped.
//!
//! One nonce, one share, is a fact of the types: nonces can't be copied or stored, [`NonceBook::take`] takes them
//! out of the book for good, and `threshold::sign::sign` uses them up.

use std::{
    collections::BTreeMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use node::clock;
use protocol::message::SessionId;
use threshold::sign::{Commitments, Nonces};

/// How long nonces are good for, in ms.
pub const NONCE_LIFE_MS: u64 = protocol::pool::LIFE_MS;
/// Sessions whose nonces are held; the oldest gives way.
pub const MAX_HELD: usize = protocol::signer::MAX_SESSIONS;
/// How far wall clock and monotonic clock may drift apart between two looks, in ms. More means that
/// the machine was suspended, or resumed from a snapshot.
pub(crate) const MAX_JUMP_MS: u64 = 5_000;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the machine's clocks say, to notice that it is not the machine it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Unix time in ms.
    pub wall_ms: u64,
    /// Time since the process started in ms, which stands still while the machine does.
    pub monotonic_ms: u64,
    /// The kernel's random name of this boot; `None` if it can't be read.
    pub boot: Option<String>,
}

impl Reading {
    /// Looks at the clocks.
    pub fn now() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let elapsed = START.get_or_init(Instant::now).elapsed();
        Self {
            wall_ms: clock::now_ms(),
            monotonic_ms: millis(elapsed),
            boot: std::fs::read_to_string(BOOT_ID).ok(),
        }
    }

    /// Whether `later` can't be the same uninterrupted run.
    fn is_broken_by(&self, later: &Self) -> bool {
        let wall = i128::from(later.wall_ms).saturating_sub(i128::from(self.wall_ms));
        let monotonic =
            i128::from(later.monotonic_ms).saturating_sub(i128::from(self.monotonic_ms));
        self.boot != later.boot
            || monotonic < 0
            || (wall - monotonic).unsigned_abs() > u128::from(MAX_JUMP_MS)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

struct Held {
    nonces: Nonces,
    commitments: Commitments,
    made_ms: u64,
}

/// The unused nonces of open sessions.
pub struct NonceBook {
    last: Reading,
    held: BTreeMap<SessionId, Held>,
}

impl NonceBook {
    /// A book without nonces.
    pub fn new(now: Reading) -> Self {
        Self {
            last: now,
            held: BTreeMap::new(),
        }
    }

    /// Looks at the clocks: old nonces die one by one, all of them if this run was interrupted.
    /// Says whether it was.
    pub fn watch(&mut self, now: Reading) -> bool {
        let interrupted = self.last.is_broken_by(&now);
        if interrupted {
            self.held.clear();
        }
        self.held
            .retain(|_, held| now.monotonic_ms.saturating_sub(held.made_ms) < NONCE_LIFE_MS);
        self.last = now;
        interrupted
    }

    /// Time of the last look, in ms since the process started.
    pub fn now_ms(&self) -> u64 {
        self.last.monotonic_ms
    }

    /// Sessions that have nonces.
    pub fn sessions(&self) -> usize {
        self.held.len()
    }

    /// Commitments of a session that will not expire soon.
    pub fn young(&self, session: &SessionId) -> Option<&Commitments> {
        let held = self.held.get(session)?;
        let age = self.now_ms().saturating_sub(held.made_ms);
        (age < NONCE_LIFE_MS / 2).then_some(&held.commitments)
    }

    /// Notes fresh nonces of a session; those that it had are gone.
    pub fn put(&mut self, session: SessionId, nonces: Nonces, commitments: Commitments) {
        let held = Held {
            nonces,
            commitments,
            made_ms: self.now_ms(),
        };
        self.held.insert(session, held);
        while self.held.len() > MAX_HELD {
            let oldest = self.held.iter().min_by_key(|(_, held)| held.made_ms);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.held.remove(&oldest);
        }
    }

    /// Drops the nonces of sessions that are not open any more.
    pub fn forget(&mut self, is_open: impl Fn(&SessionId) -> bool) {
        self.held.retain(|id, _| is_open(id));
    }

    /// The nonces of a session, to compare with a request.
    pub fn look(&self, session: &SessionId) -> Option<&Nonces> {
        self.held.get(session).map(|held| &held.nonces)
    }

    /// The nonces of a session, for one share. They are not in the book any more.
    pub fn take(&mut self, session: &SessionId) -> Option<Nonces> {
        self.held.remove(session).map(|held| held.nonces)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::OsRng;
    use threshold::sign;

    use super::*;
    use crate::testing;

    const SESSION: SessionId = SessionId([7; 32]);

    fn at(ms: u64) -> Reading {
        Reading {
            wall_ms: 1_000_000 + ms,
            monotonic_ms: ms,
            boot: Some("one".to_owned()),
        }
    }

    fn book() -> NonceBook {
        let mut book = NonceBook::new(at(0));
        put(&mut book, SESSION);
        book
    }

    fn put(book: &mut NonceBook, session: SessionId) {
        let (nonces, commitments) = sign::commit(testing::share(0), 1, &mut OsRng).unwrap();
        book.put(session, nonces, commitments);
    }

    #[test]
    fn nonces_are_taken_once() {
        let mut book = book();
        assert!(book.look(&SESSION).is_some());
        assert!(book.take(&SESSION).is_some());
        assert!(book.look(&SESSION).is_none());
        assert!(book.take(&SESSION).is_none());
    }

    #[test]
    fn nonces_expire_and_are_replaced_before_that() {
        let mut book = book();
        book.watch(at(NONCE_LIFE_MS / 2 - 1));
        assert!(book.young(&SESSION).is_some());
        book.watch(at(NONCE_LIFE_MS / 2));
        assert!(book.young(&SESSION).is_none());
        book.watch(at(NONCE_LIFE_MS - 1));
        assert!(book.look(&SESSION).is_some());
        book.watch(at(NONCE_LIFE_MS));
        assert!(book.look(&SESSION).is_none());
    }

    #[test]
    fn nonces_die_when_the_machine_is_not_what_it_was() {
        let other_boot = Reading {
            boot: Some("two".to_owned()),
            ..at(10)
        };
        let resumed = Reading {
            wall_ms: at(10).wall_ms + MAX_JUMP_MS + 1,
            ..at(10)
        };
        let set_back = Reading {
            wall_ms: at(10).wall_ms - MAX_JUMP_MS - 11,
            ..at(10)
        };
        for reading in [other_boot, resumed, set_back] {
            let mut book = book();
            assert!(book.watch(reading.clone()), "{reading:?}");
            assert!(book.take(&SESSION).is_none(), "{reading:?}");
        }
        let mut undisturbed = book();
        assert!(!undisturbed.watch(at(10)));
        assert!(undisturbed.take(&SESSION).is_some());
    }

    #[test]
    fn only_so_many_sessions_hold_nonces() {
        let mut book = NonceBook::new(at(0));
        for n in 0..=MAX_HELD {
            book.watch(at(u64::try_from(n).unwrap()));
            put(&mut book, SessionId([u8::try_from(n).unwrap(); 32]));
        }
        assert_eq!(book.held.len(), MAX_HELD);
        assert!(book.look(&SessionId([0; 32])).is_none());
    }
}
