//! What the stages share: the store, the network, the vault, and the questions that they all ask of the history.

use std::{
    collections::BTreeMap,
    panic::Location,
    sync::{Arc, PoisonError},
};

use bitcoin::Amount;
use chain::{
    follow::FollowError,
    rpc::{BitcoinRpc, RpcError},
};
use ledger::{Operation, OperationError, OperationId, SequenceNumber, Transition, VaultId};
use node::{
    clock::now_ms,
    history::{History, HistoryError},
};
use p2p::Network;
use proof::ProvingKey;
use protocol::{
    api::BatchStatus,
    deposit::TermsError,
    identity::PeerKey,
    pipeline::Input,
    reputation::Standing,
    roster::Roster,
    transaction::{BatchPlan, BatchTransaction, BuildError, Commitment, Swept, Treasury},
    vault::{Vault, VaultError},
};
use storage::{Changes, CommitError, PushError, ReadError, Store};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    advance::advance,
    dissolve::Stuck,
    epoch::Epochs,
    gossip::Sessions,
    live::{Live, SharedHistory},
    pool::NoncePool,
    queue,
    records::{BATCHES, BatchRecord, LEFT_OUT},
    refusals::LeftOut,
    settings::Settings,
};

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
    /// What operators hand out ahead of time; empty unless the settings say so.
    pub pool: NoncePool,
    /// What is known of later epochs.
    pub epochs: Epochs,
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
    /// When the node was last asked for the batches that it was given, in ms.
    pub looked_ms: u64,
    /// Heights since which a signed batch can't get into a block by itself, and why, by its sequence number; at most as many
    /// as batches are open.
    pub stuck: BTreeMap<u64, (u32, Stuck)>,
    /// How the operators have done in sessions since this coordinator started.
    pub standing: Standing,
    /// The confirmed history. Writer: the task that follows the chain.
    pub history: SharedHistory,
    /// What is known now.
    pub live: watch::Sender<Live>,
}

impl Pipeline {
    /// Writes durably; a failure stops the process (S11).
    ///
    /// # Errors
    /// Only when the runtime is going down.
    #[track_caller]
    pub fn commit(&self, changes: Changes) -> impl Future<Output = Result<(), StageError>> + use<> {
        commit(&self.store, changes)
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

    /// Tells people what the vault must be topped up with, or that nothing waits for that.
    pub fn ask_for_top_up(&self, lacking: Option<Amount>) {
        self.live.send_if_modified(|live| {
            let changed = live.top_up != lacking;
            live.top_up = lacking;
            changed
        });
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
        if self.live.borrow().is_behind {
            return Ok(None);
        }
        let head = history.head();
        let next = head.commitment.sequence.0.saturating_add(1);
        // What the last one has done is in the requests' records, whoever made it.
        if next > 1 && !self.is_recorded(&head)? {
            return Ok(None);
        }
        let busy = self
            .store
            .get(&BATCHES, &next)?
            .is_some_and(|record| record.status != BatchStatus::Abandoned);
        Ok((!busy && self.live.borrow().alarm.is_none()).then_some(head))
    }

    fn is_recorded(&self, head: &Treasury) -> Result<bool, StageError> {
        let record = self.store.get(&BATCHES, &head.commitment.sequence.0)?;
        Ok(record.is_some_and(|record| {
            let is_in_chain = matches!(record.status, BatchStatus::Confirmed | BatchStatus::Final);
            is_in_chain && record.txid() == Some(head.outpoint.txid)
        }))
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

    /// Gives a batch up. Its requests wait again: at once, or those left out for a while, longer each time.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn abandon(
        &self,
        record: BatchRecord,
        why: &str,
        left_out: &BTreeMap<OperationId, LeftOut>,
        changes: &mut Changes,
    ) -> Result<(), StageError> {
        abandon(
            &self.store,
            &self.vault.id(),
            record,
            why,
            left_out,
            changes,
        )
    }
}

/// [`Pipeline::abandon`] of a batch of `vault`.
///
/// # Errors
/// [`StageError`].
pub fn abandon(
    store: &Store,
    vault: &VaultId,
    mut record: BatchRecord,
    why: &str,
    left_out: &BTreeMap<OperationId, LeftOut>,
    changes: &mut Changes,
) -> Result<(), StageError> {
    let sequence = record.sequence.0;
    advance(store, changes, &mut record, Input::Dissolved, Some(why))?;
    tracing::warn!(
        sequence,
        why,
        refusals = record.refusals.len(),
        left_out = left_out.len(),
        "batch abandoned"
    );
    for (request, operation) in record.requests.iter().zip(&record.operations) {
        let id = operation.id(vault);
        let out = left_out.get(&id);
        let now = now_ms();
        match out {
            None => queue::release(store, changes, id, request, why)?,
            Some(out) if queue::is_confirmed(store, request)? => {
                tracing::info!(sequence, operation = %id, reason = out.reason, "left out, and in another batch");
            }
            Some(out) if out.is_final => queue::mark(store, changes, request, |progress| {
                progress.refuse(out.reason.clone(), now);
            })?,
            Some(out) => {
                if let Some(tries) = queue::wait(store, changes, request, &out.reason)? {
                    tracing::info!(sequence, operation = %id, reason = out.reason, "left out");
                    let until = queue::comes_back_ms(now, tries);
                    changes.put(&LEFT_OUT, &(until, id.0), request);
                }
            }
        }
    }
    changes.put(&BATCHES, &record.sequence.0, &record);
    Ok(())
}

/// Writes durably, off the async threads; a failure stops the process (S11).
///
/// # Errors
/// Only when the runtime is going down.
#[track_caller]
pub fn commit(
    store: &Store,
    changes: Changes,
) -> impl Future<Output = Result<(), StageError>> + use<> {
    let (store, place) = (store.clone(), Location::caller());
    async move {
        if changes.is_empty() {
            return Ok(());
        }
        match tokio::task::spawn_blocking(move || store.commit_for(place, changes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => stop_on_failed_write(&error),
            Err(error) => Err(StageError::Fault(error.to_string())),
        }
    }
}

impl StageError {
    /// Ends the process if it is a write that failed (S11).
    pub fn stop_if_unwritten(&self) {
        if let Self::Commit(error) | Self::History(HistoryError::Commit(error)) = self {
            stop_on_failed_write(error);
        }
    }
}

/// Ends the process at once, before anything else can leave it (S11).
pub fn stop_on_failed_write(error: &CommitError) -> ! {
    tracing::error!(%error, "a safety write failed; stopping (S11)");
    std::process::abort()
}
