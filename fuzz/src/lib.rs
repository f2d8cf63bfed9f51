//! Fuzz targets: everything here that reads bytes from outside, and the verifier.
//!
//! ```text
//! corpus/TARGET/* --mutate--> bytes --Target::run--> accepted or refused; never a panic, never a broken property
//! ```
//!
//! A target is one function. The bounded run in `tests/bounded.rs` calls it with seeded mutations of the corpus, as
//! a part of `test.sh`; `libfuzzer/` calls the same function under cargo-fuzz. docs/fuzzing.md says how.
//!
//! What a target asserts beside "no panic": what is accepted reads back from its own encoding, is that one encoding
//! where the type says so, and is not something that only an honest signer could have made. The bounded run also
//! asserts how much memory a call may take.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a broken property has to stop the run"
)]

pub mod corpus;
pub mod honest;
pub mod mutate;
pub mod targets;

/// What became of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They were taken, and what they mean was used.
    Accepted,
    /// They were refused with an error.
    Refused,
}

/// Something that reads bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its corpus folder's.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]) -> Verdict,
    /// Honest bytes, each with a name; `run` accepts them.
    pub honest: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// How many mutations the bounded run tries: some seconds' worth.
    pub executions: u32,
    /// Memory that one call may take in bytes, whatever the input says.
    pub memory: usize,
}
