//! A simulated operator: the real [`signer::State`], and nonces and answers as the node's key safe keeps them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    identity::PeerKey,
    message::{Refusal, Rule, SessionId, Subject},
    pool::{self, Pool},
    signer::{Effect, Input, State},
    transaction::Treasury,
};
use threshold::SignerId;

use crate::{
    event::Pooled,
    fault::Fault,
    schedule::{Conduct, Plan},
    signatures::{AnswerOf, CommitmentsOf, Lie, Request, Signatures},
};

/// As in the node: how long nonces are good for.
const NONCE_LIFE_MS: u64 = 60_000;

/// Entries that a coordinator may hold of one operator.
const POOL_ENTRIES: usize = 3;

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
    pub(crate) state: State,
    needed: usize,
    held: BTreeMap<SessionId, Held<C>>,
    pool: Pool<C::Nonces, CommitmentsOf<C>>,
    parked: BTreeMap<SessionId, Arc<Pooled<C>>>,
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
            pool: Pool::new(POOL_ENTRIES),
            parked: BTreeMap::new(),
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
        self.pool = Pool::new(POOL_ENTRIES);
        self.parked.clear();
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

    /// Round 1 ahead of time.
    pub fn hand_out(
        &mut self,
        now: u64,
        coordinator: PeerKey,
        signatures: &mut C,
    ) -> Vec<CommitmentsOf<C>> {
        if matches!(self.plan.conduct, Conduct::Deaf | Conduct::Refuser) {
            return Vec::new();
        }
        self.pool.expire(now);
        while self.pool.wants(now, &coordinator) {
            let (nonces, commitments) = signatures.commit(self.signer);
            self.pool.put(now, coordinator, nonces, commitments);
        }
        self.pool.young(now, &coordinator)
    }

    /// A pooled sign request arrives: as the node does it, bound before anything else is done with it, and put aside
    /// unless it has had its answer.
    pub fn sign_pooled(
        &mut self,
        now: u64,
        request: &Arc<Pooled<C>>,
    ) -> Result<Vec<Effect>, Refusal> {
        let id = request.subject.session(&request.from);
        self.bind(now, id, request)?;
        self.parked.insert(id, request.clone());
        let input = Input::SignPooled {
            from: request.from,
            subject: request.subject.clone(),
        };
        self.state.step(now, input).inspect_err(|_| {
            self.parked.remove(&id);
        })
    }

    fn bind(&mut self, now: u64, id: SessionId, request: &Pooled<C>) -> Result<(), Refusal> {
        if self.answered.get(&id).is_some_and(|answered| {
            answered.attempt == request.attempt && *answered.commitments == *request.commitments
        }) {
            return Ok(());
        }
        self.pool.expire(now);
        let own = request.commitments.get(&self.signer);
        let own = own.ok_or_else(|| Refusal::new(Rule::S9, "not asked"))?;
        let names = pool::Request {
            coordinator: &request.from,
            session: id,
            attempt: request.attempt,
            commitments: &request.commitments,
        };
        if !self.pool.bind(&names, |entry| entry == own, Some) {
            return Err(Refusal::new(Rule::S9, "no such entry"));
        }
        if self.fault == Some(Fault::ForgetsTheBinding)
            && let Some(nonces) = C::again(own)
        {
            // As old as it was made now, in a pool that has room for it.
            self.pool.put(
                now.saturating_add(pool::LIFE_MS),
                request.from,
                nonces,
                own.clone(),
            );
        }
        Ok(())
    }

    /// The pooled request that waits for its session to be accepted.
    pub fn parked(&mut self, session: &SessionId) -> Option<Arc<Pooled<C>>> {
        self.parked.remove(session)
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
        self.pool.expire(now);
        let (session, attempt) = (request.session, request.attempt);
        let is_pooled = self
            .pool
            .look(&session, attempt, request.commitments)
            .is_some();
        let held = self.held.get(&session);
        if !is_pooled && held.is_none() {
            return refuse("the nonces of this session are used up or expired");
        }
        let is_held = is_pooled || held.is_some_and(|held| held.commitments == *own);
        if !is_held || request.commitments.len() < self.needed {
            return refuse("the package's commitments are not those of these nonces");
        }
        let asked = Input::SignRequested {
            from,
            session: request.session,
            epoch: 0,
            attempt: request.attempt,
        };
        self.state.step(now, asked)?;
        let pooled = self.pool.take(&session, attempt, request.commitments);
        let held = match pooled {
            Some(nonces) => Some(nonces),
            None => self.held.remove(&session).map(|held| held.nonces),
        };
        let Some(nonces) = held else {
            return refuse("the nonces are gone");
        };
        let next = match C::again(own).filter(|_| self.fault == Some(Fault::ReusesNonces)) {
            // What an accept has said that a pooled request overtook, or else fresh.
            None => self.commit(now, session, signatures),
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
        let answer = signatures.sign(self.signer, request, nonces, next);
        let answered = Answered {
            attempt: request.attempt,
            commitments: request.commitments.clone(),
            answer: answer.clone(),
        };
        self.answered.insert(request.session, answered);
        Ok((answer, own.clone()))
    }

    /// Signs without asking anybody, as a corrupt operator does for whoever it is in league with.
    pub fn sign_blindly(
        &mut self,
        now: u64,
        request: &Request<'_, C>,
        signatures: &mut C,
    ) -> Option<AnswerOf<C>> {
        let own = request.commitments.get(&self.signer)?;
        let held = self.held.remove(&request.session)?;
        if held.commitments != *own {
            return None;
        }
        let next = self.fresh(now, request.session, signatures);
        Some(signatures.sign(self.signer, request, held.nonces, next))
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
