//! The run of one schedule: events in the order of their time, each followed by the invariants.

mod coordinators;
mod operators;
mod pooled;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use protocol::{
    identity::PeerKey,
    invariants::{self, Violation},
    message::Subject,
    signing,
    transaction::Treasury,
};
use rand::Rng as _;
use threshold::SignerId;

use crate::{
    batch::batch,
    coordinator::Coordinator,
    event::Event,
    fault::Fault,
    operator::Operator,
    schedule::{Conduct, Group, Schedule},
    signatures::Signatures,
};

/// As in the node: between two proposals, and until a question without an answer is given up.
const REPEAT_MS: u64 = 5_000;
const ASK_TIMEOUT_MS: u64 = 30_000;
const HOLD_MS: u64 = 500;
const MAX_WAIT_MS: u64 = 2_000;
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
    /// Whether the first coordinator had its signatures of an attempt with nonces from the pool.
    pub pooled: bool,
    /// When all coordinators had the signatures, or the run was given up, in virtual ms.
    pub at_ms: u64,
    /// Steps of all machines.
    pub steps: u64,
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
            .map(|i| {
                let key = PeerKey([0xC0 | i; 32]);
                Coordinator::new(key, signatures.scheme(), needed, schedule.standing())
            })
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

    /// The same world with a fault in all machines of a kind.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        for coordinator in &mut self.coordinators {
            coordinator.fault = Some(fault);
        }
        for operator in &mut self.operators {
            operator.fault = Some(fault);
        }
        self
    }

    fn plan(&mut self) {
        for coordinator in 0..self.coordinators.len() {
            self.fetch(coordinator);
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
        for at in self.schedule.probes.clone() {
            self.at(at, Event::Probe);
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
            pooled: self.coordinators.first().is_some_and(|one| one.is_pooled),
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
            Event::Proposal { to, from } => return self.proposal(to, from),
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
                    return self.carry_out(operator, effects);
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
            Event::SignPooled { to, request } => return self.sign_pooled(to, &request),
            Event::Probe => self.probe(),
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
            Event::Waited {
                coordinator,
                incarnation,
            } => return self.hear_in(coordinator, incarnation, signing::Input::WaitedLongEnough),
            Event::RestartOperator(operator) => {
                self.note(|| format!("operator {operator} restarts"));
                let (now, head) = (self.now, self.head);
                if let Some(one) = self.operators.get_mut(operator) {
                    one.restart(now, head);
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
}

fn text(violation: Violation) -> String {
    violation.to_string()
}
