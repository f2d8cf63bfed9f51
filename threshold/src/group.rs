//! What everybody may know of a group: its key, its threshold, and a verifying share per signer.

use std::collections::BTreeMap;
use std::fmt;

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey};
use frost_secp256k1_tr::keys::{PublicKeyPackage, VerifyingShare};
use frost_secp256k1_tr::{
    Field as _, Group as _, Secp256K1Group, Secp256K1ScalarField, VerifyingKey,
};
use serde::{Deserialize, Serialize};

use crate::{MAX_SIGNERS, MIN_THRESHOLD, SignerId, hash};

pub(crate) type Scalar = <Secp256K1ScalarField as frost_secp256k1_tr::Field>::Scalar;
pub(crate) type Point = <Secp256K1Group as frost_secp256k1_tr::Group>::Element;

/// GROUP: the key that key generation outputs, x-only (BIP-340).
///
/// `frost-secp256k1-tr` has by then applied one empty BIP-341 tweak of its own to the sum of the
/// participants' keys, so that nobody can have hidden a script path in it. GROUP is the key *after* that;
/// it is the internal key of every output of the vault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupKey(XOnlyPublicKey);

impl GroupKey {
    /// The key as rust-bitcoin knows it: the internal key for descriptors and P2TR outputs.
    pub fn to_x_only(self) -> XOnlyPublicKey {
        self.0
    }

    /// The 32 bytes of the x-coordinate.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.serialize()
    }
}

impl From<XOnlyPublicKey> for GroupKey {
    fn from(key: XOnlyPublicKey) -> Self {
        Self(key)
    }
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey({})", self.0)
    }
}

/// Everything public about a group, enough to check signature shares and to aggregate.
///
/// A decoded value is consistent: the bounds hold, and the verifying shares and GROUP lie on one
/// polynomial of the threshold's degree, so a share that fails here fails for everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct GroupInfo {
    epoch: u32,
    threshold: u16,
    key: GroupKey,
    verifying_key: VerifyingKey,
    verifying_shares: BTreeMap<SignerId, VerifyingShare>,
    transcript: [u8; 32],
}

impl GroupInfo {
    /// Checks the bounds and that the shares belong to the key.
    pub(crate) fn new(
        epoch: u32,
        threshold: u16,
        verifying_key: VerifyingKey,
        verifying_shares: BTreeMap<SignerId, VerifyingShare>,
        transcript: [u8; 32],
    ) -> Result<Self, GroupError> {
        let signers = verifying_shares.len();
        if signers > MAX_SIGNERS || threshold < MIN_THRESHOLD || usize::from(threshold) > signers {
            return Err(GroupError::Bounds { threshold, signers });
        }
        let bytes = verifying_key.serialize().map_err(|_| GroupError::Key)?;
        let public = PublicKey::from_slice(&bytes).map_err(|_| GroupError::Key)?;
        let info = Self {
            epoch,
            threshold,
            key: GroupKey(public.x_only_public_key().0),
            verifying_key,
            verifying_shares,
            transcript,
        };
        if info.shares_fit_the_key()? {
            Ok(info)
        } else {
            Err(GroupError::Shares)
        }
    }

    /// GROUP.
    pub fn group_key(&self) -> GroupKey {
        self.key
    }

    /// How many signers make a signature.
    pub fn threshold(&self) -> u16 {
        self.threshold
    }

    /// Which generation of shares this is: 0 after key generation, one more with each refresh.
    /// Shares of different epochs do not combine.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The hash of the key generation that all participants confirmed.
    pub fn transcript(&self) -> [u8; 32] {
        self.transcript
    }

    /// Hash of everything in here: names this group at this epoch, with these shares.
    pub fn digest(&self) -> [u8; 32] {
        // A key that does not encode (the identity) is no key of a group: `new` has seen to it.
        let key = self.verifying_key.serialize().unwrap_or_default();
        let shares: Vec<u8> = self
            .verifying_shares
            .iter()
            .flat_map(|(id, share)| {
                let share = share.serialize().unwrap_or_default();
                id.to_bytes().into_iter().chain(share)
            })
            .collect();
        let (epoch, threshold) = (self.epoch.to_be_bytes(), self.threshold.to_be_bytes());
        hash::tagged(
            "drawbridge/group",
            [&epoch[..], &threshold, &self.transcript, &key, &shares],
        )
    }

    /// All signers, in the order of their identifiers.
    pub fn signers(&self) -> impl ExactSizeIterator<Item = SignerId> + '_ {
        self.verifying_shares.keys().copied()
    }

    /// Whether `signer` holds a share of this key.
    pub fn contains(&self, signer: SignerId) -> bool {
        self.verifying_shares.contains_key(&signer)
    }

    /// Names everything that is in here.
    pub fn hash(&self) -> [u8; 32] {
        // Nothing that was checked when it was made fails to encode.
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        hash::tagged("drawbridge/group", [bytes.as_slice()])
    }

    pub(crate) fn verifying_key(&self) -> &VerifyingKey {
        &self.verifying_key
    }

    pub(crate) fn verifying_share(&self, signer: SignerId) -> Option<&VerifyingShare> {
        self.verifying_shares.get(&signer)
    }

    /// The public key package of those `signers` that are in the group: aggregation tweaks every
    /// share in it, so it holds no more of them than a session needs.
    pub(crate) fn package_of(
        &self,
        signers: impl IntoIterator<Item = SignerId>,
    ) -> PublicKeyPackage {
        let shares = signers
            .into_iter()
            .filter_map(|id| Some((id.frost(), *self.verifying_shares.get(&id)?)))
            .collect();
        PublicKeyPackage::new(shares, self.verifying_key, Some(self.threshold))
    }

    /// Whether GROUP (at x = 0) and the n verifying shares lie on one polynomial of degree t - 1, and on none of a
    /// lower degree: fewer signers than the threshold says could use those.
    ///
    /// The dual-code test of SCRAPE (Cascudo and David, 2017, section 2.1): for a random polynomial q
    /// of degree n - t, the sum over all n + 1 points of q(x_i) · v_i · Y_i vanishes, where
    /// v_i = Π (x_i - x_j)⁻¹; for shares off the polynomial it vanishes with probability 2⁻²⁵⁶. q comes from
    /// a hash of the shares, so whoever makes them up cannot know it. The same sum with q = x^(n - t + 1) is the
    /// polynomial's leading coefficient, by Newton's divided differences. Costs 2n multiplications.
    fn shares_fit_the_key(&self) -> Result<bool, GroupError> {
        let points = self.points()?;
        let digest = hash::tagged(
            "drawbridge/group-check",
            points
                .iter()
                .flat_map(|(_, _, bytes)| bytes.iter().map(Vec::as_slice)),
        );
        let degree = points
            .len()
            .saturating_sub(usize::from(self.threshold).saturating_add(1));
        let q = (0..=degree)
            .map(|k| challenge(&digest, k))
            .collect::<Result<Vec<Scalar>, GroupError>>()?;
        let mut sum = Secp256K1Group::identity();
        let mut leading = Secp256K1Group::identity();
        for (i, (x, y, _)) in points.iter().enumerate() {
            let mut others = Secp256K1ScalarField::one();
            for (j, (z, ..)) in points.iter().enumerate() {
                if i != j {
                    others *= *x - *z;
                }
            }
            let v = Secp256K1ScalarField::invert(&others).map_err(|_| GroupError::Shares)?;
            let at_x = q
                .iter()
                .rev()
                .fold(Secp256K1ScalarField::zero(), |sum, c| sum * *x + *c);
            let power = q
                .iter()
                .fold(Secp256K1ScalarField::one(), |power, _| power * *x);
            sum += *y * (v * at_x);
            leading += *y * (v * power);
        }
        let identity = Secp256K1Group::identity();
        Ok(sum == identity && leading != identity)
    }

    /// (x, Y, encoding of both) of GROUP at 0 and of every signer.
    #[allow(clippy::type_complexity, reason = "used once, right above")]
    fn points(&self) -> Result<Vec<(Scalar, Point, [Vec<u8>; 2])>, GroupError> {
        let key = self
            .verifying_key
            .serialize()
            .map_err(|_| GroupError::Key)?;
        let mut points = vec![(
            Secp256K1ScalarField::zero(),
            point(&key)?,
            [vec![0; 32], key],
        )];
        for (id, share) in &self.verifying_shares {
            let share = share.serialize().map_err(|_| GroupError::Shares)?;
            let id = id.to_bytes();
            points.push((scalar(&id)?, point(&share)?, [id.to_vec(), share]));
        }
        Ok(points)
    }
}

pub(crate) fn scalar(bytes: &[u8; 32]) -> Result<Scalar, GroupError> {
    Secp256K1ScalarField::deserialize(bytes).map_err(|_| GroupError::Shares)
}

pub(crate) fn point(bytes: &[u8]) -> Result<Point, GroupError> {
    let bytes = bytes.try_into().map_err(|_| GroupError::Shares)?;
    Secp256K1Group::deserialize(&bytes).map_err(|_| GroupError::Shares)
}

/// The k-th coefficient of the check's polynomial. A hash that is no canonical scalar (probability 2⁻¹²⁷)
/// is hashed once more.
fn challenge(digest: &[u8; 32], k: usize) -> Result<Scalar, GroupError> {
    let index = u32::try_from(k)
        .map_err(|_| GroupError::Shares)?
        .to_be_bytes();
    let first = hash::tagged("drawbridge/group-check/q", [digest.as_slice(), &index]);
    scalar(&first).or_else(|_| scalar(&hash::tagged("drawbridge/group-check/q", [&first[..]])))
}

/// [`GroupInfo`] as it travels, before its check.
#[derive(Serialize, Deserialize)]
#[serde(rename = "GroupInfo", deny_unknown_fields)]
struct Unchecked {
    epoch: u32,
    threshold: u16,
    verifying_key: VerifyingKey,
    verifying_shares: BTreeMap<SignerId, VerifyingShare>,
    #[serde(with = "hash::bytes32")]
    transcript: [u8; 32],
}

/// How an encoded [`GroupInfo`] begins: enough to tell its size before its shares are decoded, each of which costs
/// a square root. In postcard a map begins with its length.
#[derive(Deserialize)]
pub struct GroupHead {
    #[allow(dead_code, reason = "stands before the length")]
    epoch: u32,
    #[allow(dead_code, reason = "stands before the length")]
    threshold: u16,
    #[allow(dead_code, reason = "stands before the length")]
    verifying_key: VerifyingKey,
    signers: u64,
}

impl GroupHead {
    /// How many signers it claims to have.
    pub fn signers(&self) -> u64 {
        self.signers
    }
}

impl TryFrom<Unchecked> for GroupInfo {
    type Error = GroupError;

    fn try_from(from: Unchecked) -> Result<Self, Self::Error> {
        Self::new(
            from.epoch,
            from.threshold,
            from.verifying_key,
            from.verifying_shares,
            from.transcript,
        )
    }
}

impl From<GroupInfo> for Unchecked {
    fn from(from: GroupInfo) -> Self {
        Self {
            epoch: from.epoch,
            threshold: from.threshold,
            verifying_key: from.verifying_key,
            verifying_shares: from.verifying_shares,
            transcript: from.transcript,
        }
    }
}

/// Why something is not the description of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Not 2 <= threshold <= signers <= 255.
    #[error("{threshold} of {signers} signers is not a group")]
    Bounds {
        /// Signers needed for a signature.
        threshold: u16,
        /// Signers in all.
        signers: usize,
    },
    /// The group key is no usable point.
    #[error("the group key is not a point other than the identity")]
    Key,
    /// The verifying shares do not interpolate to the group key, or fewer of them than the threshold do.
    #[error("the verifying shares do not belong to the group key and threshold")]
    Shares,
}
