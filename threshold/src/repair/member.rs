//! The side of the operator whose share is repaired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use frost_secp256k1_tr::keys::repairable::repair_share_part3;

use super::helper::fits;
use super::{Delta, Run, RunError, Sigma, Split, Splits, opens, sum};
use crate::{GroupInfo, KeyShare, SignerId};

/// The member in one run.
pub struct Member {
    run: Run,
    group: GroupInfo,
    splits: Splits,
    sigmas: BTreeMap<SignerId, Sigma>,
}

impl Member {
    /// Begins a run. The caller has reason to believe that `group` is the vault's: equal answers of t operators,
    /// or a certificate.
    ///
    /// # Errors
    /// [`RunError`] if there can be no such run.
    pub fn new(group: GroupInfo, run: Run) -> Result<Self, RunError> {
        run.check(&group)?;
        Ok(Self {
            run,
            group,
            splits: BTreeMap::new(),
            sigmas: BTreeMap::new(),
        })
    }

    /// The run.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Takes a helper's split.
    ///
    /// # Errors
    /// [`Fault`] names the helper if the split is not one of its term, or is its second.
    pub fn take_split(&mut self, from: SignerId, split: Split) -> Result<(), Fault> {
        if !self.run.helpers.contains(&from) {
            return Err(Fault::Stranger(from));
        }
        match self.splits.get(&from) {
            Some(first) if *first == split => Ok(()),
            Some(_) => Err(Fault::TwoSplits(from)),
            None if self.run.is_split(&self.group, from, &split) => {
                self.splits.insert(from, split);
                Ok(())
            }
            None => Err(Fault::Split(from)),
        }
    }

    /// The splits to relay to all helpers, once they are all here.
    pub fn splits(&self) -> Option<&Splits> {
        (self.splits.len() == self.run.helpers.len()).then_some(&self.splits)
    }

    /// Takes a helper's σ.
    ///
    /// # Errors
    /// [`Fault`] names the helper if it is not the sum of what was committed to for it.
    pub fn take_sigma(&mut self, from: SignerId, sigma: Sigma) -> Result<(), Fault> {
        if !self.run.helpers.contains(&from) {
            return Err(Fault::Stranger(from));
        }
        let Some(splits) = self.splits() else {
            return Err(Fault::TooEarly(from));
        };
        let for_it = splits
            .values()
            .filter_map(|split| split.point_for(&self.run, from));
        if sum(for_it).is_ok_and(|expected| opens(sigma.bytes(), &expected)) {
            self.sigmas.insert(from, sigma);
            Ok(())
        } else {
            Err(Fault::Sigma(from))
        }
    }

    /// Judges what `accuser` says it got from `accused`. The caller has checked that `accused` has signed that δ
    /// for this run and this recipient; without such a signature the accuser is at fault.
    pub fn judge(&self, accuser: SignerId, accused: SignerId, delta: &Delta) -> Fault {
        if fits(&self.run, &self.splits, accused, accuser, delta) {
            Fault::FalseAccusation(accuser)
        } else {
            Fault::Delta(accused)
        }
    }

    /// Whose split, or σ after that, is missing.
    pub fn missing(&self) -> BTreeSet<SignerId> {
        let has = |id: &SignerId| match self.splits() {
            None => self.splits.contains_key(id),
            Some(_) => self.sigmas.contains_key(id),
        };
        let helpers = self.run.helpers.iter();
        helpers.filter(|id| !has(id)).copied().collect()
    }

    /// The share, once every σ is here. It is checked against the verifying share that the group has for the member.
    ///
    /// # Errors
    /// [`Fault::Result`] if it is not that share, though every part was right: the group is not what its helpers
    /// hold shares of.
    pub fn share(&self) -> Result<Option<KeyShare>, Fault> {
        if self.sigmas.len() != self.run.helpers.len() {
            return Ok(None);
        }
        let member = self.run.member;
        let repair = || {
            let sigmas: Result<Vec<_>, _> = self.sigmas.values().map(Sigma::frost).collect();
            let public = self.group.package_of([member]);
            let key = repair_share_part3(&sigmas.ok()?, member.frost(), &public).ok()?;
            KeyShare::new(member, *key.signing_share(), self.group.clone()).ok()
        };
        repair().map(Some).ok_or(Fault::Result)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("run", &self.run.id())
            .field("missing", &self.missing())
            .finish_non_exhaustive()
    }
}

/// What went wrong in a run, and by whom. The member goes on without the culprit, in a new run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message of somebody who does not help.
    #[error("{0} does not help in this run")]
    Stranger(SignerId),
    /// A σ before the splits were complete.
    #[error("{0} sent its sum before it could know it")]
    TooEarly(SignerId),
    /// A split that does not add up to the helper's term.
    #[error("the split of {0} does not add up to its share")]
    Split(SignerId),
    /// Two splits of one helper.
    #[error("{0} has sent two different splits")]
    TwoSplits(SignerId),
    /// A δ that its author had not committed to.
    #[error("{0} sent another helper a δ that it has not committed to")]
    Delta(SignerId),
    /// An accusation that its evidence does not bear out.
    #[error("{0} accuses another helper falsely")]
    FalseAccusation(SignerId),
    /// A σ that is not the sum of what was committed to for it.
    #[error("the sum of {0} is not that of what it got")]
    Sigma(SignerId),
    /// The sum of all is not the member's share.
    #[error("the repaired share is not this member's; the group's description is wrong")]
    Result,
}

impl Fault {
    /// Who is at fault; `None` if nobody can be named.
    pub fn culprit(&self) -> Option<SignerId> {
        match self {
            Self::Stranger(id)
            | Self::TooEarly(id)
            | Self::Split(id)
            | Self::TwoSplits(id)
            | Self::Delta(id)
            | Self::FalseAccusation(id)
            | Self::Sigma(id) => Some(*id),
            Self::Result => None,
        }
    }
}
