//! That the simulator would notice: machines with one fault each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use simulator::{FAULTS, Fault, run_broken};

/// Schedules in which every fault shows.
const WITHIN: u64 = 200;

#[test]
fn every_fault_violates_an_invariant_within_two_hundred_schedules() {
    for fault in FAULTS {
        let failure = (0..WITHIN).find_map(|seed| run_broken(seed, fault).err());
        assert!(failure.is_some(), "{fault}");
    }
}

#[test]
fn the_invariant_that_a_fault_breaks_is_the_one_that_says_so() {
    for (fault, invariant) in [
        (Fault::BlamesOthers, "no_honest_signer_is_blamed"),
        (Fault::BlamesTheSilent, "without evidence"),
        (Fault::TakesBadShares, "finished with wrong signatures"),
        (Fault::StopsAfterOne, "not finished"),
        (Fault::NeverHasEnough, "the bound is"),
        (Fault::AsksTwice, "signers_are_asked_in_turn"),
        (Fault::AsksOnce, "is not asked again"),
        (Fault::HoldsForEver, "not finished"),
        (Fault::DropsLateShares, "answers_are_taken"),
        (Fault::ReusesNonces, "nonces_serve_one_package"),
        (Fault::ForgetsTheBinding, "nonces_serve_one_package"),
    ] {
        let mut failures = (0..WITHIN).filter_map(|seed| run_broken(seed, fault).err());
        assert!(
            failures.any(|failure| failure.what.contains(invariant)),
            "{fault}: {invariant}"
        );
    }
}
