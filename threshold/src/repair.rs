//! Repair: t operators give one that has lost its share that share back, and learn nothing of it
//! (Stinson and Wei, "Repairable threshold schemes", <https://eprint.iacr.org/2017/1155>, section 3, as
//! `frost-core` implements it; the public commitments, and with them the blame, are added here).
//!
//! ```text
//!  helper i                          member                          helper j
//!  λ_i·s_i = Σ_j δ_ij
//!  Split: δ_ij·G for all j ─────────► Σ_j = λ_i·Y_i ? ── all splits ─► the same checks
//!  δ_ij ─────────────────────────────────────────────────────────────► δ_ij·G as in i's split ?
//!                                    σ_j·G = Σ_i δ_ij·G ? ◄── σ_j ──── σ_j = Σ_i δ_ij
//!                                    share = Σ_j σ_j, which is λ-combined from t shares
//! ```
//!
//! The t helpers are fixed before it begins. Any single δ or σ is random; a share follows from all σ of one run.
//! A wrong split, δ or σ names its author, so that the next run goes without it:
//! the callers sign splits and δ, and the member relays splits, so nobody can show two.
//!
//! Nothing is stored: a helper's δ follow from its share and the run, so that one that restarts in the middle
//! goes on with the same, and a run that the member gives up leaves nothing behind.

mod helper;
mod member;
mod message;

use std::collections::{BTreeMap, BTreeSet};

use frost_secp256k1_tr::{Field as _, Group as _, Secp256K1Group, Secp256K1ScalarField};
use serde::{Deserialize, Serialize};

use crate::group::{GroupError, Point, Scalar, point, scalar};
use crate::{GroupInfo, SignerId, hash};

pub use helper::{BadDelta, Helper};
pub use member::{Fault, Member};
pub use message::{Delta, RunId, Sigma, Split};

/// One run: whose share, and who helps. Everybody in it agrees on all of it, by [`Run::id`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whose share it is.
    pub member: SignerId,
    /// The t helpers, the member not among them.
    pub helpers: BTreeSet<SignerId>,
    /// [`GroupInfo::digest`] of the group, which names the epoch.
    #[serde(with = "hash::bytes32")]
    pub group: [u8; 32],
    /// What makes the run different from every other: the member's identity key and fresh randomness, hashed.
    #[serde(with = "hash::bytes32")]
    pub context: [u8; 32],
}

impl Run {
    /// The run's name, which is a hash of all of it.
    pub fn id(&self) -> RunId {
        let helpers: Vec<u8> = self.helpers.iter().flat_map(|id| id.to_bytes()).collect();
        let member = self.member.to_bytes();
        RunId(hash::tagged(
            "drawbridge/repair/run",
            [&member[..], &self.group, &self.context, &helpers],
        ))
    }

    /// # Errors
    /// [`RunError`] if there can be no such run in `group`.
    pub fn check(&self, group: &GroupInfo) -> Result<(), RunError> {
        if self.group != group.digest() {
            return Err(RunError::OtherGroup);
        }
        let (helpers, threshold) = (self.helpers.len(), group.threshold());
        if helpers != usize::from(threshold) {
            return Err(RunError::Helpers { helpers, threshold });
        }
        if self.helpers.contains(&self.member) {
            return Err(RunError::HelpsItself(self.member));
        }
        let mut all = self.helpers.iter().chain([&self.member]);
        match all.find(|id| !group.contains(**id)) {
            Some(stranger) => Err(RunError::Stranger(*stranger)),
            None => Ok(()),
        }
    }

    /// Whether a split is one of helper `of`: a commitment for each helper, which add up to λ·Y.
    fn is_split(&self, group: &GroupInfo, of: SignerId, split: &Split) -> bool {
        let sums = || -> Result<bool, GroupError> {
            let theirs = group.verifying_share(of).ok_or(GroupError::Shares)?;
            let theirs = point(&theirs.serialize().map_err(|_| GroupError::Shares)?)?;
            Ok(sum(split.points())? == theirs * self.lagrange(of)?)
        };
        split.len() == self.helpers.len() && sums().unwrap_or(false)
    }

    /// λ of helper `i`: its Lagrange coefficient at the member's identifier.
    fn lagrange(&self, i: SignerId) -> Result<Scalar, GroupError> {
        let (at, own) = (scalar(&self.member.to_bytes())?, scalar(&i.to_bytes())?);
        let mut numerator = Secp256K1ScalarField::one();
        let mut denominator = Secp256K1ScalarField::one();
        for other in self.helpers.iter().filter(|other| **other != i) {
            let other = scalar(&other.to_bytes())?;
            numerator *= at - other;
            denominator *= own - other;
        }
        let inverse = Secp256K1ScalarField::invert(&denominator).map_err(|_| GroupError::Shares)?;
        Ok(numerator * inverse)
    }
}

/// Splits of all helpers.
pub type Splits = BTreeMap<SignerId, Split>;

/// Adds encoded points up.
fn sum<'a>(points: impl Iterator<Item = &'a [u8]>) -> Result<Point, GroupError> {
    let mut sum = Secp256K1Group::identity();
    for encoded in points {
        sum += point(encoded)?;
    }
    Ok(sum)
}

/// Whether `secret`·G is `expected`.
fn opens(secret: &[u8; 32], expected: &Point) -> bool {
    scalar(secret).is_ok_and(|secret| Secp256K1Group::generator() * secret == *expected)
}

/// Why there can be no such run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The run names another group: another key, or another epoch of this one.
    #[error("the run is for another group or epoch")]
    OtherGroup,
    /// Not exactly t helpers.
    #[error("{helpers} helpers, where {threshold} are needed")]
    Helpers {
        /// In the run.
        helpers: usize,
        /// The group's.
        threshold: u16,
    },
    /// The member is among the helpers.
    #[error("{0} can't help to repair its own share")]
    HelpsItself(SignerId),
    /// Member or helper is not of the group.
    #[error("{0} is not a signer of this group")]
    Stranger(SignerId),
    /// This signer does not help in the run.
    #[error("{0} does not help in this run")]
    NoHelper(SignerId),
    /// FROST refused to split the share.
    #[error("FROST refused to split the share")]
    Frost(#[source] frost_secp256k1_tr::Error),
}
