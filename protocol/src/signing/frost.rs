//! A session's cryptography in the nodes: FROST shares, each stated by its operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::secp256k1::schnorr;
use threshold::{
    GroupInfo, SignerId,
    sign::{self, AggregateError, Commitments, Message, Package, PackageHash, Shares},
};

use super::{Failure, Scheme};
use crate::blame::Statement;

/// What a session signs, and who can.
#[derive(Clone, Debug)]
pub struct Frost {
    group: GroupInfo,
    messages: Vec<Message>,
}

impl Frost {
    /// Signatures of `messages` by the group.
    pub fn new(group: GroupInfo, messages: Vec<Message>) -> Self {
        Self { group, messages }
    }

    /// The group.
    pub fn group(&self) -> &GroupInfo {
        &self.group
    }

    /// The messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    fn package(&self, commitments: &BTreeMap<SignerId, Commitments>) -> Package {
        Package {
            messages: self.messages.clone(),
            commitments: commitments.clone(),
        }
    }
}

fn shares(answers: &BTreeMap<SignerId, Arc<Statement>>) -> BTreeMap<SignerId, &Shares> {
    answers
        .iter()
        .map(|(signer, answer)| (*signer, &answer.said().shares))
        .collect()
}

impl Scheme for Frost {
    type Commitments = Commitments;
    type Answer = Arc<Statement>;
    type Signature = schnorr::Signature;

    fn signers(&self) -> BTreeSet<SignerId> {
        self.group.signers().collect()
    }

    fn fits(&self, commitments: &Commitments) -> bool {
        commitments.len() == self.messages.len() && commitments.are_points()
    }

    fn name(&self, commitments: &BTreeMap<SignerId, Commitments>) -> PackageHash {
        self.package(commitments).hash(&self.group)
    }

    fn package(&self, answer: &Arc<Statement>) -> PackageHash {
        answer.said().package
    }

    fn next<'a>(&self, answer: &'a Arc<Statement>) -> &'a Commitments {
        &answer.said().next
    }

    fn has_right_length(&self, answer: &Arc<Statement>) -> bool {
        let said = answer.said();
        said.shares.len() == self.messages.len() && said.next.len() == self.messages.len()
    }

    fn culprits(
        &self,
        commitments: &BTreeMap<SignerId, Commitments>,
        answers: &BTreeMap<SignerId, Arc<Statement>>,
    ) -> BTreeSet<SignerId> {
        // A package that can't be used names nobody.
        sign::culprits(&self.group, &self.package(commitments), &shares(answers))
            .unwrap_or_default()
    }

    fn aggregate(
        &self,
        commitments: &BTreeMap<SignerId, Commitments>,
        answers: &BTreeMap<SignerId, Arc<Statement>>,
    ) -> Result<Vec<schnorr::Signature>, Failure> {
        sign::aggregate(&self.group, &self.package(commitments), &shares(answers)).map_err(
            |error| match error {
                AggregateError::BadShares { culprits } => Failure::BadShares(culprits),
                other => Failure::Fault(other.to_string()),
            },
        )
    }
}
