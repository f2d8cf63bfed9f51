//! What the coordinator's REST API says and hears, version 1: one type a document, in JSON.
//! Amounts are integers in sats, times are Unix milliseconds, hashes and keys are lower-case hex
//! (transaction ids in Bitcoin's reversed display order).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

mod administer;
mod events;
mod operations;

pub use administer::{
    ActDocument, ActKind, ActList, ActPage, ActRequest, DeadLetterDocument, DeadLetterList,
    MAX_REASON_BYTES,
};
pub use events::{EventDocument, EventsQuery, Topic};
pub use operations::{FieldError, OperationRequest};

/// Most entries in one answer with a list.
pub const MAX_PAGE: usize = 100;
/// Most operations of one account that wait at once.
pub const MAX_PENDING: usize = 64;
/// Largest request body in bytes.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// An RFC 9457 problem document; `code` is stable, `detail` is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI reference that names the kind of problem: `/problems/{code}`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong this time and what to do.
    pub detail: String,
    /// Stable, in snake_case.
    pub code: String,
}

/// Asks for a deposit address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DepositAddressRequest {
    /// The account's address (bech32m).
    pub account: String,
    /// x-only public key, 32 bytes of hex, that can take an uncredited deposit back.
    pub refund_key: String,
}

/// Deposit terms. The address commits to their hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terms {
    /// Vault id.
    pub vault_id: String,
    /// The account's address.
    pub account: String,
    /// Refund key.
    pub refund_key: String,
    /// Relative time-lock of the refund in blocks.
    pub refund_delay_blocks: u16,
    /// Smaller payments are not credited.
    pub min_deposit_sat: u64,
    /// Taken from each payment.
    pub deposit_fee_sat: u64,
}

/// A deposit address. Derive it from the terms and compare before you pay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DepositAddressDocument {
    /// What the address commits to.
    pub terms: Terms,
    /// Hash of the terms.
    pub terms_hash: String,
    /// Output descriptor with checksum; back it up.
    pub descriptor: String,
    /// The Bitcoin address.
    pub address: String,
}

/// Where a request is. `confirmed` and `final` are on the chain; credit on `final` only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RequestStatus {
    /// Seen; a deposit that waits for confirmations.
    Received,
    /// Stored, waits for a batch.
    Queued,
    /// In a batch that is being proven.
    Batched,
    /// The batch has its signatures.
    Signed,
    /// The batch was given to the Bitcoin network.
    Broadcast,
    /// The batch is in a block.
    Confirmed,
    /// The batch is deep enough; safe to credit.
    Final,
    /// Will not be done; `reason` says why.
    Refused,
}

/// One step that a request has taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// Which.
    pub status: RequestStatus,
    /// When.
    pub at_ms: u64,
}

/// A deposit that was seen on the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DepositDocument {
    /// `txid:vout`.
    pub outpoint: String,
    /// Id of the ledger operation; `null` while there is none.
    pub operation_id: Option<String>,
    /// The account's address.
    pub account: String,
    /// The address that was paid.
    pub terms_hash: String,
    /// What was paid.
    pub value_sat: u64,
    /// What is credited; `null` when the payment is too small.
    pub credited_sat: Option<u64>,
    /// Height of its block.
    pub height: u32,
    /// Where it is.
    pub status: RequestStatus,
    /// Why, when it waits or was refused.
    pub reason: Option<String>,
    /// Batch that holds it.
    pub sequence: Option<u64>,
    /// Every step with its time.
    pub steps: Vec<Step>,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountDocument {
    /// Its address.
    pub account: String,
    /// Its leaf.
    pub index: u32,
    /// Balance after the latest confirmed batch.
    pub balance_sat: u64,
    /// Nonce after the latest confirmed batch. The next signed operation carries it plus the number of
    /// `pending` ones.
    pub nonce: u64,
    /// Sequence number of that batch.
    pub sequence: u64,
    /// Root of the account tree.
    pub root: String,
    /// Merkle path, leaf level first: the three siblings of each level.
    pub path: Vec<Vec<String>>,
    /// Operations of this account that wait, oldest first (ids).
    pub pending: Vec<String>,
}

/// An operation and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationDocument {
    /// Its id.
    pub operation_id: String,
    /// What it asks for.
    pub operation: OperationRequest,
    /// Where it is.
    pub status: RequestStatus,
    /// Is this status safe to credit?
    pub safe_to_credit: bool,
    /// Why, when it waits or was refused.
    pub reason: Option<String>,
    /// Batch that holds it.
    pub sequence: Option<u64>,
    /// Transaction of that batch.
    pub txid: Option<String>,
    /// Every step with its time.
    pub steps: Vec<Step>,
}

/// Time spent in each stage of a batch, in ms; `null` while it has not passed the stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[allow(missing_docs, reason = "the stages of the pipeline, in order")]
pub struct StageTimes {
    pub detect: Option<u64>,
    pub queue: Option<u64>,
    pub batch: Option<u64>,
    pub prove: Option<u64>,
    pub gossip: Option<u64>,
    pub verify: Option<u64>,
    pub round1: Option<u64>,
    pub round2: Option<u64>,
    pub aggregate: Option<u64>,
    pub broadcast: Option<u64>,
    pub confirm: Option<u64>,
}

/// Where a batch is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// Formed, waits for its proofs.
    Formed,
    /// Proven, waits for signatures.
    Proven,
    /// Signed, not yet given to the network.
    Signed,
    /// Given to the network.
    Broadcast,
    /// In a block.
    Confirmed,
    /// Deep enough.
    Final,
    /// Given up: it was not signed, or can't be confirmed any more. Its operations wait again.
    Abandoned,
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchDocument {
    /// Sequence number.
    pub sequence: u64,
    /// Where it is.
    pub status: BatchStatus,
    /// Why it waits, or was given up.
    #[serde(default)]
    pub reason: Option<String>,
    /// Hash of its body.
    pub body_hash: String,
    /// Transaction id; `null` until it is proven.
    pub txid: Option<String>,
    /// The signed transaction, in hex.
    pub transaction: Option<String>,
    /// Height of its block.
    pub height: Option<u32>,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Ids of its operations, in ledger order.
    pub operations: Vec<String>,
    /// Ledger digests between its chunks.
    pub digests: Vec<String>,
    /// Groth16 proofs, one a chunk.
    pub proofs: Vec<String>,
    /// Operators whose shares made the signatures.
    pub signers: Vec<String>,
    /// Operators blamed for a bad share.
    pub blamed: Vec<String>,
    /// Operators that refused, with the rule and the reason.
    pub refusals: Vec<RefusalDocument>,
    /// Attempts at signing.
    pub attempts: u32,
    /// Time to signature: from the first proposal to the verified signatures, in ms; `null` until it is signed.
    #[serde(default)]
    pub signing_ms: Option<u64>,
    /// Miner fee.
    pub fee_sat: u64,
    /// All transactions that were signed for it here, oldest first: the same operations and payouts for ever higher miner
    /// fees. At most one of them is ever confirmed.
    #[serde(default)]
    pub candidates: Vec<CandidateDocument>,
    /// Why its miner fee was not raised, though it is due; tried again with the next block.
    #[serde(default)]
    pub fee_bump: Option<String>,
    /// Treasury after it.
    pub treasury_sat: u64,
    /// Supply after it.
    pub supply_sat: u64,
    /// Time in each stage.
    pub stage_ms: StageTimes,
}

/// A signed transaction of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CandidateDocument {
    /// Its id.
    pub txid: String,
    /// What it pays to miners.
    pub fee_sat: u64,
    /// Height of the coordinator's chain when it was signed.
    pub height: u32,
    /// When that was.
    pub at_ms: u64,
}

/// Why an operator will not sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusalDocument {
    /// The operator's name.
    pub operator: String,
    /// Safety rule, S1 to S15.
    pub rule: String,
    /// Operations at fault.
    pub operation_ids: Vec<String>,
    /// In words.
    pub reason: String,
}

/// The vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VaultDocument {
    /// Bitcoin network.
    pub network: String,
    /// Vault id; `null` before genesis.
    pub vault_id: Option<String>,
    /// GROUP, x-only; `null` before key generation.
    pub group_key: Option<String>,
    /// Epoch of the operators' shares: one more with each refresh, which changes nothing else; `null` before key
    /// generation.
    pub epoch: Option<u32>,
    /// Where the treasury is kept; fund it to create genesis.
    pub address: Option<String>,
    /// Its descriptor.
    pub descriptor: Option<String>,
    /// Signers needed.
    pub threshold: u16,
    /// Operators.
    pub operators: usize,
    /// Genesis outpoint.
    pub genesis: Option<String>,
    /// Genesis amount.
    pub genesis_sat: Option<u64>,
    /// BIP-340 signature of the genesis by all operators.
    pub genesis_signature: Option<String>,
    /// SHA-256 of the verifying key.
    pub verifying_key_hash: String,
    /// How the proving key was made.
    pub setup: String,
    /// Hash of the parameters.
    pub parameters_hash: String,
    /// Hash of the roster.
    pub roster_hash: String,
    /// The treasury's outpoint.
    pub treasury: Option<String>,
    /// What it holds.
    pub treasury_sat: u64,
    /// Sum of all balances.
    pub supply_sat: u64,
    /// Treasury less supply.
    pub surplus_sat: u64,
    /// Latest confirmed sequence number.
    pub sequence: u64,
    /// Ledger digest after it.
    pub digest: Option<String>,
    /// Deposit terms on offer.
    pub refund_delay_blocks: u16,
    /// Deposit terms on offer.
    pub min_deposit_sat: u64,
    /// Deposit terms on offer.
    pub deposit_fee_sat: u64,
    /// Confirmations that a deposit needs.
    pub deposit_confirmations: u32,
    /// Confirmations after which a batch is final.
    pub final_confirmations: u32,
}

/// What things cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FeesDocument {
    /// Taken from a deposit.
    pub deposit_fee_sat: u64,
    /// Smallest deposit.
    pub min_deposit_sat: u64,
    /// Smallest fee of a transfer.
    pub transfer_fee_sat: u64,
    /// Smallest fee of a withdrawal.
    pub withdraw_fee_sat: u64,
    /// What the last batch was priced with for miners, sat/vB; `null` before the first since the start.
    pub fee_rate_sat_per_vb: Option<f64>,
}

/// How the coordinator is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusDocument {
    /// Software version.
    pub version: String,
    /// Is it ready to take requests?
    pub ready: bool,
    /// What it waits for or works at.
    pub phase: String,
    /// Height of its chain.
    pub height: u32,
    /// Operators connected.
    pub connected: Vec<String>,
    /// Latest confirmed sequence number.
    pub sequence: u64,
    /// Requests that wait for a batch.
    pub queued: u64,
    /// Requests that were left out of a batch because operators refuse them for now; at most 1,000 are counted.
    pub left_out: u64,
    /// Batch in progress.
    pub batch: Option<BatchDocument>,
    /// Operators against which there is evidence of a bad share: `GET /v1/blame`.
    #[serde(default)]
    pub blamed: Vec<String>,
    /// What the vault must be topped up with, at least, so that a batch can pay its miner fee, or a higher one; `null`
    /// when nothing waits for that. Pay it to the vault's address: `GET /v1/vault`.
    #[serde(default)]
    pub top_up_sat: Option<u64>,
    /// Why signing stopped, if it did (S14).
    pub alarm: Option<String>,
}

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// At most this many, up to 100; 20 when absent.
    pub limit: Option<usize>,
    /// Continue after this entry (the `next` of the page before).
    pub after: Option<String>,
    /// Only this account's (its address).
    pub account: Option<String>,
}

/// A part of a list of deposits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DepositList {
    /// The entries.
    pub items: Vec<DepositDocument>,
    /// Where to continue; `null` at the end.
    pub next: Option<String>,
}

/// A part of a list of batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchList {
    /// The entries, newest first.
    pub items: Vec<BatchDocument>,
    /// Where to continue; `null` at the end.
    pub next: Option<String>,
}

/// A bad share that an operator has sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlameDocument {
    /// Names the evidence.
    pub id: String,
    /// The operator's name.
    pub operator: String,
    /// The operator's identity key.
    pub operator_key: String,
    /// When it was kept.
    pub at_ms: u64,
    /// The batch that was signed; `null` for a certificate.
    pub sequence: Option<u64>,
    /// The session.
    pub session: String,
    /// The attempt.
    pub attempt: u32,
    /// What is wrong, in words.
    pub fault: String,
    /// The input whose share does not verify; `null` when their number is wrong.
    pub input: Option<usize>,
    /// What shows it; only in the answer about one blame.
    #[serde(default)]
    pub evidence: Option<EvidenceDocument>,
}

/// All that is needed to show that a share is bad: `drawbridge-coordinator check-evidence` checks it against a
/// roster, with no trust in whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceDocument {
    /// The whole of it, in hex: the group with its verifying shares, what was signed, all commitments, and the
    /// operator's signed statement. The other fields show the part about the share at fault.
    pub encoded: String,
    /// GROUP, x-only.
    pub group_key: String,
    /// Epoch of the shares.
    pub epoch: u32,
    /// Hash of group, messages and commitments, as the operator has signed it.
    pub package: String,
    /// Inputs of the session.
    pub inputs: usize,
    /// What the share was to sign, a BIP-341 sighash; `null` when no single share is at fault.
    pub message: Option<String>,
    /// The commitments to that input's nonces (hiding, then binding), by signer.
    pub commitments: BTreeMap<String, String>,
    /// The signer that the operator is.
    pub signer: String,
    /// The share.
    pub share: Option<String>,
}

/// The bad shares that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlameList {
    /// Newest first, without their evidence. At most four an operator.
    pub items: Vec<BlameDocument>,
}
