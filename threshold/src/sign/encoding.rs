//! How commitments and shares travel: plain bytes, of which there is one form only, so that bytes can stand
//! for what they decode to, in hashes too.

use std::fmt;
use std::sync::{Arc, OnceLock};

use frost_secp256k1_tr::round1::{NonceCommitment, SigningCommitments};
use frost_secp256k1_tr::round2::SignatureShare;
use rayon::prelude::*;
use serde::{Deserialize, Serialize, Serializer};

use super::MAX_MESSAGES;

/// Encoded length of one pair of nonce commitments: two compressed points.
pub(super) const PAIR_LEN: usize = 66;
/// Encoded length of one signature share: a scalar.
pub(super) const SHARE_LEN: usize = 32;

/// Public commitments to a signer's [`Nonces`](super::Nonces), a pair per message. Decoding refuses more
/// than [`MAX_MESSAGES`] pairs. Whether they are points is found out when it is asked for the first time: it costs a
/// square root each, and those for a next attempt are seldom used. A clone shares its memory with the original.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Commitments {
    /// `None` inside if one is no point.
    pairs: Arc<OnceLock<Option<Arc<[SigningCommitments]>>>>,
    /// What the pairs decode from. Kept, because encoding costs two field inversions a pair.
    bytes: Arc<[u8]>,
}

impl Commitments {
    /// `None` if a point is the identity, which no nonce of FROST's commits to.
    pub(super) fn new(pairs: Vec<SigningCommitments>) -> Option<Self> {
        let encoded: Vec<Vec<u8>> = pairs
            .par_iter()
            .map(|pair| {
                let hiding = pair.hiding().serialize().ok()?;
                Some([hiding, pair.binding().serialize().ok()?].concat())
            })
            .collect::<Option<_>>()?;
        Some(Self::known(pairs.into(), encoded.concat().into()))
    }

    fn known(pairs: Arc<[SigningCommitments]>, bytes: Arc<[u8]>) -> Self {
        Self {
            pairs: Arc::new(OnceLock::from(Some(pairs))),
            bytes,
        }
    }

    /// How many messages they are for.
    pub fn len(&self) -> usize {
        self.bytes.len() / PAIR_LEN
    }

    /// Never the case for decoded commitments.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Those for the first `count` messages; `None` if there are fewer, or none is wanted.
    pub fn first(&self, count: usize) -> Option<Self> {
        let bytes = self.bytes.get(..count.checked_mul(PAIR_LEN)?)?;
        if bytes.is_empty() {
            return None;
        }
        match self.pairs.get() {
            Some(Some(pairs)) => Some(Self::known(pairs.get(..count)?.into(), bytes.into())),
            _ => Some(Self::unknown(bytes.into())),
        }
    }

    /// Whether each is a point of the curve, other than the identity, in its one encoding.
    pub fn are_points(&self) -> bool {
        self.pairs().is_some()
    }

    /// Whether these are the other ones, and perhaps more behind them.
    pub fn begin_with(&self, other: &Self) -> bool {
        self.bytes.starts_with(&other.bytes)
    }

    fn unknown(bytes: Arc<[u8]>) -> Self {
        Self {
            pairs: Arc::default(),
            bytes,
        }
    }

    pub(super) fn pairs(&self) -> Option<&[SigningCommitments]> {
        self.pairs.get_or_init(|| decode(&self.bytes)).as_deref()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encoded pair for one message: two compressed points, hiding then binding.
    pub fn pair_bytes(&self, message: usize) -> Option<&[u8]> {
        self.bytes.chunks_exact(PAIR_LEN).nth(message)
    }
}

impl PartialEq for Commitments {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Commitments {}

impl TryFrom<Vec<u8>> for Commitments {
    type Error = DecodeError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        check_count(&bytes, PAIR_LEN)?;
        Ok(Self::unknown(bytes.into()))
    }
}

/// A square root for each point: worth all processors for a large batch.
fn decode(bytes: &[u8]) -> Option<Arc<[SigningCommitments]>> {
    let pairs: Vec<SigningCommitments> = bytes
        .par_chunks_exact(PAIR_LEN)
        .map(|pair| {
            let (hiding, binding) = pair.split_at(PAIR_LEN / 2);
            Some(SigningCommitments::new(point(hiding)?, point(binding)?))
        })
        .collect::<Option<_>>()?;
    Some(pairs.into())
}

/// A compressed point. SEC1's compact form (tag 5), which FROST's decoder takes too, would be a second
/// encoding of the same point.
fn point(bytes: &[u8]) -> Option<NonceCommitment> {
    match bytes.first() {
        Some(2 | 3) => NonceCommitment::deserialize(bytes).ok(),
        _ => None,
    }
}

impl Serialize for Commitments {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(to)
    }
}

impl fmt::Debug for Commitments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commitments({})", self.len())
    }
}

/// A signer's shares of the signatures, one per message. Decoding refuses more than
/// [`MAX_MESSAGES`], and scalars that are not canonical.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Shares(pub(super) Vec<SignatureShare>);

impl Shares {
    /// How many messages they are for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never the case for decoded shares.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The encoded share for one message: a scalar, 32 bytes, big-endian.
    pub fn share_bytes(&self, message: usize) -> Option<Vec<u8>> {
        self.0.get(message).map(SignatureShare::serialize)
    }
}

impl TryFrom<Vec<u8>> for Shares {
    type Error = DecodeError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        check_count(&bytes, SHARE_LEN)?;
        bytes
            .chunks_exact(SHARE_LEN)
            .map(|share| SignatureShare::deserialize(share).map_err(|_| DecodeError::Content))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Serialize for Shares {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(SignatureShare::serialize).collect();
        bytes.serialize(to)
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shares({})", self.0.len())
    }
}

/// The count is bounded before anything is decoded.
fn check_count(bytes: &[u8], len: usize) -> Result<(), DecodeError> {
    let items = bytes.chunks_exact(len);
    if !items.remainder().is_empty() || !(1..=MAX_MESSAGES).contains(&items.len()) {
        return Err(DecodeError::Length(bytes.len()));
    }
    Ok(())
}

/// Why bytes are not commitments or shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a whole number of items from 1 to [`MAX_MESSAGES`].
    #[error("{0} bytes are not 1 to {MAX_MESSAGES} whole items")]
    Length(usize),
    /// An item is no canonical scalar.
    #[error("an item is not a canonical scalar")]
    Content,
}
