//! Signatures that cost nothing: a share says whether it is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use protocol::{
    signing::{Failure, Scheme},
    transaction::BatchTransaction,
};
use threshold::{SignerId, sign::PackageHash};

use crate::{
    deal::DealError,
    fault::Fault,
    schedule::Group,
    signatures::{Lie, Request, Signatures},
};

/// Commitments by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeCommitments {
    number: u64,
    has_right_length: bool,
}

/// A share that knows whose it is and what it is worth.
#[derive(Clone, Debug)]
pub struct FakeAnswer {
    by: SignerId,
    package: PackageHash,
    is_right: bool,
    has_right_length: bool,
    next: FakeCommitments,
}

/// Nonces by number. Not `Clone`, as real ones.
#[derive(Debug)]
pub struct FakeNonces(u64);

/// A signature that knows whether it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeSignature {
    is_right: bool,
}

/// The coordinator's side.
#[derive(Clone, Debug)]
pub struct FakeScheme {
    signers: Arc<BTreeSet<SignerId>>,
    fault: Option<Fault>,
}

impl Scheme for FakeScheme {
    type Commitments = FakeCommitments;
    type Answer = FakeAnswer;
    type Signature = FakeSignature;

    fn signers(&self) -> BTreeSet<SignerId> {
        (*self.signers).clone()
    }

    fn fits(&self, commitments: &FakeCommitments) -> bool {
        commitments.has_right_length
    }

    fn name(&self, commitments: &BTreeMap<SignerId, FakeCommitments>) -> PackageHash {
        let mut hasher = DefaultHasher::new();
        for (signer, commitments) in commitments {
            (signer, commitments.number).hash(&mut hasher);
        }
        let mut name = [0; 32];
        let bytes = hasher.finish().to_le_bytes();
        name.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        PackageHash(name)
    }

    fn package(&self, answer: &FakeAnswer) -> PackageHash {
        answer.package
    }

    fn next<'a>(&self, answer: &'a FakeAnswer) -> &'a FakeCommitments {
        &answer.next
    }

    fn has_right_length(&self, answer: &FakeAnswer) -> bool {
        answer.has_right_length
    }

    fn culprits(
        &self,
        _: &BTreeMap<SignerId, FakeCommitments>,
        answers: &BTreeMap<SignerId, FakeAnswer>,
    ) -> BTreeSet<SignerId> {
        let is_culprit = |answer: &FakeAnswer| match self.fault {
            Some(Fault::TakesBadShares | Fault::ExcusesBadShares) => false,
            Some(Fault::BlamesOthers) => answer.is_right,
            _ => !answer.is_right,
        };
        let wrong = answers.iter().filter(|(_, answer)| is_culprit(answer));
        wrong.map(|(signer, _)| *signer).collect()
    }

    fn aggregate(
        &self,
        commitments: &BTreeMap<SignerId, FakeCommitments>,
        answers: &BTreeMap<SignerId, FakeAnswer>,
    ) -> Result<Vec<FakeSignature>, Failure> {
        let is_right = answers.values().all(|answer| answer.is_right);
        if is_right || self.fault == Some(Fault::TakesBadShares) {
            return Ok(vec![FakeSignature { is_right }]);
        }
        if self.fault == Some(Fault::ExcusesBadShares) {
            return Err(Failure::Fault("no share is to blame".to_owned()));
        }
        Err(Failure::BadShares(self.culprits(commitments, answers)))
    }
}

/// The operators' side.
#[derive(Debug)]
pub struct Fake {
    scheme: FakeScheme,
    numbers: u64,
}

impl Fake {
    /// For a group.
    pub fn new(group: &Group) -> Self {
        Self {
            scheme: FakeScheme {
                signers: Arc::new(group.signers().collect()),
                fault: None,
            },
            numbers: 0,
        }
    }

    /// For a group whose coordinators have this fault.
    pub fn broken(group: &Group, fault: Fault) -> Self {
        let mut broken = Self::new(group);
        broken.scheme.fault = Some(fault);
        broken
    }
}

impl Signatures for Fake {
    type Scheme = FakeScheme;
    type Nonces = FakeNonces;

    fn over(group: &Group, number: u64, _: &BatchTransaction) -> Result<Self, DealError> {
        let mut fake = Self::new(group);
        fake.numbers = number << 32;
        Ok(fake)
    }

    fn scheme(&self) -> FakeScheme {
        self.scheme.clone()
    }

    fn commit(&mut self, _: SignerId) -> (FakeNonces, FakeCommitments) {
        self.numbers = self.numbers.saturating_add(1);
        let commitments = FakeCommitments {
            number: self.numbers,
            has_right_length: true,
        };
        (FakeNonces(self.numbers), commitments)
    }

    fn name(commitments: &FakeCommitments) -> u64 {
        commitments.number
    }

    fn sign(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        nonces: FakeNonces,
        next: FakeCommitments,
    ) -> FakeAnswer {
        let committed = request.commitments.get(&signer);
        FakeAnswer {
            by: signer,
            package: self.scheme.name(request.commitments),
            is_right: committed.is_some_and(|committed| committed.number == nonces.0),
            has_right_length: true,
            next,
        }
    }

    fn spoil(
        &mut self,
        signer: SignerId,
        request: &Request<'_, Self>,
        answer: &FakeAnswer,
        lie: Lie,
    ) -> FakeAnswer {
        let mut answer = answer.clone();
        match lie {
            Lie::WrongShare | Lie::OtherNonces => answer.is_right = false,
            Lie::TooFew => answer.has_right_length = false,
            Lie::OtherPackage => answer.package = PackageHash([0xFF; 32]),
            Lie::UsedNext => {
                if let Some(used) = request.commitments.get(&signer) {
                    answer.next = *used;
                }
            }
        }
        answer
    }

    fn again(commitments: &FakeCommitments) -> Option<FakeNonces> {
        Some(FakeNonces(commitments.number))
    }

    fn is_evidence(
        &self,
        signer: SignerId,
        commitments: &BTreeMap<SignerId, FakeCommitments>,
        answer: &FakeAnswer,
    ) -> bool {
        answer.by == signer
            && answer.package == self.scheme.name(commitments)
            && !(answer.is_right && answer.has_right_length)
    }

    fn are_right(&self, signatures: &[FakeSignature]) -> bool {
        matches!(signatures, [one] if one.is_right)
    }
}
