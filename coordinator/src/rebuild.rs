//! Total loss: what this coordinator lacks comes back from the other nodes and from the chain, and nothing of it is
//! believed that can be checked. The certificate is all operators' signature; a body must give the digest that the
//! chain has; terms must be the vault's; an operation must be its sender's.
//!
//! ```text
//! certificate, height of the genesis --> terms of deposit addresses --> blocks --> bodies of confirmed batches
//!                                                                   --> records of batches --> waiting operations
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use bitcoin::Amount;
use ledger::{Operation, OperationId, SequenceNumber};
use node::{
    certificate,
    clock::now_ms,
    history::{self, Confirmed},
};
use p2p::Network;
use protocol::{
    api::{BatchStatus, RequestStatus, StageTimes},
    batch::{Body, Candidate},
    identity::PeerKey,
    message::{Answer, Ask, decode, encode},
    pipeline::request::Input,
    request::{self, MAX_PAGES, RequestName, UserRequest},
    roster::Roster,
    vault::{GenesisCertificate, Vault},
};
use storage::{Changes, Place, ReadError};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    events,
    live::Reader,
    pipeline::{StageError, commit},
    queue::{self, AcceptError},
    records::{
        BATCHES, BatchRecord, DEPOSITS, DEPOSITS_OF, DepositRecord, OPERATIONS, OperationRecord,
        PROVE, Progress, Request, TOP_UPS,
    },
    terms, top_up,
};

/// How often what is missing is looked for.
const POLL: Duration = Duration::from_millis(500);
/// How long the slower nodes are waited for once a quorum has listed its requests.
const GRACE: Duration = Duration::from_secs(5);
/// Pages that wait to be taken.
const PAGES_WAITING: usize = 4;
/// Batches recorded in one write.
const MAX_RECORDED: usize = 64;
/// Operations of other nodes that wait for the ledger to be current.
const MAX_WAITING: usize = 200_000;

/// Asks one node.
async fn ask(network: &Network, peer: PeerKey, ask: &Ask) -> Option<Answer> {
    decode(&network.ask(peer, encode(ask)).await.ok()?).ok()
}

/// A certificate of the genesis that a node shows, and the height of its block as that node says.
pub async fn certificate(
    network: &Network,
    peer: PeerKey,
) -> Option<(GenesisCertificate, Option<u32>)> {
    let Some(Answer::Genesis(Some(certificate))) = ask(network, peer, &Ask::Genesis).await else {
        return None;
    };
    match ask(network, peer, &Ask::GenesisHeight).await {
        Some(Answer::GenesisHeight(height)) => Some((certificate, height)),
        _ => Some((certificate, None)),
    }
}

/// What a node that is asked for its requests has to say.
enum Listed {
    Page(PeerKey, Vec<UserRequest>),
    /// It has listed everything, or has failed to.
    End(PeerKey, bool),
}

/// Fetches what the other nodes keep of users' requests. Terms are stored and watched; the signed operations are given
/// back, for when the ledger is there to judge them. Waits until t operators have listed theirs, unless `is_patient` is
/// not set: then only as long as the slower ones are waited for.
pub async fn fetch_requests(
    network: &Network,
    roster: &Roster,
    reader: &Reader,
    vault: &Vault,
    is_patient: bool,
    stop: &CancellationToken,
) -> Vec<Operation> {
    let mut fetched = Fetched {
        most: MAX_WAITING
            .checked_div(roster.members().count())
            .unwrap_or(0),
        ..Fetched::default()
    };
    let mut asked = BTreeSet::new();
    let mut listed = BTreeSet::new();
    // Aborted when this ends: a slow node keeps nobody.
    let mut listing = JoinSet::new();
    let (pages, mut heard) = mpsc::channel(PAGES_WAITING);
    let mut until = (!is_patient).then(|| Instant::now() + GRACE);
    while !stop.is_cancelled() && until.is_none_or(|until| Instant::now() < until) {
        for peer in network.connected() {
            if asked.insert(peer) {
                listing.spawn(list(network.clone(), peer, pages.clone()));
            }
        }
        tokio::select! {
            Some(said) = heard.recv() => match said {
                Listed::Page(peer, page) => {
                    tokio::task::block_in_place(|| fetched.take(peer, page, reader, vault));
                }
                Listed::End(peer, true) => {
                    tracing::info!(%peer, "fetched the requests that a node keeps");
                    listed.insert(peer);
                }
                Listed::End(peer, false) => {
                    asked.remove(&peer);
                    tokio::time::sleep(POLL).await;
                }
            },
            () = tokio::time::sleep(POLL) => {}
            () = stop.cancelled() => {}
        }
        while listing.try_join_next().is_some() {}
        let operators = roster
            .operators
            .iter()
            .filter(|member| listed.contains(&member.key))
            .count();
        if operators == roster.operators.len() {
            break;
        }
        if operators >= usize::from(roster.threshold) {
            until.get_or_insert_with(|| Instant::now() + GRACE);
        }
    }
    fetched.operations.into_values().collect()
}

/// What has come so far.
#[derive(Default)]
struct Fetched {
    /// Judged once the ledger is there.
    operations: BTreeMap<OperationId, Operation>,
    /// Operations taken from each node.
    taken: BTreeMap<PeerKey, usize>,
    /// Most that are taken from one node: it can't crowd out what the others keep.
    most: usize,
    /// Nodes of whom no more terms can be kept.
    full: BTreeSet<PeerKey>,
}

impl Fetched {
    fn take(&mut self, peer: PeerKey, page: Vec<UserRequest>, reader: &Reader, vault: &Vault) {
        let mut addresses = Vec::new();
        for request in page {
            match request {
                UserRequest::Terms(_) if self.full.contains(&peer) => {}
                UserRequest::Terms(terms) => {
                    addresses.extend(request::check_terms(&terms, vault));
                }
                UserRequest::Signed(operation) => {
                    let id = operation.id(&vault.id());
                    let taken = self.taken.entry(peer).or_default();
                    if *taken < self.most && !self.operations.contains_key(&id) {
                        *taken = taken.saturating_add(1);
                        self.operations.insert(id, operation);
                    }
                }
            }
        }
        // One write a page: a disk syncs a few hundred times a second.
        if let Err(error) = reader.shown.keep_all(&addresses, Some(peer)) {
            // Said once: it is the same for all that follow from this node.
            tracing::error!(%error, %peer, "fetched terms are not kept");
            self.full.insert(peer);
        }
    }
}

/// Lists everything that a node keeps, page by page, and says how it ended.
async fn list(network: Network, peer: PeerKey, pages: mpsc::Sender<Listed>) {
    let mut after: Option<RequestName> = None;
    let mut is_whole = false;
    for _ in 0..MAX_PAGES {
        let Some(Answer::Requests(page)) = ask(&network, peer, &Ask::Requests { after }).await
        else {
            break;
        };
        if page.is_empty() {
            is_whole = true;
            break;
        }
        after = RequestName::behind(&page, after);
        if after.is_none() {
            break;
        }
        if pages.send(Listed::Page(peer, page)).await.is_err() {
            return;
        }
    }
    // Nobody listens once enough have listed theirs.
    let _ = pages.send(Listed::End(peer, is_whole)).await;
}

/// Brings back what is missing, for as long as the coordinator runs: it may also have been away while another one
/// worked.
pub struct Rebuilder {
    /// The network.
    pub network: Network,
    /// History, database, requests.
    pub reader: Reader,
    /// Held while a record that another stage may change too is read, changed and written.
    pub writing: std::sync::Arc<Mutex<()>>,
    /// The vault.
    pub vault: std::sync::Arc<Vault>,
    /// Signed operations that other nodes keep.
    pub operations: Vec<Operation>,
    /// Batches up to this one have their record; `None` before it was looked at.
    pub recorded: Option<u64>,
}

impl Rebuilder {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut turn = 0_usize;
        while !stop.is_cancelled() {
            match self.step(turn).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    error.stop_if_unwritten();
                    tracing::warn!(error = %anyhow::Error::from(error).root_cause(), "what is missing could not be brought back; trying again");
                }
            }
            turn = turn.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One piece of work. Gives whether there may be more at once.
    async fn step(&mut self, turn: usize) -> Result<bool, StageError> {
        let missing = self.look(|history| Ok(history.missing()))?.flatten();
        if let Some((sequence, _)) = missing {
            return self.fetch_batch(sequence, turn).await;
        }
        if self.record().await? {
            return Ok(true);
        }
        self.offer();
        Ok(false)
    }

    fn look<T>(
        &self,
        look: impl FnOnce(&mut history::History) -> Result<T, StageError>,
    ) -> Result<Option<T>, StageError> {
        let mut history = self
            .reader
            .history
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        history.as_mut().map(look).transpose()
    }

    /// Fetches a confirmed batch's data; each time another node is asked first.
    async fn fetch_batch(&self, sequence: SequenceNumber, turn: usize) -> Result<bool, StageError> {
        let connected = self.network.connected();
        let first = turn.checked_rem(connected.len()).unwrap_or(0);
        for peer in connected.iter().cycle().skip(first).take(connected.len()) {
            let answer = ask(&self.network, *peer, &Ask::Batch(sequence)).await;
            let Some(Answer::Batch(Some((candidate, body)))) = answer else {
                continue;
            };
            let adopted = tokio::task::block_in_place(|| {
                self.look(|history| Ok(history.adopt(&candidate, &body)?))
            })?;
            if adopted == Some(true) {
                tracing::info!(sequence = sequence.0, %peer, "the data of a confirmed batch was fetched");
                self.reader.wake.notify_one();
                return Ok(true);
            }
            tracing::warn!(sequence = sequence.0, %peer, "a node's batch is not the one that was confirmed");
        }
        Ok(false)
    }

    /// Writes records of confirmed batches that another coordinator made, or this one before it lost its disk.
    async fn record(&mut self) -> Result<bool, StageError> {
        let _writing = self.writing.clone().lock_owned().await;
        let (applied, height) = self
            .look(|history| Ok((history.applied(), history.height())))?
            .unwrap_or_default();
        // Records are made upwards, so what has one is below what has none; a reorganisation changes the upper ones.
        let mut recorded = self.recorded.unwrap_or(applied).min(applied);
        while recorded > 0 && !self.is_recorded(SequenceNumber(recorded))? {
            recorded = recorded.saturating_sub(1);
        }
        let mut changes = Changes::new();
        let mut made = 0_usize;
        while recorded < applied && made < MAX_RECORDED {
            let sequence = SequenceNumber(recorded.saturating_add(1));
            if !self.is_recorded(sequence)? {
                let old = self.reader.store.get(&BATCHES, &sequence.0)?;
                let is_active = |old: &BatchRecord| {
                    matches!(old.status, BatchStatus::Formed | BatchStatus::Proven)
                };
                let is_dead = |old: &BatchRecord| {
                    let place = self.reader.store.queue(&PROVE)?.place(&old.key())?;
                    Ok::<_, ReadError>(place == Some(Place::Dead))
                };
                // Nobody works at a dead letter.
                if let Some(old) = old.as_ref().filter(|old| is_active(old))
                    && !is_dead(old)?
                {
                    // The pipeline gives it up by itself, and its requests wait again.
                    break;
                }
                let Some((batch, candidate, body)) = self.batch(sequence)? else {
                    break;
                };
                made = made.saturating_add(1);
                self.put(&mut changes, old, &batch, &candidate, &body, height)?;
                // What one batch has done, the next one's record must see.
                commit(&self.reader.store, std::mem::take(&mut changes)).await?;
            }
            recorded = sequence.0;
        }
        self.recorded = Some(recorded);
        Ok(made >= MAX_RECORDED)
    }

    /// Whether a confirmed batch has its own record.
    fn is_recorded(&self, sequence: SequenceNumber) -> Result<bool, StageError> {
        let txid = self.look(|history| Ok(history.confirmed(sequence).map(|batch| batch.txid)))?;
        let record = self.reader.store.get(&BATCHES, &sequence.0)?;
        Ok(txid
            .flatten()
            .is_some_and(|txid| record.and_then(|record| record.txid()) == Some(txid)))
    }

    fn batch(
        &self,
        sequence: SequenceNumber,
    ) -> Result<Option<(Confirmed, Candidate, Body)>, StageError> {
        self.look(|history| {
            let Some(batch) = history.confirmed(sequence).copied() else {
                return Ok(None);
            };
            let candidate = history::kept_candidate(&self.reader.store, &batch.txid)?;
            let body = history.body_of(&batch)?;
            Ok(candidate
                .zip(body)
                .map(|(candidate, body)| (batch, candidate, body)))
        })
        .map(Option::flatten)
    }

    fn put(
        &self,
        changes: &mut Changes,
        old: Option<BatchRecord>,
        batch: &Confirmed,
        candidate: &Candidate,
        body: &Body,
        height: u32,
    ) -> Result<(), StageError> {
        let store = &self.reader.store;
        let depth = height.saturating_add(1).saturating_sub(batch.height);
        let is_final = depth >= self.vault.parameters().final_confirmations;
        let (status, input) = if is_final {
            (BatchStatus::Final, Input::Final)
        } else {
            (BatchStatus::Confirmed, Input::Confirmed)
        };
        let requests: Vec<Request> = body
            .operations
            .iter()
            .map(|operation| match operation {
                Operation::Deposit { outpoint, .. } => Request::Deposit(*outpoint),
                signed => Request::Signed(signed.id(&self.vault.id())),
            })
            .collect();
        if let Some(old) = &old {
            self.requeue(changes, old, &requests)?;
        }
        let now = now_ms();
        let done = |progress: &mut Progress| {
            progress.take(input, None, now);
            progress.sequence = Some(candidate.sequence);
        };
        let mut terms = body.terms.iter();
        for (operation, request) in body.operations.iter().zip(&requests) {
            match (operation, request) {
                (
                    Operation::Deposit {
                        outpoint, amount, ..
                    },
                    _,
                ) => {
                    let Some(terms) = terms.next() else { continue };
                    let known = store.get(&DEPOSITS, outpoint)?;
                    let before = known.as_ref().map(|row| row.progress.clone());
                    let mut record = known.unwrap_or_else(|| DepositRecord {
                        outpoint: *outpoint,
                        terms: terms.hash(),
                        value: amount.checked_add(terms.fee).unwrap_or(*amount),
                        height: batch.height,
                        progress: Progress::new(RequestStatus::Received, now),
                    });
                    done(&mut record.progress);
                    match terms.address(&self.vault.group_key()) {
                        Ok(address) => terms::put(changes, &address),
                        Err(error) => tracing::error!(%error, "confirmed terms give no address"),
                    }
                    changes.put(&DEPOSITS_OF, &(terms.account.to_bytes(), *outpoint), &());
                    events::put_deposit(changes, before.as_ref(), &record);
                }
                (signed, Request::Signed(id)) => {
                    let known = store.get(&OPERATIONS, &id.0)?;
                    if known.is_some() {
                        queue::mark(store, changes, request, done)?;
                    } else {
                        let mut record = OperationRecord {
                            operation: signed.clone(),
                            progress: Progress::new(RequestStatus::Received, now),
                        };
                        done(&mut record.progress);
                        events::put_operation(changes, None, *id, &record);
                    }
                }
                _ => {}
            }
        }
        tracing::info!(
            stage = "rebuild",
            sequence = candidate.sequence.0,
            txid = %batch.txid,
            "a batch from elsewhere is recorded"
        );
        let record = self.record_of(batch, candidate, body, requests, status, old.as_ref())?;
        events::batch(changes, &record);
        changes.put(&BATCHES, &candidate.sequence.0, &record);
        if is_final {
            top_up::forget(changes, candidate);
        }
        Ok(())
    }

    /// The requests of a batch that lost against the confirmed one, and are not in that one, wait again.
    fn requeue(
        &self,
        changes: &mut Changes,
        old: &BatchRecord,
        done: &[Request],
    ) -> Result<(), StageError> {
        if old.status == BatchStatus::Abandoned {
            return Ok(());
        }
        for (request, operation) in old.requests.iter().zip(&old.operations) {
            if !done.contains(request) {
                let id = operation.id(&self.vault.id());
                let why = "another batch was confirmed instead";
                queue::release(&self.reader.store, changes, id, request, why)?;
            }
        }
        Ok(())
    }

    fn record_of(
        &self,
        batch: &Confirmed,
        candidate: &Candidate,
        body: &Body,
        requests: Vec<Request>,
        status: BatchStatus,
        old: Option<&BatchRecord>,
    ) -> Result<BatchRecord, ReadError> {
        let deposits = body.deposits().zip(&body.terms);
        let values: Vec<Amount> = deposits
            .map(|((_, amount), terms)| amount.checked_add(terms.fee).unwrap_or(amount))
            .collect();
        let mut top_ups = Vec::new();
        for outpoint in &candidate.top_ups {
            top_ups.extend(
                self.reader
                    .store
                    .get(&TOP_UPS, outpoint)?
                    .map(|row| row.top_up),
            );
        }
        let inputs = 1_usize
            .saturating_add(values.len())
            .saturating_add(candidate.top_ups.len());
        Ok(BatchRecord {
            sequence: candidate.sequence,
            tries: old.map_or(0, |old| old.tries.saturating_add(1)),
            status,
            requests,
            operations: body.operations.clone(),
            terms: body.terms.clone(),
            values,
            top_ups,
            fee: candidate.fee,
            body: Some(candidate.body),
            candidate: Some(candidate.clone()),
            transaction: None,
            candidates: Vec::new(),
            bump: None,
            bump_failure: None,
            shape: (inputs, body.withdrawals().len().saturating_add(2)),
            treasury: batch.treasury.value,
            supply: batch.treasury.commitment.supply,
            signers: Vec::new(),
            blamed: Vec::new(),
            refusals: Vec::new(),
            attempts: 0,
            signing_ms: None,
            reason: None,
            broadcast_ms: None,
            height: Some(batch.height),
            stage_ms: StageTimes::default(),
        })
    }

    /// Takes the operations that other nodes keep as if their users had sent them again.
    fn offer(&mut self) {
        let mut waiting = Vec::new();
        let mut taken = 0_usize;
        // In the order of their nonces, so that none comes before the one that it follows.
        self.operations
            .sort_by_key(|operation| (operation.sender(), operation.nonce()));
        for operation in self.operations.drain(..) {
            match tokio::task::block_in_place(|| queue::accept(&self.reader, operation.clone())) {
                Ok(_) => taken = taken.saturating_add(1),
                Err(AcceptError::NotCurrent | AcceptError::NoGenesis | AcceptError::QueueFull) => {
                    waiting.push(operation);
                }
                Err(error) => {
                    tracing::debug!(%error, "an operation that another node keeps is not for the queue");
                }
            }
        }
        self.operations = waiting;
        if taken > 0 {
            tracing::info!(taken, "operations that other nodes keep wait here again");
        }
    }
}

/// Stores a certificate that came from another node, with the height of its genesis.
///
/// # Errors
/// Fatal (S11).
pub fn save(
    store: &storage::Store,
    found: &GenesisCertificate,
    height: u32,
) -> Result<(), storage::CommitError> {
    let mut changes = Changes::new();
    changes.put(&certificate::CERTIFICATE, &(), found);
    changes.put(&crate::records::GENESIS_SEARCH, &(), &height);
    store.commit(changes)
}
