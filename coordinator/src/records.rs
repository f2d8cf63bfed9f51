//! What the coordinator keeps: one table a kind of record, one durable queue between two stages.
//! No secret and no personal data: keys, hashes, amounts and times.

use bitcoin::{Amount, OutPoint, Transaction, Txid};
use ledger::{Operation, OperationId, SequenceNumber};
use protocol::{
    api::{BatchStatus, RequestStatus, StageTimes, Step},
    batch::{BodyHash, Candidate},
    blame::{Evidence, EvidenceId, FaultKind},
    deposit::{DepositTerms, TermsHash},
    identity::PeerKey,
    message::{Refusal, SessionId},
    pipeline::request::{self, Input},
    transaction::TopUp,
};
use serde::{Deserialize, Serialize};
use storage::{ColumnName, QueueDef, QueueLimits, RetryPolicy, Table};
use threshold::GroupInfo;

/// Deposit terms that were shown to somebody, by their hash.
pub const TERMS: Table<[u8; 32], DepositTerms> = Table::new("terms", 1);
/// Hash of the terms behind each address that was shown, by its output key: what blocks are searched for.
pub const WATCHED: Table<[u8; 32], [u8; 32]> = Table::new("watched", 1);
/// All of [`TERMS`] are in [`WATCHED`]; earlier releases wrote the terms only.
pub const WATCHED_ALL: Table<(), ()> = Table::new("watched_all", 1);
/// How many of the terms each other node has handed on.
pub const TERMS_FROM: Table<[u8; 32], u64> = Table::new("terms_from", 1);
/// Deposits seen on the chain.
pub const DEPOSITS: Table<OutPoint, DepositRecord> = Table::new("deposits", 1);
/// Deposits of an account: (account key, outpoint).
pub const DEPOSITS_OF: Table<([u8; 32], OutPoint), ()> = Table::new("deposits_of", 1);
/// Deposits that wait for confirmations: (height of their block, outpoint).
pub const UNRIPE: Table<(u32, OutPoint), ()> = Table::new("unripe", 1);
/// Outputs that pay the vault directly, and the height of their block.
pub const TOP_UPS: Table<OutPoint, TopUpRecord> = Table::new("top_ups", 1);
/// Signed operations.
pub const OPERATIONS: Table<[u8; 32], OperationRecord> = Table::new("operations", 1);
/// Signed operations that are not confirmed: (sender's leaf, nonce).
pub const PENDING: Table<(u32, u64), [u8; 32]> = Table::new("pending", 1);
/// Requests that were left out of a batch, by the time in Unix ms from which they are tried again.
pub const LEFT_OUT: Table<(u64, [u8; 32]), Request> = Table::new("left_out", 1);
/// Batches, by sequence number; a batch that is formed anew replaces an abandoned one.
pub const BATCHES: Table<u64, BatchRecord> = Table::new("batches", 4);
/// Bad shares: (operator, how-manieth that was kept).
pub const BLAMES: Table<([u8; 32], u64), BlameRecord> = Table::new("blames", 1);
/// What shows a bad share, by [`EvidenceId`].
pub const EVIDENCE: Table<[u8; 32], Evidence> = Table::new("evidence", 1);
/// Height at which this coordinator began to look for the genesis output.
pub const GENESIS_SEARCH: Table<(), u32> = Table::new("genesis_search", 1);

/// The group that key generation gave, as all operators say.
pub const GROUP: Table<(), GroupInfo> = Table::new("group", 1);

/// Names one try to form the batch of a sequence number.
pub type BatchKey = (u64, u32);
/// Names a request in its queue: operation id, and how often it was queued before.
pub type RequestKey = ([u8; 32], u32);

/// Attempts at having a request in a batch: what has waited for a week in vain needs somebody to look.
const MAX_WAITING: u32 = 20_000;
/// Attempts at proving a batch, over some five minutes.
pub const MAX_PROVING: u32 = 16;

const STAGE: RetryPolicy = RetryPolicy {
    first_ms: 500,
    longest_ms: 30_000,
    max_attempts: u32::MAX,
};
const STAGE_LIMITS: QueueLimits = QueueLimits {
    max_len: 64,
    remember_done: 1_000,
};

/// Requests that wait for a batch.
pub const REQUESTS: QueueDef<RequestKey, Request> = QueueDef::new("requests", 1)
    .limits(QueueLimits {
        max_len: 100_000,
        remember_done: 1_000_000,
    })
    .retry(RetryPolicy {
        max_attempts: MAX_WAITING,
        ..STAGE
    });
/// Batches that wait for proofs. Proving needs nothing from outside: what has failed so often needs somebody to look.
pub const PROVE: QueueDef<BatchKey, u64> =
    QueueDef::new("prove", 1)
        .limits(STAGE_LIMITS)
        .retry(RetryPolicy {
            max_attempts: MAX_PROVING,
            ..STAGE
        });
/// Batches that wait for signatures.
pub const SIGN: QueueDef<BatchKey, u64> =
    QueueDef::new("sign", 1).limits(STAGE_LIMITS).retry(STAGE);
/// Batches that wait to be submitted.
pub const BROADCAST: QueueDef<BatchKey, u64> = QueueDef::new("broadcast", 1)
    .limits(STAGE_LIMITS)
    .retry(STAGE);
/// Batches that wait to be final.
pub const CONFIRM: QueueDef<BatchKey, u64> = QueueDef::new("confirm", 1)
    .limits(STAGE_LIMITS)
    .retry(STAGE);

/// Everything in this coordinator's database.
pub fn columns() -> Vec<ColumnName> {
    let mut columns = vec![
        TERMS.name(),
        WATCHED.name(),
        WATCHED_ALL.name(),
        TERMS_FROM.name(),
        DEPOSITS.name(),
        DEPOSITS_OF.name(),
        UNRIPE.name(),
        TOP_UPS.name(),
        OPERATIONS.name(),
        PENDING.name(),
        LEFT_OUT.name(),
        BATCHES.name(),
        BLAMES.name(),
        EVIDENCE.name(),
        GENESIS_SEARCH.name(),
        GROUP.name(),
        REQUESTS.name(),
        PROVE.name(),
        SIGN.name(),
        BROADCAST.name(),
        CONFIRM.name(),
    ];
    columns.extend([
        crate::events::EVENTS.name(),
        crate::events::ANNOUNCED.name(),
        crate::admin::AUDIT.name(),
    ]);
    columns.extend(node::history::TABLES);
    columns
}

/// A request that waits for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Credit this deposit.
    Deposit(OutPoint),
    /// Carry out this signed operation.
    Signed(OperationId),
}

/// How far a request is, and every step with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it is.
    pub status: RequestStatus,
    /// Why, when it waits or was refused.
    pub reason: Option<String>,
    /// Batch that holds it.
    pub sequence: Option<SequenceNumber>,
    /// How often it was queued before.
    pub tries: u32,
    /// Every step, oldest first; at most [`MAX_STEPS`].
    pub steps: Vec<Step>,
}

/// Steps kept for one request; later ones replace the last.
pub const MAX_STEPS: usize = 32;

impl Progress {
    /// A request that was just seen.
    pub fn new(status: RequestStatus, now: u64) -> Self {
        Self {
            status,
            reason: None,
            sequence: None,
            tries: 0,
            steps: vec![Step { status, at_ms: now }],
        }
    }

    /// Takes the next step, as [`request::step`] says; `false` when there is none to take. An input that can't be is a
    /// fault of our own: it is logged, and neither the request nor what goes on with its batch is changed by it.
    pub fn take(&mut self, input: Input, reason: Option<String>, now: u64) -> bool {
        let status = match request::step(self.status, input) {
            Ok(Some(status)) => status,
            Ok(None) => return false,
            Err(reject) => {
                tracing::error!(%reject, "a request stays where it is");
                return false;
            }
        };
        self.status = status;
        self.reason = reason;
        if input == Input::Released {
            self.sequence = None;
        }
        if request::is_back(input) {
            self.tries = self.tries.saturating_add(1);
        }
        self.steps.truncate(MAX_STEPS.saturating_sub(1));
        self.steps.push(Step { status, at_ms: now });
        true
    }

    /// Will not be done.
    pub fn refuse(&mut self, reason: impl Into<String>, now: u64) -> bool {
        self.take(Input::Refused, Some(reason.into()), now)
    }

    /// When it came to a status last.
    pub fn at(&self, status: RequestStatus) -> Option<u64> {
        self.steps
            .iter()
            .rev()
            .find(|step| step.status == status)
            .map(|step| step.at_ms)
    }
}

/// A deposit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepositRecord {
    /// Where it is.
    pub outpoint: OutPoint,
    /// The address that it pays.
    pub terms: TermsHash,
    /// What it holds.
    pub value: Amount,
    /// Height of its block.
    pub height: u32,
    /// How far it is.
    pub progress: Progress,
}

/// An output that pays the vault directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpRecord {
    /// What it is.
    pub top_up: TopUp,
    /// Height of its block.
    pub height: u32,
}

/// A signed operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// What was signed.
    pub operation: Operation,
    /// How far it is.
    pub progress: Progress,
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRecord {
    /// Which.
    pub sequence: SequenceNumber,
    /// Which try.
    pub tries: u32,
    /// Where it is.
    pub status: BatchStatus,
    /// Why it waits, or was given up.
    pub reason: Option<String>,
    /// The requests in it, in ledger order.
    pub requests: Vec<Request>,
    /// The operations, in ledger order.
    pub operations: Vec<Operation>,
    /// Terms of its deposits.
    pub terms: Vec<DepositTerms>,
    /// Values of its deposits on the chain.
    pub values: Vec<Amount>,
    /// Top-ups that it collects.
    pub top_ups: Vec<TopUp>,
    /// Miner fee.
    pub fee: Amount,
    /// Set once it is proven.
    pub body: Option<BodyHash>,
    /// Set once it is proven.
    pub candidate: Option<Candidate>,
    /// Set once it is signed.
    pub transaction: Option<Transaction>,
    /// All that was signed for it here, oldest first: each pays more than those before, and at most one is ever
    /// confirmed. `candidate`, `transaction`, `top_ups`, `fee`, `shape` and `treasury` are the latest one's, or the
    /// confirmed one's.
    pub candidates: Vec<SignedCandidate>,
    /// A candidate that pays more and is not signed yet. On disk before it is proposed: operators that gave a share for
    /// it give none for one that pays the same (S7).
    pub bump: Option<Bump>,
    /// The last try to raise the fee, since the latest candidate, that came to nothing.
    pub bump_failure: Option<BumpFailure>,
    /// Number of inputs and outputs of the transaction.
    pub shape: (usize, usize),
    /// Treasury after it.
    pub treasury: Amount,
    /// Supply after it.
    pub supply: Amount,
    /// Operators whose shares made the signatures.
    pub signers: Vec<PeerKey>,
    /// Operators that sent a bad share.
    pub blamed: Vec<PeerKey>,
    /// Operators that refused.
    pub refusals: Vec<(PeerKey, Refusal)>,
    /// Attempts at signing.
    pub attempts: u32,
    /// From the first proposal to the verified signatures, in ms.
    pub signing_ms: Option<u64>,
    /// When it was last given to the network.
    pub broadcast_ms: Option<u64>,
    /// Height of its block.
    pub height: Option<u32>,
    /// Time in each stage.
    pub stage_ms: StageTimes,
}

impl BatchRecord {
    /// Its transaction's id, once it is proven.
    pub fn txid(&self) -> Option<Txid> {
        self.candidate.as_ref().map(|candidate| candidate.txid)
    }

    /// Its key in the stage queues.
    pub fn key(&self) -> BatchKey {
        (self.sequence.0, self.tries)
    }
}

/// A candidate with its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCandidate {
    /// What was signed.
    pub candidate: Candidate,
    /// Top-ups that it collects.
    pub top_ups: Vec<TopUp>,
    /// With witnesses.
    pub transaction: Transaction,
    /// Height of the own chain when it was signed.
    pub height: u32,
    /// When that was.
    pub at_ms: u64,
}

/// A candidate that is to replace those before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bump {
    /// What is to be signed.
    pub candidate: Candidate,
    /// Top-ups that it collects.
    pub top_ups: Vec<TopUp>,
}

/// Why a fee was not raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BumpFailure {
    /// In words.
    pub reason: String,
    /// Height of the own chain then.
    pub height: u32,
    /// The fee, if it was for the fee that operators did not sign.
    pub refused: Option<RefusedFee>,
}

/// A miner fee that operators did not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedFee {
    /// Above their caps (S5).
    TooHigh(Amount),
    /// Not above what they have signed for this batch, on another coordinator's word (S7).
    TooLow(Amount),
    /// Whatever it is: to them it is another batch than the one that they have signed, and the refund of a deposit in it is
    /// too close for that (S2).
    Whatever,
}

/// A bad share that an operator has sent. What shows it is in [`EVIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlameRecord {
    /// Names the evidence.
    pub evidence: EvidenceId,
    /// When it was kept.
    pub at_ms: u64,
    /// The batch that was signed; `None` for a certificate.
    pub sequence: Option<SequenceNumber>,
    /// The session.
    pub session: SessionId,
    /// The attempt.
    pub attempt: u32,
    /// What is wrong.
    pub kind: FaultKind,
}
