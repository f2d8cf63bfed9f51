//! A coordinator's round: what the chain says, what was lost, what is under way, and the next batch. Batches go from place
//! to place as `protocol::pipeline` says.

use std::collections::BTreeSet;

use bitcoin::OutPoint;
use protocol::{
    api::BatchStatus,
    batch::Candidate,
    bump::{Schedule, Unconfirmed},
    message::{SessionId, Subject},
    pipeline::{self, Effect, Input},
};
use rand::Rng as _;

use super::{Event, Fault, Made, Message, Node, ROUND_MS, Record, World, users::key_of};
use crate::{signatures::Signatures, vault::view::View};

/// Blocks after which a coordinator gives up a batch that operators do not sign: longer than they are bound to another.
const SIGN_WITHIN: u32 = 10;
/// Blocks after which it pays more for one that is not confirmed.
const BUMP_AFTER: u16 = 2;

fn is_open(status: BatchStatus) -> bool {
    matches!(
        status,
        BatchStatus::Formed | BatchStatus::Proven | BatchStatus::Signed | BatchStatus::Broadcast
    )
}

/// `None` for a batch of which nothing is signed here.
fn waiting_since(record: &Record) -> Option<Unconfirmed> {
    let mut signed = record.made.iter().filter_map(|made| made.signed);
    let first = signed.next()?;
    Some(Unconfirmed {
        first,
        latest: signed.next_back().unwrap_or(first),
        tried: None,
    })
}

impl<C: Signatures> World<C> {
    /// Whether this coordinator forms batches now: all do, until it is calm.
    fn is_on_duty(&self, coordinator: usize) -> bool {
        if !self.is_calm() {
            return true;
        }
        self.coordinators.iter().position(|one| one.is_honest) == Some(coordinator)
    }

    pub(super) fn round(&mut self, coordinator: usize) -> Result<(), String> {
        let wait = self.schedule.rng.gen_range(ROUND_MS / 2..=ROUND_MS);
        self.at(self.now.saturating_add(wait), Event::Round(coordinator));
        if !self.is_up(Node::Coordinator(coordinator)) {
            return Ok(());
        }
        self.ask_missing(Node::Coordinator(coordinator));
        let is_honest = self
            .coordinators
            .get(coordinator)
            .is_some_and(|one| one.is_honest && one.view.alarm.is_none());
        if !is_honest {
            return self.lie(coordinator);
        }
        self.ask_for_requests(coordinator);
        self.pass_requests_on(coordinator);
        self.compare(coordinator)?;
        self.dissolve(coordinator)?;
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        if !one.view.is_current() || !one.to_ask.is_empty() && self.now < self.schedule.calm_ms {
            return Ok(());
        }
        let next = one.view.head().commitment.sequence.0.saturating_add(1);
        let status = one.records.get(&next).map(|record| record.status);
        match status {
            None | Some(BatchStatus::Abandoned) if self.is_on_duty(coordinator) => {
                self.form(coordinator)
            }
            Some(BatchStatus::Proven) => self.have_signed(coordinator, next),
            Some(BatchStatus::Signed | BatchStatus::Broadcast) => self.watch(coordinator, next),
            _ => Ok(()),
        }
    }

    /// Takes a batch one step on. A step that can't be is a fault of the coordinator.
    fn advance(&mut self, coordinator: usize, sequence: u64, input: Input) -> Result<(), String> {
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return Ok(());
        };
        let height = one.view.height();
        let Some(record) = one.records.get_mut(&sequence) else {
            return Ok(());
        };
        let next = pipeline::step(record.status, input).map_err(|reject| reject.to_string())?;
        let Some(next) = next else {
            return Ok(());
        };
        (record.status, record.since) = (next.batch, height);
        if next.effect == Some(Effect::Requeue) {
            self.counts.dissolved = self.counts.dissolved.saturating_add(1);
            if self.fault != Some(Fault::NeverRequeues) {
                for asked in one.requests.values_mut() {
                    if asked.in_batch == Some(sequence) {
                        asked.in_batch = None;
                    }
                }
            }
        }
        self.note(|| {
            format!(
                "coordinator {coordinator}: batch {sequence} is {:?}",
                next.batch
            )
        });
        Ok(())
    }

    /// Writes records of confirmed batches that another coordinator has made, as `rebuild` does; what was in an own one that
    /// lost against it waits again.
    fn record_others(&mut self, coordinator: usize) {
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        let height = one.view.height();
        for block in one.view.confirmed() {
            let sequence = block.treasury.commitment.sequence.0;
            let is_done = one.records.get(&sequence).is_some_and(|record| {
                let is_active = matches!(record.status, BatchStatus::Formed | BatchStatus::Proven);
                is_active
                    || record
                        .made
                        .iter()
                        .any(|made| made.candidate.txid == block.txid)
            });
            let Some((_, built)) = self.registry.get(&block.txid).filter(|_| !is_done) else {
                continue;
            };
            let Some((candidate, body)) = one.view.batches.get(&block.txid) else {
                continue;
            };
            for asked in one.requests.values_mut() {
                if asked.in_batch == Some(sequence) {
                    asked.in_batch = None;
                }
            }
            for operation in &body.operations {
                if let Some(asked) = key_of(operation).and_then(|key| one.requests.get_mut(&key)) {
                    asked.in_batch = Some(sequence);
                }
            }
            let record = Record {
                status: BatchStatus::Confirmed,
                body: body.clone(),
                made: vec![Made {
                    candidate: candidate.clone(),
                    built: built.clone(),
                    signed: Some(block.height),
                }],
                height: Some(block.height),
                since: height,
                stuck: None,
                refused_by: BTreeSet::new(),
            };
            one.records.insert(sequence, record);
        }
    }

    /// What is written of each batch is compared with the chain.
    fn compare(&mut self, coordinator: usize) -> Result<(), String> {
        self.record_others(coordinator);
        let finality = self.place.vault.parameters().final_confirmations;
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let mut inputs = Vec::new();
        for (sequence, record) in &one.records {
            let block = one
                .view
                .at(ledger::SequenceNumber(*sequence))
                .filter(|block| {
                    let own = record.made.iter();
                    own.map(|made| made.candidate.txid)
                        .any(|txid| txid == block.txid)
                });
            let seen = pipeline::seen(
                record.status,
                record.height,
                block.map(|block| block.height),
                one.view.height(),
                finality,
            );
            if let Some(input) = seen {
                inputs.push((*sequence, input, block.copied()));
            }
        }
        for (sequence, input, block) in inputs {
            if input == Input::Connected && self.fault == Some(Fault::ForgetsConfirmations) {
                continue;
            }
            self.advance(coordinator, sequence, input)?;
            if let Some(record) = self
                .coordinators
                .get_mut(coordinator)
                .and_then(|one| one.records.get_mut(&sequence))
            {
                record.height = block.map(|block| block.height);
                record.stuck = None;
                record.refused_by.clear();
                // Whoever had it signed: its witnesses are in the block, and it can be submitted from here.
                for made in &mut record.made {
                    if let Some(block) = block.filter(|block| block.txid == made.candidate.txid) {
                        made.signed.get_or_insert(block.height);
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives up what can't be confirmed any more, or was overtaken.
    fn dissolve(&mut self, coordinator: usize) -> Result<(), String> {
        let depth = self.place.vault.parameters().deposit_confirmations;
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let head = one.view.head();
        let mut over = Vec::new();
        let mut is_cut = false;
        for (sequence, record) in &one.records {
            if !is_open(record.status) {
                continue;
            }
            let is_lost = one.view.lost_deposit(&record.body, depth).is_some()
                && self.fault != Some(Fault::NeverDissolves);
            let is_late = *sequence <= head.commitment.sequence.0
                && self.fault != Some(Fault::ForgetsConfirmations);
            let is_next = *sequence == head.commitment.sequence.0.saturating_add(1);
            let is_elsewhere = is_next
                && record
                    .made
                    .iter()
                    .all(|made| made.candidate.parent != head.outpoint);
            is_cut |= is_lost || is_elsewhere;
            if is_cut || is_late || is_elsewhere {
                over.push(*sequence);
            }
        }
        for sequence in over {
            self.advance(coordinator, sequence, Input::Dissolved)?;
            if let Some(one) = self.coordinators.get_mut(coordinator) {
                one.running = None;
            }
        }
        Ok(())
    }

    fn have_signed(&mut self, coordinator: usize, sequence: u64) -> Result<(), String> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let Some(record) = one.records.get(&sequence) else {
            return Ok(());
        };
        if one.view.height().saturating_sub(record.since) > SIGN_WITHIN {
            if let Some(one) = self.coordinators.get_mut(coordinator) {
                one.running = None;
            }
            return self.advance(coordinator, sequence, Input::Dissolved);
        }
        let latest = record.made.last().map(|made| made.candidate.clone());
        let (body, everybody) = (record.body.clone(), self.everybody());
        match latest {
            Some(candidate) => self.propose(coordinator, &candidate, &body, &everybody),
            None => Ok(()),
        }
    }

    pub(super) fn everybody(&self) -> Vec<usize> {
        (0..self.operators.len()).collect()
    }

    /// The signatures are there: written, then given away.
    pub(super) fn write_signed(
        &mut self,
        coordinator: usize,
        candidate: &Candidate,
    ) -> Result<(), String> {
        let sequence = candidate.sequence.0;
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return Ok(());
        };
        let height = one.view.height();
        let Some(record) = one.records.get_mut(&sequence) else {
            return Ok(());
        };
        record.refused_by.clear();
        for made in &mut record.made {
            if made.candidate.txid == candidate.txid {
                made.signed.get_or_insert(height);
            }
        }
        if record
            .made
            .iter()
            .filter(|made| made.signed.is_some())
            .count()
            > 1
        {
            self.counts.bumped = self.counts.bumped.saturating_add(1);
        }
        // It may have been confirmed, or given up, meanwhile: then only the chain moves it.
        if record.status == BatchStatus::Proven {
            self.advance(coordinator, sequence, Input::Signed)?;
        }
        let from = Node::Coordinator(coordinator);
        for operator in self.everybody() {
            self.send(
                from,
                Node::Operator(operator),
                Message::Signed(candidate.txid),
            );
        }
        if self.dying != Some(from) {
            self.give(coordinator, sequence)?;
        }
        Ok(())
    }

    /// Gives the batch's latest signed transaction to the Bitcoin network. Says whether that refuses it.
    fn give(&mut self, coordinator: usize, sequence: u64) -> Result<bool, String> {
        let record = self
            .coordinators
            .get(coordinator)
            .and_then(|one| one.records.get(&sequence));
        let Some(record) = record else {
            return Ok(false);
        };
        let signed = record.made.iter().rev().find(|made| made.signed.is_some());
        let Some(txid) = signed.map(|made| made.candidate.txid) else {
            return Ok(false);
        };
        let status = record.status;
        let is_taken = self.submit(txid);
        if is_taken && status == BatchStatus::Signed {
            self.advance(coordinator, sequence, Input::Submitted)?;
        }
        Ok(!is_taken)
    }

    /// Sees that the batch stays in the mempool, and pays more if that takes long.
    fn watch(&mut self, coordinator: usize, sequence: u64) -> Result<(), String> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let height = one.view.height();
        let Some(record) = one.records.get(&sequence) else {
            return Ok(());
        };
        let signed = record.made.iter().rev().find(|made| made.signed.is_some());
        let Some(signed) = signed else {
            return Ok(());
        };
        let (txid, status) = (signed.candidate.txid, record.status);
        let is_due =
            waiting_since(record).is_some_and(|waiting| self.bumps().is_due(&waiting, height));
        let is_gone = !self.chain.is_pooled(&txid) && self.chain.confirmed_at(&txid).is_none();
        let mut is_refused = false;
        if is_gone && (status == BatchStatus::Signed || self.fault != Some(Fault::NeverResubmits)) {
            self.counts.resubmitted = self.counts.resubmitted.saturating_add(1);
            is_refused = self.give(coordinator, sequence)?;
        }
        if self.is_given_up(coordinator, sequence) {
            return self.give_up(coordinator, sequence);
        }
        if is_due
            && self.chain.confirmed_at(&txid).is_none()
            && self.fault != Some(Fault::NeverBumps)
        {
            return self.bump(coordinator, sequence, is_refused);
        }
        Ok(())
    }

    /// Gives up a batch, and with it all that build on it.
    fn give_up(&mut self, coordinator: usize, sequence: u64) -> Result<(), String> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Ok(());
        };
        let later = one.records.range(sequence..);
        let over: Vec<u64> = later
            .filter(|(_, record)| is_open(record.status))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in over {
            self.advance(coordinator, sequence, Input::Dissolved)?;
        }
        Ok(())
    }

    fn bumps(&self) -> Schedule {
        Schedule {
            after: BUMP_AFTER,
            window: self.place.vault.parameters().bump_window,
        }
    }

    /// An operator refuses a candidate because of a deposit (S2): perhaps a higher fee for a batch that is signed.
    pub(super) fn note_refused_bump(&mut self, coordinator: usize, operator: usize, id: SessionId) {
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        for record in one.records.values_mut() {
            let Some(last) = record.made.last().filter(|made| made.signed.is_none()) else {
                continue;
            };
            if record.made.iter().any(|made| made.signed.is_some())
                && Subject::Batch(last.candidate.clone()).session(&one.key) == id
            {
                record.refused_by.insert(operator);
            }
        }
    }

    /// Whether the batch could not get into a block by itself for so long that operators sign another one.
    fn is_given_up(&mut self, coordinator: usize, sequence: u64) -> bool {
        let (delay, schedule) = (
            self.place.vault.parameters().replacement_delay,
            self.bumps(),
        );
        if self.fault == Some(Fault::NeverDissolves) {
            return false;
        }
        let group = &self.schedule.group;
        let enough = usize::from(group.operators.saturating_sub(group.threshold)).saturating_add(1);
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return false;
        };
        let height = one.view.height();
        let Some(record) = one.records.get_mut(&sequence) else {
            return false;
        };
        let is_confirmed = |made: &Made| self.chain.confirmed_at(&made.candidate.txid).is_some();
        let top_ups = record.made.iter().rev().find(|made| made.signed.is_some());
        let top_ups = top_ups.map_or(&[][..], |made| &made.candidate.top_ups);
        let can_wait = record
            .body
            .deposits()
            .map(|(outpoint, _)| outpoint)
            .chain(top_ups)
            .all(|outpoint| self.chain.coin(outpoint).is_some());
        let waiting = waiting_since(record);
        let waits_for_ever = matches!(self.fault, Some(Fault::NeverBumps | Fault::NeverResubmits));
        let is_over = !waits_for_ever
            && (record.refused_by.len() >= enough
                || waiting.is_some_and(|waiting| schedule.is_over(&waiting, height)));
        if record.made.iter().any(is_confirmed) || can_wait && !is_over {
            record.stuck = None;
            return false;
        }
        let known = record.stuck.get_or_insert((height, can_wait));
        if known.1 != can_wait {
            *known = (height, can_wait);
        }
        let latest = waiting.map_or(0, |waiting| waiting.latest);
        let since = known.0.max(latest);
        // Where nothing can pay more, another batch could not either.
        pipeline::is_given_up(since, height, delay)
            && (!can_wait || self.bumped(coordinator, sequence).is_some())
    }

    /// Requests that are in no batch, in the order of their accounts and nonces.
    pub(super) fn queued(&self, coordinator: usize) -> Vec<ledger::Operation> {
        let Some(one) = self.coordinators.get(coordinator) else {
            return Vec::new();
        };
        let done = self.confirmed_requests(&one.view);
        one.requests
            .values()
            .filter(|asked| asked.in_batch.is_none())
            .map(|asked| asked.operation.clone())
            .filter(|operation| key_of(operation).is_some_and(|key| !done.contains(&key)))
            .collect()
    }

    fn confirmed_requests(&self, view: &View) -> BTreeSet<(u32, u64)> {
        let batches = view.confirmed().iter();
        batches
            .filter_map(|batch| view.batches.get(&batch.txid))
            .flat_map(|(_, body)| body.operations.iter().filter_map(key_of))
            .collect()
    }

    /// A coordinator's disk is gone: chain and batches come from others, and so do requests.
    pub(super) fn lose_disk(&mut self, coordinator: usize) {
        let me = Node::Coordinator(coordinator);
        let genesis = self.place.genesis(&self.empty);
        let honest: BTreeSet<Node> = self
            .nodes()
            .into_iter()
            .filter(|node| *node != me)
            .filter(|node| match node {
                Node::Operator(i) => self
                    .operators
                    .get(*i)
                    .is_some_and(|one| one.signing.plan.conduct.is_honest()),
                Node::Coordinator(_) => true,
            })
            .collect();
        let is_fearless = self.fault == Some(Fault::IgnoresAlarms);
        let mut fresh = View::new(&self.chain, genesis);
        fresh.is_fearless = is_fearless;
        let Some(one) = self.coordinators.get_mut(coordinator) else {
            return;
        };
        one.view = fresh;
        one.records.clear();
        one.requests.clear();
        one.to_ask = honest;
        self.counts.lost_disks = self.counts.lost_disks.saturating_add(1);
        self.crash(me);
    }

    /// Whether a coin is one of the vault's treasuries.
    pub(super) fn is_treasury(&self, outpoint: &OutPoint) -> bool {
        outpoint.vout == 0 && self.registry.contains_key(&outpoint.txid)
            || *outpoint == self.place.vault.genesis_output().outpoint
    }
}
