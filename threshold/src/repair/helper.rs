//! A helper's side of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use frost_secp256k1_tr::keys::SigningShare;
use frost_secp256k1_tr::keys::VerifyingShare;
use frost_secp256k1_tr::keys::repairable::{repair_share_part1, repair_share_part2};
use frost_secp256k1_tr::{Identifier, Secp256K1Sha256TR};
use zeroize::Zeroizing;

use super::{Delta, Run, RunError, Sigma, Split, Splits, opens};
use crate::dkg::SeedStream;
use crate::group::point;
use crate::{GroupInfo, KeyShare, SignerId, hash};

/// One helper in one run. Everything in it follows from its share, or is sent again by others when asked.
pub struct Helper {
    run: Run,
    group: GroupInfo,
    me: SignerId,
    deltas: BTreeMap<SignerId, Delta>,
    split: Split,
    /// Of all helpers, as the member has collected them.
    splits: Option<Splits>,
    /// Mine included.
    received: BTreeMap<SignerId, Delta>,
}

impl Helper {
    /// Splits this signer's term of the member's share.
    ///
    /// # Errors
    /// [`RunError`] if there can be no such run, or this signer does not help in it.
    pub fn new(share: &KeyShare, run: Run) -> Result<Self, RunError> {
        run.check(share.group())?;
        let me = share.signer();
        if !run.helpers.contains(&me) {
            return Err(RunError::NoHelper(me));
        }
        let helpers: Vec<Identifier> = run.helpers.iter().map(|id| id.frost()).collect();
        let deltas = repair_share_part1::<Secp256K1Sha256TR, _>(
            &helpers,
            share.package(),
            &mut stream(share, &run),
            run.member.frost(),
        )
        .map_err(RunError::Frost)?;
        let deltas: BTreeMap<SignerId, Delta> = deltas
            .into_iter()
            .map(|(id, delta)| (SignerId::from(id), Delta::new(&delta)))
            .collect();
        let split = commit(&deltas).map_err(RunError::Frost)?;
        let received = deltas
            .get_key_value(&me)
            .map(|(id, own)| (*id, own.clone()));
        Ok(Self {
            group: share.group().clone(),
            run,
            me,
            split,
            splits: None,
            received: received.into_iter().collect(),
            deltas,
        })
    }

    /// Public commitments to this helper's δ, for the member.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// The secret δ for another helper of the run; `None` for anybody else.
    pub fn delta_for(&self, helper: SignerId) -> Option<&Delta> {
        self.deltas.get(&helper).filter(|_| helper != self.me)
    }

    /// Takes the splits of all helpers, relayed by the member; the caller has checked their authors'
    /// signatures. The first set stands.
    ///
    /// # Errors
    /// Whose split is missing, wrong, or another than this helper's own: the member should have seen it.
    pub fn agree(&mut self, splits: &Splits) -> Result<(), SignerId> {
        if self.splits.is_some() {
            return Ok(());
        }
        for helper in &self.run.helpers {
            let good = splits
                .get(helper)
                .filter(|split| *helper != self.me || **split == self.split)
                .is_some_and(|split| self.run.is_split(&self.group, *helper, split));
            if !good {
                return Err(*helper);
            }
        }
        self.splits = Some(splits.clone());
        Ok(())
    }

    /// From whom a δ is missing; nobody before [`Self::agree`].
    pub fn missing(&self) -> BTreeSet<SignerId> {
        let wanted = self.splits.iter().flat_map(BTreeMap::keys);
        wanted
            .filter(|id| self.run.helpers.contains(id) && !self.received.contains_key(id))
            .copied()
            .collect()
    }

    /// Takes the δ that `from` has for this helper.
    ///
    /// # Errors
    /// [`BadDelta`] if it is not the one that `from` has committed to. The signed message is the evidence, to be
    /// shown to the member ([`super::Member::judge`]).
    pub fn receive(&mut self, from: SignerId, delta: Delta) -> Result<(), BadDelta> {
        let splits = self.splits.as_ref().ok_or(BadDelta::TooEarly)?;
        if !self.run.helpers.contains(&from) {
            return Err(BadDelta::Stranger(from));
        }
        if !fits(&self.run, splits, from, self.me, &delta) {
            return Err(BadDelta::Wrong(from));
        }
        self.received.insert(from, delta);
        Ok(())
    }

    /// The sum for the member, once every δ is here and good.
    pub fn sigma(&self) -> Option<Sigma> {
        if self.splits.is_none() || self.received.len() != self.run.helpers.len() {
            return None;
        }
        let deltas: Result<Vec<_>, _> = self.received.values().map(Delta::frost).collect();
        Some(Sigma::new(&repair_share_part2(&deltas.ok()?)))
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper")
            .field("run", &self.run.id())
            .field("missing", &self.missing())
            .finish_non_exhaustive()
    }
}

/// Whether `delta` is what `from` has committed to for `to`.
pub(super) fn fits(
    run: &Run,
    splits: &Splits,
    from: SignerId,
    to: SignerId,
    delta: &Delta,
) -> bool {
    splits
        .get(&from)
        .and_then(|split| split.point_for(run, to))
        .and_then(|encoded| point(encoded).ok())
        .is_some_and(|committed| opens(delta.bytes(), &committed))
}

/// The randomness of one helper in one run: a hash of its share and the run, the same every time, and
/// unknown to all who do not know the share.
fn stream(share: &KeyShare, run: &Run) -> SeedStream {
    let secret = Zeroizing::new(share.package().signing_share().serialize());
    let me = share.signer().to_bytes();
    let key = Zeroizing::new(hash::tagged(
        "drawbridge/repair/deltas/v1",
        [secret.as_slice(), &run.id().0, &me],
    ));
    SeedStream::new(&key)
}

fn commit(deltas: &BTreeMap<SignerId, Delta>) -> Result<Split, frost_secp256k1_tr::Error> {
    let mut bytes = Vec::new();
    for delta in deltas.values() {
        let secret = SigningShare::deserialize(delta.bytes())?;
        bytes.extend(VerifyingShare::from(secret).serialize()?);
    }
    Split::try_from(bytes).map_err(|_| frost_secp256k1_tr::Error::SerializationError)
}

/// Why a δ was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDelta {
    /// The splits are not known yet.
    #[error("the splits are not known yet")]
    TooEarly,
    /// It comes from somebody who does not help.
    #[error("{0} does not help in this run")]
    Stranger(SignerId),
    /// It is not what its sender has committed to.
    #[error("the δ of {0} is not the one that it has committed to")]
    Wrong(SignerId),
}
