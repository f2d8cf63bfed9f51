//! Stage 6: has a batch signed, completes the transaction, stores it, and only then passes it on.

use node::clock::now_ms;
use protocol::{
    api::{BatchStatus, RequestStatus},
    message::{Gossip, Subject, encode},
};
use storage::Changes;

use crate::{
    gossip::{self, Outcome, Report, Task},
    pipeline::{Pipeline, StageError},
    queue,
    records::{BATCHES, BROADCAST, BatchRecord, SIGN},
};

/// Signing has no deadline; the lease only outlives every session.
const LEASE_MS: u64 = 3_600_000;

/// Signs the batch that waits for it. Gives whether there was one.
///
/// # Errors
/// [`StageError`]; the batch stays in the queue.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let queue = pipeline.store.queue(&SIGN)?;
    let Some(lease) = queue.lease(now_ms(), LEASE_MS)? else {
        return Ok(false);
    };
    let mut changes = Changes::new();
    let record = pipeline.store.get(&BATCHES, &lease.key.0)?;
    let Some(record) =
        record.filter(|record| record.key() == lease.key && record.status == BatchStatus::Proven)
    else {
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    let (Some(candidate), Some(transition)) =
        (record.candidate.clone(), pipeline.transition(&record)?)
    else {
        pipeline.abandon(record, "another batch was confirmed first", &mut changes)?;
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    let built = pipeline.transaction(&record, &transition)?;
    pipeline.say(format!("signing batch {}", record.sequence.0));
    let task = Task {
        subject: Subject::Batch(candidate.clone()),
        messages: built.messages()?,
        group: pipeline.vault.group().clone(),
        needed: usize::from(pipeline.vault.roster().threshold),
        roster: pipeline.roster.clone(),
        me: pipeline.me,
    };
    let parent = candidate.parent;
    let view = pipeline.view();
    let stop = pipeline.stop.clone();
    let report = gossip::run(&pipeline.network, &pipeline.sessions, task, || {
        stop.is_cancelled() || view.head().is_some_and(|head| head.outpoint != parent)
    })
    .await;
    let Some(report) = report else {
        // Shutdown, or the treasury moved: look again.
        queue.release(lease);
        return Ok(false);
    };
    let record = take_report(record, &report);
    match report.outcome {
        Outcome::Signed { signatures, .. } => {
            let transaction = built.complete(&signatures)?;
            let record = BatchRecord {
                status: BatchStatus::Signed,
                transaction: Some(transaction.clone()),
                ..record
            };
            changes.put(&BATCHES, &record.sequence.0, &record);
            for request in &record.requests {
                queue::mark(&pipeline.store, &mut changes, request, |progress| {
                    progress.step(RequestStatus::Signed, now_ms());
                })?;
            }
            queue.ack(&mut changes, lease);
            pipeline.store.queue(&BROADCAST)?.push(
                &mut changes,
                &record.key(),
                &record.sequence.0,
            )?;
            pipeline.commit(changes).await?;
            tracing::info!(stage = "aggregate", sequence = record.sequence.0, txid = %candidate.txid, "batch signed");
            if let Err(error) = pipeline
                .network
                .publish(encode(&Gossip::Signed {
                    candidate,
                    transaction,
                }))
                .await
            {
                tracing::warn!(%error, "the signed transaction was not gossiped");
            }
        }
        Outcome::Refused => {
            pipeline.abandon(record, "refused by the operators", &mut changes)?;
            queue.ack(&mut changes, lease);
            pipeline.commit(changes).await?;
        }
    }
    Ok(true)
}

fn take_report(mut record: BatchRecord, report: &Report) -> BatchRecord {
    record.blamed.clone_from(&report.blamed);
    record.refusals.clone_from(&report.refusals);
    let times = report.times;
    record.stage_ms.gossip = times.gossip;
    record.stage_ms.verify = times.verify;
    record.stage_ms.round1 = times.round1;
    record.stage_ms.round2 = times.round2;
    record.stage_ms.aggregate = times.aggregate;
    if let Outcome::Signed {
        signers, attempts, ..
    } = &report.outcome
    {
        record.signers.clone_from(signers);
        record.attempts = *attempts;
    }
    record
}
