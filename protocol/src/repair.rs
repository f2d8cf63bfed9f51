//! What member and helpers of a repair say (`threshold::repair`), each statement signed by its author, so that a lie
//! is evidence. The member asks; helpers ask one another for the secret parts.
//!
//! ```text
//! member --Ask::Repair--> helper: refused | ready (approved) | split | waiting | sum | accusation
//! helper --Ask::Delta---> helper: its δ
//! ```

use serde::{Deserialize, Serialize};
use threshold::{
    SignerId,
    repair::{Delta, Run, RunId, Sigma, Split},
};

use crate::{
    hash,
    identity::{PeerKey, Signed},
};

/// Domain of signed splits.
pub const SPLIT_DOMAIN: &str = "repair/split/1";
/// Domain of signed deltas.
pub const DELTA_DOMAIN: &str = "repair/delta/1";

/// A helper's split in one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSplit {
    /// The run.
    pub run: RunId,
    /// Public commitments.
    pub split: Split,
}

/// A helper's δ for another helper in one run. Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDelta {
    /// The run.
    pub run: RunId,
    /// For whom.
    pub to: SignerId,
    /// Secret.
    pub delta: Delta,
}

/// What the member asks of a helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairAsk {
    /// "Has your administrator approved my key?"
    Ready,
    /// "Your part of this run, please."
    Run {
        /// The run.
        run: Run,
        /// Every helper's split, once the member has them all.
        splits: Vec<Signed<RunSplit>>,
    },
}

/// What a helper answers the member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RepairAnswer {
    /// Approved.
    Ready,
    /// Its split; it waits for everybody's.
    Split(Signed<RunSplit>),
    /// It has everybody's splits and waits for the δ of these.
    Waiting(Vec<SignerId>),
    /// The δ that another helper sent it, which is not what that one had committed to.
    Accusation(Signed<RunDelta>),
    /// Its sum. Secret.
    Sum(Sigma),
}

/// The context of a run: the member's identity key, and 32 fresh random bytes that make the run different from
/// every other.
pub fn context(member: &PeerKey, fresh: &[u8; 32]) -> [u8; 32] {
    hash::tagged("drawbridge/repair/context", &[&member.0, fresh])
}
