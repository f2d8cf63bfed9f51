//! S8: before a share leaves, its signer has stored the batch's data durably, has itself passed it on to the other
//! operators, and has waited, for a bounded time, for receipts from those it can reach.
//!
//! Two values stand for it, and [`crate::promises::Promised`] is made of both: [`Kept`], which only the durable write
//! makes; and the signing machine's `Grant`, which only an accepted session gets, and a session is accepted only once
//! the data was passed on and the receipts are there or their deadline is over.

use std::sync::Arc;

use node::history;
use storage::{CommitError, Store};

use super::Verified;

/// What was verified, with its data on this operator's disk.
#[derive(Clone, Debug)]
pub struct Kept {
    verified: Arc<Verified>,
    body: Option<Arc<Vec<u8>>>,
}

impl Kept {
    /// Writes a batch's data. Certificates carry none.
    ///
    /// # Errors
    /// Fatal (S11).
    pub fn write(store: &Store, verified: Arc<Verified>) -> Result<Self, CommitError> {
        let body = match &*verified {
            Verified::Genesis(_) | Verified::Epoch(_) => None,
            Verified::Batch(batch) => {
                let body = batch.evidence.body.encode();
                history::keep(store, batch.candidate(), &body)?;
                Some(Arc::new(body))
            }
        };
        Ok(Self { verified, body })
    }

    /// What was verified.
    pub fn verified(&self) -> &Arc<Verified> {
        &self.verified
    }

    /// The encoded body of a batch, to be passed on.
    pub fn body(&self) -> Option<&Arc<Vec<u8>>> {
        self.body.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing,
        verify::fixture::{self, Users},
    };

    #[test]
    fn what_is_kept_is_on_disk_and_is_the_candidates_body() {
        let (_folder, store) = testing::store();
        let batch = fixture::verified(&Users::new());
        let candidate = batch.candidate().clone();
        let kept = Kept::write(&store, Arc::new(Verified::Batch(batch))).unwrap();
        let body = history::kept_body(&store, &candidate.body).unwrap();
        assert_eq!(body.as_ref(), kept.body().map(|body| &**body));
        let found = history::kept_candidate(&store, &candidate.txid).unwrap();
        assert_eq!(found, Some(candidate));
    }

    #[test]
    fn a_genesis_has_nothing_to_keep() {
        let (_folder, store) = testing::store();
        let kept = Kept::write(&store, Arc::new(testing::verified_genesis())).unwrap();
        assert!(kept.body().is_none());
    }
}
