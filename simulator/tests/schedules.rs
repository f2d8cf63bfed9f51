//! A small part of what `./simulate.sh signing --schedules 100000` runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use simulator::{Group, Outcome, run_fake, run_real};

const SMALL: &[Group] = &[Group::new(2, 3), Group::new(3, 5), Group::new(12, 16)];

fn outcomes(run: impl Fn(u64) -> Result<Outcome, simulator::Failure>, seeds: u64) -> Vec<Outcome> {
    (0..seeds)
        .map(|seed| run(seed).unwrap_or_else(|failure| panic!("{failure}")))
        .collect()
}

#[test]
fn no_schedule_with_made_up_signatures_violates_an_invariant() {
    let outcomes = outcomes(|seed| run_fake(seed, false), 600);
    let finished = outcomes.iter().filter(|one| one.could_finish).count();
    assert!(finished > 300 && finished < outcomes.len(), "{finished}");
    // Schedules reach what they are for: blame, renewals, and the bound itself.
    assert!(outcomes.iter().any(|one| one.blamed > 0));
    assert!(outcomes.iter().any(|one| one.renewals > 0));
    // With the pool some end in their first attempt, and some go on after it.
    let pooled = || outcomes.iter().filter(|one| one.pooled);
    assert!(pooled().any(|one| one.attempts == 1));
    assert!(pooled().any(|one| one.attempts > 1));
    assert!(pooled().count() < finished / 2);
    assert!(outcomes.iter().any(|one| {
        let bound = u32::from(one.group.operators - one.group.threshold) + 1;
        bound > 2 && one.renewals == 0 && one.attempts == bound
    }));
}

#[test]
fn no_schedule_with_frost_violates_an_invariant() {
    let outcomes = outcomes(|seed| run_real(seed, SMALL, false), 12);
    assert!(
        outcomes
            .iter()
            .any(|one| one.could_finish && one.attempts > 1)
    );
}

#[test]
fn a_seed_replays_its_run() {
    for seed in 0..40 {
        assert_eq!(run_fake(seed, false), run_fake(seed, false), "{seed}");
    }
}
