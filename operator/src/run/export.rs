//! Pages of the own ledger, for `export-ledger`.

use super::{Node, lock};
use crate::export::{Head, Page};

impl Node {
    /// The accounts from an index on, of the ledger at the head of the own chain.
    pub(super) fn ledger_page(&self, from: usize) -> Result<Page, String> {
        let Some(open) = &self.open else {
            return Err("there is no ledger before the genesis".to_owned());
        };
        let books = lock(&open.books);
        let history = &books.history;
        if !history.is_current() {
            return Err(
                "the ledger has not caught up with the chain: batches are still being fetched"
                    .to_owned(),
            );
        }
        let commitment = history.head().commitment;
        let batch = history.confirmed(commitment.sequence);
        let head = Head {
            network: self.parameters.network,
            vault: open.vault.id(),
            commitment,
            txid: batch.map(|batch| batch.txid),
            height: batch.map(|batch| batch.height),
        };
        Ok(Page::of(history.ledger(), head, from))
    }
}
