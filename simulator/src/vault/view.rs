//! What one node has followed of the chain, on its disk: blocks, the trail of treasuries, displaced transactions, and the
//! batches that it keeps. The node's own code does it: [`node::history::Trail`] and [`node::displaced`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::{Block, OutPoint, Txid};
use ledger::SequenceNumber;
use node::{
    displaced::DisplacedSet,
    history::{Confirmed, Trail},
};
use protocol::{
    batch::{Body, Candidate},
    transaction::Treasury,
};
use storage::Changes;

use super::{books::Books, chain::Chain, place::Place};

/// A batch's data.
pub type Batch = (Candidate, Arc<Body>);

/// A node's history.
pub struct View {
    followed: Vec<Arc<Block>>,
    trail: Trail,
    displaced: DisplacedSet,
    /// Kept batches, by their transaction.
    pub batches: BTreeMap<Txid, Batch>,
    /// Digests of the ledger after the batches that it has applied, from genesis on.
    applied: Vec<[u8; 32]>,
    /// Why it does not go on (S14).
    pub alarm: Option<String>,
    /// For a fault: blocks that leave the chain are not noticed.
    pub is_stubborn: bool,
    /// For a fault: nothing is alarming.
    pub is_fearless: bool,
}

impl View {
    /// A node that knows the genesis.
    pub fn new(chain: &Chain, genesis: Treasury) -> Self {
        Self {
            followed: chain.block(0).cloned().into_iter().collect(),
            trail: Trail::new(genesis, Vec::new(), None, None),
            displaced: DisplacedSet::default(),
            batches: BTreeMap::new(),
            applied: vec![genesis.commitment.digest],
            alarm: None,
            is_stubborn: false,
            is_fearless: false,
        }
    }

    /// Height of the last block taken in.
    pub fn height(&self) -> u32 {
        u32::try_from(self.followed.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Time of that block, in seconds.
    pub fn tip_time(&self) -> u64 {
        self.followed
            .last()
            .map_or(0, |block| block.header.time.into())
    }

    /// The latest treasury.
    pub fn head(&self) -> Treasury {
        self.trail.head()
    }

    /// The confirmed batches.
    pub fn confirmed(&self) -> &[Confirmed] {
        self.trail.confirmed()
    }

    /// A confirmed batch.
    pub fn at(&self, sequence: SequenceNumber) -> Option<&Confirmed> {
        self.trail.at(sequence)
    }

    /// The unknown transaction that spends the treasury.
    pub fn stolen(&self) -> Option<Txid> {
        self.trail.stolen().map(|(txid, _)| txid)
    }

    /// Digest of the own ledger.
    pub fn digest(&self) -> [u8; 32] {
        self.applied.last().copied().unwrap_or_default()
    }

    /// Sequence number of the last batch that the ledger has applied.
    pub fn applied(&self) -> usize {
        self.applied.len().saturating_sub(1)
    }

    /// Has the ledger reached the head?
    pub fn is_current(&self) -> bool {
        self.applied() == self.trail.confirmed().len()
    }

    /// Keeps a batch's data.
    pub fn keep(&mut self, candidate: &Candidate, body: &Arc<Body>) {
        self.batches
            .insert(candidate.txid, (candidate.clone(), body.clone()));
    }

    /// The first confirmed batch whose data is not here.
    pub fn missing(&self) -> Option<Txid> {
        let next = self.trail.confirmed().get(self.applied())?;
        (!self.batches.contains_key(&next.txid)).then_some(next.txid)
    }

    /// Transactions that can't be confirmed any more, for as many blocks.
    pub fn lost(&self, depth: u32) -> BTreeSet<Txid> {
        let deep = |height: u32| self.height().saturating_add(1).saturating_sub(height) >= depth;
        let lost = self.displaced.all_lost();
        lost.filter(|(_, lost)| deep(lost.height))
            .map(|(txid, _)| txid)
            .collect()
    }

    /// A deposit of the batch that can't be confirmed any more.
    pub fn lost_deposit(&self, body: &Body, depth: u32) -> Option<OutPoint> {
        let lost = self.lost(depth);
        let mut deposits = body.deposits().map(|(outpoint, _)| *outpoint);
        deposits.find(|outpoint| lost.contains(&outpoint.txid))
    }

    /// Whether it has followed to the tip.
    pub fn is_at_tip(&self, chain: &Chain) -> bool {
        let tip = chain.block(chain.height());
        self.followed
            .last()
            .zip(tip)
            .is_some_and(|(own, tip)| Arc::ptr_eq(own, tip))
    }

    /// Takes one block in or out, towards the chain's tip. Says whether there was one.
    ///
    /// # Errors
    /// A kept batch that does not give what the chain has committed to.
    pub fn step(
        &mut self,
        chain: &Chain,
        place: &Place,
        books: &mut Books,
    ) -> Result<bool, String> {
        let height = self.height();
        let is_common = self
            .followed
            .last()
            .zip(chain.block(height))
            .is_some_and(|(own, other)| Arc::ptr_eq(own, other));
        let mut changes = Changes::new();
        let moved = if is_common || self.is_stubborn {
            let next = height.saturating_add(1);
            let Some(block) = chain.block(next) else {
                return Ok(false);
            };
            self.displaced.join(next, block, &mut changes);
            self.followed.push(block.clone());
            self.trail.connect(place.vault.key(), next, block)
        } else {
            let Some(block) = self.followed.pop() else {
                return Ok(false);
            };
            self.displaced.leave(height, Some(&block), &mut changes);
            let final_confirmations = place.vault.parameters().final_confirmations;
            self.trail.disconnect(height, final_confirmations)
        };
        if let Some(reason) = moved.alarm().filter(|_| !self.is_fearless) {
            self.alarm = Some(reason);
        }
        self.catch_up(books)?;
        Ok(true)
    }

    /// The ledger follows the trail, as far as the batches are here.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn catch_up(&mut self, books: &mut Books) -> Result<(), String> {
        self.applied
            .truncate(self.trail.confirmed().len().saturating_add(1));
        while let Some(next) = self.trail.confirmed().get(self.applied()).copied() {
            let Some((_, body)) = self.batches.get(&next.txid) else {
                return Ok(());
            };
            let commitment = next.treasury.commitment;
            let replay = books.replay(&self.digest(), &body.operations, commitment.sequence);
            let Some(Ok(replayed)) = replay else {
                return Err(format!(
                    "digests: confirmed batch {} does not apply: {replay:?}",
                    commitment.sequence
                ));
            };
            let supply = replayed.transition.after.supply;
            if replayed.after != commitment.digest || supply != commitment.supply {
                return Err(format!(
                    "digests: batch {} gives another ledger than its transaction commits to",
                    commitment.sequence
                ));
            }
            self.applied.push(replayed.after);
        }
        Ok(())
    }
}
