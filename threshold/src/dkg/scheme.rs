//! What the participants add up. The messages and the checks around it are those of [`super::Machine`].

use std::collections::BTreeMap;

use frost_secp256k1_tr::keys::dkg::{part1, part2, part3, round1, round2};
use frost_secp256k1_tr::keys::refresh::{refresh_dkg_part1, refresh_dkg_part2, refresh_dkg_shares};
use frost_secp256k1_tr::keys::{KeyPackage, PublicKeyPackage, SecretShare};
use frost_secp256k1_tr::{Error as FrostError, Group as _, Identifier, Secp256K1Group};

use super::{Round1Package, Round2Package, SeedStream};
use crate::group::{GroupError, point, scalar};
use crate::{GroupInfo, KeyShare, SignerId};

/// After key generation, before any refresh.
const FIRST_EPOCH: u32 = 0;

/// FROST's secret and public halves of round 1.
type Round1 = (round1::SecretPackage, round1::Package);
/// FROST's secret half of round 2, and a package for each other participant.
type Round2 = (round2::SecretPackage, BTreeMap<Identifier, round2::Package>);

/// Which polynomials.
pub(crate) enum Scheme {
    /// Random ones: the sum of their constant terms becomes a key (Komlo and Goldberg, figure 1).
    Generate,
    /// Random ones that are zero at 0: added to the shares, they change every share and not the key
    /// (Herzberg et al., "Proactive secret sharing", 1995, section 3.1). Zero is not proven but left out: commitments
    /// begin with the coefficient of x.
    Refresh {
        /// The share that is made anew.
        key: Box<KeyPackage>,
        /// Its group.
        group: Box<GroupInfo>,
        /// Epoch of the new shares.
        epoch: u32,
    },
}

impl Scheme {
    /// A refresh of `share`.
    pub(crate) fn refresh(share: &KeyShare, epoch: u32) -> Self {
        Self::Refresh {
            key: Box::new(share.package().clone()),
            group: Box::new(share.group().clone()),
            epoch,
        }
    }

    /// The epoch of the shares that come of it.
    pub(super) fn epoch(&self) -> u32 {
        match self {
            Self::Generate => FIRST_EPOCH,
            Self::Refresh { epoch, .. } => *epoch,
        }
    }

    /// Commitments in a round-1 package.
    pub(super) fn coefficients(&self, threshold: u16) -> usize {
        match self {
            Self::Generate => usize::from(threshold),
            Self::Refresh { .. } => usize::from(threshold).saturating_sub(1),
        }
    }

    pub(super) fn part1(
        &self,
        me: SignerId,
        signers: u16,
        threshold: u16,
        stream: SeedStream,
    ) -> Result<Round1, FrostError> {
        match self {
            Self::Generate => part1(me.frost(), signers, threshold, stream),
            Self::Refresh { .. } => refresh_dkg_part1(me.frost(), signers, threshold, stream),
        }
    }

    pub(super) fn part2(
        &self,
        secret: round1::SecretPackage,
        others: &BTreeMap<Identifier, round1::Package>,
    ) -> Result<Round2, FrostError> {
        match self {
            Self::Generate => part2(secret, others),
            Self::Refresh { .. } => refresh_dkg_part2(secret, others),
        }
    }

    /// Whether the secret that its sender sent to `me` is on the polynomial that it has committed to.
    pub(super) fn fits(
        &self,
        me: SignerId,
        round1: &Round1Package,
        round2: &Round2Package,
    ) -> bool {
        let share = round2.frost().signing_share();
        let commitment = round1.frost().commitment();
        match self {
            Self::Generate => SecretShare::new(me.frost(), *share, commitment.clone())
                .verify()
                .is_ok(),
            Self::Refresh { .. } => {
                let points = commitment.serialize().unwrap_or_default();
                is_at(me, &points, &share.serialize()).unwrap_or(false)
            }
        }
    }

    pub(super) fn part3(
        &self,
        secret: &round2::SecretPackage,
        round1: &BTreeMap<Identifier, round1::Package>,
        round2: &BTreeMap<Identifier, round2::Package>,
    ) -> Result<(KeyPackage, PublicKeyPackage), FrostError> {
        match self {
            Self::Generate => part3(secret, round1, round2),
            Self::Refresh { key, group, .. } => {
                let public = group.package_of(group.signers());
                refresh_dkg_shares(secret, round1, round2, public, KeyPackage::clone(key))
            }
        }
    }
}

/// Whether `share`·G = Σ x^k·C_k for k = 1, 2, ... (no constant term), with x the identifier of `me`.
fn is_at(me: SignerId, commitments: &[Vec<u8>], share: &[u8]) -> Result<bool, GroupError> {
    let x = scalar(&me.to_bytes())?;
    let share = scalar(share.try_into().map_err(|_| GroupError::Shares)?)?;
    let mut sum = Secp256K1Group::identity();
    for commitment in commitments.iter().rev() {
        sum = (sum + point(commitment)?) * x;
    }
    Ok(Secp256K1Group::generator() * share == sum)
}
