//! An operator's side of signing: from a proposal to a share. No secrets in here; nonces and key share
//! live with the caller, which carries out the effects and feeds their results back.
//!
//! ```text
//! proposal --> Verify --> Store --> PassOn --receipts or deadline--> Accept (round 1)
//!                                                                        |
//!                                            sign request --S7--> Promise, then Share (round 2)
//! ```
//!
//! A pooled sign request names commitments that were handed out ahead of time. It proposes too, waits for the moment of
//! the accept, and is answered in its stead: by then everything is checked that an ordinary one is checked by.

mod grant;
mod promise;
mod quarantine;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::OutPoint;
use ledger::SequenceNumber;

use crate::{
    batch::{BatchHash, BodyHash},
    epoch::EpochClaim,
    hash,
    identity::PeerKey,
    message::{Refusal, Rule, SessionId, Subject},
    transaction::Treasury,
};

pub use grant::{Grant, Signable};
pub use promise::{Promise, judge};
pub use quarantine::Quarantine;

/// Sessions held at once; the oldest of the coordinator that has most gives way.
pub const MAX_SESSIONS: usize = 16;
/// Promises held in memory: deeper than any reorganisation that the chain follower takes.
pub const MAX_PROMISES: usize = 1_024;
/// How long a signer waits for receipts of the batch data that it has passed on (S8), in ms.
pub const RECEIPT_WAIT_MS: u64 = 2_000;
/// Sign requests answered between two proposals of a session. A coordinator that follows ROAST asks a signer
/// at most once an attempt, so n - t + 1 times and once for each renewal of the round: less than 2 n.
pub const MAX_ANSWERS: u32 = 256;
/// The highest number of an attempt: far more than any session comes to.
pub const MAX_ATTEMPT: u32 = 1 << 20;

/// Where a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The verifier runs.
    Verifying,
    /// Batch data is being written.
    Storing,
    /// Batch data is on its way to the others (S8).
    PassingOn {
        /// Who has not answered yet.
        waiting: BTreeSet<PeerKey>,
        /// When to go on without them, in ms.
        deadline: u64,
    },
    /// Round 1 is out.
    Accepted,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub coordinator: PeerKey,
    /// What is to be signed.
    pub subject: Subject,
    /// How far it is.
    pub phase: Phase,
    /// Which batch it is, once it is verified.
    pub batch: Option<BatchHash>,
    /// Highest attempt answered since the latest proposal; between two proposals attempts only go up.
    pub attempt: u32,
    /// Sign requests answered since the latest proposal.
    pub answers: u32,
    /// Whether a pooled sign request waits for the moment of the accept.
    pub pooled: bool,
    opened: u64,
}

impl Session {
    /// Everything is checked, stored and passed on.
    fn accept(&mut self, id: SessionId) -> Effect {
        self.phase = Phase::Accepted;
        if std::mem::take(&mut self.pooled) {
            Effect::Pooled(id, self.coordinator)
        } else {
            Effect::Accept(id, self.coordinator)
        }
    }
}

/// Everything an operator knows about signing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The treasury of the latest batch held canonical; `None` before genesis.
    pub head: Option<Treasury>,
    /// Height of this operator's chain.
    pub height: u32,
    /// Blocks for which one signed batch excludes another (S7).
    pub replacement_delay: u32,
    /// What was signed, by sequence number and treasury: a reorganisation can bring an earlier treasury
    /// back. The latest [`MAX_PROMISES`].
    pub promises: BTreeMap<(SequenceNumber, OutPoint), Promise>,
    /// The one genesis this operator has signed for its key.
    pub genesis: Option<OutPoint>,
    /// Epoch of the share that it signs with.
    pub epoch: u32,
    /// Shares of later epochs that it holds and no certificate has come for: the digest of each one's group.
    pub pending: BTreeMap<u32, [u8; 32]>,
    /// Why it stopped signing altogether (S14).
    pub alarm: Option<String>,
    /// Set for an operator that has lost its promises. It stays when it is over: a reorganisation can bring the
    /// treasury back.
    pub quarantine: Option<Quarantine>,
    /// Body that was signed on the present treasury and can't be confirmed any more, as the own chain stands: a deposit
    /// in it was double-spent.
    pub lost: Option<BodyHash>,
    sessions: BTreeMap<SessionId, Session>,
}

/// What the machine hears.
#[derive(Clone, Debug)]
pub enum Input {
    /// The own node's chain moved.
    Chain {
        /// The latest canonical treasury.
        head: Option<Treasury>,
        /// The chain's height.
        height: u32,
    },
    /// The chain given so far is the own node's whole best chain, and that node has caught up with the network.
    CaughtUp {
        /// Time in that chain's last block, in seconds since 1970.
        tip_time: u64,
    },
    /// The body that was signed on the present treasury and can't be confirmed any more, if there is one.
    Lost(Option<BodyHash>),
    /// The treasury went somewhere unknown, or what was final left the chain.
    Alarm(String),
    /// Somebody has looked at the alarm, and wants to go on.
    AlarmCleared,
    /// The shares have changed: a refresh has finished, or its certificate is here.
    Epochs {
        /// Epoch of the share that it signs with.
        own: u32,
        /// Later ones, with the digest of each one's group.
        pending: BTreeMap<u32, [u8; 32]>,
    },
    /// A coordinator proposes.
    Proposed {
        /// Which.
        from: PeerKey,
        /// What.
        subject: Subject,
    },
    /// The verifier has finished.
    Verified {
        /// The session.
        session: SessionId,
        /// Which batch it is, if it is one.
        batch: Option<BatchHash>,
    },
    /// The verifier, or the pull of the body, has failed.
    Refused(SessionId, Refusal),
    /// Batch data is on disk; these peers are reachable.
    Stored {
        /// The session.
        session: SessionId,
        /// Operators that are connected.
        reachable: BTreeSet<PeerKey>,
    },
    /// A peer has kept the batch data, or could not be reached.
    Receipt(SessionId, PeerKey),
    /// Time has passed.
    Tick,
    /// The coordinator proposes, and asks for shares from commitments that were handed out ahead of time. The caller
    /// holds the request, one a session, until [`Effect::Pooled`] or the session's end.
    SignPooled {
        /// Who asks.
        from: PeerKey,
        /// What.
        subject: Subject,
    },
    /// The coordinator asks for shares.
    SignRequested {
        /// Who asks.
        from: PeerKey,
        /// The session.
        session: SessionId,
        /// Epoch of the shares that are to sign.
        epoch: u32,
        /// The attempt.
        attempt: u32,
    },
}

/// What the caller must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Pull the body if need be, verify, answer `Verified` or `Refused`.
    Verify(SessionId, PeerKey, Subject),
    /// Write the batch data durably, answer `Stored`.
    Store(SessionId),
    /// Send the batch data to these operators, answer `Receipt` for each.
    PassOn(SessionId, BTreeSet<PeerKey>),
    /// Make nonces and send the accept.
    Accept(SessionId, PeerKey),
    /// The pooled sign request of this session has its turn: say [`Input::SignRequested`] for it; if it can't be
    /// answered, make nonces and send the accept.
    Pooled(SessionId, PeerKey),
    /// Tell the coordinator why not.
    Refuse(SessionId, PeerKey, Refusal),
    /// Write how long the quarantine lasts. Lost, it begins anew, which only makes it longer.
    Quarantined(Quarantine),
    /// Write the promise durably (a failure is fatal, S11), then sign this attempt and answer.
    PromiseAndSign(Grant),
}

impl State {
    /// The session of that id.
    pub fn session(&self, id: &SessionId) -> Option<&Session> {
        self.sessions.get(id)
    }

    /// Sessions open now.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Hash of what a refused proposal or sign request must leave as it was: the treasury, what was promised, the
    /// shares' epochs, the alarm, the quarantine. Height and sessions come and go without it.
    pub fn digest(&self) -> [u8; 32] {
        let Self {
            head,
            height: _,
            replacement_delay: _,
            promises,
            genesis,
            epoch,
            pending,
            alarm,
            quarantine,
            lost: _,
            sessions: _,
        } = self;
        let promises: Vec<&Promise> = promises.values().collect();
        let state = (head, promises, genesis, epoch, pending, alarm, quarantine);
        // Postcard does not fail on these types; a failure would show as a change.
        let bytes = postcard::to_stdvec(&state).unwrap_or_default();
        hash::tagged("drawbridge/signer-state", &[&bytes])
    }

    /// Takes one input.
    ///
    /// # Errors
    /// A [`Refusal`] that names the rule; the state is as before.
    pub fn step(&mut self, now: u64, input: Input) -> Result<Vec<Effect>, Refusal> {
        match input {
            Input::Chain { head, height } => {
                self.chain(head, height);
                Ok(Vec::new())
            }
            Input::Lost(body) => {
                self.lost = body;
                Ok(Vec::new())
            }
            Input::CaughtUp { tip_time } => Ok(self.caught_up(tip_time)),
            Input::Alarm(reason) => {
                self.sessions.clear();
                self.alarm = Some(reason);
                Ok(Vec::new())
            }
            Input::AlarmCleared => {
                self.alarm = None;
                Ok(Vec::new())
            }
            Input::Epochs { own, pending } => {
                self.change_epochs(own, pending);
                Ok(Vec::new())
            }
            Input::Proposed { from, subject } => self.proposed(now, from, subject),
            Input::Verified { session, batch } => Ok(self.verified(session, batch)),
            Input::Refused(id, refusal) => {
                let session = self.sessions.remove(&id);
                Ok(session
                    .map(|session| Effect::Refuse(id, session.coordinator, refusal))
                    .into_iter()
                    .collect())
            }
            Input::Stored { session, reachable } => Ok(self.stored(now, session, reachable)),
            Input::Receipt(id, peer) => Ok(self.receipt(id, peer)),
            Input::Tick => Ok(self.tick(now)),
            Input::SignPooled { from, subject } => self.sign_pooled(now, from, subject),
            Input::SignRequested {
                from,
                session,
                epoch,
                attempt,
            } => self.sign_requested(from, session, epoch, attempt),
        }
    }

    /// Sessions whose share is no longer the one that signs, or no longer waits, end: their nonces are gone.
    fn change_epochs(&mut self, own: u32, pending: BTreeMap<u32, [u8; 32]>) {
        if self.epoch != own {
            self.sessions
                .retain(|_, session| matches!(session.subject, Subject::Epoch(_)));
        }
        self.epoch = own;
        self.pending = pending;
        let pending = &self.pending;
        self.sessions.retain(|_, session| match &session.subject {
            Subject::Epoch(claim) => pending.get(&claim.epoch) == Some(&claim.group),
            Subject::Genesis(_) | Subject::Batch(_) => true,
        });
    }

    /// The epoch of the share that signs a subject.
    fn epoch_of(&self, subject: &Subject) -> u32 {
        match subject {
            Subject::Epoch(claim) => claim.epoch,
            Subject::Genesis(_) | Subject::Batch(_) => self.epoch,
        }
    }

    fn chain(&mut self, head: Option<Treasury>, height: u32) {
        let rewound = height < self.height;
        self.height = height;
        if rewound {
            // Deposits may have lost confirmations, or have gone (S2): what was verified must be verified anew.
            self.sessions
                .retain(|_, session| !matches!(session.subject, Subject::Batch(_)));
        }
        if self.head == head {
            return;
        }
        self.head = head;
        let next = self.next_sequence();
        self.sessions.retain(|_, session| match &session.subject {
            Subject::Genesis(_) => head.is_none(),
            Subject::Batch(candidate) => {
                Some(candidate.sequence) == next
                    && head.is_some_and(|head| head.outpoint == candidate.parent)
            }
            Subject::Epoch(_) => true,
        });
    }

    /// What was signed for a sequence number and treasury, unless it can't be confirmed any more (S7).
    pub fn binding(&self, sequence: SequenceNumber, parent: OutPoint) -> Option<&Promise> {
        self.promises
            .get(&(sequence, parent))
            .filter(|promise| self.lost != Some(promise.body))
    }

    fn next_sequence(&self) -> Option<SequenceNumber> {
        self.head?
            .commitment
            .sequence
            .0
            .checked_add(1)
            .map(SequenceNumber)
    }

    fn proposed(
        &mut self,
        now: u64,
        from: PeerKey,
        subject: Subject,
    ) -> Result<Vec<Effect>, Refusal> {
        self.check_subject(&subject)?;
        let id = subject.session(&from);
        if let Some(session) = self.sessions.get_mut(&id) {
            // A coordinator that has restarted begins at attempt 1 again. What keeps a nonce from serving two
            // shares is that it is used up, whatever the number (S9).
            session.attempt = 0;
            session.answers = 0;
            // A repeated proposal after round 1: the coordinator, or the nonces, were lost on the way.
            return Ok(match session.phase {
                Phase::Accepted => vec![Effect::Accept(id, from)],
                _ => Vec::new(),
            });
        }
        if self.sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = self.gives_way()
        {
            self.sessions.remove(&oldest);
        }
        let session = Session {
            coordinator: from,
            subject: subject.clone(),
            phase: Phase::Verifying,
            batch: None,
            attempt: 0,
            answers: 0,
            pooled: false,
            opened: now,
        };
        self.sessions.insert(id, session);
        Ok(vec![Effect::Verify(id, from, subject)])
    }

    /// The oldest session of the coordinator that has most: nobody pushes another's out by proposing much.
    fn gives_way(&self) -> Option<SessionId> {
        let mut counts: BTreeMap<PeerKey, usize> = BTreeMap::new();
        for session in self.sessions.values() {
            let count = counts.entry(session.coordinator).or_default();
            *count = count.saturating_add(1);
        }
        let (busiest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.sessions
            .iter()
            .filter(|(_, session)| session.coordinator == busiest)
            .min_by_key(|(_, session)| session.opened)
            .map(|(id, _)| *id)
    }

    /// S2, S4, S7, S12 and S14, as far as they need no other data; asked again at the sign request.
    fn check_subject(&self, subject: &Subject) -> Result<(), Refusal> {
        if let Some(alarm) = &self.alarm {
            return Err(Refusal::new(
                Rule::S14,
                format!("signing has stopped: {alarm}"),
            ));
        }
        match subject {
            Subject::Genesis(genesis) => {
                if self.head.is_some() {
                    return Err(Refusal::new(Rule::S2, "this vault has its genesis"));
                }
                match self.genesis {
                    Some(other) if other != genesis.outpoint => Err(Refusal::new(
                        Rule::S2,
                        format!("this key has signed the genesis {other}; there is only one"),
                    )),
                    _ => Ok(()),
                }
            }
            Subject::Batch(candidate) => {
                let head = self
                    .head
                    .ok_or_else(|| Refusal::new(Rule::S2, "no genesis is certified here"))?;
                if Some(candidate.sequence) != self.next_sequence() {
                    return Err(Refusal::new(
                        Rule::S4,
                        format!(
                            "sequence number {} does not follow {}",
                            candidate.sequence.0, head.commitment.sequence.0
                        ),
                    ));
                }
                if candidate.parent != head.outpoint {
                    return Err(Refusal::new(
                        Rule::S2,
                        format!(
                            "input 0 is {}, not the latest treasury {}",
                            candidate.parent, head.outpoint
                        ),
                    ));
                }
                self.check_quarantine()
            }
            Subject::Epoch(claim) => self.check_claim(claim),
        }
    }

    /// Only what this operator holds a share of, and has not signed with yet.
    fn check_claim(&self, claim: &EpochClaim) -> Result<(), Refusal> {
        if self.head.is_none() {
            return Err(Refusal::new(Rule::S2, "no genesis is certified here"));
        }
        let reason = match self.pending.get(&claim.epoch) {
            Some(group) if *group == claim.group => return Ok(()),
            Some(_) => "this operator's share of that epoch is of another group".to_owned(),
            None if claim.epoch <= self.epoch => {
                format!("this operator is at epoch {} already", self.epoch)
            }
            None => format!("this operator holds no share of epoch {}", claim.epoch),
        };
        Err(Refusal::new(Rule::S12, reason))
    }

    fn verified(&mut self, id: SessionId, batch: Option<BatchHash>) -> Vec<Effect> {
        match self.sessions.get_mut(&id) {
            Some(session) if session.phase == Phase::Verifying => {
                session.phase = Phase::Storing;
                session.batch = batch;
                vec![Effect::Store(id)]
            }
            _ => Vec::new(),
        }
    }

    fn stored(&mut self, now: u64, id: SessionId, reachable: BTreeSet<PeerKey>) -> Vec<Effect> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Vec::new();
        };
        if session.phase != Phase::Storing {
            return Vec::new();
        }
        // Certificates carry no batch data: there is nothing to pass on.
        if reachable.is_empty() || !matches!(session.subject, Subject::Batch(_)) {
            return vec![session.accept(id)];
        }
        let deadline = now.saturating_add(RECEIPT_WAIT_MS);
        session.phase = Phase::PassingOn {
            waiting: reachable.clone(),
            deadline,
        };
        vec![Effect::PassOn(id, reachable)]
    }

    fn receipt(&mut self, id: SessionId, peer: PeerKey) -> Vec<Effect> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Vec::new();
        };
        let Phase::PassingOn { waiting, .. } = &mut session.phase else {
            return Vec::new();
        };
        waiting.remove(&peer);
        if !waiting.is_empty() {
            return Vec::new();
        }
        vec![session.accept(id)]
    }

    fn tick(&mut self, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (id, session) in &mut self.sessions {
            if matches!(&session.phase, Phase::PassingOn { deadline, .. } if *deadline <= now) {
                effects.push(session.accept(*id));
            }
        }
        effects
    }

    /// A repeated proposal makes attempts count anew; this request does not, so that nothing is signed through it that
    /// [`Self::sign_requested`] would refuse.
    fn sign_pooled(
        &mut self,
        now: u64,
        from: PeerKey,
        subject: Subject,
    ) -> Result<Vec<Effect>, Refusal> {
        if !matches!(subject, Subject::Batch(_)) {
            return Err(Refusal::new(
                Rule::S12,
                "certificates are not signed with nonces from the pool",
            ));
        }
        let id = subject.session(&from);
        let effects = if self.sessions.contains_key(&id) {
            Vec::new()
        } else {
            self.proposed(now, from, subject)?
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(effects);
        };
        if session.phase == Phase::Accepted {
            return Ok(vec![Effect::Pooled(id, from)]);
        }
        session.pooled = true;
        Ok(effects)
    }

    fn sign_requested(
        &mut self,
        from: PeerKey,
        id: SessionId,
        epoch: u32,
        attempt: u32,
    ) -> Result<Vec<Effect>, Refusal> {
        let Some(session) = self.sessions.get(&id) else {
            return Err(Refusal::new(
                Rule::S9,
                "this session is not known here; propose it again",
            ));
        };
        if session.coordinator != from {
            return Err(Refusal::new(
                Rule::S12,
                "this session is another coordinator's",
            ));
        }
        let own = self.epoch_of(&session.subject);
        if epoch != own {
            return Err(Refusal::new(
                Rule::S9,
                format!("this operator signs this with a share of epoch {own}, not {epoch}"),
            ));
        }
        if session.phase != Phase::Accepted {
            return Err(Refusal::new(Rule::S8, "this session is not accepted yet"));
        }
        if attempt <= session.attempt || attempt > MAX_ATTEMPT {
            return Err(Refusal::new(
                Rule::S9,
                format!(
                    "attempt {attempt} does not follow attempt {}",
                    session.attempt
                ),
            ));
        }
        if session.answers >= MAX_ANSWERS {
            return Err(Refusal::new(
                Rule::S9,
                format!("{MAX_ANSWERS} sign requests were answered; propose the session again"),
            ));
        }
        self.check_subject(&session.subject)?;
        let promise = match &session.subject {
            Subject::Genesis(genesis) => Signable::Genesis(genesis.outpoint),
            Subject::Batch(candidate) => Signable::Batch(judge(
                self.binding(candidate.sequence, candidate.parent),
                candidate,
                session.batch.ok_or_else(|| {
                    Refusal::new(Rule::S7, "the verifier has not said which batch this is")
                })?,
                self.height,
                self.replacement_delay,
            )?),
            Subject::Epoch(claim) => Signable::Epoch(*claim),
        };
        Ok(self.grant(id, attempt, promise))
    }

    fn grant(&mut self, id: SessionId, attempt: u32, promise: Signable) -> Vec<Effect> {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.attempt = attempt;
            session.answers = session.answers.saturating_add(1);
        }
        match &promise {
            Signable::Batch(promise) => {
                let key = (promise.sequence, promise.parent);
                self.promises.insert(key, promise.clone());
                while self.promises.len() > MAX_PROMISES {
                    self.promises.pop_first();
                }
            }
            Signable::Genesis(outpoint) => self.genesis = Some(*outpoint),
            Signable::Epoch(_) => {}
        }
        vec![Effect::PromiseAndSign(Grant {
            session: id,
            attempt,
            promise,
        })]
    }
}
