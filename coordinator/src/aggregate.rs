//! Stage 6: has a batch signed, completes the transaction, stores it, and only then passes it on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bitcoin::Transaction;
use ledger::OperationId;
use node::clock::now_ms;
use p2p::{Network, PublishError};
use protocol::{
    api::BatchStatus,
    batch::Candidate,
    identity::PeerKey,
    message::{Ask, Gossip, Refusal, Subject, encode},
    pipeline::Input,
    roster::Roster,
    signing::Waiting,
    transaction::{BatchTransaction, BuildError},
};
use storage::Changes;
use tokio::sync::watch;

use crate::{
    advance::advance,
    candidates,
    gossip::{self, Outcome, Report, Task},
    live::Live,
    pipeline::{Pipeline, StageError},
    records::{BATCHES, BatchRecord, SIGN, SignedCandidate},
    refusals::{self, LeftOut, Weighed},
};

/// Signing has no deadline; the lease only outlives every session.
const LEASE_MS: u64 = 3_600_000;
/// How long a batch waits for operators whose refusal another fee or other top-ups could cure, before it is formed anew.
const REFORM_AFTER: Duration = Duration::from_secs(120);

/// Signs the batch that waits for it. Gives whether there was one.
///
/// # Errors
/// [`StageError`]; the batch stays in the queue.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let queue = pipeline.store.queue(&SIGN)?;
    let Some(lease) = queue.lease(now_ms(), LEASE_MS)? else {
        return Ok(false);
    };
    let mut changes = Changes::new();
    let record = pipeline.store.get(&BATCHES, &lease.key.0)?;
    let Some(record) =
        record.filter(|record| record.key() == lease.key && record.status == BatchStatus::Proven)
    else {
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    let (Some(candidate), Some(transition)) =
        (record.candidate.clone(), pipeline.transition(&record)?)
    else {
        let why = "another batch was confirmed first";
        pipeline.abandon(record, why, &BTreeMap::new(), &mut changes)?;
        queue.ack(&mut changes, lease);
        pipeline.commit(changes).await?;
        return Ok(true);
    };
    let built = pipeline.transaction(&record, &transition)?;
    pipeline.say(format!("signing batch {}", record.sequence.0));
    let task = task(pipeline, &candidate, &built)?;
    let (parent, epoch) = (candidate.parent, pipeline.vault.group().epoch());
    let (view, epochs) = (pipeline.view(), pipeline.epochs.clone());
    let stop = pipeline.stop.clone();
    let mut vote = Vote::new(pipeline, &record);
    let abandon = || {
        stop.is_cancelled()
            || epochs.wants_way(epoch)
            || view.head().is_some_and(|head| head.outpoint != parent)
    };
    let report = gossip::run(
        &pipeline.network,
        &pipeline.sessions,
        task,
        abandon,
        |refusals, waiting| vote.is_lost(refusals, waiting),
    )
    .await;
    let left_out = vote.end();
    let Some(report) = report else {
        // Shutdown, the treasury moved, or the shares are of a new epoch: look again.
        queue.release(lease);
        return Ok(false);
    };
    let [blamed, silent] = &report.conduct;
    pipeline.standing.learn(blamed, silent);
    let record = take_report(record, &report);
    match report.outcome {
        Outcome::Signed { signatures, .. } => {
            let transaction = built.complete(&signatures)?;
            let mut record = record;
            let signed = SignedCandidate {
                candidate: candidate.clone(),
                top_ups: record.top_ups.clone(),
                transaction: transaction.clone(),
                height: pipeline.height(),
                at_ms: now_ms(),
            };
            candidates::signed(&mut record, signed);
            advance(
                &pipeline.store,
                &mut changes,
                &mut record,
                Input::Signed,
                None,
            )?;
            changes.put(&BATCHES, &record.sequence.0, &record);
            queue.ack(&mut changes, lease);
            pipeline.commit(changes).await?;
            tracing::info!(stage = "aggregate", sequence = record.sequence.0, txid = %candidate.txid, "batch signed");
            hand_on(&pipeline.network, &pipeline.roster, candidate, transaction).await;
        }
        Outcome::Refused => {
            pipeline.abandon(record, "refused by the operators", &left_out, &mut changes)?;
            queue.ack(&mut changes, lease);
            pipeline.commit(changes).await?;
            // The rest has waited long enough.
            pipeline.waiting_since = Some(0);
        }
    }
    Ok(true)
}

/// What a session for a batch's transaction is about.
pub(crate) fn task(
    pipeline: &Pipeline,
    candidate: &Candidate,
    built: &BatchTransaction,
) -> Result<Task, BuildError> {
    Ok(Task {
        subject: Subject::Batch(candidate.clone()),
        messages: built.messages()?,
        group: pipeline.vault.group().clone(),
        needed: usize::from(pipeline.vault.roster().threshold),
        roster: pipeline.roster.clone(),
        standing: pipeline.standing.clone(),
        me: pipeline.me,
        store: pipeline.store.clone(),
        pool: Some(pipeline.pool.clone()),
    })
}

/// Gives the signed transaction to everyone: by gossip, or one by one if it is too large for that.
pub(crate) async fn hand_on(
    network: &Network,
    roster: &Roster,
    candidate: Candidate,
    transaction: Transaction,
) {
    let (is_for, signed) = (candidate.clone(), transaction.clone());
    let gossip = encode(&Gossip::Signed {
        candidate,
        transaction,
    });
    match network.publish(gossip).await {
        Ok(()) => {}
        Err(PublishError::TooLarge(_)) => {
            let ask = encode(&Ask::Signed {
                candidate: is_for,
                transaction: signed,
            });
            for member in roster.members() {
                let (network, peer, ask) = (network.clone(), member.key, ask.clone());
                tokio::spawn(async move {
                    // One who misses it hears of it from the others, or from the chain.
                    if let Err(error) = network.ask(peer, ask).await {
                        tracing::debug!(%peer, %error, "the signed transaction was not handed on");
                    }
                });
            }
        }
        Err(error) => tracing::warn!(%error, "the signed transaction was not gossiped"),
    }
}

/// Follows who refuses a batch, and shows it.
struct Vote<'a> {
    live: &'a watch::Sender<Live>,
    roster: &'a Roster,
    sequence: u64,
    operations: BTreeSet<OperationId>,
    left_out: BTreeMap<OperationId, LeftOut>,
    blocked_since: Option<Instant>,
}

impl<'a> Vote<'a> {
    fn new(pipeline: &'a Pipeline, record: &BatchRecord) -> Self {
        let vault = pipeline.vault.id();
        let operations = record.operations.iter();
        Self {
            live: &pipeline.live,
            roster: &pipeline.roster,
            sequence: record.sequence.0,
            operations: operations.map(|operation| operation.id(&vault)).collect(),
            left_out: BTreeMap::new(),
            blocked_since: None,
        }
    }

    /// Whether the batch is to be given up. While it only waits, the session stays open and is proposed again.
    fn is_lost(&mut self, refusals: &[(PeerKey, Refusal)], waiting: &Waiting) -> bool {
        let weighed = refusals::weigh(self.roster, refusals, &self.operations);
        let phase = match &weighed {
            Weighed::Wait { reason, .. } => format!("batch {} waits: {reason}", self.sequence),
            _ => format!(
                "signing batch {}: {}",
                self.sequence,
                gossip::describe(waiting, self.roster)
            ),
        };
        self.live.send_if_modified(|live| {
            let changed = live.phase != phase || live.refusals != refusals;
            if changed {
                live.phase = phase;
                live.refusals = refusals.to_vec();
            }
            changed
        });
        match weighed {
            Weighed::Possible => self.blocked_since = None,
            Weighed::Wait { reform, .. } => {
                let since = *self.blocked_since.get_or_insert_with(Instant::now);
                return reform
                    && refusals::others_suffice(self.roster, &waiting.promised)
                    && since.elapsed() >= REFORM_AFTER;
            }
            Weighed::LeaveOut(left_out) => {
                self.left_out = left_out;
                return true;
            }
        }
        false
    }

    fn end(self) -> BTreeMap<OperationId, LeftOut> {
        self.live.send_modify(|live| live.refusals.clear());
        self.left_out
    }
}

fn take_report(mut record: BatchRecord, report: &Report) -> BatchRecord {
    record.blamed.clone_from(&report.blamed);
    record.refusals.clone_from(&report.refusals);
    let times = report.times;
    record.stage_ms.gossip = times.gossip;
    record.stage_ms.verify = times.verify;
    record.stage_ms.round1 = times.round1;
    record.stage_ms.round2 = times.round2;
    record.stage_ms.aggregate = times.aggregate;
    record.signing_ms = times.signing;
    if let Outcome::Signed {
        signers, attempts, ..
    } = &report.outcome
    {
        record.signers.clone_from(signers);
        record.attempts = *attempts;
    }
    record
}

#[cfg(test)]
mod tests {
    use protocol::{message::Rule, roster::Member};
    use threshold::SignerId;

    use super::*;
    use crate::refusals::tests::roster;

    /// All refuse the fee; an attempt has begun all the same, with nonces from the pool, and so many of its signers may
    /// have given a share.
    fn is_lost(promised: usize, since: Duration) -> bool {
        let (roster, live) = (roster(), watch::Sender::new(Live::default()));
        let mut vote = Vote {
            live: &live,
            roster: &roster,
            sequence: 1,
            operations: BTreeSet::new(),
            left_out: BTreeMap::new(),
            blocked_since: Instant::now().checked_sub(since),
        };
        let refusal = Refusal::new(Rule::S5, "fee");
        let refusals: Vec<_> = roster
            .operators
            .iter()
            .map(|member| (member.key, refusal.clone()))
            .collect();
        let signers: BTreeSet<SignerId> = roster.operators.iter().map(Member::signer).collect();
        let waiting = Waiting {
            needed: 3,
            attempts: 1,
            ready: BTreeSet::new(),
            pending: signers.iter().map(|signer| (*signer, 1)).take(3).collect(),
            declined: BTreeMap::new(),
            promised: signers.into_iter().take(promised).collect(),
            unheard: BTreeSet::new(),
            refused: BTreeMap::new(),
            blamed: BTreeSet::new(),
        };
        vote.is_lost(&refusals, &waiting)
    }

    #[test]
    fn a_batch_refused_for_its_fee_is_formed_anew_though_the_pool_has_begun_an_attempt() {
        assert!(!is_lost(0, Duration::ZERO));
        assert!(is_lost(0, REFORM_AFTER));
        assert!(is_lost(2, REFORM_AFTER));
        // Those who have given a share refuse another batch, and the others are too few.
        assert!(!is_lost(3, REFORM_AFTER));
    }
}
