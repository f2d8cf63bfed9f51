//! Stage 8: follows batches in the chain, from confirmed to final, and back when a block leaves the chain.
//!
//! What is written of a batch is compared with the history after every block, and once at the start: so a block whose
//! consequences were lost in a crash has them then.

use node::{
    clock::now_ms,
    history::{Confirmed, History},
};
use protocol::{
    api::BatchStatus,
    pipeline::{self, Input},
};
use storage::{Changes, Direction, Store};

use crate::{
    advance::advance,
    candidates,
    pipeline::StageError,
    records::{BATCHES, BatchRecord, CONFIRM},
    top_up,
};

/// Batches looked at after a block. More than can be in the chain and not final.
const MAX_OPEN: usize = 64;

/// Takes every open batch to where the chain says that it is. Safe to repeat.
///
/// # Errors
/// A damaged database.
pub fn take(
    store: &Store,
    history: &History,
    final_confirmations: u32,
    changes: &mut Changes,
) -> Result<(), StageError> {
    for row in store.iter(&BATCHES, .., Direction::Back, MAX_OPEN)? {
        let (sequence, mut record) = row?;
        let before = record.txid();
        let block = match history.confirmed(record.sequence) {
            Some(block) if candidates::take(store, &mut record, block)? => Some(block),
            _ => None,
        };
        let is_other = record.txid() != before;
        let input = match block {
            Some(_) if is_other => Some(Input::Connected),
            _ => pipeline::seen(
                record.status,
                record.height,
                block.map(|block| block.height),
                history.height(),
                final_confirmations,
            ),
        };
        let Some(input) = input else {
            if record.status == BatchStatus::Final {
                break;
            }
            continue;
        };
        let mut reason = None;
        match (input, block) {
            (Input::Connected, Some(block)) => connected(&mut record, block),
            (Input::Disconnected, _) => {
                tracing::warn!(stage = "confirm", sequence, "batch left the chain");
                record.height = None;
                candidates::prefer_highest(&mut record);
                reason = Some("its block left the chain; the same transaction is submitted again");
            }
            _ => {
                tracing::info!(stage = "confirm", sequence, "batch final");
                if let Some(candidate) = &record.candidate {
                    top_up::forget(changes, candidate);
                }
            }
        }
        advance(store, changes, &mut record, input, reason)?;
        changes.put(&BATCHES, &sequence, &record);
    }
    settle(store, changes)
}

fn connected(record: &mut BatchRecord, block: &Confirmed) {
    let sequence = record.sequence.0;
    tracing::info!(stage = "confirm", sequence, height = block.height, txid = %block.txid, "batch confirmed");
    record.height = Some(block.height);
    // The treasury is spent: no other candidate can be confirmed beside this one.
    record.bump = None;
    record.bump_failure = None;
    let since = record.broadcast_ms.unwrap_or_else(now_ms);
    record
        .stage_ms
        .confirm
        .get_or_insert(now_ms().saturating_sub(since));
}

/// Takes batches out of the queue once they are final.
fn settle(store: &Store, changes: &mut Changes) -> Result<(), StageError> {
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
