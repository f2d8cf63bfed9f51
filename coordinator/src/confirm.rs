//! Stage 8: follows batches in the chain, from confirmed to final, and back when a block leaves the chain.

use bitcoin::OutPoint;
use node::{clock::now_ms, history::Moved};
use protocol::api::{BatchStatus, RequestStatus};
use storage::{Changes, Direction, ReadError, Store};

use crate::{
    queue,
    records::{BATCHES, BatchRecord, CONFIRM, TOP_UPS},
};

/// Batches looked at after a block.
const MAX_OPEN: usize = 64;

/// Takes what a block changed. Safe to repeat.
///
/// # Errors
/// A damaged database.
pub fn take(
    store: &Store,
    moved: &Moved,
    height: u32,
    final_confirmations: u32,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    for row in &moved.disconnected {
        let sequence = row.treasury.commitment.sequence.0;
        if let Some(mut record) = store.get(&BATCHES, &sequence)?
            && record.txid() == Some(row.txid)
        {
            tracing::warn!(stage = "confirm", sequence, "batch left the chain");
            record.height = None;
            step(
                store,
                changes,
                record,
                BatchStatus::Broadcast,
                RequestStatus::Broadcast,
            )?;
        }
    }
    for row in &moved.connected {
        let sequence = row.treasury.commitment.sequence.0;
        let Some(mut record) = store.get(&BATCHES, &sequence)? else {
            continue;
        };
        if record.txid() != Some(row.txid) {
            continue;
        }
        tracing::info!(stage = "confirm", sequence, height = row.height, txid = %row.txid, "batch confirmed");
        record.height = Some(row.height);
        if let Some(transaction) = &record.transaction {
            for input in &transaction.input {
                changes.delete::<OutPoint, _>(&TOP_UPS, &input.previous_output);
            }
        }
        let since = record.broadcast_ms.unwrap_or_else(now_ms);
        record
            .stage_ms
            .confirm
            .get_or_insert(now_ms().saturating_sub(since));
        step(
            store,
            changes,
            record,
            BatchStatus::Confirmed,
            RequestStatus::Confirmed,
        )?;
    }
    let confirmed_now = |sequence: u64| {
        moved
            .connected
            .iter()
            .any(|row| row.treasury.commitment.sequence.0 == sequence)
    };
    for row in store.iter(&BATCHES, .., Direction::Back, MAX_OPEN)? {
        let (sequence, record) = row?;
        if record.status == BatchStatus::Final {
            break;
        }
        let deep = record
            .height
            .is_some_and(|at| height.saturating_add(1).saturating_sub(at) >= final_confirmations);
        if record.status == BatchStatus::Confirmed && deep && !confirmed_now(sequence) {
            tracing::info!(stage = "confirm", sequence, "batch final");
            step(
                store,
                changes,
                record,
                BatchStatus::Final,
                RequestStatus::Final,
            )?;
        }
    }
    settle(store, changes)
}

fn step(
    store: &Store,
    changes: &mut Changes,
    mut record: BatchRecord,
    status: BatchStatus,
    requests: RequestStatus,
) -> Result<(), ReadError> {
    record.status = status;
    let now = now_ms();
    for request in &record.requests {
        queue::mark(store, changes, request, |progress| {
            progress.step(requests, now)
        })?;
    }
    changes.put(&BATCHES, &record.sequence.0, &record);
    Ok(())
}

/// Takes batches out of the queue once they are final.
fn settle(store: &Store, changes: &mut Changes) -> Result<(), ReadError> {
    let queue = store.queue(&CONFIRM)?;
    let mut open = Vec::new();
    while let Some(lease) = queue.lease(now_ms(), 1_000)? {
        let over = store
            .get(&BATCHES, &lease.key.0)?
            .is_none_or(|record| record.status == BatchStatus::Final || record.key() != lease.key);
        if over {
            queue.ack(changes, lease);
        } else {
            open.push(lease);
        }
        if open.len() >= MAX_OPEN {
            break;
        }
    }
    for lease in open {
        queue.release(lease);
    }
    Ok(())
}
