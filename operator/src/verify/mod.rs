//! From a proposal to something that may be signed. What is needed is gathered first, from the own Bitcoin
//! node, the own history and the body; then one pure function judges it, rule by rule:
//!
//! ```text
//! candidate + body + own prevouts + own ledger
//!    --s03 operations--> --s02 inputs--> --s04 ledger--> --s01 rebuilt--> --s05 reserves--> VerifiedBatch
//! ```
//!
//! [`VerifiedBatch`] and [`VerifiedGenesis`] have private fields and are made here and nowhere else, and
//! [`crate::vault::KeySafe::sign`] takes nothing else.
//!
//! | Rule | Where it is checked |
//! |------|---------------------|
//! | S1 sign only what is rebuilt from own data | [`s01_rebuilt`] |
//! | S2 inputs: treasury, deposits, top-ups | [`s02_inputs`], and again at the sign request in `protocol::signer` |
//! | S3 operations one to one with inputs and outputs | [`s03_operations`] |
//! | S4 digests, proofs, own replay | [`s04_ledger`] |
//! | S5 reserves and fees | [`s05_reserves`] |
//! | S7 one batch per sequence number | `protocol::signer::judge`, at the sign request |
//! | S8 data kept and passed on before a share | `protocol::signer`, carried out by [`crate::run`] |
//! | S9 a nonce serves one share | [`crate::vault`] |
//! | S10 secrets sealed at rest | [`crate::keys`] |
//! | S11 persist, then send | [`crate::promises`] |
//! | S12 strangers, sizes, rates | `p2p` at the handshake; [`crate::body`] and [`crate::held`] for what is kept |
//! | S14 unknown spend of the treasury | `node::history`, [`crate::promises`] for the alarm, `protocol::signer` |

pub mod genesis;
mod s01_rebuilt;
mod s02_inputs;
mod s03_operations;
mod s04_ledger;
mod s05_reserves;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{OutPoint, Transaction};
use chain::rpc::UnspentOutput;
use ledger::{OperationError, Transition};
use proof::VerifyingKey;
use protocol::{
    batch::{Body, Candidate},
    message::Refusal,
    transaction::{BatchTransaction, Treasury},
    vault::Vault,
};
use threshold::{GroupInfo, sign::Message};

pub use genesis::VerifiedGenesis;
pub(crate) use s05_reserves::net_fees;

use crate::settings::Caps;

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
    /// The operations, replayed on the own ledger at `head`.
    pub replay: Result<Transition, (usize, OperationError)>,
    /// Whether this operator has signed this body before, with a lower fee.
    pub is_bump: bool,
    /// The caps from the settings.
    pub caps: Caps,
    /// Miner fees less users' fees in sats, over the window of the caps, without this batch.
    pub recent_net_fees: i128,
}

/// A batch that this operator is willing to sign, with the transaction that it built itself.
#[derive(Clone, Debug)]
pub struct VerifiedBatch {
    candidate: Candidate,
    transaction: BatchTransaction,
    messages: Vec<Message>,
}

impl VerifiedBatch {
    /// The candidate.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
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
}

impl Verified {
    /// What to sign, one message a signature.
    pub fn messages(&self) -> &[Message] {
        match self {
            Self::Batch(batch) => &batch.messages,
            Self::Genesis(genesis) => genesis.messages(),
        }
    }

    /// How many signers must take part: t for a batch, all n for the genesis certificate.
    pub fn signers_needed(&self, group: &GroupInfo) -> usize {
        match self {
            Self::Batch(_) => usize::from(group.threshold()),
            Self::Genesis(_) => group.signers().len(),
        }
    }
}

/// Judges a batch: S1 to S5.
///
/// # Errors
/// The first [`Refusal`] found, cheap checks first. It names the rule, and the operation if one is at fault.
pub fn batch(evidence: &Evidence, key: &VerifyingKey) -> Result<VerifiedBatch, Refusal> {
    s03_operations::check(evidence)?;
    let inputs = s02_inputs::check(evidence)?;
    let transition = s04_ledger::check(evidence, key)?;
    let transaction = s01_rebuilt::check(evidence, &inputs, transition)?;
    s05_reserves::check(evidence, &transaction, transition)?;
    let messages = s01_rebuilt::messages(&transaction)?;
    Ok(VerifiedBatch {
        candidate: evidence.candidate.clone(),
        transaction,
        messages,
    })
}
