//! What the nodes agree on: identities, vault, deposits, batches, messages, and the machines that
//! carry a batch from proposal to signature. No I/O, clock, randomness or secrets of money in here.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod admission;
pub mod api;
pub mod batch;
pub mod blame;
pub mod bump;
pub mod deposit;
pub mod epoch;
pub mod hash;
pub mod identity;
pub mod invariants;
pub mod message;
pub mod parameters;
pub mod pipeline;
pub mod pool;
pub mod repair;
pub mod reputation;
pub mod request;
pub mod roster;
pub mod signer;
pub mod signing;
pub mod transaction;
pub mod vault;
