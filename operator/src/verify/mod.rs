//! From a proposal to something that may be signed. What is needed is gathered first, from the own Bitcoin node, the
//! own history, the own records and the body; then one pure function, [`batch`], judges it, rule by rule:
//!
//! ```text
//! proposal + own chain, ledger, records, policy
//!    --s14 alarm, s06 pause--> --s03 operations--> --s02 inputs--> --s04 ledger--> --s01 rebuilt-->
//!    --s13 treasury--> --s05 reserves--> --s07 one batch--> --s06 policy--> VerifiedBatch
//! ```
//!
//! What may change between the verdict and the sign request is in [`Standing`], and [`affirm`] asks for it there.
//!
//! [`VerifiedBatch`], [`VerifiedGenesis`], [`VerifiedEpoch`], [`Kept`] and [`Affirmed`] have private fields and are made
//! here and nowhere else. [`crate::vault::KeySafe::sign`] takes a [`crate::promises::Promised`] and nothing else, which
//! can't be had without them.
//!
//! | Rule | Where it is checked |
//! |------|---------------------|
//! | S1 sign only what is rebuilt from own data | [`s01_rebuilt`] |
//! | S2 inputs: treasury, deposits, top-ups | [`s02_inputs`], and again at the sign request in `protocol::signer` |
//! | S3 operations one to one with inputs and outputs | [`s03_operations`] |
//! | S4 digests, proofs, own replay | [`s04_ledger`] |
//! | S5 reserves and fees | [`s05_reserves`] |
//! | S6 the operator's own policy | [`s06_policy`]: the file is [`crate::policy`], decisions are [`crate::decisions`] |
//! | S7 one batch per sequence number | [`s07_one_batch`], and again at the sign request in `protocol::signer` |
//! | S8 data kept and passed on before a share | [`s08_kept`], and `protocol::signer` for the receipts |
//! | S9 a nonce serves one share | [`s09_nonces`], and [`crate::vault`] for repeated requests |
//! | S10 secrets sealed at rest | [`crate::keys`] |
//! | S11 persist, then send | [`crate::promises`] |
//! | S12 strangers, sizes, rates | `p2p` at the handshake; [`crate::body`] and [`crate::held`] for what is kept |
//! | S13 output 0 pays the vault itself | [`s13_treasury`] |
//! | S14 unknown spend of the treasury | [`s14_alarm`]; raised by `node::history` and [`crate::promises`] |

pub mod epoch;
#[cfg(test)]
pub(crate) mod fixture;
pub mod genesis;
mod s01_rebuilt;
mod s02_inputs;
mod s03_operations;
mod s04_ledger;
mod s05_reserves;
mod s06_policy;
mod s07_one_batch;
pub mod s08_kept;
pub mod s09_nonces;
mod s13_treasury;
mod s14_alarm;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{OutPoint, Transaction};
use chain::rpc::{MempoolInfo, UnspentOutput};
use ledger::{Digest, Operation, OperationError, OperationId, Transition};
use proof::VerifyingKey;
use protocol::{
    batch::{BatchHash, Body, Candidate},
    message::Refusal,
    signer::Promise,
    transaction::{BatchTransaction, Treasury},
    vault::Vault,
};
use threshold::{GroupInfo, sign::Message};

pub use epoch::VerifiedEpoch;
pub use genesis::VerifiedGenesis;
pub(crate) use s05_reserves::net_fees;
pub use s08_kept::Kept;

use crate::{books::Recent, decisions::Decisions, policy::Policy};

/// What a batch is judged by. All of it is this operator's own, but for candidate and body, which are
/// what is judged.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The vault.
    pub vault: Arc<Vault>,
    /// What is proposed.
    pub candidate: Candidate,
    /// Its body, whose hash is the candidate's.
    pub body: Body,
    /// The latest treasury that this operator holds canonical.
    pub head: Treasury,
    /// What the own node says of every deposit and top-up: unspent on the best chain, or not there.
    pub outputs: BTreeMap<OutPoint, UnspentOutput>,
    /// What the own node asks of transactions before it relays them.
    pub mempool: MempoolInfo,
    /// The operations, replayed on the own ledger at `head`.
    pub replay: Result<Transition, (usize, OperationError)>,
    /// What may be different at the sign request.
    pub standing: Standing,
}

/// Where this operator stands now: what may change between the verdict and the sign request.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Height of the own chain.
    pub height: u32,
    /// Why signing has stopped (S14).
    pub alarm: Option<String>,
    /// What was signed for this sequence number and treasury (S7).
    pub promise: Option<Promise>,
    /// What the administrator has decided (S6).
    pub decisions: Arc<Decisions>,
    /// The policy in force (S5, S6).
    pub policy: Arc<Policy>,
    /// The batches confirmed within the policy's window, without this one.
    pub recent: Recent,
}

/// A batch that this operator is willing to sign, with the transaction that it built itself.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    evidence: Arc<Evidence>,
    transaction: BatchTransaction,
    messages: Vec<Message>,
}

impl VerifiedBatch {
    /// The candidate.
    pub fn candidate(&self) -> &Candidate {
        &self.evidence.candidate
    }

    /// Which batch it is (S7).
    pub fn batch(&self) -> BatchHash {
        self.evidence.body.batch()
    }

    /// The unsigned transaction, rebuilt from own data.
    pub fn unsigned(&self) -> &Transaction {
        &self.transaction.unsigned
    }
}

/// Anything that may be signed.
#[derive(Clone, Debug)]
pub enum Verified {
    /// A batch transaction.
    Batch(VerifiedBatch),
    /// The genesis certificate.
    Genesis(VerifiedGenesis),
    /// The certificate of a new epoch.
    Epoch(VerifiedEpoch),
}

impl Verified {
    /// Which batch it is, if it is one (S7).
    pub fn batch(&self) -> Option<BatchHash> {
        match self {
            Self::Batch(batch) => Some(batch.batch()),
            Self::Genesis(_) | Self::Epoch(_) => None,
        }
    }

    /// What to sign, one message a signature.
    pub fn messages(&self) -> &[Message] {
        match self {
            Self::Batch(batch) => &batch.messages,
            Self::Genesis(genesis) => genesis.messages(),
            Self::Epoch(epoch) => epoch.messages(),
        }
    }

    /// How many signers must take part: t for a batch, all n for a certificate.
    pub fn signers_needed(&self, group: &GroupInfo) -> usize {
        match self {
            Self::Batch(_) => usize::from(group.threshold()),
            Self::Genesis(_) | Self::Epoch(_) => group.signers().len(),
        }
    }
}

/// What needs no look at a proposal: the alarm and the pause. Asked before anything is gathered for [`batch`], so that
/// an operator that will not sign does not work for it.
///
/// # Errors
/// A [`Refusal`] under S14 or S6.
pub fn may_sign(alarm: Option<&str>, decisions: &Decisions) -> Result<(), Refusal> {
    s14_alarm::check(alarm)?;
    s06_policy::check_pause(decisions)
}

/// Judges a batch.
///
/// # Errors
/// The first [`Refusal`] found, what is the same for every operator before what is this one's own. It names the rule,
/// and the operations if some are at fault.
pub fn batch(evidence: Arc<Evidence>, key: &VerifyingKey) -> Result<VerifiedBatch, Refusal> {
    let transaction = judge(&evidence, |body, digests| {
        s04_ledger::check_proofs(body, digests, key)
    })?;
    let messages = s01_rebuilt::messages(&transaction)?;
    Ok(VerifiedBatch {
        evidence,
        transaction,
        messages,
    })
}

/// [`batch`] with something else in the place of the proofs' verifier, which gets the body and the digests that
/// replaying gives: a simulator has no time for proofs. Nothing can be signed by what comes of it.
///
/// # Errors
/// As [`batch`].
pub fn judge(
    evidence: &Evidence,
    proofs: impl FnOnce(&Body, &[Digest]) -> Result<(), Refusal>,
) -> Result<BatchTransaction, Refusal> {
    let standing = &evidence.standing;
    may_sign(standing.alarm.as_deref(), &standing.decisions)?;
    s03_operations::check(evidence)?;
    let inputs = s02_inputs::check(evidence)?;
    let transition = s04_ledger::check(evidence, proofs)?;
    let transaction = s01_rebuilt::check(evidence, &inputs, transition)?;
    s13_treasury::check(&evidence.vault, &transaction)?;
    s05_reserves::check(evidence, &transaction, transition)?;
    s05_reserves::check_caps(evidence, standing, &transaction)?;
    s07_one_batch::check(evidence, standing)?;
    s06_policy::check(evidence, standing)?;
    Ok(transaction)
}

/// Judges what was verified by where this operator stands now. Cheap: proofs and inputs are as they were. A block that
/// leaves the chain ends the session instead (`protocol::signer`).
///
/// # Errors
/// A [`Refusal`] under S2, S5, S6, S7 or S14.
pub fn again(verified: &Verified, standing: &Standing) -> Result<(), Refusal> {
    may_sign(standing.alarm.as_deref(), &standing.decisions)?;
    match verified {
        Verified::Genesis(_) | Verified::Epoch(_) => Ok(()),
        Verified::Batch(batch) => {
            s02_inputs::check_refunds(&batch.evidence, standing)?;
            s05_reserves::check_caps(&batch.evidence, standing, &batch.transaction)?;
            s07_one_batch::check(&batch.evidence, standing)?;
            s06_policy::check(&batch.evidence, standing)
        }
    }
}

/// What is kept, verified, and what this operator still stood by when it was asked for its shares.
#[derive(Debug)]
pub struct Affirmed(Arc<Verified>);

impl Affirmed {
    pub(crate) fn into_verified(self) -> Arc<Verified> {
        self.0
    }
}

/// [`again`], at the sign request.
///
/// # Errors
/// As [`again`].
pub fn affirm(kept: &Kept, standing: &Standing) -> Result<Affirmed, Refusal> {
    again(kept.verified(), standing)?;
    Ok(Affirmed(kept.verified().clone()))
}

/// The operations of a refused batch that wait for this operator's approval.
pub fn held(evidence: &Evidence) -> Vec<(OperationId, Operation)> {
    s06_policy::held(evidence, &evidence.standing)
}
