//! Signatures that cost nothing: a share says whether it is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use protocol::signing::{Failure, Scheme};
use threshold::{SignerId, sign::PackageHash};

use crate::{
    schedule::Group,
    signatures::{Lie, Request, Signatures},
};

/// Commitments by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeCommitments {
    number: u64,
    has_right_length: bool,
}

/// A share that knows what it is worth.
#[derive(Clone, Debug)]
pub struct FakeAnswer {
    package: PackageHash,
    is_right: bool,
    has_right_length: bool,
    next: FakeCommitments,
}

/// Nonces by number. Not `Clone`, as real ones.
#[derive(Debug)]
pub struct FakeNonces(u64);

/// The coordinator's side.
#[derive(Clone, Debug)]
pub struct FakeScheme(Arc<BTreeSet<SignerId>>);

impl Scheme for FakeScheme {
    type Commitments = FakeCommitments;
    type Answer = FakeAnswer;
    type Signature = ();

    fn signers(&self) -> BTreeSet<SignerId> {
        (*self.0).clone()
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
        let wrong = answers.iter().filter(|(_, answer)| !answer.is_right);
        wrong.map(|(signer, _)| *signer).collect()
    }

    fn aggregate(
        &self,
        commitments: &BTreeMap<SignerId, FakeCommitments>,
        answers: &BTreeMap<SignerId, FakeAnswer>,
    ) -> Result<Vec<()>, Failure> {
        let culprits = self.culprits(commitments, answers);
        if culprits.is_empty() {
            Ok(vec![()])
        } else {
            Err(Failure::BadShares(culprits))
        }
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
            scheme: FakeScheme(Arc::new(group.signers().collect())),
            numbers: 0,
        }
    }
}

impl Signatures for Fake {
    type Scheme = FakeScheme;
    type Nonces = FakeNonces;

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

    fn is_evidence(
        &self,
        _: SignerId,
        commitments: &BTreeMap<SignerId, FakeCommitments>,
        answer: &FakeAnswer,
    ) -> bool {
        answer.package == self.scheme.name(commitments)
            && !(answer.is_right && answer.has_right_length)
    }

    fn are_right(&self, signatures: &[()]) -> bool {
        signatures.len() == 1
    }
}
