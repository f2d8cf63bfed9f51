//! Stage 1: finds payments to deposit addresses and to the vault in this node's own blocks, and queues
//! a deposit once it has its confirmations.

use std::collections::HashSet;

use bitcoin::{Block, OutPoint, ScriptBuf};
use chain::{follow::ChainEvent, scan};
use ledger::Operation;
use node::clock::now_ms;
use protocol::{
    api::RequestStatus,
    deposit::DepositTerms,
    parameters::{COINBASE_MATURITY, Parameters},
    pipeline::request::Input,
    transaction::TopUp,
    vault::Vault,
};
use storage::{Changes, Direction, ReadError, Store};

use crate::{
    events,
    queue::{self, enqueue},
    records::{
        DEPOSITS, DEPOSITS_OF, DepositRecord, Progress, Request, TERMS, TOP_UPS, TopUpRecord,
        UNRIPE,
    },
    terms, top_up,
};

/// Unripe deposits looked at after one block.
const MAX_RIPENING: usize = 10_000;

/// The ledger operation that credits a deposit; `None` when it is too small.
pub fn operation(record: &DepositRecord, terms: &DepositTerms) -> Option<Operation> {
    let amount = terms.credited(record.value)?;
    Some(Operation::Deposit {
        account: terms.account,
        amount,
        outpoint: record.outpoint,
    })
}

/// Takes a block in or out. Safe to repeat: a block may be taken again after a crash.
///
/// # Errors
/// A damaged database.
pub fn take(
    store: &Store,
    vault: &Vault,
    event: &ChainEvent,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    match event {
        ChainEvent::Connected { height, block, .. } => {
            find(store, vault, *height, block, changes)?;
            ripen(store, vault.parameters(), *height, changes)
        }
        ChainEvent::Disconnected { height, .. } => forget(store, *height, changes),
    }
}

fn find(
    store: &Store,
    vault: &Vault,
    height: u32,
    block: &Block,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    let now = now_ms();
    let scripts = terms::paid_in(store, block)?;
    let set: HashSet<ScriptBuf> = scripts.keys().cloned().collect();
    for output in scan::find_deposits(block, &set) {
        let Some(hash) = scripts.get(&output.script_pubkey) else {
            continue;
        };
        let Some(terms) = store.get(&TERMS, &hash.0)? else {
            continue;
        };
        let known = store.get(&DEPOSITS, &output.outpoint)?;
        let is_over = |status| matches!(status, RequestStatus::Received | RequestStatus::Refused);
        if let Some(known) = &known
            && !is_over(known.progress.status)
        {
            // Queued or in a batch: its block left the chain, and this one has it again.
            let record = DepositRecord {
                height,
                ..known.clone()
            };
            events::put_deposit(changes, Some(&known.progress), &record);
            continue;
        }
        let before = known.as_ref().map(|known| known.progress.clone());
        let progress = match known {
            None => Progress::new(RequestStatus::Received, now),
            Some(mut known) => {
                // Received still: its block left the chain. Otherwise what refused it may be over.
                known.progress.reason = None;
                known.progress.take(Input::Seen, None, now);
                known.progress
            }
        };
        let mut record = DepositRecord {
            outpoint: output.outpoint,
            terms: *hash,
            value: output.value,
            height,
            progress,
        };
        if terms.credited(output.value).is_none() {
            record.progress.refuse(
                format!(
                    "{} is below the smallest deposit of {}; refund it after {} blocks",
                    output.value, terms.min_deposit, terms.refund_delay
                ),
                now,
            );
        } else {
            // A coinbase ripens later; its height stands for the block in which it could have been an
            // ordinary deposit.
            let extra = if output.coinbase {
                COINBASE_MATURITY
            } else {
                0
            };
            changes.put(
                &UNRIPE,
                &(height.saturating_add(extra), output.outpoint),
                &(),
            );
        }
        tracing::info!(stage = "detect", outpoint = %output.outpoint, value = %output.value, "deposit seen");
        changes.put(
            &DEPOSITS_OF,
            &(terms.account.to_bytes(), output.outpoint),
            &(),
        );
        events::put_deposit(changes, before.as_ref(), &record);
    }
    let own = HashSet::from([vault.script_pubkey().clone()]);
    let genesis = vault.genesis_output().outpoint;
    for output in scan::find_deposits(block, &own) {
        let Some(creator) = block
            .txdata
            .iter()
            .find(|tx| tx.compute_txid() == output.outpoint.txid)
        else {
            continue;
        };
        // A batch's own treasury is not a top-up. Its commitment tells it apart.
        let is_batch = creator.output.get(1).is_some_and(|note| {
            protocol::transaction::Commitment::parse(&note.script_pubkey).is_some()
        });
        if output.outpoint == genesis
            || output.coinbase
            || output.value < top_up::LEAST
            || (is_batch && output.outpoint.vout == 0)
        {
            continue;
        }
        let top_up = TopUp {
            outpoint: output.outpoint,
            value: output.value,
        };
        tracing::info!(stage = "detect", outpoint = %output.outpoint, value = %output.value, "top-up seen");
        changes.put(&TOP_UPS, &output.outpoint, &TopUpRecord { top_up, height });
    }
    Ok(())
}

/// Queues the deposits that have their confirmations now.
fn ripen(
    store: &Store,
    parameters: &Parameters,
    height: u32,
    changes: &mut Changes,
) -> Result<(), ReadError> {
    // A deposit in block h has 1 confirmation at height h.
    let Some(ripe) = height
        .saturating_add(1)
        .checked_sub(parameters.deposit_confirmations)
    else {
        return Ok(());
    };
    let end = (
        ripe,
        OutPoint {
            txid: bitcoin::hashes::Hash::from_byte_array([0xff; 32]),
            vout: u32::MAX,
        },
    );
    for row in store.iter(&UNRIPE, ..=end, Direction::Forward, MAX_RIPENING)? {
        let (key, ()) = row?;
        let (_, outpoint) = key;
        let record = store.get(&DEPOSITS, &outpoint)?;
        let Some(record) = record.filter(|row| row.progress.status == RequestStatus::Received)
        else {
            changes.delete(&UNRIPE, &key);
            continue;
        };
        if record.progress.status != RequestStatus::Received {
            // In a batch that another coordinator made.
            changes.delete(&UNRIPE, &key);
            continue;
        }
        let Some(terms) = store.get(&TERMS, &record.terms.0)? else {
            continue;
        };
        let Some(operation) = operation(&record, &terms) else {
            continue;
        };
        let id = operation.id(&terms.vault);
        let request = Request::Deposit(outpoint);
        match enqueue(store, changes, id, record.progress.tries, request) {
            Ok(()) => {
                changes.delete(&UNRIPE, &key);
                queue::mark(store, changes, &request, |progress| {
                    progress.take(Input::Ready, None, now_ms());
                })?;
            }
            Err(error) => {
                tracing::warn!(%error, "a deposit waits for room in the queue");
                break;
            }
        }
    }
    Ok(())
}

/// Takes the confirmations of what was found in a block that left the chain and is not in a batch yet: a deposit waits
/// to be found again. One that is already queued is looked at again when the batch is formed.
fn forget(store: &Store, height: u32, changes: &mut Changes) -> Result<(), ReadError> {
    let start = (
        height,
        OutPoint {
            txid: bitcoin::hashes::Hash::from_byte_array([0; 32]),
            vout: 0,
        },
    );
    for row in store.iter(&UNRIPE, start.., Direction::Forward, MAX_RIPENING)? {
        let (key, ()) = row?;
        if let Some(mut record) = store.get(&DEPOSITS, &key.1)?
            && record.height == height
        {
            let before = record.progress.clone();
            record.progress.reason =
                Some("its block left the chain; it waits to be in another one".to_owned());
            changes.delete(&UNRIPE, &key);
            events::put_deposit(changes, Some(&before), &record);
        }
    }
    for row in store.iter(&TOP_UPS, .., Direction::Forward, MAX_RIPENING)? {
        let (outpoint, record) = row?;
        if record.height == height {
            changes.delete(&TOP_UPS, &outpoint);
        }
    }
    Ok(())
}
