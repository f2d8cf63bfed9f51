//! When a batch that no block takes is given a transaction that pays more (RBF): after so many blocks, again after as many
//! more, and not for longer than the vault's bump window, in which no depositor can take a deposit back (S2).
//!
//! ```text
//! signed ---after---> bump ---after---> bump ... window: what is signed waits, and is given up in the end
//!                       '-- not signed, or not affordable: again with the next block
//! ```
//!
//! Giving up: [`crate::pipeline::is_given_up`].

/// How patient a coordinator is, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Between the signing of a candidate and the next.
    pub after: u16,
    /// From the first candidate's signing to the last bump: the vault's `bump_window`.
    pub window: u16,
}

/// What was signed for a batch that is in no block, and when, in heights of the own chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its first candidate.
    pub first: u32,
    /// Its latest candidate.
    pub latest: u32,
    /// The last try that gave no candidate since.
    pub tried: Option<u32>,
}

impl Schedule {
    /// Whether a higher fee is due at this height.
    pub fn is_due(&self, batch: &Unconfirmed, height: u32) -> bool {
        !self.is_over(batch, height)
            && height.saturating_sub(batch.latest) >= self.after.into()
            && batch.tried.is_none_or(|tried| tried != height)
    }

    /// Whether no higher fee comes any more.
    pub fn is_over(&self, batch: &Unconfirmed, height: u32) -> bool {
        height.saturating_sub(batch.first) > self.window.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        after: 3,
        window: 8,
    };

    /// Heights at which a batch is bumped that was signed at height 100 and is never confirmed.
    fn bumps(schedule: Schedule) -> Vec<u32> {
        let mut batch = Unconfirmed {
            first: 100,
            latest: 100,
            tried: None,
        };
        let mut heights = Vec::new();
        for height in 100..200 {
            if schedule.is_due(&batch, height) {
                batch.latest = height;
                heights.push(height);
            }
        }
        heights
    }

    #[test]
    fn a_batch_is_bumped_every_few_blocks_within_the_window() {
        assert_eq!(bumps(SCHEDULE), [103, 106]);
        let batch = Unconfirmed {
            first: 100,
            latest: 106,
            tried: None,
        };
        assert!(!SCHEDULE.is_over(&batch, 108) && SCHEDULE.is_over(&batch, 109));
        assert_eq!(
            bumps(Schedule {
                after: 1,
                window: 2
            }),
            [101, 102]
        );
        assert_eq!(
            bumps(Schedule {
                after: 9,
                window: 8
            }),
            [0_u32; 0]
        );
    }

    #[test]
    fn a_try_that_came_to_nothing_is_made_again_with_the_next_block() {
        let batch = Unconfirmed {
            first: 100,
            latest: 100,
            tried: Some(103),
        };
        assert!(!SCHEDULE.is_due(&batch, 103));
        assert!(SCHEDULE.is_due(&batch, 104));
        // Another block of the same height, or of a lower one, does not hurt.
        assert!(!SCHEDULE.is_due(&batch, 99));
    }
}
