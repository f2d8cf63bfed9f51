//! What a session signs, and with whose nonces.

use std::collections::BTreeMap;
use std::fmt;

use frost_secp256k1_tr::SigningPackage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encoding::PAIR_LEN;
use super::{Commitments, MAX_MESSAGES, Message, Tweak};
use crate::{GroupInfo, SignerId, hash};

/// Memory that the commitments of one session may take at its coordinator, in bytes.
pub const MAX_SESSION_BYTES: usize = 256 << 20;
/// The commitments in one sign request, in bytes: below what one question may be on the network.
pub const MAX_REQUEST_BYTES: usize = 6 << 20;
/// Memory that one decoded pair of commitments takes, with its encoding, in bytes.
const PAIR_BYTES: usize = 384;

/// The most messages that a session with `needed` of `signers` can have, at least 1 and at most
/// [`MAX_MESSAGES`].
///
/// A session has at most `signers - needed + 1` attempts open (ROAST), each with a pair of commitments for
/// each of `needed` signers and each message, and one attempt's commitments travel in one message.
pub fn max_messages(signers: usize, needed: usize) -> usize {
    let attempts = signers.saturating_sub(needed).saturating_add(1);
    let in_memory = attempts.saturating_mul(needed).saturating_mul(PAIR_BYTES);
    let in_request = needed.saturating_mul(PAIR_LEN);
    let fits = |bytes: usize, each: usize| bytes.checked_div(each).unwrap_or(MAX_MESSAGES);
    fits(MAX_SESSION_BYTES, in_memory)
        .min(fits(MAX_REQUEST_BYTES, in_request))
        .clamp(1, MAX_MESSAGES)
}

/// Names a package and the group that signs it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackageHash(#[serde(with = "hash::bytes32")] pub [u8; 32]);

impl fmt::Display for PackageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PackageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = hex::encode(self.0.get(..4).unwrap_or_default());
        write!(f, "PackageHash({short})")
    }
}

/// What a session signs, and with whose nonces. Not serializable on purpose: a signer makes the
/// messages itself from what it has verified (S1), and takes only commitments from the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// In input order.
    pub messages: Vec<Message>,
    /// Those who sign, each with a pair per message.
    pub commitments: BTreeMap<SignerId, Commitments>,
}

impl Package {
    /// Whether this is a package that `group` can sign: a threshold of its signers or more, each with
    /// a commitment pair per message, of points.
    ///
    /// # Errors
    /// [`PackageError`] names the signer, where one is at fault.
    pub fn check(&self, group: &GroupInfo) -> Result<(), PackageError> {
        let messages = self.messages.len();
        if !(1..=MAX_MESSAGES).contains(&messages) {
            return Err(PackageError::MessageCount(messages));
        }
        for (id, commitments) in &self.commitments {
            if !group.contains(*id) {
                return Err(PackageError::Stranger(*id));
            }
            if commitments.len() != messages {
                let (signer, have) = (*id, commitments.len());
                return Err(PackageError::CommitmentCount {
                    signer,
                    have,
                    need: messages,
                });
            }
        }
        let (have, need) = (self.commitments.len(), usize::from(group.threshold()));
        if have < need {
            return Err(PackageError::TooFew { have, need });
        }
        let off_curve = |(_, of): &(&SignerId, &Commitments)| !of.are_points();
        match self.commitments.par_iter().find_any(off_curve) {
            Some((signer, _)) => Err(PackageError::NoPoint(*signer)),
            None => Ok(()),
        }
    }

    /// Names the package and the group, so that a signer can state what it has signed and others can hold it
    /// to that.
    pub fn hash(&self, group: &GroupInfo) -> PackageHash {
        let signers: Vec<[u8; 32]> = self.commitments.keys().map(|id| id.to_bytes()).collect();
        let group = group.hash();
        let counts = [self.messages.len(), self.commitments.len()]
            .map(|count| u64::try_from(count).unwrap_or(u64::MAX).to_le_bytes());
        let messages = self.messages.iter().flat_map(|message| {
            let (kind, root): (&[u8], &[u8]) = match &message.tweak {
                Tweak::Untweaked => (&[0], &[0; 32]),
                Tweak::KeyPath(None) => (&[1], &[0; 32]),
                Tweak::KeyPath(Some(root)) => (&[2], root),
            };
            [message.digest.as_slice(), kind, root]
        });
        let commitments = signers
            .iter()
            .zip(self.commitments.values())
            .flat_map(|(id, commitments)| [id.as_slice(), commitments.bytes()]);
        let head = [group.as_slice(), &counts[0], &counts[1]];
        PackageHash(hash::tagged(
            "drawbridge/package",
            head.into_iter().chain(messages).chain(commitments),
        ))
    }

    /// One message as FROST takes it.
    pub(super) fn session(&self, message: usize) -> Option<SigningPackage> {
        let digest = self.messages.get(message)?.digest;
        let commitments = self
            .commitments
            .iter()
            .map(|(id, of)| Some((id.frost(), *of.pairs()?.get(message)?)))
            .collect::<Option<_>>()?;
        Some(SigningPackage::new(commitments, &digest))
    }
}

/// What is wrong with a [`Package`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// None, or more than [`MAX_MESSAGES`].
    #[error("{0} messages, not 1 to {MAX_MESSAGES}")]
    MessageCount(usize),
    /// Somebody who is not of the group.
    #[error("{0} is not a signer of this group")]
    Stranger(SignerId),
    /// Commitments for another number of messages.
    #[error("{signer} committed to {have} messages, not {need}")]
    CommitmentCount {
        /// Whose commitments.
        signer: SignerId,
        /// How many pairs there are.
        have: usize,
        /// How many messages there are.
        need: usize,
    },
    /// A commitment that is no point of the curve.
    #[error("{0} committed to something that is no point")]
    NoPoint(SignerId),
    /// Fewer signers than the threshold.
    #[error("{have} signers, fewer than the threshold of {need}")]
    TooFew {
        /// Signers in the package.
        have: usize,
        /// The threshold.
        need: usize,
    },
    /// A commitment is the identity, which has no encoding; a fault of the random numbers.
    #[error("the nonces commit to the identity; the random number generator is broken")]
    Identity,
}
