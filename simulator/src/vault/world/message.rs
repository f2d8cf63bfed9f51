//! What nodes say to each other.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::Txid;
use ledger::Operation;
use protocol::{
    batch::{Body, Candidate},
    message::{Refusal, SessionId},
};
use threshold::SignerId;

use crate::signatures::{AnswerOf, CommitmentsOf, Signatures};

/// A message.
pub(super) enum Message<C: Signatures> {
    Propose(Candidate, Arc<Body>),
    Accept(SessionId, CommitmentsOf<C>),
    Refuse(SessionId, Refusal),
    Sign {
        session: SessionId,
        attempt: u32,
        commitments: Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
    },
    Answer(SessionId, u32, AnswerOf<C>),
    Declined(SessionId, u32, Refusal),
    PassOn(SessionId, Candidate, Arc<Body>),
    Receipt(SessionId),
    Signed(Txid),
    Copy(Operation),
    Kept(u32, u64),
    AskBatch(Txid),
    Batch(Candidate, Arc<Body>),
    AskRequests,
    Requests(Vec<Operation>),
}

impl<C: Signatures> Clone for Message<C> {
    fn clone(&self) -> Self {
        match self {
            Self::Propose(candidate, body) => Self::Propose(candidate.clone(), body.clone()),
            Self::Accept(id, commitments) => Self::Accept(*id, commitments.clone()),
            Self::Refuse(id, refusal) => Self::Refuse(*id, refusal.clone()),
            Self::Sign {
                session,
                attempt,
                commitments,
            } => Self::Sign {
                session: *session,
                attempt: *attempt,
                commitments: commitments.clone(),
            },
            Self::Answer(id, attempt, answer) => Self::Answer(*id, *attempt, answer.clone()),
            Self::Declined(id, attempt, refusal) => Self::Declined(*id, *attempt, refusal.clone()),
            Self::PassOn(id, candidate, body) => Self::PassOn(*id, candidate.clone(), body.clone()),
            Self::Receipt(id) => Self::Receipt(*id),
            Self::Signed(txid) => Self::Signed(*txid),
            Self::Copy(operation) => Self::Copy(operation.clone()),
            Self::Kept(sender, nonce) => Self::Kept(*sender, *nonce),
            Self::AskBatch(txid) => Self::AskBatch(*txid),
            Self::Batch(candidate, body) => Self::Batch(candidate.clone(), body.clone()),
            Self::AskRequests => Self::AskRequests,
            Self::Requests(list) => Self::Requests(list.clone()),
        }
    }
}
