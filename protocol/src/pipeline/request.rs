//! Where a user's request is, and what moves it: one flat match, without I/O.
//!
//! ```text
//! Received --ready--> Queued --taken--> Batched --signed--> Signed --broadcast--> Broadcast --confirmed--> Confirmed --final--> Final
//!     ^                | ^                 |                   |                      |  ^                     |                  |
//!     '-----unripe-----' '-----------------+------released-----+----------------------'  '---------------broadcast----------------'
//!
//! all but Confirmed and Final --refused--> Refused --seen again--> Received
//! ```
//!
//! From `Batched` on a request goes where its batch goes ([`super::step`]). The chain moves it whatever was thought of it:
//! another coordinator's batch may hold it. An input that says what is so already changes nothing.

use crate::api::RequestStatus;

/// What has happened to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A block has the deposit, or its user has sent the operation, once more.
    Seen,
    /// A batch may hold it: the deposit has its confirmations, the operation has passed its checks.
    Ready,
    /// The deposit lacks confirmations again.
    Unripe,
    /// A batch holds it.
    Taken,
    /// Its batch has all signatures.
    Signed,
    /// Its batch's transaction is with the Bitcoin network, and in no block.
    Broadcast,
    /// A block of the best chain has its batch.
    Confirmed,
    /// That block is as deep as the vault's parameters ask.
    Final,
    /// Its batch was given up, or another was confirmed instead.
    Released,
    /// It won't be done.
    Refused,
}

/// An input that can't be true of a request in this place: a fault of the caller, or of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request that is {request:?} can't be {input:?}")]
pub struct Reject {
    /// Where the request is.
    pub request: RequestStatus,
    /// What was said of it.
    pub input: Input,
}

/// The next place of a request; `None` when it is there already, or has gone further by another way.
///
/// # Errors
/// [`Reject`]; nothing changes.
pub fn step(request: RequestStatus, input: Input) -> Result<Option<RequestStatus>, Reject> {
    use RequestStatus::{Batched, Broadcast, Confirmed, Final, Queued, Received, Refused, Signed};
    match (request, input) {
        (Received, Input::Ready) => Ok(Some(Queued)),
        (Queued, Input::Unripe) | (Refused, Input::Seen) => Ok(Some(Received)),
        (Queued, Input::Taken) => Ok(Some(Batched)),
        (Batched, Input::Signed) => Ok(Some(Signed)),
        (Signed | Confirmed | Final, Input::Broadcast) => Ok(Some(Broadcast)),
        (Received | Queued | Batched | Signed | Broadcast | Final | Refused, Input::Confirmed) => {
            Ok(Some(Confirmed))
        }
        (Received | Queued | Batched | Signed | Broadcast | Confirmed | Refused, Input::Final) => {
            Ok(Some(Final))
        }
        (Batched | Signed | Broadcast, Input::Released) => Ok(Some(Queued)),
        (Received | Queued | Batched | Signed | Broadcast, Input::Refused) => Ok(Some(Refused)),
        // True already, or overtaken: by a batch that holds it, or by its refusal.
        (Received | Queued | Batched | Signed | Broadcast | Confirmed | Final, Input::Seen)
        | (Queued, Input::Ready)
        | (Received, Input::Unripe)
        | (Batched, Input::Taken)
        | (Signed | Broadcast | Confirmed | Final, Input::Signed)
        | (Broadcast, Input::Broadcast)
        | (Confirmed, Input::Confirmed)
        | (Final, Input::Final)
        | (Received | Queued | Refused | Confirmed | Final, Input::Released)
        | (Refused, Input::Refused) => Ok(None),
        // What is in a batch is not queued beside it; no batch takes what does not wait for one; only one that holds the
        // request is signed or broadcast with it; and what a block has is done.
        (Batched | Signed | Broadcast | Confirmed | Final | Refused, Input::Ready)
        | (Batched | Signed | Broadcast | Confirmed | Final | Refused, Input::Unripe)
        | (Received | Signed | Broadcast | Confirmed | Final | Refused, Input::Taken)
        | (Received | Queued | Refused, Input::Signed)
        | (Received | Queued | Batched | Refused, Input::Broadcast)
        | (Confirmed | Final, Input::Refused) => Err(Reject { request, input }),
    }
}

/// Does the input bring a request back to where it has been before? It is queued another time then.
pub fn is_back(input: Input) -> bool {
    matches!(input, Input::Seen | Input::Unripe | Input::Released)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::BatchStatus, pipeline};

    const PLACES: [RequestStatus; 8] = [
        RequestStatus::Received,
        RequestStatus::Queued,
        RequestStatus::Batched,
        RequestStatus::Signed,
        RequestStatus::Broadcast,
        RequestStatus::Confirmed,
        RequestStatus::Final,
        RequestStatus::Refused,
    ];
    const INPUTS: [Input; 10] = [
        Input::Seen,
        Input::Ready,
        Input::Unripe,
        Input::Taken,
        Input::Signed,
        Input::Broadcast,
        Input::Confirmed,
        Input::Final,
        Input::Released,
        Input::Refused,
    ];

    fn run(inputs: &[Input]) -> RequestStatus {
        inputs
            .iter()
            .fold(RequestStatus::Received, |request, input| {
                step(request, *input).unwrap().unwrap_or(request)
            })
    }

    #[test]
    fn a_request_goes_through_all_places_and_back_when_its_block_or_its_batch_goes() {
        let up = [
            Input::Ready,
            Input::Taken,
            Input::Signed,
            Input::Broadcast,
            Input::Confirmed,
            Input::Final,
        ];
        assert_eq!(run(&up), RequestStatus::Final);
        let reorganised = [up.as_slice(), &[Input::Broadcast]].concat();
        assert_eq!(run(&reorganised), RequestStatus::Broadcast);
        let released = [reorganised.as_slice(), &[Input::Released]].concat();
        assert_eq!(run(&released), RequestStatus::Queued);
        let again = [released.as_slice(), &up].concat();
        assert_eq!(run(&again), RequestStatus::Final);
    }

    #[test]
    fn every_input_twice_is_the_input_once() {
        for request in PLACES {
            for input in INPUTS {
                if let Ok(Some(next)) = step(request, input) {
                    assert_eq!(step(next, input), Ok(None), "{request:?} {input:?}");
                }
            }
        }
    }

    #[test]
    fn no_request_is_forgotten_wherever_it_is_it_can_still_be_done() {
        for request in PLACES {
            assert_eq!(
                step(request, Input::Final).map(|next| next.unwrap_or(request)),
                Ok(RequestStatus::Final)
            );
        }
    }

    #[test]
    fn what_a_block_has_is_neither_refused_nor_queued() {
        for request in [RequestStatus::Confirmed, RequestStatus::Final] {
            for input in INPUTS {
                let next = step(request, input).ok().flatten();
                assert!(
                    next.is_none_or(|next| matches!(
                        next,
                        RequestStatus::Broadcast | RequestStatus::Confirmed | RequestStatus::Final
                    )),
                    "{request:?} {input:?}"
                );
            }
        }
    }

    /// Whatever happens to a batch that holds requests, they can follow it.
    #[test]
    fn requests_follow_every_step_of_their_batch() {
        let inputs = [
            pipeline::Input::Proven,
            pipeline::Input::Signed,
            pipeline::Input::Submitted,
            pipeline::Input::Connected,
            pipeline::Input::Deep,
            pipeline::Input::Disconnected,
            pipeline::Input::Dissolved,
        ];
        let mut reached = vec![(BatchStatus::Formed, RequestStatus::Batched)];
        let mut looked = 0;
        while let Some((batch, request)) = reached.get(looked).copied() {
            looked += 1;
            for input in inputs {
                let Ok(Some(next)) = pipeline::step(batch, input) else {
                    continue;
                };
                let after = match next.requests {
                    Some(input) => step(request, input).unwrap().unwrap_or(request),
                    None => request,
                };
                if !reached.contains(&(next.batch, after)) {
                    reached.push((next.batch, after));
                }
            }
        }
        // One place of the requests for each of the batch.
        assert_eq!(reached.len(), 7, "{reached:?}");
    }
}
