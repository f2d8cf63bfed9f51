//! What participants tell one another. The caller signs each message, so that a contradiction is
//! evidence.

use std::collections::BTreeMap;
use std::fmt;

use frost_secp256k1_tr::keys::dkg::{round1, round2};
use serde::{Deserialize, Serialize, Serializer};

use crate::{GroupKey, MAX_SIGNERS, SignerId, hash};

/// Longest round-1 package: header, 255 compressed points, a 64-byte proof, and lengths.
const MAX_ROUND1: usize = 33 * MAX_SIGNERS + 128;

/// Names one ceremony: see [`super::Ceremony::id`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CeremonyId(#[serde(with = "hash::bytes32")] pub [u8; 32]);

impl fmt::Debug for CeremonyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CeremonyId({})",
            hex::encode(self.0.get(..4).unwrap_or_default())
        )
    }
}

/// A message of the ceremony, from one participant to another. All but [`Message::Round2`] are the
/// same for every recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Commitments to the sender's polynomial, with a proof that it knows the constant term.
    Round1 {
        /// Which ceremony.
        ceremony: CeremonyId,
        /// Public.
        package: Round1Package,
    },
    /// What the sender got from everybody in round 1, itself included.
    Echo {
        /// Which ceremony.
        ceremony: CeremonyId,
        /// [`Round1Package::digest`] of each participant's package. A digest each, and not one of all, so
        /// that a difference points at the participant that said two things.
        seen: BTreeMap<SignerId, PackageDigest>,
    },
    /// The sender's polynomial at the recipient's identifier. Secret: for encrypted channels only.
    Round2 {
        /// Which ceremony.
        ceremony: CeremonyId,
        /// Who must get it; a package that went astray blames nobody.
        to: SignerId,
        /// Secret.
        package: Round2Package,
    },
    /// The sender has a share that fits, of this key.
    Confirm {
        /// Which ceremony.
        ceremony: CeremonyId,
        /// Hash of everything public that happened.
        #[serde(with = "hash::bytes32")]
        transcript: [u8; 32],
        /// GROUP.
        group_key: GroupKey,
    },
}

impl Message {
    /// Which ceremony it belongs to.
    pub fn ceremony(&self) -> CeremonyId {
        match self {
            Self::Round1 { ceremony, .. }
            | Self::Echo { ceremony, .. }
            | Self::Round2 { ceremony, .. }
            | Self::Confirm { ceremony, .. } => *ceremony,
        }
    }

    /// Which of the four it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Round1 { .. } => Kind::Round1,
            Self::Echo { .. } => Kind::Echo,
            Self::Round2 { .. } => Kind::Round2,
            Self::Confirm { .. } => Kind::Confirm,
        }
    }
}

/// The four messages, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// [`Message::Round1`]
    Round1,
    /// [`Message::Echo`]
    Echo,
    /// [`Message::Round2`]
    Round2,
    /// [`Message::Confirm`]
    Confirm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Round1 => "round-1 package",
            Self::Echo => "echo",
            Self::Round2 => "round-2 package",
            Self::Confirm => "confirmation",
        })
    }
}

/// Hash of one round-1 package within its ceremony.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackageDigest(#[serde(with = "hash::bytes32")] pub [u8; 32]);

impl fmt::Debug for PackageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PackageDigest({})",
            hex::encode(self.0.get(..4).unwrap_or_default())
        )
    }
}

/// FROST's round-1 package with its one canonical encoding, so that equal packages hash alike.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Round1Package {
    package: round1::Package,
    bytes: Vec<u8>,
}

impl Round1Package {
    pub(super) fn new(package: round1::Package) -> Result<Self, frost_secp256k1_tr::Error> {
        let bytes = package.serialize()?;
        Ok(Self { package, bytes })
    }

    /// The package's hash, bound to ceremony and sender.
    pub fn digest(&self, ceremony: &CeremonyId, from: SignerId) -> PackageDigest {
        let from = from.to_bytes();
        PackageDigest(hash::tagged(
            "drawbridge/dkg/round1",
            [&ceremony.0[..], &from, &self.bytes],
        ))
    }

    pub(super) fn frost(&self) -> &round1::Package {
        &self.package
    }

    /// The number of coefficients: the threshold, if the sender is honest.
    pub(super) fn coefficients(&self) -> Option<usize> {
        Some(self.package.commitment().serialize().ok()?.len())
    }
}

impl TryFrom<Vec<u8>> for Round1Package {
    type Error = PackageError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        if bytes.len() > MAX_ROUND1 {
            return Err(PackageError::TooLong(bytes.len()));
        }
        let package = round1::Package::deserialize(&bytes).map_err(|_| PackageError::Encoding)?;
        let package = Self::new(package).map_err(|_| PackageError::Encoding)?;
        if package.bytes == bytes {
            Ok(package)
        } else {
            Err(PackageError::Encoding)
        }
    }
}

impl Serialize for Round1Package {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(to)
    }
}

/// FROST's round-2 package: one secret scalar. Zeroized on drop, and nothing of it is printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round2Package(round2::Package);

impl Round2Package {
    pub(super) fn new(package: round2::Package) -> Self {
        Self(package)
    }

    pub(super) fn frost(&self) -> &round2::Package {
        &self.0
    }
}

impl fmt::Debug for Round2Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Round2Package(redacted)")
    }
}

/// Why bytes are not a round-1 package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// Longer than one with 255 coefficients.
    #[error("{0} bytes are too long for a round-1 package")]
    TooLong(usize),
    /// Not the canonical encoding of one.
    #[error("not a canonical round-1 package")]
    Encoding,
}
