//! Signing in two rounds, one session for all inputs of a transaction (RFC 9591 sections 5.1 to 5.3).
//!
//! ```text
//!  signer                      coordinator                         every signer
//!  commit ── Commitments ──►   Package { messages, commitments } ──► sign (uses up its Nonces)
//!                              verify_shares, aggregate ◄── Shares ──┘
//! ```
//!
//! A nonce serves one share (S9): [`Nonces`] cannot be copied or stored, and [`sign`] takes them by
//! value, whatever comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::LazyLock;

use bitcoin::hashes::Hash as _;
use bitcoin::key::TapTweak as _;
use bitcoin::secp256k1::{self, Secp256k1, VerifyOnly, XOnlyPublicKey, schnorr};
use bitcoin::taproot::TapNodeHash;
use frost_core::CheaterDetection;
use frost_secp256k1_tr::keys::{PublicKeyPackage, Tweak as _};
use frost_secp256k1_tr::round1::{NonceCommitment, SigningCommitments, SigningNonces};
use frost_secp256k1_tr::round2::{self, SignatureShare};
use frost_secp256k1_tr::{Error as FrostError, SigningPackage};
use rand::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize, Serializer, ser::Error as _};

use crate::{GroupInfo, GroupKey, KeyShare, SignerId, hash};

/// The most messages of one session: a standard transaction has room for some 1,700 inputs, the vault's
/// batches take fewer.
pub const MAX_MESSAGES: usize = 512;

/// Encoded length of one pair of nonce commitments: two compressed points.
const PAIR_LEN: usize = 66;
/// Encoded length of one signature share: a scalar.
const SHARE_LEN: usize = 32;

static SECP: LazyLock<Secp256k1<VerifyOnly>> = LazyLock::new(Secp256k1::verification_only);

/// Which key signs a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tweak {
    /// GROUP itself: certificates and other messages that are not spends.
    Untweaked,
    /// GROUP tweaked as BIP-341 says for a key path spend, with the Merkle root of the output's script
    /// tree, or without a tree.
    KeyPath(Option<[u8; 32]>),
}

/// What one signature signs: one per input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The BIP-341 sighash, or another 32-byte tagged hash.
    #[serde(with = "hash::bytes32")]
    pub digest: [u8; 32],
    /// The key that signs it.
    pub tweak: Tweak,
}

/// The key under which a signature with `tweak` verifies; for a key path, the output key of BIP-341.
pub fn output_key(group: &GroupKey, tweak: &Tweak) -> XOnlyPublicKey {
    match tweak {
        Tweak::Untweaked => group.to_x_only(),
        Tweak::KeyPath(root) => {
            let root = root.map(TapNodeHash::from_byte_array);
            group
                .to_x_only()
                .tap_tweak(&SECP, root)
                .0
                .to_x_only_public_key()
        }
    }
}

/// Whether `signature` is a BIP-340 signature of `digest` under `key`, by libsecp256k1.
pub fn verify(key: &XOnlyPublicKey, digest: &[u8; 32], signature: &schnorr::Signature) -> bool {
    let message = secp256k1::Message::from_digest(*digest);
    SECP.verify_schnorr(signature, &message, key).is_ok()
}

/// Secret nonces, a pair per message. Zeroized on drop; neither `Clone` nor serializable, so that
/// they live in this process's memory only and serve one [`sign`].
pub struct Nonces(Vec<SigningNonces>);

impl Nonces {
    /// How many messages they are for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never the case for nonces from [`commit`].
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether [`sign`] would use them for `package`. Lets a signer refuse a bad request without
    /// losing the nonces to it.
    ///
    /// # Errors
    /// [`SignError`], as [`sign`] would return it.
    pub fn check(&self, share: &KeyShare, package: &Package) -> Result<(), SignError> {
        package.check(share.group())?;
        let mine = package
            .commitments
            .get(&share.signer())
            .ok_or(SignError::NotInPackage)?;
        if mine
            .0
            .iter()
            .eq(self.0.iter().map(SigningNonces::commitments))
        {
            Ok(())
        } else {
            Err(SignError::OtherCommitments)
        }
    }
}

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonces({} redacted)", self.0.len())
    }
}

/// Public commitments to a signer's [`Nonces`], a pair per message. Decoding refuses more than
/// [`MAX_MESSAGES`] pairs, and points that are off the curve or the identity.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Commitments(Vec<SigningCommitments>);

impl Commitments {
    /// How many messages they are for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never the case for decoded commitments.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn to_bytes(&self) -> Result<Vec<u8>, FrostError> {
        let mut bytes = Vec::with_capacity(self.0.len().saturating_mul(PAIR_LEN));
        for pair in &self.0 {
            bytes.extend(pair.hiding().serialize()?);
            bytes.extend(pair.binding().serialize()?);
        }
        Ok(bytes)
    }
}

impl TryFrom<Vec<u8>> for Commitments {
    type Error = DecodeError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        chunks(&bytes, PAIR_LEN)?
            .map(|pair| {
                let (hiding, binding) = pair.split_at(PAIR_LEN / 2);
                Ok(SigningCommitments::new(point(hiding)?, point(binding)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A compressed point. SEC1's compact form (tag 5), which FROST's decoder takes too, would be a second
/// encoding of the same point.
fn point(bytes: &[u8]) -> Result<NonceCommitment, DecodeError> {
    match bytes.first() {
        Some(2 | 3) => NonceCommitment::deserialize(bytes).map_err(|_| DecodeError::Content),
        _ => Err(DecodeError::Content),
    }
}

impl Serialize for Commitments {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.to_bytes().map_err(S::Error::custom)?.serialize(to)
    }
}

impl fmt::Debug for Commitments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commitments({})", self.0.len())
    }
}

/// A signer's shares of the signatures, one per message. Decoding refuses more than
/// [`MAX_MESSAGES`], and scalars that are not canonical.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Shares(Vec<SignatureShare>);

impl Shares {
    /// How many messages they are for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never the case for decoded shares.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<u8>> for Shares {
    type Error = DecodeError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        chunks(&bytes, SHARE_LEN)?
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
fn chunks(bytes: &[u8], len: usize) -> Result<std::slice::ChunksExact<'_, u8>, DecodeError> {
    let chunks = bytes.chunks_exact(len);
    if !chunks.remainder().is_empty() || !(1..=MAX_MESSAGES).contains(&chunks.len()) {
        return Err(DecodeError::Length(bytes.len()));
    }
    Ok(chunks)
}

/// Why bytes are not commitments or shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a whole number of items from 1 to [`MAX_MESSAGES`].
    #[error("{0} bytes are not 1 to 512 whole items")]
    Length(usize),
    /// An item is no canonical point or scalar.
    #[error("an item is not a canonical point or scalar")]
    Content,
}

/// Round 1: fresh nonces for `messages` messages, and the commitments to them to send out.
///
/// `rng` should be the system's. FROST hashes its output with the key share (RFC 9591 section 4.1), so
/// that a weak one alone does not give the share away.
///
/// # Errors
/// [`PackageError::MessageCount`] unless `messages` is from 1 to [`MAX_MESSAGES`].
pub fn commit<R: RngCore + CryptoRng>(
    share: &KeyShare,
    messages: usize,
    rng: &mut R,
) -> Result<(Nonces, Commitments), PackageError> {
    if !(1..=MAX_MESSAGES).contains(&messages) {
        return Err(PackageError::MessageCount(messages));
    }
    let secret = share.package().signing_share();
    // Collected into a vector of known length: one that grows would leave copies behind.
    let nonces: Vec<_> = (0..messages)
        .map(|_| SigningNonces::new(secret, rng))
        .collect();
    let commitments = nonces.iter().map(|pair| *pair.commitments()).collect();
    Ok((Nonces(nonces), Commitments(commitments)))
}

/// What a session signs, and with whose nonces. Not serializable on purpose: a signer makes the
/// messages itself from what it has verified (S1), and takes only commitments from the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// In input order.
    pub messages: Vec<Message>,
    /// Those who sign, each with a pair per message.
    pub commitments: BTreeMap<SignerId, Commitments>,
}

impl Package {
    /// Whether this is a package that `group` can sign: a threshold of its signers or more, each with
    /// a commitment pair per message.
    ///
    /// # Errors
    /// [`PackageError`] names the signer, where one is at fault.
    pub fn check(&self, group: &GroupInfo) -> Result<(), PackageError> {
        let messages = self.messages.len();
        if !(1..=MAX_MESSAGES).contains(&messages) {
            return Err(PackageError::MessageCount(messages));
        }
        for (id, commitments) in &self.commitments {
            if !group.contains(*id) {
                return Err(PackageError::Stranger(*id));
            }
            if commitments.len() != messages {
                let (signer, have) = (*id, commitments.len());
                return Err(PackageError::CommitmentCount {
                    signer,
                    have,
                    need: messages,
                });
            }
        }
        let (have, need) = (self.commitments.len(), usize::from(group.threshold()));
        if have < need {
            Err(PackageError::TooFew { have, need })
        } else {
            Ok(())
        }
    }

    /// One message at a time, as FROST takes it.
    fn sessions(&self) -> impl Iterator<Item = (&Message, SigningPackage)> {
        self.messages.iter().enumerate().map(|(i, message)| {
            let commitments = self
                .commitments
                .iter()
                .filter_map(|(id, pairs)| Some((id.frost(), *pairs.0.get(i)?)))
                .collect();
            (message, SigningPackage::new(commitments, &message.digest))
        })
    }
}

/// What is wrong with a [`Package`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// None, or more than [`MAX_MESSAGES`].
    #[error("{0} messages, not 1 to 512")]
    MessageCount(usize),
    /// Somebody who is not of the group.
    #[error("{0} is not a signer of this group")]
    Stranger(SignerId),
    /// Commitments for another number of messages.
    #[error("{signer} committed to {have} messages, not {need}")]
    CommitmentCount {
        /// Whose commitments.
        signer: SignerId,
        /// How many pairs there are.
        have: usize,
        /// How many messages there are.
        need: usize,
    },
    /// Fewer signers than the threshold.
    #[error("{have} signers, fewer than the threshold of {need}")]
    TooFew {
        /// Signers in the package.
        have: usize,
        /// The threshold.
        need: usize,
    },
}

/// Round 2: this signer's shares for all messages of `package`. The nonces are gone afterwards,
/// whatever the outcome; see [`Nonces::check`].
///
/// # Errors
/// [`SignError`]; no share was computed then.
pub fn sign(share: &KeyShare, nonces: Nonces, package: &Package) -> Result<Shares, SignError> {
    nonces.check(share, package)?;
    let key = share.package();
    package
        .sessions()
        .zip(&nonces.0)
        .map(|((message, session), nonces)| match &message.tweak {
            Tweak::Untweaked => round2::sign(&session, nonces, key),
            Tweak::KeyPath(root) => {
                let root = root.as_ref().map(<[u8; 32]>::as_slice);
                round2::sign_with_tweak(&session, nonces, key, root)
            }
        })
        .collect::<Result<_, _>>()
        .map(Shares)
        .map_err(SignError::Frost)
}

/// Why a signer gave no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The package is not one that the group can sign.
    #[error("the signing package is unusable")]
    Package(#[from] PackageError),
    /// This signer is not among those who sign.
    #[error("this signer has no commitments in the package")]
    NotInPackage,
    /// The package has other commitments for this signer than its nonces make.
    #[error("the package's commitments are not those of these nonces")]
    OtherCommitments,
    /// FROST refused.
    #[error("FROST refused to sign")]
    Frost(#[source] FrostError),
}

/// Checks one signer's shares before they are all there, so that a bad one is left out at once
/// (RFC 9591 section 5.4).
///
/// # Errors
/// [`BadShare`] says which share of whom is wrong, or what about the package.
pub fn verify_shares(
    group: &GroupInfo,
    package: &Package,
    from: SignerId,
    shares: &Shares,
) -> Result<(), BadShare> {
    package.check(group)?;
    if !package.commitments.contains_key(&from) {
        return Err(BadShare::NotInPackage(from));
    }
    if shares.len() != package.messages.len() {
        return Err(BadShare::Count {
            from,
            have: shares.len(),
            need: package.messages.len(),
        });
    }
    for (message, ((target, session), share)) in package.sessions().zip(&shares.0).enumerate() {
        let keys = tweaked(group.package_of([from]), &target.tweak);
        let invalid = BadShare::Invalid { from, message };
        let verifying = keys.verifying_shares().get(&from.frost()).ok_or(invalid)?;
        frost_core::verify_signature_share(
            from.frost(),
            verifying,
            share,
            &session,
            keys.verifying_key(),
        )
        .map_err(|_| invalid)?;
    }
    Ok(())
}

/// Why a signer's shares are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadShare {
    /// The package is not one that the group can sign; nobody's share is to blame.
    #[error("the signing package is unusable")]
    Package(#[from] PackageError),
    /// The sender does not sign in this session.
    #[error("{0} has no commitments in the package")]
    NotInPackage(SignerId),
    /// Not a share per message.
    #[error("{from} sent {have} shares, not {need}")]
    Count {
        /// The culprit.
        from: SignerId,
        /// Shares sent.
        have: usize,
        /// Messages in the package.
        need: usize,
    },
    /// A share does not verify.
    #[error("share {message} of {from} does not verify")]
    Invalid {
        /// The culprit.
        from: SignerId,
        /// Index of the message.
        message: usize,
    },
}

/// Makes one signature per message from the shares of all signers of the package. Each signature is
/// verified as BIP-340 says, by libsecp256k1, under the key of its tweak before it is returned.
///
/// # Errors
/// [`AggregateError::BadShares`] names all whose shares are wrong; the others name what is missing.
pub fn aggregate(
    group: &GroupInfo,
    package: &Package,
    shares: &BTreeMap<SignerId, Shares>,
) -> Result<Vec<schnorr::Signature>, AggregateError> {
    package.check(group)?;
    check_senders(package, shares)?;
    let mut signatures = Vec::with_capacity(package.messages.len());
    let mut culprits = BTreeSet::new();
    for (i, (message, session)) in package.sessions().enumerate() {
        let of_message = shares
            .iter()
            .filter_map(|(id, shares)| Some((id.frost(), *shares.0.get(i)?)))
            .collect();
        let keys = tweaked(group.package_of(shares.keys().copied()), &message.tweak);
        let detection = CheaterDetection::AllCheaters;
        match frost_core::aggregate_custom(&session, &of_message, &keys, detection) {
            Ok(signature) => {
                let signature = signature
                    .serialize()
                    .ok()
                    .and_then(|bytes| schnorr::Signature::from_slice(&bytes).ok())
                    .filter(|signature| {
                        let key = output_key(&group.group_key(), &message.tweak);
                        verify(&key, &message.digest, signature)
                    })
                    .ok_or(AggregateError::Signature { message: i })?;
                signatures.push(signature);
            }
            Err(FrostError::InvalidSignatureShare { culprits: found }) => {
                culprits.extend(found.into_iter().map(SignerId::from));
            }
            Err(_) => return Err(AggregateError::Signature { message: i }),
        }
    }
    if culprits.is_empty() {
        Ok(signatures)
    } else {
        Err(AggregateError::BadShares { culprits })
    }
}

fn check_senders(
    package: &Package,
    shares: &BTreeMap<SignerId, Shares>,
) -> Result<(), AggregateError> {
    let missing: BTreeSet<_> = package
        .commitments
        .keys()
        .filter(|id| !shares.contains_key(id))
        .copied()
        .collect();
    if !missing.is_empty() {
        return Err(AggregateError::Missing { signers: missing });
    }
    for (from, theirs) in shares {
        if !package.commitments.contains_key(from) {
            return Err(AggregateError::NotInPackage(*from));
        }
        if theirs.len() != package.messages.len() {
            return Err(AggregateError::BadShares {
                culprits: BTreeSet::from([*from]),
            });
        }
    }
    Ok(())
}

fn tweaked(keys: PublicKeyPackage, tweak: &Tweak) -> PublicKeyPackage {
    match tweak {
        Tweak::Untweaked => keys,
        Tweak::KeyPath(root) => keys.tweak(root.as_ref()),
    }
}

/// Why there are no signatures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregateError {
    /// The package is not one that the group can sign.
    #[error("the signing package is unusable")]
    Package(#[from] PackageError),
    /// Signers of the package whose shares are not there.
    #[error("shares of {} signers are missing", signers.len())]
    Missing {
        /// Who.
        signers: BTreeSet<SignerId>,
    },
    /// Shares of somebody who does not sign in this session.
    #[error("{0} has no commitments in the package")]
    NotInPackage(SignerId),
    /// Signers whose shares do not verify.
    #[error("bad shares from {culprits:?}")]
    BadShares {
        /// All of them.
        culprits: BTreeSet<SignerId>,
    },
    /// All shares are right, yet the signature does not verify: a fault of this program.
    #[error("signature {message} does not verify though no share is to blame")]
    Signature {
        /// Index of the message.
        message: usize,
    },
}
