//! What lying coordinators propose. They are in league with the corrupt operators, who sign anything.

use std::{collections::BTreeSet, sync::Arc};

use bitcoin::Amount;
use ledger::{Operation, SequenceNumber, TransferRequest};
use protocol::{batch::Candidate, transaction::BatchTransaction};
use rand::Rng as _;

use super::{Made, Record, World, form::Draft};
use crate::signatures::Signatures;

/// Sats that a liar is after.
const GAIN: u64 = 5_000;

impl<C: Signatures> World<C> {
    /// A lying coordinator's round. Once it is calm it is silent.
    pub(super) fn lie(&mut self, coordinator: usize) -> Result<(), String> {
        let is_lying = self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| !one.is_honest && one.view.is_current());
        if !is_lying || self.is_calm() {
            return Ok(());
        }
        match self.schedule.rng.gen_range(0..12) {
            0 => self.split(coordinator),
            1..=2 => self.again(coordinator),
            3 => self.propose_shallow(coordinator),
            4..=9 => self.distort(coordinator),
            _ => Ok(()),
        }
    }

    fn publish(
        &mut self,
        coordinator: usize,
        draft: &Draft,
        built: BatchTransaction,
        to: &[usize],
    ) -> Result<(), String> {
        let body = Arc::new(draft.body(self.place));
        let candidate = self.candidate(draft, &built);
        self.publish_as(coordinator, candidate, body, built, to)
    }

    fn publish_as(
        &mut self,
        coordinator: usize,
        candidate: Candidate,
        body: Arc<protocol::batch::Body>,
        built: BatchTransaction,
        to: &[usize],
    ) -> Result<(), String> {
        let built = Arc::new(built);
        self.register(&candidate, &body, &built);
        if let Some(one) = self.coordinators.get_mut(coordinator) {
            let made = Made {
                candidate: candidate.clone(),
                built,
                signed: None,
            };
            let since = one.view.height();
            one.view.keep(&candidate, &body);
            let record = one.records.entry(candidate.sequence.0).or_insert(Record {
                status: protocol::api::BatchStatus::Proven,
                body: body.clone(),
                made: Vec::new(),
                height: None,
                since,
                stuck: None,
                refused_by: BTreeSet::new(),
            });
            record.made.push(made);
        }
        self.propose(coordinator, &candidate, &body, to)
    }

    /// One batch to some operators, another one to the others: both are right, and only one may be paid.
    fn split(&mut self, coordinator: usize) -> Result<(), String> {
        let needed = self.place.vault.parameters().deposit_confirmations;
        let Some(draft) = self.draft(coordinator, needed) else {
            return Ok(());
        };
        let fee = self.fee(&draft);
        let mut shorter = draft.clone();
        if let Some(Operation::Deposit { .. }) = shorter.operations.pop() {
            shorter.deposits.pop();
        }
        let everybody = self.everybody();
        let half = everybody.len().div_ceil(2);
        let (one, other) = everybody.split_at(half);
        if let Some(built) = draft.build(self.place, fee) {
            self.publish(coordinator, &draft, built, one)?;
        }
        let Some(shorter) = self.replayed(shorter) else {
            return Ok(());
        };
        match shorter.build(self.place, fee) {
            Some(built) => self.publish(coordinator, &shorter, built, other),
            None => Ok(()),
        }
    }

    /// The digests that a changed list of operations gives.
    fn replayed(&mut self, mut draft: Draft) -> Option<Draft> {
        if draft.operations.is_empty() {
            return None;
        }
        let replay = self.books.replay(
            &draft.head.commitment.digest,
            &draft.operations,
            draft.next.sequence,
        )?;
        let replayed = replay.ok()?;
        draft.next.supply = replayed.transition.after.supply;
        draft.next.digest = replayed.after;
        draft.digests.clone_from(&replayed.digests);
        Some(draft)
    }

    fn fee(&self, draft: &Draft) -> Amount {
        let free = draft.build(self.place, Amount::ZERO);
        let vbytes = free.map_or(0, |free| free.weight().to_vbytes_ceil());
        Amount::from_sat(self.rate().saturating_mul(vbytes).div_ceil(1_000))
    }

    /// What was proposed before, once more, or on a treasury of long ago.
    fn again(&mut self, coordinator: usize) -> Result<(), String> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let all: Vec<(Candidate, Arc<protocol::batch::Body>)> =
            one.view.batches.values().cloned().collect();
        if all.is_empty() {
            return Ok(());
        }
        let which = self.schedule.rng.gen_range(0..all.len());
        let everybody = self.everybody();
        match all.get(which) {
            Some((candidate, body)) => self.propose(coordinator, candidate, body, &everybody),
            None => Ok(()),
        }
    }

    /// Deposits that could still be taken out of the chain.
    fn propose_shallow(&mut self, coordinator: usize) -> Result<(), String> {
        let Some(draft) = self.draft(coordinator, 0) else {
            return Ok(());
        };
        let fee = self.fee(&draft);
        let everybody = self.everybody();
        match draft.build(self.place, fee) {
            Some(built) => self.publish(coordinator, &draft, built, &everybody),
            None => Ok(()),
        }
    }

    /// A batch in which one thing is wrong.
    fn distort(&mut self, coordinator: usize) -> Result<(), String> {
        let needed = self.place.vault.parameters().deposit_confirmations;
        let Some(mut draft) = self.draft(coordinator, needed) else {
            return Ok(());
        };
        let mut fee = self.fee(&draft);
        let what = self.schedule.rng.gen_range(0..8);
        match what {
            // Another digest, a larger supply.
            0 => {
                draft.next.digest = draft.head.commitment.digest;
                if let Some(last) = draft.digests.last_mut() {
                    *last = draft.next.digest;
                }
            }
            1 => {
                draft.next.supply =
                    Amount::from_sat(draft.next.supply.to_sat().saturating_add(GAIN));
            }
            // More credit than was paid.
            2 => {
                for operation in &mut draft.operations {
                    if let Operation::Deposit { amount, .. } = operation {
                        *amount = Amount::from_sat(amount.to_sat().saturating_add(GAIN));
                    }
                }
            }
            // All of the surplus, and more, to the miners.
            3 => {
                let surplus = draft.head.value.to_sat();
                let owed = draft.next.supply.to_sat().min(surplus);
                fee = Amount::from_sat(surplus.saturating_sub(owed).saturating_add(GAIN));
            }
            // A payment that costs nothing.
            4 => self.add_free_transfer(&mut draft),
            _ => {}
        }
        if matches!(what, 2 | 4) {
            match self.replayed(draft) {
                Some(replayed) => draft = replayed,
                None => return Ok(()),
            }
        }
        let Some(mut built) = draft.build(self.place, fee) else {
            return Ok(());
        };
        let mut body = draft.body(self.place);
        // A payment that no operation asks for; a proof of something else; money to another key.
        match what {
            5 => {
                let gain = Amount::from_sat(GAIN);
                if let Some(treasury) = built.unsigned.output.first_mut() {
                    treasury.value = treasury.value.checked_sub(gain).unwrap_or(treasury.value);
                }
                let script = bitcoin::ScriptBuf::from_bytes(vec![0x53]);
                built.unsigned.output.push(bitcoin::TxOut {
                    value: gain,
                    script_pubkey: script,
                });
            }
            6 => body.proofs.iter_mut().for_each(|proof| proof.push(0)),
            7 => {
                if let Some(treasury) = built.unsigned.output.first_mut() {
                    treasury.script_pubkey = bitcoin::ScriptBuf::from_bytes(vec![0x54]);
                }
            }
            _ => {}
        }
        let candidate = Candidate {
            body: body.hash(),
            ..self.candidate(&draft, &built)
        };
        self.note(|| {
            format!(
                "coordinator {coordinator} lies ({what}): {}",
                candidate.txid
            )
        });
        let everybody = self.everybody();
        self.publish_as(coordinator, candidate, Arc::new(body), built, &everybody)
    }

    fn add_free_transfer(&mut self, draft: &mut Draft) {
        let Some(ledger) = self.books.ledger(&draft.head.commitment.digest) else {
            return;
        };
        let vault = self.place.vault.id();
        for user in &self.place.users {
            let Some((index, account)) = ledger.account_by_key(&user.account) else {
                continue;
            };
            let free = TransferRequest {
                sender: index,
                nonce: account.nonce,
                amount: Amount::ONE_SAT,
                fee: Amount::ZERO,
                recipient: user.account,
                last_valid: SequenceNumber(u64::MAX),
            };
            draft
                .operations
                .retain(|operation| !Self::is_signed(operation));
            draft.operations.push(free.sign(&user.secret, &vault));
            return;
        }
    }
}
