//! The pool: who fetches entries and who uses them, as they should be used and as they should not.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    batch::{BodyHash, Candidate},
    hash,
    identity::PeerKey,
    message::{SessionId, Subject},
    signing,
};
use rand::Rng as _;
use threshold::{SignerId, sign::PackageHash};

use super::{World, text};
use crate::{
    event::{Event, Pooled},
    schedule::Conduct,
    signatures::{CommitmentsOf, Request, Signatures},
};

/// The coordinator that lies. It has no session: what it wants is a second share from one nonce.
const LIAR: PeerKey = PeerKey([0xBA; 32]);
/// How far apart the liar's requests arrive at most.
const PROBE_MS: u64 = 3_000;

impl<C: Signatures> World<C> {
    /// A coordinator takes the first entry of each operator.
    pub(super) fn fetch(&mut self, coordinator: usize) {
        let now = self.now;
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        if !self.schedule.has_pool {
            return;
        }
        for operator in &mut self.operators {
            let entries = operator.hand_out(now, one.key, &mut self.signatures);
            if let Some(entry) = entries.into_iter().next() {
                one.entries.insert(operator.signer, entry);
            }
        }
    }

    /// The first proposal of a session comes with what is in the pool. A coordinator that has started again may go on
    /// with what it had before, which operators have used up, or have forgotten.
    pub(super) fn open_with_pool(&mut self, coordinator: usize) -> Result<(), String> {
        if !self.schedule.has_pool {
            return Ok(());
        }
        let is_again = self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| one.incarnation > 0);
        let begins = self.coordinators.get(coordinator).is_some_and(|one| {
            one.session.attempts() == 0 && one.session.ready().len() == 0 && !one.is_finished
        });
        if !begins {
            return Ok(());
        }
        if is_again && self.schedule.rng.gen_bool(0.5) {
            self.fetch(coordinator);
        }
        let entries = self.coordinators.get(coordinator);
        let entries = entries.map(|one| one.entries.clone()).unwrap_or_default();
        self.hear(coordinator, signing::Input::Pooled(entries))
    }

    pub(super) fn ask_pooled(
        &mut self,
        coordinator: usize,
        incarnation: u32,
        attempt: u32,
        commitments: BTreeMap<SignerId, CommitmentsOf<C>>,
    ) {
        let Some(key) = self.coordinators.get(coordinator).map(|one| one.key) else {
            return;
        };
        let request = Arc::new(Pooled {
            from: key,
            incarnation,
            subject: self.subject.clone(),
            attempt,
            commitments: Arc::new(commitments),
            asked_ms: self.now,
        });
        for to in self.signers_of(&request) {
            let is_sent = self.send(to, || Event::SignPooled {
                to,
                request: request.clone(),
            });
            if !is_sent {
                self.lose(coordinator, to, incarnation, attempt, self.now);
            }
        }
    }

    fn signers_of(&self, request: &Pooled<C>) -> Vec<usize> {
        let operators = self.operators.iter().enumerate();
        operators
            .filter(|(_, one)| request.commitments.contains_key(&one.signer))
            .map(|(place, _)| place)
            .collect()
    }

    /// The liar asks with one set of entries for two subjects, two attempts and two packages, in any order, and with
    /// the entries of an honest coordinator.
    pub(super) fn probe(&mut self) {
        let (now, mut own, mut others) = (self.now, BTreeMap::new(), BTreeMap::new());
        for operator in &mut self.operators {
            let entries = operator.hand_out(now, LIAR, &mut self.signatures);
            if let Some(entry) = entries.into_iter().next()
                && own.len() < usize::from(self.schedule.group.threshold)
            {
                others.insert(operator.signer, operator.throwaway(&mut self.signatures));
                own.insert(operator.signer, entry);
            }
        }
        let stolen = self.coordinators.first();
        let stolen = stolen.map(|one| one.entries.clone()).unwrap_or_default();
        let subject = self.subject.clone();
        let same = Arc::new(own.clone());
        for signer in own.keys().copied().collect::<Vec<_>>() {
            // To each signer its own entry, and to all but it another one of somebody else.
            let mut mixed = others.clone();
            mixed.extend(own.get(&signer).cloned().map(|entry| (signer, entry)));
            let mixed = Arc::new(mixed);
            let subjects = [subject.clone(), proven_anew(&subject)];
            let stolen = Arc::new(stolen.clone());
            for (subject, attempt, commitments) in [
                (&subjects[0], 1, &same),
                (&subjects[0], 2, &same),
                (&subjects[0], 1, &mixed),
                (&subjects[1], 1, &same),
                (&subjects[1], 2, &mixed),
                (&subjects[0], 3, &stolen),
            ] {
                let request = Arc::new(Pooled {
                    from: LIAR,
                    incarnation: 0,
                    subject: subject.clone(),
                    attempt,
                    commitments: commitments.clone(),
                    asked_ms: now,
                });
                let Some(to) = self.operators.iter().position(|one| one.signer == signer) else {
                    continue;
                };
                let later = self.schedule.rng.gen_range(0..PROBE_MS);
                self.at(now.saturating_add(later), Event::SignPooled { to, request });
            }
        }
    }

    pub(super) fn sign_pooled(
        &mut self,
        to: usize,
        request: &Arc<Pooled<C>>,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(one) = self.operators.get_mut(to) else {
            return Ok(());
        };
        // Whoever wants to be silent is so at the moment of the answer.
        if one.plan.conduct != Conduct::Deaf {
            match one.sign_pooled(now, request) {
                Ok(effects) => {
                    self.lose_pooled(to, request);
                    return self.carry_out(to, effects);
                }
                Err(refusal) => {
                    let from = to;
                    if let Some(to) = self.coordinator(&request.from) {
                        self.send(from, || Event::Lost {
                            to,
                            from,
                            incarnation: request.incarnation,
                            attempt: request.attempt,
                            refusal: Some(refusal.clone()),
                        });
                    }
                }
            }
        }
        self.lose_pooled(to, request);
        Ok(())
    }

    /// Without an answer the coordinator gives the question up. One that is answered by then has nothing to give up.
    fn lose_pooled(&mut self, operator: usize, request: &Pooled<C>) {
        if let Some(to) = self.coordinator(&request.from) {
            let (incarnation, attempt) = (request.incarnation, request.attempt);
            self.lose(to, operator, incarnation, attempt, request.asked_ms);
        }
    }

    /// The moment of the accept: shares, or else the accept.
    pub(super) fn answer_pooled(
        &mut self,
        operator: usize,
        id: SessionId,
        key: PeerKey,
    ) -> Result<(), String> {
        let (now, dice) = (self.now, self.schedule.rng.gen_range(0..100));
        let coordinator = self.coordinator(&key);
        let Some(one) = self.operators.get_mut(operator) else {
            return Ok(());
        };
        let Some(parked) = one.parked(&id) else {
            self.accept(operator, id, key);
            return Ok(());
        };
        let (is_honest, signer) = (one.plan.conduct.is_honest(), one.signer);
        let request = Request {
            session: id,
            attempt: parked.attempt,
            commitments: &parked.commitments,
        };
        // To a corrupt operator the liar is a coordinator as any other.
        let from = (coordinator.unwrap_or_default(), key);
        match one.sign(now, from, &request, &mut self.signatures, dice) {
            None => {}
            Some(Ok((answer, used))) => {
                if is_honest {
                    let package = self.signatures.package(&answer);
                    self.served(signer, &used, id, package)?;
                }
                if let Some(to) = coordinator {
                    self.send(operator, || Event::Answer {
                        to,
                        from: operator,
                        attempt: parked.attempt,
                        answer: answer.clone(),
                    });
                }
            }
            Some(Err(refusal)) => {
                if let Some(to) = coordinator {
                    self.send(operator, || Event::Lost {
                        to,
                        from: operator,
                        incarnation: parked.incarnation,
                        attempt: parked.attempt,
                        refusal: Some(refusal.clone()),
                    });
                }
                self.accept(operator, id, key);
            }
        }
        Ok(())
    }

    /// A share has left an honest operator. The session stands for what is signed in it.
    pub(super) fn served(
        &mut self,
        signer: SignerId,
        used: &CommitmentsOf<C>,
        session: SessionId,
        package: PackageHash,
    ) -> Result<(), String> {
        let package = hash::tagged("drawbridge/simulated", &[&session.0, &package.0]);
        let served = self
            .nonces
            .served(signer, C::name(used), PackageHash(package));
        served.map_err(text)
    }
}

/// The same transaction with another proof of it: another session, and nothing that an operator would refuse after the
/// first (S7).
fn proven_anew(subject: &Subject) -> Subject {
    let Subject::Batch(candidate) = subject else {
        return subject.clone();
    };
    Subject::Batch(Candidate {
        body: BodyHash([2; 32]),
        ..candidate.clone()
    })
}
