//! A simulated coordinator: the real [`Session`], begun anew by each restart.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    identity::PeerKey,
    invariants::{self, Requests, Violation},
    reputation::Standing,
    signing::{Effect, Input, Reject, Scheme as _, Session},
};
use threshold::SignerId;

use crate::{
    fault::Fault,
    signatures::{AnswerOf, CommitmentsOf, Signatures},
};

/// One coordinator.
pub struct Coordinator<C: Signatures> {
    /// Its identity.
    pub key: PeerKey,
    /// How often it has started a session.
    pub incarnation: u32,
    /// Its session.
    pub session: Session<C::Scheme>,
    /// What it has asked for in this session, as its signers see it.
    pub requests: Requests<CommitmentsOf<C>>,
    /// Whether it has the signatures.
    pub is_finished: bool,
    /// Whether they are of an attempt with nonces from the pool.
    pub is_pooled: bool,
    /// How it judges the operators; lost by a restart.
    pub standing: Standing,
    /// What operators have handed out to it. Its restarts leave it what it had, used or expired as it may be.
    pub entries: BTreeMap<SignerId, CommitmentsOf<C>>,
    /// What is wrong with it.
    pub fault: Option<Fault>,
    scheme: C::Scheme,
    /// For faults: each signer's commitments in the latest request to it.
    asked: BTreeMap<SignerId, CommitmentsOf<C>>,
    /// For faults: an answer that it has had.
    heard: Option<AnswerOf<C>>,
}

/// What an input brings of whom.
pub enum News<Commitments> {
    /// Commitments.
    Accepted(SignerId, Commitments),
    /// Shares, for this attempt.
    Answered(SignerId, u32),
    /// That the request of this attempt may not have arrived.
    Lost(SignerId, u32),
}

impl<Commitments: Clone> News<Commitments> {
    /// `None` for inputs that bring nothing of the kind.
    pub fn of<S>(input: &Input<S>) -> Option<Self>
    where
        S: protocol::signing::Scheme<Commitments = Commitments>,
    {
        match input {
            Input::Accepted { from, commitments } => {
                Some(Self::Accepted(*from, commitments.clone()))
            }
            Input::Answered { from, attempt, .. } => Some(Self::Answered(*from, *attempt)),
            Input::Lost { from, attempt, .. } => Some(Self::Lost(*from, *attempt)),
            _ => None,
        }
    }
}

impl<C: Signatures> Coordinator<C> {
    /// A coordinator with a fresh session, and with what it knows of the operators from others before.
    pub fn new(key: PeerKey, scheme: C::Scheme, needed: usize, standing: Standing) -> Self {
        let session = Session::new(scheme.clone(), needed, standing.clone());
        Self {
            key,
            incarnation: 0,
            requests: Requests::new(session.signers().len(), needed),
            session,
            is_finished: false,
            is_pooled: false,
            standing,
            entries: BTreeMap::new(),
            fault: None,
            scheme,
            asked: BTreeMap::new(),
            heard: None,
        }
    }

    /// A fresh session. After a restart nothing is known of the one before.
    pub fn begin(&mut self, has_restarted: bool) {
        if has_restarted {
            self.standing = Standing::default();
        } else {
            let (blamed, silent) = (self.session.blamed(), self.session.silent());
            self.standing.learn(blamed, &silent);
        }
        self.incarnation = self.incarnation.saturating_add(1);
        self.renew();
        self.requests = Requests::new(self.session.signers().len(), self.session.needed());
    }

    fn renew(&mut self) {
        let (scheme, standing) = (self.scheme.clone(), self.standing.clone());
        self.session = Session::new(scheme, self.session.needed(), standing);
    }

    /// Steps the machine.
    pub fn step(&mut self, input: Input<C::Scheme>) -> Result<Vec<Effect<C::Scheme>>, Reject> {
        match self.fault {
            None => self.session.step(input),
            Some(fault) => self.stumble(fault, input),
        }
    }

    /// Looks at what an input that was taken has come to.
    pub fn take_note(
        &mut self,
        news: &News<CommitmentsOf<C>>,
        effects: &[Effect<C::Scheme>],
    ) -> Result<(), Violation> {
        match news {
            News::Accepted(from, commitments) => {
                let is_asked = effects.iter().any(
                    |effect| matches!(effect, Effect::Request { to, .. } if to.contains(from)),
                );
                self.requests.accepted(*from, commitments, is_asked)
            }
            News::Lost(from, attempt) => {
                self.requests.lost(*from, *attempt);
                Ok(())
            }
            News::Answered(from, attempt) => {
                self.requests.answered(*from, *attempt);
                let is_over = effects
                    .iter()
                    .any(|effect| matches!(effect, Effect::Finished { .. }));
                if is_over {
                    return Ok(());
                }
                invariants::answers_are_taken(&self.session, *from, *attempt)
            }
        }
    }

    /// Steps the machine with a fault in what it hears or does.
    fn stumble(
        &mut self,
        fault: Fault,
        input: Input<C::Scheme>,
    ) -> Result<Vec<Effect<C::Scheme>>, Reject> {
        let (mut lost, mut is_renewal) = (None, false);
        let input = match input {
            Input::Answered {
                from,
                attempt,
                answer,
            } => {
                self.heard = Some(answer.clone());
                match fault {
                    Fault::DropsLateShares if attempt < self.session.attempts() => {
                        return Ok(Vec::new());
                    }
                    Fault::NeverHasEnough => {
                        // As if a round had passed, so that it is taken.
                        self.renew_rounds()?;
                        let commitments = self.scheme.next(&answer).clone();
                        Input::Accepted { from, commitments }
                    }
                    _ => Input::Answered {
                        from,
                        attempt,
                        answer,
                    },
                }
            }
            Input::Accepted { from, .. } if self.session.pending().contains_key(&from) => {
                if fault == Fault::DropsRenewals {
                    return Ok(Vec::new());
                }
                is_renewal = true;
                input
            }
            Input::Lost { from, attempt, .. } => {
                lost = Some((from, attempt));
                input
            }
            Input::Repeated if fault == Fault::ForgetsThePending => {
                self.renew();
                input
            }
            other => other,
        };
        let mut effects = self.session.step(input)?;
        match fault {
            Fault::StopsAfterOne => effects.retain(
                |effect| !matches!(effect, Effect::Request { attempt, .. } if *attempt > 1),
            ),
            Fault::AsksOnce if is_renewal => {
                effects.retain(
                    |effect| !matches!(effect, Effect::Request { to, .. } if to.len() == 1),
                );
            }
            Fault::HoldsForEver => effects.retain(|effect| !matches!(effect, Effect::Hold)),
            Fault::BlamesTheSilent => effects.extend(lost.and_then(|lost| self.accuse(lost))),
            Fault::AsksTwice => effects.iter_mut().for_each(|effect| self.ask_twice(effect)),
            _ => {}
        }
        for effect in &effects {
            if let Effect::Request { commitments, .. } = effect {
                self.asked.extend(commitments.clone());
            }
        }
        Ok(effects)
    }

    /// As many rounds as any signer has to wait for its next renewal.
    fn renew_rounds(&mut self) -> Result<(), Reject> {
        for _ in 0..MAX_ROUNDS {
            self.session.step(Input::Repeated)?;
        }
        Ok(())
    }

    /// A blame of a signer that has not answered, with another one's answer for evidence.
    fn accuse(&self, (signer, attempt): (SignerId, u32)) -> Option<Effect<C::Scheme>> {
        Some(Effect::Blame {
            signer,
            attempt,
            commitments: self.asked.clone(),
            answer: self.heard.clone()?,
        })
    }

    /// Changes a request: one that is pending elsewhere takes the place of another.
    fn ask_twice(&self, effect: &mut Effect<C::Scheme>) {
        let Effect::Request {
            attempt,
            commitments,
            to,
        } = effect
        else {
            return;
        };
        let pending = self.session.pending().iter();
        let elsewhere = pending
            .filter(|(_, other)| *other != attempt)
            .find_map(|(signer, _)| Some((*signer, self.asked.get(signer)?.clone())));
        if let Some((signer, old)) = elsewhere
            && commitments.pop_first().is_some()
        {
            commitments.insert(signer, old);
            *to = commitments.keys().copied().collect::<BTreeSet<_>>();
        }
    }
}

/// Rounds that outlast every pause between renewals of a run.
const MAX_ROUNDS: u32 = 64;
