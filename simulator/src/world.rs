//! The run of one schedule: events in the order of their time, each followed by the invariants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{SequenceNumber, VaultId};
use protocol::{
    batch::{BodyHash, Candidate},
    identity::PeerKey,
    invariants::{self, Violation},
    message::{Refusal, SessionId, Subject},
    signer, signing,
    transaction::{Commitment, Treasury},
};
use rand::{Rng as _, seq::SliceRandom as _};
use threshold::SignerId;

use crate::{
    coordinator::Coordinator,
    operator::Operator,
    schedule::{Conduct, Group, Schedule},
    signatures::{AnswerOf, CommitmentsOf, Request, Signatures},
};

/// As in the node: between two proposals, and until a question without an answer is given up.
const REPEAT_MS: u64 = 5_000;
const ASK_TIMEOUT_MS: u64 = 30_000;
const HOLD_MS: u64 = 500;
/// How long a run that can finish is given after it is calm. Nothing comes near it.
const PATIENCE_MS: u64 = 3_600_000;
/// How long one that can't is watched.
const WATCH_MS: u64 = 60_000;
/// Peers to whom an operator passes batch data on; 99 would only make the schedules slow.
const PASS_ON_TO: usize = 2;
/// How often a chatterbox chats, and how many times.
const CHAT_MS: u64 = 700;
const MAX_CHATS: u32 = 40;

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The schedule's seed: it replays the run.
    pub seed: u64,
    /// When, in virtual ms.
    pub at_ms: u64,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} at {} ms: {}", self.seed, self.at_ms, self.what)
    }
}

impl std::error::Error for Failure {}

/// How a run went in which everything held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The group.
    pub group: Group,
    /// Whether enough operators were honest for it to finish, as it then has.
    pub could_finish: bool,
    /// Attempts of the first coordinator's last session.
    pub attempts: u32,
    /// Renewals in it.
    pub renewals: u32,
    /// Signers blamed in it.
    pub blamed: usize,
    /// When all coordinators had the signatures, or the run was given up, in virtual ms.
    pub at_ms: u64,
    /// Steps of all machines.
    pub steps: u64,
}

enum Event<C: Signatures> {
    Proposal {
        to: usize,
        from: usize,
    },
    /// Something comes back to an operator's machine.
    Machine {
        operator: usize,
        boot: u32,
        input: signer::Input,
    },
    Accept {
        to: usize,
        from: usize,
        commitments: CommitmentsOf<C>,
    },
    Refuse {
        to: usize,
        from: usize,
        refusal: Refusal,
    },
    Sign {
        to: usize,
        from: usize,
        incarnation: u32,
        attempt: u32,
        commitments: Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
        asked_ms: u64,
    },
    /// Reaches whatever session its coordinator has by then.
    Answer {
        to: usize,
        from: usize,
        attempt: u32,
        answer: AnswerOf<C>,
    },
    Lost {
        to: usize,
        from: usize,
        incarnation: u32,
        attempt: u32,
        refusal: Option<Refusal>,
    },
    Repeat {
        coordinator: usize,
        incarnation: u32,
    },
    Held {
        coordinator: usize,
        incarnation: u32,
    },
    RestartOperator(usize),
    RestartCoordinator,
    Chat {
        operator: usize,
        count: u32,
    },
}

/// One run.
pub struct World<C: Signatures> {
    schedule: Schedule,
    signatures: C,
    subject: Subject,
    head: Treasury,
    operators: Vec<Operator<C>>,
    coordinators: Vec<Coordinator<C>>,
    honest: BTreeSet<SignerId>,
    nonces: invariants::Nonces<u64>,
    events: BTreeMap<(u64, u64), Event<C>>,
    sent: u64,
    now: u64,
    steps: u64,
    /// When each coordinator began its present session.
    begun: Vec<u64>,
    trace: bool,
}

impl<C: Signatures> World<C> {
    /// The world of a schedule, before anything has happened. `trace` prints what does.
    pub fn new(schedule: Schedule, signatures: C, trace: bool) -> Self {
        let (subject, head) = batch();
        let needed = usize::from(schedule.group.threshold);
        let operators: Vec<Operator<C>> = schedule
            .group
            .members()
            .iter()
            .zip(&schedule.plans)
            .map(|((signer, key), plan)| Operator::new(*signer, *key, plan.clone(), needed, head))
            .collect();
        let coordinators = (0_u8..)
            .take(schedule.coordinators)
            .map(|i| Coordinator::new(PeerKey([0xC0 | i; 32]), signatures.scheme(), needed))
            .collect();
        let honest = operators
            .iter()
            .filter(|operator| operator.plan.conduct.is_honest())
            .map(|operator| operator.signer)
            .collect();
        let mut world = Self {
            begun: vec![0; schedule.coordinators],
            schedule,
            signatures,
            subject,
            head,
            operators,
            coordinators,
            honest,
            nonces: invariants::Nonces::default(),
            events: BTreeMap::new(),
            sent: 0,
            now: 0,
            steps: 0,
            trace,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for coordinator in 0..self.coordinators.len() {
            let at = if coordinator == 0 {
                0
            } else {
                self.schedule.rng.gen_range(0..3_000)
            };
            self.at(
                at,
                Event::Repeat {
                    coordinator,
                    incarnation: 0,
                },
            );
        }
        for at in self.schedule.coordinator_restarts.clone() {
            self.at(at, Event::RestartCoordinator);
        }
        let plans: Vec<_> = self.schedule.plans.iter().cloned().enumerate().collect();
        for (operator, plan) in plans {
            for at in plan.restarts {
                self.at(at, Event::RestartOperator(operator));
            }
            if plan.conduct == Conduct::Chatterbox {
                self.at(CHAT_MS, Event::Chat { operator, count: 0 });
            }
        }
    }

    fn at(&mut self, time: u64, event: Event<C>) {
        self.sent = self.sent.saturating_add(1);
        self.events.insert((time, self.sent), event);
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            let what = what();
            #[allow(clippy::print_stderr, reason = "a trace was asked for")]
            {
                eprintln!("{:>9} ms  {what}", self.now);
            }
        }
    }

    /// Sends a message between two nodes: late, twice or not at all. Says whether it will arrive.
    fn send(&mut self, operator: usize, make: impl Fn() -> Event<C>) -> bool {
        let weather = self.schedule.weather;
        if self.now < self.schedule.calm_ms && self.schedule.rng.gen_range(0..100) < weather.lost {
            return false;
        }
        let slow = self.operators.get(operator).map_or(0, |of| of.plan.slow_ms);
        let copies = if self.schedule.rng.gen_range(0..100) < weather.doubled {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let rng = &mut self.schedule.rng;
            let mut delay = rng.gen_range(0..=weather.delay_ms);
            if rng.gen_range(0..100) < weather.stragglers {
                delay = delay.saturating_mul(10);
            }
            let time = self.now.saturating_add(delay).saturating_add(slow);
            self.at(time, make());
        }
        true
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(mut self) -> Result<Outcome, Failure> {
        let can_finish = self.schedule.can_finish();
        let patience = if can_finish { PATIENCE_MS } else { WATCH_MS };
        let horizon = self.schedule.calm_ms.saturating_add(patience);
        while let Some(((time, _), event)) = self.events.pop_first() {
            if time > horizon || self.coordinators.iter().all(|one| one.is_finished) {
                break;
            }
            self.now = time;
            self.steps = self.steps.saturating_add(1);
            self.handle(event).map_err(|what| self.failure(what))?;
        }
        self.judge(can_finish).map_err(|what| self.failure(what))?;
        let session = self.coordinators.first().map(|one| &one.session);
        Ok(Outcome {
            group: self.schedule.group,
            could_finish: can_finish,
            attempts: session.map_or(0, signing::Session::attempts),
            renewals: session.map_or(0, signing::Session::renewals),
            blamed: session.map_or(0, |session| session.blamed().len()),
            at_ms: self.now,
            steps: self.steps,
        })
    }

    fn failure(&self, what: String) -> Failure {
        Failure {
            seed: self.schedule.seed,
            at_ms: self.now,
            what: format!("{}: {what}", self.schedule.group),
        }
    }

    /// With enough honest operators all coordinators have the signatures. Without, each says whom it waits
    /// for, and honest operators are not among those it has not heard from.
    fn judge(&self, can_finish: bool) -> Result<(), String> {
        for (coordinator, begun) in self.coordinators.iter().zip(&self.begun) {
            let Some(waiting) = coordinator.session.waiting() else {
                continue;
            };
            let words = waiting.describe(|signer| format!("{signer:?}"));
            if can_finish {
                return Err(format!("not finished: {words}"));
            }
            let is_settled = self.now.saturating_sub(*begun) > WATCH_MS / 2;
            let missed = waiting
                .unheard
                .iter()
                .chain(waiting.refused.keys())
                .find(|signer| self.honest.contains(signer));
            if let Some(signer) = missed
                && is_settled
            {
                return Err(format!("{signer:?} is honest and was not heard: {words}"));
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event<C>) -> Result<(), String> {
        match event {
            Event::Proposal { to, from } => self.proposal(to, from),
            Event::Machine {
                operator,
                boot,
                input,
            } => {
                let now = self.now;
                let Some(one) = self.operators.get_mut(operator) else {
                    return Ok(());
                };
                // A restart has cut off whatever this is the result of.
                if one.boot == boot
                    && let Ok(effects) = one.step(now, input)
                {
                    self.carry_out(operator, effects);
                }
            }
            Event::Accept {
                to,
                from,
                commitments,
            } => {
                let from = self.signer(from)?;
                return self.hear(to, signing::Input::Accepted { from, commitments });
            }
            Event::Refuse { to, from, refusal } => {
                let from = self.signer(from)?;
                return self.hear(to, signing::Input::Refused { from, refusal });
            }
            Event::Sign { .. } => return self.sign(event),
            Event::Answer {
                to,
                from,
                attempt,
                answer,
            } => {
                let from = self.signer(from)?;
                let answered = signing::Input::Answered {
                    from,
                    attempt,
                    answer,
                };
                return self.hear(to, answered);
            }
            Event::Lost {
                to,
                from,
                incarnation,
                attempt,
                refusal,
            } => {
                let from = self.signer(from)?;
                let lost = signing::Input::Lost {
                    from,
                    attempt,
                    refusal,
                };
                return self.hear_in(to, incarnation, lost);
            }
            Event::Repeat {
                coordinator,
                incarnation,
            } => return self.repeat(coordinator, incarnation),
            Event::Held {
                coordinator,
                incarnation,
            } => return self.hear_in(coordinator, incarnation, signing::Input::HeldLongEnough),
            Event::RestartOperator(operator) => {
                self.note(|| format!("operator {operator} restarts"));
                let head = self.head;
                if let Some(one) = self.operators.get_mut(operator) {
                    one.restart(head);
                }
            }
            Event::RestartCoordinator => {
                self.note(|| "coordinator 0 restarts".to_owned());
                self.begin(0, true);
            }
            Event::Chat { operator, count } => self.chat(operator, count),
        }
        Ok(())
    }

    fn signer(&self, operator: usize) -> Result<SignerId, String> {
        let one = self.operators.get(operator);
        one.map(|one| one.signer)
            .ok_or_else(|| format!("no operator {operator}"))
    }

    /// A coordinator's session begins anew.
    fn begin(&mut self, coordinator: usize, has_restarted: bool) {
        let scheme = self.signatures.scheme();
        let Some(one) = self
            .coordinators
            .get_mut(coordinator)
            .filter(|one| !one.is_finished)
        else {
            return;
        };
        one.begin(scheme, has_restarted);
        let incarnation = one.incarnation;
        if let Some(begun) = self.begun.get_mut(coordinator) {
            *begun = self.now;
        }
        // A session that was given up is proposed anew with the next round.
        let pause = if has_restarted { 0 } else { REPEAT_MS };
        self.at(
            self.now.saturating_add(pause),
            Event::Repeat {
                coordinator,
                incarnation,
            },
        );
    }

    fn repeat(&mut self, coordinator: usize, incarnation: u32) -> Result<(), String> {
        let is_current = self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| one.incarnation == incarnation && !one.is_finished);
        if !is_current {
            return Ok(());
        }
        self.note(|| format!("coordinator {coordinator} proposes"));
        for to in 0..self.operators.len() {
            self.send(to, || Event::Proposal {
                to,
                from: coordinator,
            });
        }
        let again = Event::Repeat {
            coordinator,
            incarnation,
        };
        self.at(self.now.saturating_add(REPEAT_MS), again);
        self.hear(coordinator, signing::Input::Repeated)?;
        if let Some(one) = self.coordinators.get(coordinator) {
            invariants::waiting_names_everyone(&one.session).map_err(text)?;
        }
        Ok(())
    }

    fn hear_in(
        &mut self,
        coordinator: usize,
        incarnation: u32,
        input: signing::Input<C::Scheme>,
    ) -> Result<(), String> {
        match self.coordinators.get(coordinator) {
            Some(one) if one.incarnation == incarnation => self.hear(coordinator, input),
            _ => Ok(()),
        }
    }

    /// A coordinator's machine takes an input.
    fn hear(&mut self, at: usize, input: signing::Input<C::Scheme>) -> Result<(), String> {
        let Some(one) = self.coordinators.get_mut(at).filter(|one| !one.is_finished) else {
            return Ok(());
        };
        let incarnation = one.incarnation;
        let heard = self.trace.then(|| format!("{input:?}"));
        let result = one.step(input);
        invariants::attempts_are_bounded(&one.session).map_err(text)?;
        invariants::signers_are_in_one_place(&one.session).map_err(text)?;
        invariants::no_honest_signer_is_blamed(&one.session, &self.honest).map_err(text)?;
        let is_hopeless = one.session.possible() < one.session.needed();
        if let Some(heard) = heard {
            self.note(|| match &result {
                Ok(effects) => format!("coordinator {at} hears {heard}, does {effects:?}"),
                Err(reject) => format!("coordinator {at} rejects {heard}: {reject}"),
            });
        }
        for effect in result.unwrap_or_default() {
            self.effect(at, incarnation, effect)?;
        }
        if is_hopeless {
            self.begin(at, false);
        }
        Ok(())
    }

    fn effect(
        &mut self,
        coordinator: usize,
        incarnation: u32,
        effect: signing::Effect<C::Scheme>,
    ) -> Result<(), String> {
        match effect {
            signing::Effect::Request {
                attempt,
                commitments,
                to,
            } => {
                let commitments = Arc::new(commitments);
                for signer in to {
                    self.request(coordinator, incarnation, attempt, &commitments, signer);
                }
            }
            signing::Effect::Finished { signatures, .. } => {
                if !self.signatures.are_right(&signatures) {
                    return Err("finished with wrong signatures".to_owned());
                }
                self.note(|| format!("coordinator {coordinator} is finished"));
                if let Some(one) = self.coordinators.get_mut(coordinator) {
                    one.is_finished = true;
                }
            }
            signing::Effect::Blame {
                signer,
                commitments,
                answer,
                ..
            } => {
                if !self.signatures.is_evidence(signer, &commitments, &answer) {
                    return Err(format!("{signer:?} was blamed without evidence"));
                }
            }
            signing::Effect::Hold => {
                let over = Event::Held {
                    coordinator,
                    incarnation,
                };
                self.at(self.now.saturating_add(HOLD_MS), over);
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        from: usize,
        incarnation: u32,
        attempt: u32,
        commitments: &Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
        signer: SignerId,
    ) {
        let members = self.schedule.group.members();
        let Ok(to) = members.binary_search_by_key(&signer, |(signer, _)| *signer) else {
            return;
        };
        let asked_ms = self.now;
        let is_sent = self.send(to, || Event::Sign {
            to,
            from,
            incarnation,
            attempt,
            commitments: commitments.clone(),
            asked_ms,
        });
        if !is_sent {
            self.lose(from, to, incarnation, attempt, asked_ms);
        }
    }

    /// A sign request or its answer has got lost: its coordinator notices after a while.
    fn lose(&mut self, to: usize, from: usize, incarnation: u32, attempt: u32, asked_ms: u64) {
        let lost = Event::Lost {
            to,
            from,
            incarnation,
            attempt,
            refusal: None,
        };
        let time = asked_ms.saturating_add(ASK_TIMEOUT_MS).max(self.now);
        self.at(time, lost);
    }

    fn proposal(&mut self, to: usize, from: usize) {
        let (now, subject) = (self.now, self.subject.clone());
        let (Some(one), Some(coordinator)) =
            (self.operators.get_mut(to), self.coordinators.get(from))
        else {
            return;
        };
        if one.plan.conduct == Conduct::Deaf {
            return;
        }
        let key = coordinator.key;
        match one.proposed(now, key, subject) {
            Ok(effects) => self.carry_out(to, effects),
            Err(refusal) => {
                self.send(to, || Event::Refuse {
                    to: from,
                    from: to,
                    refusal: refusal.clone(),
                });
            }
        }
    }

    /// An operator does what its machine says.
    fn carry_out(&mut self, operator: usize, effects: Vec<signer::Effect>) {
        for effect in effects {
            match effect {
                signer::Effect::Verify(id, ..) => {
                    self.later(operator, 200, signer::Input::Verified(id));
                }
                signer::Effect::Store(session) => {
                    let reachable = self.neighbours(operator);
                    self.later(operator, 20, signer::Input::Stored { session, reachable });
                }
                signer::Effect::PassOn(id, peers) => self.pass_on(operator, id, peers),
                signer::Effect::Accept(id, coordinator) => self.accept(operator, id, coordinator),
                signer::Effect::Refuse(_, coordinator, refusal) => {
                    if let Some(to) = self.coordinator(&coordinator) {
                        self.send(operator, || Event::Refuse {
                            to,
                            from: operator,
                            refusal: refusal.clone(),
                        });
                    }
                }
                // Carried out where the sign request is answered; nobody here has been restored.
                signer::Effect::PromiseAndSign(_) | signer::Effect::Quarantined(_) => {}
            }
        }
    }

    fn coordinator(&self, key: &PeerKey) -> Option<usize> {
        self.coordinators.iter().position(|one| one.key == *key)
    }

    fn later(&mut self, operator: usize, within: u64, input: signer::Input) {
        let boot = self.operators.get(operator).map_or(0, |one| one.boot);
        let delay = self.schedule.rng.gen_range(0..=within);
        let event = Event::Machine {
            operator,
            boot,
            input,
        };
        self.at(self.now.saturating_add(delay), event);
    }

    fn neighbours(&mut self, operator: usize) -> BTreeSet<PeerKey> {
        let members = self.schedule.group.members();
        let keys: Vec<PeerKey> = members
            .choose_multiple(&mut self.schedule.rng, PASS_ON_TO)
            .map(|(_, key)| *key)
            .collect();
        let one = self.operators.get(operator);
        one.map(|one| one.reachable(&keys)).unwrap_or_default()
    }

    fn pass_on(&mut self, operator: usize, id: SessionId, peers: BTreeSet<PeerKey>) {
        let boot = self.operators.get(operator).map_or(0, |one| one.boot);
        for peer in peers {
            self.send(operator, || Event::Machine {
                operator,
                boot,
                input: signer::Input::Receipt(id, peer),
            });
        }
        let tick = Event::Machine {
            operator,
            boot,
            input: signer::Input::Tick,
        };
        self.at(self.now.saturating_add(signer::RECEIPT_WAIT_MS), tick);
    }

    fn accept(&mut self, operator: usize, id: SessionId, coordinator: PeerKey) {
        let now = self.now;
        let (Some(to), Some(one)) = (
            self.coordinator(&coordinator),
            self.operators.get_mut(operator),
        ) else {
            return;
        };
        let commitments = one.commit(now, id, &mut self.signatures);
        self.send(operator, || Event::Accept {
            to,
            from: operator,
            commitments: commitments.clone(),
        });
    }

    fn chat(&mut self, operator: usize, count: u32) {
        if count >= MAX_CHATS {
            return;
        }
        self.accept_with_throwaway(operator, 0);
        let again = Event::Chat {
            operator,
            count: count.saturating_add(1),
        };
        self.at(self.now.saturating_add(CHAT_MS), again);
    }

    fn accept_with_throwaway(&mut self, operator: usize, to: usize) {
        let Some(one) = self.operators.get_mut(operator) else {
            return;
        };
        let commitments = one.throwaway(&mut self.signatures);
        self.send(operator, || Event::Accept {
            to,
            from: operator,
            commitments: commitments.clone(),
        });
    }

    fn sign(&mut self, event: Event<C>) -> Result<(), String> {
        let Event::Sign {
            to: operator,
            from: coordinator,
            incarnation,
            attempt,
            commitments,
            asked_ms,
        } = event
        else {
            return Ok(());
        };
        let (now, dice) = (self.now, self.schedule.rng.gen_range(0..100));
        let (Some(one), Some(key)) = (
            self.operators.get_mut(operator),
            self.coordinators.get(coordinator).map(|one| one.key),
        ) else {
            return Ok(());
        };
        let (is_honest, signer) = (one.plan.conduct.is_honest(), one.signer);
        let request = Request {
            session: self.subject.session(&key),
            attempt,
            commitments: &commitments,
        };
        let from = (coordinator, key);
        let answered = one.sign(now, from, &request, &mut self.signatures, dice);
        let is_renewer = one.plan.conduct == Conduct::Renewer;
        let is_sent = match answered {
            None => false,
            Some(Ok((answer, used))) => {
                if is_honest {
                    let package = self.signatures.package(&answer);
                    self.nonces
                        .served(signer, C::name(&used), package)
                        .map_err(text)?;
                }
                self.send(operator, || Event::Answer {
                    to: coordinator,
                    from: operator,
                    attempt,
                    answer: answer.clone(),
                })
            }
            Some(Err(refusal)) => self.send(operator, || Event::Lost {
                to: coordinator,
                from: operator,
                incarnation,
                attempt,
                refusal: Some(refusal.clone()),
            }),
        };
        if !is_sent {
            self.lose(coordinator, operator, incarnation, attempt, asked_ms);
        }
        if is_renewer {
            self.accept_with_throwaway(operator, coordinator);
        }
        Ok(())
    }
}

fn text(violation: Violation) -> String {
    violation.to_string()
}

/// What all coordinators have signed, and the treasury that it spends.
fn batch() -> (Subject, Treasury) {
    let outpoint = OutPoint::new(Txid::from_byte_array([4; 32]), 0);
    let commitment = Commitment {
        sequence: SequenceNumber(4),
        supply: Amount::ZERO,
        digest: [0; 32],
    };
    let head = Treasury {
        outpoint,
        value: Amount::from_sat(100_000),
        commitment,
    };
    let candidate = Candidate {
        vault: VaultId([0; 32]),
        sequence: SequenceNumber(5),
        parent: outpoint,
        body: BodyHash([1; 32]),
        top_ups: Vec::new(),
        fee: Amount::from_sat(1_000),
        txid: Txid::from_byte_array([5; 32]),
    };
    (Subject::Batch(candidate), head)
}
