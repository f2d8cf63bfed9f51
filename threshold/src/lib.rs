//! Threshold Schnorr signatures for a vault that no single machine controls.
//!
//! ```text
//!   Seed ──► dkg::Machine ◄──► the other operators' machines
//!                │ finished
//!                ▼
//!            KeyShare ── seal::seal ──► disk
//!                │ now and then: refresh::machine makes all shares anew, for the same key
//!                │ lost: repair::Member gets it back from t repair::Helpers
//!                │
//!   round 1: sign::commit ──► Commitments ──► coordinator ──► sign::Package
//!   round 2: sign::sign   ──► Shares      ──► coordinator
//!                                             sign::verify_shares, sign::aggregate ──► BIP-340 signatures
//! ```
//!
//! The scheme is FROST (RFC 9591) over secp256k1 with BIP-340 signatures, as `frost-secp256k1-tr`
//! implements it, with its distributed key generation (no dealer). That crate and `frost-core` run
//! RFC 9591's own test vectors (ciphersuite appendix) in their test suites; here they are not repeated,
//! only what this crate adds is tested: BIP-340, BIP-341, the ceremony, blame, and sealing.
//!
//! No I/O, no clock, no async: messages come in, messages go out, the caller carries them.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod dkg;
mod group;
mod hash;
pub mod refresh;
pub mod repair;
pub mod seal;
mod share;
pub mod sign;
mod signer;

pub use group::{GroupError, GroupHead, GroupInfo, GroupKey};
pub use share::{KeyShare, ShareError};
pub use signer::SignerId;

/// The largest group: one operator more and identifiers in messages, and the n² round-2 packages,
/// would need other bounds.
pub const MAX_SIGNERS: usize = 255;

/// The smallest threshold; with one signer there is nothing to share.
pub const MIN_THRESHOLD: u16 = 2;
