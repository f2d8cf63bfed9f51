//! What operators hear and do, as `operator::run` does it around the signing machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ledger::Operation;
use protocol::{
    batch::{Body, Candidate},
    identity::PeerKey,
    message::{Refusal, Rule, SessionId, Subject},
    signer,
};
use rand::{Rng as _, seq::SliceRandom as _};
use threshold::SignerId;

use super::{Event, Fault, Message, Node, World, text};
use crate::{
    schedule::Conduct,
    signatures::{CommitmentsOf, Lie, Request, Signatures},
};

/// How long an operator verifies, at most.
const VERIFY_MS: u64 = 200;
/// How long a durable write takes, at most.
const WRITE_MS: u64 = 20;

impl<C: Signatures> World<C> {
    /// A node takes the blocks in that it has not seen.
    pub(super) fn follow(&mut self, node: Node) -> Result<(), String> {
        if !self.is_up(node) {
            return Ok(());
        }
        loop {
            let view = match node {
                Node::Operator(i) => self.operators.get_mut(i).map(|one| &mut one.view),
                Node::Coordinator(i) => self.coordinators.get_mut(i).map(|one| &mut one.view),
            };
            let Some(view) = view else { return Ok(()) };
            if !view.step(&self.chain, self.place, &mut self.books)? {
                break;
            }
            if let Node::Operator(i) = node {
                self.tell_machine(i)?;
            }
        }
        if let Node::Operator(i) = node {
            let at_tip = self
                .operators
                .get(i)
                .is_some_and(|one| one.view.is_at_tip(&self.chain));
            if at_tip {
                let tip_time = self.operators.get(i).map_or(0, |one| one.view.tip_time());
                self.hear(i, signer::Input::CaughtUp { tip_time })?;
            }
        }
        self.ask_missing(node);
        Ok(())
    }

    /// Tells the machine where the chain is.
    pub(super) fn tell_machine(&mut self, operator: usize) -> Result<(), String> {
        let depth = self.place.vault.parameters().deposit_confirmations;
        let Some(one) = self.operators.get(operator) else {
            return Ok(());
        };
        let (head, height) = (one.view.head(), one.view.height());
        let promise = one
            .signing
            .state
            .promises
            .iter()
            .find(|((_, parent), _)| *parent == head.outpoint)
            .map(|(_, promise)| promise.body);
        let lost = promise.filter(|body| {
            let kept = one
                .view
                .batches
                .values()
                .find(|(other, _)| other.body == *body);
            kept.is_some_and(|(_, body)| one.view.lost_deposit(body, depth).is_some())
        });
        let alarm = one.view.alarm.clone();
        let is_new = one.signing.state.alarm.is_none();
        self.hear(
            operator,
            signer::Input::Chain {
                head: Some(head),
                height,
            },
        )?;
        self.hear(operator, signer::Input::Lost(lost))?;
        match alarm.filter(|_| is_new) {
            Some(alarm) => self.hear(operator, signer::Input::Alarm(alarm)),
            None => Ok(()),
        }
    }

    /// Asks some node for the data of a confirmed batch that is not here.
    pub(super) fn ask_missing(&mut self, node: Node) {
        let view = match node {
            Node::Operator(i) => self.operators.get(i).map(|one| &one.view),
            Node::Coordinator(i) => self.coordinators.get(i).map(|one| &one.view),
        };
        let Some(txid) = view.and_then(|view| view.missing()) else {
            return;
        };
        let others: Vec<Node> = self
            .nodes()
            .into_iter()
            .filter(|other| *other != node)
            .collect();
        let asked: Vec<Node> = others
            .choose_multiple(&mut self.schedule.rng, 2)
            .copied()
            .collect();
        for other in asked {
            self.send(node, other, Message::AskBatch(txid));
        }
    }

    pub(super) fn take_batch(
        &mut self,
        to: Node,
        candidate: &Candidate,
        body: &Arc<Body>,
    ) -> Result<(), String> {
        // As the nodes do: what is taken is what the chain has, by the digests that it gives.
        if body.hash() != candidate.body {
            return Ok(());
        }
        let view = match to {
            Node::Operator(i) => self.operators.get_mut(i).map(|one| &mut one.view),
            Node::Coordinator(i) => self.coordinators.get_mut(i).map(|one| &mut one.view),
        };
        let Some(view) = view.filter(|view| view.missing() == Some(candidate.txid)) else {
            return Ok(());
        };
        view.keep(candidate, body);
        view.catch_up(&mut self.books)?;
        if let Node::Operator(i) = to {
            self.tell_machine(i)?;
        }
        self.ask_missing(to);
        Ok(())
    }

    pub(super) fn proposal(
        &mut self,
        to: usize,
        from: usize,
        candidate: Candidate,
        body: Arc<Body>,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(key) = self.coordinators.get(from).map(|one| one.key) else {
            return Ok(());
        };
        let subject = Subject::Batch(candidate.clone());
        let id = subject.session(&key);
        let Some(one) = self.operators.get_mut(to) else {
            return Ok(());
        };
        match one.signing.plan.conduct {
            Conduct::Honest => {}
            Conduct::Deaf => return Ok(()),
            Conduct::Refuser => {
                let refusal = Refusal::new(Rule::S6, "this operator signs nothing");
                self.send(
                    Node::Operator(to),
                    Node::Coordinator(from),
                    Message::Refuse(id, refusal),
                );
                return Ok(());
            }
            _ => {
                self.send_accept(to, id, key);
                return Ok(());
            }
        }
        if !one.proposed.contains_key(&id) && body.hash() != candidate.body {
            return Ok(());
        }
        one.proposed.insert(id, (candidate, body));
        self.forget_promises(to);
        let proposed = signer::Input::Proposed { from: key, subject };
        let Some(one) = self.operators.get_mut(to) else {
            return Ok(());
        };
        match one.signing.step(now, proposed) {
            Ok(effects) => self.carry_out(to, effects),
            Err(refusal) => {
                self.count_refusal(from, &refusal);
                self.send(
                    Node::Operator(to),
                    Node::Coordinator(from),
                    Message::Refuse(id, refusal),
                );
                Ok(())
            }
        }
    }

    /// A fault: whatever was signed is of no account.
    fn forget_promises(&mut self, operator: usize) {
        if self.fault == Some(Fault::DropsS7)
            && let Some(one) = self.operators.get_mut(operator)
        {
            one.signing.state.promises.clear();
        }
    }

    fn count_refusal(&mut self, coordinator: usize, refusal: &Refusal) {
        if refusal.rule == Rule::S7 {
            self.counts.split = self.counts.split.saturating_add(1);
        } else if self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| !one.is_honest)
        {
            self.counts.lies_refused = self.counts.lies_refused.saturating_add(1);
        }
    }

    /// An input of this boot comes to the machine.
    pub(super) fn machine(
        &mut self,
        operator: usize,
        boot: u32,
        input: signer::Input,
    ) -> Result<(), String> {
        let is_current = self
            .operators
            .get(operator)
            .is_some_and(|one| one.is_up && one.signing.boot == boot);
        if is_current {
            self.hear(operator, input)?;
        }
        Ok(())
    }

    fn hear(&mut self, operator: usize, input: signer::Input) -> Result<(), String> {
        let now = self.now;
        let Some(one) = self.operators.get_mut(operator) else {
            return Ok(());
        };
        if let signer::Input::Stored { session, .. } = &input
            && let Some((candidate, body)) = one.proposed.get(session)
            && self.fault != Some(Fault::SkipsBatches)
        {
            // It is on disk when the machine hears so.
            one.view.keep(candidate, &body.clone());
        }
        match one.signing.step(now, input) {
            Ok(effects) => self.carry_out(operator, effects),
            Err(_) => Ok(()),
        }
    }

    fn later(&mut self, operator: usize, within: u64, input: signer::Input) {
        let boot = self
            .operators
            .get(operator)
            .map_or(0, |one| one.signing.boot);
        let delay = self.schedule.rng.gen_range(0..=within);
        let event = Event::Machine {
            operator,
            boot,
            input,
        };
        self.at(self.now.saturating_add(delay), event);
    }

    fn carry_out(&mut self, operator: usize, effects: Vec<signer::Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                signer::Effect::Verify(id, ..) => {
                    let verdict = self.verdict(operator, id)?;
                    let input = match verdict {
                        Ok(batch) => signer::Input::Verified {
                            session: id,
                            batch: Some(batch),
                        },
                        Err(refusal) => signer::Input::Refused(id, refusal),
                    };
                    self.later(operator, VERIFY_MS, input);
                }
                signer::Effect::Store(session) => {
                    let reachable = self.reachable(operator);
                    self.later(
                        operator,
                        WRITE_MS,
                        signer::Input::Stored { session, reachable },
                    );
                }
                signer::Effect::PassOn(id, peers) => self.pass_on(operator, id, &peers),
                signer::Effect::Accept(id, coordinator) => {
                    self.send_accept(operator, id, coordinator)
                }
                signer::Effect::Refuse(id, coordinator, refusal) => {
                    if let Some(to) = self.coordinator(&coordinator) {
                        self.note(|| format!("operator {operator} refuses: {refusal}"));
                        self.count_refusal(to, &refusal);
                        self.send(
                            Node::Operator(operator),
                            Node::Coordinator(to),
                            Message::Refuse(id, refusal),
                        );
                    }
                }
                // The promise is in the machine's state, which is on disk; the share is made where the request is
                // answered. The quarantine is kept with the promises.
                // No pools of nonces are kept here.
                signer::Effect::PromiseAndSign(_)
                | signer::Effect::Quarantined(_)
                | signer::Effect::Pooled(..) => {}
            }
        }
        Ok(())
    }

    pub(super) fn coordinator(&self, key: &PeerKey) -> Option<usize> {
        self.coordinators.iter().position(|one| one.key == *key)
    }

    fn reachable(&self, operator: usize) -> BTreeSet<PeerKey> {
        let others = self.operators.iter().enumerate();
        others
            .filter(|(i, one)| *i != operator && one.is_up)
            .map(|(_, one)| one.signing.key)
            .collect()
    }

    fn pass_on(&mut self, operator: usize, id: SessionId, peers: &BTreeSet<PeerKey>) {
        let Some((candidate, body)) = self
            .operators
            .get(operator)
            .and_then(|one| one.proposed.get(&id))
            .cloned()
        else {
            return;
        };
        let to: Vec<usize> = (0..self.operators.len())
            .filter(|i| {
                self.operators
                    .get(*i)
                    .is_some_and(|one| peers.contains(&one.signing.key))
            })
            .collect();
        for i in to {
            self.send(
                Node::Operator(operator),
                Node::Operator(i),
                Message::PassOn(id, candidate.clone(), body.clone()),
            );
        }
        let boot = self
            .operators
            .get(operator)
            .map_or(0, |one| one.signing.boot);
        let tick = Event::Machine {
            operator,
            boot,
            input: signer::Input::Tick,
        };
        self.at(self.now.saturating_add(signer::RECEIPT_WAIT_MS), tick);
    }

    pub(super) fn take_passed_on(
        &mut self,
        to: usize,
        from: usize,
        id: SessionId,
        candidate: &Candidate,
        body: &Arc<Body>,
    ) {
        let Some(one) = self.operators.get_mut(to) else {
            return;
        };
        if !one.signing.plan.conduct.is_honest() {
            return;
        }
        one.view.keep(candidate, body);
        self.send(
            Node::Operator(to),
            Node::Operator(from),
            Message::Receipt(id),
        );
    }

    pub(super) fn take_receipt(
        &mut self,
        to: usize,
        from: usize,
        id: SessionId,
    ) -> Result<(), String> {
        let Some(peer) = self.operators.get(from).map(|one| one.signing.key) else {
            return Ok(());
        };
        self.hear(to, signer::Input::Receipt(id, peer))
    }

    fn send_accept(&mut self, operator: usize, id: SessionId, coordinator: PeerKey) {
        let now = self.now;
        let Some(to) = self.coordinator(&coordinator) else {
            return;
        };
        let (Some(one), Some(signatures)) = (
            self.operators.get_mut(operator),
            self.signatures.get_mut(&id),
        ) else {
            return;
        };
        let commitments = one.signing.commit(now, id, signatures);
        self.send(
            Node::Operator(operator),
            Node::Coordinator(to),
            Message::Accept(id, commitments),
        );
    }

    /// A sign request arrives.
    pub(super) fn sign(
        &mut self,
        operator: usize,
        from: usize,
        session: SessionId,
        attempt: u32,
        commitments: &Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
    ) -> Result<(), String> {
        let (now, dice) = (self.now, self.schedule.rng.gen_range(0..100_u32));
        self.forget_promises(operator);
        let Some(key) = self.coordinators.get(from).map(|one| one.key) else {
            return Ok(());
        };
        let (Some(one), Some(signatures)) = (
            self.operators.get_mut(operator),
            self.signatures.get_mut(&session),
        ) else {
            return Ok(());
        };
        let request = Request {
            session,
            attempt,
            commitments,
        };
        let signer = one.signing.signer;
        let (to, me) = (Node::Coordinator(from), Node::Operator(operator));
        let conduct = one.signing.plan.conduct;
        if !conduct.is_honest() {
            let Some(mut answer) = one.signing.sign_blindly(now, &request, signatures) else {
                self.lose(from, operator, session, attempt);
                return Ok(());
            };
            if matches!(conduct, Conduct::Liar { percent, .. } if dice < percent) {
                answer = signatures.spoil(signer, &request, &answer, Lie::WrongShare);
            }
            self.send(me, to, Message::Answer(session, attempt, answer));
            return Ok(());
        }
        let is_sent = match one
            .signing
            .sign(now, (from, key), &request, signatures, dice)
        {
            None => false,
            Some(Ok((answer, used))) => {
                let package = signatures.package(&answer);
                let is_new = one.answered.insert(package);
                self.nonces
                    .served(signer, C::name(&used), package)
                    .map_err(text)?;
                if is_new {
                    self.share_leaves(operator, session)?;
                }
                self.send(me, to, Message::Answer(session, attempt, answer))
            }
            Some(Err(refusal)) => {
                self.note(|| format!("operator {operator} declines attempt {attempt}: {refusal}"));
                self.send(me, to, Message::Declined(session, attempt, refusal))
            }
        };
        if !is_sent {
            self.lose(from, operator, session, attempt);
        }
        Ok(())
    }

    /// What must hold when an honest operator's share leaves it.
    fn share_leaves(&mut self, operator: usize, session: SessionId) -> Result<(), String> {
        let parameters = self.place.vault.parameters();
        let Some(one) = self.operators.get_mut(operator) else {
            return Ok(());
        };
        let Some((candidate, body)) = one.proposed.get(&session).cloned() else {
            return Err("shares: S8: for a batch that it does not know".to_owned());
        };
        self.counts.shares = self.counts.shares.saturating_add(1);
        if !one.verified.contains(&session) {
            return Err("shares: S1: for a batch that it has not verified".to_owned());
        }
        if !one.view.batches.contains_key(&candidate.txid) {
            return Err("shares: S8: the batch is not on its disk".to_owned());
        }
        if let Some(stolen) = one.view.stolen() {
            return Err(format!("shares: S14: {stolen} has spent the treasury"));
        }
        if candidate.parent != one.view.head().outpoint {
            return Err("shares: S2: it does not spend the latest treasury".to_owned());
        }
        // An operator follows its own chain by some seconds; a head that has left every chain is another matter.
        let is_known = self.chain.coin(&candidate.parent).is_some()
            || one.view.height() != self.chain.height()
            || !one.view.is_at_tip(&self.chain) && !one.view.is_stubborn;
        let is_spent = self.registry.contains_key(&candidate.parent.txid)
            && self.chain.confirmed_at(&candidate.parent.txid).is_none();
        if !is_known && is_spent {
            return Err("shares: S2: the treasury that it spends has left the chain".to_owned());
        }
        let depth = parameters.deposit_confirmations;
        let view = &one.view;
        let is_lost = |body: &protocol::batch::BodyHash| {
            let kept = view.batches.values().find(|(other, _)| other.body == *body);
            kept.is_some_and(|(_, body)| view.lost_deposit(body, depth).is_some())
        };
        let delay = u32::from(parameters.replacement_delay);
        let height = view.height();
        one.given
            .share(&candidate, body.batch(), height, delay, is_lost)
            .map_err(text)?;
        self.note(|| format!("operator {operator} signs {}", candidate.txid));
        Ok(())
    }

    /// For lies: an operation that nobody would take.
    pub(super) fn is_signed(operation: &Operation) -> bool {
        operation.sender().is_some()
    }
}
