//! Stage 7: gives a signed batch to the Bitcoin network, and gives it again while it is unconfirmed.

use std::time::Instant;

use chain::submit::{Submission, submit};
use node::clock::now_ms;
use protocol::api::{BatchStatus, RequestStatus};
use storage::Changes;

use crate::{
    batch::elapsed_ms,
    pipeline::{Pipeline, StageError},
    queue,
    records::{BATCHES, BROADCAST, BatchRecord, CONFIRM},
};

const LEASE_MS: u64 = 60_000;
/// An unconfirmed batch is submitted again this often, in ms: mempools forget.
const RESUBMIT_MS: u64 = 30_000;

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
    match give(pipeline, &record).await {
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
            if record.status == BatchStatus::Signed {
                record.status = BatchStatus::Broadcast;
                for request in &record.requests {
                    queue::mark(&pipeline.store, &mut changes, request, |progress| {
                        progress.step(RequestStatus::Broadcast, now_ms());
                    })?;
                }
            }
            changes.put(&BATCHES, &record.sequence.0, &record);
            queue.ack(&mut changes, lease);
            pipeline.store.queue(&CONFIRM)?.push(
                &mut changes,
                &record.key(),
                &record.sequence.0,
            )?;
            return pipeline.commit(changes).await.map(|()| true);
        }
        Err(reason) => {
            tracing::warn!(stage = "broadcast", sequence = record.sequence.0, %reason, "not taken by the node; trying again");
            queue.retry(&mut changes, lease, now_ms(), &reason);
        }
    }
    pipeline.commit(changes).await?;
    Ok(true)
}

/// Submits a batch that has been unconfirmed for a while once more.
///
/// # Errors
/// [`StageError`].
pub async fn again(pipeline: &mut Pipeline) -> Result<(), StageError> {
    let Some(head) = pipeline.head() else {
        return Ok(());
    };
    let next = head.commitment.sequence.0.saturating_add(1);
    let Some(record) = pipeline.store.get(&BATCHES, &next)? else {
        return Ok(());
    };
    let due = record
        .broadcast_ms
        .is_some_and(|at| now_ms().saturating_sub(at) > RESUBMIT_MS);
    if record.status != BatchStatus::Broadcast || !due {
        return Ok(());
    }
    if let Err(reason) = give(pipeline, &record).await {
        tracing::warn!(stage = "broadcast", sequence = next, %reason, "an unconfirmed batch was refused");
    }
    let _writing = pipeline.writing.clone().lock_owned().await;
    let Some(mut record) = pipeline.store.get(&BATCHES, &next)? else {
        return Ok(());
    };
    record.broadcast_ms = Some(now_ms());
    let mut changes = Changes::new();
    changes.put(&BATCHES, &next, &record);
    pipeline.commit(changes).await
}

async fn give(pipeline: &Pipeline, record: &BatchRecord) -> Result<(), String> {
    let transaction = record
        .transaction
        .as_ref()
        .ok_or("the batch has no transaction")?;
    match submit(&pipeline.rpc, transaction).await {
        Ok(Submission::Accepted | Submission::AlreadyKnown | Submission::Confirmed) => {
            tracing::info!(stage = "broadcast", sequence = record.sequence.0, txid = %transaction.compute_txid(), "submitted");
            Ok(())
        }
        Ok(Submission::Rejected { reason, .. } | Submission::Conflict { reason }) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}
