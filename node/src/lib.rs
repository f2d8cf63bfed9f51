//! What a coordinator and an operator do alike: read the files that all nodes share, keep the batches,
//! and follow the treasury's chain of UTXOs with the ledger that it stands for.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod certificate;
pub mod clock;
pub mod cost;
pub mod displaced;
pub mod files;
pub mod harden;
pub mod history;
pub mod inbox;
pub mod log;
