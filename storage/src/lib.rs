//! A node's durable memory: typed tables, logs and queues over one RocksDB database.
//!
//! ```text
//!   put / delete ──┐
//!   append ────────┼──> Changes ──> Store::commit ──> one synced, atomic write
//!   push / ack ────┤                 (many callers share one disk sync)
//!   retry / ... ───┘
//! ```
//!
//! Everything that belongs together goes into one [`Changes`]: the row, the item that leaves one
//! queue, and the item that enters the next. After [`Store::commit`] has returned `Ok`, all of it
//! survives SIGKILL and power loss; before, none of it is there. A [`CommitError`] means that a
//! safety write failed: the caller stops the process (S11), and the store refuses to write again.
//!
//! This crate knows nothing of batches or peers, uses no clock (time comes in as Unix milliseconds)
//! and no threads of its own. Its calls block for as long as the disk takes: from async code, call
//! [`Store::commit`] through the runtime's blocking pool.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod changes;
mod commit;
mod key;
mod log;
mod queue;
mod store;
mod table;

pub use changes::Changes;
pub use commit::CommitError;
pub use key::Key;
pub use log::LogDef;
pub use queue::{
    DeadLetter, Lease, Lengths, Place, PushError, Queue, QueueDef, QueueLimits, RetryPolicy,
};
pub use store::{Direction, OpenError, ReadError, Scan, Schema, Store};
pub use table::{ColumnName, DecodeError, EncodeError, Table};

/// Largest encoded value of a row or a queued item, in bytes.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;
/// Most operations in one [`Changes`].
pub const MAX_CHANGES: usize = 100_000;
/// Largest key of a queue, in bytes.
pub const MAX_QUEUE_KEY_BYTES: usize = 128;
