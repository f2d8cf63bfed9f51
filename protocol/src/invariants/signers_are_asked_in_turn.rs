use std::collections::{BTreeMap, BTreeSet};

use threshold::SignerId;

use super::Violation;

const NAME: &str = "signers_are_asked_in_turn";

/// A session as its signers see it: what they were asked for, and what they have said since. It holds a session to
/// ROAST's rules without a look inside. `C` are commitments.
#[derive(Debug)]
pub struct Requests<C> {
    needed: usize,
    most: usize,
    attempts: BTreeMap<u32, BTreeMap<SignerId, C>>,
    /// The attempt that each of these was asked for and has not answered.
    open: BTreeMap<SignerId, u32>,
    /// Those of them whom the request has not reached.
    unreached: BTreeSet<SignerId>,
}

impl<C: Clone + PartialEq> Requests<C> {
    /// Of a session that needs `needed` of `signers`.
    pub fn new(signers: usize, needed: usize) -> Self {
        Self {
            needed,
            most: signers.saturating_sub(needed).saturating_add(1),
            attempts: BTreeMap::new(),
            open: BTreeMap::new(),
            unreached: BTreeSet::new(),
        }
    }

    /// A signer's commitments were taken. Other ones than it was asked with give up its place in that attempt. With
    /// the same ones it is asked again, if it has not heard.
    ///
    /// # Errors
    /// [`Violation`] if it is not.
    pub fn accepted(
        &mut self,
        from: SignerId,
        commitments: &C,
        is_asked: bool,
    ) -> Result<(), Violation> {
        let Some(attempt) = self.open.get(&from) else {
            return Ok(());
        };
        let asked = self.attempts.get(attempt);
        let is_unreached = self.unreached.remove(&from);
        if asked.and_then(|asked| asked.get(&from)) != Some(commitments) {
            self.open.remove(&from);
            self.most = self.most.saturating_add(1);
        } else if is_unreached && !is_asked {
            return Err(Violation {
                invariant: NAME,
                what: format!("{from} has not heard of attempt {attempt} and is not asked again"),
            });
        }
        Ok(())
    }

    /// A signer's answer was taken.
    pub fn answered(&mut self, from: SignerId, attempt: u32) {
        if self.open.get(&from) == Some(&attempt) {
            self.open.remove(&from);
            self.unreached.remove(&from);
        }
    }

    /// It has turned out that a request may not have reached its signer.
    pub fn lost(&mut self, from: SignerId, attempt: u32) {
        if self.open.get(&from) == Some(&attempt) {
            self.unreached.insert(from);
        }
    }

    /// A sign request goes out: of an attempt with as many signers as are needed, none of whom has another to answer,
    /// always with the same commitments, and not of more attempts than n - t + 1 and one for each signer that has given
    /// its place up.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn asked(
        &mut self,
        attempt: u32,
        commitments: &BTreeMap<SignerId, C>,
    ) -> Result<(), Violation> {
        let violation = |what: String| {
            Err(Violation {
                invariant: NAME,
                what,
            })
        };
        if let Some(known) = self.attempts.get(&attempt) {
            if known == commitments {
                return Ok(());
            }
            return violation(format!("attempt {attempt} has two packages"));
        }
        if commitments.len() != self.needed {
            return violation(format!(
                "{} signers in attempt {attempt}, not {}",
                commitments.len(),
                self.needed
            ));
        }
        for signer in commitments.keys() {
            if let Some(other) = self.open.insert(*signer, attempt) {
                return violation(format!("{signer} is in attempts {other} and {attempt}"));
            }
        }
        self.attempts.insert(attempt, commitments.clone());
        if self.attempts.len() > self.most {
            return violation(format!(
                "{} attempts; the bound is {}",
                self.attempts.len(),
                self.most
            ));
        }
        Ok(())
    }
}
