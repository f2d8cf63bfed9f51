//! The cryptography that a session needs, behind a small trait: FROST in the nodes, and something cheaper in
//! most of the simulator's schedules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use threshold::{SignerId, sign::PackageHash};

/// Signs the messages of one session.
pub trait Scheme: Clone + fmt::Debug {
    /// One signer's round 1.
    type Commitments: Clone + PartialEq + fmt::Debug;
    /// One signer's round 2, with its round 1 for a next attempt.
    type Answer: Clone + fmt::Debug;
    /// What comes of an attempt, once a message.
    type Signature: Clone + fmt::Debug;

    /// Everybody who holds a share.
    fn signers(&self) -> BTreeSet<SignerId>;

    /// Whether there is a commitment for each message, and each is one. May take time, the first time.
    fn fits(&self, commitments: &Self::Commitments) -> bool;

    /// Names what the signers of an attempt are asked to sign, and with whose commitments.
    fn name(&self, commitments: &BTreeMap<SignerId, Self::Commitments>) -> PackageHash;

    /// What the signer says that it has signed.
    fn package(&self, answer: &Self::Answer) -> PackageHash;

    /// Round 1 for a next attempt.
    fn next<'a>(&self, answer: &'a Self::Answer) -> &'a Self::Commitments;

    /// Whether there is a share, and a commitment, for each message.
    fn has_right_length(&self, answer: &Self::Answer) -> bool;

    /// Whose shares are wrong. The answers are of some signers of the attempt.
    fn culprits(
        &self,
        commitments: &BTreeMap<SignerId, Self::Commitments>,
        answers: &BTreeMap<SignerId, Self::Answer>,
    ) -> BTreeSet<SignerId>;

    /// The signatures. The answers are of all signers of the attempt.
    ///
    /// # Errors
    /// [`Failure`].
    fn aggregate(
        &self,
        commitments: &BTreeMap<SignerId, Self::Commitments>,
        answers: &BTreeMap<SignerId, Self::Answer>,
    ) -> Result<Vec<Self::Signature>, Failure>;
}

/// Why an attempt with all answers gives no signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The shares of these are wrong; at least one.
    BadShares(BTreeSet<SignerId>),
    /// No share is to blame.
    Fault(String),
}
