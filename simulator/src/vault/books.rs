//! The real ledger, replayed once for all nodes of a run: what a node's ledger is follows from its digest, and what a
//! batch does follows from that and its operations.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use ledger::{Ledger, Operation, OperationError, SequenceNumber, Transition, VaultId};

type Replay = Result<Arc<Replayed>, (usize, OperationError)>;

/// What a batch does to a ledger.
#[derive(Debug)]
pub struct Replayed {
    /// It.
    pub transition: Transition,
    /// The ledger's digest after it.
    pub after: [u8; 32],
    /// The digests that link its chunks up.
    pub digests: Vec<[u8; 32]>,
}

impl From<Transition> for Replayed {
    fn from(transition: Transition) -> Self {
        let digests = transition.digests();
        Self {
            after: transition.digest_after().to_bytes(),
            digests: digests.iter().map(|digest| digest.to_bytes()).collect(),
            transition,
        }
    }
}

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
            .map(|transition| Arc::new(Replayed::from(transition)));
        if let Ok(replayed) = &replay {
            self.ledgers.insert(replayed.after, Arc::new(ledger));
        }
        self.replays.insert(key, replay.clone());
        Some(replay)
    }
}
