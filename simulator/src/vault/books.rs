//! The real ledger, replayed once for all nodes of a run: what a node's ledger is follows from its digest, and what a
//! batch does follows from that and its operations.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use ledger::{Ledger, Operation, OperationError, SequenceNumber, Transition, VaultId};

type Replay = Result<Arc<Transition>, (usize, OperationError)>;

/// Ledgers by their digest.
pub struct Books {
    vault: VaultId,
    ledgers: HashMap<[u8; 32], Arc<Ledger>>,
    replays: HashMap<([u8; 32], SequenceNumber, u64), Replay>,
}

impl Books {
    /// Books that begin with an empty ledger.
    pub fn new(vault: VaultId, empty: Ledger) -> Self {
        let ledgers = HashMap::from([(empty.digest().to_bytes(), Arc::new(empty))]);
        Self {
            vault,
            ledgers,
            replays: HashMap::new(),
        }
    }

    /// The ledger with this digest, if any batch has led to it.
    pub fn ledger(&self, digest: &[u8; 32]) -> Option<&Arc<Ledger>> {
        self.ledgers.get(digest)
    }

    /// What these operations do to the ledger with this digest; `None` if there is no such ledger.
    pub fn replay(
        &mut self,
        at: &[u8; 32],
        operations: &[Operation],
        sequence: SequenceNumber,
    ) -> Option<Replay> {
        let mut hasher = DefaultHasher::new();
        operations.hash(&mut hasher);
        let key = (*at, sequence, hasher.finish());
        if let Some(known) = self.replays.get(&key) {
            return Some(known.clone());
        }
        let mut ledger = (**self.ledgers.get(at)?).clone();
        let replay = ledger
            .apply_batch(operations, &self.vault, sequence)
            .map(Arc::new);
        if let Ok(transition) = &replay {
            let after = transition.digest_after().to_bytes();
            self.ledgers.insert(after, Arc::new(ledger));
        }
        self.replays.insert(key, replay.clone());
        Some(replay)
    }
}
