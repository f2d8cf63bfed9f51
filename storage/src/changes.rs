//! What one commit writes: typed puts and deletes over several tables, entries of logs, and steps of queues.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    MAX_CHANGES,
    commit::CommitError,
    key::Key,
    queue::{QueueStep, Reservation, Shared},
    table::{ColumnName, EncodeError, Table, encode_value},
};

/// A set of writes that happen together or not at all. Later writes to a row win over earlier ones
/// of the same set. Dropping it undoes nothing, because nothing has been done.
#[derive(Default)]
#[must_use = "changes do nothing until they are committed"]
pub struct Changes {
    pub(crate) writes: Vec<Write>,
    /// The first fault met while collecting; reported by the commit, so that collecting stays free
    /// of error paths for what can only be a fault of our own.
    pub(crate) fault: Option<CommitError>,
}

pub(crate) enum Write {
    Put {
        column: ColumnName,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        column: ColumnName,
        key: Vec<u8>,
    },
    Append {
        column: ColumnName,
        keep: u64,
        value: Vec<u8>,
    },
    Queue {
        queue: Arc<Shared>,
        step: QueueStep,
        _slot: Option<Reservation>,
    },
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Changes({} writes)", self.writes.len())
    }
}

impl Changes {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes one row.
    pub fn put<K: Key, V: Serialize>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        match encode_value(table.version(), value) {
            Ok(value) => {
                self.add(Write::Put {
                    column: table.name(),
                    key: key.to_bytes(),
                    value,
                });
            }
            Err(error) => self.fail(table.name(), error),
        }
    }

    /// Deletes one row; no effect if it is not there.
    pub fn delete<K: Key, V>(&mut self, table: &Table<K, V>, key: &K) {
        self.add(Write::Delete {
            column: table.name(),
            key: key.to_bytes(),
        });
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.fault.is_none()
    }

    pub(crate) fn add(&mut self, write: Write) {
        if self.writes.len() >= MAX_CHANGES {
            self.fault.get_or_insert(CommitError::TooMany);
        } else {
            self.writes.push(write);
        }
    }

    pub(crate) fn fail(&mut self, column: ColumnName, error: EncodeError) {
        self.fault.get_or_insert(CommitError::Encode {
            column,
            source: error,
        });
    }
}
