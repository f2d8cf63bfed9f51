//! From shares to signatures.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::schnorr;
use frost_core::CheaterDetection;
use frost_secp256k1_tr::keys::PublicKeyPackage;
use rayon::prelude::*;

use super::{BadShare, Package, PackageError, Shares, check, output_key, tweaked, verify};
use crate::{GroupInfo, SignerId};

/// Makes one signature per message from the shares of all signers of the package. Each signature is
/// verified as BIP-340 says, by libsecp256k1, under the key of its tweak before it is returned. Only
/// if one does not verify are the shares looked at one by one.
///
/// # Errors
/// [`AggregateError::BadShares`] names all whose shares are wrong; the others name what is missing.
pub fn aggregate<T: Borrow<Shares> + Sync>(
    group: &GroupInfo,
    package: &Package,
    shares: &BTreeMap<SignerId, T>,
) -> Result<Vec<schnorr::Signature>, AggregateError> {
    package.check(group)?;
    check_senders(package, shares)?;
    let signatures: Result<_, usize> = (0..package.messages.len())
        .into_par_iter()
        .map(|message| signature(group, package, shares, message).ok_or(message))
        .collect();
    let message = match signatures {
        Ok(signatures) => return Ok(signatures),
        Err(message) => message,
    };
    match check::culprits(group, package, shares) {
        Ok(culprits) if !culprits.is_empty() => Err(AggregateError::BadShares { culprits }),
        Err(BadShare::NotInPackage(from)) => Err(AggregateError::NotInPackage(from)),
        _ => Err(AggregateError::Signature { message }),
    }
}

fn signature<T: Borrow<Shares>>(
    group: &GroupInfo,
    package: &Package,
    shares: &BTreeMap<SignerId, T>,
    index: usize,
) -> Option<schnorr::Signature> {
    let message = package.messages.get(index)?;
    let session = package.session(index)?;
    let of_message = shares
        .iter()
        .map(|(id, shares)| Some((id.frost(), *shares.borrow().0.get(index)?)))
        .collect::<Option<_>>()?;
    // No verifying shares: FROST would tweak each of them, for nothing unless a share is wrong.
    let threshold = Some(group.threshold());
    let keys = PublicKeyPackage::new(BTreeMap::new(), *group.verifying_key(), threshold);
    let keys = tweaked(keys, &message.tweak);
    let signature =
        frost_core::aggregate_custom(&session, &of_message, &keys, CheaterDetection::Disabled)
            .ok()?;
    let signature = schnorr::Signature::from_slice(&signature.serialize().ok()?).ok()?;
    let key = output_key(&group.group_key(), &message.tweak);
    verify(&key, &message.digest, &signature).then_some(signature)
}

fn check_senders<T: Borrow<Shares>>(
    package: &Package,
    shares: &BTreeMap<SignerId, T>,
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
    let mut culprits = BTreeSet::new();
    for (from, theirs) in shares {
        if !package.commitments.contains_key(from) {
            return Err(AggregateError::NotInPackage(*from));
        }
        if theirs.borrow().len() != package.messages.len() {
            culprits.insert(*from);
        }
    }
    if culprits.is_empty() {
        Ok(())
    } else {
        Err(AggregateError::BadShares { culprits })
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
