//! Signing sessions, as a coordinator holds them.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::Txid;
use protocol::{
    batch::{Body, Candidate},
    invariants,
    message::{Refusal, Rule, SessionId, Subject},
    reputation::Standing,
    signing::{Effect, Input, Session},
};
use rand::Rng as _;
use threshold::SignerId;

use super::{ASK_TIMEOUT_MS, Event, Message, Node, Running, World, text};
use crate::signatures::{AnswerOf, CommitmentsOf, Signatures};

/// As in the node: how long an attempt is held back for better signers.
const HOLD_MS: u64 = 500;
/// As in the node: how long a second attempt is held back at most while nothing is wrong with the first.
const MAX_WAIT_MS: u64 = 2_000;

impl<C: Signatures> World<C> {
    /// Proposes a candidate to all operators, in the session that runs for it or in a new one.
    pub(super) fn propose(
        &mut self,
        coordinator: usize,
        candidate: &Candidate,
        body: &Arc<Body>,
        to: &[usize],
    ) -> Result<(), String> {
        let Some(key) = self.coordinators.get(coordinator).map(|one| one.key) else {
            return Ok(());
        };
        let id = Subject::Batch(candidate.clone()).session(&key);
        let number = u64::try_from(self.signatures.len())
            .unwrap_or(0)
            .saturating_add(1);
        if !self.signatures.contains_key(&id) {
            let Some((_, built)) = self.registry.get(&candidate.txid) else {
                return Ok(());
            };
            let seed = self.schedule.seed.rotate_left(32) ^ number;
            let signatures =
                C::over(&self.schedule.group, seed, built).map_err(|error| error.to_string())?;
            self.signatures.insert(id, signatures);
        }
        let needed = usize::from(self.schedule.group.threshold);
        let (Some(one), Some(signatures)) = (
            self.coordinators.get_mut(coordinator),
            self.signatures.get(&id),
        ) else {
            return Ok(());
        };
        let runs = one.running.as_ref().is_some_and(|running| running.id == id);
        if !runs {
            let session = Session::new(signatures.scheme(), needed, Standing::default());
            one.running = Some(Running { id, session });
        }
        self.note(|| {
            format!(
                "coordinator {coordinator} proposes batch {}: {} with a fee of {}",
                candidate.sequence, candidate.txid, candidate.fee
            )
        });
        for operator in to {
            self.send(
                Node::Coordinator(coordinator),
                Node::Operator(*operator),
                Message::Propose(candidate.clone(), body.clone()),
            );
        }
        self.tell(coordinator, id, Input::Repeated)
    }

    fn tell(
        &mut self,
        coordinator: usize,
        id: SessionId,
        input: Input<C::Scheme>,
    ) -> Result<(), String> {
        let honest: std::collections::BTreeSet<SignerId> = self
            .operators
            .iter()
            .filter(|one| one.signing.plan.conduct.is_honest())
            .map(|one| one.signing.signer)
            .collect();
        let Some(running) = self
            .coordinators
            .get_mut(coordinator)
            .filter(|one| one.is_up)
            .and_then(|one| one.running.as_mut())
            .filter(|running| running.id == id)
        else {
            return Ok(());
        };
        let effects = running.session.step(input).unwrap_or_default();
        invariants::attempts_are_bounded(&running.session).map_err(text)?;
        invariants::signers_are_in_one_place(&running.session).map_err(text)?;
        invariants::no_honest_signer_is_blamed(&running.session, &honest).map_err(text)?;
        for effect in effects {
            match effect {
                Effect::Request {
                    attempt,
                    commitments,
                    to,
                } => self.request(coordinator, id, attempt, commitments, &to),
                Effect::Finished { signatures, .. } => {
                    self.finished(coordinator, id, &signatures)?
                }
                Effect::Hold => {
                    let event = Event::Held(coordinator, id);
                    self.at(self.now.saturating_add(HOLD_MS), event);
                }
                Effect::Wait => {
                    let pause = self.schedule.rng.gen_range(0..=MAX_WAIT_MS);
                    self.at(
                        self.now.saturating_add(pause),
                        Event::Waited(coordinator, id),
                    );
                }
                // Operators here hand out no pools of nonces.
                Effect::Blame { .. } | Effect::Pooled { .. } => {}
            }
        }
        Ok(())
    }

    pub(super) fn held(&mut self, coordinator: usize, id: SessionId) -> Result<(), String> {
        self.tell(coordinator, id, Input::HeldLongEnough)
    }

    pub(super) fn waited(&mut self, coordinator: usize, id: SessionId) -> Result<(), String> {
        self.tell(coordinator, id, Input::WaitedLongEnough)
    }

    fn request(
        &mut self,
        coordinator: usize,
        session: SessionId,
        attempt: u32,
        commitments: BTreeMap<SignerId, CommitmentsOf<C>>,
        to: &std::collections::BTreeSet<SignerId>,
    ) {
        let commitments = Arc::new(commitments);
        let asked: Vec<usize> = (0..self.operators.len())
            .filter(|i| {
                self.operators
                    .get(*i)
                    .is_some_and(|one| to.contains(&one.signing.signer))
            })
            .collect();
        for operator in asked {
            let is_sent = self.send(
                Node::Coordinator(coordinator),
                Node::Operator(operator),
                Message::Sign {
                    session,
                    attempt,
                    commitments: commitments.clone(),
                },
            );
            if !is_sent {
                self.lose(coordinator, operator, session, attempt);
            }
        }
    }

    /// A sign request or its answer has got lost: its coordinator notices after a while.
    pub(super) fn lose(
        &mut self,
        coordinator: usize,
        operator: usize,
        session: SessionId,
        attempt: u32,
    ) {
        let lost = Event::Lost {
            coordinator,
            operator,
            session,
            attempt,
        };
        self.at(self.now.saturating_add(ASK_TIMEOUT_MS), lost);
    }

    pub(super) fn lost(
        &mut self,
        coordinator: usize,
        operator: usize,
        session: SessionId,
        attempt: u32,
        refusal: Option<Refusal>,
    ) -> Result<(), String> {
        let Some(from) = self.operators.get(operator).map(|one| one.signing.signer) else {
            return Ok(());
        };
        let lost = Input::Lost {
            from,
            attempt,
            refusal,
        };
        self.tell(coordinator, session, lost)
    }

    pub(super) fn accepted(
        &mut self,
        coordinator: usize,
        operator: usize,
        id: SessionId,
        commitments: CommitmentsOf<C>,
    ) -> Result<(), String> {
        let Some(from) = self.operators.get(operator).map(|one| one.signing.signer) else {
            return Ok(());
        };
        self.tell(coordinator, id, Input::Accepted { from, commitments })
    }

    pub(super) fn refused(
        &mut self,
        coordinator: usize,
        operator: usize,
        id: SessionId,
        refusal: Refusal,
    ) -> Result<(), String> {
        let Some(from) = self.operators.get(operator).map(|one| one.signing.signer) else {
            return Ok(());
        };
        if refusal.rule == Rule::S2 {
            self.note_refused_bump(coordinator, operator, id);
        }
        self.tell(coordinator, id, Input::Refused { from, refusal })
    }

    pub(super) fn answered(
        &mut self,
        coordinator: usize,
        operator: usize,
        id: SessionId,
        attempt: u32,
        answer: AnswerOf<C>,
    ) -> Result<(), String> {
        let Some(from) = self.operators.get(operator).map(|one| one.signing.signer) else {
            return Ok(());
        };
        let answered = Input::Answered {
            from,
            attempt,
            answer,
        };
        self.tell(coordinator, id, answered)
    }

    fn finished(
        &mut self,
        coordinator: usize,
        id: SessionId,
        made: &[crate::signatures::SignatureOf<C>],
    ) -> Result<(), String> {
        let are_right = self
            .signatures
            .get(&id)
            .is_some_and(|signatures| signatures.are_right(made));
        if !are_right {
            return Err("finished with wrong signatures".to_owned());
        }
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return Ok(());
        };
        one.running = None;
        let key = one.key;
        let signed = one
            .records
            .values()
            .flat_map(|record| &record.made)
            .map(|made| made.candidate.clone())
            .find(|candidate| Subject::Batch(candidate.clone()).session(&key) == id);
        // A liar publishes what it gets signed as well.
        let Some(candidate) = signed else {
            return Ok(());
        };
        self.chain.authorise(candidate.txid);
        self.note(|| format!("batch {} is signed: {}", candidate.sequence, candidate.txid));
        self.write_signed(coordinator, &candidate)
    }

    /// Gives a transaction to the own Bitcoin node.
    pub(super) fn submit(&mut self, txid: Txid) -> bool {
        let Some((_, built)) = self.registry.get(&txid) else {
            return false;
        };
        let vbytes = built.weight().to_vbytes_ceil();
        let transaction = Arc::new(built.unsigned.clone());
        let taken = self.chain.submit(&transaction, vbytes);
        if taken != crate::vault::chain::Taken::Confirmed {
            self.note(|| format!("{txid} is submitted: {taken:?}"));
        }
        !matches!(taken, crate::vault::chain::Taken::Rejected(_))
    }
}
