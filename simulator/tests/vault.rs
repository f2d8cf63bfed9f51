//! A small part of what `./simulate.sh vault --schedules 1000000` runs, and of `./simulate.sh mutants`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use simulator::{Counts, Failure, VaultFault, run_vault, run_vault_broken, run_vault_real};

/// Schedules in each run of the tests.
const SCHEDULES: u64 = 400;
const REAL: u64 = 6;

fn all(run: impl Fn(u64) -> Result<Counts, Failure>, seeds: u64) -> Vec<Counts> {
    (0..seeds)
        .map(|seed| run(seed).unwrap_or_else(|failure| panic!("{failure}")))
        .collect()
}

#[test]
fn no_schedule_of_the_whole_bridge_violates_an_invariant() {
    let runs = all(|seed| run_vault(seed, false), SCHEDULES);
    let reached = |count: fn(&Counts) -> u64| runs.iter().any(|run| count(run) > 0);
    // Schedules reach what they are for.
    assert!(reached(|run| run.paid));
    assert!(reached(|run| run.refunded));
    assert!(reached(|run| run.double_spent));
    assert!(reached(|run| run.displaced));
    assert!(reached(|run| run.dissolved));
    assert!(reached(|run| run.bumped));
    assert!(reached(|run| run.evicted));
    assert!(reached(|run| run.resubmitted));
    assert!(reached(|run| run.lost_disks));
    assert!(reached(|run| run.restored));
    assert!(reached(|run| run.lies_refused));
    assert!(reached(|run| run.split));
    assert!(reached(|run| run.alarms));
}

#[test]
fn no_schedule_with_frost_and_the_full_tree_violates_an_invariant() {
    let runs = all(|seed| run_vault_real(seed, false), REAL);
    assert!(runs.iter().any(|run| run.batches > 0));
}

#[test]
fn a_seed_replays_its_run_of_the_whole_bridge() {
    for seed in 0..20 {
        assert_eq!(run_vault(seed, false), run_vault(seed, false), "{seed}");
    }
}

#[test]
fn the_invariant_that_a_broken_node_violates_is_the_one_that_says_so() {
    for (fault, invariant) in [
        (VaultFault::DropsS7, "shares: S7"),
        (VaultFault::DropsS2, "shares: S2"),
        (VaultFault::DropsS4, "shares: S4"),
        (VaultFault::DropsS5, "shares: S5"),
        (VaultFault::SkipsBatches, "shares: S8"),
        (VaultFault::KeepsNonces, "nonces_serve_one_package"),
        (VaultFault::SkipsCopies, "payouts"),
        (VaultFault::NeverBumps, "not c"),
    ] {
        let mut failures =
            (0..SCHEDULES).filter_map(|seed| run_vault_broken(seed, fault, false).err());
        assert!(
            failures.any(|failure| failure.what.contains(invariant)),
            "{fault}: {invariant}"
        );
    }
}
