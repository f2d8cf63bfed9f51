//! Where a batch is, and what moves it and the requests in it ([`request`]): one flat match, without I/O.
//!
//! ```text
//! Formed --proven--> Proven --signed--> Signed --submitted--> Broadcast --connected--> Confirmed --deep--> Final
//!    |                  |                  |                      |  ^                     |               |
//!    '------------------+------------------+----------dissolved---'  '----------------disconnected---------'
//!                                |
//!                                v
//!                            Abandoned: its requests are queued again
//! ```
//!
//! The chain moves a batch whatever stage it was thought to be in: a node may have died between a step and its record.
//! A fee bump ([`crate::bump`]) gives a batch another transaction and leaves it where it is: it is broadcast before and
//! after. A block may have any of its transactions.
//!
//! An input that says what is so already changes nothing, so whoever does not know whether a step was taken takes it
//! again.

pub mod request;

use crate::api::BatchStatus;

/// What has happened to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Its proofs are made.
    Proven,
    /// Its transaction has all signatures.
    Signed,
    /// The own node has its transaction.
    Submitted,
    /// A block of the best chain has its transaction.
    Connected,
    /// That block is as deep as the vault's parameters ask.
    Deep,
    /// That block is not in the best chain any more.
    Disconnected,
    /// It can't, or shall not, be confirmed.
    Dissolved,
}

/// What must be done for a batch in its new place. Done again after a restart, so each is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Have it signed.
    Sign,
    /// Give its transaction to the own node.
    Submit,
    /// See that its transaction stays in the mempool until a block has it.
    Watch,
    /// Queue its requests again, in their order.
    Requeue,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The batch's place.
    pub batch: BatchStatus,
    /// What this is to its requests; `None` when they stay where they are.
    pub requests: Option<request::Input>,
    /// What to do now.
    pub effect: Option<Effect>,
}

/// An input that can't be true of a batch in this place: a fault of the caller, or of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a batch that is {batch:?} can't be {input:?}")]
pub struct Reject {
    /// Where the batch is.
    pub batch: BatchStatus,
    /// What was said of it.
    pub input: Input,
}

/// The next place of a batch; `None` when it is there already.
///
/// # Errors
/// [`Reject`]; nothing changes.
pub fn step(batch: BatchStatus, input: Input) -> Result<Option<Next>, Reject> {
    use BatchStatus::{Abandoned, Broadcast, Confirmed, Final, Formed, Proven, Signed};
    let to = |batch, requests, effect| {
        Ok(Some(Next {
            batch,
            requests,
            effect,
        }))
    };
    match (batch, input) {
        (Formed, Input::Proven) => to(Proven, None, Some(Effect::Sign)),
        (Proven, Input::Signed) => to(Signed, Some(request::Input::Signed), Some(Effect::Submit)),
        (Signed, Input::Submitted) => to(
            Broadcast,
            Some(request::Input::Broadcast),
            Some(Effect::Watch),
        ),
        // Whoever has signed it may have submitted it, and a batch that was given up may be in a mempool still.
        (Proven | Signed | Broadcast | Abandoned, Input::Connected) => {
            to(Confirmed, Some(request::Input::Confirmed), None)
        }
        (Confirmed, Input::Deep) => to(Final, Some(request::Input::Final), None),
        (Confirmed | Final, Input::Disconnected) => to(
            Broadcast,
            Some(request::Input::Broadcast),
            Some(Effect::Watch),
        ),
        (Formed | Proven | Signed | Broadcast, Input::Dissolved) => to(
            Abandoned,
            Some(request::Input::Released),
            Some(Effect::Requeue),
        ),
        // True already, or overtaken.
        (Proven | Signed | Broadcast | Confirmed | Final, Input::Proven)
        | (Signed | Broadcast | Confirmed | Final, Input::Signed)
        | (Broadcast | Confirmed | Final, Input::Submitted)
        | (Confirmed | Final, Input::Connected)
        | (Final, Input::Deep)
        | (Formed | Proven | Signed | Broadcast | Abandoned, Input::Disconnected)
        | (Abandoned, Input::Dissolved) => Ok(None),
        // A batch has no transaction before its proofs, none to give away before its signatures; what the chain holds
        // must leave it first; and nothing brings one back that was given up, but the chain.
        (Formed, Input::Signed | Input::Submitted | Input::Connected | Input::Deep)
        | (Proven, Input::Submitted | Input::Deep)
        | (Signed | Broadcast, Input::Deep)
        | (Confirmed | Final, Input::Dissolved)
        | (Abandoned, Input::Proven | Input::Signed | Input::Submitted | Input::Deep) => {
            Err(Reject { batch, input })
        }
    }
}

/// What the chain says of a batch that its record does not: `written` is the height of its block in the record, `block`
/// the height of its block in the best chain, `height` the chain's.
pub fn seen(
    batch: BatchStatus,
    written: Option<u32>,
    block: Option<u32>,
    height: u32,
    final_confirmations: u32,
) -> Option<Input> {
    let is_written = matches!(batch, BatchStatus::Confirmed | BatchStatus::Final);
    match block {
        Some(block) if !is_written || written != Some(block) => Some(Input::Connected),
        Some(block) => {
            let depth = height.saturating_add(1).saturating_sub(block);
            let is_new = batch == BatchStatus::Confirmed;
            (is_new && depth >= final_confirmations).then_some(Input::Deep)
        }
        None => is_written.then_some(Input::Disconnected),
    }
}

/// Whether a signed batch is given up that can't get into a block by itself since this height. It spends what has left the
/// chain in a reorganisation: mempools may have forgotten that payment, or it may pay too little to be mined, and no higher
/// fee of the batch's own is signed for it (S2). Or blocks want a higher fee, and none is signed any more. Operators sign
/// another batch by now (S7).
pub fn is_given_up(since: u32, height: u32, replacement_delay: u16) -> bool {
    height.saturating_sub(since) >= u32::from(replacement_delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [BatchStatus; 7] = [
        BatchStatus::Formed,
        BatchStatus::Proven,
        BatchStatus::Signed,
        BatchStatus::Broadcast,
        BatchStatus::Confirmed,
        BatchStatus::Final,
        BatchStatus::Abandoned,
    ];
    const INPUTS: [Input; 7] = [
        Input::Proven,
        Input::Signed,
        Input::Submitted,
        Input::Connected,
        Input::Deep,
        Input::Disconnected,
        Input::Dissolved,
    ];

    fn run(inputs: &[Input]) -> BatchStatus {
        inputs.iter().fold(BatchStatus::Formed, |batch, input| {
            step(batch, *input)
                .unwrap()
                .map_or(batch, |next| next.batch)
        })
    }

    #[test]
    fn a_batch_goes_through_all_stages_and_back_when_its_block_goes() {
        let up = [
            Input::Proven,
            Input::Signed,
            Input::Submitted,
            Input::Connected,
            Input::Deep,
        ];
        assert_eq!(run(&up), BatchStatus::Final);
        let gone = [up.as_slice(), &[Input::Disconnected]].concat();
        assert_eq!(run(&gone), BatchStatus::Broadcast);
        let back = [gone.as_slice(), &[Input::Connected]].concat();
        assert_eq!(run(&back), BatchStatus::Confirmed);
        let dissolved = [gone.as_slice(), &[Input::Dissolved]].concat();
        assert_eq!(run(&dissolved), BatchStatus::Abandoned);
    }

    #[test]
    fn every_input_twice_is_the_input_once() {
        for batch in PLACES {
            for input in INPUTS {
                let Ok(Some(next)) = step(batch, input) else {
                    continue;
                };
                assert_eq!(step(next.batch, input), Ok(None), "{batch:?} {input:?}");
            }
        }
    }

    #[test]
    fn what_a_block_has_is_never_dissolved_and_its_requests_never_queued() {
        for batch in [BatchStatus::Confirmed, BatchStatus::Final] {
            assert!(step(batch, Input::Dissolved).is_err());
            for input in INPUTS {
                let next = step(batch, input).ok().flatten();
                assert!(next.is_none_or(|next| next.effect != Some(Effect::Requeue)));
            }
        }
    }

    #[test]
    fn a_record_is_compared_with_the_chain() {
        use BatchStatus::{Broadcast, Confirmed, Final};
        assert_eq!(seen(Broadcast, None, Some(7), 7, 3), Some(Input::Connected));
        assert_eq!(
            seen(Confirmed, Some(7), Some(8), 8, 3),
            Some(Input::Connected),
            "in another block"
        );
        assert_eq!(seen(Confirmed, Some(7), Some(7), 8, 3), None);
        assert_eq!(seen(Confirmed, Some(7), Some(7), 9, 3), Some(Input::Deep));
        assert_eq!(seen(Final, Some(7), Some(7), 10, 3), None);
        assert_eq!(seen(Final, Some(7), None, 9, 3), Some(Input::Disconnected));
        assert_eq!(seen(Broadcast, None, None, 9, 3), None);
    }

    #[test]
    fn a_batch_waits_for_a_deposit_as_long_as_operators_are_bound_to_it() {
        assert!(!is_given_up(7, 18, 12));
        assert!(is_given_up(7, 19, 12));
        assert!(!is_given_up(19, 7, 12), "the chain has lost blocks");
    }

    #[test]
    fn only_the_chain_brings_back_what_was_given_up() {
        for input in INPUTS {
            let next = step(BatchStatus::Abandoned, input).ok().flatten();
            assert!(next.is_none() || input == Input::Connected, "{input:?}");
        }
    }
}
