use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid};
use ledger::{Ledger, SequenceNumber};
use protocol::{
    batch::{BatchHash, Body, BodyHash, Candidate},
    invariants::Violation,
    transaction::{Commitment, TREASURY_DUST, Treasury},
    vault::Vault,
};

use crate::vault::chain::Coin;

fn broken(rule: &str, what: impl std::fmt::Display) -> Violation {
    Violation {
        invariant: "shares",
        what: format!("{rule}: {what}"),
    }
}

/// An honest operator's verdict that a batch may be signed, judged anew from outside: by the transaction that would be
/// signed, and by what is true at that moment.
pub struct Verdict<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// What is accepted.
    pub candidate: &'a Candidate,
    /// Its body.
    pub body: &'a Body,
    /// The transaction that has its txid, if anybody has ever built one.
    pub transaction: Option<&'a Transaction>,
    /// The latest treasury that this operator holds canonical.
    pub head: Treasury,
    /// The coins that it spends, but for the treasury, with their confirmations.
    pub coins: BTreeMap<OutPoint, (Coin, u32)>,
    /// The ledger after its operations; `None` if they can't be carried out.
    pub after: Option<&'a Ledger>,
}

impl Verdict<'_> {
    /// S1 to S5, as they stand in the design, and S13.
    ///
    /// # Errors
    /// [`Violation`] that names the rule.
    pub fn check(&self) -> Result<(), Violation> {
        let transaction = self
            .transaction
            .ok_or_else(|| broken("S1", "there is no transaction with that id"))?;
        let inputs = self.inputs(transaction)?;
        self.operations(transaction)?;
        self.ledger(transaction)?;
        let out = transaction.output.iter().map(|output| output.value);
        let out = out.fold(Amount::ZERO, |sum, value| sum + value);
        if inputs.checked_sub(out) != Some(self.candidate.fee) {
            return Err(broken("S1", "the fee is not the one that is stated"));
        }
        Ok(())
    }

    /// S2. Gives what they hold.
    fn inputs(&self, transaction: &Transaction) -> Result<Amount, Violation> {
        let spent: Vec<OutPoint> = transaction
            .input
            .iter()
            .map(|input| input.previous_output)
            .collect();
        let deposits = self.body.deposits().map(|(outpoint, _)| *outpoint);
        let meant: Vec<OutPoint> = std::iter::once(self.head.outpoint)
            .chain(deposits)
            .chain(self.candidate.top_ups.iter().copied())
            .collect();
        if spent != meant {
            return Err(broken(
                "S2",
                "the inputs are not treasury, deposits, top-ups",
            ));
        }
        let parameters = self.vault.parameters();
        let mut sum = self.head.value;
        for outpoint in spent.iter().skip(1) {
            let (coin, confirmations) = self
                .coins
                .get(outpoint)
                .ok_or_else(|| broken("S2", format!("{outpoint} is not unspent")))?;
            if *confirmations < parameters.deposit_confirmations {
                return Err(broken(
                    "S2",
                    format!("{outpoint} has {confirmations} blocks"),
                ));
            }
            sum += coin.output.value;
        }
        for ((outpoint, amount), terms) in self.body.deposits().zip(&self.body.terms) {
            let due = self
                .coins
                .get(outpoint)
                .and_then(|(coin, _)| coin.output.value.checked_sub(parameters.deposit_fee));
            if due != Some(amount) || terms.fee != parameters.deposit_fee {
                return Err(broken(
                    "S3",
                    format!("{outpoint} credits {amount} for {due:?}"),
                ));
            }
        }
        Ok(sum)
    }

    /// S3.
    fn operations(&self, transaction: &Transaction) -> Result<(), Violation> {
        let paid: &[TxOut] = transaction.output.get(2..).unwrap_or_default();
        if paid != self.body.withdrawals().as_slice() {
            return Err(broken("S3", "the outputs are not the withdrawals"));
        }
        for operation in &self.body.operations {
            let least = self.vault.parameters().smallest_fee(operation);
            let is_over = operation
                .last_valid()
                .is_some_and(|last| last < self.candidate.sequence);
            if operation.fee() < least || is_over {
                return Err(broken("S3", "an operation has expired, or pays too little"));
            }
        }
        if self.body.operations.is_empty() {
            return Err(broken("S3", "an empty batch"));
        }
        Ok(())
    }

    /// S4, S5 and S13.
    fn ledger(&self, transaction: &Transaction) -> Result<(), Violation> {
        let [treasury, note, ..] = transaction.output.as_slice() else {
            return Err(broken("S4", "no treasury and commitment"));
        };
        let commitment = Commitment::parse(&note.script_pubkey);
        let after = self
            .after
            .ok_or_else(|| broken("S4", "the operations can't be carried out"))?;
        let meant = Commitment {
            sequence: SequenceNumber(self.head.commitment.sequence.0 + 1),
            supply: after.supply(),
            digest: after.digest().to_bytes(),
        };
        if commitment != Some(meant) {
            return Err(broken(
                "S4",
                "the commitment is not what the operations give",
            ));
        }
        if self.body.digests.last() != Some(&meant.digest)
            || self
                .body
                .proofs
                .iter()
                .any(|proof| !crate::vault::world::is_proof(proof))
        {
            return Err(broken("S4", "a wrong digest or proof"));
        }
        if treasury.value < meant.supply || treasury.value < TREASURY_DUST {
            return Err(broken("S5", "the treasury would not cover the supply"));
        }
        if treasury.script_pubkey != *self.vault.script_pubkey() {
            return Err(broken("S13", "output 0 does not pay the vault"));
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Share {
    batch: BatchHash,
    body: BodyHash,
    fee: Amount,
    txid: Txid,
    /// Height of the operator's chain when it first signed this batch without having signed another since.
    first: u32,
}

/// S7 as seen from outside: for what one operator has given shares, whatever it remembers of it.
#[derive(Debug, Default)]
pub struct Given(BTreeMap<(SequenceNumber, OutPoint), Vec<Share>>);

impl Given {
    /// A share for this candidate of that batch leaves. `is_lost` says whether a body can't be confirmed any more.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn share(
        &mut self,
        candidate: &Candidate,
        batch: BatchHash,
        height: u32,
        replacement_delay: u32,
        is_lost: impl Fn(&BodyHash) -> bool,
    ) -> Result<(), Violation> {
        let given = self
            .0
            .entry((candidate.sequence, candidate.parent))
            .or_default();
        let mut first = height;
        if let Some(last) = given.last() {
            if last.txid == candidate.txid {
                first = last.first;
            } else if last.batch == batch {
                let is_soon = height.saturating_sub(last.first) < replacement_delay;
                if candidate.fee > last.fee {
                    first = last.first;
                } else if is_soon {
                    return Err(broken("S7", "a replacement that does not pay more"));
                }
            } else if height.saturating_sub(last.first) < replacement_delay && !is_lost(&last.body)
            {
                return Err(broken(
                    "S7",
                    format!(
                        "batch {batch} is signed at height {height}, {} was at {}",
                        last.batch, last.first
                    ),
                ));
            }
        }
        given.push(Share {
            batch,
            body: candidate.body,
            fee: candidate.fee,
            txid: candidate.txid,
            first,
        });
        Ok(())
    }
}
