//! Blocks, reorganisations, fees, thefts and crashes; and what must hold of the chain after each block.

use std::{collections::BTreeSet, sync::Arc};

use bitcoin::{OutPoint, Sequence, Txid};
use ledger::SequenceNumber;
use protocol::signer::{self, Quarantine};
use rand::Rng as _;

use super::{
    BLOCK_MS, DOWN_MS, EPOCH_S, Event, FOLLOW_MS, Fault, Node, PATIENCE, Trouble, World, is_honest,
    text,
};
use crate::{
    signatures::Signatures,
    vault::{
        chain::{Taken, output, pay, spends},
        invariants,
    },
};

/// Virtual bytes of a refund, a theft, and so on.
const SMALL_VBYTES: u64 = 150;

impl<C: Signatures> World<C> {
    fn time_s(&self) -> u32 {
        let seconds = EPOCH_S.saturating_add(self.now / 1_000);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    pub(super) fn block(&mut self) -> Result<(), String> {
        let rng = &mut self.schedule.rng;
        let leaves_out = u64::from(rng.gen_range(0..20_u32) == 0) * rng.gen_range(1..=255_u64);
        let wait = rng.gen_range(1..=BLOCK_MS);
        let is_calm = self.is_calm();
        let wanted = |txid: &Txid| {
            let first: &[u8] = txid.as_ref();
            is_calm
                || leaves_out == 0
                || first
                    .first()
                    .is_some_and(|byte| u64::from(*byte) > leaves_out)
        };
        let time = self.time_s();
        self.chain.mine(time, Vec::new(), wanted);
        self.at(self.now.saturating_add(wait), Event::Block);
        self.chain_moved()
    }

    /// Everybody hears of it by and by; what is true is looked at now.
    pub(super) fn chain_moved(&mut self) -> Result<(), String> {
        self.counts.blocks = self.counts.blocks.saturating_add(1);
        for node in self.nodes() {
            let late = self.schedule.rng.gen_range(0..=FOLLOW_MS);
            self.at(self.now.saturating_add(late), Event::Follow(node));
        }
        self.look()?;
        self.refund();
        if self.is_calm() {
            return self.wind_up();
        }
        Ok(())
    }

    /// The truth follows the chain, and the invariants of the chain are asked.
    fn look(&mut self) -> Result<(), String> {
        let before = self.truth.confirmed().len();
        while self.truth.step(&self.chain, self.place, &mut self.books)? {}
        let after = self.truth.confirmed().to_vec();
        invariants::one_batch(&after).map_err(text)?;
        for batch in after.iter().skip(before.min(after.len())) {
            self.note(|| {
                format!(
                    "batch {} is in a block: {}",
                    batch.treasury.commitment.sequence, batch.txid
                )
            });
        }
        let txids: Vec<Txid> = after.iter().map(|batch| batch.txid).collect();
        if txids == self.looked_at {
            return Ok(());
        }
        self.looked_at = txids;
        let (mut credited, mut done) = (BTreeSet::new(), BTreeSet::new());
        for batch in &after {
            let Some((kept, built)) = self.registry.get(&batch.txid) else {
                return Err(format!("one_batch: nobody has built {}", batch.txid));
            };
            let digest = batch.treasury.commitment.digest;
            let ledger = self
                .books
                .ledger(&digest)
                .ok_or_else(|| format!("digests: no batch leads to that of {}", batch.txid))?;
            invariants::digests(&built.unsigned, ledger).map_err(text)?;
            invariants::reserves(&built.unsigned, ledger).map_err(text)?;
            invariants::credits(&built.unsigned, &kept.1, &mut credited).map_err(text)?;
            let ids = self.carried.get(&kept.0.body).map(|ids| ids.as_slice());
            invariants::payouts(&built.unsigned, &kept.1, ids.unwrap_or_default(), &mut done)
                .map_err(text)?;
        }
        Ok(())
    }

    /// Depositors take back what was not credited in time.
    fn refund(&mut self) {
        let delay = self.place.vault.parameters().refund_delay;
        let place = self.place;
        let old = self
            .chain
            .coins_of(|output| place.by_script.contains_key(&output.script_pubkey));
        for (outpoint, coin) in old {
            if self.chain.confirmations(&coin) < u32::from(delay)
                || self.refunds.contains(&outpoint)
            {
                continue;
            }
            let Some(user) = place
                .by_script
                .get(&coin.output.script_pubkey)
                .and_then(|user| place.users.get(*user))
            else {
                continue;
            };
            let fee = self.rate().saturating_mul(SMALL_VBYTES) / 1_000;
            let rest = coin.output.value.to_sat().saturating_sub(fee);
            let back = pay(
                &[(outpoint, Sequence::from_height(delay))],
                vec![output(rest, user.script.clone())],
            );
            if self.chain.submit(&Arc::new(back), SMALL_VBYTES) == Taken::Pooled {
                self.note(|| format!("{outpoint} is taken back by its depositor"));
                self.refunds.insert(outpoint);
            }
        }
    }

    /// What one pays to be in the next block, in sats per 1,000 virtual bytes.
    pub(super) fn rate(&self) -> u64 {
        let rate = self.chain.market.max(self.chain.floor);
        rate.saturating_add(rate / 4)
    }

    /// In the calm everything must come to its end.
    fn wind_up(&mut self) -> Result<(), String> {
        let height = self.chain.height();
        let since = *self.calm_height.get_or_insert(height);
        let is_stuck = self.coordinators.iter().any(|one| one.view.alarm.is_some())
            || self
                .operators
                .iter()
                .any(|one| one.view.alarm.is_some() && is_honest(one.signing.plan.conduct))
            || self.truth.stolen().is_some()
            || self.schedule.ends_in_alarm();
        let blocks = height.saturating_sub(since);
        if is_stuck {
            self.is_over = blocks > 6;
            return Ok(());
        }
        let waits = self.waits();
        // What has left the mempools and the queues is looked at for some blocks more.
        if waits.is_none() && blocks > 6 && self.now > self.schedule.calm_ms.saturating_add(30_000)
        {
            self.is_over = true;
            return Ok(());
        }
        match waits {
            Some(waits) if blocks > PATIENCE => Err(waits),
            _ => Ok(()),
        }
    }

    /// What must be done and is not.
    fn waits(&self) -> Option<String> {
        let head = self.truth.head();
        let ledger = self.books.ledger(&head.commitment.digest)?;
        let vault = self.place.vault.id();
        let batches = self.truth.confirmed().iter();
        let done: BTreeSet<_> = batches
            .filter_map(|batch| self.registry.get(&batch.txid))
            .filter_map(|((candidate, _), _)| self.carried.get(&candidate.body))
            .flat_map(|ids| ids.iter().copied())
            .collect();
        let next = SequenceNumber(head.commitment.sequence.0.saturating_add(1));
        let due = invariants::due(&self.accepted, &done, ledger, &vault, next);
        if !due.is_empty() {
            return Some(format!("payouts: accepted and not carried out: {due:?}"));
        }
        let parameters = self.place.vault.parameters();
        let margin =
            u32::from(parameters.replacement_delay).saturating_add(parameters.bump_window.into());
        let deposits = self
            .chain
            .coins_of(|output| self.place.by_script.contains_key(&output.script_pubkey));
        for (outpoint, coin) in deposits {
            let confirmations = self.chain.confirmations(&coin);
            let is_small = coin.output.value < parameters.min_deposit;
            let in_time =
                confirmations.saturating_add(margin) <= u32::from(parameters.refund_delay);
            if !is_small && in_time {
                return Some(format!("credits: {outpoint} is not credited"));
            }
        }
        None
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) -> Result<(), String> {
        self.note(|| format!("trouble: {trouble:?}"));
        match trouble {
            Trouble::Crash(node) => self.crash(node),
            Trouble::LoseDisk(coordinator) => self.lose_disk(coordinator),
            Trouble::Restore(operator) => self.restore(operator),
            Trouble::Market(rate) => self.chain.market = rate,
            Trouble::Evict(rate) => {
                let gone = self.chain.evict_below(rate);
                let gone = u64::try_from(gone).unwrap_or(u64::MAX);
                self.counts.evicted = self.counts.evicted.saturating_add(gone);
                self.chain.floor = 1_000;
            }
            Trouble::Steal => {
                let head = self.truth.head().outpoint;
                let Some(coin) = self.chain.coin(&head).cloned() else {
                    return Ok(());
                };
                let script = bitcoin::ScriptBuf::from_bytes(vec![0x51]);
                let input = (head, Sequence::ENABLE_RBF_NO_LOCKTIME);
                let out = output(coin.output.value.to_sat().saturating_sub(50_000), script);
                let theft = Arc::new(pay(&[input], vec![out]));
                self.chain.authorise(theft.compute_txid());
                let time = self.time_s();
                self.chain.mine(time, vec![theft], |_| false);
                return self.chain_moved();
            }
            Trouble::Reorg {
                depth,
                double_spend,
            } => return self.reorganise(depth, double_spend),
        }
        Ok(())
    }

    fn reorganise(&mut self, depth: u32, double_spend: bool) -> Result<(), String> {
        let depth = depth.min(self.chain.height());
        let lowest = self.chain.height().saturating_sub(depth);
        let held = self
            .truth
            .confirmed()
            .iter()
            .filter(|batch| batch.height > lowest);
        let left = u64::try_from(held.count()).unwrap_or(u64::MAX);
        self.counts.displaced = self.counts.displaced.saturating_add(left);
        self.counts.reorganised = self.counts.reorganised.saturating_add(1);
        let mut instead = Vec::new();
        for payment in self.payments.clone() {
            let is_new = self
                .chain
                .confirmed_at(&payment.txid)
                .is_some_and(|height| height > lowest);
            if double_spend && is_new && self.schedule.rng.gen_bool(0.5) {
                instead.extend(self.otherwise(payment, lowest));
            }
        }
        self.chain.disconnect(depth);
        let time = self.time_s();
        for at in 0..=depth {
            let first = if at == 0 {
                std::mem::take(&mut instead)
            } else {
                Vec::new()
            };
            let odd = self.schedule.rng.gen_bool(0.5);
            self.chain.mine(time, first, |txid| {
                let bytes: &[u8] = txid.as_ref();
                bytes.get(1).is_some_and(|byte| (byte & 1 == 1) == odd)
            });
        }
        self.chain_moved()
    }

    /// The same coins spent to the depositor.
    fn otherwise(&mut self, payment: OutPoint, lowest: u32) -> Option<Arc<bitcoin::Transaction>> {
        let height = self.chain.confirmed_at(&payment.txid)?;
        let block = self.chain.block(height)?;
        let paid = block
            .txdata
            .iter()
            .find(|transaction| transaction.compute_txid() == payment.txid)?;
        let inputs: Vec<_> = spends(paid).map(|input| (input, Sequence::MAX)).collect();
        let script = bitcoin::ScriptBuf::from_bytes(vec![0x52]);
        self.counts.double_spent = self.counts.double_spent.saturating_add(1);
        self.note(|| format!("{payment} is double-spent above height {lowest}"));
        Some(Arc::new(pay(&inputs, vec![output(190_000, script)])))
    }

    /// What is in memory is gone; what is on disk is not.
    pub(super) fn crash(&mut self, node: Node) {
        if !self.is_up(node) {
            return;
        }
        self.note(|| format!("{node:?} dies"));
        self.counts.crashed = self.counts.crashed.saturating_add(1);
        match node {
            Node::Operator(i) => {
                if let Some(one) = self.operators.get_mut(i) {
                    one.is_up = false;
                }
            }
            Node::Coordinator(i) => {
                if let Some(one) = self.coordinators.get_mut(i) {
                    one.is_up = false;
                    one.running = None;
                    if self.fault == Some(Fault::SkipsRequests) {
                        one.requests.clear();
                    }
                }
            }
        }
        let down = self.schedule.rng.gen_range(1..=DOWN_MS);
        self.at(self.now.saturating_add(down), Event::Up(node));
    }

    pub(super) fn up(&mut self, node: Node) -> Result<(), String> {
        self.note(|| format!("{node:?} starts"));
        match node {
            Node::Operator(i) => {
                self.boot(i);
                // Where the chain is on its own disk, before any block that it has missed.
                self.tell_machine(i)?;
            }
            Node::Coordinator(i) => {
                if let Some(one) = self.coordinators.get_mut(i) {
                    one.is_up = true;
                }
            }
        }
        self.follow(node)
    }

    fn boot(&mut self, operator: usize) {
        let now = self.now;
        let Some(one) = self.operators.get_mut(operator) else {
            return;
        };
        one.is_up = true;
        one.proposed.clear();
        one.verified.clear();
        let before = &one.signing.state;
        let (delay, quarantine) = (before.replacement_delay, before.quarantine);
        one.signing.restart(now, one.view.head());
        let state = &mut one.signing.state;
        (state.replacement_delay, state.quarantine) = (delay, quarantine);
        if self.fault == Some(Fault::SkipsPromises) {
            state.promises.clear();
        }
        // Stored with the block that raised it.
        if let Some(alarm) = one.view.alarm.clone() {
            let _ = one.signing.step(now, signer::Input::Alarm(alarm));
        }
    }

    fn restore(&mut self, operator: usize) {
        let lost_ms = EPOCH_S.saturating_mul(1_000).saturating_add(self.now);
        let fault = self.fault;
        let Some(one) = self.operators.get_mut(operator) else {
            return;
        };
        self.counts.restored = self.counts.restored.saturating_add(1);
        one.signing.state.promises.clear();
        if fault != Some(Fault::SkipsQuarantine) {
            one.signing.state.quarantine = Some(Quarantine::Syncing { lost_ms });
        }
        one.is_up = true;
        self.crash(Node::Operator(operator));
    }

    pub(super) fn count_up(&mut self) {
        self.counts.batches = u64::try_from(self.truth.confirmed().len()).unwrap_or(0);
        for batch in self.truth.confirmed() {
            let Some(((_, body), _)) = self.registry.get(&batch.txid) else {
                continue;
            };
            let deposits = u64::try_from(body.deposits().count()).unwrap_or(0);
            let paid = u64::try_from(body.withdrawals().len()).unwrap_or(0);
            self.counts.credited = self.counts.credited.saturating_add(deposits);
            self.counts.paid = self.counts.paid.saturating_add(paid);
        }
        self.counts.accepted = u64::try_from(self.accepted.len()).unwrap_or(0);
        let refunded = self
            .refunds
            .iter()
            .filter(|outpoint| self.chain.coin(outpoint).is_none());
        self.counts.refunded = u64::try_from(refunded.count()).unwrap_or(0);
        let alarms = self.operators.iter().filter(|one| one.view.alarm.is_some());
        self.counts.alarms = u64::try_from(alarms.count()).unwrap_or(0);
    }
}
