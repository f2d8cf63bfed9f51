//! Signing in two rounds, one session for all inputs of a transaction (RFC 9591 sections 5.1 to 5.3).
//!
//! ```text
//!  signer                      coordinator                         every signer
//!  commit ── Commitments ──►   Package { messages, commitments } ──► sign (uses up its Nonces)
//!                              aggregate; culprits  ◄── Shares ──────┘
//! ```
//!
//! A nonce serves one share (S9): [`Nonces`] cannot be copied or stored, and [`sign`] takes them by
//! value, whatever comes of it.

mod aggregate;
mod check;
mod encoding;
mod package;

use std::fmt;
use std::sync::LazyLock;

use bitcoin::hashes::Hash as _;
use bitcoin::key::TapTweak as _;
use bitcoin::secp256k1::{self, Secp256k1, VerifyOnly, XOnlyPublicKey, schnorr};
use bitcoin::taproot::TapNodeHash;
use frost_secp256k1_tr::Error as FrostError;
use frost_secp256k1_tr::keys::{PublicKeyPackage, Tweak as _};
use frost_secp256k1_tr::round1::SigningNonces;
use frost_secp256k1_tr::round2;
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng as _};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

pub use aggregate::{AggregateError, aggregate};
pub use check::{BadShare, culprits, verify_shares};
pub use encoding::{Commitments, DecodeError, Shares};
pub use package::{
    MAX_REQUEST_BYTES, MAX_SESSION_BYTES, Package, PackageError, PackageHash, max_messages,
};

use crate::{GroupKey, KeyShare, hash};

/// The most messages of any session: a standard transaction has room for some 1,700 inputs. How many a
/// session of a given group can have: [`max_messages`].
pub const MAX_MESSAGES: usize = 1_700;

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

    /// Those for the first `count` messages; the others are destroyed. `None`, with all of them destroyed, if there are
    /// fewer, or none is wanted.
    #[must_use]
    pub fn first(mut self, count: usize) -> Option<Self> {
        if !(1..=self.len()).contains(&count) {
            return None;
        }
        self.0.truncate(count);
        Some(self)
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
        let pairs = mine.pairs().into_iter().flatten();
        if pairs.eq(self.0.iter().map(SigningNonces::commitments)) {
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
    // A generator for each pair, so that pairs are made side by side.
    let mut seeds: Vec<[u8; 32]> = vec![[0; 32]; messages];
    seeds.iter_mut().for_each(|seed| rng.fill_bytes(seed));
    // Collected into a vector of known length: one that grows would leave copies behind.
    let nonces: Vec<_> = seeds
        .par_iter()
        .map(|seed| SigningNonces::new(secret, &mut StdRng::from_seed(*seed)))
        .collect();
    seeds.zeroize();
    let commitments = nonces.iter().map(|pair| *pair.commitments()).collect();
    let commitments = Commitments::new(commitments).ok_or(PackageError::Identity)?;
    Ok((Nonces(nonces), commitments))
}

/// Round 2: this signer's shares for all messages of `package`, made side by side. The nonces are gone
/// afterwards, whatever the outcome; see [`Nonces::check`].
///
/// # Errors
/// [`SignError`]; no share was computed then.
pub fn sign(share: &KeyShare, nonces: Nonces, package: &Package) -> Result<Shares, SignError> {
    nonces.check(share, package)?;
    let key = share.package();
    (package.messages.par_iter(), nonces.0.par_iter())
        .into_par_iter()
        .enumerate()
        .map(|(i, (message, nonces))| {
            let session = package.session(i).ok_or(SignError::NotInPackage)?;
            match &message.tweak {
                Tweak::Untweaked => round2::sign(&session, nonces, key),
                Tweak::KeyPath(root) => {
                    let root = root.as_ref().map(<[u8; 32]>::as_slice);
                    round2::sign_with_tweak(&session, nonces, key, root)
                }
            }
            .map_err(SignError::Frost)
        })
        .collect::<Result<_, _>>()
        .map(Shares)
}

fn tweaked(keys: PublicKeyPackage, tweak: &Tweak) -> PublicKeyPackage {
    match tweak {
        Tweak::Untweaked => keys,
        Tweak::KeyPath(root) => keys.tweak(root.as_ref()),
    }
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
