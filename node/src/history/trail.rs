//! The chain of treasuries through the blocks of the best chain, without a store: what a block adds to it, what a block
//! that leaves takes from it, and what is alarming about either (S14).

use bitcoin::{Block, Txid};
use chain::scan;
use ledger::SequenceNumber;
use protocol::{transaction::Treasury, vault::VaultKey};

use super::{Confirmed, Moved};

/// The confirmed batches, in their order.
#[derive(Clone, Debug)]
pub struct Trail {
    genesis: Treasury,
    confirmed: Vec<Confirmed>,
    /// Height of the last block before the reorganisation that is being taken in.
    top: Option<u32>,
    /// What spends the treasury and is no batch, and the height of its block.
    stolen: Option<(Txid, u32)>,
}

impl Trail {
    /// As it was stored.
    pub fn new(
        genesis: Treasury,
        confirmed: Vec<Confirmed>,
        top: Option<u32>,
        stolen: Option<(Txid, u32)>,
    ) -> Self {
        Self {
            genesis,
            confirmed,
            top,
            stolen,
        }
    }

    /// The first treasury.
    pub fn genesis(&self) -> Treasury {
        self.genesis
    }

    /// The treasury at the end of the chain.
    pub fn head(&self) -> Treasury {
        self.confirmed
            .last()
            .map_or(self.genesis, |last| last.treasury)
    }

    /// The batches, by sequence number from 1.
    pub fn confirmed(&self) -> &[Confirmed] {
        &self.confirmed
    }

    /// A batch.
    pub fn at(&self, sequence: SequenceNumber) -> Option<&Confirmed> {
        self.confirmed
            .get(usize::try_from(sequence.0.checked_sub(1)?).ok()?)
    }

    /// Height of the last block before the reorganisation that is being taken in.
    pub fn top(&self) -> Option<u32> {
        self.top
    }

    /// What spends the treasury and is no batch, and the height of its block.
    pub fn stolen(&self) -> Option<(Txid, u32)> {
        self.stolen
    }

    /// A block has joined the best chain.
    pub fn connect(&mut self, vault: &VaultKey, height: u32, block: &Block) -> Moved {
        let mut moved = Moved::default();
        self.top = None;
        let mut head = self.head();
        while let Some(spend) = scan::find_spend(block, head.outpoint) {
            let Some(next) = head.next(vault, spend.transaction) else {
                moved.unknown_spend = Some(spend.txid);
                self.stolen = Some((spend.txid, height));
                break;
            };
            let row = Confirmed {
                treasury: next,
                height,
                txid: spend.txid,
            };
            moved.connected.push(row);
            head = next;
        }
        self.confirmed.extend(&moved.connected);
        moved
    }

    /// The last block has left the best chain.
    pub fn disconnect(&mut self, height: u32, final_confirmations: u32) -> Moved {
        let mut moved = Moved::default();
        if self.stolen.is_some_and(|(_, at)| at >= height) {
            self.stolen = None;
        }
        let top = *self.top.get_or_insert(height);
        let gone = self
            .confirmed
            .iter()
            .rev()
            .take_while(|row| row.height >= height);
        moved.disconnected = gone.copied().collect();
        let depth = top.saturating_add(1).saturating_sub(height);
        let was_final = depth >= final_confirmations && !moved.disconnected.is_empty();
        if depth > final_confirmations || was_final {
            moved.too_deep = Some(depth);
        }
        let left = self
            .confirmed
            .len()
            .saturating_sub(moved.disconnected.len());
        self.confirmed.truncate(left);
        moved
    }
}
