//! A bad share as evidence that anybody can check. An operator states its shares under its identity key,
//! together with a hash of everything that they depend on: messages, everybody's commitments, verifying
//! shares. It states nothing else, so a statement whose shares do not verify condemns its author, whatever
//! coordinator shows it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use threshold::{
    GroupInfo, SignerId,
    sign::{self, BadShare, Commitments, Message, Package, PackageHash, Shares},
};

use crate::{
    hash,
    identity::{IdentityError, PeerKey, Signed},
    message::SessionId,
    roster::Roster,
};

/// Domain of signed [`Round2`]s.
pub const ROUND2_DOMAIN: &str = "round2/1";

/// An operator's answer to a sign request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round2 {
    /// The session.
    pub session: SessionId,
    /// The attempt.
    pub attempt: u32,
    /// What was signed: the messages, commitments and group as the operator knows them.
    pub package: PackageHash,
    /// One share an input.
    pub shares: Shares,
    /// Round 1 of the next attempt.
    pub next: Commitments,
}

/// A [`Round2`] whose author is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    by: PeerKey,
    said: Round2,
    signed: Signed<Round2>,
}

/// Why an answer is no statement.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StatementError {
    /// Not signed by whoever it says.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Somebody else's, or about another request.
    #[error("the answer is not this operator's to this request")]
    Other,
}

impl Statement {
    /// The statement of `by` about an attempt.
    ///
    /// # Errors
    /// [`StatementError`].
    pub fn verify(
        signed: Signed<Round2>,
        by: &PeerKey,
        session: &SessionId,
        attempt: u32,
    ) -> Result<Self, StatementError> {
        let (author, said) = signed.verify(ROUND2_DOMAIN)?;
        if author != *by || said.session != *session || said.attempt != attempt {
            return Err(StatementError::Other);
        }
        let said = said.clone();
        Ok(Self {
            by: author,
            said,
            signed,
        })
    }

    /// Who said it.
    pub fn by(&self) -> PeerKey {
        self.by
    }

    /// What was said.
    pub fn said(&self) -> &Round2 {
        &self.said
    }

    /// As it came.
    pub fn signed(&self) -> &Signed<Round2> {
        &self.signed
    }
}

/// All that is needed to show that a share is bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The group with its verifying shares.
    pub group: GroupInfo,
    /// What was signed.
    pub messages: Vec<Message>,
    /// The signers of the attempt and their commitments.
    pub commitments: BTreeMap<SignerId, Commitments>,
    /// The operator's statement.
    pub statement: Signed<Round2>,
}

hash::id!(
    /// Names a piece of evidence.
    EvidenceId
);

/// What evidence shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The operator.
    pub operator: PeerKey,
    /// Its session.
    pub session: SessionId,
    /// The attempt.
    pub attempt: u32,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// The share of this input does not verify.
    Share(usize),
    /// Not a share and a pair of commitments an input.
    Count,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(input) => write!(f, "the share of input {input} does not verify"),
            Self::Count => f.write_str("not one share and one pair of commitments an input"),
        }
    }
}

/// Why evidence shows nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EvidenceError {
    /// The statement is not its author's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The author is no operator.
    #[error("{0} is not an operator of this vault")]
    Stranger(PeerKey),
    /// The bytes are no evidence.
    #[error("the bytes are no evidence")]
    Encoding,
    /// The statement is about something else than what is shown beside it.
    #[error("the statement is about another package")]
    OtherPackage,
    /// The package can't be signed by anybody.
    #[error("the package is unusable: {0}")]
    Unusable(BadShare),
    /// The shares are right.
    #[error("the shares verify")]
    Innocent,
}

impl Evidence {
    /// The bytes that are handed on.
    pub fn encode(&self) -> Vec<u8> {
        // Postcard does not fail on this type; no bytes would be no evidence.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads [`Self::encode`] back.
    ///
    /// # Errors
    /// [`EvidenceError::Encoding`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        match postcard::take_from_bytes(bytes) {
            Ok((evidence, [])) => Ok(evidence),
            _ => Err(EvidenceError::Encoding),
        }
    }

    /// Names it.
    pub fn id(&self) -> EvidenceId {
        EvidenceId(hash::tagged("drawbridge/evidence", &[&self.encode()]))
    }

    /// What it shows, by FROST's own check of each share. It needs no trust in whoever has collected it, only
    /// the roster, to know the operators by.
    ///
    /// # Errors
    /// [`EvidenceError`] if it shows nothing.
    pub fn check(&self, roster: &Roster) -> Result<Fault, EvidenceError> {
        let (operator, said) = self.statement.verify(ROUND2_DOMAIN)?;
        let signer = roster
            .signer(&operator)
            .ok_or(EvidenceError::Stranger(operator))?;
        let package = Package {
            messages: self.messages.clone(),
            commitments: self.commitments.clone(),
        };
        if package.hash(&self.group) != said.package {
            return Err(EvidenceError::OtherPackage);
        }
        let fault = |kind| Fault {
            operator,
            session: said.session,
            attempt: said.attempt,
            kind,
        };
        match sign::verify_shares(&self.group, &package, signer, &said.shares) {
            Ok(()) if said.next.len() != self.messages.len() => Ok(fault(FaultKind::Count)),
            Ok(()) => Err(EvidenceError::Innocent),
            Err(BadShare::Count { .. }) => Ok(fault(FaultKind::Count)),
            Err(BadShare::Invalid { message, .. }) => Ok(fault(FaultKind::Share(message))),
            Err(unusable) => Err(EvidenceError::Unusable(unusable)),
        }
    }
}
