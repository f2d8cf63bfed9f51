//! Dead letters: they take room, with their cause, until somebody says whether to try again or to give up.

use serde::{Serialize, de::DeserializeOwned};

use super::{DEAD, Held, Queue, QueueStep, Record, keyed, numbered};
use crate::{changes::Changes, key::Key, store::ReadError};

/// An item that failed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter<K, T> {
    /// The key it was pushed with.
    pub key: K,
    /// The item.
    pub item: T,
    /// Failed attempts.
    pub attempts: u32,
    /// What the last attempt said.
    pub error: String,
    /// When the last attempt failed, in the milliseconds that [`Queue::retry`] was given.
    pub failed_ms: u64,
}

impl<K: Key, T: Serialize + DeserializeOwned> Queue<K, T> {
    /// Puts a dead letter back in its old place, with no attempts counted. No effect on other keys.
    pub fn requeue(&self, changes: &mut Changes, key: &K) {
        self.add(
            changes,
            &self.shared,
            QueueStep::Requeue {
                key: key.to_bytes(),
            },
            None,
        );
    }

    /// Gives a dead letter up; its key counts as done. No effect on other keys.
    pub fn discard(&self, changes: &mut Changes, key: &K) {
        self.add(
            changes,
            &self.shared,
            QueueStep::Discard {
                key: key.to_bytes(),
            },
            None,
        );
    }

    /// At most `limit` dead letters, oldest push first.
    ///
    /// # Errors
    /// [`ReadError`] when the queue is damaged.
    pub fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter<K, T>>, ReadError> {
        let records = self.records(DEAD, limit)?;
        records
            .into_iter()
            .map(|record| self.letter(record))
            .collect()
    }

    /// The dead letter of a key, if it is one.
    ///
    /// # Errors
    /// [`ReadError`] when the queue is damaged.
    pub fn dead_letter(&self, key: &K) -> Result<Option<DeadLetter<K, T>>, ReadError> {
        let Some(Held::Dead(seq)) = self.read::<Held>(&keyed(&key.to_bytes()))? else {
            return Ok(None);
        };
        let record = self.record(&numbered(DEAD, seq))?;
        record.map(|record| self.letter(record)).transpose()
    }

    fn letter(&self, record: Record) -> Result<DeadLetter<K, T>, ReadError> {
        let (key, item) = self.decode(&record)?;
        Ok(DeadLetter {
            key,
            item,
            attempts: record.attempts,
            error: record.error,
            failed_ms: record.not_before_ms,
        })
    }
}
