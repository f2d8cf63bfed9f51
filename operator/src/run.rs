//! The operator's loop: hear, step the machine, persist, carry out the effects, feed their results back.
//!
//! ```text
//! peers, own chain, workers, clock --> Node --protocol::signer::State::step--> effects --> workers
//! ```
//!
//! The loop itself does not wait for anybody: pulling, verifying, signing and asking run beside it and come
//! back as [`Event`]s. What must be on disk before something leaves is written in the loop, so that
//! writes happen in the order of the decisions.

mod administer;
mod answers;
mod attest;
mod decide;
mod epoch;
mod export;
mod follow;
mod hand_on;
mod key;
mod outlet;
mod pooled;
mod repair;
mod requests;
mod sessions;
mod show;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attestation::Evidence;
use chain::{BitcoinRpc, FollowError, NodeStatus, RpcError, Step};
use ledger::{Operation, OperationId, SequenceNumber};
use node::{
    certificate, clock,
    files::{self, FileError},
    history::{self, HistoryError},
    inbox::Inbox,
};
use proof::VerifyingKey;
use protocol::{
    batch::Candidate,
    epoch::EpochCertificate,
    identity::{Identity, PeerKey, Signed},
    message::{Answer, Refusal, SessionId, Subject},
    parameters::Parameters,
    repair::RunDelta,
    roster::Roster,
    signer::{self, State},
    vault::{GenesisCertificate, Vault, VaultError, VaultKey},
};
use storage::{ColumnName, OpenError, ReadError, Schema, Store};
use threshold::{dkg, repair::RunId};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task,
};

use crate::{
    admin::{self, Asked, ListenError},
    attested::{Attested, Nonce, Problem},
    books::Books,
    decisions::{self, Decisions},
    generate::{GenerateError, Generation},
    held,
    keys::{KeyFileError, KeyFiles},
    passphrase::PassphraseError,
    peers::{self, Heard, Peers},
    policy::{PolicyError, PolicyKeeper},
    promises,
    refresh::{self, Refresh, RefreshError},
    repair::{Approval, Helping, OwnRepair, Repairing},
    requests::Requests,
    settings::{Settings, SettingsError},
    signed,
    status::{self, Status, StatusError, Verdict},
    vault::{KeySafe, Reading},
    verify::{Kept, Verified},
};

pub use outlet::Outlet;
use outlet::Prompt;

/// The heartbeat: deadlines, key-generation questions, clocks.
const TICK: Duration = Duration::from_millis(250);
/// Heartbeats between questions that can wait: certificate, missing batches.
const SLOW_TICKS: u32 = 4;
/// Results of workers that wait for the loop.
const MAX_EVENTS: usize = 1_024;
/// Chain steps that wait for the loop.
const MAX_STEPS: usize = 4;
/// Proposals of one coordinator that are kept because they are ahead of this operator's chain.
const MAX_EARLY: usize = 2;
/// Proposals kept that the own policy has refused.
const MAX_DENIED: usize = 8;

/// The database's folder in the data folder.
pub const DATABASE: &str = "db";

/// Why an operator stops, or does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings.
    #[error("the settings can't be used")]
    Settings(#[from] SettingsError),
    /// The passphrase of the key files.
    #[error("the key files can't be opened")]
    Passphrase(#[from] PassphraseError),
    /// The policy.
    #[error("the policy can't be used")]
    Policy(#[from] PolicyError),
    /// Roster, parameters or identity.
    #[error("a file can't be used")]
    File(#[from] FileError),
    /// The verifying key.
    #[error("the verifying key {path} can't be used: {reason}")]
    VerifyingKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The Bitcoin node's settings.
    #[error("bitcoind can't be used")]
    Bitcoind(#[from] chain::SettingsError),
    /// The Bitcoin node is on another network, or refuses this operator.
    #[error("bitcoind can't be used")]
    BitcoinNode(#[from] RpcError),
    /// The database.
    #[error("the database can't be opened")]
    Database(#[from] OpenError),
    /// Damaged data.
    #[error("the database can't be read")]
    Read(#[from] ReadError),
    /// Key files.
    #[error("a key file can't be used")]
    Keys(#[from] KeyFileError),
    /// Key generation.
    #[error("key generation can't go on")]
    Generate(#[from] GenerateError),
    /// A refresh.
    #[error("a refresh of the key shares can't go on")]
    Refresh(#[from] RefreshError),
    /// The vault.
    #[error("the vault can't be opened")]
    Vault(#[from] VaultError),
    /// The history.
    #[error("the history can't go on")]
    History(#[from] HistoryError),
    /// The chain.
    #[error("the chain can't be followed")]
    Follow(#[from] FollowError),
    /// The network.
    #[error("the network can't be used")]
    Network(#[from] p2p::StartError),
    /// The status pages.
    #[error("the status pages can't be served")]
    Status(#[from] StatusError),
    /// The admin socket.
    #[error("the admin socket can't be opened")]
    Admin(#[from] ListenError),
    /// A part of this process has ended; a fault of our own.
    #[error("{0} has ended unexpectedly")]
    Ended(&'static str),
}

/// What workers report.
enum Event {
    /// A verdict, with everything that is needed to keep, pass on and sign; and when verifying began, because a session that
    /// ended meanwhile may have begun anew.
    Judged(SessionId, Instant, Result<Work, Denied>),
    /// Batch data is on disk.
    Stored(SessionId, Kept),
    /// A peer keeps the batch data, or can't be reached.
    Receipt(SessionId, PeerKey),
    /// An operator has answered about key generation, or not.
    Dkg(PeerKey, Option<Vec<Signed<dkg::Message>>>),
    /// What an operator's attestation is worth.
    Attested(PeerKey, Nonce, Result<Evidence, Problem>),
    /// Somebody knows the genesis certificate.
    Certificate(GenesisCertificate),
    /// An operator has answered about a refresh, or not.
    Refresh(PeerKey, Option<epoch::RefreshAnswer>),
    /// Somebody knows an epoch's certificate.
    Epoch(EpochCertificate),
    /// An operator has answered about the repair of the own share, in that run, or not.
    Repair(PeerKey, Option<RunId>, Option<Box<Answer>>),
    /// A helper has given its δ, or not.
    Delta(PeerKey, RunId, Option<Signed<RunDelta>>),
    /// The answer about a missing batch; `None` if nobody has it.
    Missing(Option<(Candidate, Vec<u8>)>),
    /// What the own node said of a signed transaction.
    Submitted(Box<signed::Signed>, chain::submit::Submission),
}

/// A subject that was verified.
#[derive(Clone)]
struct Work {
    verified: Arc<Verified>,
    /// Once its data is on disk.
    kept: Option<Kept>,
}

/// A subject that was refused.
struct Denied {
    refusal: Refusal,
    /// Operations of this batch that wait for approval.
    held: Vec<(OperationId, Operation)>,
    sequence: SequenceNumber,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            held: Vec::new(),
            sequence: SequenceNumber(0),
        }
    }
}

/// The vault once its genesis is certified.
#[derive(Clone)]
struct Open {
    vault: Arc<Vault>,
    books: Arc<Mutex<Books>>,
}

/// A proposal that is ahead of the own chain.
struct Early {
    from: PeerKey,
    subject: Subject,
    since: Instant,
}

/// Everything that the loop holds.
struct Node {
    policy: PolicyKeeper,
    decisions: Arc<Decisions>,
    scan_from: u32,
    roster: Arc<Roster>,
    parameters: Arc<Parameters>,
    identity: Arc<Identity>,
    verifying_key: Arc<VerifyingKey>,
    store: Store,
    rpc: BitcoinRpc,
    peers: Peers,
    /// The way out for answers to sign requests.
    outlet: Arc<dyn Outlet>,
    events: mpsc::Sender<Event>,
    state: State,
    keys: Arc<KeyFiles>,
    generation: Generation,
    key: Option<Arc<VaultKey>>,
    /// The share that signs.
    safe: Option<Arc<Mutex<KeySafe>>>,
    refresh: Option<Refresh>,
    /// Shares of later epochs, each for the claim that makes it the one that signs.
    pending: BTreeMap<u32, Arc<Mutex<KeySafe>>>,
    epoch_certificate: Option<EpochCertificate>,
    helping: Helping,
    approvals: BTreeMap<PeerKey, Approval>,
    own_repair: Option<OwnRepair>,
    repairing: Option<Repairing>,
    open: Option<Open>,
    steps: Option<mpsc::Receiver<Result<Step, FollowError>>>,
    node_status: watch::Receiver<NodeStatus>,
    genesis: Option<promises::GenesisPromise>,
    work: BTreeMap<SessionId, Work>,
    /// When verification of a session began.
    since: BTreeMap<SessionId, Instant>,
    early: VecDeque<Early>,
    /// Proposals refused under this operator's own policy, to be judged anew when that changes.
    denied: VecDeque<(PeerKey, Subject)>,
    /// Entries of nonces that each coordinator may hold ahead of time.
    nonce_pool: usize,
    /// Pooled sign requests that wait for their session to be accepted.
    parked: BTreeMap<SessionId, pooled::Parked>,
    /// Verifications at a time, by coordinator: one that floods proposals gets refusals, the others do not.
    verifiers: BTreeMap<PeerKey, Arc<Semaphore>>,
    asking_dkg: BTreeSet<PeerKey>,
    /// Who has shown the attestation that the roster requires.
    attested: Attested,
    /// Where this operator's own documents come from.
    documents: Option<attest::Documents>,
    asking_refresh: BTreeSet<PeerKey>,
    asking_repair: BTreeSet<PeerKey>,
    asking_deltas: BTreeSet<(PeerKey, RunId)>,
    asking_missing: bool,
    /// Requests of users that coordinators have this operator keep.
    requests: Arc<Requests>,
    /// Peers whose kept requests were asked for since the start.
    pulled: BTreeSet<PeerKey>,
    /// How often missing batch data was asked for: whom to ask first.
    missing_turn: usize,
    ticks: u32,
    verdicts: VecDeque<Verdict>,
    status: watch::Sender<Status>,
    /// Removed with the node.
    _socket: admin::Socket,
}

/// What comes in from outside the loop, each in a queue of its own.
struct Incoming {
    inbox: Inbox,
    events: mpsc::Receiver<Event>,
    asked: mpsc::Receiver<Asked>,
}

/// Runs an operator until `shutdown` is ready.
///
/// # Errors
/// [`RunError`] says what keeps it from starting or going on.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    run_with(settings, Arc::new(Prompt), shutdown).await
}

/// As [`run`], with another way out for answers to sign requests.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    settings: Settings,
    outlet: Arc<dyn Outlet>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (mut node, mut incoming) = start(settings, outlet).await?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            heard = incoming.inbox.next() => match heard {
                Some(heard) => node.hear(heard)?,
                None => return Err(RunError::Ended("the network")),
            },
            step = next_step(&mut node.steps) => match step {
                Some(step) => node.follow(step?)?,
                None => return Err(RunError::Ended("the chain follower")),
            },
            Some(event) = incoming.events.recv() => node.on_event(event)?,
            Some(asked) = incoming.asked.recv() => node.on_admin(asked),
            _ = tick.tick() => node.tick()?,
            () = &mut shutdown => break,
        }
    }
    tracing::info!("stopping");
    node.peers.shut_down().await;
    Ok(())
}

async fn next_step(
    steps: &mut Option<mpsc::Receiver<Result<Step, FollowError>>>,
) -> Option<Result<Step, FollowError>> {
    match steps {
        Some(steps) => steps.recv().await,
        // Nothing to follow before the genesis.
        None => std::future::pending().await,
    }
}

/// All columns of an operator's database.
fn columns() -> Vec<ColumnName> {
    [
        history::TABLES.as_slice(),
        &promises::TABLES,
        &decisions::TABLES,
        &held::TABLES,
        &crate::repair::TABLES,
        &signed::TABLES,
        &crate::requests::TABLES,
    ]
    .concat()
}

/// Opens the database in an operator's data folder; makes it if it is not there. One process at a time has it open.
///
/// # Errors
/// [`OpenError`]; of another roster's or another set of parameters' database, for example.
pub fn open_store(
    data_dir: &Path,
    roster: &Roster,
    parameters: &Parameters,
) -> Result<Store, OpenError> {
    let schema = Schema {
        kind: "operator",
        network: &peers::network_name(roster, parameters),
        columns: &columns(),
    };
    Store::open(data_dir.join(DATABASE), &schema)
}

async fn start(settings: Settings, outlet: Arc<dyn Outlet>) -> Result<(Node, Incoming), RunError> {
    let roster = Arc::new(files::load_roster(&settings.roster)?);
    let parameters = Arc::new(files::load_parameters(&settings.parameters)?);
    settings.check_network(parameters.network)?;
    let policy = PolicyKeeper::open(settings.policy.clone(), parameters.clone())?;
    let identity = Arc::new(files::load_identity(&settings.identity)?);
    if !roster.is_operator(&identity.public()) {
        return Err(GenerateError::NotAnOperator(identity.public()).into());
    }
    let verifying_key = load_verifying_key(&settings.verifying_key)?;
    let rpc = BitcoinRpc::new(&settings.bitcoind)?;
    match rpc.check_network(parameters.network).await {
        Err(error) if error.is_transient() => {
            tracing::warn!(%error, "no bitcoind yet");
        }
        checked => checked?,
    }
    let data = &settings.data_dir;
    files::create_private_folder(data)?;
    let store = open_store(data, &roster, &parameters)?;
    let status = watch::Sender::new(Status::starting());
    let (socket, asked) = admin::listen(data, status.subscribe())?;
    let passphrase = settings.passphrase().get()?;
    let keys = Arc::new(KeyFiles::new(
        data.clone(),
        passphrase,
        settings.sealing.into(),
    ));
    let certificate = certificate::load(&store)?;
    let epoch_certificate = certificate::load_epoch(&store)?;
    if let Some(certificate) = &epoch_certificate {
        refresh::settle(&keys, &certificate.group)?;
    }
    let own_repair = crate::repair::load_own(&store)?;
    let (generation, share) = Generation::open(
        keys.clone(),
        &roster,
        &parameters,
        identity.clone(),
        certificate.is_some() || own_repair.is_some(),
    )?;
    let promised = promises::load(&store)?;
    let decisions = Decisions::load(&store)?;
    let requests = Requests::open(store.clone(), roster.clone())?;
    let mut state = State::default();
    state.replacement_delay = parameters.replacement_delay.into();
    state.promises = promised.batches;
    state.genesis = promised.genesis.map(|genesis| genesis.outpoint);
    state.alarm = promised.alarm;
    state.quarantine = promised.quarantine;

    let (events, results) = mpsc::channel(MAX_EVENTS);
    let (peers, inbox) =
        peers::start(&settings.listen, roster.clone(), &parameters, &identity).await?;
    if let Some(address) = settings.status_listen {
        status::serve(address, status.subscribe()).await?;
    }
    let mut node = Node {
        attested: Attested::new(&roster.attestation),
        documents: attest::Documents::new(settings.attestation_socket, &roster.attestation),
        policy,
        decisions: Arc::new(decisions),
        scan_from: settings.scan_from,
        peers,
        outlet,
        state,
        helping: Helping::new(roster.clone(), identity.clone()),
        approvals: crate::repair::load_approvals(&store)?,
        own_repair,
        repairing: None,
        roster,
        parameters,
        identity,
        verifying_key: Arc::new(verifying_key),
        store,
        rpc,
        events,
        keys,
        generation,
        key: None,
        safe: None,
        refresh: None,
        pending: BTreeMap::new(),
        epoch_certificate,
        open: None,
        steps: None,
        node_status: watch::Sender::new(NodeStatus::default()).subscribe(),
        genesis: promised.genesis,
        work: BTreeMap::new(),
        since: BTreeMap::new(),
        early: VecDeque::new(),
        denied: VecDeque::new(),
        nonce_pool: settings.nonce_pool,
        parked: BTreeMap::new(),
        verifiers: BTreeMap::new(),
        asking_dkg: BTreeSet::new(),
        asking_refresh: BTreeSet::new(),
        asking_repair: BTreeSet::new(),
        asking_deltas: BTreeSet::new(),
        asking_missing: false,
        requests: Arc::new(requests),
        pulled: BTreeSet::new(),
        missing_turn: 0,
        ticks: 0,
        verdicts: VecDeque::new(),
        status,
        _socket: socket,
    };
    if let Some(share) = share {
        node.check_promises(share.group().group_key())?;
        node.use_share(share)?;
    }
    if let Some(certificate) = certificate {
        node.use_certificate(&certificate)?;
    }
    node.start_repairing();
    node.show();
    tracing::info!(identity = %node.identity.public(), network = %node.parameters.network, "operator started");
    let incoming = Incoming {
        inbox,
        events: results,
        asked,
    };
    Ok((node, incoming))
}

fn load_verifying_key(path: &Path) -> Result<VerifyingKey, RunError> {
    VerifyingKey::load(path).map_err(|error| RunError::VerifyingKey {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

impl Node {
    fn on_event(&mut self, event: Event) -> Result<(), RunError> {
        match event {
            Event::Judged(id, begun, verdict) => self.judged(id, begun, verdict),
            Event::Stored(session, kept) => {
                if let Some(work) = self.work.get_mut(&session) {
                    work.kept = Some(kept);
                }
                let reachable = self.peers.operators();
                self.step(signer::Input::Stored { session, reachable });
            }
            Event::Receipt(session, peer) => self.step(signer::Input::Receipt(session, peer)),
            Event::Dkg(peer, messages) => self.take_dkg(&peer, messages)?,
            Event::Attested(peer, nonce, verdict) => {
                self.attested.take(&peer, &nonce, verdict, clock::now_ms());
                self.show();
            }
            Event::Certificate(certificate) => self.learn_certificate(&certificate)?,
            Event::Refresh(peer, answer) => self.take_refresh(peer, answer)?,
            Event::Epoch(certificate) => self.learn_epoch(certificate)?,
            Event::Repair(peer, run, answer) => self.take_repair(peer, run, answer)?,
            Event::Delta(peer, run, delta) => self.take_delta(peer, run, delta),
            Event::Missing(batch) => self.take_missing(batch)?,
            Event::Submitted(signed, outcome) => self.submitted(&signed, &outcome)?,
        }
        Ok(())
    }

    fn hear(&mut self, heard: Heard) -> Result<(), RunError> {
        match heard {
            Heard::Gossip(from, gossip) => self.hear_gossip(from, gossip)?,
            Heard::Asked(from, ask, reply) => self.answer(from, ask, reply)?,
            Heard::Changed(peer) => {
                self.attested.forget(&peer);
                self.show();
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), RunError> {
        self.ticks = self.ticks.wrapping_add(1);
        if let Some(safe) = &self.safe
            && lock(safe).watch(Reading::now())
        {
            tracing::warn!(
                "the clock or the boot changed under this process; all nonces were dropped (S9)"
            );
        }
        self.step(signer::Input::Tick);
        self.ask_attestations();
        self.ask_dkg();
        self.ask_refresh();
        self.ask_repair();
        self.ask_deltas();
        self.submit_again()?;
        if self.ticks.is_multiple_of(SLOW_TICKS) {
            self.look_at_policy();
            self.ask_certificate();
            self.ask_epochs_in_turn();
            self.ask_missing()?;
            self.pull_requests();
            if let Some(tip_time) = self.caught_up() {
                self.step(signer::Input::CaughtUp { tip_time });
            }
            self.propose_early();
            self.show();
        }
        Ok(())
    }

    /// One step of the machine, and what follows from it.
    fn step(&mut self, input: signer::Input) {
        match self.state.step(clock::now_ms(), input) {
            Ok(effects) => self.perform(effects),
            Err(refusal) => tracing::debug!(%refusal, "refused"),
        }
        self.forget_closed();
    }

    /// Work of sessions that are gone can't be signed any more, and their nonces must not crowd out those of others.
    fn forget_closed(&mut self) {
        let state = &self.state;
        let before = self.work.len();
        self.work.retain(|id, _| state.session(id).is_some());
        self.since.retain(|id, _| state.session(id).is_some());
        let parked = std::mem::take(&mut self.parked);
        let (open, closed): (BTreeMap<_, _>, BTreeMap<_, _>) = parked
            .into_iter()
            .partition(|(id, _)| state.session(id).is_some());
        self.parked = open;
        let gone = self.work.len() < before || !closed.is_empty();
        closed.into_values().for_each(pooled::Parked::close);
        if gone && let Some(safe) = &self.safe {
            blocking(|| lock(safe).forget(|id| state.session(id).is_some()));
        }
    }

    /// Reports from beside the loop. The channel is bounded; a report that finds no loop is not needed.
    fn spawn<F>(&self, work: F)
    where
        F: Future<Output = Option<Event>> + Send + 'static,
    {
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Some(event) = work.await {
                let _ = events.send(event).await;
            }
        });
    }

    /// The latest sequence number held canonical; `None` before the genesis.
    fn head_sequence(&self) -> Option<SequenceNumber> {
        self.state.head.map(|head| head.commitment.sequence)
    }
}

/// Locks; a panic of another holder leaves nothing half done in what is guarded here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what waits for a disk in the loop's own task, off the runtime's back.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    task::block_in_place(work)
}

/// For log lines.
fn ms_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Stops the process if the history failed to write (S11).
fn fatal(error: HistoryError) -> RunError {
    if let HistoryError::Commit(commit) = &error {
        promises::stop_on_failed_write(commit);
    }
    error.into()
}
