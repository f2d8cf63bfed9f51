//! The run of one schedule: events in the order of their time, and the invariants after what they touch.

mod coordinators;
mod form;
mod lies;
mod message;
mod miners;
mod operators;
mod sessions;
mod users;
mod verdicts;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{Ledger, Operation, OperationId};
use protocol::{
    api::BatchStatus,
    batch::{Body, BodyHash, Candidate},
    identity::PeerKey,
    invariants::Nonces,
    message::{Refusal, SessionId},
    signer,
    signing::Session,
    transaction::BatchTransaction,
};
use rand::Rng as _;
use threshold::sign::PackageHash;

use message::Message;

use super::{
    books::Books,
    chain::{Chain, output},
    fault::Fault,
    invariants::Given,
    place::{Place, USERS},
    schedule::{Act, Node, Schedule, Trouble},
    totals::Counts,
    view::{Batch, View},
};
use crate::{
    Failure,
    operator::Operator,
    schedule::{Conduct, Plan},
    signatures::Signatures,
};

/// How all proofs begin. What follows differs from body to body: proofs are random, even of the same operations.
const PROOF: &[u8] = b"proven";

/// Whether a proof verifies.
pub fn is_proof(proof: &[u8]) -> bool {
    proof.strip_prefix(PROOF).map(<[u8]>::len) == Some(size_of::<u64>())
}
/// Between two rounds of a coordinator's work.
const ROUND_MS: u64 = 3_000;
/// Between two blocks, at most; half of that on average.
const BLOCK_MS: u64 = 12_000;
/// How late a node hears of a block, at most.
const FOLLOW_MS: u64 = 2_000;
/// Until a question without an answer is given up.
const ASK_TIMEOUT_MS: u64 = 8_000;
/// How long a process is down, at most.
const DOWN_MS: u64 = 12_000;
/// Blocks that a run that can finish is given after it is calm. Nothing comes near it.
const PATIENCE: u32 = 80;
/// Coins of a user to deposit from.
const FUNDS: u8 = 8;
/// Time of the first block.
const EPOCH_S: u64 = 1_700_000_000;

enum Event<C: Signatures> {
    Deliver {
        to: Node,
        from: Node,
        message: Message<C>,
    },
    Machine {
        operator: usize,
        boot: u32,
        input: signer::Input,
    },
    Lost {
        coordinator: usize,
        operator: usize,
        session: SessionId,
        attempt: u32,
    },
    Held(usize, SessionId),
    Waited(usize, SessionId),
    Round(usize),
    Follow(Node),
    Up(Node),
    Block,
    Act(usize, Act),
    Trouble(Trouble),
}

/// A request in a coordinator's queue.
struct Asked {
    operation: Operation,
    in_batch: Option<u64>,
    is_accepted: bool,
    kept_by: BTreeSet<Node>,
}

/// A transaction for a batch.
struct Made {
    candidate: Candidate,
    built: Arc<BatchTransaction>,
    /// Height of the coordinator's chain when it was signed.
    signed: Option<u32>,
}

/// A batch in a coordinator's store.
struct Record {
    status: BatchStatus,
    body: Arc<Body>,
    made: Vec<Made>,
    /// Height of its block, as it is written.
    height: Option<u32>,
    /// Height of the chain when it got to its place.
    since: u32,
    /// Height since which it can't get into a block by itself, and whether that is for its fee only.
    stuck: Option<(u32, bool)>,
    /// Who has refused a higher fee for it because of a deposit (S2).
    refused_by: BTreeSet<usize>,
}

struct Running<C: Signatures> {
    id: SessionId,
    session: Session<C::Scheme>,
}

struct Coordinator<C: Signatures> {
    key: PeerKey,
    is_honest: bool,
    is_up: bool,
    view: View,
    /// By account and nonce.
    requests: BTreeMap<(u32, u64), Asked>,
    records: BTreeMap<u64, Record>,
    /// Lost by a crash.
    running: Option<Running<C>>,
    /// Whom it still has to ask for what it has lost with its disk.
    to_ask: BTreeSet<Node>,
}

struct Seat<C: Signatures> {
    signing: Operator<C>,
    is_up: bool,
    view: View,
    /// Copies of requests, on disk.
    requests: BTreeMap<(u32, u64), Operation>,
    /// Batches that sessions are about; lost by a crash.
    proposed: BTreeMap<SessionId, Batch>,
    /// Sessions whose batch it has found right since it started.
    verified: BTreeSet<SessionId>,
    /// What it has given shares for, as seen from outside.
    given: Given,
    /// Packages that it has answered: the same request gets the same answer.
    answered: BTreeSet<PackageHash>,
}

struct Wallet {
    funds: Vec<OutPoint>,
    signed: Vec<Operation>,
}

/// The bridge, its users, and Bitcoin.
pub struct World<C: Signatures> {
    schedule: Schedule,
    place: &'static Place,
    empty: Ledger,
    fault: Option<Fault>,
    chain: Chain,
    books: Books,
    /// A view of the chain that has every batch.
    truth: View,
    /// Every transaction that a coordinator has built, and the batch that it carries.
    registry: HashMap<Txid, (Batch, Arc<BatchTransaction>)>,
    /// Payments to deposit addresses.
    payments: BTreeSet<OutPoint>,
    signatures: BTreeMap<SessionId, C>,
    nonces: Nonces<u64>,
    operators: Vec<Seat<C>>,
    coordinators: Vec<Coordinator<C>>,
    wallets: Vec<Wallet>,
    accepted: BTreeMap<OperationId, Operation>,
    /// Which operations each batch carries.
    carried: HashMap<BodyHash, Arc<Vec<OperationId>>>,
    /// The batches for which the invariants were asked last.
    looked_at: Vec<Txid>,
    /// Requests that were checked, and what came of it.
    checked: HashMap<u64, bool>,
    /// Verdicts, by all that they follow from.
    judged: HashMap<Vec<u8>, Result<(), Refusal>>,
    refunds: BTreeSet<OutPoint>,
    events: BTreeMap<(u64, u64), Event<C>>,
    sent: u64,
    now: u64,
    /// The node that dies before its next send.
    dying: Option<Node>,
    calm_height: Option<u32>,
    is_over: bool,
    counts: Counts,
    trace: bool,
}

impl<C: Signatures> World<C> {
    /// The world of a schedule, before anything has happened. `trace` prints what does.
    ///
    /// # Errors
    /// A group without keys.
    pub fn new(
        schedule: Schedule,
        empty: Ledger,
        fault: Option<Fault>,
        trace: bool,
    ) -> Result<Self, Failure> {
        let failed = |error: crate::DealError| Failure {
            seed: schedule.seed,
            at_ms: 0,
            what: error.to_string(),
        };
        let place = Place::of(&schedule.group).map_err(failed)?;
        let genesis = place.genesis(&empty);
        let (wallets, coins) = funded(place);
        let guarded: HashSet<_> = place
            .by_script
            .keys()
            .cloned()
            .chain([place.vault.script_pubkey().clone()])
            .collect();
        let chain = Chain::new(coins, guarded);
        let view = || {
            let mut view = View::new(&chain, genesis);
            view.is_fearless = fault == Some(Fault::IgnoresAlarms);
            view
        };
        let operators = schedule
            .group
            .members()
            .iter()
            .zip(&schedule.operators)
            .map(|((signer, key), conduct)| {
                let plan = Plan {
                    conduct: *conduct,
                    slow_ms: 0,
                    restarts: Vec::new(),
                    is_notorious: false,
                };
                let needed = usize::from(schedule.group.threshold);
                let mut signing = Operator::new(*signer, *key, plan, needed, genesis);
                signing.fault =
                    (fault == Some(Fault::KeepsNonces)).then_some(crate::Fault::WakesWithOldNonces);
                signing.state.replacement_delay = place.vault.parameters().replacement_delay.into();
                let mut view = view();
                view.is_stubborn = fault == Some(Fault::OperatorsMissReorgs);
                Seat {
                    signing,
                    is_up: true,
                    view,
                    requests: BTreeMap::new(),
                    proposed: BTreeMap::new(),
                    verified: BTreeSet::new(),
                    given: Given::default(),
                    answered: BTreeSet::new(),
                }
            })
            .collect();
        let coordinators = place
            .coordinators
            .iter()
            .zip(&schedule.coordinators)
            .map(|(key, is_honest)| Coordinator {
                key: *key,
                is_honest: *is_honest,
                is_up: true,
                view: view(),
                requests: BTreeMap::new(),
                records: BTreeMap::new(),
                running: None,
                to_ask: BTreeSet::new(),
            })
            .collect();
        let mut world = Self {
            truth: View::new(&chain, genesis),
            books: Books::new(place.vault.id(), empty.clone()),
            schedule,
            place,
            empty,
            fault,
            chain,
            registry: HashMap::new(),
            payments: BTreeSet::new(),
            signatures: BTreeMap::new(),
            nonces: Nonces::default(),
            operators,
            coordinators,
            wallets,
            accepted: BTreeMap::new(),
            carried: HashMap::new(),
            looked_at: Vec::new(),
            checked: HashMap::new(),
            judged: HashMap::new(),
            refunds: BTreeSet::new(),
            events: BTreeMap::new(),
            sent: 0,
            now: 0,
            dying: None,
            calm_height: None,
            is_over: false,
            counts: Counts::default(),
            trace,
        };
        world.plan();
        Ok(world)
    }

    fn plan(&mut self) {
        for coordinator in 0..self.coordinators.len() {
            let at = self.schedule.rng.gen_range(0..ROUND_MS);
            self.at(at, Event::Round(coordinator));
        }
        for (at, user, act) in self.schedule.acts.clone() {
            self.at(at, Event::Act(user, act));
        }
        for (at, trouble) in self.schedule.troubles.clone() {
            self.at(at, Event::Trouble(trouble));
        }
        self.at(1, Event::Block);
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
                eprintln!(
                    "{:>9} ms  height {:>3}  {what}",
                    self.now,
                    self.chain.height()
                );
            }
        }
    }

    fn is_calm(&self) -> bool {
        self.now >= self.schedule.calm_ms
    }

    fn nodes(&self) -> Vec<Node> {
        let operators = (0..self.operators.len()).map(Node::Operator);
        let coordinators = (0..self.coordinators.len()).map(Node::Coordinator);
        operators.chain(coordinators).collect()
    }

    fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Operator(i) => self.operators.get(i).is_some_and(|one| one.is_up),
            Node::Coordinator(i) => self.coordinators.get(i).is_some_and(|one| one.is_up),
        }
    }

    /// Sends a message: late, twice or not at all. What the sender knows is on its disk by now; it may die before this
    /// leaves. Says whether it will arrive.
    fn send(&mut self, from: Node, to: Node, message: Message<C>) -> bool {
        if self.dying == Some(from) {
            return false;
        }
        let rng = &mut self.schedule.rng;
        let weather = self.schedule.weather;
        let is_calm = self.now >= self.schedule.calm_ms;
        if !is_calm && self.schedule.deaths > 0 && rng.gen_range(0..1_000) < self.schedule.deaths {
            self.dying = Some(from);
            return false;
        }
        if !is_calm && weather.lost > 0 && rng.gen_range(0..100) < weather.lost {
            return false;
        }
        let copies = 1 + u32::from(weather.doubled > 0 && rng.gen_range(0..100) < weather.doubled);
        for _ in 0..copies {
            let rng = &mut self.schedule.rng;
            let mut delay = rng.gen_range(0..=weather.delay_ms);
            if weather.stragglers > 0 && rng.gen_range(0..100) < weather.stragglers {
                delay = delay.saturating_mul(10);
            }
            let event = Event::Deliver {
                to,
                from,
                message: message.clone(),
            };
            self.at(self.now.saturating_add(delay), event);
        }
        true
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(mut self) -> Result<Counts, Failure> {
        while let Some(((time, _), event)) = self.events.pop_first() {
            self.now = time;
            self.counts.steps = self.counts.steps.saturating_add(1);
            self.handle(event).map_err(|what| self.failure(what))?;
            if let Some(node) = self.dying.take() {
                self.crash(node);
            }
            if self.is_over {
                break;
            }
        }
        self.counts.at_ms = self.now;
        self.count_up();
        Ok(self.counts)
    }

    fn failure(&self, what: String) -> Failure {
        Failure {
            seed: self.schedule.seed,
            at_ms: self.now,
            what: format!("{}: {what}", self.schedule.group),
        }
    }

    fn handle(&mut self, event: Event<C>) -> Result<(), String> {
        match event {
            Event::Deliver { to, from, message } => return self.deliver(to, from, message),
            Event::Machine {
                operator,
                boot,
                input,
            } => return self.machine(operator, boot, input),
            Event::Lost {
                coordinator,
                operator,
                session,
                attempt,
            } => return self.lost(coordinator, operator, session, attempt, None),
            Event::Held(coordinator, session) => return self.held(coordinator, session),
            Event::Waited(coordinator, session) => return self.waited(coordinator, session),
            Event::Round(coordinator) => return self.round(coordinator),
            Event::Follow(node) => return self.follow(node),
            Event::Up(node) => return self.up(node),
            Event::Block => return self.block(),
            Event::Act(user, act) => self.act(user, act),
            Event::Trouble(trouble) => return self.trouble(trouble),
        }
        Ok(())
    }

    fn deliver(&mut self, to: Node, from: Node, message: Message<C>) -> Result<(), String> {
        if !self.is_up(to) {
            // A question to a dead node fails, and its asker notices.
            if let (
                Node::Operator(operator),
                Node::Coordinator(coordinator),
                Message::Sign {
                    session, attempt, ..
                },
            ) = (to, from, &message)
            {
                self.lose(coordinator, operator, *session, *attempt);
            }
            return Ok(());
        }
        match (to, from, message) {
            (_, _, Message::AskBatch(txid)) => self.give_batch(to, from, txid),
            (_, _, Message::Batch(candidate, body)) => {
                return self.take_batch(to, &candidate, &body);
            }
            (_, _, Message::Copy(operation)) => self.keep_copy(to, from, operation),
            (_, _, Message::AskRequests) => self.give_requests(to, from),
            (Node::Operator(i), Node::Coordinator(j), Message::Propose(candidate, body)) => {
                return self.proposal(i, j, candidate, body);
            }
            (
                Node::Operator(i),
                Node::Coordinator(j),
                Message::Sign {
                    session,
                    attempt,
                    commitments,
                },
            ) => {
                return self.sign(i, j, session, attempt, &commitments);
            }
            (Node::Operator(i), Node::Operator(j), Message::PassOn(id, candidate, body)) => {
                self.take_passed_on(i, j, id, &candidate, &body);
            }
            (Node::Operator(i), Node::Operator(j), Message::Receipt(id)) => {
                return self.take_receipt(i, j, id);
            }
            (Node::Operator(_), _, Message::Signed(txid)) => {
                self.submit(txid);
            }
            (Node::Coordinator(j), Node::Operator(i), Message::Accept(id, commitments)) => {
                return self.accepted(j, i, id, commitments);
            }
            (Node::Coordinator(j), Node::Operator(i), Message::Refuse(id, refusal)) => {
                return self.refused(j, i, id, refusal);
            }
            (Node::Coordinator(j), Node::Operator(i), Message::Answer(id, attempt, answer)) => {
                return self.answered(j, i, id, attempt, answer);
            }
            (Node::Coordinator(j), Node::Operator(i), Message::Declined(id, attempt, refusal)) => {
                return self.lost(j, i, id, attempt, Some(refusal));
            }
            (Node::Coordinator(j), _, Message::Kept(sender, nonce)) => {
                self.copy_is_kept(j, from, (sender, nonce));
            }
            (Node::Coordinator(j), _, Message::Requests(list)) => self.take_requests(j, from, list),
            _ => {}
        }
        Ok(())
    }
}

/// Every user's wallet, and the coins in it.
fn funded(place: &Place) -> (Vec<Wallet>, Vec<(OutPoint, bitcoin::TxOut)>) {
    let mut coins = vec![(
        place.vault.genesis_output().outpoint,
        bitcoin::TxOut {
            value: place.vault.genesis_output().amount,
            script_pubkey: place.vault.script_pubkey().clone(),
        },
    )];
    let mut wallets = Vec::new();
    for (number, user) in (0_u8..).zip(&place.users).take(USERS) {
        let funds: Vec<OutPoint> = (0..FUNDS)
            .map(|i| OutPoint::new(Txid::from_byte_array([number * FUNDS + i + 1; 32]), 0))
            .collect();
        let value = Amount::from_sat(200_000).to_sat();
        coins.extend(
            funds
                .iter()
                .map(|outpoint| (*outpoint, output(value, user.script.clone()))),
        );
        wallets.push(Wallet {
            funds,
            signed: Vec::new(),
        });
    }
    (wallets, coins)
}

fn text(violation: protocol::invariants::Violation) -> String {
    violation.to_string()
}

fn is_honest(conduct: Conduct) -> bool {
    conduct.is_honest()
}
