//! What a session hears, and what it has its caller do.

use std::collections::{BTreeMap, BTreeSet};

use threshold::SignerId;

use super::{Frost, Scheme};
use crate::message::Refusal;

/// What the session hears.
#[derive(Clone, Debug)]
pub enum Input<S: Scheme = Frost> {
    /// An operator has verified the subject.
    Accepted {
        /// Who.
        from: SignerId,
        /// Its round 1.
        commitments: S::Commitments,
    },
    /// Commitments that operators have handed out ahead of time, one vector each. Before anything else that a session
    /// hears.
    Pooled(BTreeMap<SignerId, S::Commitments>),
    /// An operator will not sign.
    Refused {
        /// Who.
        from: SignerId,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to a sign request, with round 1 for a next attempt.
    Answered {
        /// Who.
        from: SignerId,
        /// Which attempt.
        attempt: u32,
        /// Its round 2.
        answer: S::Answer,
    },
    /// A sign request could not be delivered, or the operator did not take it.
    Lost {
        /// Who.
        from: SignerId,
        /// Which attempt.
        attempt: u32,
        /// What the operator said, if it said anything.
        refusal: Option<Refusal>,
    },
    /// The subject was proposed once more: a new round, in which pending signers may accept anew.
    Repeated,
    /// The time that [`Effect::Hold`] asked for is over.
    HeldLongEnough,
    /// The time that [`Effect::Wait`] asked for is over.
    WaitedLongEnough,
}

/// What the caller must do.
#[derive(Clone, Debug)]
pub enum Effect<S: Scheme = Frost> {
    /// Send the sign request of an attempt.
    Request {
        /// Which attempt.
        attempt: u32,
        /// Its signers and their commitments.
        commitments: BTreeMap<SignerId, S::Commitments>,
        /// To whom: all of its signers, or one that was not reached before.
        to: BTreeSet<SignerId>,
    },
    /// Send the proposal and the sign request of this attempt in one, to all of its signers. What they were handed out
    /// ahead of time is used up.
    Pooled {
        /// Which attempt: the first.
        attempt: u32,
        /// Its signers and their commitments.
        commitments: BTreeMap<SignerId, S::Commitments>,
    },
    /// All inputs are signed.
    Finished {
        /// One BIP-340 signature an input, verified.
        signatures: Vec<S::Signature>,
        /// Who signed.
        signers: BTreeSet<SignerId>,
        /// Attempts started.
        attempts: u32,
        /// Whether the signatures are of the attempt that began with commitments from the pool.
        pooled: bool,
    },
    /// A signer sent a bad share.
    Blame {
        /// Who.
        signer: SignerId,
        /// In which attempt.
        attempt: u32,
        /// The attempt's signers and their commitments.
        commitments: BTreeMap<SignerId, S::Commitments>,
        /// What it said.
        answer: S::Answer,
    },
    /// Enough are ready, but some of them have done badly before: say [`Input::HeldLongEnough`] after a
    /// moment, in which better ones may come.
    Hold,
    /// Enough are ready for a second attempt, and nothing is wrong with the first: say [`Input::WaitedLongEnough`] when
    /// the first has taken about twice as long as until now. At most once in a session.
    Wait,
}

/// Why an input was refused; the state is as before.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Reject {
    /// Not an operator of this vault.
    #[error("{0} is not a signer of this group")]
    Stranger(SignerId),
    /// It has sent a bad share in this session.
    #[error("{0} was blamed in this session")]
    Blamed(SignerId),
    /// An accept while a sign request to the same signer is open: nothing new, or too soon after the last.
    #[error("{0} has a sign request to answer")]
    Pending(SignerId),
    /// Commitments that an attempt has used up: a message that comes late or twice.
    #[error("{0} repeats commitments that were used")]
    Stale(SignerId),
    /// An answer to nothing that was asked.
    #[error("{0} was not asked for attempt {1}")]
    NotAsked(SignerId, u32),
    /// An answer that is here already.
    #[error("{0} has answered attempt {1} before")]
    Duplicate(SignerId, u32),
    /// An answer to a package with other messages, commitments or verifying shares than were asked for.
    /// Either side may be wrong, so nobody is blamed.
    #[error("{0} has signed something else than attempt {1}")]
    OtherPackage(SignerId, u32),
    /// Commitments from the pool when there are others already.
    #[error("the session has begun without the pool")]
    Begun,
    /// Too few signers of good standing have handed out commitments that fit.
    #[error("{0} signers have commitments in the pool, {1} are needed")]
    TooFew(usize, usize),
    /// Commitments for another number of inputs, or some that are none.
    #[error("{0} sent a wrong number of commitments, or some that are no points")]
    Length(SignerId),
    /// The session is over.
    #[error("the session is finished")]
    Finished,
    /// Aggregation of shares that had all verified failed; a fault of our own.
    #[error("aggregation failed: {0}")]
    Aggregate(String),
}
