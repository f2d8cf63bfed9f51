//! Stage 7: gives a signed batch to the Bitcoin network, and sees that it stays there: a batch that has left the
//! node's mempool is given again.

use std::time::Instant;

use bitcoin::Transaction;
use chain::submit::{Submission, submit};
use node::clock::now_ms;
use protocol::{api::BatchStatus, pipeline::Input};
use storage::{Changes, Direction};

use crate::{
    advance::{advance, explain},
    batch::elapsed_ms,
    candidates, dissolve,
    pipeline::{Pipeline, StageError},
    records::{BATCHES, BROADCAST, BatchRecord},
};

const LEASE_MS: u64 = 60_000;
/// How often the node is asked whether it still has the batches that it was given, in ms: mempools forget.
const LOOK_MS: u64 = 5_000;
/// Batches that left the chain together and wait to be confirmed again.
const MAX_OPEN: usize = 64;

/// Submits the batch that waits for it. Gives whether there was one.
///
/// # Errors
/// [`StageError`]; the batch stays in the queue.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let queue = pipeline.store.queue(&BROADCAST)?;
    let Some(lease) = queue.lease(now_ms(), LEASE_MS)? else {
        return Ok(false);
    };
    let mut changes = Changes::new();
    let record = pipeline.store.get(&BATCHES, &lease.key.0)?;
    let Some(record) =
        record.filter(|record| record.key() == lease.key && record.status == BatchStatus::Signed)
    else {
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    pipeline.say(format!("broadcasting batch {}", record.sequence.0));
    let started = Instant::now();
    let given = match &record.transaction {
        Some(transaction) => give(pipeline, record.sequence.0, transaction).await,
        None => Err("the batch has no transaction".to_owned()),
    };
    match given {
        Ok(()) => {
            let elapsed = elapsed_ms(started);
            // The block with this batch may have come meanwhile: never take its status back.
            let _writing = pipeline.writing.clone().lock_owned().await;
            let mut record = pipeline
                .store
                .get(&BATCHES, &record.sequence.0)?
                .unwrap_or(record);
            record.broadcast_ms.get_or_insert(now_ms());
            record.stage_ms.broadcast = Some(elapsed);
            advance(
                &pipeline.store,
                &mut changes,
                &mut record,
                Input::Submitted,
                None,
            )?;
            changes.put(&BATCHES, &record.sequence.0, &record);
            queue.ack(&mut changes, lease);
            pipeline.commit(changes).await.map(|()| true)
        }
        Err(reason) => {
            let sequence = record.sequence.0;
            tracing::warn!(stage = "broadcast", sequence, %reason, "not taken by the node; trying again");
            queue.retry(&mut changes, lease, now_ms(), &reason);
            let reason = format!("batch {sequence} waits: the Bitcoin node says: {reason}");
            pipeline.commit(changes).await?;
            told(pipeline, sequence, Some(&reason)).await?;
            Ok(true)
        }
    }
}

/// Looks from time to time whether the node still has the batches that were given to it, and gives them again,
/// oldest first, if not.
///
/// # Errors
/// [`StageError`]; it is looked again later.
pub async fn again(pipeline: &mut Pipeline) -> Result<(), StageError> {
    let Some(head) = pipeline.head() else {
        return Ok(());
    };
    let now = now_ms();
    if now.abs_diff(pipeline.looked_ms) < LOOK_MS {
        return Ok(());
    }
    pipeline.looked_ms = now;
    complete(pipeline).await?;
    let next = head.commitment.sequence.0.saturating_add(1);
    let rows: Vec<_> = pipeline
        .store
        .iter(&BATCHES, next.., Direction::Forward, MAX_OPEN)?
        .collect::<Result<_, _>>()?;
    // What a block has had since begins anew should it leave the chain.
    let waits = |sequence| {
        rows.iter()
            .any(|(other, row)| *other == sequence && dissolve::is_with_node(row.status))
    };
    pipeline.stuck.retain(|sequence, _| waits(*sequence));
    for (sequence, record) in rows {
        if !dissolve::is_with_node(record.status) {
            continue;
        }
        if !record.candidates.is_empty() {
            let reason = see_to(pipeline, &record).await?;
            told(pipeline, sequence, reason.as_deref()).await?;
        }
        if dissolve::waiting(pipeline, &record).await? {
            // And all that come after it.
            break;
        }
    }
    Ok(())
}

/// Sees that the node has a batch: the candidate that pays most, or one before it, where the node does not take that one,
/// as when a reorganisation has taken its top-ups. Gives why the node has none.
async fn see_to(pipeline: &Pipeline, record: &BatchRecord) -> Result<Option<String>, StageError> {
    let sequence = record.sequence.0;
    let mut refused = None;
    for signed in candidates::highest_first(record) {
        let txid = signed.candidate.txid;
        if pipeline.rpc.mempool_entry(txid).await?.is_some() {
            return Ok(None);
        }
        tracing::warn!(stage = "broadcast", sequence, %txid, "the node has not got the batch any more; submitting it again");
        match give(pipeline, sequence, &signed.transaction).await {
            Ok(()) => return Ok(None),
            Err(reason) => {
                tracing::warn!(stage = "broadcast", sequence, %txid, %reason, "an unconfirmed batch was refused");
                refused.get_or_insert(format!(
                    "batch {sequence} waits: the Bitcoin node says: {reason}"
                ));
            }
        }
    }
    Ok(refused)
}

/// Batches that were signed elsewhere have no witnesses here; their block has them. With those a batch can be submitted
/// from here, too, when its block leaves the chain.
async fn complete(pipeline: &Pipeline) -> Result<(), StageError> {
    let rows: Vec<_> = pipeline
        .store
        .iter(&BATCHES, .., Direction::Back, MAX_OPEN)?
        .collect::<Result<_, _>>()?;
    let is_bare = |record: &BatchRecord| {
        record.status == BatchStatus::Confirmed && record.transaction.is_none()
    };
    for (sequence, record) in rows {
        let (Some(txid), Some(height)) = (record.txid(), record.height) else {
            continue;
        };
        if !is_bare(&record) {
            continue;
        }
        let Some(block) = pipeline.rpc.block_hash_at(height).await? else {
            continue;
        };
        let transaction = match pipeline.rpc.transaction(txid, Some(block)).await {
            Ok(Some(transaction)) => transaction,
            // Its block has just been replaced, or is pruned.
            Ok(None) => continue,
            Err(error) if error.code().is_some() => continue,
            Err(error) => return Err(error.into()),
        };
        let _writing = pipeline.writing.clone().lock_owned().await;
        let now = pipeline.store.get(&BATCHES, &sequence)?;
        let Some(mut now) = now.filter(|now| is_bare(now) && now.txid() == Some(txid)) else {
            continue;
        };
        tracing::info!(stage = "broadcast", sequence, %txid, "the transaction of a batch from elsewhere was found in its block");
        candidates::complete(&mut now, transaction, height, now_ms());
        let mut changes = Changes::new();
        changes.put(&BATCHES, &sequence, &now);
        pipeline.commit(changes).await?;
    }
    Ok(())
}

/// Writes why a batch waits, or that it waits no more: one that the node did not take at first is with it then.
async fn told(pipeline: &Pipeline, sequence: u64, reason: Option<&str>) -> Result<(), StageError> {
    let _writing = pipeline.writing.clone().lock_owned().await;
    let Some(mut record) = pipeline.store.get(&BATCHES, &sequence)? else {
        return Ok(());
    };
    let mut changes = Changes::new();
    if record.status == BatchStatus::Signed && reason.is_none() {
        record.broadcast_ms.get_or_insert(now_ms());
        let taken = Input::Submitted;
        advance(&pipeline.store, &mut changes, &mut record, taken, None)?;
        changes.put(&BATCHES, &sequence, &record);
    } else if dissolve::is_with_node(record.status)
        && explain(&pipeline.store, &mut changes, &mut record, reason)?
    {
        changes.put(&BATCHES, &sequence, &record);
        if let Some(reason) = reason {
            pipeline.say(reason.to_owned());
        }
    }
    pipeline.commit(changes).await
}

/// Gives a transaction of a batch to the own node.
pub(crate) async fn give(
    pipeline: &Pipeline,
    sequence: u64,
    transaction: &Transaction,
) -> Result<(), String> {
    match submit(&pipeline.rpc, transaction).await {
        Ok(Submission::Accepted | Submission::AlreadyKnown | Submission::Confirmed) => {
            tracing::info!(stage = "broadcast", sequence, txid = %transaction.compute_txid(), "submitted");
            Ok(())
        }
        Ok(Submission::Rejected { reason, .. } | Submission::Conflict { reason }) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}
