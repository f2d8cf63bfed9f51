//! An append-only log: an entry gets its number in the commit that brings it, one more than the one before, and beyond
//! the bound the oldest go in the same commit. Numbers begin at 1, survive restarts and are never used twice.

use std::{collections::HashMap, marker::PhantomData, sync::PoisonError};

use rocksdb::WriteBatch;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    changes::{Changes, Write},
    commit::CommitError,
    key::Key as _,
    store::{Direction, Inner, ReadError, Store},
    table::{ColumnName, Table, encode_value},
};

/// A log's description, meant to be a constant:
/// `pub const AUDIT: LogDef<Act> = LogDef::new("audit", 1, 100_000);`
pub struct LogDef<T> {
    name: &'static str,
    version: u8,
    keep: u64,
    types: PhantomData<fn() -> T>,
}

impl<T> LogDef<T> {
    /// A log that keeps the newest `keep` entries, at least one. `version` is that of the encoding of `T`, as for
    /// [`Table::new`].
    pub const fn new(name: &'static str, version: u8, keep: u64) -> Self {
        Self {
            name,
            version,
            keep: if keep == 0 { 1 } else { keep },
            types: PhantomData,
        }
    }

    /// The log's name, for [`crate::Schema`].
    pub const fn name(&self) -> ColumnName {
        ColumnName {
            prefix: "log.",
            name: self.name,
        }
    }

    /// The log as a table that can be read.
    const fn table(&self) -> Table<u64, T> {
        Table::within("log.", self.name, self.version)
    }
}

impl Changes {
    /// Adds an entry at the end of a log.
    pub fn append<T: Serialize>(&mut self, log: &LogDef<T>, entry: &T) {
        match encode_value(log.version, entry) {
            Ok(value) => self.add(Write::Append {
                column: log.name(),
                keep: log.keep,
                value,
            }),
            Err(error) => self.fail(log.name(), error),
        }
    }
}

impl Store {
    /// Number of the newest entry; 0 when there was none.
    ///
    /// # Errors
    /// A damaged database.
    pub fn last_number<T>(&self, log: &LogDef<T>) -> Result<u64, ReadError> {
        self.inner.last_number(log.name())
    }

    /// At most `limit` entries after the one with the number `after`, oldest first. The first has the number `after + 1`,
    /// unless that one has gone.
    ///
    /// # Errors
    /// A damaged database.
    pub fn entries<T: DeserializeOwned>(
        &self,
        log: &LogDef<T>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, T)>, ReadError> {
        // Not from further back: what is deleted there costs time to pass.
        let gone = self.last_number(log)?.saturating_sub(log.keep);
        let first = after.max(gone).saturating_add(1);
        self.iter(&log.table(), first.., Direction::Forward, limit)?
            .collect()
    }

    /// At most `limit` entries, newest first, all of them with numbers below `before` if it is given.
    ///
    /// # Errors
    /// A damaged database.
    pub fn newest_entries<T: DeserializeOwned>(
        &self,
        log: &LogDef<T>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, T)>, ReadError> {
        let end = before.unwrap_or(u64::MAX);
        self.iter(&log.table(), ..end, Direction::Back, limit)?
            .collect()
    }
}

impl Inner {
    fn last_number(&self, column: ColumnName) -> Result<u64, ReadError> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = logs.get(&column) {
            return Ok(*last);
        }
        let mut rows = self
            .db
            .iterator_cf(self.family(column)?, rocksdb::IteratorMode::End);
        let last = match rows.next() {
            None => 0,
            Some(row) => {
                let (key, _) = row.map_err(|source| ReadError::Database { column, source })?;
                u64::decode(&key).ok_or(ReadError::Row {
                    column,
                    source: crate::DecodeError::Key,
                })?
            }
        };
        logs.insert(column, last);
        Ok(last)
    }
}

/// What one commit appends. Nothing is visible outside before the write is on disk.
#[derive(Default)]
pub(crate) struct Appended(HashMap<ColumnName, u64>);

impl Appended {
    pub fn add(
        &mut self,
        inner: &Inner,
        batch: &mut WriteBatch,
        (column, keep): (ColumnName, u64),
        value: &[u8],
    ) -> Result<(), CommitError> {
        let last = match self.0.get(&column) {
            Some(last) => *last,
            None => inner.last_number(column)?,
        };
        let number = last
            .checked_add(1)
            .ok_or_else(|| CommitError::Queue("log numbers are used up".into()))?;
        let family = inner.family(column)?;
        batch.put_cf(family, number.to_bytes(), value);
        if let Some(gone) = number.checked_sub(keep).filter(|gone| *gone > 0) {
            batch.delete_cf(family, gone.to_bytes());
        }
        self.0.insert(column, number);
        Ok(())
    }

    /// The write is on disk: now the others may see it.
    pub fn apply(self, inner: &Inner) {
        let mut logs = inner.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.extend(self.0);
    }
}
