//! What a queue knows in memory: which items can be had now, which wait until when, and counts.
//! Follows the disk: it changes after a commit, never before.

use std::collections::{BTreeSet, HashMap};

use super::{DEAD, DONE, ITEM, Lengths, MAX_WAIT_MS, RECORD_VERSION, Record, rows};
use crate::{
    key::Key,
    store::{Inner, ReadError},
    table::{ColumnName, DecodeError, decode_value},
};

/// Numbers that every commit must see as the one before left them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Number of the next push.
    pub next_seq: u64,
    /// Items, dead letters.
    pub queued: usize,
    pub dead: usize,
    /// Finished keys are numbered `oldest_done..next_done`.
    pub oldest_done: u64,
    pub next_done: u64,
}

impl Counters {
    pub fn held(&self) -> usize {
        self.queued.saturating_add(self.dead)
    }
}

/// Where an item goes when a commit is on disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Move {
    Ready(u64),
    WaitUntil(u64, u64),
    Gone(u64),
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pub counters: Counters,
    /// Pushes collected in changes that are not committed yet.
    pub reserved: usize,
    ready: BTreeSet<u64>,
    waiting: BTreeSet<(u64, u64)>,
    until: HashMap<u64, u64>,
}

impl Index {
    pub fn load(inner: &Inner, column: ColumnName) -> Result<Self, ReadError> {
        let mut index = Self::default();
        let counters = &mut index.counters;
        let mut moves = Vec::new();
        each(inner, column, ITEM, |seq, value| {
            let record: Record = decode_value(RECORD_VERSION, value)?;
            moves.push(Move::WaitUntil(record.not_before_ms, seq));
            counters.queued = counters.queued.saturating_add(1);
            counters.next_seq = counters.next_seq.max(seq.saturating_add(1));
            Ok(())
        })?;
        each(inner, column, DEAD, |seq, _| {
            counters.dead = counters.dead.saturating_add(1);
            counters.next_seq = counters.next_seq.max(seq.saturating_add(1));
            Ok(())
        })?;
        let mut oldest = None;
        each(inner, column, DONE, |number, _| {
            oldest.get_or_insert(number);
            counters.next_done = number.saturating_add(1);
            Ok(())
        })?;
        counters.oldest_done = oldest.unwrap_or_default();
        for step in moves {
            index.apply(step);
        }
        Ok(index)
    }

    pub fn apply(&mut self, step: Move) {
        let (Move::Ready(seq) | Move::WaitUntil(_, seq) | Move::Gone(seq)) = step;
        self.ready.remove(&seq);
        if let Some(until) = self.until.remove(&seq) {
            self.waiting.remove(&(until, seq));
        }
        match step {
            Move::Ready(_) => {
                self.ready.insert(seq);
            }
            Move::WaitUntil(until, _) => {
                self.waiting.insert((until, seq));
                self.until.insert(seq, until);
            }
            Move::Gone(_) => {}
        }
    }

    /// Items that can be had now: those that were waiting and are due count, as all do after a start.
    pub fn ready_at(&mut self, now_ms: u64) -> usize {
        self.come_due(now_ms);
        self.ready.len()
    }

    /// Takes the oldest item that can be had now, and has it wait until `until`.
    pub fn take(&mut self, now_ms: u64, until: u64) -> Option<u64> {
        self.come_due(now_ms);
        let seq = *self.ready.first()?;
        self.apply(Move::WaitUntil(until, seq));
        Some(seq)
    }

    fn come_due(&mut self, now_ms: u64) {
        while let Some(&(due, seq)) = self.waiting.first()
            && due <= now_ms
        {
            self.apply(Move::Ready(seq));
        }
        // No wait is longer than this, so the clock has jumped back: do not wait for it.
        while let Some(&(due, seq)) = self.waiting.last()
            && due > now_ms.saturating_add(MAX_WAIT_MS)
        {
            self.apply(Move::Ready(seq));
        }
    }

    /// Ends the lease that runs until `until`. An item that is gone, leased anew or backing off
    /// stays where it is.
    pub fn release(&mut self, seq: u64, until: u64) {
        if self.until.get(&seq) == Some(&until) {
            self.apply(Move::Ready(seq));
        }
    }

    pub fn lengths(&self) -> Lengths {
        Lengths {
            ready: self.ready.len(),
            waiting: self.waiting.len(),
            dead: self.counters.dead,
            done: self
                .counters
                .next_done
                .saturating_sub(self.counters.oldest_done),
        }
    }

    pub fn next_due_ms(&self) -> Option<u64> {
        if self.ready.is_empty() {
            self.waiting.first().map(|&(due, _)| due)
        } else {
            Some(0)
        }
    }
}

fn each(
    inner: &Inner,
    column: ColumnName,
    kind: u8,
    mut f: impl FnMut(u64, &[u8]) -> Result<(), DecodeError>,
) -> Result<(), ReadError> {
    for row in rows(inner, column, kind)? {
        let (key, value) = row.map_err(|source| ReadError::Database { column, source })?;
        let (_, number) = <(u8, u64)>::decode(&key).ok_or(ReadError::Row {
            column,
            source: DecodeError::Key,
        })?;
        f(number, &value).map_err(|source| ReadError::Row { column, source })?;
    }
    Ok(())
}
