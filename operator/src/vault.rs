//! The key share and its nonces (S9). A nonce lives in memory only, for a minute at most, serves one share,
//! and dies with anything that might mean that this process has been copied or rolled back: a
//! restart, another boot, a clock that jumped. The same request again gets the same answer.

use std::{
    collections::BTreeMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use node::clock;
use protocol::message::{Refusal, Rule, SessionId};
use rand::rngs::OsRng;
use threshold::{
    GroupInfo, KeyShare, SignerId,
    sign::{self, Commitments, Nonces, Package, Shares},
};

use crate::verify::Verified;

/// How long nonces are good for, in ms.
pub const NONCE_LIFE_MS: u64 = 60_000;
/// Sessions whose nonces and answers are held; the oldest gives way.
pub const MAX_HELD: usize = protocol::signer::MAX_SESSIONS;
/// How far wall clock and monotonic clock may drift apart between two looks, in ms. More means that
/// the machine was suspended, or resumed from a snapshot.
const MAX_JUMP_MS: u64 = 5_000;
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

struct Answered {
    attempt: u32,
    commitments: BTreeMap<SignerId, Commitments>,
    shares: Shares,
    next: Commitments,
    at_ms: u64,
}

/// The key share, and the nonces of open sessions.
pub struct KeySafe {
    share: KeyShare,
    last: Reading,
    nonces: BTreeMap<SessionId, Held>,
    answers: BTreeMap<SessionId, Answered>,
}

impl KeySafe {
    /// A safe without nonces.
    pub fn new(share: KeyShare, now: Reading) -> Self {
        Self {
            share,
            last: now,
            nonces: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// What everybody may know of the key.
    pub fn group(&self) -> &GroupInfo {
        self.share.group()
    }

    /// Sessions for which nonces are held.
    pub fn nonces(&self) -> usize {
        self.nonces.len()
    }

    /// Looks at the clocks: old nonces die one by one, all of them if this run was interrupted.
    /// Says whether it was. Called on every use, and now and then in between.
    pub fn watch(&mut self, now: Reading) -> bool {
        let interrupted = self.last.is_broken_by(&now);
        if interrupted {
            self.nonces.clear();
            self.answers.clear();
        }
        self.nonces
            .retain(|_, held| now.monotonic_ms.saturating_sub(held.made_ms) < NONCE_LIFE_MS);
        self.last = now;
        interrupted
    }

    /// Round 1: commitments to fresh nonces for a session, or to those that it has and has not used: a
    /// repeated proposal must not make the nonces of a sign request under way useless.
    ///
    /// # Errors
    /// A [`Refusal`] if the session has more messages than one can.
    pub fn commit(
        &mut self,
        now: Reading,
        session: SessionId,
        verified: &Verified,
    ) -> Result<Commitments, Refusal> {
        self.watch(now);
        let young =
            |held: &&Held| self.last.monotonic_ms.saturating_sub(held.made_ms) < NONCE_LIFE_MS / 2;
        if let Some(held) = self.nonces.get(&session).filter(young) {
            return Ok(held.commitments.clone());
        }
        self.fresh(session, verified)
    }

    /// The answer that this very request has had.
    pub fn answered(
        &mut self,
        now: Reading,
        session: &SessionId,
        attempt: u32,
        commitments: &BTreeMap<SignerId, Commitments>,
    ) -> Option<(Shares, Commitments)> {
        self.watch(now);
        let answer = self.answers.get(session)?;
        (answer.attempt == attempt && answer.commitments == *commitments)
            .then(|| (answer.shares.clone(), answer.next.clone()))
    }

    /// Whether [`Self::sign`] would sign this. Lets a bad request be refused before anything is promised,
    /// and without losing the nonces to it.
    ///
    /// # Errors
    /// A [`Refusal`] under S9 (no such nonces) or S12 (an unusable package).
    pub fn check(
        &mut self,
        now: Reading,
        session: &SessionId,
        verified: &Verified,
        commitments: &BTreeMap<SignerId, Commitments>,
    ) -> Result<(), Refusal> {
        self.watch(now);
        let needed = verified.signers_needed(self.share.group());
        if commitments.len() < needed {
            return Err(Refusal::new(
                Rule::S12,
                format!(
                    "{} signers in the request, {needed} are needed",
                    commitments.len()
                ),
            ));
        }
        let held = self.nonces.get(session).ok_or_else(|| {
            refuse("the nonces of this session are used up or expired; propose it again".to_owned())
        })?;
        let package = package(verified, commitments);
        held.nonces
            .check(&self.share, &package)
            .map_err(|error| refuse(error.to_string()))
    }

    /// Round 2: this operator's shares, and fresh commitments for a next attempt. The nonces are gone
    /// afterwards. Only what [`crate::verify`] has made can be signed.
    ///
    /// # Errors
    /// As [`Self::check`]; no share was made then.
    pub fn sign(
        &mut self,
        now: Reading,
        session: SessionId,
        attempt: u32,
        verified: &Verified,
        commitments: BTreeMap<SignerId, Commitments>,
    ) -> Result<(Shares, Commitments), Refusal> {
        if let Some(answer) = self.answered(now.clone(), &session, attempt, &commitments) {
            return Ok(answer);
        }
        self.check(now, &session, verified, &commitments)?;
        let Some(held) = self.nonces.remove(&session) else {
            return Err(refuse("the nonces of this session are gone".to_owned()));
        };
        let package = package(verified, &commitments);
        let shares = sign::sign(&self.share, held.nonces, &package)
            .map_err(|error| refuse(error.to_string()))?;
        let next = self.fresh(session, verified)?;
        let answer = Answered {
            attempt,
            commitments,
            shares: shares.clone(),
            next: next.clone(),
            at_ms: self.last.monotonic_ms,
        };
        self.answers.insert(session, answer);
        evict(&mut self.answers, |answer| answer.at_ms);
        Ok((shares, next))
    }

    fn fresh(&mut self, session: SessionId, verified: &Verified) -> Result<Commitments, Refusal> {
        let (nonces, commitments) =
            sign::commit(&self.share, verified.messages().len(), &mut OsRng)
                .map_err(|error| refuse(error.to_string()))?;
        let held = Held {
            nonces,
            commitments: commitments.clone(),
            made_ms: self.last.monotonic_ms,
        };
        self.nonces.insert(session, held);
        evict(&mut self.nonces, |held| held.made_ms);
        Ok(commitments)
    }
}

fn package(verified: &Verified, commitments: &BTreeMap<SignerId, Commitments>) -> Package {
    Package {
        messages: verified.messages().to_vec(),
        commitments: commitments.clone(),
    }
}

/// Drops the oldest beyond [`MAX_HELD`].
fn evict<T>(held: &mut BTreeMap<SessionId, T>, age: impl Fn(&T) -> u64) {
    while held.len() > MAX_HELD {
        let oldest = held
            .iter()
            .min_by_key(|(_, item)| age(item))
            .map(|(id, _)| *id);
        match oldest {
            Some(id) => held.remove(&id),
            None => return,
        };
    }
}

fn refuse(reason: String) -> Refusal {
    Refusal::new(Rule::S9, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn at(ms: u64) -> Reading {
        Reading {
            wall_ms: 1_000_000 + ms,
            monotonic_ms: ms,
            boot: Some("one".to_owned()),
        }
    }

    fn safe(index: usize) -> KeySafe {
        KeySafe::new(testing::own_share(index), at(0))
    }

    const SESSION: SessionId = SessionId([7; 32]);

    /// A round of commitments from all three safes.
    fn round1(
        safes: &mut [KeySafe],
        verified: &Verified,
        ms: u64,
    ) -> BTreeMap<SignerId, Commitments> {
        safes
            .iter_mut()
            .map(|safe| {
                (
                    safe.share.signer(),
                    safe.commit(at(ms), SESSION, verified).unwrap(),
                )
            })
            .collect()
    }

    fn all() -> Vec<KeySafe> {
        (0..3).map(safe).collect()
    }

    #[test]
    fn the_shares_of_all_make_the_certificates_signature() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let shares: BTreeMap<_, _> = safes
            .iter_mut()
            .map(|safe| {
                let (shares, _) = safe
                    .sign(at(1), SESSION, 1, &verified, commitments.clone())
                    .unwrap();
                (safe.share.signer(), shares)
            })
            .collect();
        let package = package(&verified, &commitments);
        let signatures = sign::aggregate(safes[0].group(), &package, &shares).unwrap();
        let digest = verified.messages()[0].digest;
        assert!(sign::verify(
            &safes[0].group().group_key().to_x_only(),
            &digest,
            &signatures[0]
        ));
    }

    #[test]
    fn the_same_request_gets_the_same_answer_and_another_one_none() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let first = safes[0]
            .sign(at(1), SESSION, 1, &verified, commitments.clone())
            .unwrap();
        let again = safes[0]
            .sign(at(2), SESSION, 1, &verified, commitments.clone())
            .unwrap();
        assert_eq!(first, again);
        // Other commitments of another signer with the old nonces of this one: the attack on FROST.
        let mut changed = commitments.clone();
        let other = safes[1].share.signer();
        changed.insert(other, safes[1].fresh(SESSION, &verified).unwrap());
        let refusal = safes[0]
            .sign(at(4), SESSION, 1, &verified, changed.clone())
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        let refusal = safes[0]
            .sign(at(4), SESSION, 2, &verified, changed)
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        // The old request under a new number does not find its nonces either.
        assert!(
            safes[0]
                .sign(at(4), SESSION, 2, &verified, commitments)
                .is_err()
        );
    }

    #[test]
    fn a_next_attempt_uses_the_fresh_commitments() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let mut commitments = round1(&mut safes, &verified, 0);
        let (first, next) = safes[0]
            .sign(at(1), SESSION, 1, &verified, commitments.clone())
            .unwrap();
        commitments.insert(safes[0].share.signer(), next);
        let (second, _) = safes[0]
            .sign(at(2), SESSION, 2, &verified, commitments)
            .unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_repeated_proposal_gets_the_unused_commitments_again_and_used_ones_never() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        assert_eq!(round1(&mut safes, &verified, 100), commitments);
        let (_, next) = safes[0]
            .sign(at(200), SESSION, 1, &verified, commitments.clone())
            .unwrap();
        let me = safes[0].share.signer();
        assert_ne!(commitments[&me], next);
        assert_eq!(safes[0].commit(at(300), SESSION, &verified).unwrap(), next);
        // Old ones are replaced before they can expire under a sign request.
        assert_ne!(
            safes[0]
                .commit(at(200 + NONCE_LIFE_MS / 2), SESSION, &verified)
                .unwrap(),
            next
        );
    }

    #[test]
    fn nonces_expire_after_a_minute() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let late = at(NONCE_LIFE_MS);
        let refusal = safes[0]
            .sign(late, SESSION, 1, &verified, commitments.clone())
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        assert!(
            safes[1]
                .sign(at(NONCE_LIFE_MS - 1), SESSION, 1, &verified, commitments)
                .is_ok()
        );
    }

    #[test]
    fn nonces_die_with_a_restart() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let mut restarted = safe(0);
        assert_eq!(
            restarted
                .sign(at(1), SESSION, 1, &verified, commitments)
                .unwrap_err()
                .rule,
            Rule::S9
        );
    }

    #[test]
    fn nonces_die_when_the_machine_is_not_what_it_was() {
        let verified = testing::verified_genesis();
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
            let mut safes = all();
            let commitments = round1(&mut safes, &verified, 5);
            let refusal = safes[0]
                .sign(reading.clone(), SESSION, 1, &verified, commitments.clone())
                .unwrap_err();
            assert_eq!(refusal.rule, Rule::S9, "{reading:?}");
            // An answer from before is not given out either: the copy may have given another one.
            safes[1]
                .sign(at(6), SESSION, 1, &verified, commitments.clone())
                .unwrap();
            assert!(
                safes[1]
                    .answered(reading, &SESSION, 1, &commitments)
                    .is_none()
            );
        }
    }

    #[test]
    fn a_bad_request_does_not_cost_the_nonces() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let mut two: BTreeMap<_, _> = commitments.clone();
        two.pop_last();
        let refusal = safes[0]
            .sign(at(1), SESSION, 1, &verified, two)
            .unwrap_err();
        // A genesis certificate needs all n, whatever the threshold.
        assert_eq!(refusal.rule, Rule::S12);
        assert!(
            safes[0]
                .sign(at(2), SESSION, 1, &verified, commitments)
                .is_ok()
        );
    }

    #[test]
    fn only_so_many_sessions_hold_nonces() {
        let verified = testing::verified_genesis();
        let mut safe = safe(0);
        for n in 0..=MAX_HELD {
            let session = SessionId([u8::try_from(n).unwrap(); 32]);
            safe.commit(at(u64::try_from(n).unwrap()), session, &verified)
                .unwrap();
        }
        assert_eq!(safe.nonces.len(), MAX_HELD);
        assert!(!safe.nonces.contains_key(&SessionId([0; 32])));
    }
}
