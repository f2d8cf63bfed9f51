//! Stage 4: proves a batch, chunk by chunk, and fixes its body and its transaction.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use ledger::Transition;
use node::{
    clock::now_ms,
    cost::{Meter, Stopwatch},
    history,
};
use proof::{ProvingKey, prove_chunk};
use protocol::{
    api::BatchStatus,
    batch::{Body, Candidate},
    pipeline::Input,
};
use storage::{Changes, Lease, Store};

use crate::{
    advance::{advance, explain},
    batch::elapsed_ms,
    pipeline::{Pipeline, StageError},
    records::{BATCHES, BatchKey, BatchRecord, MAX_PROVING, PROVE},
};

/// A proof must be done by then, or the batch is proven again, in ms.
const LEASE_MS: u64 = 3_600_000;

/// Each chunk.
const METER: Meter = Meter {
    seconds: "drawbridge_prove_seconds",
    cpu_seconds: "drawbridge_prove_cpu_seconds",
    items: "drawbridge_proven_chunks",
};

/// Proves the batch that waits for it. Gives whether there was one.
///
/// # Errors
/// [`StageError`]; the batch stays in the queue.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let queue = pipeline.store.queue(&PROVE)?;
    let Some(lease) = queue.lease(now_ms(), LEASE_MS)? else {
        return Ok(false);
    };
    let mut changes = Changes::new();
    let record = match pipeline.store.get(&BATCHES, &lease.key.0)? {
        Some(record) if record.key() == lease.key && record.status == BatchStatus::Formed => record,
        _ => {
            queue.ack(&mut changes, lease);
            pipeline.commit(changes).await?;
            return Ok(true);
        }
    };
    let Some(transition) = pipeline.transition(&record)? else {
        let why = "another batch was confirmed first";
        pipeline.abandon(record, why, &BTreeMap::new(), &mut changes)?;
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    pipeline.say(format!("proving batch {}", record.sequence.0));
    match make(pipeline, record.clone(), &transition, &mut changes).await {
        Ok(mut record) => {
            advance(
                &pipeline.store,
                &mut changes,
                &mut record,
                Input::Proven,
                None,
            )?;
            changes.put(&BATCHES, &record.sequence.0, &record);
            queue.ack(&mut changes, lease);
        }
        Err(error) => {
            changes = Changes::new();
            let why = format!("{:#}", anyhow::Error::from(error));
            fail(&pipeline.store, &mut changes, lease, record, &why, now_ms())?;
        }
    }
    pipeline.commit(changes).await?;
    Ok(true)
}

/// An attempt at a batch has failed: it waits, longer each time, and after [`MAX_PROVING`] of them for an administrator.
///
/// # Errors
/// A damaged database.
pub fn fail(
    store: &Store,
    changes: &mut Changes,
    lease: Lease<BatchKey, u64>,
    mut record: BatchRecord,
    why: &str,
    now: u64,
) -> Result<(), StageError> {
    let (sequence, attempt) = (record.sequence.0, lease.attempts.saturating_add(1));
    tracing::warn!(stage = "prove", sequence, attempt, why, "not proven");
    let then = if attempt >= MAX_PROVING {
        "it is a dead letter now: an administrator has to retry or drop it"
    } else {
        "it is tried again"
    };
    let reason = format!("batch {sequence} waits: it could not be proven ({why}); {then}");
    explain(store, changes, &mut record, Some(&reason))?;
    changes.put(&BATCHES, &sequence, &record);
    store.queue(&PROVE)?.retry(changes, lease, now, why);
    Ok(())
}

/// Proofs, body and transaction.
async fn make(
    pipeline: &Pipeline,
    record: BatchRecord,
    transition: &Transition,
    changes: &mut Changes,
) -> Result<BatchRecord, StageError> {
    let started = Instant::now();
    let key = Arc::clone(&pipeline.keys);
    let (work, live, sequence) = (transition.clone(), pipeline.live.clone(), record.sequence.0);
    let tell = move |done: usize, of: usize| {
        let phase = format!("proving batch {sequence}: {done} of {of} chunks");
        live.send_modify(|live| live.phase = phase);
    };
    let proofs = tokio::task::spawn_blocking(move || prove_all(&key, &work, tell))
        .await
        .map_err(|error| StageError::Fault(error.to_string()))?
        .map_err(|error| StageError::Fault(error.to_string()))?;
    let elapsed = elapsed_ms(started);
    tracing::info!(
        stage = "prove",
        sequence,
        chunks = proofs.len(),
        elapsed_ms = elapsed,
        "batch proven"
    );
    complete(pipeline, record, transition, proofs, elapsed, changes)
}

/// Tells how many chunks are done, of how many.
fn prove_all(
    key: &ProvingKey,
    transition: &Transition,
    tell: impl Fn(usize, usize),
) -> Result<Vec<Vec<u8>>, proof::ProveError> {
    transition
        .chunks
        .iter()
        .enumerate()
        .map(|(done, chunk)| {
            tell(done, transition.chunks.len());
            let watch = Stopwatch::process();
            let proof = prove_chunk(key, chunk)?;
            watch.cost().record(&METER, 1);
            Ok(proof.to_bytes().to_vec())
        })
        .collect()
}

/// The body with its proofs, and the candidate that carries it, both kept.
fn complete(
    pipeline: &Pipeline,
    mut record: BatchRecord,
    transition: &Transition,
    proofs: Vec<Vec<u8>>,
    elapsed: u64,
    changes: &mut Changes,
) -> Result<BatchRecord, StageError> {
    let body = Body {
        vault: pipeline.vault.id(),
        sequence: record.sequence,
        operations: record.operations.clone(),
        terms: record.terms.clone(),
        digests: transition
            .digests()
            .iter()
            .map(ledger::Digest::to_bytes)
            .collect(),
        proofs,
    };
    let built = pipeline.transaction(&record, transition)?;
    let encoded = body.encode();
    let hash = Body::hash_encoded(&encoded);
    let head = pipeline
        .head()
        .ok_or_else(|| StageError::Fault("no head".into()))?;
    let candidate = Candidate {
        vault: pipeline.vault.id(),
        sequence: record.sequence,
        parent: head.outpoint,
        body: hash,
        top_ups: record
            .top_ups
            .iter()
            .map(|top_up| top_up.outpoint)
            .collect(),
        fee: record.fee,
        txid: built.unsigned.compute_txid(),
    };
    history::keep_in(changes, &candidate, &encoded);
    record.body = Some(hash);
    record.candidate = Some(candidate);
    record.stage_ms.prove = Some(elapsed);
    Ok(record)
}
