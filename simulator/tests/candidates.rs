//! Rules S2 and S7 through every run of a small vault; `./simulate.sh candidates` goes through larger ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use simulator::candidates::{BROKEN, BROKEN_BOUNDS, SMALL, SMALL_HONEST, check};

#[test]
fn a_coordinator_that_splits_the_operators_gets_no_share_against_s2_or_s7_and_stops_nobody_for_good()
 {
    for bounds in [SMALL, SMALL_HONEST] {
        let checked = check(bounds, None);
        assert_eq!(checked.violations, [], "{bounds}");
        assert_eq!(checked.unreached, [""; 0], "{bounds}");
        assert!(checked.states > 10_000, "{bounds}: {}", checked.states);
    }
}

#[test]
fn operators_with_a_fault_break_a_property() {
    for broken in BROKEN {
        let checked = check(BROKEN_BOUNDS, Some(broken));
        assert!(!checked.violations.is_empty(), "{broken}");
    }
}
