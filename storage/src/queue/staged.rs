//! What a commit does to one queue: each step reads the queue as the steps before it leave it, and
//! nothing is visible outside before the write is on disk. Only one commit runs at a time.

use std::{collections::HashMap, sync::Arc};

use rocksdb::WriteBatch;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    DEAD, DONE, Held, ITEM, RECORD_VERSION, Record, Shared,
    index::{Counters, Move},
    keyed, numbered, read_row,
};
use crate::{
    commit::CommitError,
    store::{Inner, ReadError},
    table::{DecodeError, decode_value, encode_value},
};

/// One step of a queue, to be resolved when it is committed.
pub(crate) enum QueueStep {
    Push {
        key: Vec<u8>,
        item: Vec<u8>,
    },
    Ack {
        seq: u64,
    },
    Retry {
        seq: u64,
        now_ms: u64,
        error: String,
    },
    Requeue {
        key: Vec<u8>,
    },
    Discard {
        key: Vec<u8>,
    },
}

pub(crate) struct Staged<'a> {
    inner: &'a Inner,
    family: &'a rocksdb::ColumnFamily,
    shared: &'a Arc<Shared>,
    counters: Counters,
    /// Rows this commit writes (`Some`) or deletes (`None`).
    rows: HashMap<Vec<u8>, Option<Vec<u8>>>,
    moves: Vec<Move>,
}

impl<'a> Staged<'a> {
    pub fn new(inner: &'a Inner, shared: &'a Arc<Shared>) -> Result<Self, CommitError> {
        let ours = inner
            .queues
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !ours
            .get(&shared.column)
            .is_some_and(|known| Arc::ptr_eq(known, shared))
        {
            return Err(CommitError::NoColumn(shared.column));
        }
        drop(ours);
        let counters = shared.index().counters;
        let family = inner.family(shared.column)?;
        Ok(Self {
            inner,
            family,
            shared,
            counters,
            rows: HashMap::new(),
            moves: Vec::new(),
        })
    }

    pub fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(self.shared, shared)
    }

    pub fn step(&mut self, step: &QueueStep) -> Result<(), CommitError> {
        match step {
            QueueStep::Push { key, item } => self.push(key, item),
            QueueStep::Ack { seq } => self.ack(*seq),
            QueueStep::Retry { seq, now_ms, error } => self.retry(*seq, *now_ms, error),
            QueueStep::Requeue { key } => self.requeue(key),
            QueueStep::Discard { key } => self.discard(key),
        }
    }

    pub fn write_to(&self, batch: &mut WriteBatch) {
        for (key, value) in &self.rows {
            match value {
                Some(value) => batch.put_cf(self.family, key, value),
                None => batch.delete_cf(self.family, key),
            }
        }
    }

    /// The write is on disk: now the others may see it.
    pub fn apply(self) {
        let mut index = self.shared.index();
        index.counters = self.counters;
        for step in self.moves {
            index.apply(step);
        }
    }

    fn push(&mut self, key: &[u8], item: &[u8]) -> Result<(), CommitError> {
        if self.held(key)?.is_some() {
            return Ok(());
        }
        let seq = self.counters.next_seq;
        self.counters.next_seq = next(seq)?;
        self.counters.queued = self.counters.queued.saturating_add(1);
        let record = Record {
            key: key.to_vec(),
            item: item.to_vec(),
            attempts: 0,
            not_before_ms: 0,
            error: String::new(),
        };
        self.put(numbered(ITEM, seq), &record)?;
        self.put(keyed(key), &Held::Item(seq))?;
        self.moves.push(Move::Ready(seq));
        Ok(())
    }

    fn ack(&mut self, seq: u64) -> Result<(), CommitError> {
        let Some(record) = self.get::<Record>(&numbered(ITEM, seq))? else {
            return Ok(());
        };
        self.rows.insert(numbered(ITEM, seq), None);
        self.counters.queued = self.counters.queued.saturating_sub(1);
        self.moves.push(Move::Gone(seq));
        self.finish(&record.key)
    }

    fn retry(&mut self, seq: u64, now_ms: u64, error: &str) -> Result<(), CommitError> {
        let Some(mut record) = self.get::<Record>(&numbered(ITEM, seq))? else {
            return Ok(());
        };
        record.attempts = record.attempts.saturating_add(1);
        record.error = error.to_owned();
        if record.attempts >= self.shared.retry.max_attempts {
            record.not_before_ms = now_ms;
            self.rows.insert(numbered(ITEM, seq), None);
            self.put(numbered(DEAD, seq), &record)?;
            self.put(keyed(&record.key), &Held::Dead(seq))?;
            self.counters.queued = self.counters.queued.saturating_sub(1);
            self.counters.dead = self.counters.dead.saturating_add(1);
            self.moves.push(Move::Gone(seq));
            return Ok(());
        }
        record.not_before_ms = now_ms.saturating_add(self.shared.retry.wait_ms(record.attempts));
        self.put(numbered(ITEM, seq), &record)?;
        self.moves.push(Move::WaitUntil(record.not_before_ms, seq));
        Ok(())
    }

    fn requeue(&mut self, key: &[u8]) -> Result<(), CommitError> {
        let Some((seq, mut record)) = self.take_dead(key)? else {
            return Ok(());
        };
        record.attempts = 0;
        record.not_before_ms = 0;
        self.put(numbered(ITEM, seq), &record)?;
        self.put(keyed(key), &Held::Item(seq))?;
        self.counters.queued = self.counters.queued.saturating_add(1);
        self.moves.push(Move::Ready(seq));
        Ok(())
    }

    fn discard(&mut self, key: &[u8]) -> Result<(), CommitError> {
        match self.take_dead(key)? {
            Some(_) => self.finish(key),
            None => Ok(()),
        }
    }

    fn take_dead(&mut self, key: &[u8]) -> Result<Option<(u64, Record)>, CommitError> {
        let Some(Held::Dead(seq)) = self.held(key)? else {
            return Ok(None);
        };
        let Some(record) = self.get::<Record>(&numbered(DEAD, seq))? else {
            return Ok(None);
        };
        self.rows.insert(numbered(DEAD, seq), None);
        self.counters.dead = self.counters.dead.saturating_sub(1);
        Ok(Some((seq, record)))
    }

    /// Remembers the key as done, and forgets the oldest beyond the bound.
    fn finish(&mut self, key: &[u8]) -> Result<(), CommitError> {
        let number = self.counters.next_done;
        self.counters.next_done = next(number)?;
        self.put(numbered(DONE, number), &key)?;
        self.put(keyed(key), &Held::Done(number))?;
        while self
            .counters
            .next_done
            .saturating_sub(self.counters.oldest_done)
            > self.shared.limits.remember_done
        {
            let oldest = numbered(DONE, self.counters.oldest_done);
            if let Some(key) = self.get::<Vec<u8>>(&oldest)? {
                self.rows.insert(keyed(&key), None);
            }
            self.rows.insert(oldest, None);
            self.counters.oldest_done = next(self.counters.oldest_done)?;
        }
        Ok(())
    }

    fn held(&self, key: &[u8]) -> Result<Option<Held>, CommitError> {
        self.get(&keyed(key))
    }

    fn get<V: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<V>, CommitError> {
        let column = self.shared.column;
        match self.rows.get(key) {
            Some(Some(bytes)) => decode_value(RECORD_VERSION, bytes)
                .map(Some)
                .map_err(|source: DecodeError| ReadError::Row { column, source }.into()),
            Some(None) => Ok(None),
            None => Ok(read_row(self.inner, column, key)?),
        }
    }

    fn put<V: Serialize>(&mut self, key: Vec<u8>, value: &V) -> Result<(), CommitError> {
        let column = self.shared.column;
        let value = encode_value(RECORD_VERSION, value)
            .map_err(|source| CommitError::Encode { column, source })?;
        self.rows.insert(key, Some(value));
        Ok(())
    }
}

/// Numbers are never used twice; 2^64 of them do not run out.
fn next(number: u64) -> Result<u64, CommitError> {
    number
        .checked_add(1)
        .ok_or_else(|| CommitError::Queue("sequence numbers are used up".into()))
}
