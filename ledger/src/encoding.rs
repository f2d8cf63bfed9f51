//! Canonical byte encodings: one value, one encoding, and anything else is an error.

use std::fmt;

use ark_ff::{BigInteger as _, PrimeField as _};
use ark_serialize::CanonicalDeserialize as _;

use crate::Field;

/// Bytes in a canonical field element, key or digest.
pub(crate) const ELEMENT_BYTES: usize = 32;

/// Bytes that always fit into one field element, whatever their value.
pub(crate) const LIMB_BYTES: usize = 31;

/// Why bytes or text do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not hexadecimal, or not the exact length.
    #[error("expected {expected} bytes of hexadecimal")]
    Length {
        /// The number of bytes that this type has.
        expected: usize,
    },
    /// The integer is not below the field's modulus, or unused bits are set.
    #[error("the encoding is not canonical")]
    NotCanonical,
    /// The coordinates do not name a point of the curve.
    #[error("the point is not on the curve")]
    NotOnCurve,
    /// The point is the identity or has a component of small order.
    #[error("the point is not in the prime-order subgroup, or is the identity")]
    NotInSubgroup,
    /// A secret scalar of zero.
    #[error("the secret is zero")]
    Zero,
}

/// Serde for types with `to_bytes`/`from_bytes`: hexadecimal for people, bytes on the wire.
macro_rules! serde_as_bytes {
    ($type:ty, $len:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&hex::encode(self.to_bytes()))
                } else {
                    serializer.serialize_bytes(&self.to_bytes())
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                let bytes: [u8; $len] = crate::encoding::deserialize_bytes(deserializer)?;
                <$type>::from_bytes(&bytes).map_err(D::Error::custom)
            }
        }

        impl std::str::FromStr for $type {
            type Err = crate::encoding::DecodeError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                <$type>::from_bytes(&crate::encoding::from_hex::<$len>(text)?)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.to_bytes()))
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($type))
            }
        }
    };
}
pub(crate) use serde_as_bytes;

/// Exactly `N` bytes of hexadecimal.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], DecodeError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| DecodeError::Length { expected: N })?;
    Ok(bytes)
}

/// Reads `N` bytes: a hexadecimal string from a human-readable format, else a byte string.
pub(crate) fn deserialize_bytes<'de, D: serde::Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    struct Visitor<const N: usize>;
    impl<const N: usize> serde::de::Visitor<'_> for Visitor<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes, in hexadecimal where the format is text")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            from_hex(text).map_err(E::custom)
        }

        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            bytes
                .try_into()
                .map_err(|_| E::invalid_length(bytes.len(), &self))
        }
    }
    if deserializer.is_human_readable() {
        deserializer.deserialize_str(Visitor)
    } else {
        deserializer.deserialize_bytes(Visitor)
    }
}

/// An element of the field: the output of Poseidon, a root, a state digest, a commitment.
///
/// 32 bytes, little-endian, below the modulus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Digest(pub(crate) Field);

impl Digest {
    /// The digest as a field element.
    pub fn element(&self) -> Field {
        self.0
    }

    /// 32 bytes, little-endian.
    pub fn to_bytes(&self) -> [u8; ELEMENT_BYTES] {
        let mut bytes = [0; ELEMENT_BYTES];
        for (to, from) in bytes.iter_mut().zip(self.0.into_bigint().to_bytes_le()) {
            *to = from;
        }
        bytes
    }

    /// Reads the canonical encoding only.
    ///
    /// # Errors
    /// [`DecodeError::NotCanonical`] for an integer that is not below the modulus.
    pub fn from_bytes(bytes: &[u8; ELEMENT_BYTES]) -> Result<Self, DecodeError> {
        Field::deserialize_compressed(bytes.as_slice())
            .map(Self)
            .map_err(|_| DecodeError::NotCanonical)
    }
}

impl From<Field> for Digest {
    fn from(element: Field) -> Self {
        Self(element)
    }
}

serde_as_bytes!(Digest, 32);

/// `bytes`, 31 at a time, each limb little-endian, as `N` elements; missing limbs are zero.
///
/// Injective for byte strings of one length; callers whose length varies commit to the length as well.
/// Bytes past `31 * N` are not part of any limb, so callers bound the length first.
pub(crate) fn limbs<const N: usize>(bytes: &[u8]) -> [Field; N] {
    let mut chunks = bytes.chunks(LIMB_BYTES);
    std::array::from_fn(|_| Field::from_le_bytes_mod_order(chunks.next().unwrap_or_default()))
}

/// Serde of a bare field element, as [`Digest`] does it.
pub(crate) mod field {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Digest;
    use crate::Field;

    pub fn serialize<S: Serializer>(element: &Field, serializer: S) -> Result<S::Ok, S::Error> {
        Digest(*element).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Field, D::Error> {
        Digest::deserialize(deserializer).map(|digest| digest.0)
    }
}

/// Serde of two field elements.
pub(crate) mod field_pair {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Digest;
    use crate::Field;

    pub fn serialize<S: Serializer>(
        elements: &[Field; 2],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        elements.map(Digest).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Field; 2], D::Error> {
        <[Digest; 2]>::deserialize(deserializer).map(|digests| digests.map(|digest| digest.0))
    }
}
