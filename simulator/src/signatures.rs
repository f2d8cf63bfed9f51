//! What the simulated operators need of cryptography: the other side of [`protocol::signing::Scheme`].

use std::{collections::BTreeMap, fmt, sync::Arc};

use protocol::{message::SessionId, signing::Scheme, transaction::BatchTransaction};
use threshold::{SignerId, sign::PackageHash};

use crate::{deal::DealError, schedule::Group};

/// Commitments of a kind of signatures.
pub type CommitmentsOf<C> = <<C as Signatures>::Scheme as Scheme>::Commitments;
/// Answers of a kind of signatures.
pub type AnswerOf<C> = <<C as Signatures>::Scheme as Scheme>::Answer;
/// Signatures of a kind.
pub type SignatureOf<C> = <<C as Signatures>::Scheme as Scheme>::Signature;

/// How a corrupt operator answers a sign request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A share that is off.
    WrongShare,
    /// A share made with other nonces than were committed to.
    OtherNonces,
    /// A share too few.
    TooFew,
    /// A statement about something that was not asked for.
    OtherPackage,
    /// The commitments that were just used, for the next attempt.
    UsedNext,
}

/// All lies.
pub const LIES: [Lie; 5] = [
    Lie::WrongShare,
    Lie::OtherNonces,
    Lie::TooFew,
    Lie::OtherPackage,
    Lie::UsedNext,
];

/// A sign request as an operator takes it.
#[derive(Debug)]
pub struct Request<'a, C: Signatures + ?Sized> {
    /// The session.
    pub session: SessionId,
    /// The attempt.
    pub attempt: u32,
    /// The signers of the attempt and their commitments.
    pub commitments: &'a Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
}

/// Makes and spoils shares.
pub trait Signatures {
    /// What coordinators use.
    type Scheme: Scheme;
    /// Secret nonces: good for one share.
    type Nonces;

    /// For the signatures of one transaction. The number keeps what is made for one apart from what is made for another.
    ///
    /// # Errors
    /// [`DealError`] if the group has no keys.
    fn over(group: &Group, number: u64, transaction: &BatchTransaction) -> Result<Self, DealError>
    where
        Self: Sized;

    /// For a coordinator.
    fn scheme(&self) -> Self::Scheme;

    /// Fresh nonces of a signer.
    fn commit(&mut self, signer: SignerId) -> (Self::Nonces, CommitmentsOf<Self>);

    /// Names nonces by their commitments.
    fn name(commitments: &CommitmentsOf<Self>) -> u64;

    /// What an honest operator answers.
    fn sign(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        nonces: Self::Nonces,
        next: CommitmentsOf<Self>,
    ) -> AnswerOf<Self>;

    /// What a corrupt one answers instead of that.
    fn spoil(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        answer: &AnswerOf<Self>,
        lie: Lie,
    ) -> AnswerOf<Self>;

    /// The nonces of these commitments once more, for an operator that keeps what it must forget. Only made-up ones
    /// can be had again.
    fn again(_: &CommitmentsOf<Self>) -> Option<Self::Nonces> {
        None
    }

    /// Whether an answer, as the coordinator blames its signer for it, shows that the signer is at fault.
    fn is_evidence(
        &self,
        signer: SignerId,
        commitments: &BTreeMap<SignerId, CommitmentsOf<Self>>,
        answer: &AnswerOf<Self>,
    ) -> bool;

    /// What an answer says that it is for.
    fn package(&self, answer: &AnswerOf<Self>) -> PackageHash {
        self.scheme().package(answer)
    }

    /// Whether these are the signatures that were asked for.
    fn are_right(&self, signatures: &[SignatureOf<Self>]) -> bool;
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongShare => "a wrong share",
            Self::OtherNonces => "a share of other nonces",
            Self::TooFew => "a share too few",
            Self::OtherPackage => "a share for something else",
            Self::UsedNext => "used commitments",
        })
    }
}
