//! Stage 2: a request that has passed the checks at the edge is stored and queued in one write, and only
//! then answered "accepted". Also the one place that moves requests from status to status.

use bitcoin::Amount;
use ledger::{Ledger, Operation, OperationError, OperationId, SequenceNumber, VaultId};
use node::clock::now_ms;
use protocol::{
    api::{MAX_PENDING, RequestStatus},
    parameters::Parameters,
    pipeline::request::Input,
};
use storage::{Changes, Direction, PushError, ReadError, Store};

use crate::{
    events,
    live::Reader,
    pipeline::stop_on_failed_write,
    records::{
        DEPOSITS, LEFT_OUT, OPERATIONS, OperationRecord, PENDING, Progress, REQUESTS, Request,
    },
};

/// How long a request waits that was left out of a batch once, and at most, in ms.
const FIRST_BACK_OFF_MS: u64 = 10_000;
const MAX_BACK_OFF_MS: u64 = 600_000;
/// Requests that come back at a time.
const MAX_RETURNING: usize = 1_000;

/// Why a signed operation is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// There is no vault yet.
    #[error("this bridge has no genesis yet; try again when /readyz answers 200")]
    NoGenesis,
    /// The ledger has not caught up with the chain.
    #[error("this coordinator is catching up with the chain; try again shortly")]
    NotCurrent,
    /// The fee is below the vault's smallest.
    #[error("the fee is below the smallest fee of {least}")]
    FeeTooLow {
        /// The smallest fee.
        least: Amount,
    },
    /// Another operation with this nonce waits.
    #[error("another operation with nonce {nonce} of this account waits already")]
    NonceTaken {
        /// The nonce.
        nonce: u64,
    },
    /// The account has too many operations that wait.
    #[error("this account has {MAX_PENDING} operations waiting; send more when they are confirmed")]
    TooMany,
    /// The ledger would refuse it.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// No room.
    #[error("the queue of requests is full; try again later")]
    QueueFull,
    /// The database.
    #[error("the request could not be stored: {0}")]
    Storage(String),
}

/// Checks a signed operation against the ledger and what already waits, stores and queues it.
/// The same operation again gives its record back.
///
/// # Errors
/// [`AcceptError`]; nothing is stored then.
pub fn accept(reader: &Reader, operation: Operation) -> Result<OperationRecord, AcceptError> {
    let vault = reader
        .live
        .borrow()
        .vault
        .clone()
        .ok_or(AcceptError::NoGenesis)?;
    let id = operation.id(&vault.id());
    // One writer at a time: two requests with one nonce must not both pass.
    let mut history = reader
        .history
        .write()
        .map_err(|error| AcceptError::Storage(error.to_string()))?;
    let history = history.as_mut().ok_or(AcceptError::NoGenesis)?;
    let known = reader.store.get(&OPERATIONS, &id.0).map_err(storage)?;
    let before = match known {
        Some(record) if record.progress.status != RequestStatus::Refused => return Ok(record),
        refused => refused.map(|record| record.progress),
    };
    if !history.is_current() || reader.live.borrow().is_behind {
        return Err(AcceptError::NotCurrent);
    }
    let (Some(sender), Some(nonce)) = (operation.sender(), operation.nonce()) else {
        return Err(AcceptError::Operation(OperationError::UnknownSender(
            ledger::AccountIndex(u32::MAX),
        )));
    };
    check_fee(&operation, &reader.parameters)?;
    let mut line = waiting(&reader.store, sender.0).map_err(storage)?;
    if line.len() >= MAX_PENDING {
        return Err(AcceptError::TooMany);
    }
    if line.iter().any(|waiting| waiting.nonce() == Some(nonce)) {
        return Err(AcceptError::NonceTaken { nonce });
    }
    let next = SequenceNumber(history.head().commitment.sequence.0.saturating_add(1));
    check_alone(history.ledger(), &operation, &vault.id(), next)?;
    // Behind the account's own operations that wait. What others will send it does not count yet.
    line.push(operation.clone());
    if let Err((_, error)) = history.replay(&line, next) {
        return Err(error.into());
    }
    let now = now_ms();
    let mut progress = before
        .clone()
        .unwrap_or_else(|| Progress::new(RequestStatus::Received, now));
    // The queue remembers the try that was refused as done.
    progress.take(Input::Seen, None, now);
    progress.take(Input::Ready, None, now);
    let tries = progress.tries;
    let record = OperationRecord {
        operation,
        progress,
    };
    let mut changes = Changes::new();
    events::put_operation(&mut changes, before.as_ref(), id, &record);
    changes.put(&PENDING, &(sender.0, nonce), &id.0);
    enqueue(&reader.store, &mut changes, id, tries, Request::Signed(id)).map_err(|error| {
        match error {
            PushError::QueueFull { .. } => AcceptError::QueueFull,
            other => AcceptError::Storage(other.to_string()),
        }
    })?;
    reader
        .store
        .commit(changes)
        .map_err(|error| stop_on_failed_write(&error))
        .map(|()| {
            reader.wake.notify_one();
            record
        })
}

/// The errors that an operation earns on its own, named before those of its place in the line.
fn check_alone(
    ledger: &Ledger,
    operation: &Operation,
    vault: &VaultId,
    next: SequenceNumber,
) -> Result<(), AcceptError> {
    match ledger.check(operation, vault, next) {
        // These depend on what waits before it.
        Ok(())
        | Err(OperationError::FutureNonce { .. } | OperationError::InsufficientBalance { .. }) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn check_fee(operation: &Operation, parameters: &Parameters) -> Result<(), AcceptError> {
    let least = parameters.smallest_fee(operation);
    if operation.fee() < least {
        Err(AcceptError::FeeTooLow { least })
    } else {
        Ok(())
    }
}

/// Operations of an account that are not confirmed, by nonce.
fn waiting(store: &Store, sender: u32) -> Result<Vec<Operation>, ReadError> {
    let mut line = Vec::new();
    for row in store.iter(
        &PENDING,
        (sender, 0)..=(sender, u64::MAX),
        Direction::Forward,
        MAX_PENDING,
    )? {
        let (_, id) = row?;
        if let Some(record) = store.get(&OPERATIONS, &id)? {
            line.push(record.operation);
        }
    }
    Ok(line)
}

fn storage(error: ReadError) -> AcceptError {
    AcceptError::Storage(error.to_string())
}

/// Adds a request to the queue of those that wait for a batch.
///
/// # Errors
/// A full queue or a damaged database; `changes` is as before.
pub fn enqueue(
    store: &Store,
    changes: &mut Changes,
    id: OperationId,
    tries: u32,
    request: Request,
) -> Result<(), PushError> {
    store
        .queue(&REQUESTS)?
        .push(changes, &(id.0, tries), &request)
}

/// As [`enqueue`]; without room the request waits beside the queue until there is. Giving a batch up must not fail.
///
/// # Errors
/// A damaged database.
pub fn enqueue_or_wait(
    store: &Store,
    changes: &mut Changes,
    id: OperationId,
    tries: u32,
    request: Request,
) -> Result<(), PushError> {
    match enqueue(store, changes, id, tries, request) {
        Err(PushError::QueueFull { .. }) => {
            changes.put(&LEFT_OUT, &(now_ms(), id.0), &request);
            Ok(())
        }
        other => other,
    }
}

/// When a request that was left out after so many tries is tried again. Those that have waited about as long come back
/// together: a batch that is refused once more costs a round of proofs, however many it tries.
pub fn comes_back_ms(now: u64, tries: u32) -> u64 {
    let wait = back_off_ms(tries);
    let earliest = now.saturating_add(wait);
    earliest
        .checked_next_multiple_of(wait / 2)
        .unwrap_or(earliest)
}

fn back_off_ms(tries: u32) -> u64 {
    let doublings = tries.saturating_sub(1).min(16);
    FIRST_BACK_OFF_MS
        .saturating_mul(1_u64 << doublings)
        .min(MAX_BACK_OFF_MS)
}

/// Queues the requests that were left out of a batch and have waited long enough.
///
/// # Errors
/// A damaged database. What finds no room in the queue waits on.
pub fn come_back(store: &Store, changes: &mut Changes, now: u64) -> Result<(), ReadError> {
    // No wait is longer: what is due later was written before the clock jumped back.
    let jumped = now.saturating_add(MAX_BACK_OFF_MS.saturating_mul(2));
    let due = store.iter(
        &LEFT_OUT,
        ..=(now, [0xff; 32]),
        Direction::Forward,
        MAX_RETURNING,
    )?;
    let late = store.iter(
        &LEFT_OUT,
        (jumped, [0xff; 32])..,
        Direction::Forward,
        MAX_RETURNING,
    )?;
    for row in due.chain(late) {
        let (key, request) = row?;
        if let Some(progress) =
            progress(store, &request)?.filter(|row| row.status == RequestStatus::Queued)
            && let Err(error) = enqueue(store, changes, OperationId(key.1), progress.tries, request)
        {
            tracing::warn!(%error, "a request that was left out waits for room in the queue");
            break;
        }
        changes.delete(&LEFT_OUT, &key);
    }
    Ok(())
}

/// A request whose batch is gone waits for another one, if it was in that batch still. Gives how often it was queued
/// before; `None` when it is elsewhere by now, such as in a batch that another coordinator made.
///
/// # Errors
/// A damaged database.
pub fn wait(
    store: &Store,
    changes: &mut Changes,
    request: &Request,
    why: &str,
) -> Result<Option<u32>, ReadError> {
    let mut tries = None;
    mark(store, changes, request, |progress| {
        if progress.take(Input::Released, Some(why.to_owned()), now_ms()) {
            tries = Some(progress.tries);
        }
    })?;
    Ok(tries)
}

/// [`wait`], in the queue.
///
/// # Errors
/// A damaged database.
pub fn release(
    store: &Store,
    changes: &mut Changes,
    id: OperationId,
    request: &Request,
    why: &str,
) -> Result<(), PushError> {
    if let Some(tries) = wait(store, changes, request, why)? {
        enqueue_or_wait(store, changes, id, tries, *request)?;
    }
    Ok(())
}

/// How far a request is, if it is known here.
///
/// # Errors
/// A damaged database.
pub fn progress(store: &Store, request: &Request) -> Result<Option<Progress>, ReadError> {
    Ok(match request {
        Request::Deposit(outpoint) => store.get(&DEPOSITS, outpoint)?.map(|row| row.progress),
        Request::Signed(id) => store.get(&OPERATIONS, &id.0)?.map(|row| row.progress),
    })
}

/// Whether a request is in a confirmed batch.
///
/// # Errors
/// A damaged database.
pub fn is_confirmed(store: &Store, request: &Request) -> Result<bool, ReadError> {
    Ok(progress(store, request)?.is_some_and(|progress| {
        matches!(
            progress.status,
            RequestStatus::Confirmed | RequestStatus::Final
        )
    }))
}

/// Moves a request to a status, in `changes`. Gives the progress before.
///
/// # Errors
/// A damaged database.
pub fn mark(
    store: &Store,
    changes: &mut Changes,
    request: &Request,
    update: impl FnOnce(&mut Progress),
) -> Result<(), ReadError> {
    match request {
        Request::Deposit(outpoint) => {
            if let Some(mut record) = store.get(&DEPOSITS, outpoint)? {
                let before = record.progress.clone();
                update(&mut record.progress);
                events::put_deposit(changes, Some(&before), &record);
            }
        }
        Request::Signed(id) => {
            if let Some(mut record) = store.get(&OPERATIONS, &id.0)? {
                let before = record.progress.clone();
                update(&mut record.progress);
                let over = matches!(
                    record.progress.status,
                    RequestStatus::Refused | RequestStatus::Confirmed | RequestStatus::Final
                );
                if let (Some(sender), Some(nonce)) =
                    (record.operation.sender(), record.operation.nonce())
                {
                    if over {
                        changes.delete(&PENDING, &(sender.0, nonce));
                    } else {
                        // Again, if its batch has left the chain.
                        changes.put(&PENDING, &(sender.0, nonce), &id.0);
                    }
                }
                events::put_operation(changes, Some(&before), *id, &record);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::{OutPoint, hashes::Hash as _};

    use super::*;

    #[test]
    fn what_is_left_out_waits_longer_each_time_up_to_the_bound() {
        let waits: Vec<u64> = (1..=4).map(back_off_ms).collect();
        assert_eq!(waits, [10_000, 20_000, 40_000, 80_000]);
        assert_eq!(back_off_ms(u32::MAX), MAX_BACK_OFF_MS);
        assert_eq!(back_off_ms(0), FIRST_BACK_OFF_MS);
        assert!(comes_back_ms(u64::MAX / 2, u32::MAX) > u64::MAX / 2);
    }

    #[test]
    fn what_has_waited_about_as_long_comes_back_together() {
        let at: Vec<u64> = [100_001, 101_000, 104_999]
            .map(|now| comes_back_ms(now, 1))
            .to_vec();
        assert_eq!(at, [115_000; 3]);
        for tries in 1..20 {
            let wait = comes_back_ms(123_456, tries) - 123_456;
            assert!(
                (back_off_ms(tries)..2 * back_off_ms(tries)).contains(&wait),
                "{tries}"
            );
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let schema = storage::Schema {
            kind: "coordinator",
            network: "test",
            columns: &crate::records::columns(),
        };
        let store = Store::open(dir.path().join("db"), &schema).unwrap();
        (dir, store)
    }

    #[test]
    fn what_finds_no_room_in_the_queue_waits_beside_it() {
        let (_dir, store) = store();
        let request = |n: u32| Request::Deposit(OutPoint::new(bitcoin::Txid::all_zeros(), n));
        let id = |n: u32| OperationId([n.to_le_bytes(); 8].concat().try_into().unwrap());
        let mut changes = Changes::new();
        let mut room = 0;
        while enqueue(&store, &mut changes, id(room), 0, request(room)).is_ok() {
            room += 1;
        }
        store.commit(changes).unwrap();
        let mut changes = Changes::new();
        enqueue_or_wait(&store, &mut changes, id(room), 1, request(room)).unwrap();
        store.commit(changes).unwrap();
        let mut waiting = store.iter(&LEFT_OUT, .., Direction::Forward, 9).unwrap();
        let ((until, name), waits) = waiting.next().unwrap().unwrap();
        assert!(until <= now_ms(), "it comes back as soon as there is room");
        assert_eq!((name, waits), (id(room).0, request(room)));
    }

    #[test]
    fn what_was_left_out_comes_back_when_its_time_has_come() {
        let (_dir, store) = store();
        let outpoint = |n: u8| OutPoint::new(bitcoin::Txid::from_byte_array([n; 32]), 0);
        let now = 5_000_000;
        let mut changes = Changes::new();
        // In time, later, refused meanwhile, and from before the clock jumped back by a day.
        for (n, until, status) in [
            (1, now, RequestStatus::Queued),
            (2, now + 1, RequestStatus::Queued),
            (3, now, RequestStatus::Refused),
            (4, now + 86_400_000, RequestStatus::Queued),
        ] {
            let record = crate::records::DepositRecord {
                outpoint: outpoint(n),
                terms: protocol::deposit::TermsHash([0; 32]),
                value: Amount::ONE_BTC,
                height: 1,
                progress: Progress::new(status, 0),
            };
            changes.put(&DEPOSITS, &outpoint(n), &record);
            let request = Request::Deposit(outpoint(n));
            changes.put(&LEFT_OUT, &(until, [n; 32]), &request);
        }
        store.commit(changes).unwrap();
        let queued = |now: u64| {
            let mut changes = Changes::new();
            come_back(&store, &mut changes, now).unwrap();
            store.commit(changes).unwrap();
            let items = store.queue(&REQUESTS).unwrap().items(9).unwrap();
            items.iter().map(|((id, _), _)| id[0]).collect::<Vec<_>>()
        };
        assert_eq!(queued(now), [1, 4]);
        assert_eq!(queued(now), [1, 4], "it comes back once");
        assert_eq!(queued(now + 1), [1, 4, 2]);
        assert_eq!(
            store
                .iter(&LEFT_OUT, .., Direction::Forward, 9)
                .unwrap()
                .count(),
            0
        );
    }
}
