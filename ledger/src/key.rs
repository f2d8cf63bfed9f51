//! Account keys, their addresses, and Schnorr signatures over `ark-ed-on-bn254` with a Poseidon challenge.
//!
//! A signature of message m by key A = a*G is (R, s) with s*G = R + e*A, where e = 2^128 + 2c + 1 and c is the
//! low 128 bits of Poseidon(R.x, R.y, A.x, m). Challenges of 128 bits suffice for Schnorr signatures (Neven, Smart,
//! Warinschi 2009), as the discrete logarithm on this curve costs 2^125 anyway; the odd form with its top bit
//! set lets the circuit multiply with no special cases. A.x alone names A: of the curve's points with one x
//! coordinate, P and (0,-1) - P, only one has prime order.
//!
//! Signing is not constant-time: arkworks' arithmetic is not. A wallet signs on its user's machine.

use std::{fmt, sync::LazyLock};

use ark_ec::{AffineRepr as _, CurveGroup as _, PrimeGroup as _};
use ark_ed_on_bn254::{EdwardsAffine, EdwardsProjective, Fr as Scalar};
use ark_ff::{BigInteger as _, PrimeField as _, UniformRand as _, Zero as _};
use ark_serialize::{CanonicalDeserialize as _, CanonicalSerialize as _};
use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};
use bitcoin::Network;
use rand::{CryptoRng, RngCore, rngs::OsRng};
use sha2::{Digest as _, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    Digest, Field,
    encoding::{DecodeError, serde_as_bytes},
    poseidon::Native,
    statement,
};

/// Bytes in a compressed key: y, little-endian, with the sign of x in the top bit.
pub const KEY_BYTES: usize = 32;

/// Bytes in a signature: R compressed, then s, little-endian.
pub const SIGNATURE_BYTES: usize = 64;

/// Bits of the hash that enter the challenge.
pub const CHALLENGE_BITS: usize = 128;

const NONCE_TAG: &[u8] = b"drawbridge/schnorr-nonce/v1";

/// An account's public key: a point of the prime-order subgroup, not the identity. Every value of this type has
/// been checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountKey(EdwardsAffine);

impl AccountKey {
    /// The point, for the circuit.
    pub fn point(&self) -> EdwardsAffine {
        self.0
    }

    /// Checks a point.
    ///
    /// # Errors
    /// [`DecodeError::NotOnCurve`] or [`DecodeError::NotInSubgroup`]; the identity is refused as well.
    pub fn from_point(point: EdwardsAffine) -> Result<Self, DecodeError> {
        if !point.is_on_curve() {
            return Err(DecodeError::NotOnCurve);
        }
        if point.is_zero() || !point.is_in_correct_subgroup_assuming_on_curve() {
            return Err(DecodeError::NotInSubgroup);
        }
        Ok(Self(point))
    }

    /// A point that is known to be a checked key: see [`crate::Ledger::from_stored`].
    pub(crate) fn from_known_point(point: EdwardsAffine) -> Self {
        Self(point)
    }

    /// The canonical encoding.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        compress(&self.0)
    }

    /// Reads the canonical encoding of a checked key.
    ///
    /// # Errors
    /// [`DecodeError`]: an encoding other than the canonical one, a point off the curve, of small order, of mixed
    /// order, or the identity.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<Self, DecodeError> {
        Self::from_point(decompress(bytes)?)
    }

    /// The key for people: bech32m (BIP-350) with the network in its prefix.
    pub fn to_address(&self, network: Network) -> String {
        // A fixed prefix and 32 bytes are far below the length limit, so encoding has no error to report.
        bech32::encode::<Bech32m>(prefix(network), &self.to_bytes()).unwrap_or_default()
    }

    /// Reads an address of `network`.
    ///
    /// # Errors
    /// [`AddressError`]; an address of another network has its own variant.
    pub fn from_address(network: Network, address: &str) -> Result<Self, AddressError> {
        let parsed =
            CheckedHrpstring::new::<Bech32m>(address).map_err(|_| AddressError::Checksum)?;
        let (found, expected) = (parsed.hrp(), prefix(network));
        if found != expected {
            let known = [Network::Bitcoin, Network::Testnet, Network::Regtest]
                .map(prefix)
                .contains(&found);
            let (found, expected) = (found.to_lowercase(), expected.to_lowercase());
            return Err(if known {
                AddressError::Network { found, expected }
            } else {
                AddressError::Prefix { found, expected }
            });
        }
        let data: Vec<u8> = parsed.byte_iter().collect();
        let bytes: [u8; KEY_BYTES] = data
            .as_slice()
            .try_into()
            .map_err(|_| AddressError::Length)?;
        Ok(Self::from_bytes(&bytes)?)
    }

    /// `count` different keys whose secrets are known to everyone, for benchmarks of large trees: the generator
    /// times 2^64, 2^64 + 1, and so on.
    pub fn sequence(count: usize) -> Vec<Self> {
        let generator = EdwardsProjective::generator();
        let mut next = generator * Scalar::from(1u128 << 64);
        let points: Vec<EdwardsProjective> = std::iter::repeat_with(|| {
            let this = next;
            next += generator;
            this
        })
        .take(count)
        .collect();
        EdwardsProjective::normalize_batch(&points)
            .into_iter()
            .map(Self)
            .collect()
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &Digest, signature: &Signature) -> bool {
        let e = challenge(&signature.r, &self.0, message);
        let left = mul_generator(&signature.s);
        let right = signature.r.into_group() + self.0 * e;
        left == right
    }
}

serde_as_bytes!(AccountKey, 32);

fn prefix(network: Network) -> Hrp {
    Hrp::parse_unchecked(match network {
        Network::Bitcoin => "zkbtc",
        Network::Regtest => "zkbcrt",
        _ => "tzkbtc",
    })
}

/// Why text is not an account's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not bech32m, or mistyped.
    #[error("not a bech32m string, or its checksum is wrong")]
    Checksum,
    /// A zkBTC address, but of another network.
    #[error("the address is for another network: it starts with {found}1, expected {expected}1")]
    Network {
        /// Its prefix.
        found: String,
        /// This network's prefix.
        expected: String,
    },
    /// Some other bech32m string.
    #[error("not a zkBTC address: it starts with {found}1, expected {expected}1")]
    Prefix {
        /// Its prefix.
        found: String,
        /// This network's prefix.
        expected: String,
    },
    /// Not 32 bytes.
    #[error("the address does not hold 32 bytes")]
    Length,
    /// The bytes are not a valid key.
    #[error("the address does not hold a valid account key")]
    Key(#[from] DecodeError),
}

/// An account's secret key: a scalar, not zero. Zeroized on drop; `Debug` shows the public key only.
pub struct AccountSecret {
    scalar: Scalar,
    public: AccountKey,
}

impl AccountSecret {
    /// A fresh secret.
    pub fn generate<R: RngCore + CryptoRng>(rng: &mut R) -> Self {
        loop {
            let scalar = Scalar::rand(rng);
            if let Ok(secret) = Self::from_scalar(scalar) {
                return secret;
            }
        }
    }

    fn from_scalar(scalar: Scalar) -> Result<Self, DecodeError> {
        if scalar.is_zero() {
            return Err(DecodeError::Zero);
        }
        // A nonzero multiple of the generator has prime order, so this needs no check.
        let public = AccountKey(mul_generator(&scalar).into_affine());
        Ok(Self { scalar, public })
    }

    /// The public key.
    pub fn public(&self) -> AccountKey {
        self.public
    }

    /// 32 bytes, little-endian, below the group order.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new([0; 32]);
        for (to, from) in bytes
            .iter_mut()
            .zip(Zeroizing::new(self.scalar.into_bigint().to_bytes_le()).iter())
        {
            *to = *from;
        }
        bytes
    }

    /// Reads the canonical encoding only.
    ///
    /// # Errors
    /// [`DecodeError::NotCanonical`] at or above the group order, [`DecodeError::Zero`] for zero.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, DecodeError> {
        let scalar = Scalar::deserialize_compressed(bytes.as_slice())
            .map_err(|_| DecodeError::NotCanonical)?;
        Self::from_scalar(scalar)
    }

    /// Signs `message`. The nonce is a hash of secret, message and fresh randomness, so it is safe with a
    /// broken random number generator and hard to attack by faults with a good one.
    pub fn sign(&self, message: &Digest) -> Signature {
        let mut random = Zeroizing::new([0u8; 32]);
        // Without randomness the nonce is still unique to secret and message.
        let _ = OsRng.try_fill_bytes(random.as_mut_slice());
        let mut hash = Sha512::new();
        hash.update(NONCE_TAG);
        hash.update(self.to_bytes().as_slice());
        hash.update(random.as_slice());
        hash.update(message.to_bytes());
        let mut wide: [u8; 64] = hash.finalize().into();
        let mut nonce = Scalar::from_le_bytes_mod_order(&wide);
        wide.zeroize();
        let r = mul_generator(&nonce).into_affine();
        let s = nonce + challenge(&r, &self.public.0, message) * self.scalar;
        nonce.zeroize();
        Signature { r, s }
    }
}

impl Drop for AccountSecret {
    fn drop(&mut self) {
        self.scalar.zeroize();
    }
}

impl fmt::Debug for AccountSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountSecret(of {})", self.public)
    }
}

/// A Schnorr signature: 64 bytes, one encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature {
    r: EdwardsAffine,
    s: Scalar,
}

impl Signature {
    /// Stands in while a message is computed, which does not depend on the signature.
    pub(crate) fn unset() -> Self {
        Self {
            r: EdwardsAffine::zero(),
            s: Scalar::zero(),
        }
    }

    /// The nonce point R.
    pub fn nonce_point(&self) -> EdwardsAffine {
        self.r
    }

    /// The scalar s.
    pub fn scalar(&self) -> Scalar {
        self.s
    }

    /// R compressed, then s.
    pub fn to_bytes(&self) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        let s = self.s.into_bigint().to_bytes_le();
        for (to, from) in bytes.iter_mut().zip(compress(&self.r).into_iter().chain(s)) {
            *to = from;
        }
        bytes
    }

    /// Reads the canonical encoding. R need not be checked for its order: verification finds it equal to a
    /// combination of the generator and a checked key.
    ///
    /// # Errors
    /// [`DecodeError::NotCanonical`] or [`DecodeError::NotOnCurve`].
    pub fn from_bytes(bytes: &[u8; SIGNATURE_BYTES]) -> Result<Self, DecodeError> {
        let (r, s) = bytes.split_at(KEY_BYTES);
        let r: [u8; KEY_BYTES] = r.try_into().map_err(|_| DecodeError::NotCanonical)?;
        let s = Scalar::deserialize_compressed(s).map_err(|_| DecodeError::NotCanonical)?;
        Ok(Self {
            r: decompress(&r)?,
            s,
        })
    }
}

serde_as_bytes!(Signature, 64);

/// e = 2^128 + 2c + 1 with c the low 128 bits of the hash.
fn challenge(r: &EdwardsAffine, key: &EdwardsAffine, message: &Digest) -> Scalar {
    let hash = statement::challenge_hash(&mut Native, [r.x, r.y], key.x, message.0);
    let bytes = hash.into_bigint().to_bytes_le();
    let low: Vec<u8> = bytes.into_iter().take(CHALLENGE_BITS / 8).collect();
    let c = Scalar::from_le_bytes_mod_order(&low);
    let half_top = Scalar::from(1u128 << (CHALLENGE_BITS - 1));
    half_top + half_top + c + c + Scalar::from(1u8)
}

fn compress(point: &EdwardsAffine) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    // The encoding is exactly 32 bytes long, so writing it cannot fail.
    let written = point.serialize_compressed(bytes.as_mut_slice());
    debug_assert!(written.is_ok());
    bytes
}

/// Reads a canonical encoding of a point of the curve, of whatever order.
fn decompress(bytes: &[u8; KEY_BYTES]) -> Result<EdwardsAffine, DecodeError> {
    let [low @ .., top] = bytes;
    let mut y = [0; KEY_BYTES];
    let (y_low, y_top) = y.split_at_mut(KEY_BYTES - 1);
    y_low.copy_from_slice(low);
    y_top.fill(top & 0x7f);
    Field::deserialize_compressed(y.as_slice()).map_err(|_| DecodeError::NotCanonical)?;
    let point = EdwardsAffine::deserialize_compressed_unchecked(bytes.as_slice())
        .map_err(|_| DecodeError::NotOnCurve)?;
    // With x = 0 the sign bit is free; only one of the two encodings is canonical.
    if compress(&point) != *bytes {
        return Err(DecodeError::NotCanonical);
    }
    if !point.is_on_curve() {
        return Err(DecodeError::NotOnCurve);
    }
    Ok(point)
}

/// Bits in a window of the generator's table.
const WINDOW_BITS: usize = 4;
const WINDOWS: usize = 256 / WINDOW_BITS;

/// Multiples 0 to 15 of 16^i * G, for i below 64.
static GENERATOR_TABLE: LazyLock<Vec<Vec<EdwardsAffine>>> = LazyLock::new(|| {
    let mut base = EdwardsProjective::generator();
    (0..WINDOWS)
        .map(|_| {
            let mut multiple = EdwardsProjective::zero();
            let mut row = Vec::with_capacity(1 << WINDOW_BITS);
            for _ in 0..1 << WINDOW_BITS {
                row.push(multiple);
                multiple += base;
            }
            base = multiple;
            EdwardsProjective::normalize_batch(&row)
        })
        .collect()
});

fn mul_generator(scalar: &Scalar) -> EdwardsProjective {
    let bytes = Zeroizing::new(scalar.into_bigint().to_bytes_le());
    let digits = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
    GENERATOR_TABLE
        .iter()
        .zip(digits)
        .filter_map(|(row, digit)| row.get(usize::from(digit)))
        .fold(EdwardsProjective::zero(), |sum, point| sum + point)
}
