//! What can happen in a run.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{message::Refusal, signer};
use threshold::SignerId;

use crate::signatures::{AnswerOf, CommitmentsOf, Signatures};

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
    RestartOperator(usize),
    RestartCoordinator,
    Chat {
        operator: usize,
        count: u32,
    },
}
