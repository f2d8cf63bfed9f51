//! The next batch of a coordinator, and its replacement with a higher fee.

use std::{collections::BTreeSet, sync::Arc};

use bitcoin::{Amount, FeeRate, OutPoint, Weight, Wtxid, hashes::Hash as _};
use chain::{
    fees::FeeSettings,
    replace::{Raise, Replaced, Signed, raise},
    rpc::MempoolEntry,
};
use ledger::{Operation, SequenceNumber};
use protocol::{
    api::BatchStatus,
    batch::{Body, Candidate, MAX_TOP_UPS},
    pipeline::{self, Input},
    transaction::{BatchPlan, BatchTransaction, Commitment, Swept, TopUp, Treasury},
};

use super::{Made, PROOF, Record, World, users::key_of};
use crate::{signatures::Signatures, vault::place::Place};

/// How coordinators price replacements.
const FEES: FeeSettings = FeeSettings {
    target_blocks: 2,
    margin_percent: 0,
    floor_sat_per_vb: 1,
    ceiling_sat_per_vb: 200,
    fallback_sat_per_vb: None,
    bump_after_blocks: 2,
    bump_percent: 25,
};

/// All that a batch transaction is made of, but its fee.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) head: Treasury,
    pub(super) operations: Vec<Operation>,
    pub(super) deposits: Vec<Swept>,
    pub(super) top_ups: Vec<TopUp>,
    pub(super) next: Commitment,
    pub(super) digests: Vec<[u8; 32]>,
    /// What each of its proofs is.
    proof: Vec<u8>,
}

impl Draft {
    /// The transaction with this fee.
    pub(super) fn build(&self, place: &Place, fee: Amount) -> Option<BatchTransaction> {
        let withdrawals = self.body(place).withdrawals();
        let plan = BatchPlan {
            treasury: &self.head,
            deposits: &self.deposits,
            top_ups: &self.top_ups,
            withdrawals: &withdrawals,
            next: self.next,
            fee,
        };
        BatchTransaction::build(place.vault.key(), &plan).ok()
    }

    /// The body.
    pub(super) fn body(&self, place: &Place) -> Body {
        Body {
            vault: place.vault.id(),
            sequence: self.next.sequence,
            operations: self.operations.clone(),
            terms: self
                .deposits
                .iter()
                .map(|deposit| deposit.address.terms.clone())
                .collect(),
            digests: self.digests.clone(),
            proofs: vec![self.proof.clone(); self.digests.len().saturating_sub(1)],
        }
    }
}

impl<C: Signatures> World<C> {
    /// Forms the next batch, if there is anything to put into it, and has it signed.
    pub(super) fn form(&mut self, coordinator: usize) -> Result<(), String> {
        let needed = self.place.vault.parameters().deposit_confirmations;
        let Some(draft) = self.draft(coordinator, needed) else {
            return Ok(());
        };
        let Some((candidate, built)) = self.price(&draft) else {
            self.note(|| format!("coordinator {coordinator} waits for a top-up"));
            return Ok(());
        };
        let body = Arc::new(draft.body(self.place));
        self.register(&candidate, &body, &built);
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return Ok(());
        };
        let sequence = candidate.sequence.0;
        for operation in &body.operations {
            if let Some(asked) = key_of(operation).and_then(|key| one.requests.get_mut(&key)) {
                asked.in_batch = Some(sequence);
            }
        }
        let status = pipeline::step(BatchStatus::Formed, Input::Proven)
            .map_err(|reject| reject.to_string())?
            .map_or(BatchStatus::Formed, |next| next.batch);
        let record = Record {
            status,
            body: body.clone(),
            made: vec![Made {
                candidate: candidate.clone(),
                built,
                signed: None,
            }],
            height: None,
            since: one.view.height(),
            stuck: None,
            refused_by: BTreeSet::new(),
        };
        one.view.keep(&candidate, &body);
        one.records.insert(sequence, record);
        one.running = None;
        let everybody = self.everybody();
        self.propose(coordinator, &candidate, &body, &everybody)
    }

    /// Whatever any coordinator makes is known to the invariants.
    pub(super) fn register(
        &mut self,
        candidate: &Candidate,
        body: &Arc<Body>,
        built: &Arc<BatchTransaction>,
    ) {
        let batch = (candidate.clone(), body.clone());
        self.truth.keep(candidate, body);
        self.carried
            .entry(candidate.body)
            .or_insert_with(|| Arc::new(body.operation_ids().collect()));
        self.registry.insert(candidate.txid, (batch, built.clone()));
    }

    /// The operations that can be in the next batch, and all that follows from them.
    pub(super) fn draft(&mut self, coordinator: usize, confirmations: u32) -> Option<Draft> {
        let one = self.coordinators.get(coordinator)?;
        let (head, digest) = (one.view.head(), one.view.digest());
        let mut deposits = self.ripe(confirmations);
        let most = usize::from(self.place.vault.parameters().max_operations);
        deposits.truncate(most);
        let mut operations: Vec<Operation> = deposits
            .iter()
            .filter_map(|swept| {
                Some(Operation::Deposit {
                    account: swept.address.terms.account,
                    amount: swept.address.terms.credited(swept.value)?,
                    outpoint: swept.outpoint,
                })
            })
            .collect();
        operations.extend(self.queued(coordinator));
        operations.truncate(most);
        let sequence = SequenceNumber(head.commitment.sequence.0.saturating_add(1));
        let replayed = loop {
            if operations.is_empty() {
                return None;
            }
            match self.books.replay(&digest, &operations, sequence)? {
                Ok(replayed) => break replayed,
                // It waits, or is never carried out: the others go on.
                Err((index, _)) => drop(operations.remove(index.min(operations.len() - 1))),
            }
        };
        let credits = |outpoint: &OutPoint| {
            operations.iter().any(|operation| {
                matches!(operation, Operation::Deposit { outpoint: other, .. } if other == outpoint)
            })
        };
        deposits.retain(|swept| credits(&swept.outpoint));
        let next = Commitment {
            sequence,
            supply: replayed.transition.after.supply,
            digest: replayed.after,
        };
        Some(Draft {
            head,
            operations,
            deposits,
            top_ups: self.ripe_top_ups(&head),
            next,
            digests: replayed.digests.clone(),
            proof: [PROOF, &self.sent.to_le_bytes()].concat(),
        })
    }

    /// Deposits that are deep enough, and far enough from their refund.
    fn ripe(&self, confirmations: u32) -> Vec<Swept> {
        let parameters = self.place.vault.parameters();
        let margin =
            u32::from(parameters.replacement_delay).saturating_add(parameters.bump_window.into());
        let by_script = &self.place.by_script;
        let coins = self
            .chain
            .coins_of(|output| by_script.contains_key(&output.script_pubkey));
        coins
            .into_iter()
            .filter_map(|(outpoint, coin)| {
                let depth = self.chain.confirmations(&coin);
                let user = by_script.get(&coin.output.script_pubkey)?;
                let address = self.place.users.get(*user)?.address.clone();
                address.terms.credited(coin.output.value)?;
                let is_ripe = depth >= confirmations
                    && depth.saturating_add(margin) <= u32::from(parameters.refund_delay);
                is_ripe.then_some(Swept {
                    outpoint,
                    value: coin.output.value,
                    address,
                })
            })
            .collect()
    }

    fn ripe_top_ups(&self, head: &Treasury) -> Vec<TopUp> {
        let parameters = self.place.vault.parameters();
        let script = self.place.vault.script_pubkey();
        let coins = self
            .chain
            .coins_of(|output| output.script_pubkey == *script);
        coins
            .into_iter()
            .filter(|(outpoint, coin)| {
                *outpoint != head.outpoint
                    && !self.is_treasury(outpoint)
                    && self.chain.confirmations(coin) >= parameters.deposit_confirmations
            })
            .map(|(outpoint, coin)| TopUp {
                outpoint,
                value: coin.output.value,
            })
            .take(MAX_TOP_UPS)
            .collect()
    }

    /// The transaction with the fee that its weight asks for, or that replaces what waits in the mempool; `None` if the
    /// surplus does not cover it.
    fn price(&self, draft: &Draft) -> Option<(Candidate, Arc<BatchTransaction>)> {
        let free = draft.build(self.place, Amount::ZERO)?;
        let raised = self.raise(draft.head.outpoint, None, free.weight())?;
        self.with_fee(draft, raised.wanted)
    }

    /// What a transaction of that weight pays that spends this treasury, `signed` being one of the same batch.
    fn raise(&self, treasury: OutPoint, signed: Option<Signed>, weight: Weight) -> Option<Raise> {
        let entry = self.chain.spender(&treasury).map(|waiting| MempoolEntry {
            wtxid: Wtxid::all_zeros(),
            vsize: waiting.vbytes,
            fee: Amount::from_sat(waiting.fee),
            descendants: u64::try_from(waiting.descendants).unwrap_or(u64::MAX),
            descendant_fees: Amount::from_sat(waiting.descendant_fees),
            ancestors: 1,
            time: 0,
        });
        let rate = FeeRate::from_sat_per_kwu(self.rate().div_ceil(4));
        let replaced = Replaced { signed, entry };
        raise(&replaced, weight, rate, &self.mempool(), &FEES).ok()
    }

    pub(super) fn with_fee(
        &self,
        draft: &Draft,
        fee: Amount,
    ) -> Option<(Candidate, Arc<BatchTransaction>)> {
        let built = draft.build(self.place, fee)?;
        if built.treasury.value < draft.next.supply {
            return None;
        }
        Some((self.candidate(draft, &built), Arc::new(built)))
    }

    pub(super) fn candidate(&self, draft: &Draft, built: &BatchTransaction) -> Candidate {
        Candidate {
            vault: self.place.vault.id(),
            sequence: draft.next.sequence,
            parent: draft.head.outpoint,
            body: draft.body(self.place).hash(),
            top_ups: draft.top_ups.iter().map(|top_up| top_up.outpoint).collect(),
            fee: built.fee,
            txid: built.unsigned.compute_txid(),
        }
    }

    /// The same batch with a higher fee (S7), if miners ask for more, or the mempool refuses what there is.
    pub(super) fn bump(
        &mut self,
        coordinator: usize,
        sequence: u64,
        is_refused: bool,
    ) -> Result<(), String> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let Some(record) = one.records.get(&sequence) else {
            return Ok(());
        };
        let Some(last) = record.made.last() else {
            return Ok(());
        };
        let (body, everybody) = (record.body.clone(), self.everybody());
        if last.signed.is_none() {
            // It waits for its signatures.
            let candidate = last.candidate.clone();
            return self.propose(coordinator, &candidate, &body, &everybody);
        }
        let vbytes = last.built.weight().to_vbytes_ceil();
        let market = self.rate().saturating_mul(vbytes).div_ceil(1_000);
        let is_poor = last.candidate.fee.to_sat().saturating_add(vbytes) <= market;
        if !is_poor && !is_refused {
            return Ok(());
        }
        let Some((candidate, built)) = self.bumped(coordinator, sequence) else {
            return Ok(());
        };
        self.register(&candidate, &body, &built);
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return Ok(());
        };
        one.view.keep(&candidate, &body);
        if let Some(record) = one.records.get_mut(&sequence) {
            record.made.push(Made {
                candidate: candidate.clone(),
                built,
                signed: None,
            });
        }
        self.propose(coordinator, &candidate, &body, &everybody)
    }

    /// The batch with a fee that replaces what was signed of it; `None` if nothing can pay that.
    pub(super) fn bumped(
        &self,
        coordinator: usize,
        sequence: u64,
    ) -> Option<(Candidate, Arc<BatchTransaction>)> {
        let one = self.coordinators.get(coordinator)?;
        let record = one.records.get(&sequence)?;
        let mut signed = record.made.iter().rev();
        let last = signed.find(|made| made.signed.is_some())?;
        let signed = Signed {
            fee: last.candidate.fee,
            weight: last.built.weight(),
        };
        let draft = Draft {
            head: one.view.head(),
            operations: record.body.operations.clone(),
            deposits: self.swept(&last.built, &record.body),
            top_ups: self.topped_up(last),
            next: last.built.treasury.commitment,
            digests: record.body.digests.clone(),
            proof: record.body.proofs.first().cloned().unwrap_or_default(),
        };
        let free = draft.build(self.place, Amount::ZERO);
        let weight = free.map_or(signed.weight, |free| free.weight());
        let raised = self.raise(draft.head.outpoint, Some(signed), weight)?;
        self.with_fee(&draft, raised.wanted)
    }

    /// The deposits of a transaction that was built before.
    fn swept(&self, built: &BatchTransaction, body: &Body) -> Vec<Swept> {
        let deposits = built.unsigned.input.iter().zip(&built.prevouts).skip(1);
        deposits
            .take(body.terms.len())
            .filter_map(|(input, prevout)| {
                let user = self.place.by_script.get(&prevout.script_pubkey)?;
                Some(Swept {
                    outpoint: input.previous_output,
                    value: prevout.value,
                    address: self.place.users.get(*user)?.address.clone(),
                })
            })
            .collect()
    }

    /// The top-ups of a transaction that was built before, as far as they are deep enough still.
    fn topped_up(&self, made: &Made) -> Vec<TopUp> {
        let needed = self.place.vault.parameters().deposit_confirmations;
        let is_ripe = |outpoint: &OutPoint| {
            let coin = self.chain.coin(outpoint);
            coin.is_some_and(|coin| self.chain.confirmations(coin) >= needed)
        };
        let inputs = made.built.unsigned.input.iter().zip(&made.built.prevouts);
        inputs
            .filter(|(input, _)| made.candidate.top_ups.contains(&input.previous_output))
            .filter(|(input, _)| is_ripe(&input.previous_output))
            .map(|(input, prevout)| TopUp {
                outpoint: input.previous_output,
                value: prevout.value,
            })
            .collect()
    }
}
