//! Drives the protocol's real state machines through bad weather: virtual time, seeded randomness, no I/O.
//!
//! ```text
//! seed --> Schedule: group, who is corrupt and how, delays, losses, restarts
//!              |
//!          World: coordinators (signing::Session), operators (signer::State), messages under way
//!              |
//!          protocol::invariants after each step --> Outcome, or Failure with the seed that replays it
//! ```
//!
//! Signatures are behind [`Signatures`]: [`Fake`] ones know by themselves whether they are right, so that
//! a hundred thousand schedules take minutes; [`Real`] ones are FROST.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod batch;
pub mod candidates;
mod coordinator;
mod deal;
mod event;
mod fake;
mod fault;
mod operator;
mod real;
mod schedule;
mod signatures;
mod table;
mod vault;
mod world;

pub use batch::{batch, verified};
pub use deal::{DealError, deal};
pub use fake::Fake;
pub use fault::{FAULTS, Fault};
pub use real::Real;
pub use schedule::{Conduct, GROUPS, Group, Schedule};
pub use signatures::{Lie, Signatures};
pub use table::Table;
pub use vault::{
    Act, Counts, Node, Totals, Trouble, VAULT_FAULTS, VAULT_GROUPS, VaultFault, VaultSchedule,
    run_vault, run_vault_broken, run_vault_real,
};
pub use world::{Failure, Outcome, World};

/// One schedule with made-up signatures.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_fake(seed: u64, trace: bool) -> Result<Outcome, Failure> {
    let schedule = Schedule::new(seed, GROUPS);
    let signatures = Fake::new(&schedule.group);
    World::new(schedule, signatures, trace).run()
}

/// One schedule with made-up signatures and a machine that is broken. A [`Failure`] is what one hopes for.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_broken(seed: u64, fault: Fault) -> Result<Outcome, Failure> {
    let schedule = Schedule::new(seed, GROUPS);
    let signatures = Fake::broken(&schedule.group, fault);
    World::new(schedule, signatures, false).with(fault).run()
}

/// One schedule with FROST.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_real(seed: u64, groups: &[Group], trace: bool) -> Result<Outcome, Failure> {
    let schedule = Schedule::new(seed, groups);
    let signatures = Real::new(&schedule.group, seed).map_err(|error| Failure {
        seed,
        at_ms: 0,
        what: error.to_string(),
    })?;
    World::new(schedule, signatures, trace).run()
}
