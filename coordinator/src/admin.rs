//! What an administrator decides: dead letters, and the alarm. Every act is in the audit log, in the commit that does it.
//!
//! | queue | retry | drop |
//! | --- | --- | --- |
//! | requests | waits for a batch again, unless it is elsewhere already | the user's request is refused, with the reason |
//! | prove, sign | proven or signed again | the batch is given up; its requests wait again |
//! | broadcast, confirm | submitted or watched again | never: signed, it may be on its way to a block |

use std::collections::BTreeMap;

use node::{clock::now_ms, history};
use protocol::api::{ActKind, BatchStatus, DeadLetterDocument, MAX_PAGE, RequestStatus};
use serde::{Deserialize, Serialize};
use storage::{Changes, CommitError, DeadLetter, LogDef, Queue, QueueDef, ReadError, Store};

use crate::{
    events,
    live::Reader,
    pipeline::{StageError, abandon, stop_on_failed_write},
    queue,
    records::{BATCHES, BROADCAST, BatchKey, CONFIRM, PROVE, REQUESTS, Request, RequestKey, SIGN},
};

/// Acts that are kept: never fewer of the newest.
pub const MAX_ACTS: u64 = 100_000;
/// The audit log.
pub const AUDIT: LogDef<Act> = LogDef::new("audit", 1, MAX_ACTS);

/// What somebody has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// When.
    pub at_ms: u64,
    /// The token's label, or "command line".
    pub who: String,
    /// What.
    pub kind: ActKind,
    /// To what.
    pub subject: String,
    /// Why, in their words.
    pub reason: String,
    /// What has come of it.
    pub outcome: String,
}

/// The durable queues between the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueName {
    /// [`REQUESTS`].
    Requests,
    /// [`PROVE`].
    Prove,
    /// [`SIGN`].
    Sign,
    /// [`BROADCAST`].
    Broadcast,
    /// [`CONFIRM`].
    Confirm,
}

impl QueueName {
    const ALL: [Self; 5] = [
        Self::Requests,
        Self::Prove,
        Self::Sign,
        Self::Broadcast,
        Self::Confirm,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Prove => "prove",
            Self::Sign => "sign",
            Self::Broadcast => "broadcast",
            Self::Confirm => "confirm",
        }
    }

    /// May what is dead in it be dropped?
    const fn is_droppable(self) -> bool {
        match self {
            Self::Requests | Self::Prove | Self::Sign => true,
            Self::Broadcast | Self::Confirm => false,
        }
    }

    const fn batches(self) -> Option<&'static QueueDef<BatchKey, u64>> {
        match self {
            Self::Requests => None,
            Self::Prove => Some(&PROVE),
            Self::Sign => Some(&SIGN),
            Self::Broadcast => Some(&BROADCAST),
            Self::Confirm => Some(&CONFIRM),
        }
    }
}

/// Names a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterName {
    /// In [`REQUESTS`].
    Request(RequestKey),
    /// In a queue of batches.
    Batch(QueueName, BatchKey),
}

impl LetterName {
    /// Reads the names of queue and key; `None` if there can be no such letter.
    pub fn parse(queue: &str, key: &str) -> Option<Self> {
        let queue = QueueName::ALL.into_iter().find(|q| q.as_str() == queue)?;
        let (first, tries) = key.split_once('.')?;
        let tries = tries.parse().ok()?;
        Some(match queue {
            QueueName::Requests => {
                let mut id = [0; 32];
                hex::decode_to_slice(first, &mut id).ok()?;
                Self::Request((id, tries))
            }
            batches => Self::Batch(batches, (first.parse().ok()?, tries)),
        })
    }

    fn queue(&self) -> QueueName {
        match self {
            Self::Request(_) => QueueName::Requests,
            Self::Batch(queue, _) => *queue,
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Request((id, tries)) => format!("{}.{tries}", hex::encode(id)),
            Self::Batch(_, (sequence, tries)) => format!("{sequence}.{tries}"),
        }
    }
}

/// Why an act was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Not there, or not dead any more.
    #[error("there is no such dead letter")]
    Unknown,
    /// It could be on its way to a block.
    #[error(
        "a batch that is signed is not given up: it may be on its way to a block; retry it instead"
    )]
    NotDroppable,
    /// No vault yet.
    #[error("there is no vault yet")]
    NoVault,
    /// The database.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The batch can't be given up.
    #[error("the batch can't be given up")]
    Stage(#[from] StageError),
}

/// Dead letters, at most [`MAX_PAGE`] of each queue, and how many there are in all.
///
/// # Errors
/// A damaged database.
pub fn dead_letters(store: &Store) -> Result<(Vec<DeadLetterDocument>, usize), ReadError> {
    let requests = store.queue(&REQUESTS)?;
    let mut total = requests.lengths().dead;
    let mut items = Vec::new();
    for letter in requests.dead_letters(MAX_PAGE)? {
        let subject = match letter.item {
            Request::Deposit(outpoint) => format!("deposit {outpoint}"),
            Request::Signed(id) => format!("operation {id}"),
        };
        let progress = queue::progress(store, &letter.item)?;
        let status = progress.map_or_else(String::new, |progress| {
            shown(&progress.status, progress.reason.as_deref())
        });
        let name = LetterName::Request(letter.key);
        items.push(document(name, subject, status, &letter));
    }
    for (queue, batches) in batch_queues(store)? {
        total = total.saturating_add(batches.lengths().dead);
        for letter in batches.dead_letters(MAX_PAGE)? {
            let record = store.get(&BATCHES, &letter.key.0)?;
            let record = record.filter(|record| record.key() == letter.key);
            let status = record.map_or_else(String::new, |record| {
                shown(&record.status, record.reason.as_deref())
            });
            let name = LetterName::Batch(queue, letter.key);
            items.push(document(
                name,
                format!("batch {}", letter.item),
                status,
                &letter,
            ));
        }
    }
    Ok((items, total))
}

type BatchQueue = (QueueName, Queue<BatchKey, u64>);

fn batch_queues(store: &Store) -> Result<Vec<BatchQueue>, ReadError> {
    QueueName::ALL
        .into_iter()
        .filter_map(|name| Some((name, name.batches()?)))
        .map(|(name, def)| Ok((name, store.queue(def)?)))
        .collect()
}

fn shown(status: &impl Serialize, reason: Option<&str>) -> String {
    let status = serde_json::to_value(status).unwrap_or_default();
    let status = status.as_str().unwrap_or_default().to_owned();
    reason.map_or(status.clone(), |reason| format!("{status}: {reason}"))
}

fn document<K, T>(
    name: LetterName,
    subject: String,
    status: String,
    letter: &DeadLetter<K, T>,
) -> DeadLetterDocument {
    DeadLetterDocument {
        queue: name.queue().as_str().to_owned(),
        key: name.key(),
        subject,
        attempts: letter.attempts,
        cause: letter.error.clone(),
        failed_ms: letter.failed_ms,
        status,
        droppable: name.queue().is_droppable(),
    }
}

/// Queues a dead letter again, in its old place.
///
/// # Errors
/// [`AdminError`]; nothing is changed then.
pub fn retry(
    reader: &Reader,
    name: LetterName,
    who: &str,
    reason: &str,
) -> Result<Act, AdminError> {
    let _writing = reader.writing.blocking_lock();
    let store = &reader.store;
    let mut changes = Changes::new();
    let outcome = match name {
        LetterName::Request(key) => {
            let queue = store.queue(&REQUESTS)?;
            let letter = queue.dead_letter(&key)?.ok_or(AdminError::Unknown)?;
            if is_waiting(store, &key, &letter.item)? {
                queue.requeue(&mut changes, &key);
                queue::mark(store, &mut changes, &letter.item, |progress| {
                    progress.reason = Some("queued again by an administrator".to_owned());
                })?;
                "queued again".to_owned()
            } else {
                // Queued once more it could be in one batch twice.
                queue.discard(&mut changes, &key);
                "the letter is dropped: the request is elsewhere already".to_owned()
            }
        }
        LetterName::Batch(queue, key) => {
            let def = queue.batches().ok_or(AdminError::Unknown)?;
            let queue = store.queue(def)?;
            queue.dead_letter(&key)?.ok_or(AdminError::Unknown)?;
            queue.requeue(&mut changes, &key);
            if let Some(mut record) = store.get(&BATCHES, &key.0)?
                && record.key() == key
            {
                let reason = Some("queued again by an administrator");
                crate::advance::explain(store, &mut changes, &mut record, reason)?;
                changes.put(&BATCHES, &key.0, &record);
            }
            "queued again".to_owned()
        }
    };
    Ok(done(
        reader,
        changes,
        act(ActKind::Retry, name, who, reason, outcome),
    ))
}

/// Drops a dead letter; what that means is in this module's table.
///
/// # Errors
/// [`AdminError`]; nothing is changed then.
pub fn discard(
    reader: &Reader,
    name: LetterName,
    who: &str,
    reason: &str,
) -> Result<Act, AdminError> {
    let _writing = reader.writing.blocking_lock();
    let store = &reader.store;
    let mut changes = Changes::new();
    let outcome = match name {
        LetterName::Request(key) => {
            let queue = store.queue(&REQUESTS)?;
            let letter = queue.dead_letter(&key)?.ok_or(AdminError::Unknown)?;
            queue.discard(&mut changes, &key);
            if is_waiting(store, &key, &letter.item)? {
                queue::mark(store, &mut changes, &letter.item, |progress| {
                    let reason = format!("dropped by an administrator: {reason}");
                    progress.refuse(reason, now_ms());
                })?;
                "the request is refused".to_owned()
            } else {
                "nothing else: the request is elsewhere already".to_owned()
            }
        }
        LetterName::Batch(queue, key) => {
            let def = queue.batches().ok_or(AdminError::Unknown)?;
            let letters = store.queue(def)?;
            letters.dead_letter(&key)?.ok_or(AdminError::Unknown)?;
            if !queue.is_droppable() {
                return Err(AdminError::NotDroppable);
            }
            letters.discard(&mut changes, &key);
            give_up(reader, key, reason, &mut changes)?
        }
    };
    Ok(done(
        reader,
        changes,
        act(ActKind::Drop, name, who, reason, outcome),
    ))
}

/// Gives a batch up that has no signatures yet.
fn give_up(
    reader: &Reader,
    key: BatchKey,
    reason: &str,
    changes: &mut Changes,
) -> Result<String, AdminError> {
    let store = &reader.store;
    let record = store.get(&BATCHES, &key.0)?;
    let unsigned = |status| matches!(status, BatchStatus::Formed | BatchStatus::Proven);
    let Some(record) = record.filter(|record| record.key() == key && unsigned(record.status))
    else {
        return Ok("nothing else: the batch is elsewhere already".to_owned());
    };
    let vault = reader.live.borrow().vault.clone();
    let vault = vault.ok_or(AdminError::NoVault)?;
    let requests = record.requests.len();
    let why = format!("given up by an administrator: {reason}");
    abandon(store, &vault.id(), record, &why, &BTreeMap::new(), changes)?;
    Ok(format!(
        "the batch is given up; its {requests} requests wait again"
    ))
}

/// Whether a request still waits in this place of its queue. Afterwards it may be in a batch that somebody else made.
fn is_waiting(store: &Store, key: &RequestKey, request: &Request) -> Result<bool, ReadError> {
    Ok(queue::progress(store, request)?.is_some_and(|progress| {
        progress.status == RequestStatus::Queued && progress.tries == key.1
    }))
}

fn act(kind: ActKind, name: LetterName, who: &str, reason: &str, outcome: String) -> Act {
    Act {
        at_ms: now_ms(),
        who: who.to_owned(),
        kind,
        subject: format!("{} {}", name.queue().as_str(), name.key()),
        reason: reason.to_owned(),
        outcome,
    }
}

/// The act and its entry in one write; a failure stops the process (S11).
fn done(reader: &Reader, mut changes: Changes, act: Act) -> Act {
    changes.append(&AUDIT, &act);
    reader
        .store
        .commit(changes)
        .unwrap_or_else(|error| stop_on_failed_write(&error));
    tracing::warn!(who = act.who, act = ?act.kind, subject = act.subject, reason = act.reason, outcome = act.outcome, "an administrator has decided");
    reader.wake.notify_one();
    act
}

/// Takes the alarm back. Gives what it was; if there was none, nothing is written.
///
/// # Errors
/// A damaged database, or a disk that can't be written.
pub fn clear_alarm(store: &Store, reason: &str) -> Result<Option<String>, ClearError> {
    let Some(alarm) = store.get(&history::ALARM, &())? else {
        return Ok(None);
    };
    let mut changes = Changes::new();
    changes.delete(&history::ALARM, &());
    events::cleared(store, &mut changes)?;
    let act = Act {
        at_ms: now_ms(),
        who: "command line".to_owned(),
        kind: ActKind::ClearAlarm,
        subject: alarm.clone(),
        reason: reason.to_owned(),
        outcome: "batches are formed again from the next start on".to_owned(),
    };
    changes.append(&AUDIT, &act);
    store.commit(changes)?;
    Ok(Some(alarm))
}

/// Why the alarm could not be taken back.
#[derive(Debug, thiserror::Error)]
pub enum ClearError {
    /// The database.
    #[error("the database can't be read")]
    Read(#[from] ReadError),
    /// The disk.
    #[error("the database can't be written")]
    Commit(#[from] CommitError),
}
