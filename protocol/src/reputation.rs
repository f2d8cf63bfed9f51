//! How operators have done in past sessions, as one coordinator saw it. It orders the choice of signers in
//! later sessions and excludes nobody: a signer of poor standing is taken when there are not enough others,
//! and every session halves what is held against it.

use std::collections::{BTreeMap, BTreeSet};

use threshold::SignerId;

/// For a bad share: poor for four sessions to come.
const BAD_SHARE: u32 = 64;
/// For a share that did not come in time: poor for the next session.
const SILENCE: u32 = 8;
/// From here on, others are preferred.
const POOR: u32 = 8;
/// The most that is held against anybody.
const WORST: u32 = 256;

/// What is held against each signer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing(BTreeMap<SignerId, u32>);

impl Standing {
    /// What is held against a signer; 0 is the best.
    pub fn penalty(&self, signer: &SignerId) -> u32 {
        self.0.get(signer).copied().unwrap_or(0)
    }

    /// Whether others are preferred.
    pub fn is_poor(&self, signer: &SignerId) -> bool {
        self.penalty(signer) >= POOR
    }

    /// Takes in how a session went.
    pub fn learn(&mut self, blamed: &BTreeSet<SignerId>, silent: &BTreeSet<SignerId>) {
        self.0.values_mut().for_each(|penalty| *penalty /= 2);
        self.0.retain(|_, penalty| *penalty > 0);
        for (signers, more) in [(blamed, BAD_SHARE), (silent, SILENCE)] {
            for signer in signers {
                let penalty = self.0.entry(*signer).or_default();
                *penalty = penalty.saturating_add(more).min(WORST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(byte: u8) -> SignerId {
        SignerId::derive(&[byte; 32])
    }

    #[test]
    fn a_bad_share_weighs_more_than_silence_and_both_are_forgotten() {
        let (bad, silent, good) = (signer(1), signer(2), signer(3));
        let mut standing = Standing::default();
        standing.learn(&BTreeSet::from([bad]), &BTreeSet::from([silent]));
        assert!(standing.penalty(&bad) > standing.penalty(&silent));
        assert!(standing.is_poor(&bad) && standing.is_poor(&silent) && !standing.is_poor(&good));
        let mut sessions = 0;
        while standing.is_poor(&bad) {
            standing.learn(&BTreeSet::new(), &BTreeSet::new());
            assert!(!standing.is_poor(&silent));
            sessions += 1;
        }
        assert_eq!(sessions, 4);
        for _ in 0..8 {
            standing.learn(&BTreeSet::new(), &BTreeSet::new());
        }
        assert_eq!(standing, Standing::default());
    }

    #[test]
    fn what_is_held_against_a_signer_has_a_bound() {
        let mut standing = Standing::default();
        let bad = BTreeSet::from([signer(1)]);
        for _ in 0..100 {
            standing.learn(&bad, &bad);
        }
        assert!(standing.penalty(&signer(1)) <= WORST);
    }
}
