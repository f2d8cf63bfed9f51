//! Bitcoin as one node of the bridge sees it, through its own bitcoind.
//!
//! ```text
//!            follow                     scan
//! bitcoind ---------> blocks in order ---------> deposits, spends of the treasury
//!    ^
//!    |  submit <--- signed transaction          fees <--- estimate, floor, ceiling
//! ```
//!
//! Nothing here decides about money. [`follow`] turns the node's best chain into a sequence of
//! events whose position the caller stores, [`scan`] finds outputs and spends in a block, [`fees`]
//! and [`submit`] talk to the mempool, [`replace`] knows what a fee bump must pay, and all of them
//! share the client in [`rpc`].
//!
//! Heights are `u32`, counted from the genesis block at 0, as in Bitcoin's own `nLockTime`.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod fees;
pub mod follow;
pub mod position;
pub mod replace;
pub mod rpc;
pub mod scan;
pub mod submit;

pub use fees::{FeeError, FeeSettings};
pub use follow::{ChainEvent, FollowError, Follower, NodeStatus, Step};
pub use position::Position;
pub use rpc::{BitcoinRpc, RpcError, RpcSettings, SettingsError};
pub use submit::{Submission, SubmitError};
