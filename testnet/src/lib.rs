//! The local network: a real bitcoind on regtest, bridge nodes as processes, and scenarios.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod bitcoind;
pub mod crasher;
pub mod hosts;
pub mod liar;
pub mod line;
pub mod namespaces;
pub mod network;
pub mod report;
pub mod saboteur;
pub mod scenario;
pub mod secrets;
pub mod small_disk;
