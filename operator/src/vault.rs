//! The key share: makes nonce commitments (round 1) and signature shares (round 2). The nonces are in
//! [`s09_nonces::NonceBook`], those that are handed out ahead of time in [`Pool`]. The same request again gets the same answer.

use std::collections::BTreeMap;

use protocol::{
    identity::PeerKey,
    message::{POOL_PAIRS, Refusal, Rule, SessionId},
    pool::{Pool, Request},
};
use rand::rngs::OsRng;
use threshold::{
    GroupInfo, KeyShare, SignerId,
    repair::{Helper, Run, RunError},
    sign::{self, Commitments, Nonces, Package, PackageHash, Shares},
};

pub use crate::verify::s09_nonces::Reading;
use crate::{
    promises::Promised,
    verify::{
        Verified,
        s09_nonces::{self, NonceBook},
    },
};

/// Sessions whose answers are held; the oldest gives way.
const MAX_ANSWERS: usize = s09_nonces::MAX_HELD;

/// What a sign request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What was signed.
    pub package: PackageHash,
    /// Round 2.
    pub shares: Shares,
    /// Round 1 of a next attempt.
    pub next: Commitments,
}

struct Answered {
    attempt: u32,
    commitments: BTreeMap<SignerId, Commitments>,
    given: Given,
    at_ms: u64,
}

/// The key share, and the nonces of open sessions.
pub struct KeySafe {
    share: KeyShare,
    nonces: NonceBook,
    pool: Pool<Nonces, Commitments>,
    answers: BTreeMap<SessionId, Answered>,
}

impl KeySafe {
    /// Drops the nonces of sessions that are not open any more.
    pub fn forget(&mut self, is_open: impl Fn(&SessionId) -> bool) {
        self.nonces.forget(&is_open);
        self.pool.forget(&is_open);
    }

    /// A safe without nonces that hands out none ahead of time.
    pub fn new(share: KeyShare, now: Reading) -> Self {
        Self::with_pool(share, now, 0)
    }

    /// A safe without nonces that hands out so many entries ahead of time to each coordinator.
    pub fn with_pool(share: KeyShare, now: Reading, entries: usize) -> Self {
        Self {
            share,
            nonces: NonceBook::new(now),
            pool: Pool::new(entries),
            answers: BTreeMap::new(),
        }
    }

    /// What everybody may know of the key.
    pub fn group(&self) -> &GroupInfo {
        self.share.group()
    }

    /// Sessions for which nonces are held.
    pub fn nonces(&self) -> usize {
        self.nonces.sessions()
    }

    /// This operator's part in a repair of another one's share.
    ///
    /// # Errors
    /// [`RunError`] if the run is not of this share's group and epoch.
    pub fn help(&self, run: Run) -> Result<Helper, RunError> {
        Helper::new(&self.share, run)
    }

    /// Looks at the clocks, on every use and now and then in between: old nonces die one by one, all of them if this
    /// run was interrupted. Says whether it was.
    pub fn watch(&mut self, now: Reading) -> bool {
        let interrupted = self.nonces.watch(now);
        if interrupted {
            // The copy may have given another answer.
            self.answers.clear();
            self.pool.clear();
        }
        self.pool.expire(self.nonces.now_ms());
        interrupted
    }

    /// Changes whenever everything that was handed out ahead of time is dropped. Whoever hands out looks at it while
    /// nothing keeps this operator from signing.
    pub fn generation(&self) -> u64 {
        self.pool.generation()
    }

    /// Makes one entry of the pool for a coordinator, if it lacks one: one, so that nobody who waits for the safe waits
    /// long. Says whether it has made one.
    ///
    /// # Errors
    /// A [`Refusal`]: the pool is not of this generation any more, or no nonces can be made.
    pub fn refill(
        &mut self,
        now: Reading,
        coordinator: PeerKey,
        generation: u64,
    ) -> Result<bool, Refusal> {
        self.watch(now);
        self.expect(generation)?;
        let now_ms = self.nonces.now_ms();
        if !self.pool.wants(now_ms, &coordinator) {
            return Ok(false);
        }
        let (nonces, commitments) = sign::commit(&self.share, POOL_PAIRS, &mut OsRng)
            .map_err(|error| refuse(error.to_string()))?;
        self.pool.put(now_ms, coordinator, nonces, commitments);
        Ok(true)
    }

    /// Round 1 ahead of time: what a coordinator may use.
    ///
    /// # Errors
    /// A [`Refusal`]: the pool is not of this generation any more.
    pub fn handed_out(
        &mut self,
        now: Reading,
        coordinator: &PeerKey,
        generation: u64,
    ) -> Result<Vec<Commitments>, Refusal> {
        self.watch(now);
        self.expect(generation)?;
        Ok(self.pool.young(self.nonces.now_ms(), coordinator))
    }

    fn expect(&self, generation: u64) -> Result<(), Refusal> {
        if self.pool.generation() == generation {
            return Ok(());
        }
        Err(refuse("all nonces were dropped meanwhile".to_owned()))
    }

    /// Entries of the pool that nobody has named yet.
    pub fn pooled(&self) -> usize {
        self.pool.unused()
    }

    /// Drops what was handed out ahead of time.
    pub fn clear_pool(&mut self) {
        self.pool.clear();
    }

    /// Binds the entry that a pooled request names to that request, before anything is verified: no other request gets
    /// a share from it.
    ///
    /// # Errors
    /// A [`Refusal`] under S9: this coordinator has no such entry any more.
    pub fn bind(
        &mut self,
        now: Reading,
        coordinator: &PeerKey,
        session: SessionId,
        attempt: u32,
        commitments: &BTreeMap<SignerId, Commitments>,
    ) -> Result<(), Refusal> {
        self.watch(now);
        let own = commitments
            .get(&self.share.signer())
            .ok_or_else(|| refuse("this operator has no commitments in the request".to_owned()))?;
        let request = Request {
            coordinator,
            session,
            attempt,
            commitments,
        };
        let (pool, pairs) = (&mut self.pool, own.len());
        if pool.bind(
            &request,
            |entry| entry.begin_with(own),
            |nonces| nonces.first(pairs),
        ) {
            return Ok(());
        }
        Err(refuse(
            "no such nonces were handed out, or they are used up, expired, or bound to another request".to_owned(),
        ))
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
        self.next(session, verified)
    }

    /// The answer that this very request has had.
    pub fn answered(
        &mut self,
        now: Reading,
        session: &SessionId,
        attempt: u32,
        commitments: &BTreeMap<SignerId, Commitments>,
    ) -> Option<Given> {
        self.watch(now);
        let answer = self.answers.get(session)?;
        (answer.attempt == attempt && answer.commitments == *commitments)
            .then(|| answer.given.clone())
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
        attempt: u32,
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
        let pooled = self.pool.look(session, attempt, commitments);
        let nonces = pooled
            .or_else(|| self.nonces.look(session))
            .ok_or_else(|| {
                refuse(
                    "the nonces of this session are used up or expired; propose it again"
                        .to_owned(),
                )
            })?;
        let package = package(verified, commitments);
        nonces
            .check(&self.share, &package)
            .map_err(|error| refuse(error.to_string()))
    }

    /// Round 2: this operator's shares for what it has promised, and fresh commitments for a next attempt. The
    /// nonces are gone afterwards.
    ///
    /// # Errors
    /// As [`Self::check`]; no share was made then.
    pub fn sign(
        &mut self,
        now: Reading,
        promised: Promised,
        commitments: BTreeMap<SignerId, Commitments>,
    ) -> Result<Given, Refusal> {
        let (session, attempt) = (promised.session(), promised.attempt());
        if let Some(given) = self.answered(now.clone(), &session, attempt, &commitments) {
            return Ok(given);
        }
        let verified = promised.verified();
        self.check(now, &session, attempt, verified, &commitments)?;
        let pooled = self.pool.take(&session, attempt, &commitments);
        let Some(nonces) = pooled.or_else(|| self.nonces.take(&session)) else {
            return Err(refuse("the nonces of this session are gone".to_owned()));
        };
        let package = package(verified, &commitments);
        let shares =
            sign::sign(&self.share, nonces, &package).map_err(|error| refuse(error.to_string()))?;
        let given = Given {
            package: package.hash(self.share.group()),
            shares,
            next: self.next(session, verified)?,
        };
        let answer = Answered {
            attempt,
            commitments,
            given: given.clone(),
            at_ms: self.nonces.now_ms(),
        };
        self.answers.insert(session, answer);
        self.evict();
        Ok(given)
    }

    /// Round 1 that has not been used: what an accept has said that a pooled request overtook, or else fresh.
    fn next(&mut self, session: SessionId, verified: &Verified) -> Result<Commitments, Refusal> {
        if let Some(commitments) = self.nonces.young(&session) {
            return Ok(commitments.clone());
        }
        self.fresh(session, verified)
    }

    fn fresh(&mut self, session: SessionId, verified: &Verified) -> Result<Commitments, Refusal> {
        let (nonces, commitments) =
            sign::commit(&self.share, verified.messages().len(), &mut OsRng)
                .map_err(|error| refuse(error.to_string()))?;
        self.nonces.put(session, nonces, commitments.clone());
        Ok(commitments)
    }

    /// Drops the oldest answers beyond [`MAX_ANSWERS`].
    fn evict(&mut self) {
        while self.answers.len() > MAX_ANSWERS {
            let oldest = self.answers.iter().min_by_key(|(_, answer)| answer.at_ms);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.answers.remove(&oldest);
        }
    }
}

fn package(verified: &Verified, commitments: &BTreeMap<SignerId, Commitments>) -> Package {
    Package {
        messages: verified.messages().to_vec(),
        commitments: commitments.clone(),
    }
}

fn refuse(reason: String) -> Refusal {
    Refusal::new(Rule::S9, reason)
}

#[cfg(test)]
mod tests {
    use protocol::{
        epoch::{EpochCertificate, EpochClaim},
        message::Subject,
    };

    use super::*;
    use crate::{
        testing,
        verify::{
            self,
            s09_nonces::{MAX_JUMP_MS, NONCE_LIFE_MS},
        },
    };

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

    fn session() -> SessionId {
        testing::genesis_session()
    }

    /// A promise of the genesis for an attempt.
    fn promised(attempt: u32) -> Promised {
        testing::promised_genesis(attempt)
    }

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
                    safe.commit(at(ms), session(), verified).unwrap(),
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
                let given = safe.sign(at(1), promised(1), commitments.clone()).unwrap();
                (safe.share.signer(), given.shares)
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
    fn the_new_shares_of_all_certify_their_epoch_and_an_old_one_among_them_does_not() {
        let new = testing::refreshed();
        let group = new[0].group();
        let claim = EpochClaim::new(testing::vault().id(), group);
        let subject = Subject::Epoch(claim);
        let verified = verify::epoch::check(testing::vault(), Some(group), &claim).unwrap();
        let verified = Verified::Epoch(verified);
        let session = subject.session(&testing::roster().coordinators[0].key);
        let sign_with = |shares: Vec<KeyShare>| {
            let (_folder, store) = testing::store();
            let mut safes: Vec<_> = shares
                .into_iter()
                .map(|share| KeySafe::new(share, at(0)))
                .collect();
            let commitments: BTreeMap<_, _> = safes
                .iter_mut()
                .map(|safe| {
                    let commitments = safe.commit(at(0), session, &verified).unwrap();
                    (safe.share.signer(), commitments)
                })
                .collect();
            let shares: BTreeMap<_, _> = safes
                .iter_mut()
                .map(|safe| {
                    let affirmed = testing::affirmed(&store, verified.clone());
                    let grant = testing::grant(subject.clone(), verified.batch(), 1);
                    let promised = Promised::write(&store, grant, affirmed).unwrap();
                    let given = safe.sign(at(1), promised, commitments.clone()).unwrap();
                    (safe.share.signer(), given.shares)
                })
                .collect();
            sign::aggregate(group, &package(&verified, &commitments), &shares)
        };
        let signatures = sign_with(new.iter().map(testing::copy).collect()).unwrap();
        let certificate = EpochCertificate {
            vault: claim.vault,
            group: group.clone(),
            signature: signatures[0],
        };
        assert_eq!(certificate.verify(testing::vault()), Ok(()));
        let mixed = vec![
            testing::own_share(0),
            testing::copy(&new[1]),
            testing::copy(&new[2]),
        ];
        assert!(sign_with(mixed).is_err());
    }

    #[test]
    fn the_same_request_gets_the_same_answer_and_another_one_none() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        let first = safes[0]
            .sign(at(1), promised(1), commitments.clone())
            .unwrap();
        let again = safes[0]
            .sign(at(2), promised(1), commitments.clone())
            .unwrap();
        assert_eq!(first, again);
        // Other commitments of another signer with the old nonces of this one: the attack on FROST.
        let mut changed = commitments.clone();
        let other = safes[1].share.signer();
        changed.insert(other, safes[1].fresh(session(), &verified).unwrap());
        let refusal = safes[0]
            .sign(at(4), promised(1), changed.clone())
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        let refusal = safes[0].sign(at(4), promised(2), changed).unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        // The old request under a new number does not find its nonces either.
        assert!(safes[0].sign(at(4), promised(2), commitments).is_err());
    }

    #[test]
    fn a_next_attempt_uses_the_fresh_commitments() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let mut commitments = round1(&mut safes, &verified, 0);
        let first = safes[0]
            .sign(at(1), promised(1), commitments.clone())
            .unwrap();
        commitments.insert(safes[0].share.signer(), first.next);
        let second = safes[0].sign(at(2), promised(2), commitments).unwrap();
        assert_ne!(first.shares, second.shares);
        assert_ne!(first.package, second.package);
    }

    #[test]
    fn a_repeated_proposal_gets_the_unused_commitments_again_and_used_ones_never() {
        let verified = testing::verified_genesis();
        let mut safes = all();
        let commitments = round1(&mut safes, &verified, 0);
        assert_eq!(round1(&mut safes, &verified, 100), commitments);
        let next = safes[0]
            .sign(at(200), promised(1), commitments.clone())
            .unwrap()
            .next;
        let me = safes[0].share.signer();
        assert_ne!(commitments[&me], next);
        assert_eq!(
            safes[0].commit(at(300), session(), &verified).unwrap(),
            next
        );
        // Old ones are replaced before they can expire under a sign request.
        assert_ne!(
            safes[0]
                .commit(at(200 + NONCE_LIFE_MS / 2), session(), &verified)
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
            .sign(late, promised(1), commitments.clone())
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
        assert!(
            safes[1]
                .sign(at(NONCE_LIFE_MS - 1), promised(1), commitments)
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
                .sign(at(1), promised(1), commitments)
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
                .sign(reading.clone(), promised(1), commitments.clone())
                .unwrap_err();
            assert_eq!(refusal.rule, Rule::S9, "{reading:?}");
            // An answer from before is not given out either: the copy may have given another one.
            safes[1]
                .sign(at(6), promised(1), commitments.clone())
                .unwrap();
            assert!(
                safes[1]
                    .answered(reading, &session(), 1, &commitments)
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
        let refusal = safes[0].sign(at(1), promised(1), two).unwrap_err();
        // A genesis certificate needs all n, whatever the threshold.
        assert_eq!(refusal.rule, Rule::S12);
        assert!(safes[0].sign(at(2), promised(1), commitments).is_ok());
    }

    fn coordinator() -> PeerKey {
        testing::roster().coordinators[0].key
    }

    /// Safes with a pool, and an entry of each for one message.
    fn pooled() -> (Vec<KeySafe>, BTreeMap<SignerId, Commitments>) {
        let mut safes: Vec<_> = (0..3)
            .map(|index| KeySafe::with_pool(testing::own_share(index), at(0), 2))
            .collect();
        let entries = safes.iter_mut().map(|safe| {
            while safe.refill(at(0), coordinator(), 0).unwrap() {}
            let entries = safe.handed_out(at(0), &coordinator(), 0).unwrap();
            assert_eq!(entries.len(), 2);
            (safe.share.signer(), entries[0].first(1).unwrap())
        });
        let entries = entries.collect();
        (safes, entries)
    }

    #[test]
    fn nonces_that_were_handed_out_ahead_of_time_make_the_signature_without_round_1() {
        let verified = testing::verified_genesis();
        let (mut safes, entries) = pooled();
        let shares: BTreeMap<_, _> = safes
            .iter_mut()
            .map(|safe| {
                safe.bind(at(1), &coordinator(), session(), 1, &entries)
                    .unwrap();
                let given = safe.sign(at(2), promised(1), entries.clone()).unwrap();
                let again = safe.sign(at(3), promised(1), entries.clone()).unwrap();
                assert_eq!(given, again);
                (safe.share.signer(), given.shares)
            })
            .collect();
        sign::aggregate(safes[0].group(), &package(&verified, &entries), &shares).unwrap();
    }

    #[test]
    fn an_entry_of_the_pool_serves_the_request_that_named_it_first_and_no_other() {
        let (mut safes, entries) = pooled();
        let mut other = entries.clone();
        let second = safes[1].handed_out(at(0), &coordinator(), 0).unwrap()[1].clone();
        other.insert(safes[1].share.signer(), second.first(1).unwrap());
        let safe = &mut safes[0];
        safe.bind(at(1), &coordinator(), session(), 1, &entries)
            .unwrap();
        let elsewhere = SessionId([7; 32]);
        for (session, attempt, commitments) in [
            (session(), 1, &other),
            (session(), 2, &entries),
            (elsewhere, 1, &entries),
        ] {
            let refusal = safe
                .bind(at(2), &coordinator(), session, attempt, commitments)
                .unwrap_err();
            assert_eq!(refusal.rule, Rule::S9);
        }
        assert!(safe.sign(at(3), promised(1), other.clone()).is_err());
        assert!(safe.sign(at(3), promised(2), entries.clone()).is_err());
        assert!(safe.sign(at(3), promised(1), entries.clone()).is_ok());
        // Nor afterwards.
        assert!(
            safe.bind(at(4), &coordinator(), session(), 1, &other)
                .is_err()
        );
        assert!(
            safe.bind(at(4), &coordinator(), session(), 2, &entries)
                .is_err()
        );
        assert!(safe.sign(at(4), promised(2), entries).is_err());
    }

    #[test]
    fn entries_of_the_pool_die_with_a_minute_a_pause_a_restart_and_another_boot() {
        let other_boot = Reading {
            boot: Some("two".to_owned()),
            ..at(10)
        };
        for (when, pauses, restarts) in [
            (at(NONCE_LIFE_MS), false, false),
            (at(10), true, false),
            (at(10), false, true),
            (other_boot, false, false),
        ] {
            let (mut safes, entries) = pooled();
            let mut safe = safes.swap_remove(0);
            safe.bind(at(1), &coordinator(), session(), 1, &entries)
                .unwrap();
            if pauses {
                safe.clear_pool();
            }
            if restarts {
                safe = KeySafe::with_pool(testing::own_share(0), at(2), 2);
            }
            let refusal = safe
                .sign(when.clone(), promised(1), entries.clone())
                .unwrap_err();
            assert_eq!(refusal.rule, Rule::S9);
            assert_eq!(safe.pooled(), 0);
            // Entries that were being made meanwhile are not put in.
            if !restarts && safe.generation() > 0 {
                assert!(safe.refill(when.clone(), coordinator(), 0).is_err());
                assert!(safe.handed_out(when, &coordinator(), 0).is_err());
                assert_eq!(safe.pooled(), 0);
            }
        }
    }

    #[test]
    fn entries_of_the_old_share_sign_nothing_with_the_new_one() {
        let (_, entries) = pooled();
        let new = testing::copy(&testing::refreshed()[0]);
        let mut safe = KeySafe::with_pool(new, at(0), 2);
        while safe.refill(at(0), coordinator(), 0).unwrap() {}
        let refusal = safe
            .bind(at(1), &coordinator(), session(), 1, &entries)
            .unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
    }
}
