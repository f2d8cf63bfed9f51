//! An operator: holds one share of a vault's key, verifies batches on its own, and signs what it has verified.
//!
//! ```text
//! settings --> run: one loop
//! policy,        |  proposals --> body (pull) --> verify (one file a rule) --> held, kept, passed on
//! decisions      |
//!                |                                                               |
//!                |  sign requests --> promises (on disk first) --> vault (nonces, share) --> answer
//!                |
//!                '- chain steps --> node::history (treasury's chain, ledger)
//! generate: key generation, once                  status: what it is doing, for people and monitors
//! refresh, repair: new shares for the same key     admin: what the administrator asks, on a socket
//! attested: who has shown the attestation          cli (in the binary): the commands
//!           that the roster requires
//! ```
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod admin;
pub mod attested;
pub mod backup;
pub mod body;
pub mod books;
pub mod decisions;
pub mod export;
pub mod generate;
pub mod held;
pub mod keys;
pub mod passphrase;
pub mod peers;
pub mod policy;
pub mod promises;
pub mod refresh;
pub mod repair;
pub mod requests;
pub mod restore;
pub mod run;
pub mod settings;
pub mod signed;
pub mod status;
#[cfg(test)]
mod testing;
pub mod vault;
pub mod verify;
