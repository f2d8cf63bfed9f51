//! What has changed, for those who follow it: one entry a change, in the commit that makes the change.
//!
//! ```text
//! put_deposit, put_operation, batch ──┐
//!                                     ├──> Changes ──> EVENTS ──> api::events
//! announce: tip, head, alarm ─────────┘    (one write)
//! ```
//!
//! The history writes tip, head and alarm by itself. They are compared with what was announced last after every block,
//! and once at the start: so one whose event was lost in a crash has it then.

use bitcoin::{BlockHash, OutPoint, Txid};
use ledger::OperationId;
use node::{
    clock::now_ms,
    history::{self, History},
};
use protocol::api::{BatchStatus, EventDocument, RequestStatus};
use serde::{Deserialize, Serialize};
use storage::{Changes, LogDef, ReadError, Store, Table};

use crate::records::{BatchRecord, DEPOSITS, DepositRecord, OPERATIONS, OperationRecord, Progress};

/// Events that are kept; whoever comes back later has to look at the resources themselves.
pub const MAX_EVENTS: u64 = 100_000;
/// The events, by their ids.
pub const EVENTS: LogDef<Event> = LogDef::new("events", 1, MAX_EVENTS);
/// What was said last of tip, head and alarm.
pub const ANNOUNCED: Table<(), Announced> = Table::new("announced", 1);

/// A change and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was written.
    pub at_ms: u64,
    /// What has changed.
    pub change: Change,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A batch's place or reason.
    Batch {
        /// Its sequence number.
        sequence: u64,
        /// Where it is.
        status: BatchStatus,
        /// Why it waits, or was given up.
        reason: Option<String>,
        /// Its transaction.
        txid: Option<Txid>,
        /// Height of its block.
        height: Option<u32>,
    },
    /// A deposit's place or reason.
    Deposit(OutPoint, Standing),
    /// A signed operation's place or reason.
    Operation(OperationId, Standing),
    /// Why signing has stopped (S14), or that it has not any more.
    Alarm(Option<String>),
    /// The last block taken in.
    Tip(u32, BlockHash),
    /// The latest confirmed batch, and its treasury.
    Head(u64, OutPoint),
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    status: RequestStatus,
    reason: Option<String>,
    sequence: Option<u64>,
}

impl From<&Progress> for Standing {
    fn from(progress: &Progress) -> Self {
        Self {
            status: progress.status,
            reason: progress.reason.clone(),
            sequence: progress.sequence.map(|sequence| sequence.0),
        }
    }
}

/// What was said last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    tip: Option<(u32, BlockHash)>,
    head: Option<(u64, OutPoint)>,
    alarm: Option<String>,
}

fn add(changes: &mut Changes, change: Change) {
    let at_ms = now_ms();
    changes.append(&EVENTS, &Event { at_ms, change });
}

/// Writes a deposit. An event says so if it is elsewhere than `before`, or waits for another reason.
pub fn put_deposit(changes: &mut Changes, before: Option<&Progress>, record: &DepositRecord) {
    if let Some(standing) = moved(before, &record.progress) {
        add(changes, Change::Deposit(record.outpoint, standing));
    }
    changes.put(&DEPOSITS, &record.outpoint, record);
}

/// Writes a signed operation, as [`put_deposit`] does a deposit.
pub fn put_operation(
    changes: &mut Changes,
    before: Option<&Progress>,
    id: OperationId,
    record: &OperationRecord,
) {
    if let Some(standing) = moved(before, &record.progress) {
        add(changes, Change::Operation(id, standing));
    }
    changes.put(&OPERATIONS, &id.0, record);
}

fn moved(before: Option<&Progress>, now: &Progress) -> Option<Standing> {
    let standing = Standing::from(now);
    let is_new = before.is_none_or(|before| Standing::from(before) != standing);
    is_new.then_some(standing)
}

/// Says that a batch is in another place, or waits for another reason. The record is the caller's to write.
pub fn batch(changes: &mut Changes, record: &BatchRecord) {
    let change = Change::Batch {
        sequence: record.sequence.0,
        status: record.status,
        reason: record.reason.clone(),
        txid: record.txid(),
        height: record.height,
    };
    add(changes, change);
}

/// Says what is new of tip, head and alarm. While the blocks from before the start are taken in, tips are not news.
///
/// # Errors
/// A damaged database.
pub fn announce(
    store: &Store,
    history: &History,
    is_behind: bool,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    let old = store.get(&ANNOUNCED, &())?.unwrap_or_default();
    let mut new = old.clone();
    let head = history.head();
    new.head = Some((head.commitment.sequence.0, head.outpoint));
    new.alarm = store.get(&history::ALARM, &())?;
    if !is_behind {
        new.tip = history.position().tip().map(|tip| (tip.height, tip.hash));
    }
    if new == old {
        return Ok(());
    }
    if let Some((height, hash)) = new.tip.filter(|_| new.tip != old.tip) {
        add(changes, Change::Tip(height, hash));
    }
    if let Some((sequence, treasury)) = new.head.filter(|_| new.head != old.head) {
        add(changes, Change::Head(sequence, treasury));
    }
    if new.alarm != old.alarm {
        add(changes, Change::Alarm(new.alarm.clone()));
    }
    changes.put(&ANNOUNCED, &(), &new);
    Ok(())
}

/// Says that the alarm was taken back.
///
/// # Errors
/// A damaged database.
pub fn cleared(store: &Store, changes: &mut Changes) -> Result<(), ReadError> {
    if let Some(mut said) = store.get(&ANNOUNCED, &())?
        && said.alarm.take().is_some()
    {
        add(changes, Change::Alarm(None));
        changes.put(&ANNOUNCED, &(), &said);
    }
    Ok(())
}

/// An event for people.
pub fn document(event: Event) -> EventDocument {
    let at_ms = event.at_ms;
    match event.change {
        Change::Batch {
            sequence,
            status,
            reason,
            txid,
            height,
        } => EventDocument::Batch {
            at_ms,
            sequence,
            status,
            reason,
            txid: txid.map(|txid| txid.to_string()),
            height,
        },
        Change::Deposit(outpoint, standing) => EventDocument::Deposit {
            at_ms,
            outpoint: outpoint.to_string(),
            status: standing.status,
            reason: standing.reason,
            sequence: standing.sequence,
        },
        Change::Operation(id, standing) => EventDocument::Operation {
            at_ms,
            operation_id: id.to_string(),
            status: standing.status,
            reason: standing.reason,
            sequence: standing.sequence,
        },
        Change::Alarm(reason) => EventDocument::Alarm { at_ms, reason },
        Change::Tip(height, hash) => EventDocument::Tip {
            at_ms,
            height,
            block_hash: hash.to_string(),
        },
        Change::Head(sequence, treasury) => EventDocument::Head {
            at_ms,
            sequence,
            treasury: treasury.to_string(),
        },
    }
}
