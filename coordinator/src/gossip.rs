//! Stage 5: proposes to the operators and runs the signing session: round 1 comes with their accepts,
//! round 2 with their answers to the sign requests. `protocol::signing` decides; this file sends.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bitcoin::{Transaction, secp256k1::schnorr};
use node::cost::{Cost, Meter, Stopwatch};
use p2p::Network;
use protocol::{
    batch::BodyHash,
    blame::{Evidence, Statement},
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Refusal, Rule, SessionId, Subject, decode, encode},
    reputation::Standing,
    roster::Roster,
    signing::{Effect, Frost, Input, Session, Waiting},
};
use storage::Store;
use threshold::{
    GroupInfo, SignerId,
    sign::{Message, output_key, verify},
};
use tokio::sync::mpsc;

use crate::{
    blame,
    pool::{self, NoncePool},
};

/// Inputs that wait for the session to take them.
const MAX_INPUTS: usize = 1_024;
/// How often an unfinished proposal is repeated. Operators that restarted, or whose nonces expired, accept
/// again.
const REPEAT: Duration = Duration::from_secs(5);
/// How long an attempt is held back when it would need signers that have done badly before.
const HOLD: Duration = Duration::from_millis(500);
/// How long a second attempt is held back, at least and at most, while nothing is wrong with the first. In between:
/// as long as the first has taken by then.
const WAIT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
/// Proposals after which a session begins anew that has blamed too many to end: they may have been mended.
const PARDON_AFTER: u32 = 12;

/// From shares to signatures: everything that a session does with the answers to its sign requests.
const AGGREGATE: Meter = Meter {
    seconds: "drawbridge_aggregate_seconds",
    cpu_seconds: "drawbridge_aggregate_cpu_seconds",
    items: "drawbridge_aggregated_inputs",
};

/// What the network tells a session.
#[derive(Clone, Debug)]
pub enum Heard {
    /// An input for the machine.
    Input(Input),
    /// Somebody pulled the body.
    Pulled(BodyHash),
    /// Somebody has a signed transaction.
    Signed(Transaction),
}

/// Where the network's events find the session that runs.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<Option<Open>>>);

/// The session that runs, the epoch of the shares that sign it, and where its inputs go.
type Open = (SessionId, u32, mpsc::Sender<Heard>);

impl Sessions {
    fn open(&self, id: SessionId, epoch: u32) -> mpsc::Receiver<Heard> {
        let (sender, receiver) = mpsc::channel(MAX_INPUTS);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, epoch, sender));
        receiver
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn sender(&self, id: Option<&SessionId>) -> Option<mpsc::Sender<Heard>> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()
            .filter(|(open, ..)| id.is_none_or(|id| id == open))
            .map(|(.., sender)| sender.clone())
    }

    /// The epoch of the shares that sign a session, if it is open.
    pub fn epoch(&self, id: &SessionId) -> Option<u32> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()
            .filter(|(open, ..)| id == open)
            .map(|(_, epoch, _)| *epoch)
    }

    /// Hands an input to a session. Gives whether that session is open and had room.
    pub fn tell(&self, id: &SessionId, input: Input) -> bool {
        self.sender(Some(id))
            .is_some_and(|sender| sender.try_send(Heard::Input(input)).is_ok())
    }

    /// Hands a signed transaction from elsewhere to the session that runs, which knows whether it is its own.
    pub fn signed(&self, transaction: &Transaction) {
        if let Some(sender) = self.sender(None) {
            // Without room it comes again: whoever has it hands it on until it is confirmed.
            let _ = sender.try_send(Heard::Signed(transaction.clone()));
        }
    }

    /// Notes that a body was pulled.
    pub fn pulled(&self, body: BodyHash) {
        if let Some(sender) = self.sender(None) {
            // Only a time measurement is lost when there is no room.
            let _ = sender.try_send(Heard::Pulled(body));
        }
    }
}

/// When the parts of a session were reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Proposal to the first pull of the body.
    pub gossip: Option<u64>,
    /// First pull to the first accept.
    pub verify: Option<u64>,
    /// First accept to the first sign request.
    pub round1: Option<u64>,
    /// Last sign request to the last share.
    pub round2: Option<u64>,
    /// Last share to the aggregated, verified signatures.
    pub aggregate: Option<u64>,
    /// First proposal to the aggregated, verified signatures.
    pub signing: Option<u64>,
}

/// How a session ended.
#[derive(Debug)]
pub enum Outcome {
    /// Signed.
    Signed {
        /// One signature an input.
        signatures: Vec<schnorr::Signature>,
        /// Who signed.
        signers: Vec<PeerKey>,
        /// Attempts started.
        attempts: u32,
    },
    /// So many operators refuse that there is no use in going on.
    Refused,
}

/// A session's end with all that is worth keeping of it.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Who was blamed for a bad share.
    pub blamed: Vec<PeerKey>,
    /// Who was blamed, and whose share came too late, for [`Standing::learn`].
    pub conduct: [BTreeSet<SignerId>; 2],
    /// Who refused and why.
    pub refusals: Vec<(PeerKey, Refusal)>,
    /// When its parts were reached.
    pub times: Times,
}

/// Who is asked, about what.
pub struct Task {
    /// What is signed.
    pub subject: Subject,
    /// Its messages, one an input.
    pub messages: Vec<Message>,
    /// The group that signs.
    pub group: GroupInfo,
    /// Signers needed.
    pub needed: usize,
    /// The operators.
    pub roster: Arc<Roster>,
    /// How the operators have done before.
    pub standing: Standing,
    /// This coordinator.
    pub me: PeerKey,
    /// Where evidence is kept.
    pub store: Store,
    /// What operators have handed out ahead of time, if that may be used.
    pub pool: Option<NoncePool>,
}

impl Task {
    fn session(&self, standing: &Standing) -> Session {
        let scheme = Frost::new(self.group.clone(), self.messages.clone());
        Session::new(scheme, self.needed, standing.clone())
    }

    /// What the session hears first, if operators have handed anything out.
    fn offer(&self) -> Option<Input> {
        let pool = self.pool.as_ref()?;
        let entries = pool.offer(self.group.epoch(), self.messages.len());
        (!entries.is_empty()).then_some(Input::Pooled(entries))
    }
}

/// Runs a session until it ends, or `abandon` says that there is no more use in it, or `give_up` says so of who refuses
/// and what else it waits for. `None` when it was abandoned.
pub async fn run(
    network: &Network,
    sessions: &Sessions,
    task: Task,
    mut abandon: impl FnMut() -> bool,
    mut give_up: impl FnMut(&[(PeerKey, Refusal)], &Waiting) -> bool,
) -> Option<Report> {
    let id = task.subject.session(&task.me);
    let epoch = task.group.epoch();
    let mut heard = sessions.open(id, epoch);
    let mut session = task.session(&task.standing);
    let mut blames = Blames::default();
    let mut times = Clock::default();
    let mut repeat = tokio::time::interval(REPEAT);
    let mut round = 0_u32;
    let mut aggregating = Cost::default();
    // When a sign request last went out.
    let mut asked = Instant::now();
    let mut first = task.offer().map(Heard::Input);
    let outcome = loop {
        let next = tokio::select! {
            biased;
            first = async { first.take() }, if first.is_some() => first,
            next = heard.recv() => next,
            _ = repeat.tick() => {
                if abandon() {
                    break None;
                }
                propose(network, &task.subject, round).await;
                round = round.saturating_add(1);
                if round.is_multiple_of(PARDON_AFTER) && blames.too_many(&session) {
                    tracing::warn!("too many were blamed; the session begins anew");
                    session = task.session(&blames.standing(&task.standing));
                }
                Some(Heard::Input(Input::Repeated))
            }
        };
        let input = match next {
            None => break None,
            Some(Heard::Pulled(body)) => {
                times.pulled(&task.subject, body);
                continue;
            }
            Some(Heard::Signed(transaction)) => match elsewhere(&task, &transaction) {
                Some(signatures) => {
                    tracing::info!(stage = "aggregate", "signed elsewhere");
                    break Some(Outcome::Signed {
                        signatures,
                        signers: Vec::new(),
                        attempts: 0,
                    });
                }
                None => continue,
            },
            Some(Heard::Input(input)) => input,
        };
        times.heard(&input);
        let before = Instant::now();
        let (watch, has_shares) = (
            Stopwatch::process(),
            matches!(input, Input::Answered { .. }),
        );
        // Shares of many inputs take seconds to check.
        let stepped = tokio::task::block_in_place(|| session.step(input));
        if has_shares {
            aggregating += watch.cost();
        }
        let effects = match stepped {
            Ok(effects) => effects,
            Err(reject) => {
                tracing::debug!(%reject, "signing input refused");
                continue;
            }
        };
        let mut finished = None;
        for effect in effects {
            match effect {
                Effect::Request {
                    attempt,
                    commitments,
                    to,
                } => {
                    times.requested();
                    asked = Instant::now();
                    tracing::info!(
                        stage = "round1",
                        attempt,
                        signers = to.len(),
                        "shares asked for"
                    );
                    let ask = Ask::Sign {
                        session: id,
                        epoch,
                        attempt,
                        commitments,
                    };
                    request(network, sessions, &task, (id, attempt), &ask, to);
                }
                Effect::Pooled {
                    attempt,
                    commitments,
                } => {
                    times.requested();
                    asked = Instant::now();
                    let to: BTreeSet<SignerId> = commitments.keys().copied().collect();
                    tracing::info!(
                        stage = "gossip",
                        attempt,
                        signers = to.len(),
                        "proposed, and shares asked for, with nonces from the pool"
                    );
                    if let Some(pool) = &task.pool {
                        pool.used(&commitments);
                    }
                    let ask = Ask::SignPooled {
                        subject: task.subject.clone(),
                        epoch,
                        attempt,
                        commitments,
                    };
                    request(network, sessions, &task, (id, attempt), &ask, to);
                }
                Effect::Blame {
                    signer,
                    attempt,
                    commitments,
                    answer,
                } => {
                    tracing::warn!(%signer, attempt, "bad share: signer blamed");
                    let evidence = Evidence {
                        group: task.group.clone(),
                        messages: task.messages.clone(),
                        commitments,
                        statement: answer.signed().clone(),
                    };
                    // On disk before anybody is asked without the blamed signer: a coordinator that dies in
                    // between has not forgotten why.
                    if blames.0.insert(signer) {
                        blame::keep(&task.store, &task.roster, &task.subject, evidence).await;
                    }
                }
                Effect::Hold => later(sessions, id, HOLD, Input::HeldLongEnough),
                Effect::Wait => {
                    let pause = asked.elapsed().clamp(*WAIT.start(), *WAIT.end());
                    later(sessions, id, pause, Input::WaitedLongEnough);
                }
                Effect::Finished {
                    signatures,
                    signers,
                    attempts,
                    pooled,
                } => {
                    times.finished(before);
                    if pooled {
                        tracing::info!(stage = "aggregate", "signed with nonces from the pool");
                        metrics::counter!(pool::SIGNED_TOTAL).increment(1);
                    }
                    aggregating.record(&AGGREGATE, signatures.len());
                    let signers = signers
                        .into_iter()
                        .filter_map(|signer| peer(&task.roster, signer))
                        .collect();
                    finished = Some(Outcome::Signed {
                        signatures,
                        signers,
                        attempts,
                    });
                }
            }
        }
        if finished.is_some() {
            break finished;
        }
        if let Some(waiting) = session.waiting()
            && give_up(&refusals(&session, &task.roster), &waiting)
        {
            break Some(Outcome::Refused);
        }
    };
    sessions.close();
    let outcome = outcome?;
    Some(Report {
        outcome,
        blamed: blames
            .0
            .iter()
            .filter_map(|signer| peer(&task.roster, *signer))
            .collect(),
        conduct: [blames.0, session.silent()],
        refusals: refusals(&session, &task.roster),
        times: times.times,
    })
}

/// The signatures of a transaction that somebody else has completed, if it is what this session signs and they are right.
fn elsewhere(task: &Task, transaction: &Transaction) -> Option<Vec<schnorr::Signature>> {
    let Subject::Batch(candidate) = &task.subject else {
        return None;
    };
    let inputs = &transaction.input;
    if transaction.compute_txid() != candidate.txid || inputs.len() != task.messages.len() {
        return None;
    }
    let signatures: Vec<_> = inputs
        .iter()
        .map(|input| schnorr::Signature::from_slice(input.witness.nth(0)?).ok())
        .collect::<Option<_>>()?;
    let group = task.group.group_key();
    let right = |(message, signature): (&Message, &schnorr::Signature)| {
        verify(
            &output_key(&group, &message.tweak),
            &message.digest,
            signature,
        )
    };
    let mut pairs = task.messages.iter().zip(&signatures);
    tokio::task::block_in_place(|| pairs.all(right)).then_some(signatures)
}

/// Who was blamed, in this session and those that it began anew after.
#[derive(Default)]
struct Blames(BTreeSet<SignerId>);

impl Blames {
    fn too_many(&self, session: &Session) -> bool {
        let left = session
            .signers()
            .len()
            .saturating_sub(session.blamed().len());
        left < session.needed()
    }

    fn standing(&self, before: &Standing) -> Standing {
        let mut standing = before.clone();
        standing.learn(&self.0, &BTreeSet::new());
        standing
    }
}

/// What a session waits for, in words.
pub fn describe(waiting: &Waiting, roster: &Roster) -> String {
    waiting.describe(|signer| match roster.operator(*signer) {
        Some(member) => member.name.clone(),
        None => signer.to_string(),
    })
}

fn refusals(session: &Session, roster: &Roster) -> Vec<(PeerKey, Refusal)> {
    let refused = session.refused().iter();
    refused
        .filter_map(|(signer, refusal)| Some((peer(roster, *signer)?, refusal.clone())))
        .collect()
}

fn peer(roster: &Roster, signer: SignerId) -> Option<PeerKey> {
    roster.operator(signer).map(|member| member.key)
}

async fn propose(network: &Network, subject: &Subject, round: u32) {
    let message = Gossip::Proposal {
        subject: subject.clone(),
        round,
    };
    match network.publish(encode(&message)).await {
        Ok(()) => tracing::info!(stage = "gossip", round, "proposed"),
        Err(error) => tracing::warn!(%error, "the proposal was not sent; it will be repeated"),
    }
}

/// Has the session hear something after a while.
fn later(sessions: &Sessions, id: SessionId, pause: Duration, input: Input) {
    let sessions = sessions.clone();
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        sessions.tell(&id, input);
    });
}

/// Sends the sign request of an attempt to these of its signers; answers come back as inputs.
fn request(
    network: &Network,
    sessions: &Sessions,
    task: &Task,
    (session, attempt): (SessionId, u32),
    ask: &Ask,
    to: BTreeSet<SignerId>,
) {
    let is_pooled = matches!(ask, Ask::SignPooled { .. });
    let pool = task.pool.clone().filter(|_| is_pooled);
    let ask = encode(ask);
    for from in to {
        let Some(peer) = peer(&task.roster, from) else {
            continue;
        };
        let (network, sessions, ask) = (network.clone(), sessions.clone(), ask.clone());
        let pool = pool.clone();
        tokio::spawn(async move {
            let lost = |refusal| Input::Lost {
                from,
                attempt,
                refusal,
            };
            let input = match network.ask(peer, ask).await {
                Ok(bytes) => match decode::<Answer>(&bytes) {
                    Ok(Answer::Shares(signed)) => {
                        match Statement::verify(signed, &peer, &session, attempt) {
                            Ok(statement) => Input::Answered {
                                from,
                                attempt,
                                answer: Arc::new(statement),
                            },
                            Err(error) => {
                                tracing::warn!(%from, %error, "shares that nobody stands for");
                                lost(None)
                            }
                        }
                    }
                    Ok(Answer::Refused(refusal)) => {
                        tracing::info!(%from, %refusal, "sign request refused");
                        // Under another rule it refuses the batch, not the nonces.
                        if let Some(pool) = pool.filter(|_| refusal.rule == Rule::S9) {
                            pool.shun(from);
                        }
                        lost(Some(refusal))
                    }
                    _ => lost(None),
                },
                Err(error) => {
                    tracing::info!(%from, %error, "sign request not answered");
                    lost(None)
                }
            };
            sessions.tell(&session, input);
        });
    }
}

/// Measures the parts of a session.
struct Clock {
    times: Times,
    begin: Instant,
    mark: Instant,
    accepted: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            times: Times::default(),
            begin: Instant::now(),
            mark: Instant::now(),
            accepted: false,
        }
    }
}

impl Clock {
    fn lap(&mut self) -> u64 {
        let lap = crate::batch::elapsed_ms(self.mark);
        self.mark = Instant::now();
        lap
    }

    fn pulled(&mut self, subject: &Subject, body: BodyHash) {
        let ours = matches!(subject, Subject::Batch(candidate) if candidate.body == body);
        if ours && self.times.gossip.is_none() {
            self.times.gossip = Some(self.lap());
        }
    }

    fn heard(&mut self, input: &Input) {
        if matches!(input, Input::Accepted { .. }) && !self.accepted {
            self.accepted = true;
            self.times.gossip.get_or_insert(0);
            self.times.verify = Some(self.lap());
        }
    }

    fn requested(&mut self) {
        let lap = self.lap();
        self.times.round1.get_or_insert(lap);
    }

    fn finished(&mut self, aggregating: Instant) {
        let aggregate = crate::batch::elapsed_ms(aggregating);
        self.times.round2 = Some(self.lap().saturating_sub(aggregate));
        self.times.aggregate = Some(aggregate);
        self.times.signing = Some(crate::batch::elapsed_ms(self.begin));
    }
}
