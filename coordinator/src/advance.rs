//! Takes batches from place to place, as `protocol::pipeline` says: the record, its requests and the queue of the next
//! stage change in one write.

use node::clock::now_ms;
use protocol::pipeline::{self, Effect, Input};
use storage::{Changes, Store};

use crate::{
    events,
    pipeline::StageError,
    queue,
    records::{BROADCAST, BatchRecord, CONFIRM, SIGN},
};

/// Takes a batch one step on. The record itself is the caller's to write. Gives what the caller must do, if anything is
/// left to do that is not in `changes`: [`Effect::Requeue`].
///
/// # Errors
/// [`StageError`]; an input that can't be of this batch is a fault of our own.
pub fn advance(
    store: &Store,
    changes: &mut Changes,
    record: &mut BatchRecord,
    input: Input,
    reason: Option<&str>,
) -> Result<Option<Effect>, StageError> {
    let next = pipeline::step(record.status, input)
        .map_err(|reject| StageError::Fault(format!("batch {}: {reject}", record.sequence.0)))?;
    let Some(next) = next else {
        return Ok(None);
    };
    record.status = next.batch;
    record.reason = reason.map(str::to_owned);
    events::batch(changes, record);
    let (key, sequence) = (record.key(), record.sequence.0);
    let left = match next.effect {
        Some(Effect::Sign) => {
            store.queue(&SIGN)?.push(changes, &key, &sequence)?;
            None
        }
        Some(Effect::Submit) => {
            store.queue(&BROADCAST)?.push(changes, &key, &sequence)?;
            None
        }
        Some(Effect::Watch) => {
            store.queue(&CONFIRM)?.push(changes, &key, &sequence)?;
            None
        }
        Some(Effect::Requeue) => return Ok(Some(Effect::Requeue)),
        None => None,
    };
    if let Some(input) = next.requests {
        let now = now_ms();
        for request in &record.requests {
            queue::mark(store, changes, request, |progress| {
                if progress.take(input, reason.map(str::to_owned), now) {
                    progress.sequence = Some(record.sequence);
                }
            })?;
        }
    }
    Ok(left)
}

/// Says why a batch and its requests wait, where that is new.
///
/// # Errors
/// A damaged database.
pub fn explain(
    store: &Store,
    changes: &mut Changes,
    record: &mut BatchRecord,
    reason: Option<&str>,
) -> Result<bool, StageError> {
    if record.reason.as_deref() == reason {
        return Ok(false);
    }
    record.reason = reason.map(str::to_owned);
    events::batch(changes, record);
    for request in &record.requests {
        queue::mark(store, changes, request, |progress| {
            progress.reason = reason.map(str::to_owned);
        })?;
    }
    Ok(true)
}
