//! Stage 7, once more: a batch that no block takes is given a transaction that pays more (RBF). Operations, proofs and
//! payouts stay; output 0 shrinks by what the fee grows, and confirmed top-ups come in when the surplus runs low.
//!
//! ```text
//! broadcast, or not taken --so many blocks--> priced --on disk--> proposed, verified, signed --on disk--> handed on, submitted
//!     ^                                                                                                        |
//!     '--------------------------------------------------------------------------------------------------------'
//! ```
//!
//! Whatever goes wrong, the transaction that is out stays out, and its batch where it is. The next block brings the
//! next try.

mod price;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ledger::OperationId;
use node::{clock::now_ms, history};
use protocol::{
    bump::{Schedule, Unconfirmed},
    identity::PeerKey,
    message::{Refusal, Rule},
    roster::Roster,
    signing::Waiting,
};
use storage::Changes;

use self::price::{PriceError, last_refused, price};
use crate::{
    aggregate::{hand_on, task},
    broadcast, candidates, dissolve, events,
    gossip::{self, Outcome, Report},
    pipeline::{Pipeline, StageError},
    records::{BATCHES, BatchRecord, Bump, BumpFailure, RefusedFee, SignedCandidate},
    refusals::{self, Weighed},
};

/// How long so many operators may refuse a higher fee that it can't be signed, before it is given up for this block: one
/// that is a block behind refuses first, and signs then.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a higher fee may take to be signed. Nothing else waits for it but the next one.
const LONGEST: Duration = Duration::from_secs(180);

/// Raises the fee of the batch that waits for a block, if it is time to. Gives whether there may be more to do at once.
///
/// # Errors
/// [`StageError`]; what is signed stays, and it is tried again.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let Some(record) = unconfirmed(pipeline)? else {
        return Ok(false);
    };
    let tried = record.bump_failure.as_ref().map(|failure| failure.height);
    if let Some(bump) = record.bump.clone() {
        // From before a restart, or some have given a share for it: only this one, or a higher one, goes on.
        if tried == Some(pipeline.height()) {
            return Ok(false);
        }
        return sign(pipeline, record, bump).await;
    }
    let is_due = waiting_since(&record, tried)
        .is_some_and(|waiting| schedule(pipeline).is_due(&waiting, pipeline.height()));
    if !is_due || pipeline.rpc.chain_info().await?.blocks != pipeline.height() {
        // In the middle of a reorganisation the next block may have the batch.
        return Ok(false);
    }
    propose(pipeline, &record).await
}

/// The batch that is signed and not in a block, if it builds on the latest treasury: the Bitcoin network has it, or takes
/// it only for more.
fn unconfirmed(pipeline: &Pipeline) -> Result<Option<BatchRecord>, StageError> {
    let Some(head) = pipeline.head() else {
        return Ok(None);
    };
    let (is_behind, is_alarmed) = {
        let live = pipeline.live.borrow();
        (live.is_behind, live.alarm.is_some())
    };
    if is_behind || is_alarmed {
        return Ok(None);
    }
    let next = head.commitment.sequence.0.saturating_add(1);
    let record = pipeline.store.get(&BATCHES, &next)?;
    Ok(record.filter(|record| {
        let parent = record.candidate.as_ref().map(|candidate| candidate.parent);
        dissolve::is_with_node(record.status) && parent == Some(head.outpoint)
    }))
}

fn schedule(pipeline: &Pipeline) -> Schedule {
    Schedule {
        after: pipeline.settings.fees.bump_after_blocks,
        window: pipeline.vault.parameters().bump_window,
    }
}

/// Whether no higher fee is signed any more for a batch that is in no block: the bump window is over, operators refuse any
/// fee, or nothing of it was signed here.
pub(crate) fn is_over(pipeline: &Pipeline, record: &BatchRecord) -> bool {
    last_refused(record) == Some(RefusedFee::Whatever)
        || waiting_since(record, None)
            .is_none_or(|waiting| schedule(pipeline).is_over(&waiting, pipeline.height()))
}

/// Whether another batch could pay more than this one: not if a fee that replaces it is above the ceiling, the surplus, or
/// what operators sign.
///
/// # Errors
/// [`StageError`]; it is asked again.
pub(crate) async fn can_pay_more(
    pipeline: &Pipeline,
    record: &BatchRecord,
) -> Result<bool, StageError> {
    if record.candidates.is_empty() {
        return Ok(true);
    }
    let mut record = record.clone();
    let delay = u32::from(pipeline.vault.parameters().replacement_delay);
    if let Some(failure) = &mut record.bump_failure
        && pipeline.height().saturating_sub(failure.height) >= delay
    {
        // So long ago nobody knows what they would say now.
        failure.refused = None;
    }
    if matches!(last_refused(&record), Some(RefusedFee::TooHigh(_))) {
        return Ok(false);
    }
    let Some(transition) = pipeline.transition(&record)? else {
        return Ok(false);
    };
    match price(pipeline, &record, &transition).await {
        Ok(_) => Ok(true),
        Err(PriceError::Surplus { lacking, .. }) => {
            pipeline.ask_for_top_up(Some(lacking));
            Ok(false)
        }
        Err(PriceError::Stage(StageError::Build(_))) => Ok(false),
        Err(PriceError::Stage(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

/// `None` for a batch of which nothing was signed here: its witnesses are elsewhere.
fn waiting_since(record: &BatchRecord, tried: Option<u32>) -> Option<Unconfirmed> {
    Some(Unconfirmed {
        first: record.candidates.first()?.height,
        latest: record.candidates.last()?.height,
        tried,
    })
}

/// Prices a higher fee and keeps what is to be signed.
async fn propose(pipeline: &Pipeline, record: &BatchRecord) -> Result<bool, StageError> {
    let sequence = record.sequence.0;
    let Some(transition) = pipeline.transition(record)? else {
        return Ok(false);
    };
    let bump = match price(pipeline, record, &transition).await {
        Ok(bump) => bump,
        Err(PriceError::Stage(error)) => return Err(error),
        Err(error) => {
            let lacking = match &error {
                PriceError::Surplus { lacking, .. } => Some(*lacking),
                _ => None,
            };
            pipeline.ask_for_top_up(lacking);
            // What the operators said of the last fee is still so.
            let refused = last_refused(record);
            fail(pipeline, record, error.to_string(), refused, None).await?;
            return Ok(false);
        }
    };
    pipeline.ask_for_top_up(None);
    let fee = bump.candidate.fee;
    tracing::info!(stage = "bump", sequence, before = %record.fee, %fee, top_ups = bump.top_ups.len(), "raising the miner fee");
    let mut changes = Changes::new();
    // The history finds the body by the transaction that a block has.
    changes.put(&history::CANDIDATES, &bump.candidate.txid, &bump.candidate);
    update(pipeline, record, changes, |record| {
        record.bump = Some(bump);
    })
    .await
}

/// Has a higher fee signed, keeps it, and only then passes it on.
async fn sign(
    pipeline: &mut Pipeline,
    record: BatchRecord,
    bump: Bump,
) -> Result<bool, StageError> {
    let Some(transition) = pipeline.transition(&record)? else {
        return Ok(false);
    };
    let Bump { candidate, top_ups } = bump;
    let bumped = BatchRecord {
        fee: candidate.fee,
        top_ups: top_ups.clone(),
        ..record.clone()
    };
    let built = pipeline.transaction(&bumped, &transition)?;
    if built.unsigned.compute_txid() != candidate.txid {
        return Err(StageError::Fault(format!(
            "batch {}: the kept candidate is another transaction",
            record.sequence.0
        )));
    }
    pipeline.say(format!(
        "raising the miner fee of batch {} to {}",
        record.sequence.0, candidate.fee
    ));
    let task = task(pipeline, &candidate, &built)?;
    let (parent, epoch) = (candidate.parent, pipeline.vault.group().epoch());
    let (view, epochs) = (pipeline.view(), pipeline.epochs.clone());
    let stop = pipeline.stop.clone();
    let abandon = || {
        stop.is_cancelled()
            || epochs.wants_way(epoch)
            || view.head().is_some_and(|head| head.outpoint != parent)
    };
    let mut vote = Vote::new(pipeline, &record);
    let report = gossip::run(
        &pipeline.network,
        &pipeline.sessions,
        task,
        abandon,
        |refusals, waiting| vote.is_lost(refusals, waiting),
    )
    .await;
    let (is_promised, why, enough) = (vote.is_promised, vote.why, vote.enough);
    let Some(report) = report else {
        // Shutdown, a block has one of its transactions, or the shares are of a new epoch.
        return Ok(false);
    };
    let [blamed, silent] = &report.conduct;
    pipeline.standing.learn(blamed, silent);
    match &report.outcome {
        Outcome::Signed { signatures, .. } => {
            let signed = SignedCandidate {
                transaction: built.complete(signatures)?,
                candidate,
                top_ups,
                height: pipeline.height(),
                at_ms: now_ms(),
            };
            keep_and_pass_on(pipeline, &record, signed, &report).await
        }
        Outcome::Refused => {
            let fee = candidate.fee;
            let refused = refused_fee(&report.refusals, fee, enough);
            let reason = format!("a miner fee of {fee} is not signed: {why}");
            // Where nobody can have given a share of it, the next one may pay less.
            let bump = is_promised.then_some(Bump { candidate, top_ups });
            fail(pipeline, &record, reason, refused, bump).await?;
            Ok(false)
        }
    }
}

async fn keep_and_pass_on(
    pipeline: &Pipeline,
    record: &BatchRecord,
    signed: SignedCandidate,
    report: &Report,
) -> Result<bool, StageError> {
    let (sequence, candidate) = (record.sequence.0, signed.candidate.clone());
    let transaction = signed.transaction.clone();
    let written = update(pipeline, record, Changes::new(), |record| {
        candidates::signed(record, signed);
        for blamed in &report.blamed {
            if !record.blamed.contains(blamed) {
                record.blamed.push(*blamed);
            }
        }
        if let Outcome::Signed {
            signers, attempts, ..
        } = &report.outcome
        {
            record.signers.clone_from(signers);
            record.attempts = *attempts;
        }
    })
    .await?;
    if !written {
        // A block was faster.
        return Ok(true);
    }
    tracing::info!(stage = "bump", sequence, txid = %candidate.txid, fee = %candidate.fee, "higher fee signed");
    hand_on(
        &pipeline.network,
        &pipeline.roster,
        candidate,
        transaction.clone(),
    )
    .await;
    if let Err(reason) = broadcast::give(pipeline, sequence, &transaction).await {
        // Looked at again every few seconds, by the stage that gave it the first one.
        tracing::warn!(stage = "bump", sequence, %reason, "the higher fee was not taken by the node");
    }
    Ok(true)
}

/// Writes why a fee was not raised, and what is still to be signed; not tried again before the next block.
async fn fail(
    pipeline: &Pipeline,
    record: &BatchRecord,
    reason: String,
    refused: Option<RefusedFee>,
    bump: Option<Bump>,
) -> Result<(), StageError> {
    let (sequence, height) = (record.sequence.0, pipeline.height());
    tracing::warn!(stage = "bump", sequence, height, %reason, "the miner fee was not raised");
    pipeline.say(format!("batch {sequence} waits for a block: {reason}"));
    let failure = BumpFailure {
        reason,
        height,
        refused,
    };
    update(pipeline, record, Changes::new(), |record| {
        record.bump = bump;
        record.bump_failure = Some(failure);
    })
    .await
    .map(|_| ())
}

/// Changes the record of a batch if it still waits for a block. Gives whether it did.
async fn update(
    pipeline: &Pipeline,
    record: &BatchRecord,
    mut changes: Changes,
    change: impl FnOnce(&mut BatchRecord),
) -> Result<bool, StageError> {
    // The block with this batch may come meanwhile: never take its status back.
    let _writing = pipeline.writing.clone().lock_owned().await;
    let now = pipeline.store.get(&BATCHES, &record.sequence.0)?;
    let Some(mut now) =
        now.filter(|now| now.key() == record.key() && dissolve::is_with_node(now.status))
    else {
        return Ok(false);
    };
    let txid = now.txid();
    change(&mut now);
    if now.txid() != txid {
        events::batch(&mut changes, &now);
    }
    changes.put(&BATCHES, &now.sequence.0, &now);
    pipeline.commit(changes).await.map(|()| true)
}

/// What is wrong with a fee that was refused. One operator alone says nothing of deposits: as many do as can keep the batch
/// from being signed.
fn refused_fee(
    refusals: &[(PeerKey, Refusal)],
    fee: bitcoin::Amount,
    enough: usize,
) -> Option<RefusedFee> {
    let under = |rule| refusals.iter().filter(move |(_, why)| why.rule == rule);
    let for_deposits = under(Rule::S2).filter(|(_, why)| !why.operations.is_empty());
    if for_deposits.count() >= enough {
        Some(RefusedFee::Whatever)
    } else if under(Rule::S7).count() > 0 {
        Some(RefusedFee::TooLow(fee))
    } else if under(Rule::S5).count() > 0 {
        Some(RefusedFee::TooHigh(fee))
    } else {
        None
    }
}

/// Follows who refuses a higher fee.
struct Vote {
    roster: std::sync::Arc<Roster>,
    /// So many can keep it from being signed.
    enough: usize,
    operations: BTreeSet<OperationId>,
    begun: Instant,
    blocked_since: Option<Instant>,
    attempts: u32,
    /// A session that begins anew counts from 1 again, and has forgotten who has answered.
    has_begun_anew: bool,
    /// Whether somebody may have given a share of it.
    is_promised: bool,
    why: String,
}

impl Vote {
    fn new(pipeline: &Pipeline, record: &BatchRecord) -> Self {
        let vault = pipeline.vault.id();
        let operations = record.operations.iter();
        Self {
            enough: refusals::enough(&pipeline.roster),
            roster: pipeline.roster.clone(),
            operations: operations.map(|operation| operation.id(&vault)).collect(),
            begun: Instant::now(),
            blocked_since: None,
            attempts: 0,
            has_begun_anew: false,
            is_promised: false,
            why: String::new(),
        }
    }

    /// Whether it is given up for this block.
    fn is_lost(&mut self, refusals: &[(PeerKey, Refusal)], waiting: &Waiting) -> bool {
        self.has_begun_anew |= waiting.attempts < self.attempts;
        self.attempts = waiting.attempts;
        self.is_promised = self.has_begun_anew || !waiting.promised.is_empty();
        let why = match refusals::weigh(&self.roster, refusals, &self.operations) {
            Weighed::Possible => None,
            Weighed::Wait { reason, .. } => Some(reason),
            Weighed::LeaveOut(left_out) => {
                let first = left_out.into_values().next();
                Some(first.map_or_else(String::new, |left_out| left_out.reason))
            }
        };
        if let Some(why) = why {
            self.why = why;
            let since = *self.blocked_since.get_or_insert_with(Instant::now);
            return since.elapsed() >= PATIENCE;
        }
        self.why = gossip::describe(waiting, &self.roster);
        self.blocked_since = None;
        self.begun.elapsed() >= LONGEST
    }
}
