//! A batch before it is proposed. Everything in it can be changed; what follows from the rest (digests, proofs,
//! transaction, hashes) is then made to fit, so that one lie breaks one rule and not ten.

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};
use ledger::{Digest, Operation, SequenceNumber, VaultId};
use protocol::{
    batch::{Body, Candidate},
    deposit::DepositTerms,
    message::Subject,
    transaction::{Commitment, TopUp},
};

use super::{
    course::{self, Course, Placement},
    standing::Standing,
};

/// Where the proofs of a lie come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proofs {
    /// The honest proposal's: the lie is in something that the proofs don't speak of, or it has none of its own.
    Kept,
    /// Made anew for what the lie says, and valid: another rule has to catch it.
    Remade,
}

/// A batch in the making.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The vault that body and candidate name.
    pub vault: VaultId,
    /// The sequence number that body and candidate name.
    pub sequence: SequenceNumber,
    /// Input 0.
    pub parent: OutPoint,
    /// In ledger order.
    pub operations: Vec<Operation>,
    /// Terms of the deposits, in their order.
    pub terms: Vec<DepositTerms>,
    /// What the deposits' outputs are said to hold, in their order.
    pub values: Vec<Amount>,
    /// Other outputs of the vault.
    pub top_ups: Vec<TopUp>,
    /// Miner fee.
    pub fee: Amount,
    /// Where credited accounts go in the tree.
    pub placement: Placement,
    /// The vault that the proofs are made for.
    pub proven_for: VaultId,
}

/// A draft with all that follows from it.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// What is gossiped.
    pub candidate: Candidate,
    /// What is served under the candidate's hash; `None` to serve nothing.
    pub body: Option<Vec<u8>>,
    /// The transaction that the candidate's txid names.
    pub transaction: Transaction,
}

impl Draft {
    /// What its operations do to the ledger.
    pub fn course(&self, standing: &Standing) -> Course {
        course::run(
            standing.ledger.accounts(),
            &self.operations,
            &self.proven_for,
            self.placement,
        )
    }

    /// The transaction that it means, whether or not the amounts work out.
    pub fn transaction(&self, standing: &Standing, supply: Amount, digest: Digest) -> Transaction {
        let deposits = self
            .operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Deposit { outpoint, .. } => Some(*outpoint),
                _ => None,
            });
        let payouts: Vec<TxOut> = self
            .operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Withdraw {
                    amount,
                    script_pubkey,
                    ..
                } => Some(TxOut {
                    value: *amount,
                    script_pubkey: script_pubkey.clone(),
                }),
                _ => None,
            })
            .collect();
        let sum = |amounts: &mut dyn Iterator<Item = Amount>| {
            amounts.fold(0_u64, |sum, amount| sum.saturating_add(amount.to_sat()))
        };
        let available = sum(&mut [standing.head.value]
            .into_iter()
            .chain(self.values.iter().copied())
            .chain(self.top_ups.iter().map(|top_up| top_up.value)));
        let paid = sum(&mut payouts.iter().map(|output| output.value).chain([self.fee]));
        let note = Commitment {
            sequence: self.sequence,
            supply,
            digest: digest.to_bytes(),
        };
        let mut output = vec![
            TxOut {
                value: Amount::from_sat(available.saturating_sub(paid)),
                script_pubkey: standing.vault.script_pubkey().clone(),
            },
            TxOut {
                value: Amount::ZERO,
                script_pubkey: note.script(),
            },
        ];
        output.extend(payouts);
        let outpoints = [self.parent]
            .into_iter()
            .chain(deposits)
            .chain(self.top_ups.iter().map(|top_up| top_up.outpoint));
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: outpoints.map(input).collect(),
            output,
        }
    }

    /// Makes the proposal. `kept` are the honest proposal's proofs.
    ///
    /// # Errors
    /// When there is no proof of what it claims.
    pub async fn seal(
        &self,
        standing: &Standing,
        proofs: Proofs,
        kept: &[Vec<u8>],
    ) -> anyhow::Result<Proposal> {
        let course = self.course(standing);
        let proofs = match proofs {
            Proofs::Remade => standing
                .prove(course.chunks)
                .await?
                .iter()
                .map(|proof| proof.to_bytes().to_vec())
                .collect(),
            Proofs::Kept => kept
                .iter()
                .cycle()
                .take(course.chunks.len())
                .cloned()
                .collect(),
        };
        let body = Body {
            vault: self.vault,
            sequence: self.sequence,
            operations: self.operations.clone(),
            terms: self.terms.clone(),
            digests: course.digests.iter().map(Digest::to_bytes).collect(),
            proofs,
        };
        let end = course.digests.last().copied().unwrap_or_default();
        let transaction = self.transaction(standing, course.supply, end);
        Ok(Proposal {
            candidate: Candidate {
                vault: self.vault,
                sequence: self.sequence,
                parent: self.parent,
                body: body.hash(),
                top_ups: self.top_ups.iter().map(|top_up| top_up.outpoint).collect(),
                fee: self.fee,
                txid: transaction.compute_txid(),
            },
            body: Some(body.encode()),
            transaction,
        })
    }
}

impl Proposal {
    /// What is proposed.
    pub fn subject(&self) -> Subject {
        Subject::Batch(self.candidate.clone())
    }

    /// Changes the transaction; the candidate names the changed one.
    pub fn with_transaction(&mut self, change: impl FnOnce(&mut Transaction)) {
        change(&mut self.transaction);
        self.candidate.txid = self.transaction.compute_txid();
    }

    /// Changes the body; the candidate names the changed one.
    pub fn with_body(&mut self, change: impl FnOnce(&mut Body)) {
        let body = self.body.as_deref().map(Body::decode);
        if let Some(Ok(mut body)) = body {
            change(&mut body);
            self.with_body_bytes(|bytes| *bytes = body.encode());
        }
    }

    /// Changes the body's bytes; the candidate names the changed ones.
    pub fn with_body_bytes(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let bytes = self.body.get_or_insert_default();
        change(bytes);
        self.candidate.body = Body::hash_encoded(bytes);
    }
}

/// An input as the vault's transactions have it.
pub fn input(previous_output: OutPoint) -> TxIn {
    TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    }
}
