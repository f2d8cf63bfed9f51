//! The batch transaction: built the same way by whoever needs it, from data of their own (S1).
//!
//! ```text
//! inputs:  0 treasury | one a deposit, in operation order | top-ups, in outpoint order
//! outputs: 0 next treasury | 1 OP_RETURN commitment | one a withdrawal, in operation order
//! ```

use bitcoin::{
    Amount, OutPoint, Script, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut,
    Weight, Witness,
    absolute::LockTime,
    hashes::Hash as _,
    opcodes::all::OP_RETURN,
    script::{Builder, Instruction, PushBytesBuf},
    secp256k1::schnorr,
    sighash::{Prevouts, SighashCache},
    taproot,
    transaction::Version,
};
use ledger::SequenceNumber;
use serde::{Deserialize, Serialize};
use threshold::sign::{Message, Tweak};

use crate::{deposit::DepositAddress, vault::VaultKey};

/// First bytes of every commitment.
pub const MAGIC: [u8; 4] = *b"DRWB";
/// Version of the commitment's layout.
pub const COMMITMENT_VERSION: u8 = 1;
/// Bytes in a commitment: magic, version, sequence number, supply, digest.
pub const COMMITMENT_BYTES: usize = 4 + 1 + 8 + 8 + 32;
/// Dust limit of a P2TR output in sats, at Bitcoin Core's default dust relay fee.
pub const TREASURY_DUST: Amount = Amount::from_sat(330);
/// Largest standard transaction (`MAX_STANDARD_TX_WEIGHT` in Bitcoin Core).
pub const MAX_WEIGHT: Weight = Weight::from_wu(400_000);

/// What output 1 of a batch says of the ledger after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Number of batches since genesis, this one included.
    pub sequence: SequenceNumber,
    /// Sum of all balances.
    pub supply: Amount,
    /// Digest of the ledger's state (canonical little-endian field element).
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
}

impl Commitment {
    /// The OP_RETURN script.
    pub fn script(&self) -> ScriptBuf {
        let mut bytes = Vec::with_capacity(COMMITMENT_BYTES);
        bytes.extend(MAGIC);
        bytes.push(COMMITMENT_VERSION);
        bytes.extend(self.sequence.0.to_be_bytes());
        bytes.extend(self.supply.to_sat().to_be_bytes());
        bytes.extend(self.digest);
        let mut push = PushBytesBuf::with_capacity(bytes.len());
        // 53 bytes always fit into a push.
        let _ = push.extend_from_slice(&bytes);
        Builder::new()
            .push_opcode(OP_RETURN)
            .push_slice(push)
            .into_script()
    }

    /// Reads [`Self::script`] back; `None` for any other script, also for one that pushes the same bytes otherwise.
    pub fn parse(script: &Script) -> Option<Self> {
        let mut instructions = script.instructions();
        let Some(Ok(Instruction::Op(OP_RETURN))) = instructions.next() else {
            return None;
        };
        let Some(Ok(Instruction::PushBytes(push))) = instructions.next() else {
            return None;
        };
        if instructions.next().is_some() {
            return None;
        }
        let bytes: &[u8; COMMITMENT_BYTES] = push.as_bytes().try_into().ok()?;
        let (_magic_and_version, rest) = bytes.split_first_chunk::<5>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (supply, digest) = rest.split_first_chunk::<8>()?;
        let commitment = Self {
            sequence: SequenceNumber(u64::from_be_bytes(*sequence)),
            supply: Amount::from_sat(u64::from_be_bytes(*supply)),
            digest: digest.try_into().ok()?,
        };
        (commitment.script().as_script() == script).then_some(commitment)
    }
}

/// The UTXO that holds all of the vault's money, with the ledger's state that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treasury {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    pub value: Amount,
    /// The ledger at this point. Sequence number 0 and supply 0 at genesis.
    pub commitment: Commitment,
}

impl Treasury {
    /// Reads the next treasury from a transaction that spends this one; `None` when it is no batch of
    /// the vault that follows this one (S14).
    pub fn next(&self, vault: &VaultKey, transaction: &Transaction) -> Option<Self> {
        let [output, note, ..] = transaction.output.as_slice() else {
            return None;
        };
        let commitment = Commitment::parse(&note.script_pubkey)?;
        let follows = self.commitment.sequence.0.checked_add(1) == Some(commitment.sequence.0);
        let spends = transaction
            .input
            .first()
            .is_some_and(|input| input.previous_output == self.outpoint);
        (follows && spends && output.script_pubkey == *vault.script_pubkey()).then(|| Self {
            outpoint: OutPoint::new(transaction.compute_txid(), 0),
            value: output.value,
            commitment,
        })
    }
}

/// A deposit that a batch sweeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// The deposit.
    pub outpoint: OutPoint,
    /// Its amount on the chain.
    pub value: Amount,
    /// Its address.
    pub address: DepositAddress,
}

/// A UTXO that pays the vault directly and credits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopUp {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Its amount.
    pub value: Amount,
}

/// All that determines a batch transaction.
#[derive(Clone, Copy, Debug)]
pub struct BatchPlan<'a> {
    /// Input 0.
    pub treasury: &'a Treasury,
    /// Next inputs, in operation order.
    pub deposits: &'a [Swept],
    /// Last inputs, in outpoint order.
    pub top_ups: &'a [TopUp],
    /// Payouts, in operation order.
    pub withdrawals: &'a [TxOut],
    /// Output 1.
    pub next: Commitment,
    /// Miner fee.
    pub fee: Amount,
}

/// Why a plan gives no transaction.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// Inputs don't cover payouts, fee and the smallest treasury.
    #[error("the treasury can't pay this batch: {available} at hand, {needed} needed")]
    Insufficient {
        /// Sum of the inputs.
        available: Amount,
        /// Payouts, fee and dust limit.
        needed: Amount,
    },
    /// A sum left the range of 64 bits.
    #[error("amounts overflow")]
    Overflow,
    /// Top-ups are not in strictly ascending outpoint order.
    #[error("top-ups are not in outpoint order")]
    TopUpOrder,
    /// Heavier than a standard transaction.
    #[error("the transaction weighs {0}, more than the standard {MAX_WEIGHT}")]
    TooHeavy(Weight),
    /// The sighash could not be computed.
    #[error("sighash: {0}")]
    Sighash(String),
    /// A signature is missing or one too many.
    #[error("{got} signatures for {inputs} inputs")]
    Signatures {
        /// Signatures handed in.
        got: usize,
        /// Inputs of the transaction.
        inputs: usize,
    },
}

/// An unsigned batch transaction with what is needed to sign it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchTransaction {
    /// Without witnesses.
    pub unsigned: Transaction,
    /// The output that each input spends.
    pub prevouts: Vec<TxOut>,
    /// How GROUP is tweaked for each input.
    pub tweaks: Vec<Tweak>,
    /// The treasury that it makes.
    pub treasury: Treasury,
    /// The miner fee.
    pub fee: Amount,
}

impl BatchTransaction {
    /// Builds the one transaction that a plan means.
    ///
    /// # Errors
    /// [`BuildError`] when amounts don't work out or the transaction would not be standard.
    pub fn build(vault: &VaultKey, plan: &BatchPlan<'_>) -> Result<Self, BuildError> {
        let mut prevouts = vec![TxOut {
            value: plan.treasury.value,
            script_pubkey: vault.script_pubkey().clone(),
        }];
        let mut outpoints = vec![plan.treasury.outpoint];
        let mut tweaks = vec![*vault.tweak()];
        for deposit in plan.deposits {
            prevouts.push(TxOut {
                value: deposit.value,
                script_pubkey: deposit.address.script_pubkey.clone(),
            });
            outpoints.push(deposit.outpoint);
            tweaks.push(deposit.address.tweak);
        }
        if !plan.top_ups.is_sorted_by(|a, b| a.outpoint < b.outpoint) {
            return Err(BuildError::TopUpOrder);
        }
        for top_up in plan.top_ups {
            prevouts.push(TxOut {
                value: top_up.value,
                script_pubkey: vault.script_pubkey().clone(),
            });
            outpoints.push(top_up.outpoint);
            tweaks.push(*vault.tweak());
        }
        let available = sum(prevouts.iter().map(|output| output.value))?;
        let paid = sum(plan
            .withdrawals
            .iter()
            .map(|output| output.value)
            .chain([plan.fee]))?;
        let needed = paid
            .checked_add(TREASURY_DUST)
            .ok_or(BuildError::Overflow)?;
        let value = available
            .checked_sub(paid)
            .filter(|value| *value >= TREASURY_DUST)
            .ok_or(BuildError::Insufficient { available, needed })?;
        let mut output = vec![
            TxOut {
                value,
                script_pubkey: vault.script_pubkey().clone(),
            },
            TxOut {
                value: Amount::ZERO,
                script_pubkey: plan.next.script(),
            },
        ];
        output.extend_from_slice(plan.withdrawals);
        let unsigned = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: outpoints.into_iter().map(input).collect(),
            output,
        };
        let treasury = Treasury {
            outpoint: OutPoint::new(unsigned.compute_txid(), 0),
            value,
            commitment: plan.next,
        };
        let built = Self {
            unsigned,
            prevouts,
            tweaks,
            treasury,
            fee: plan.fee,
        };
        let weight = built.weight();
        if weight > MAX_WEIGHT {
            return Err(BuildError::TooHeavy(weight));
        }
        Ok(built)
    }

    /// Weight once it is signed: each input gets one 64-byte signature (sighash type default).
    pub fn weight(&self) -> Weight {
        // Segwit marker and flag: 2. A witness: count 1, length 1, signature 64.
        let witnesses = u64::try_from(self.prevouts.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(66)
            .saturating_add(2);
        // Without any witness rust-bitcoin serializes, and so weighs, the legacy form.
        self.unsigned.weight() + Weight::from_wu(witnesses)
    }

    /// What the operators sign: one BIP-341 key-path sighash (default type) an input.
    ///
    /// # Errors
    /// [`BuildError::Sighash`], which own data can't cause.
    pub fn messages(&self) -> Result<Vec<Message>, BuildError> {
        let mut cache = SighashCache::new(&self.unsigned);
        let prevouts = Prevouts::All(&self.prevouts);
        self.tweaks
            .iter()
            .enumerate()
            .map(|(index, tweak)| {
                let sighash = cache
                    .taproot_key_spend_signature_hash(index, &prevouts, TapSighashType::Default)
                    .map_err(|error| BuildError::Sighash(error.to_string()))?;
                Ok(Message {
                    digest: sighash.to_byte_array(),
                    tweak: *tweak,
                })
            })
            .collect()
    }

    /// The transaction with its witnesses.
    ///
    /// # Errors
    /// [`BuildError::Signatures`] when their number is not that of the inputs.
    pub fn complete(&self, signatures: &[schnorr::Signature]) -> Result<Transaction, BuildError> {
        let inputs = self.unsigned.input.len();
        if signatures.len() != inputs {
            return Err(BuildError::Signatures {
                got: signatures.len(),
                inputs,
            });
        }
        let mut transaction = self.unsigned.clone();
        for (input, signature) in transaction.input.iter_mut().zip(signatures) {
            input.witness = Witness::p2tr_key_spend(&taproot::Signature {
                signature: *signature,
                sighash_type: TapSighashType::Default,
            });
        }
        Ok(transaction)
    }
}

fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    }
}

/// Checked sum of amounts.
///
/// # Errors
/// [`BuildError::Overflow`].
pub fn sum(amounts: impl IntoIterator<Item = Amount>) -> Result<Amount, BuildError> {
    amounts
        .into_iter()
        .try_fold(Amount::ZERO, Amount::checked_add)
        .ok_or(BuildError::Overflow)
}
