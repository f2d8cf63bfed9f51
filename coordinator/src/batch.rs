//! Stage 3: forms a batch from the requests that wait: deposits first, then signed operations in the order
//! in which they were accepted. One batch at a time; the next one starts when the last one is confirmed, or was given up.
//! One that was given up, or that another coordinator has made, may wait in mempools: the next pays for replacing it.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::{Amount, FeeRate, Weight};
use chain::{
    fees::{self, FeeError, FeeSettings},
    replace::{ReplaceError, Replaced, raise},
    rpc::{MempoolInfo, UnspentOutput},
};
use ledger::{Operation, OperationError, SequenceNumber};
use node::clock::now_ms;
use protocol::{
    api::{BatchStatus, RequestStatus, StageTimes},
    deposit::{DepositTerms, TermsError},
    parameters::{COINBASE_MATURITY, Parameters},
    pipeline::request::Input,
    transaction::{
        BatchPlan, BatchTransaction, BuildError, Commitment, Swept, TREASURY_DUST, TopUp, Treasury,
    },
};
use storage::{Changes, Lease, Store};

use crate::{
    detect, events,
    pipeline::{Pipeline, StageError},
    queue,
    records::{
        BATCHES, BatchRecord, DEPOSITS, OPERATIONS, PROVE, Progress, REQUESTS, Request, RequestKey,
        TERMS, UNRIPE,
    },
    room::Room,
    top_up,
};

/// How long requests are held while a batch is formed, in ms.
const LEASE_MS: u64 = 60_000;

/// A request that is looked at for the next batch.
struct Pick {
    lease: Lease<RequestKey, Request>,
    operation: Operation,
    /// Terms and value of a deposit.
    deposit: Option<(DepositTerms, Amount)>,
}

/// Forms the next batch if it is time to. Gives whether one was formed.
///
/// # Errors
/// [`StageError`]; requests go back to the queue.
pub async fn form(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let Some(head) = pipeline.idle_head()? else {
        return Ok(false);
    };
    let requests = pipeline.store.queue(&REQUESTS)?;
    let now = now_ms();
    let mut returning = Changes::new();
    queue::come_back(&pipeline.store, &mut returning, now)?;
    pipeline.commit(returning).await?;
    let ready = requests.ready_at(now);
    if ready == 0 {
        pipeline.waiting_since = None;
        pipeline.ask_for_top_up(None);
        return Ok(false);
    }
    let since = *pipeline.waiting_since.get_or_insert(now);
    let batching = pipeline.settings.batching;
    if ready < batching.size && now.saturating_sub(since) < batching.age_ms {
        return Ok(false);
    }
    let started = std::time::Instant::now();
    let mut changes = Changes::new();
    let picks = pick(pipeline, &mut changes).await?;
    let formed = fill(pipeline, &head, picks, &mut changes, started).await?;
    // What was decided on a ledger that is not the latest any more is not written; the requests come back when their lease
    // is over.
    let _writing = pipeline.writing.clone().lock_owned().await;
    if pipeline.head().map(|now| now.outpoint) != Some(head.outpoint) {
        return Ok(false);
    }
    pipeline.commit(changes).await?;
    if formed {
        pipeline.waiting_since = None;
    } else {
        // Whatever waits, waits for something outside: look again later, not at once.
        pipeline.waiting_since = Some(now_ms());
    }
    Ok(formed)
}

/// Takes requests from the queue, as many as there is room for, and resolves them; settles those that can never be in a batch.
async fn pick(pipeline: &Pipeline, changes: &mut Changes) -> Result<Vec<Pick>, StageError> {
    let store = &pipeline.store;
    let requests = store.queue(&REQUESTS)?;
    let limit = usize::from(pipeline.vault.parameters().max_operations);
    let mut room = Room::new(pipeline.vault.group());
    let (mut deposits, mut signed) = (Vec::new(), Vec::new());
    while deposits.len().saturating_add(signed.len()) < limit {
        let Some(lease) = requests.lease(now_ms(), LEASE_MS)? else {
            break;
        };
        match lease.item {
            Request::Signed(id) => {
                let record = store.get(&OPERATIONS, &id.0)?;
                let Some(record) = record.filter(|row| is_queued(&row.progress)) else {
                    requests.ack(changes, lease);
                    continue;
                };
                if !room.take(&record.operation) {
                    requests.release(lease);
                    break;
                }
                signed.push(Pick {
                    lease,
                    operation: record.operation,
                    deposit: None,
                });
            }
            Request::Deposit(outpoint) => {
                let Some(pick) = pick_deposit(pipeline, changes, outpoint, lease).await? else {
                    continue;
                };
                if !room.take(&pick.operation) {
                    requests.release(pick.lease);
                    break;
                }
                deposits.push(pick);
            }
        }
    }
    deposits.extend(in_nonce_order(signed, |pick: &Pick| {
        (pick.operation.sender(), pick.operation.nonce())
    }));
    Ok(deposits)
}

fn is_queued(progress: &Progress) -> bool {
    progress.status == RequestStatus::Queued
}

/// Puts the operations of each account in the order of their nonces, in the places that they have together: one that
/// was left out before comes back behind those that follow it.
fn in_nonce_order<T, K: Ord + Copy>(picks: Vec<T>, key: impl Fn(&T) -> (K, Option<u64>)) -> Vec<T> {
    let senders: Vec<K> = picks.iter().map(|pick| key(pick).0).collect();
    let mut sorted = picks;
    sorted.sort_by_key(&key);
    let mut waiting: BTreeMap<K, VecDeque<T>> = BTreeMap::new();
    for pick in sorted {
        waiting.entry(key(&pick).0).or_default().push_back(pick);
    }
    senders
        .iter()
        .filter_map(|sender| waiting.get_mut(sender)?.pop_front())
        .collect()
}

/// What was queued may have been confirmed, or refused, on another way since.
async fn pick_deposit(
    pipeline: &Pipeline,
    changes: &mut Changes,
    outpoint: bitcoin::OutPoint,
    lease: Lease<RequestKey, Request>,
) -> Result<Option<Pick>, StageError> {
    let store = &pipeline.store;
    let requests = store.queue(&REQUESTS)?;
    let parameters = pipeline.vault.parameters();
    let record = store
        .get(&DEPOSITS, &outpoint)?
        .filter(|row| is_queued(&row.progress));
    let terms = match &record {
        Some(record) => store.get(&TERMS, &record.terms.0)?,
        None => None,
    };
    let (Some(record), Some(terms)) = (record, terms) else {
        requests.ack(changes, lease);
        return Ok(None);
    };
    let request = lease.item;
    let refund_margin =
        u32::from(parameters.replacement_delay).saturating_add(parameters.bump_window.into());
    let unspent = pipeline.rpc.unspent_output(outpoint, false).await?;
    let confirmations = unspent.as_ref().map_or(0, |output| output.confirmations);
    let is_ripe = unspent
        .as_ref()
        .is_some_and(|output| is_ripe(output, parameters));
    let too_late = "too close to the refund: take it back with the descriptor";
    if confirmations.saturating_add(refund_margin) > terms.refund_delay.into() {
        queue::mark(store, changes, &request, |progress| {
            progress.refuse(too_late, now_ms());
        })?;
        requests.ack(changes, lease);
        return Ok(None);
    }
    if !is_ripe {
        // Reorganised away, or spent. It waits until its refund would open.
        let age = pipeline.height().saturating_sub(record.height);
        if age > terms.refund_delay.into() {
            queue::mark(store, changes, &request, |progress| {
                progress.refuse("spent elsewhere", now_ms());
            })?;
        } else {
            queue::mark(store, changes, &request, |progress| {
                let reason = "it is not deep enough in the chain any more, or spent";
                progress.take(Input::Unripe, Some(reason.to_owned()), now_ms());
            })?;
            changes.put(
                &UNRIPE,
                &(pipeline.height().saturating_add(1), outpoint),
                &(),
            );
        }
        requests.ack(changes, lease);
        return Ok(None);
    }
    let Some(operation) = detect::operation(&record, &terms) else {
        requests.ack(changes, lease);
        return Ok(None);
    };
    Ok(Some(Pick {
        lease,
        operation,
        deposit: Some((terms, record.value)),
    }))
}

/// Fits the picked requests into one batch and stores it.
async fn fill(
    pipeline: &Pipeline,
    head: &Treasury,
    mut picks: Vec<Pick>,
    changes: &mut Changes,
    started: std::time::Instant,
) -> Result<bool, StageError> {
    let store = &pipeline.store;
    let requests = store.queue(&REQUESTS)?;
    let sequence = SequenceNumber(head.commitment.sequence.0.saturating_add(1));
    let transition = loop {
        if picks.is_empty() {
            return Ok(false);
        }
        let operations: Vec<Operation> = picks.iter().map(|pick| pick.operation.clone()).collect();
        match pipeline.replay(&operations, sequence)? {
            Ok(transition) => break transition,
            Err((index, error)) => {
                let pick = picks.remove(index.min(picks.len().saturating_sub(1)));
                if waits(&error) {
                    // Not at once: it would take the place of others in every batch.
                    let reason = format!("waits: {error}");
                    queue::mark(store, changes, &pick.lease.item, |progress| {
                        progress.reason = Some(reason.clone());
                    })?;
                    requests.retry(changes, pick.lease, now_ms(), &reason);
                } else {
                    let reason = error.to_string();
                    queue::mark(store, changes, &pick.lease.item, |progress| {
                        progress.refuse(reason, now_ms());
                    })?;
                    requests.ack(changes, pick.lease);
                }
            }
        }
    };
    let next = Commitment {
        sequence,
        supply: transition.after.supply,
        digest: transition.digest_after().to_bytes(),
    };
    let spare = top_up::ripe(pipeline).await?;
    let in_the_way = in_the_way(pipeline, head).await?;
    let priced = match fee_rate(pipeline).await {
        Ok(rate) => {
            let asked = Asked { rate, in_the_way };
            price(pipeline, head, &picks, spare, next, &asked)
        }
        Err(FeeError::Rpc(error)) => return Err(error.into()),
        // Nothing is spent on a guess.
        Err(error) => Err(error.into()),
    };
    let (built, top_ups) = match priced {
        Ok(priced) => priced,
        Err(reason) => {
            tracing::warn!(stage = "batch", %reason, "no batch now");
            pipeline.say(format!("waiting: {reason}"));
            pipeline.ask_for_top_up(reason.lacking());
            for pick in picks {
                requests.release(pick.lease);
            }
            return Ok(false);
        }
    };
    let tries = store
        .get(&BATCHES, &sequence.0)?
        .map_or(0, |old| old.tries.saturating_add(1));
    let mut record = record(&picks, sequence, tries, top_ups, &built, started);
    (record.stage_ms.detect, record.stage_ms.queue) = waited(store, &picks)?;
    tracing::info!(
        stage = "batch", sequence = sequence.0, operations = record.operations.len(),
        inputs = record.shape.0, outputs = record.shape.1, fee = %record.fee, "batch formed"
    );
    pipeline.ask_for_top_up(None);
    events::batch(changes, &record);
    changes.put(&BATCHES, &sequence.0, &record);
    store
        .queue(&PROVE)?
        .push(changes, &record.key(), &sequence.0)?;
    for pick in picks {
        let now = now_ms();
        queue::mark(store, changes, &pick.lease.item, |progress| {
            if progress.take(Input::Taken, None, now) {
                progress.sequence = Some(sequence);
            }
        })?;
        requests.ack(changes, pick.lease);
    }
    Ok(true)
}

/// The longest time from first sight to the queue, and from the queue to the batch, in ms.
fn waited(store: &Store, picks: &[Pick]) -> Result<(Option<u64>, Option<u64>), StageError> {
    let (mut detect, mut queue) = (None, None);
    let now = now_ms();
    for pick in picks {
        let Some(progress) = queue::progress(store, &pick.lease.item)? else {
            continue;
        };
        let (seen, queued) = (
            progress.at(RequestStatus::Received),
            progress.at(RequestStatus::Queued),
        );
        detect = detect.max(
            queued
                .zip(seen)
                .map(|(queued, seen)| queued.saturating_sub(seen)),
        );
        queue = queue.max(queued.map(|queued| now.saturating_sub(queued)));
    }
    Ok((detect, queue))
}

/// May the operation apply later, when others are in the ledger?
fn waits(error: &OperationError) -> bool {
    matches!(
        error,
        OperationError::FutureNonce { .. }
            | OperationError::InsufficientBalance { .. }
            | OperationError::UnknownSender(_)
    )
}

fn record(
    picks: &[Pick],
    sequence: SequenceNumber,
    tries: u32,
    top_ups: Vec<TopUp>,
    built: &BatchTransaction,
    started: std::time::Instant,
) -> BatchRecord {
    let deposits = picks.iter().filter_map(|pick| pick.deposit.as_ref());
    BatchRecord {
        sequence,
        tries,
        status: BatchStatus::Formed,
        reason: None,
        requests: picks.iter().map(|pick| pick.lease.item).collect(),
        operations: picks.iter().map(|pick| pick.operation.clone()).collect(),
        terms: deposits.clone().map(|(terms, _)| terms.clone()).collect(),
        values: deposits.map(|(_, value)| *value).collect(),
        top_ups,
        fee: built.fee,
        body: None,
        candidate: None,
        transaction: None,
        candidates: Vec::new(),
        bump: None,
        bump_failure: None,
        shape: (built.unsigned.input.len(), built.unsigned.output.len()),
        treasury: built.treasury.value,
        supply: built.treasury.commitment.supply,
        signers: Vec::new(),
        blamed: Vec::new(),
        refusals: Vec::new(),
        attempts: 0,
        signing_ms: None,
        broadcast_ms: None,
        height: None,
        stage_ms: StageTimes {
            batch: Some(elapsed_ms(started)),
            ..StageTimes::default()
        },
    }
}

/// Milliseconds since `started`.
pub fn elapsed_ms(started: std::time::Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn fee_rate(pipeline: &Pipeline) -> Result<FeeRate, FeeError> {
    let network = pipeline.vault.parameters().network;
    let rate = fees::current_fee_rate(&pipeline.rpc, &pipeline.settings.fees, network).await?;
    pipeline.live.send_modify(|live| {
        live.fee_rate_sat_per_vb = Some(rate.to_sat_per_kwu() as f64 / 250.0);
    });
    Ok(rate)
}

/// What the miner fee follows from.
struct Asked {
    rate: FeeRate,
    in_the_way: Option<(Replaced, MempoolInfo)>,
}

impl Asked {
    fn fee(&self, weight: Weight, settings: &FeeSettings) -> Result<Amount, PriceError> {
        match &self.in_the_way {
            Some((replaced, mempool)) => {
                Ok(raise(replaced, weight, self.rate, mempool, settings)?.wanted)
            }
            None => self.rate.fee_wu(weight).ok_or(PriceError::Overflow),
        }
    }
}

/// What the own node's mempool holds that spends the same treasury, and what it asks of a replacement.
async fn in_the_way(
    pipeline: &Pipeline,
    head: &Treasury,
) -> Result<Option<(Replaced, MempoolInfo)>, StageError> {
    let entry = pipeline.rpc.mempool_spender(head.outpoint).await?;
    if entry.is_none() {
        return Ok(None);
    }
    let (signed, mempool) = (None, pipeline.rpc.mempool_info().await?);
    Ok(Some((Replaced { signed, entry }, mempool)))
}

/// Builds the transaction with the fee that its weight asks for, and with top-ups if little would be left of the surplus.
fn price(
    pipeline: &Pipeline,
    head: &Treasury,
    picks: &[Pick],
    mut spare: Vec<TopUp>,
    next: Commitment,
    asked: &Asked,
) -> Result<(BatchTransaction, Vec<TopUp>), PriceError> {
    let vault = pipeline.vault.key();
    let mut deposits = Vec::new();
    let mut withdrawals = Vec::new();
    for pick in picks {
        if let (Operation::Deposit { outpoint, .. }, Some((terms, value))) =
            (&pick.operation, &pick.deposit)
        {
            let address = terms.address(&vault.group_key())?;
            deposits.push(Swept {
                outpoint: *outpoint,
                value: *value,
                address,
            });
        }
        if let Operation::Withdraw {
            amount,
            script_pubkey,
            ..
        } = &pick.operation
        {
            withdrawals.push(bitcoin::TxOut {
                value: *amount,
                script_pubkey: script_pubkey.clone(),
            });
        }
    }
    let build = |fee, top_ups: &[TopUp]| {
        let plan = BatchPlan {
            treasury: head,
            deposits: &deposits,
            top_ups,
            withdrawals: &withdrawals,
            next,
            fee,
        };
        BatchTransaction::build(vault, &plan)
    };
    let low = Amount::from_sat(pipeline.settings.top_up_below_sat);
    let mut used = Vec::new();
    loop {
        let free = build(Amount::ZERO, &used)?;
        let fee = asked.fee(free.weight(), &pipeline.settings.fees)?;
        let most = affordable(&free);
        let left = most.checked_sub(fee);
        if left.is_none_or(|left| left < low) && top_up::collect(&mut spare, &mut used, asked.rate)
        {
            continue;
        }
        if left.is_none() {
            let lacking = fee.checked_sub(most).unwrap_or(fee);
            return Err(PriceError::Surplus { fee, lacking });
        }
        return Ok((build(fee, &used)?, used));
    }
}

/// The highest miner fee that a transaction could pay instead of its own, out of what the treasury holds beyond supply
/// and dust (S5).
pub(crate) fn affordable(built: &BatchTransaction) -> Amount {
    let treasury = built.treasury;
    let needed = treasury.commitment.supply.max(TREASURY_DUST);
    let spare = treasury.value.checked_sub(needed).unwrap_or(Amount::ZERO);
    built.fee.checked_add(spare).unwrap_or(built.fee)
}

/// Why there is no batch now.
#[derive(Debug, thiserror::Error)]
enum PriceError {
    #[error(
        "the surplus does not cover the miner fee of {fee}: top the vault up with at least {lacking}"
    )]
    Surplus { fee: Amount, lacking: Amount },
    #[error("the fee overflows")]
    Overflow,
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    #[error(transparent)]
    Fee(#[from] FeeError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Terms(#[from] TermsError),
}

impl PriceError {
    fn lacking(&self) -> Option<Amount> {
        match self {
            Self::Surplus { lacking, .. } => Some(*lacking),
            _ => None,
        }
    }
}

/// Whether an output is deep enough for a batch (S2).
pub(crate) fn is_ripe(output: &UnspentOutput, parameters: &Parameters) -> bool {
    let needed = if output.coinbase {
        parameters.deposit_confirmations.max(COINBASE_MATURITY)
    } else {
        parameters.deposit_confirmations
    };
    output.confirmations >= needed
}

#[cfg(test)]
mod tests {
    use bitcoin::{BlockHash, Network, ScriptBuf, hashes::Hash as _};

    use super::*;

    #[test]
    fn an_output_of_a_coinbase_waits_for_its_maturity() {
        let parameters = Parameters::defaults(Network::Regtest);
        let output = |confirmations, coinbase| UnspentOutput {
            value: Amount::from_sat(50_000),
            script_pubkey: ScriptBuf::new(),
            confirmations,
            coinbase,
            best_block: BlockHash::all_zeros(),
        };
        let needed = parameters.deposit_confirmations;
        assert!(is_ripe(&output(needed, false), &parameters));
        assert!(!is_ripe(&output(needed - 1, false), &parameters));
        assert!(!is_ripe(&output(COINBASE_MATURITY - 1, true), &parameters));
        assert!(is_ripe(&output(COINBASE_MATURITY, true), &parameters));
    }

    #[test]
    fn operations_of_one_account_follow_their_nonces_and_keep_the_places_of_the_account() {
        let picks = vec![
            ("bob", 4),
            ("alice", 2),
            ("bob", 3),
            ("carol", 9),
            ("alice", 1),
        ];
        let sorted = in_nonce_order(picks, |(name, nonce)| (*name, Some(*nonce)));
        assert_eq!(
            sorted,
            [
                ("bob", 3),
                ("alice", 1),
                ("bob", 4),
                ("carol", 9),
                ("alice", 2)
            ]
        );
    }
}
