//! What member and helpers tell one another.

use std::fmt;

use frost_secp256k1_tr::keys::repairable;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use super::Run;
use crate::group::{point, scalar};
use crate::{MAX_SIGNERS, SignerId, hash};

/// Encoded length of a compressed point.
const POINT_LEN: usize = 33;

/// Names one run: see [`super::Run::id`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(#[serde(with = "hash::bytes32")] pub [u8; 32]);

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RunId({})",
            hex::encode(self.0.get(..4).unwrap_or_default())
        )
    }
}

/// Public commitments to a helper's δ, one for each helper of the run, in the order of their identifiers.
/// Decoding refuses more than [`MAX_SIGNERS`], and what is no compressed point.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub struct Split(Vec<[u8; POINT_LEN]>);

impl Split {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn points(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(<[u8; POINT_LEN]>::as_slice)
    }

    /// The commitment to the δ for one helper of the run.
    pub(super) fn point_for(&self, run: &Run, helper: SignerId) -> Option<&[u8]> {
        let place = run.helpers.iter().position(|id| *id == helper)?;
        self.points().nth(place)
    }
}

impl From<Split> for Vec<u8> {
    fn from(split: Split) -> Self {
        split.0.concat()
    }
}

impl TryFrom<Vec<u8>> for Split {
    type Error = NotASplit;

    fn try_from(bytes: Vec<u8>) -> Result<Self, NotASplit> {
        let points = bytes.chunks_exact(POINT_LEN);
        if !points.remainder().is_empty() || points.len() > MAX_SIGNERS {
            return Err(NotASplit);
        }
        points
            .map(|encoded| {
                let encoded = <[u8; POINT_LEN]>::try_from(encoded).map_err(|_| NotASplit)?;
                // SEC1's compact form (tag 5) would be a second encoding of the same point.
                match encoded.first() {
                    Some(2 | 3) if point(&encoded).is_ok() => Ok(encoded),
                    _ => Err(NotASplit),
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Split({})", self.0.len())
    }
}

/// Bytes that are no [`Split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not commitments for at most 255 helpers")]
pub struct NotASplit;

/// A secret scalar of 32 canonical bytes. Zeroized on drop, and nothing of it is printed.
macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            pub(super) fn bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.0.as_slice().serialize(to)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let bytes = Zeroizing::new(Vec::<u8>::deserialize(from)?);
                let bytes: [u8; 32] = bytes
                    .as_slice()
                    .try_into()
                    .map_err(|_| D::Error::custom("not 32 bytes"))?;
                let secret = Self(Zeroizing::new(bytes));
                match scalar(&secret.0) {
                    Ok(_) => Ok(secret),
                    Err(_) => Err(D::Error::custom("not a canonical scalar")),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret!(
    /// δ_ij: part of helper i's term, for helper j. Secret: for encrypted channels only.
    Delta
);
secret!(
    /// σ_j: the sum of what helper j got from all, for the member. Secret: for encrypted channels only.
    Sigma
);

impl Delta {
    pub(super) fn new(delta: &repairable::Delta) -> Self {
        let bytes = Zeroizing::new(delta.serialize());
        let mut own = Zeroizing::new([0; 32]);
        // The ciphersuite's scalars are always 32 bytes long.
        own.iter_mut()
            .zip(bytes.iter())
            .for_each(|(to, from)| *to = *from);
        Self(own)
    }

    pub(super) fn frost(&self) -> Result<repairable::Delta, frost_secp256k1_tr::Error> {
        repairable::Delta::deserialize(self.0.as_slice())
    }
}

impl Sigma {
    pub(super) fn new(sigma: &repairable::Sigma) -> Self {
        let bytes = Zeroizing::new(sigma.serialize());
        let mut own = Zeroizing::new([0; 32]);
        own.iter_mut()
            .zip(bytes.iter())
            .for_each(|(to, from)| *to = *from);
        Self(own)
    }

    pub(super) fn frost(&self) -> Result<repairable::Sigma, frost_secp256k1_tr::Error> {
        repairable::Sigma::deserialize(self.0.as_slice())
    }
}
