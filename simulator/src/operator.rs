//! A simulated operator: the real [`signer::State`], and nonces and answers as the node's key safe keeps them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    identity::PeerKey,
    message::{Refusal, Rule, SessionId, Subject},
    signer::{Effect, Input, State},
    transaction::Treasury,
};
use threshold::SignerId;

use crate::{
    fault::Fault,
    schedule::{Conduct, Plan},
    signatures::{AnswerOf, CommitmentsOf, Lie, Request, Signatures},
};

/// As in the node: how long nonces are good for.
const NONCE_LIFE_MS: u64 = 60_000;

struct Held<C: Signatures> {
    nonces: C::Nonces,
    commitments: CommitmentsOf<C>,
    made_ms: u64,
}

struct Answered<C: Signatures> {
    attempt: u32,
    commitments: Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
    answer: AnswerOf<C>,
}

/// One operator.
pub struct Operator<C: Signatures> {
    /// Its FROST identifier.
    pub signer: SignerId,
    /// Its identity.
    pub key: PeerKey,
    /// How it behaves.
    pub plan: Plan,
    /// How often it has started; what was begun before a restart comes to nothing.
    pub boot: u32,
    /// What is wrong with it.
    pub fault: Option<Fault>,
    state: State,
    needed: usize,
    held: BTreeMap<SessionId, Held<C>>,
    answered: BTreeMap<SessionId, Answered<C>>,
    answers: u32,
}

impl<C: Signatures> Operator<C> {
    /// A fresh operator that holds `head` canonical.
    pub fn new(signer: SignerId, key: PeerKey, plan: Plan, needed: usize, head: Treasury) -> Self {
        let mut operator = Self {
            signer,
            key,
            plan,
            boot: 0,
            fault: None,
            state: State::default(),
            needed,
            held: BTreeMap::new(),
            answered: BTreeMap::new(),
            answers: 0,
        };
        operator.follow(head);
        operator
    }

    fn follow(&mut self, head: Treasury) {
        // Chain input is never refused.
        let chain = Input::Chain {
            head: Some(head),
            height: 100,
        };
        let _ = self.state.step(0, chain);
    }

    /// Everything in memory is gone; promises were stored.
    pub fn restart(&mut self, now: u64, head: Treasury) {
        let promises = std::mem::take(&mut self.state.promises);
        self.state = State::default();
        self.state.promises = promises;
        self.held.clear();
        if self.fault == Some(Fault::WakesWithOldNonces) {
            self.restore(now);
        }
        self.answered.clear();
        self.boot = self.boot.saturating_add(1);
        self.follow(head);
    }

    /// The nonces of the last answers, as a machine has them that wakes from a snapshot.
    fn restore(&mut self, now: u64) {
        for (session, answered) in &self.answered {
            let used = answered.commitments.get(&self.signer);
            let Some((used, nonces)) = used.and_then(|used| Some((used, C::again(used)?))) else {
                continue;
            };
            let held = Held {
                nonces,
                commitments: used.clone(),
                made_ms: now,
            };
            self.held.insert(*session, held);
        }
    }

    /// Steps the machine.
    pub fn step(&mut self, now: u64, input: Input) -> Result<Vec<Effect>, Refusal> {
        self.state.step(now, input)
    }

    /// A proposal arrives.
    pub fn proposed(
        &mut self,
        now: u64,
        from: PeerKey,
        subject: Subject,
    ) -> Result<Vec<Effect>, Refusal> {
        if self.plan.conduct == Conduct::Refuser {
            return Err(Refusal::new(Rule::S6, "this operator signs nothing"));
        }
        self.step(now, Input::Proposed { from, subject })
    }

    /// Round 1, with the nonces at hand while they are young and unused.
    pub fn commit(&mut self, now: u64, session: SessionId, signatures: &mut C) -> CommitmentsOf<C> {
        let young = |held: &&Held<C>| now.saturating_sub(held.made_ms) < NONCE_LIFE_MS / 2;
        match self.held.get(&session).filter(young) {
            Some(held) => held.commitments.clone(),
            None => self.fresh(now, session, signatures),
        }
    }

    fn fresh(&mut self, now: u64, session: SessionId, signatures: &mut C) -> CommitmentsOf<C> {
        let (nonces, commitments) = signatures.commit(self.signer);
        let held = Held {
            nonces,
            commitments: commitments.clone(),
            made_ms: now,
        };
        self.held.insert(session, held);
        commitments
    }

    /// New commitments that nothing is remembered of.
    pub fn throwaway(&mut self, signatures: &mut C) -> CommitmentsOf<C> {
        signatures.commit(self.signer).1
    }

    /// A sign request arrives. `None` is silence. An honest answer comes with the commitments that it used up.
    #[allow(clippy::type_complexity, reason = "used once")]
    pub fn sign(
        &mut self,
        now: u64,
        from: (usize, PeerKey),
        request: &Request<'_, C>,
        signatures: &mut C,
        dice: u32,
    ) -> Option<Result<(AnswerOf<C>, CommitmentsOf<C>), Refusal>> {
        match self.plan.conduct {
            Conduct::Silent { after } if self.answers >= after => return None,
            Conduct::Deaf => return None,
            Conduct::Renewer => return Some(Err(Refusal::new(Rule::S9, "no such nonces"))),
            _ => {}
        }
        let (answer, used) = match self.answer(now, from.1, request, signatures) {
            Ok(answered) => answered,
            Err(refusal) => return Some(Err(refusal)),
        };
        self.answers = self.answers.saturating_add(1);
        let lie = match self.plan.conduct {
            Conduct::Liar { lie, percent } if dice % 100 < percent => Some(lie),
            Conduct::TwoFaced if from.0 > 0 => Some(Lie::WrongShare),
            _ => None,
        };
        let answer = match lie {
            Some(lie) => signatures.spoil(self.signer, request, &answer, lie),
            None => answer,
        };
        Some(Ok((answer, used)))
    }

    /// As the node does it: the same request gets the same answer; else nonces are checked, then the machine is
    /// asked, then the share is made.
    fn answer(
        &mut self,
        now: u64,
        from: PeerKey,
        request: &Request<'_, C>,
        signatures: &mut C,
    ) -> Result<(AnswerOf<C>, CommitmentsOf<C>), Refusal> {
        let refuse = |reason: &str| Err(Refusal::new(Rule::S9, reason));
        let Some(own) = request.commitments.get(&self.signer) else {
            return refuse("not asked");
        };
        if let Some(answered) = self.answered.get(&request.session)
            && (self.fault == Some(Fault::RepeatsItsAnswer)
                || answered.attempt == request.attempt
                    && *answered.commitments == **request.commitments)
        {
            return Ok((answered.answer.clone(), own.clone()));
        }
        self.held
            .retain(|_, held| now.saturating_sub(held.made_ms) < NONCE_LIFE_MS);
        let Some(held) = self.held.get(&request.session) else {
            return refuse("the nonces of this session are used up or expired");
        };
        if held.commitments != *own || request.commitments.len() < self.needed {
            return refuse("the package's commitments are not those of these nonces");
        }
        let asked = Input::SignRequested {
            from,
            session: request.session,
            epoch: 0,
            attempt: request.attempt,
        };
        self.state.step(now, asked)?;
        let Some(held) = self.held.remove(&request.session) else {
            return refuse("the nonces are gone");
        };
        let next = match C::again(own).filter(|_| self.fault == Some(Fault::ReusesNonces)) {
            None => self.fresh(now, request.session, signatures),
            Some(nonces) => {
                let held = Held {
                    nonces,
                    commitments: own.clone(),
                    made_ms: now,
                };
                self.held.insert(request.session, held);
                own.clone()
            }
        };
        let answer = signatures.sign(self.signer, request, held.nonces, next);
        let answered = Answered {
            attempt: request.attempt,
            commitments: request.commitments.clone(),
            answer: answer.clone(),
        };
        self.answered.insert(request.session, answered);
        Ok((answer, held.commitments))
    }

    /// Whom it passes batch data on to.
    pub fn reachable(&self, others: &[PeerKey]) -> BTreeSet<PeerKey> {
        others
            .iter()
            .filter(|key| **key != self.key)
            .copied()
            .collect()
    }
}
