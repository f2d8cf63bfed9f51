//! Starts the coordinator and runs it: one task follows the chain, one answers the network, one carries
//! batches through the stages.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use chain::{
    follow::{FollowError, Follower},
    rpc::{BitcoinRpc, RpcError},
};
use ledger::{Operation, OperationError, SequenceNumber, Transition};
use node::{
    certificate,
    clock::now_ms,
    files,
    history::{self, History, HistoryError},
};
use p2p::{Event, Network, PeerAddress};
use proof::{Keys, ProvingKey};
use protocol::{
    api::{BatchStatus, RequestStatus},
    deposit::TermsError,
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Refusal, Rule, decode, encode},
    roster::Roster,
    signing::Input,
    transaction::{BatchPlan, BatchTransaction, BuildError, Commitment, Swept, Treasury},
    vault::{Vault, VaultError},
};
use storage::{Changes, CommitError, PushError, ReadError, Schema, Store};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    aggregate, api, batch, broadcast, confirm, detect,
    genesis::Founding,
    gossip::Sessions,
    live::{Live, Reader, SharedHistory, Watched},
    prove,
    queue::{self, enqueue},
    records::{self, BATCHES, BatchRecord},
    settings::Settings,
};

/// The pipeline looks for work at least this often.
const TICK: Duration = Duration::from_millis(250);
/// After a stage has failed it is tried again this much later.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a stage could not do its work now.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A failed safety write: the process stops (S11).
    #[error("a safety write failed")]
    Commit(#[from] CommitError),
    /// The database.
    #[error("the database can't be read")]
    Read(#[from] ReadError),
    /// A stage queue.
    #[error("a stage queue takes no more")]
    Push(#[from] PushError),
    /// bitcoind.
    #[error("bitcoind did not answer")]
    Rpc(#[from] RpcError),
    /// No fee rate.
    #[error("there is no fee rate")]
    Fee(#[from] chain::fees::FeeError),
    /// The chain can't be followed.
    #[error("the chain can't be followed")]
    Follow(#[from] FollowError),
    /// The history can't go on.
    #[error("the history can't go on")]
    History(#[from] HistoryError),
    /// The transaction can't be built.
    #[error("the transaction can't be built")]
    Build(#[from] BuildError),
    /// Stored terms give no address.
    #[error("stored terms give no address")]
    Terms(#[from] TermsError),
    /// The vault does not open.
    #[error("the vault does not open")]
    Vault(#[from] VaultError),
    /// A fault of our own.
    #[error("{0}")]
    Fault(String),
}

/// A look at the history from elsewhere.
#[derive(Clone)]
pub struct View(SharedHistory);

impl View {
    /// The latest treasury.
    pub fn head(&self) -> Option<Treasury> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(History::head)
    }
}

/// What the stages share. One task owns it.
pub struct Pipeline {
    /// The database.
    pub store: Store,
    /// The network.
    pub network: Network,
    /// Where the network's events find the session.
    pub sessions: Sessions,
    /// Own Bitcoin node.
    pub rpc: BitcoinRpc,
    /// Makes proofs.
    pub keys: Arc<ProvingKey>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// The roster.
    pub roster: Arc<Roster>,
    /// This coordinator.
    pub me: PeerKey,
    /// Own settings.
    pub settings: Settings,
    /// Held while a record that the chain may change too is read, changed and written.
    pub writing: Arc<Mutex<()>>,
    /// Set on shutdown.
    pub stop: CancellationToken,
    /// Since when requests wait, in ms.
    pub waiting_since: Option<u64>,
    history: SharedHistory,
    live: watch::Sender<Live>,
}

impl Pipeline {
    /// Writes durably; a failure stops the process (S11).
    ///
    /// # Errors
    /// Only when the runtime is going down.
    pub async fn commit(&self, changes: Changes) -> Result<(), StageError> {
        commit(&self.store, changes).await
    }

    /// A look at the history for others.
    pub fn view(&self) -> View {
        View(self.history.clone())
    }

    /// The latest treasury.
    pub fn head(&self) -> Option<Treasury> {
        self.view().head()
    }

    /// Height of the chain as taken in.
    pub fn height(&self) -> u32 {
        self.live.borrow().height
    }

    /// Tells people what is being done.
    pub fn say(&self, phase: String) {
        self.live.send_modify(|live| live.phase = phase);
    }

    /// The treasury that the next batch spends, if no batch is under way and the ledger is current.
    ///
    /// # Errors
    /// A damaged database.
    pub fn idle_head(&self) -> Result<Option<Treasury>, StageError> {
        let history = self.history.read().unwrap_or_else(PoisonError::into_inner);
        let Some(history) = history.as_ref().filter(|history| history.is_current()) else {
            return Ok(None);
        };
        let head = history.head();
        let next = head.commitment.sequence.0.saturating_add(1);
        let busy = self
            .store
            .get(&BATCHES, &next)?
            .is_some_and(|record| record.status != BatchStatus::Abandoned);
        Ok((!busy && self.live.borrow().alarm.is_none()).then_some(head))
    }

    /// Replays operations on the ledger without changing it.
    ///
    /// # Errors
    /// [`StageError`]; the inner error names the operation that does not apply.
    pub fn replay(
        &self,
        operations: &[Operation],
        sequence: SequenceNumber,
    ) -> Result<Result<Transition, (usize, OperationError)>, StageError> {
        let mut history = self.history.write().unwrap_or_else(PoisonError::into_inner);
        let history = history
            .as_mut()
            .ok_or_else(|| StageError::Fault("no history".into()))?;
        Ok(history.replay(operations, sequence))
    }

    /// What a batch does to the ledger; `None` when it does not follow the head any more.
    ///
    /// # Errors
    /// A damaged database.
    pub fn transition(&self, record: &BatchRecord) -> Result<Option<Transition>, StageError> {
        let follows = self.head().is_some_and(|head| {
            head.commitment.sequence.0.checked_add(1) == Some(record.sequence.0)
        });
        if !follows {
            return Ok(None);
        }
        Ok(self.replay(&record.operations, record.sequence)?.ok())
    }

    /// The transaction of a batch on the present head.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn transaction(
        &self,
        record: &BatchRecord,
        transition: &Transition,
    ) -> Result<BatchTransaction, StageError> {
        let head = self
            .head()
            .ok_or_else(|| StageError::Fault("no head".into()))?;
        let group = self.vault.group_key();
        let outpoints = record
            .operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Deposit { outpoint, .. } => Some(*outpoint),
                _ => None,
            });
        let deposits: Vec<Swept> = outpoints
            .zip(&record.values)
            .zip(&record.terms)
            .map(|((outpoint, value), terms)| {
                Ok(Swept {
                    outpoint,
                    value: *value,
                    address: terms.address(&group)?,
                })
            })
            .collect::<Result<_, TermsError>>()?;
        let withdrawals: Vec<_> = record
            .operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Withdraw {
                    amount,
                    script_pubkey,
                    ..
                } => Some(bitcoin::TxOut {
                    value: *amount,
                    script_pubkey: script_pubkey.clone(),
                }),
                _ => None,
            })
            .collect();
        let plan = BatchPlan {
            treasury: &head,
            deposits: &deposits,
            top_ups: &record.top_ups,
            withdrawals: &withdrawals,
            next: Commitment {
                sequence: record.sequence,
                supply: transition.after.supply,
                digest: transition.digest_after().to_bytes(),
            },
            fee: record.fee,
        };
        Ok(BatchTransaction::build(self.vault.key(), &plan)?)
    }

    /// Gives a batch up: an operation that operators refuse by name is refused, the others wait again.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn abandon(
        &self,
        mut record: BatchRecord,
        why: &str,
        changes: &mut Changes,
    ) -> Result<(), StageError> {
        let mut blamed: BTreeMap<[u8; 32], (usize, String)> = BTreeMap::new();
        for (_, refusal) in &record.refusals {
            if let Some(id) = refusal.operation {
                let entry = blamed
                    .entry(id.0)
                    .or_insert_with(|| (0, refusal.to_string()));
                entry.0 = entry.0.saturating_add(1);
            }
        }
        let enough = self
            .roster
            .operators
            .len()
            .saturating_sub(usize::from(self.roster.threshold))
            .saturating_add(1);
        tracing::warn!(
            sequence = record.sequence.0,
            why,
            refusals = record.refusals.len(),
            "batch abandoned"
        );
        for (request, operation) in record.requests.iter().zip(&record.operations) {
            let id = operation.id(&self.vault.id());
            if let Some((_, reason)) = blamed.get(&id.0).filter(|(count, _)| *count >= enough) {
                queue::mark(&self.store, changes, request, |progress| {
                    progress.refuse(reason.clone(), now_ms())
                })?;
                continue;
            }
            let mut tries = 0;
            queue::mark(&self.store, changes, request, |progress| {
                progress.step(RequestStatus::Queued, now_ms());
                progress.reason = Some(why.to_owned());
                progress.sequence = None;
                progress.tries = progress.tries.saturating_add(1);
                tries = progress.tries;
            })?;
            enqueue(&self.store, changes, id, tries, *request)?;
        }
        record.status = BatchStatus::Abandoned;
        changes.put(&BATCHES, &record.sequence.0, &record);
        Ok(())
    }
}

/// Writes durably, off the async threads; a failure stops the process (S11).
async fn commit(store: &Store, changes: Changes) -> Result<(), StageError> {
    if changes.is_empty() {
        return Ok(());
    }
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.commit(changes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::error!(%error, "a safety write failed; stopping (S11)");
            std::process::abort()
        }
        Err(error) => Err(StageError::Fault(error.to_string())),
    }
}

/// Runs a coordinator until `stop` is set.
///
/// # Errors
/// What makes it impossible to start, or to go on.
pub async fn run(settings_file: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let settings = Settings::load(settings_file)?;
    let roster = Arc::new(files::load_roster(&settings.roster)?);
    let parameters = Arc::new(files::load_parameters(&settings.parameters)?);
    settings.fees.check(parameters.network)?;
    let identity = files::load_identity(&settings.data_dir.join("identity"))?;
    let me = identity.public();
    anyhow::ensure!(
        roster.is_coordinator(&me),
        "this node's key {me} is not among the roster's coordinators"
    );
    tracing::info!("loading the proving key");
    let keys = Keys::load(&settings.keys).context("the proof keys can't be loaded")?;
    let verifying_key_hash = keys.verifying.hash().0;
    let setup = keys.verifying.label().to_owned();
    let rpc = BitcoinRpc::new(&settings.bitcoind)?;
    let agreed = hex::encode(protocol::hash::tagged(
        "drawbridge/network",
        &[&roster.hash(), &parameters.hash()],
    ));
    let store = Store::open(
        settings.data_dir.join("db"),
        &Schema {
            kind: "coordinator",
            network: &agreed,
            columns: &records::columns(),
        },
    )?;
    let (network, events) = p2p::start(
        &identity,
        &p2p::Settings {
            listen: settings.listen.clone(),
            peers: peers(&roster, &me),
            network: agreed.clone(),
        },
    )
    .await?;
    let live = watch::Sender::new(Live {
        phase: "starting".into(),
        ..Live::default()
    });
    let reader = Reader {
        store: store.clone(),
        live: live.subscribe(),
        history: SharedHistory::default(),
        watched: Watched::default(),
        parameters: parameters.clone(),
        roster: roster.clone(),
        verifying_key_hash,
        setup,
        wake: Arc::new(Notify::new()),
    };
    let listener = tokio::net::TcpListener::bind(settings.http)
        .await
        .with_context(|| format!("can't listen on {}", settings.http))?;
    tracing::info!(url = %format!("http://{}", listener.local_addr()?), "serving HTTP");
    let router = api::router(reader.clone(), settings.requests_per_second);
    let http = tokio::spawn(api::serve(listener, router, stop.clone()));
    let sessions = Sessions::default();
    let answering = tokio::spawn(answer(
        events,
        Desk {
            store: store.clone(),
            roster: roster.clone(),
            sessions: sessions.clone(),
            rpc: rpc.clone(),
        },
        stop.clone(),
    ));
    let result = found_and_follow(
        Parts {
            settings,
            roster,
            parameters,
            me,
            keys: Arc::new(keys.proving),
            verifying_key_hash,
            rpc,
            store,
            network: network.clone(),
            sessions,
            live,
            reader,
        },
        stop.clone(),
    )
    .await;
    stop.cancel();
    network.shutdown().await;
    let _ = answering.await;
    http.await??;
    result
}

struct Parts {
    settings: Settings,
    roster: Arc<Roster>,
    parameters: Arc<protocol::parameters::Parameters>,
    me: PeerKey,
    keys: Arc<ProvingKey>,
    verifying_key_hash: [u8; 32],
    rpc: BitcoinRpc,
    store: Store,
    network: Network,
    sessions: Sessions,
    live: watch::Sender<Live>,
    reader: Reader,
}

async fn found_and_follow(parts: Parts, stop: CancellationToken) -> anyhow::Result<()> {
    let Parts {
        settings,
        roster,
        parameters,
        me,
        keys,
        verifying_key_hash,
        rpc,
        store,
        network,
        sessions,
        live,
        reader,
    } = parts;
    let founding = Founding {
        store: &store,
        network: &network,
        sessions: &sessions,
        rpc: &rpc,
        parameters: &parameters,
        roster: roster.clone(),
        verifying_key_hash,
        me,
        live: &live,
        stop: &stop,
    };
    let Some(vault) = founding.vault().await? else {
        return Ok(());
    };
    let vault = Arc::new(vault);
    tracing::info!(vault = %hex::encode(vault.id().0), "the vault is open");
    let start = store.get(&records::GENESIS_SEARCH, &())?.unwrap_or(0);
    let opened = History::open(store.clone(), vault.clone(), start)?;
    let follower = Follower::new(rpc.clone(), parameters.network, opened.position().clone());
    let height = opened.height();
    let watched = detect::load_watched(&store, &vault.group_key())?;
    reader
        .watched
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(watched);
    *reader
        .history
        .write()
        .unwrap_or_else(PoisonError::into_inner) = Some(opened);
    live.send_modify(|live| {
        live.vault = Some(vault.clone());
        live.phase = "idle".into();
        live.height = height;
    });
    let writing = Arc::new(Mutex::new(()));
    let pipeline = Pipeline {
        store: store.clone(),
        network: network.clone(),
        sessions,
        rpc,
        keys,
        vault: vault.clone(),
        roster,
        me,
        settings,
        writing: writing.clone(),
        stop: stop.clone(),
        waiting_since: None,
        history: reader.history.clone(),
        live: live.clone(),
    };
    let working = tokio::spawn(work(pipeline, reader.wake.clone(), stop.clone()));
    let result = follow(
        follower, &store, &vault, &reader, &live, &network, &writing, &stop,
    )
    .await;
    stop.cancel();
    working.await?;
    result.map_err(Into::into)
}

/// Every other node of the roster, with its addresses.
fn peers(roster: &Roster, me: &PeerKey) -> Vec<PeerAddress> {
    roster
        .members()
        .filter(|member| member.key != *me)
        .map(|member| PeerAddress {
            key: member.key,
            addresses: member.addresses.clone(),
        })
        .collect()
}

/// Carries batches through the stages, one step at a time.
async fn work(mut pipeline: Pipeline, wake: Arc<Notify>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match step(&mut pipeline).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(StageError::Commit(error)) => {
                tracing::error!(%error, "a safety write failed; stopping (S11)");
                std::process::abort()
            }
            Err(error) => {
                tracing::warn!(error = %anyhow::Error::from(error).root_cause(), "a stage failed; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// The stages, last first, so that what is nearest to the chain goes on first.
async fn step(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    if broadcast::run(pipeline).await? {
        return Ok(true);
    }
    broadcast::again(pipeline).await?;
    Ok(aggregate::run(pipeline).await?
        || prove::run(pipeline).await?
        || batch::form(pipeline).await?)
}

/// Follows the chain: detect, history, confirm.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of one loop; it is called once"
)]
async fn follow(
    mut follower: Follower,
    store: &Store,
    vault: &Vault,
    reader: &Reader,
    live: &watch::Sender<Live>,
    network: &Network,
    writing: &Mutex<()>,
    stop: &CancellationToken,
) -> Result<(), StageError> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let status = follower.status();
    loop {
        let step = tokio::select! {
            step = follower.next() => step?,
            _ = tick.tick() => {
                let answers = status.borrow().reachable;
                live.send_modify(|live| {
                    live.connected = network.connected();
                    live.bitcoind = answers;
                });
                continue;
            }
            () = stop.cancelled() => return Ok(()),
        };
        let _writing = writing.lock().await;
        let mut changes = Changes::new();
        detect::take(store, &reader.watched, vault, &step.event, &mut changes)?;
        commit(store, changes).await?;
        let (moved, height) = {
            let mut history = reader
                .history
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let history = history
                .as_mut()
                .ok_or_else(|| StageError::Fault("no history".into()))?;
            (history.take(step)?, history.height())
        };
        if let Some(txid) = moved.unknown_spend {
            tracing::error!(%txid, "an unknown transaction spends the treasury; signing stops (S14)");
            live.send_modify(|live| {
                live.alarm = Some(format!("unknown transaction {txid} spends the treasury"))
            });
        }
        let mut changes = Changes::new();
        confirm::take(
            store,
            &moved,
            height,
            vault.parameters().final_confirmations,
            &mut changes,
        )?;
        commit(store, changes).await?;
        live.send_modify(|live| {
            live.height = height;
            if !moved.connected.is_empty() {
                live.phase = "idle".into();
            }
        });
        reader.wake.notify_one();
    }
}

/// What the network's questions are answered from.
struct Desk {
    store: Store,
    roster: Arc<Roster>,
    sessions: Sessions,
    rpc: BitcoinRpc,
}

/// Answers the network.
async fn answer(mut events: mpsc::Receiver<Event>, desk: Desk, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            None => return,
            Some(Event::Ask { from, data, reply }) => {
                let answer = match decode::<Ask>(&data) {
                    Ok(ask) => desk.answer(from, ask),
                    Err(error) => Answer::Refused(Refusal::new(Rule::S12, error.to_string())),
                };
                reply.send(encode(&answer));
            }
            Some(Event::Gossip { from, data }) => desk.listen(from, &data),
            Some(Event::Connected(peer)) => tracing::info!(%peer, "connected"),
            Some(Event::Disconnected(peer)) => tracing::info!(%peer, "disconnected"),
        }
    }
}

impl Desk {
    fn answer(&self, from: PeerKey, ask: Ask) -> Answer {
        match self.try_answer(from, ask) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "the database can't be read");
                Answer::Refused(Refusal::new(Rule::S12, "this node can't read its database"))
            }
        }
    }

    fn try_answer(&self, from: PeerKey, ask: Ask) -> Result<Answer, ReadError> {
        Ok(match ask {
            Ask::Genesis => Answer::Genesis(certificate::load(&self.store)?),
            Ask::Group => Answer::Group(self.store.get(&records::GROUP, &())?),
            Ask::Body(hash) => {
                self.sessions.pulled(hash);
                Answer::Body(history::kept_body(&self.store, &hash)?)
            }
            Ask::Batch(sequence) => Answer::Batch(self.confirmed(sequence)?),
            Ask::Accept {
                session,
                commitments,
            } => match self.roster.signer(&from) {
                Some(signer)
                    if self.sessions.tell(
                        &session,
                        Input::Accepted {
                            from: signer,
                            commitments,
                        },
                    ) =>
                {
                    Answer::Taken
                }
                _ => Answer::Refused(Refusal::new(Rule::S12, "no such session is open here")),
            },
            Ask::Refuse { session, refusal } => match self.roster.signer(&from) {
                Some(signer) => {
                    tracing::warn!(operator = %from, %refusal, "an operator refuses");
                    self.sessions.tell(
                        &session,
                        Input::Refused {
                            from: signer,
                            refusal,
                        },
                    );
                    Answer::Taken
                }
                None => Answer::Refused(Refusal::new(Rule::S12, "only operators vote")),
            },
            Ask::Dkg { .. } | Ask::Keep { .. } | Ask::Sign { .. } => {
                Answer::Refused(Refusal::new(Rule::S12, "a coordinator does not do this"))
            }
        })
    }

    /// A confirmed batch for a node that lacks it.
    fn confirmed(
        &self,
        sequence: SequenceNumber,
    ) -> Result<Option<(protocol::batch::Candidate, Vec<u8>)>, ReadError> {
        let Some(row) = self.store.get(&history::CONFIRMED, &sequence.0)? else {
            return Ok(None);
        };
        let Some(candidate) = history::kept_candidate(&self.store, &row.txid)? else {
            return Ok(None);
        };
        let body = history::kept_body(&self.store, &candidate.body)?;
        Ok(body.map(|body| (candidate, body)))
    }

    fn listen(&self, from: PeerKey, data: &[u8]) {
        match decode::<Gossip>(data) {
            // Another coordinator's: help it along. The node judges the transaction itself.
            Ok(Gossip::Signed { transaction, .. }) => {
                let rpc = self.rpc.clone();
                tokio::spawn(async move {
                    if let Err(error) = chain::submit::submit(&rpc, &transaction).await {
                        tracing::debug!(%error, "a gossiped transaction was not submitted");
                    }
                });
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%from, %error, "gossip not understood"),
        }
    }
}
