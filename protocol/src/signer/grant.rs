//! Leave to make shares, and what is written before one leaves (S11).

use bitcoin::OutPoint;
use serde::{Deserialize, Serialize};

use super::Promise;
use crate::{epoch::EpochClaim, message::SessionId};

/// Leave to make the shares of one attempt, once its promise is on disk. Made by
/// [`State::step`](super::State::step) alone, for an accepted session (its data is stored and passed on, S8) and to
/// which neither S7 nor S14 objects.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    pub(super) session: SessionId,
    pub(super) attempt: u32,
    pub(super) promise: Signable,
}

impl Grant {
    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The attempt.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// To write first: a batch's promise, or the genesis outpoint. A share of a new epoch is on disk already.
    pub fn promise(&self) -> &Signable {
        &self.promise
    }
}

/// What is written before a share leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signable {
    /// For a batch.
    Batch(Promise),
    /// For the genesis certificate.
    Genesis(OutPoint),
    /// For the certificate of an epoch.
    Epoch(EpochClaim),
}
