//! The one way to write. Callers that commit at the same time share a disk sync:
//!
//! ```text
//!   caller A ─┐                       ┌─ first to come leads: takes all that wait, resolves
//!   caller B ─┼─> waiting changes ──> │  queue steps in order, one synced atomic write,
//!   caller C ─┘                       └─ updates the queues' memory, wakes the others
//! ```

use std::{
    collections::BTreeMap,
    mem,
    panic::Location,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use failpoint::Deed;
use rocksdb::WriteBatch;

use crate::{
    MAX_CHANGES,
    changes::{Changes, Write},
    log::Appended,
    queue::Staged,
    store::{Inner, ReadError, Store, is_full, synced},
    table::{ColumnName, EncodeError},
};

/// Most callers whose changes share one disk write.
const MAX_GROUP: usize = 256;

/// A write that must have happened has not. There is no way on: stop the process (S11). The store
/// refuses every later commit, because memory and disk may differ by now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The disk or the database refused the write.
    #[error("the database refused a write: {0}")]
    Database(String),
    /// There is no room.
    #[error(
        "the disk is full: make room where the database is, then start this node again; nothing that it acknowledged is lost ({0})"
    )]
    Full(String),
    /// What a queue keeps on disk cannot be read.
    #[error("a queue cannot be read: {0}")]
    Queue(String),
    /// A value cannot be encoded: a fault in this program.
    #[error("a value for {column} cannot be stored")]
    Encode {
        /// Where it was to go.
        column: ColumnName,
        /// Why not.
        source: EncodeError,
    },
    /// A column that the store was not opened with, or a queue of another store: a fault in this
    /// program.
    #[error("{0} does not belong to this database")]
    NoColumn(ColumnName),
    /// More than [`MAX_CHANGES`] writes at once: a fault in this program.
    #[error("more than {MAX_CHANGES} writes in one set")]
    TooMany,
    /// An earlier commit failed.
    #[error("an earlier write failed, so nothing more is written")]
    Stopped,
}

impl From<ReadError> for CommitError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoColumn(column) => Self::NoColumn(column),
            other => Self::Queue(match std::error::Error::source(&other) {
                Some(source) => format!("{other}: {source}"),
                None => other.to_string(),
            }),
        }
    }
}

/// Where commits meet.
#[derive(Default)]
pub(crate) struct Committer {
    group: Mutex<Group>,
    done: Condvar,
}

#[derive(Default)]
struct Group {
    waiting: Vec<(u64, Changes)>,
    next_ticket: u64,
    leader_at_work: bool,
    /// Results not fetched yet, by ticket: at most one for each caller that waits.
    results: BTreeMap<u64, Result<(), CommitError>>,
    stopped: bool,
}

impl Committer {
    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Writes `changes` to disk, all or nothing, and returns when they are there to stay. Blocks
    /// for a disk sync.
    ///
    /// # Errors
    /// Any [`CommitError`] is fatal to the process.
    #[track_caller]
    pub fn commit(&self, changes: Changes) -> Result<(), CommitError> {
        self.commit_for(Location::caller(), changes)
    }

    /// [`Store::commit`] for a caller who is known by the line that asked for the write: on another thread, say.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_for(
        &self,
        place: &'static Location<'static>,
        changes: Changes,
    ) -> Result<(), CommitError> {
        if changes.is_empty() {
            return Ok(());
        }
        failpoint::before(Deed::Write, place);
        self.commit_in_group(changes)?;
        failpoint::after(Deed::Write, place);
        Ok(())
    }

    fn commit_in_group(&self, changes: Changes) -> Result<(), CommitError> {
        let committer = &self.inner.committer;
        let mut group = committer.lock();
        let ticket = group.next_ticket;
        group.next_ticket = ticket.wrapping_add(1);
        group.waiting.push((ticket, changes));
        loop {
            if let Some(result) = group.results.remove(&ticket) {
                return result;
            }
            if group.leader_at_work {
                group = committer
                    .done
                    .wait(group)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            group = self.lead(group);
        }
    }

    /// Writes what waits, on behalf of all who wait.
    fn lead<'a>(&'a self, mut group: MutexGuard<'a, Group>) -> MutexGuard<'a, Group> {
        let committer = &self.inner.committer;
        let take = group.waiting.len().min(MAX_GROUP);
        let taken: Vec<_> = group.waiting.drain(..take).collect();
        let stopped = group.stopped;
        group.leader_at_work = true;
        drop(group);

        // Whatever happens below, even a panic, somebody else must be able to lead, and must find
        // the store stopped if this write is in doubt.
        let (tickets, all): (Vec<u64>, Vec<Changes>) = taken.into_iter().unzip();
        let mut handover = Handover {
            committer,
            tickets,
            result: Err(CommitError::Stopped),
        };
        if !stopped {
            handover.result = self.inner.write(&all);
        }
        drop(handover);
        drop(all);
        committer.lock()
    }
}

struct Handover<'a> {
    committer: &'a Committer,
    tickets: Vec<u64>,
    result: Result<(), CommitError>,
}

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        let mut group = self.committer.lock();
        group.leader_at_work = false;
        group.stopped |= self.result.is_err();
        for ticket in mem::take(&mut self.tickets) {
            group.results.insert(ticket, self.result.clone());
        }
        drop(group);
        self.committer.done.notify_all();
    }
}

impl Inner {
    fn write(&self, all: &[Changes]) -> Result<(), CommitError> {
        let mut batch = WriteBatch::default();
        let mut staged: Vec<Staged<'_>> = Vec::new();
        let mut appended = Appended::default();
        for changes in all {
            if let Some(fault) = &changes.fault {
                return Err(fault.clone());
            }
            for write in &changes.writes {
                self.stage(write, &mut batch, &mut staged, &mut appended)?;
            }
        }
        for queue in &staged {
            queue.write_to(&mut batch);
        }
        self.db.write_opt(batch, &synced()).map_err(|error| {
            if is_full(&error) {
                CommitError::Full(error.to_string())
            } else {
                CommitError::Database(error.to_string())
            }
        })?;
        for queue in staged {
            queue.apply();
        }
        appended.apply(self);
        Ok(())
    }

    fn stage<'a>(
        &'a self,
        write: &'a Write,
        batch: &mut WriteBatch,
        staged: &mut Vec<Staged<'a>>,
        appended: &mut Appended,
    ) -> Result<(), CommitError> {
        match write {
            Write::Put { column, key, value } => batch.put_cf(self.family(*column)?, key, value),
            Write::Delete { column, key } => batch.delete_cf(self.family(*column)?, key),
            Write::Append {
                column,
                keep,
                value,
            } => appended.add(self, batch, (*column, *keep), value)?,
            Write::Queue { queue, step, .. } => {
                let known = staged.iter().position(|s| s.is_of(queue));
                let index = match known {
                    Some(index) => index,
                    None => {
                        staged.push(Staged::new(self, queue)?);
                        staged.len().saturating_sub(1)
                    }
                };
                if let Some(queue) = staged.get_mut(index) {
                    queue.step(step)?;
                }
            }
        }
        Ok(())
    }
}
