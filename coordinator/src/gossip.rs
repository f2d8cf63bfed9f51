//! Stage 5: proposes to the operators and runs the signing session: round 1 comes with their accepts,
//! round 2 with their answers to the sign requests. `protocol::signing` decides; this file sends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bitcoin::secp256k1::schnorr;
use node::cost::{Cost, Meter, Stopwatch};
use p2p::Network;
use protocol::{
    batch::BodyHash,
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Refusal, SessionId, Subject, decode, encode},
    roster::Roster,
    signing::{Effect, Input, Session},
};
use threshold::{GroupInfo, SignerId, sign::Message};
use tokio::sync::mpsc;

/// Inputs that wait for the session to take them.
const MAX_INPUTS: usize = 1_024;
/// How often an unfinished proposal is repeated. Operators that restarted, or whose nonces expired, accept
/// again.
const REPEAT: Duration = Duration::from_secs(5);

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
    /// This coordinator.
    pub me: PeerKey,
}

/// Runs a session until it ends, or `abandon` says that there is no more use in it, or `give_up` says so of who refuses
/// and how many attempts were started. `None` when it was abandoned.
pub async fn run(
    network: &Network,
    sessions: &Sessions,
    task: Task,
    mut abandon: impl FnMut() -> bool,
    mut give_up: impl FnMut(&[(PeerKey, Refusal)], u32) -> bool,
) -> Option<Report> {
    let id = task.subject.session(&task.me);
    let epoch = task.group.epoch();
    let mut heard = sessions.open(id, epoch);
    let mut session = Session::new(task.group.clone(), task.messages.clone(), task.needed);
    let mut times = Clock::default();
    let mut repeat = tokio::time::interval(REPEAT);
    let mut round = 0_u32;
    let mut aggregating = Cost::default();
    let outcome = loop {
        let next = tokio::select! {
            next = heard.recv() => next,
            _ = repeat.tick() => {
                if abandon() {
                    break None;
                }
                propose(network, &task.subject, round).await;
                round = round.saturating_add(1);
                continue;
            }
        };
        let input = match next {
            None => break None,
            Some(Heard::Pulled(body)) => {
                times.pulled(&task.subject, body);
                continue;
            }
            Some(Heard::Input(input)) => input,
        };
        times.heard(&input);
        let before = Instant::now();
        let (watch, has_shares) = (Stopwatch::thread(), matches!(input, Input::Answered { .. }));
        let stepped = session.step(input);
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
                Effect::Request { attempt, package } => {
                    times.requested();
                    tracing::info!(
                        stage = "round1",
                        attempt,
                        signers = package.commitments.len(),
                        "attempt started"
                    );
                    request(
                        network,
                        sessions,
                        &task.roster,
                        id,
                        epoch,
                        attempt,
                        package.commitments,
                    );
                }
                Effect::Blame(signer) => tracing::warn!(%signer, "bad share: signer blamed"),
                Effect::Finished {
                    signatures,
                    signers,
                    attempts,
                } => {
                    times.finished(before);
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
        if give_up(&refusals(&session, &task.roster), session.attempts()) {
            break Some(Outcome::Refused);
        }
    };
    sessions.close();
    let outcome = outcome?;
    Some(Report {
        outcome,
        blamed: session
            .blamed()
            .iter()
            .filter_map(|signer| peer(&task.roster, *signer))
            .collect(),
        refusals: refusals(&session, &task.roster),
        times: times.times,
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

/// Sends the sign request of an attempt to each of its signers; answers come back as inputs.
fn request(
    network: &Network,
    sessions: &Sessions,
    roster: &Roster,
    session: SessionId,
    epoch: u32,
    attempt: u32,
    commitments: BTreeMap<SignerId, threshold::sign::Commitments>,
) {
    let signers: Vec<SignerId> = commitments.keys().copied().collect();
    let ask = encode(&Ask::Sign {
        session,
        epoch,
        attempt,
        commitments,
    });
    for from in signers {
        let Some(peer) = peer(roster, from) else {
            continue;
        };
        let (network, sessions, ask) = (network.clone(), sessions.clone(), ask.clone());
        tokio::spawn(async move {
            let input = match network.ask(peer, ask).await {
                Ok(bytes) => match decode::<Answer>(&bytes) {
                    Ok(Answer::Shares { shares, next }) => Input::Answered {
                        from,
                        attempt,
                        shares,
                        next,
                    },
                    Ok(Answer::Refused(refusal)) => {
                        tracing::info!(%from, %refusal, "sign request refused");
                        Input::Lost { from, attempt }
                    }
                    _ => Input::Lost { from, attempt },
                },
                Err(error) => {
                    tracing::info!(%from, %error, "sign request not answered");
                    Input::Lost { from, attempt }
                }
            };
            sessions.tell(&session, input);
        });
    }
}

/// Measures the parts of a session.
struct Clock {
    times: Times,
    mark: Instant,
    accepted: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            times: Times::default(),
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
    }
}
