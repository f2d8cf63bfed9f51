//! The coordinator's side of one signing session, after ROAST (Ruffing et al., CCS 2022): whoever has
//! answered with fresh commitments is ready; an attempt starts as soon as enough are ready; whoever stays
//! silent stays in its attempt and out of all others; whoever sends a bad share is blamed.
//!
//! ```text
//! accept --> ready --t at hand--> pending in an attempt --share--> ready again, with fresh commitments
//!              ^                         |                   '--> t shares --> signatures
//!              '--accept, once a round---'
//! ```
//!
//! **Bound.** When an attempt starts, t signers are ready. Each earlier attempt that has not succeeded is held
//! up by somebody who is not: a signer pending in it (nobody is pending in two), a signer blamed for a share in
//! it (shares are checked before their signer enters another attempt), or one that has given its place in it
//! up by accepting anew. So there are at most n - t + 1 attempts, and one more for each such renewal.
//! [`crate::invariants`] has it as a function. A signer's renewals are taken in rounds of proposals that lie
//! twice as far apart each time: one that has restarted is soon back, and one that does nothing else than
//! spoil attempts leaves the others more and more time to finish without it.
//!
//! **Pool.** With commitments that enough signers have handed out ahead of time, the first attempt starts with the
//! proposal: its signers are ready before they have verified. If one of them does not answer, the session goes on as
//! any other, with the accepts of whoever did not answer and of the rest.
//!
//! **A short wait.** Those who were not needed for the first attempt are ready from the beginning, so a second could
//! start when t - (n - t) of the first have answered, for nothing if the others are only a little later. While
//! nothing is wrong with the first it is waited for once, about as long as it has taken by then: [`Effect::Wait`].
//! The wait ends by itself, so it delays an attempt and prevents none.
//!
//! Shares are checked only when their attempt fails, or when their signer is about to enter another one: as
//! long as nobody is silent or bad, that is never.

mod frost;
mod input;
mod pooled;
mod scheme;
mod view;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use threshold::{SignerId, sign::PackageHash};

use crate::{message::Refusal, reputation::Standing};

pub use frost::Frost;
pub use input::{Effect, Input, Reject};
pub use scheme::{Failure, Scheme};
pub use waiting::Waiting;

#[derive(Clone, Debug)]
struct Attempt<S: Scheme> {
    commitments: BTreeMap<SignerId, S::Commitments>,
    name: PackageHash,
    answers: BTreeMap<SignerId, S::Answer>,
    /// Those whose answer was looked at and is right.
    checked: BTreeSet<SignerId>,
}

impl<S: Scheme> Attempt<S> {
    fn is_complete(&self) -> bool {
        self.answers.len() == self.commitments.len()
    }
}

/// A signer's accepts while it was pending.
#[derive(Clone, Copy, Debug, Default)]
struct Renewals {
    taken: u32,
    /// The round from which on the next one is taken.
    from_round: u32,
}

/// A signer that waits for an attempt.
#[derive(Clone, Debug)]
struct Ready<S: Scheme> {
    commitments: S::Commitments,
    /// The how-manieth it was to become ready.
    arrival: u64,
}

/// How far a session is with a pause that it makes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// It was not asked for yet.
    Fresh,
    /// It was asked for.
    Holding,
    /// It is over.
    Over,
}

/// The state of a session.
#[derive(Clone)]
pub struct Session<S: Scheme = Frost> {
    scheme: S,
    signers: BTreeSet<SignerId>,
    needed: usize,
    standing: Standing,
    /// Before an attempt with signers of poor standing: [`Effect::Hold`].
    patience: Patience,
    /// Before a second attempt that nothing calls for yet: [`Effect::Wait`].
    wait: Patience,
    ready: BTreeMap<SignerId, Ready<S>>,
    arrivals: u64,
    /// The latest attempt that each of these was asked for and has not answered.
    pending: BTreeMap<SignerId, u32>,
    /// Those of the pending whom the request may not have reached.
    unreached: BTreeSet<SignerId>,
    declined: BTreeMap<SignerId, Refusal>,
    /// Those who have answered, or may have before they accepted anew.
    answered: BTreeSet<SignerId>,
    round: u32,
    renewals: BTreeMap<SignerId, Renewals>,
    attempts: BTreeMap<u32, Attempt<S>>,
    started: u32,
    blamed: BTreeSet<SignerId>,
    refused: BTreeMap<SignerId, Refusal>,
    finished: Option<u32>,
    /// The attempt that began with commitments from the pool.
    pooled: Option<u32>,
}

impl<S: Scheme> Session<S> {
    /// A session that needs `needed` of the scheme's signers, those of good standing rather than others.
    pub fn new(scheme: S, needed: usize, standing: Standing) -> Self {
        Self {
            signers: scheme.signers(),
            scheme,
            needed,
            standing,
            patience: Patience::Fresh,
            wait: Patience::Fresh,
            ready: BTreeMap::new(),
            arrivals: 0,
            pending: BTreeMap::new(),
            unreached: BTreeSet::new(),
            declined: BTreeMap::new(),
            answered: BTreeSet::new(),
            round: 0,
            renewals: BTreeMap::new(),
            attempts: BTreeMap::new(),
            started: 0,
            blamed: BTreeSet::new(),
            refused: BTreeMap::new(),
            finished: None,
            pooled: None,
        }
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`Reject`], with the state unchanged.
    pub fn step(&mut self, input: Input<S>) -> Result<Vec<Effect<S>>, Reject> {
        if self.finished.is_some() {
            return Err(Reject::Finished);
        }
        match input {
            Input::Accepted { from, commitments } => self.accepted(from, commitments),
            Input::Pooled(entries) => self.pooled(entries),
            Input::Refused { from, refusal } => {
                self.admit(from)?;
                self.ready.remove(&from);
                self.refused.insert(from, refusal);
                Ok(self.start_attempts())
            }
            Input::Lost {
                from,
                attempt,
                refusal,
            } => self.lost(from, attempt, refusal),
            Input::Answered {
                from,
                attempt,
                answer,
            } => self.answered(from, attempt, answer),
            Input::Repeated => {
                self.round = self.round.saturating_add(1);
                Ok(Vec::new())
            }
            Input::WaitedLongEnough => {
                self.wait = Patience::Over;
                Ok(self.start_attempts())
            }
            Input::HeldLongEnough => {
                self.patience = Patience::Over;
                Ok(self.start_attempts())
            }
        }
    }

    fn admit(&self, from: SignerId) -> Result<(), Reject> {
        if !self.signers.contains(&from) {
            return Err(Reject::Stranger(from));
        }
        if self.blamed.contains(&from) {
            return Err(Reject::Blamed(from));
        }
        Ok(())
    }

    fn accepted(
        &mut self,
        from: SignerId,
        commitments: S::Commitments,
    ) -> Result<Vec<Effect<S>>, Reject> {
        self.admit(from)?;
        if !self.scheme.fits(&commitments) {
            return Err(Reject::Length(from));
        }
        if let Some(attempt) = self.pending.get(&from).copied() {
            if self.commitments_in(attempt, from) == Some(&commitments) {
                return self.ask_again(from, attempt);
            }
            if self.is_used(from, &commitments) {
                return Err(Reject::Stale(from));
            }
            // Its nonces of that attempt are gone, or its answer is still on the way: the signer can tell
            // neither by this message, and is asked in another attempt either way.
            self.renew(from)?;
            if !self.declined.contains_key(&from) {
                self.answered.insert(from);
            }
            self.settle(from);
        } else if self.is_used(from, &commitments) {
            return Err(Reject::Stale(from));
        }
        self.refused.remove(&from);
        self.make_ready(from, commitments);
        Ok(self.start_attempts())
    }

    fn renew(&mut self, signer: SignerId) -> Result<(), Reject> {
        let renewals = self.renewals.entry(signer).or_default();
        if self.round < renewals.from_round {
            return Err(Reject::Pending(signer));
        }
        renewals.taken = renewals.taken.saturating_add(1);
        let pause = 1_u32.checked_shl(renewals.taken).unwrap_or(u32::MAX);
        renewals.from_round = self.round.saturating_add(pause);
        Ok(())
    }

    /// A pending signer says that it still has the nonces it was asked to use: the request is on its way, or
    /// has got lost.
    fn ask_again(&mut self, from: SignerId, attempt: u32) -> Result<Vec<Effect<S>>, Reject> {
        let Some(open) = self.attempts.get(&attempt) else {
            return Err(Reject::Pending(from));
        };
        if !self.unreached.remove(&from) {
            return Err(Reject::Pending(from));
        }
        Ok(vec![Effect::Request {
            attempt,
            commitments: open.commitments.clone(),
            to: BTreeSet::from([from]),
        }])
    }

    fn lost(
        &mut self,
        from: SignerId,
        attempt: u32,
        refusal: Option<Refusal>,
    ) -> Result<Vec<Effect<S>>, Reject> {
        if self.pending.get(&from) != Some(&attempt) {
            return Err(Reject::NotAsked(from, attempt));
        }
        self.unreached.insert(from);
        if let Some(refusal) = refusal {
            self.declined.insert(from, refusal);
        }
        Ok(self.start_attempts())
    }

    fn answered(
        &mut self,
        from: SignerId,
        number: u32,
        answer: S::Answer,
    ) -> Result<Vec<Effect<S>>, Reject> {
        self.admit(from)?;
        let attempt = self
            .attempts
            .get_mut(&number)
            .filter(|attempt| attempt.commitments.contains_key(&from))
            .ok_or(Reject::NotAsked(from, number))?;
        if attempt.name != self.scheme.package(&answer) {
            return Err(Reject::OtherPackage(from, number));
        }
        if attempt.answers.contains_key(&from) {
            return Err(Reject::Duplicate(from, number));
        }
        let next = self.scheme.next(&answer).clone();
        let has_right_length = self.scheme.has_right_length(&answer);
        attempt.answers.insert(from, answer);
        self.answered.insert(from);
        let culprits = if !has_right_length {
            BTreeSet::from([from])
        } else if attempt.is_complete() {
            match self
                .scheme
                .aggregate(&attempt.commitments, &attempt.answers)
            {
                Ok(signatures) => {
                    let signers = attempt.commitments.keys().copied().collect();
                    return Ok(self.finish(number, signatures, signers));
                }
                Err(Failure::BadShares(culprits)) => culprits,
                Err(Failure::Fault(reason)) => {
                    attempt.answers.remove(&from);
                    return Err(Reject::Aggregate(reason));
                }
            }
        } else {
            BTreeSet::new()
        };
        // A late answer counts for its attempt only: its signer has said something newer since.
        if self.pending.get(&from) == Some(&number) {
            self.settle(from);
            if !self.refused.contains_key(&from) && !self.is_used(from, &next) {
                self.make_ready(from, next);
            }
        }
        let mut effects = self.blame(number, &culprits);
        if self.attempts.get(&number).is_some_and(Attempt::is_complete) {
            self.attempts.remove(&number);
        }
        effects.extend(self.start_attempts());
        Ok(effects)
    }

    fn finish(
        &mut self,
        number: u32,
        signatures: Vec<S::Signature>,
        signers: BTreeSet<SignerId>,
    ) -> Vec<Effect<S>> {
        self.finished = Some(number);
        signers.iter().for_each(|signer| self.settle(*signer));
        vec![Effect::Finished {
            signatures,
            signers,
            attempts: self.started,
            pooled: self.pooled == Some(number),
        }]
    }

    fn make_ready(&mut self, signer: SignerId, commitments: S::Commitments) {
        self.arrivals = self.arrivals.saturating_add(1);
        let ready = Ready {
            commitments,
            arrival: self.arrivals,
        };
        self.ready.insert(signer, ready);
    }

    fn settle(&mut self, signer: SignerId) {
        self.pending.remove(&signer);
        self.unreached.remove(&signer);
        self.declined.remove(&signer);
    }

    fn commitments_in(&self, attempt: u32, signer: SignerId) -> Option<&S::Commitments> {
        self.attempts.get(&attempt)?.commitments.get(&signer)
    }

    fn is_used(&self, signer: SignerId, commitments: &S::Commitments) -> bool {
        self.attempts
            .values()
            .any(|attempt| attempt.commitments.get(&signer) == Some(commitments))
    }

    fn blame(&mut self, number: u32, culprits: &BTreeSet<SignerId>) -> Vec<Effect<S>> {
        let mut effects = Vec::new();
        for signer in culprits {
            let Some(attempt) = self.attempts.get(&number) else {
                continue;
            };
            let Some(answer) = attempt.answers.get(signer).cloned() else {
                continue;
            };
            if self.blamed.insert(*signer) {
                effects.push(Effect::Blame {
                    signer: *signer,
                    attempt: number,
                    commitments: attempt.commitments.clone(),
                    answer,
                });
            }
            self.settle(*signer);
            self.ready.remove(signer);
        }
        effects
    }

    /// Attempts of the best of the ready, as long as there are enough of them.
    fn start_attempts(&mut self) -> Vec<Effect<S>> {
        let mut effects = Vec::new();
        while self.ready.len() >= self.needed {
            if self.may_wait() {
                if self.wait == Patience::Fresh {
                    self.wait = Patience::Holding;
                    effects.push(Effect::Wait);
                }
                return effects;
            }
            let chosen = self.choose();
            if self.patience != Patience::Over
                && chosen.iter().any(|signer| self.standing.is_poor(signer))
            {
                if self.patience == Patience::Fresh {
                    self.patience = Patience::Holding;
                    effects.push(Effect::Hold);
                }
                return effects;
            }
            if self.drop_unusable(&chosen) {
                continue;
            }
            let blamed = self.check_before_entry(&chosen);
            if !blamed.is_empty() {
                effects.extend(blamed);
                continue;
            }
            let (attempt, commitments) = self.start(&chosen);
            effects.push(Effect::Request {
                attempt,
                commitments,
                to: chosen,
            });
        }
        effects
    }

    /// Whether a second attempt has time: each signer of the first has answered or may be about to, and it was not waited
    /// for yet. Once in a session, so that silence costs one wait, however many are silent.
    fn may_wait(&self) -> bool {
        if self.wait == Patience::Over || self.started > 1 {
            return false;
        }
        self.attempts.get(&1).is_some_and(|first| {
            first.commitments.keys().all(|signer| {
                let is_asked = self.pending.contains_key(signer)
                    && !self.unreached.contains(signer)
                    && !self.refused.contains_key(signer);
                !self.blamed.contains(signer) && (is_asked || first.answers.contains_key(signer))
            })
        })
    }

    fn choose(&self) -> BTreeSet<SignerId> {
        let mut order: Vec<(u32, u64, SignerId)> = self
            .ready
            .iter()
            .map(|(signer, ready)| (self.standing.penalty(signer), ready.arrival, *signer))
            .collect();
        order.sort_unstable();
        let chosen = order.into_iter().take(self.needed);
        chosen.map(|(_, _, signer)| signer).collect()
    }

    /// Takes those out of the ready whose commitments are none. Those that come with an answer are looked at only here, as
    /// most are never used. Gives whether there were any.
    fn drop_unusable(&mut self, chosen: &BTreeSet<SignerId>) -> bool {
        let before = self.ready.len();
        self.ready.retain(|signer, ready| {
            !chosen.contains(signer) || self.scheme.fits(&ready.commitments)
        });
        self.ready.len() < before
    }

    /// Looks at what these signers have answered in attempts that are still open. Gives the blames.
    fn check_before_entry(&mut self, chosen: &BTreeSet<SignerId>) -> Vec<Effect<S>> {
        let mut found = Vec::new();
        for (number, attempt) in &mut self.attempts {
            let unchecked: BTreeMap<SignerId, S::Answer> = attempt
                .answers
                .iter()
                .filter(|(signer, _)| chosen.contains(signer) && !attempt.checked.contains(signer))
                .map(|(signer, answer)| (*signer, answer.clone()))
                .collect();
            if unchecked.is_empty() {
                continue;
            }
            let culprits = self.scheme.culprits(&attempt.commitments, &unchecked);
            let right = unchecked.keys().filter(|signer| !culprits.contains(signer));
            attempt.checked.extend(right);
            found.push((*number, culprits));
        }
        found
            .into_iter()
            .flat_map(|(number, culprits)| self.blame(number, &culprits))
            .collect()
    }

    /// Gives the attempt's number and its package.
    fn start(&mut self, chosen: &BTreeSet<SignerId>) -> (u32, BTreeMap<SignerId, S::Commitments>) {
        let number = self.started.saturating_add(1);
        let commitments: BTreeMap<SignerId, S::Commitments> = chosen
            .iter()
            .filter_map(|signer| Some((*signer, self.ready.remove(signer)?.commitments)))
            .collect();
        self.pending
            .extend(chosen.iter().map(|signer| (*signer, number)));
        let attempt = Attempt {
            name: self.scheme.name(&commitments),
            commitments: commitments.clone(),
            answers: BTreeMap::new(),
            checked: BTreeSet::new(),
        };
        self.attempts.insert(number, attempt);
        self.started = number;
        self.forget_hopeless();
        (number, commitments)
    }

    /// Keeps n - t + 1 attempts. There are never more in which somebody is pending, and none of those is
    /// dropped.
    fn forget_hopeless(&mut self) {
        let keep = self
            .signers
            .len()
            .saturating_sub(self.needed)
            .saturating_add(1);
        let awaited: BTreeSet<u32> = self.pending.values().copied().collect();
        while self.attempts.len() > keep {
            let oldest = self
                .attempts
                .keys()
                .find(|number| !awaited.contains(number));
            match oldest.copied() {
                Some(number) => self.attempts.remove(&number),
                None => return,
            };
        }
    }
}
