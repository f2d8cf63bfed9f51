//! What can happen in a run.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    identity::PeerKey,
    message::{Refusal, Subject},
    signer,
};
use threshold::SignerId;

use crate::signatures::{AnswerOf, CommitmentsOf, Signatures};

/// A sign request with entries of the pool.
pub struct Pooled<C: Signatures> {
    pub from: PeerKey,
    pub incarnation: u32,
    pub subject: Subject,
    pub attempt: u32,
    pub commitments: Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
    pub asked_ms: u64,
}

/// Something that happens at some time: a message that arrives, or a node's own doing. Nodes are numbered in the order
/// of the schedule.
pub enum Event<C: Signatures> {
    Proposal {
        to: usize,
        from: usize,
    },
    /// Something comes back to an operator's machine.
    Machine {
        operator: usize,
        boot: u32,
        input: signer::Input,
    },
    Accept {
        to: usize,
        from: usize,
        commitments: CommitmentsOf<C>,
    },
    Refuse {
        to: usize,
        from: usize,
        refusal: Refusal,
    },
    Sign {
        to: usize,
        from: usize,
        incarnation: u32,
        attempt: u32,
        commitments: Arc<BTreeMap<SignerId, CommitmentsOf<C>>>,
        asked_ms: u64,
    },
    /// A proposal and its sign request in one. Not always of a coordinator that has a session.
    SignPooled {
        to: usize,
        request: Arc<Pooled<C>>,
    },
    /// A coordinator that lies.
    Probe,
    /// Reaches whatever session its coordinator has by then.
    Answer {
        to: usize,
        from: usize,
        attempt: u32,
        answer: AnswerOf<C>,
    },
    Lost {
        to: usize,
        from: usize,
        incarnation: u32,
        attempt: u32,
        refusal: Option<Refusal>,
    },
    Repeat {
        coordinator: usize,
        incarnation: u32,
    },
    Held {
        coordinator: usize,
        incarnation: u32,
    },
    Waited {
        coordinator: usize,
        incarnation: u32,
    },
    RestartOperator(usize),
    RestartCoordinator,
    Chat {
        operator: usize,
        count: u32,
    },
}
