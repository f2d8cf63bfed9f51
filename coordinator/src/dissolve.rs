//! Gives up batches that can't be confirmed any more, because a deposit in them was double-spent in a reorganisation, or
//! the batch before them was confirmed as another transaction, and all that build on them. What is still valid in them is
//! queued again, in its order; the deposit is refused, with the reason. The ledger has gone back by itself: it follows
//! the treasury.
//!
//! A payment that left the chain may also stay out: no mempool has it any more, or it pays too little to be mined. Its batch
//! waits with it, and operators sign no higher fee for that (S2). Nor do they for a batch whose bump window is over, or that
//! is another one to them (S7). Such a batch is given up once they sign the next one, which pays for replacing it
//! ([`crate::batch`]); should both come after all, they spend one treasury, and one is confirmed.

use std::{
    collections::{BTreeMap, HashMap},
    mem::discriminant,
    sync::PoisonError,
};

use bitcoin::{OutPoint, Txid};
use ledger::Operation;
use node::{clock::now_ms, displaced::Lost};
use protocol::{
    api::{BatchStatus, RequestStatus},
    pipeline::is_given_up,
};
use storage::{Changes, Direction, ReadError, Store};

use crate::{
    bump,
    pipeline::{Pipeline, StageError},
    queue,
    records::{BATCHES, BatchRecord, DEPOSITS, Request},
    refusals::LeftOut,
};

/// Batches that may build on each other and not be in the chain.
const MAX_OPEN: usize = 64;
/// Deposits that one transaction makes.
const MAX_DEPOSITS: usize = 1_000;

/// Looks once after each change of the chain.
///
/// # Errors
/// [`StageError`]; it is looked again.
pub async fn run(pipeline: &mut Pipeline) -> Result<(), StageError> {
    // The chain may not move until this is written.
    let _writing = pipeline.writing.clone().lock_owned().await;
    let depth = pipeline.vault.parameters().deposit_confirmations;
    let (head, lost) = {
        let history = pipeline
            .history
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(history) = history.as_ref() else {
            return Ok(());
        };
        (history.head(), history.all_lost(depth))
    };
    let next = head.commitment.sequence.0.saturating_add(1);
    let lost: HashMap<Txid, Lost> = lost.into_iter().collect();
    let mut changes = Changes::new();
    let rows: Vec<(u64, BatchRecord)> = pipeline
        .store
        .iter(&BATCHES, next.., Direction::Forward, MAX_OPEN)?
        .collect::<Result<_, _>>()?;
    let mut cause: Option<String> = None;
    for (sequence, record) in rows {
        if !is_open(record.status) {
            continue;
        }
        let left_out = double_spent(pipeline, &record, &lost);
        let own = deposits(&record).find(|outpoint| lost.contains_key(&outpoint.txid));
        // As when a reorganisation has taken both, and the one before was confirmed with another fee.
        let parent = record.candidate.as_ref().map(|candidate| candidate.parent);
        let is_orphan = sequence == next && parent.is_some_and(|parent| parent != head.outpoint);
        let why = match (own, &cause) {
            (Some(deposit), _) => format!(
                "batch {sequence} was dissolved: its deposit {deposit} was double-spent in a reorganisation"
            ),
            (None, Some(cause)) => {
                format!("batch {sequence} was dissolved with one before: {cause}")
            }
            (None, None) if is_orphan => format!(
                "batch {sequence} was dissolved: the one before it was confirmed as another transaction"
            ),
            (None, None) => continue,
        };
        pipeline.abandon(record, &why, &left_out, &mut changes)?;
        cause.get_or_insert(why);
    }
    for (txid, lost) in &lost {
        refuse_waiting(&pipeline.store, txid, lost, &mut changes)?;
    }
    if cause.is_some() {
        // What is queued again has waited long enough.
        pipeline.waiting_since = Some(0);
    }
    pipeline.commit(changes).await
}

/// Why a signed batch can't get into a block by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// This, which it spends, is not in the chain.
    Payment(OutPoint),
    /// No higher fee is signed for it any more.
    Fee,
}

/// Looks whether a signed batch can get into a block by itself, and gives it up if it could not for the replacement delay;
/// with it all that build on it. Gives whether it did.
///
/// # Errors
/// [`StageError`]; it is looked again.
pub async fn waiting(pipeline: &mut Pipeline, record: &BatchRecord) -> Result<bool, StageError> {
    let sequence = record.sequence.0;
    // The blocks that are still to come may have the batch.
    if pipeline.live.borrow().is_behind
        || pipeline.rpc.chain_info().await?.blocks != pipeline.height()
    {
        return Ok(false);
    }
    let Some(cause) = stuck(pipeline, record).await? else {
        pipeline.stuck.remove(&sequence);
        return Ok(false);
    };
    let height = pipeline.height();
    let known = pipeline.stuck.entry(sequence).or_insert((height, cause));
    if discriminant(&known.1) != discriminant(&cause) {
        *known = (height, cause);
    }
    // A fee that was raised late has its time, too.
    let latest = record.candidates.last().map_or(0, |last| last.height);
    let since = known.0.max(latest);
    let delay = pipeline.vault.parameters().replacement_delay;
    if !is_given_up(since, height, delay)
        || cause == Stuck::Fee && !bump::can_pay_more(pipeline, record).await?
    {
        return Ok(false);
    }
    // The chain may not move until this is written.
    let _writing = pipeline.writing.clone().lock_owned().await;
    let rows: Vec<(u64, BatchRecord)> = pipeline
        .store
        .iter(&BATCHES, sequence.., Direction::Forward, MAX_OPEN)?
        .collect::<Result<_, _>>()?;
    if rows
        .first()
        .is_none_or(|(_, now)| now.key() != record.key() || !is_with_node(now.status))
    {
        return Ok(false);
    }
    let cause = match cause {
        Stuck::Payment(payment) => {
            format!("{payment}, which batch {sequence} spends, has not been in the chain")
        }
        Stuck::Fee => {
            format!("no block took batch {sequence}, and no higher fee was signed for it any more")
        }
    };
    let mut changes = Changes::new();
    for (_, record) in rows.into_iter().filter(|(_, row)| is_open(row.status)) {
        let why = format!(
            "batch {} was given up: {cause}, for {delay} blocks",
            record.sequence.0
        );
        pipeline.abandon(record, &why, &BTreeMap::new(), &mut changes)?;
    }
    pipeline.stuck.retain(|other, _| *other < sequence);
    pipeline.waiting_since = Some(0);
    pipeline.commit(changes).await.map(|()| true)
}

async fn stuck(pipeline: &Pipeline, record: &BatchRecord) -> Result<Option<Stuck>, StageError> {
    if let Some(payment) = unconfirmed(pipeline, record).await? {
        return Ok(Some(Stuck::Payment(payment)));
    }
    Ok(bump::is_over(pipeline, record).then_some(Stuck::Fee))
}

/// A deposit or top-up of the batch that is no output of the chain.
async fn unconfirmed(
    pipeline: &Pipeline,
    record: &BatchRecord,
) -> Result<Option<OutPoint>, StageError> {
    if let Some(txid) = record.txid() {
        let entry = pipeline.rpc.mempool_entry(txid).await?;
        if entry.is_some_and(|entry| entry.ancestors <= 1) {
            // The node has looked: all that it spends is confirmed.
            return Ok(None);
        }
    }
    let top_ups = record.top_ups.iter().map(|top_up| &top_up.outpoint);
    for outpoint in deposits(record).chain(top_ups) {
        let output = pipeline.rpc.unspent_output(*outpoint, false).await?;
        if output.is_none() {
            return Ok(Some(*outpoint));
        }
    }
    Ok(None)
}

/// Whether a batch has been signed and is in no block.
pub(crate) fn is_with_node(status: BatchStatus) -> bool {
    matches!(status, BatchStatus::Signed | BatchStatus::Broadcast)
}

fn is_open(status: BatchStatus) -> bool {
    match status {
        BatchStatus::Formed
        | BatchStatus::Proven
        | BatchStatus::Signed
        | BatchStatus::Broadcast => true,
        BatchStatus::Confirmed | BatchStatus::Final | BatchStatus::Abandoned => false,
    }
}

fn deposits(record: &BatchRecord) -> impl Iterator<Item = &OutPoint> {
    record.operations.iter().filter_map(|operation| {
        if let Operation::Deposit { outpoint, .. } = operation {
            Some(outpoint)
        } else {
            None
        }
    })
}

/// The operations of a batch that are gone for good.
fn double_spent(
    pipeline: &Pipeline,
    record: &BatchRecord,
    lost: &HashMap<Txid, Lost>,
) -> BTreeMap<ledger::OperationId, LeftOut> {
    let vault = pipeline.vault.id();
    let gone = record.operations.iter().filter_map(|operation| {
        let Operation::Deposit { outpoint, .. } = operation else {
            return None;
        };
        let reason = reason(lost.get(&outpoint.txid)?);
        let is_final = true;
        Some((operation.id(&vault), LeftOut { reason, is_final }))
    });
    gone.collect()
}

fn reason(lost: &Lost) -> String {
    format!(
        "double-spent: its payment left the chain, and {} in block {} spends the same coins",
        lost.by, lost.height
    )
}

/// Refuses the deposits of a lost payment that are in no batch.
fn refuse_waiting(
    store: &Store,
    txid: &Txid,
    lost: &Lost,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    let (first, last) = (OutPoint::new(*txid, 0), OutPoint::new(*txid, u32::MAX));
    for row in store.iter(&DEPOSITS, first..=last, Direction::Forward, MAX_DEPOSITS)? {
        let (outpoint, record) = row?;
        let waits = matches!(
            record.progress.status,
            RequestStatus::Received | RequestStatus::Queued
        );
        if waits {
            tracing::warn!(stage = "dissolve", %outpoint, by = %lost.by, "a deposit was double-spent");
            queue::mark(store, changes, &Request::Deposit(outpoint), |progress| {
                progress.refuse(reason(lost), now_ms());
            })?;
        }
    }
    Ok(())
}
