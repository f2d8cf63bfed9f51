//! A whole bridge in bad weather: operators, coordinators, users and a model of Bitcoin, from a deposit to a payout.
//!
//! ```text
//! seed --> Schedule: group, who lies, users' acts, crashes, lost disks, reorganisations, fees, thefts
//!              |
//!          World: users --requests--> coordinators --proposals--> operators --shares--> coordinators --> Chain
//!              |                           '---- copies of requests and batches ----'                     |
//!              |                     each node's View (trail, displaced, ledger) <----blocks--------------'
//!          invariants at every block, verdict, share and digest --> Outcome, or Failure with the seed that replays it
//! ```
//!
//! Real code: `protocol`'s signing machines on both sides, its pipeline, transactions, deposit terms and requests; the
//! operators' rules S1 to S7 (`operator::verify`); the nodes' trail of treasuries and displaced transactions; the ledger.
//! The coordinators' queue and stages, and whatever is a disk, a socket or a Bitcoin node, are models.
//!
//! In most schedules the ledger's tree has two levels and signatures are made up; in the real ones it is the full tree, and
//! every batch is signed by FROST over its own sighashes. Groth16 proofs are made up in all of them.

mod books;
mod chain;
mod fault;
mod invariants;
mod place;
mod schedule;
mod totals;
mod view;
mod world;

use ledger::Ledger;

pub use fault::{FAULTS as VAULT_FAULTS, Fault as VaultFault};
pub use schedule::{Act, Node, Schedule as VaultSchedule, Trouble, VAULT_GROUPS};
pub use totals::{Counts, Totals};
use world::World;

use crate::{Failure, Fake, Real};
use place::SHALLOW;

/// One schedule with made-up signatures on a small tree.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_vault(seed: u64, trace: bool) -> Result<Counts, Failure> {
    let schedule = VaultSchedule::new(seed, VAULT_GROUPS);
    World::<Fake>::new(schedule, Ledger::shallow(SHALLOW), None, trace)?.run()
}

/// One schedule with nodes that are broken. A [`Failure`] is what one hopes for.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_vault_broken(seed: u64, fault: VaultFault, trace: bool) -> Result<Counts, Failure> {
    let schedule = VaultSchedule::new(seed, VAULT_GROUPS);
    World::<Fake>::new(schedule, Ledger::shallow(SHALLOW), Some(fault), trace)?.run()
}

/// One schedule with FROST and the full tree.
///
/// # Errors
/// [`Failure`] says which invariant does not hold, and when.
pub fn run_vault_real(seed: u64, trace: bool) -> Result<Counts, Failure> {
    let schedule = VaultSchedule::new(seed, VAULT_GROUPS);
    World::<Real>::new(schedule, Ledger::new(), None, trace)?.run()
}
