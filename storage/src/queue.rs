//! A durable queue: what was pushed is handed out again and again until it is acknowledged.
//!
//! ```text
//!   push ──> ready ──lease──> leased ──ack──> done (remembered for a while by its key)
//!              ^                 │
//!              ├── lease ran out ┤
//!              └── back-off <──retry ──too often──> dead letter ──requeue──> ready
//!                                                        └──────discard──> done
//! ```
//!
//! - Steps are part of [`Changes`]: an item leaves one queue and enters the next in one write.
//! - **Order**: oldest push first. An item that waits for its next attempt does not hold up others
//!   and keeps its place.
//! - **Idempotent**: pushing a key again does nothing while the item is queued or dead, and for as
//!   long as its key is among the last [`QueueLimits::remember_done`] that were done. After that a
//!   handler must know by itself that the work was done, which every handler must anyway.
//! - **At least once**: leases live in memory. They die with the process, so after a crash an item is
//!   handed out at once instead of after a timeout, and taking work costs no disk sync. The price
//!   is that an item may be handled twice, which a durable lease that runs out cannot rule out either.
//! - Attempts and the end of a back-off are on disk. An attempt counts when [`Queue::retry`] says so:
//!   a crash is not an attempt, because counting it would cost a sync for each lease.
//! - **Bounded**: queued and dead items together, and commits in flight, never exceed
//!   [`QueueLimits::max_len`]. Dead letters take room until somebody decides about them.

mod dead;
mod index;
mod staged;

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rocksdb::{DBIterator, IteratorMode, ReadOptions};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    MAX_QUEUE_KEY_BYTES,
    changes::{Changes, Write},
    key::Key,
    store::{ReadError, Store},
    table::{ColumnName, DecodeError, decode_value, encode_value},
};
pub use dead::DeadLetter;
use index::Index;
pub(crate) use staged::{QueueStep, Staged};

/// Longest lease and longest back-off, in milliseconds. A clock that jumps back delays an item by no
/// more than this.
const MAX_WAIT_MS: u64 = 60 * 60 * 1000;
/// Longest error text kept with an item, in bytes.
const MAX_ERROR_BYTES: usize = 512;
/// Encoding of [`Record`] and [`Held`].
const RECORD_VERSION: u8 = 1;

// The column's keys begin with what follows: items and dead letters by sequence number, where each
// key stands, and which keys were done in which order.
const ITEM: u8 = 1;
const DEAD: u8 = 2;
const HELD: u8 = 3;
const DONE: u8 = 4;

/// How much a queue holds.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Most items, dead letters included.
    pub max_len: usize,
    /// How many keys of finished items are remembered, newest first.
    pub remember_done: u64,
}

/// What happens to an item that could not be handled.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Wait after the first failed attempt, in milliseconds; doubles with each further one.
    pub first_ms: u64,
    /// Longest wait, in milliseconds; at most an hour.
    pub longest_ms: u64,
    /// After this many failed attempts the item is a dead letter.
    pub max_attempts: u32,
}

impl RetryPolicy {
    /// The wait after `attempts` failures.
    fn wait_ms(&self, attempts: u32) -> u64 {
        let doublings = attempts.saturating_sub(1).min(63);
        let wait = self.first_ms.saturating_mul(1_u64 << doublings);
        wait.min(self.longest_ms).min(MAX_WAIT_MS)
    }
}

/// A queue's description, meant to be a constant:
/// `pub const PROVE: QueueDef<u64, ProveJob> = QueueDef::new("prove", 1);`
pub struct QueueDef<K, T> {
    name: &'static str,
    version: u8,
    limits: QueueLimits,
    retry: RetryPolicy,
    types: PhantomData<fn() -> (K, T)>,
}

impl<K, T> QueueDef<K, T> {
    /// A queue of 10,000 items that remembers 100,000 keys and tries 10 times, 1 s to 5 min apart.
    /// `version` is that of the encoding of `T`, as for [`crate::Table::new`].
    pub const fn new(name: &'static str, version: u8) -> Self {
        Self {
            name,
            version,
            limits: QueueLimits {
                max_len: 10_000,
                remember_done: 100_000,
            },
            retry: RetryPolicy {
                first_ms: 1_000,
                longest_ms: 300_000,
                max_attempts: 10,
            },
            types: PhantomData,
        }
    }

    /// With other limits.
    #[must_use]
    pub const fn limits(mut self, limits: QueueLimits) -> Self {
        self.limits = limits;
        self
    }

    /// With another policy for failed attempts.
    #[must_use]
    pub const fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The queue's name, for [`crate::Schema`].
    pub const fn name(&self) -> ColumnName {
        ColumnName {
            prefix: "queue.",
            name: self.name,
        }
    }
}

/// The part of a queue that all handles, leases and changes share.
pub(crate) struct Shared {
    pub(crate) column: ColumnName,
    limits: QueueLimits,
    retry: RetryPolicy,
    index: Mutex<Index>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room kept for a push until its changes are committed or dropped.
pub(crate) struct Reservation(Arc<Shared>);

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut index = self.0.index();
        index.reserved = index.reserved.saturating_sub(1);
    }
}

/// An item on disk. `not_before_ms` of a dead letter is when it became one.
#[derive(Serialize, Deserialize)]
struct Record {
    key: Vec<u8>,
    item: Vec<u8>,
    attempts: u32,
    not_before_ms: u64,
    error: String,
}

/// Where a key stands, on disk.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Held {
    Item(u64),
    Dead(u64),
    Done(u64),
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Waiting for a lease, leased, or backing off.
    Queued,
    /// Failed too often.
    Dead,
    /// Acknowledged or discarded, and still remembered.
    Done,
}

/// An item handed out. It comes back when the lease runs out.
pub struct Lease<K, T> {
    /// The key it was pushed with.
    pub key: K,
    /// The item.
    pub item: T,
    /// Failed attempts before this one.
    pub attempts: u32,
    seq: u64,
    until_ms: u64,
    queue: Arc<Shared>,
}

impl<K: std::fmt::Debug, T> std::fmt::Debug for Lease<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Lease({} {:?}, attempt {})",
            self.queue.column, self.key, self.attempts
        )
    }
}

/// How many items are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// To be had now.
    pub ready: usize,
    /// Leased, or waiting for the next attempt.
    pub waiting: usize,
    /// Dead letters.
    pub dead: usize,
    /// Finished keys still remembered.
    pub done: u64,
}

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The bound is reached; nothing was added to the changes.
    #[error("queue {queue} is full: {max_len} items")]
    QueueFull {
        /// The queue.
        queue: ColumnName,
        /// Its bound.
        max_len: usize,
    },
    /// Keys have at most [`MAX_QUEUE_KEY_BYTES`] bytes.
    #[error("queue key has {0} bytes, the bound is {MAX_QUEUE_KEY_BYTES}")]
    KeyTooLong(usize),
    /// The queue cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A queue of an open store. Clones share it.
pub struct Queue<K, T> {
    store: Store,
    shared: Arc<Shared>,
    version: u8,
    types: PhantomData<fn() -> (K, T)>,
}

impl<K, T> Clone for Queue<K, T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            shared: Arc::clone(&self.shared),
            version: self.version,
            types: PhantomData,
        }
    }
}

impl Store {
    /// The queue that `def` describes. Opening it again gives the same queue, leases included.
    ///
    /// # Errors
    /// [`ReadError`] when it is not in the schema, or what it keeps on disk is damaged.
    pub fn queue<K: Key, T>(&self, def: &QueueDef<K, T>) -> Result<Queue<K, T>, ReadError> {
        let column = def.name();
        let mut queues = self
            .inner
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let shared = match queues.get(&column) {
            Some(shared) => Arc::clone(shared),
            None => {
                let index = Mutex::new(Index::load(&self.inner, column)?);
                let shared = Arc::new(Shared {
                    column,
                    limits: def.limits,
                    retry: def.retry,
                    index,
                });
                queues.insert(column, Arc::clone(&shared));
                shared
            }
        };
        drop(queues);
        Ok(Queue {
            store: self.clone(),
            shared,
            version: def.version,
            types: PhantomData,
        })
    }
}

impl<K: Key, T: Serialize + DeserializeOwned> Queue<K, T> {
    /// Adds the item to what `changes` will do. Nothing happens to a key that is known already,
    /// even if another commit brings it in between.
    ///
    /// # Errors
    /// [`PushError::QueueFull`] at the bound; `changes` is then as it was.
    pub fn push(&self, changes: &mut Changes, key: &K, item: &T) -> Result<(), PushError> {
        let bytes = key.to_bytes();
        if bytes.len() > MAX_QUEUE_KEY_BYTES {
            return Err(PushError::KeyTooLong(bytes.len()));
        }
        if self.place(key)?.is_some() {
            return Ok(());
        }
        let slot = self.reserve()?;
        match encode_value(self.version, item) {
            Ok(item) => {
                self.add(
                    changes,
                    &self.shared,
                    QueueStep::Push { key: bytes, item },
                    Some(slot),
                );
            }
            Err(error) => changes.fail(self.shared.column, error),
        }
        Ok(())
    }

    fn reserve(&self) -> Result<Reservation, PushError> {
        let mut index = self.shared.index();
        let max_len = self.shared.limits.max_len;
        if index.counters.held().saturating_add(index.reserved) >= max_len {
            return Err(PushError::QueueFull {
                queue: self.shared.column,
                max_len,
            });
        }
        index.reserved = index.reserved.saturating_add(1);
        Ok(Reservation(Arc::clone(&self.shared)))
    }

    /// The oldest item that is to be had at `now_ms`, for `lease_ms` (an hour at most).
    ///
    /// # Errors
    /// [`ReadError`] when the item cannot be read: a local fault.
    pub fn lease(&self, now_ms: u64, lease_ms: u64) -> Result<Option<Lease<K, T>>, ReadError> {
        let until = now_ms.saturating_add(lease_ms.min(MAX_WAIT_MS));
        loop {
            let Some(seq) = self.shared.index().take(now_ms, until) else {
                return Ok(None);
            };
            // Not there: a commit that removes it is on its way to the index.
            if let Some(record) = self.record(&numbered(ITEM, seq))? {
                let (key, item) = self.decode(&record)?;
                let queue = Arc::clone(&self.shared);
                return Ok(Some(Lease {
                    key,
                    item,
                    attempts: record.attempts,
                    seq,
                    until_ms: until,
                    queue,
                }));
            }
        }
    }

    /// The item is handled. Also counts if the lease has run out meanwhile: work done is done.
    pub fn ack(&self, changes: &mut Changes, lease: Lease<K, T>) {
        self.add(
            changes,
            &lease.queue,
            QueueStep::Ack { seq: lease.seq },
            None,
        );
    }

    /// The attempt failed: the item waits, longer each time, and is a dead letter in the end.
    /// `error` is kept with it, cut to 512 bytes.
    pub fn retry(&self, changes: &mut Changes, lease: Lease<K, T>, now_ms: u64, error: &str) {
        let error = error
            .get(..error.floor_char_boundary(MAX_ERROR_BYTES))
            .unwrap_or_default();
        let step = QueueStep::Retry {
            seq: lease.seq,
            now_ms,
            error: error.to_owned(),
        };
        self.add(changes, &lease.queue, step, None);
    }

    /// Gives the item back untried, for others to lease at once. In memory only. No effect once the
    /// lease has run out: the item may be another's by then, or wait for its next attempt.
    pub fn release(&self, lease: Lease<K, T>) {
        lease.queue.index().release(lease.seq, lease.until_ms);
    }

    /// Where the key stands; `None` if it was never pushed, or is forgotten.
    ///
    /// # Errors
    /// [`ReadError`] when the queue is damaged.
    pub fn place(&self, key: &K) -> Result<Option<Place>, ReadError> {
        let held = self.read::<Held>(&keyed(&key.to_bytes()))?;
        Ok(held.map(|held| match held {
            Held::Item(_) => Place::Queued,
            Held::Dead(_) => Place::Dead,
            Held::Done(_) => Place::Done,
        }))
    }

    /// At most `limit` queued items, oldest first, leased or not.
    ///
    /// # Errors
    /// [`ReadError`] when the queue is damaged.
    pub fn items(&self, limit: usize) -> Result<Vec<(K, T)>, ReadError> {
        self.records(ITEM, limit)?
            .iter()
            .map(|record| self.decode(record))
            .collect()
    }

    /// How many items are where. Those whose wait is over count as waiting until the next lease.
    pub fn lengths(&self) -> Lengths {
        self.shared.index().lengths()
    }

    /// How many items [`Queue::lease`] would give at `now_ms`, one after the other.
    pub fn ready_at(&self, now_ms: u64) -> usize {
        self.shared.index().ready_at(now_ms)
    }

    /// When there will be something to lease, in the milliseconds that [`Queue::lease`] was given:
    /// 0 means now, `None` means not before the next push.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.shared.index().next_due_ms()
    }

    fn add(
        &self,
        changes: &mut Changes,
        queue: &Arc<Shared>,
        step: QueueStep,
        slot: Option<Reservation>,
    ) {
        changes.add(Write::Queue {
            queue: Arc::clone(queue),
            step,
            _slot: slot,
        });
    }

    fn decode(&self, record: &Record) -> Result<(K, T), ReadError> {
        let column = self.shared.column;
        let damaged = |source| ReadError::Row { column, source };
        let key = K::decode(&record.key).ok_or_else(|| damaged(DecodeError::Key))?;
        let item = decode_value(self.version, &record.item).map_err(damaged)?;
        Ok((key, item))
    }

    fn record(&self, key: &[u8]) -> Result<Option<Record>, ReadError> {
        self.read(key)
    }

    fn read<V: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<V>, ReadError> {
        read_row(&self.store.inner, self.shared.column, key)
    }

    fn records(&self, kind: u8, limit: usize) -> Result<Vec<Record>, ReadError> {
        let column = self.shared.column;
        rows(&self.store.inner, column, kind)?
            .take(limit)
            .map(|row| {
                let (_, value) = row.map_err(|source| ReadError::Database { column, source })?;
                decode_value(RECORD_VERSION, &value)
                    .map_err(|source| ReadError::Row { column, source })
            })
            .collect()
    }
}

fn numbered(kind: u8, seq: u64) -> Vec<u8> {
    (kind, seq).to_bytes()
}

fn keyed(key: &[u8]) -> Vec<u8> {
    let mut out = vec![HELD];
    out.extend_from_slice(key);
    out
}

fn read_row<V: DeserializeOwned>(
    inner: &crate::store::Inner,
    column: ColumnName,
    key: &[u8],
) -> Result<Option<V>, ReadError> {
    let bytes = inner
        .db
        .get_pinned_cf(inner.family(column)?, key)
        .map_err(|source| ReadError::Database { column, source })?;
    bytes
        .map(|bytes| decode_value(RECORD_VERSION, &bytes))
        .transpose()
        .map_err(|source| ReadError::Row { column, source })
}

/// All rows of one kind, in key order.
fn rows(
    inner: &crate::store::Inner,
    column: ColumnName,
    kind: u8,
) -> Result<DBIterator<'_>, ReadError> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound([kind]);
    options.set_iterate_upper_bound([kind.saturating_add(1)]);
    Ok(inner
        .db
        .iterator_cf_opt(inner.family(column)?, options, IteratorMode::Start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let policy = RetryPolicy {
            first_ms: 100,
            longest_ms: 1_000,
            max_attempts: 9,
        };
        let waits: Vec<u64> = (1..=6).map(|attempts| policy.wait_ms(attempts)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(policy.wait_ms(u32::MAX), 1_000);
        let endless = RetryPolicy {
            first_ms: u64::MAX,
            longest_ms: u64::MAX,
            max_attempts: 1,
        };
        assert_eq!(endless.wait_ms(40), MAX_WAIT_MS);
    }
}
