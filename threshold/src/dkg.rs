//! Key generation without a dealer, for messages that arrive late, twice or out of order.
//!
//! ```text
//!             all n round-1            n equal echoes            n-1 good shares          n equal confirms
//!  Round1 ────────────────────► Echo ──────────────────► Round2 ────────────────► Confirm ───────────────► finished
//! ```
//!
//! FROST's key generation (Komlo and Goldberg, figure 1) needs a broadcast channel for its first
//! round. Here the echoes make one: secret shares leave only after all n participants have said that
//! they hold the same round-1 packages. The confirmations at the end show that everybody came to the same
//! key with a share that fits.
//!
//! [`crate::refresh`] runs the same machine over polynomials that are zero at 0.
//!
//! Messages are pulled: each operator asks each other one for its [`Machine::messages_for`] again and
//! again over an authenticated, encrypted channel, and feeds what it gets to [`Machine::receive`]. All
//! of it is idempotent. A node that has finished keeps answering, until the genesis certificate of all n
//! shows that everybody has stored a share.

mod machine;
mod message;
mod scheme;
mod seed;

use std::collections::BTreeSet;

use crate::{MAX_SIGNERS, MIN_THRESHOLD, SignerId, hash};

pub use machine::{Failure, Machine, Progress, Reject, Stage};
pub use message::{
    CeremonyId, Kind, Message, PackageDigest, PackageError, Round1Package, Round2Package,
};
pub(crate) use scheme::Scheme;
pub use seed::Seed;
pub(crate) use seed::SeedStream;

/// Who generates a key with whom, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceremony {
    /// This participant.
    pub me: SignerId,
    /// All participants, this one included: 2 to 255.
    pub signers: BTreeSet<SignerId>,
    /// How many signers a signature will need, from 2 to all.
    pub threshold: u16,
    /// Hash of what the key is for: roster, threshold, vault parameters.
    pub context: [u8; 32],
}

impl Ceremony {
    /// What every message of this ceremony carries: a hash of context, threshold and participants.
    /// The same for all participants.
    pub fn id(&self) -> CeremonyId {
        let ids: Vec<u8> = self.signers.iter().flat_map(|id| id.to_bytes()).collect();
        let threshold = self.threshold.to_be_bytes();
        CeremonyId(hash::tagged(
            "drawbridge/dkg/ceremony",
            [&self.context[..], &threshold, &ids],
        ))
    }

    /// # Errors
    /// [`CeremonyError`] if the numbers are out of bounds or this participant is not one of them.
    pub fn check(&self) -> Result<(), CeremonyError> {
        let signers = self.signers.len();
        let threshold = self.threshold;
        if signers > MAX_SIGNERS || threshold < MIN_THRESHOLD || usize::from(threshold) > signers {
            return Err(CeremonyError::Bounds { threshold, signers });
        }
        if !self.signers.contains(&self.me) {
            return Err(CeremonyError::NotAmongSigners(self.me));
        }
        Ok(())
    }
}

/// Why there can be no such ceremony.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CeremonyError {
    /// Not 2 <= threshold <= signers <= 255.
    #[error("{threshold} of {signers} signers is not a group")]
    Bounds {
        /// Signers needed for a signature.
        threshold: u16,
        /// Signers in all.
        signers: usize,
    },
    /// This participant is not one of the signers.
    #[error("{0} takes no part in this ceremony")]
    NotAmongSigners(SignerId),
    /// A refresh to an epoch that does not come after the share's.
    #[error("epoch {epoch} does not come after epoch {own} of the share")]
    Epoch {
        /// Asked for.
        epoch: u32,
        /// The share's.
        own: u32,
    },
    /// FROST refused to make a polynomial.
    #[error("FROST refused to start")]
    Frost(#[source] frost_secp256k1_tr::Error),
}
