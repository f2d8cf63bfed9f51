//! One operator's secret share of the group key.

use std::fmt;

use frost_secp256k1_tr::keys::{KeyPackage, SigningShare, VerifyingShare};
use zeroize::Zeroizing;

use crate::{GroupInfo, SignerId};

/// Format of [`KeyShare::to_secret_bytes`].
const FORMAT: u8 = 1;

/// The most that a share's bytes can be: 255 verifying shares with their identifiers, and change.
const MAX_BYTES: usize = 32 * 1024;

/// A signer's secret share, with the public description of its group. Zeroized on drop; printing it
/// shows only what is public.
pub struct KeyShare {
    package: KeyPackage,
    group: GroupInfo,
}

impl KeyShare {
    /// The share of signer `me`, if it is the one that `group` has the verifying share of.
    pub(crate) fn new(
        me: SignerId,
        secret: SigningShare,
        group: GroupInfo,
    ) -> Result<Self, ShareError> {
        let verifying = VerifyingShare::from(secret);
        if group.verifying_share(me) != Some(&verifying) {
            return Err(ShareError::Mismatch);
        }
        let package = KeyPackage::new(
            me.frost(),
            secret,
            verifying,
            *group.verifying_key(),
            group.threshold(),
        );
        Ok(Self { package, group })
    }

    /// Whose share it is.
    pub fn signer(&self) -> SignerId {
        SignerId::from(*self.package.identifier())
    }

    /// The public side, which a coordinator holds too.
    pub fn group(&self) -> &GroupInfo {
        &self.group
    }

    pub(crate) fn package(&self) -> &KeyPackage {
        &self.package
    }

    /// The share as bytes, to be sealed ([`crate::seal`]) and never stored otherwise (S10): format,
    /// signer, secret scalar, group.
    ///
    /// # Errors
    /// [`ShareError::Encoding`] if the group does not encode, which no group made here does.
    pub fn to_secret_bytes(&self) -> Result<Zeroizing<Vec<u8>>, ShareError> {
        let group = postcard::to_stdvec(&self.group).map_err(|_| ShareError::Encoding)?;
        let secret = Zeroizing::new(self.package.signing_share().serialize());
        // Reserved at once: a vector that grows leaves copies of the secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(65_usize.saturating_add(group.len())));
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.signer().to_bytes());
        bytes.extend_from_slice(&secret);
        bytes.extend_from_slice(&group);
        Ok(bytes)
    }

    /// The share that [`Self::to_secret_bytes`] wrote. The secret is checked against the verifying
    /// share that the group has for its signer.
    ///
    /// # Errors
    /// [`ShareError`] says what is wrong with the bytes.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, ShareError> {
        if bytes.len() > MAX_BYTES {
            return Err(ShareError::Encoding);
        }
        let (format, rest) = bytes.split_first().ok_or(ShareError::Encoding)?;
        if *format != FORMAT {
            return Err(ShareError::Format(*format));
        }
        let (signer, rest) = rest.split_at_checked(32).ok_or(ShareError::Encoding)?;
        let (secret, group) = rest.split_at_checked(32).ok_or(ShareError::Encoding)?;
        let signer = frost_secp256k1_tr::Identifier::deserialize(signer)
            .map_err(|_| ShareError::Encoding)?;
        let secret =
            Zeroizing::new(SigningShare::deserialize(secret).map_err(|_| ShareError::Encoding)?);
        let (group, trailing) =
            postcard::take_from_bytes::<GroupInfo>(group).map_err(|_| ShareError::Encoding)?;
        if !trailing.is_empty() {
            return Err(ShareError::Encoding);
        }
        Self::new(SignerId::from(signer), *secret, group)
    }
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyShare")
            .field("signer", &self.signer())
            .field("group", &self.group.group_key())
            .field("epoch", &self.group.epoch())
            .finish_non_exhaustive()
    }
}

/// Why bytes are not a key share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Written by another version of this program.
    #[error("key share format {0} is unknown to this version")]
    Format(u8),
    /// Not the encoding of a share.
    #[error("not a key share")]
    Encoding,
    /// The secret is not the one whose verifying share the group has.
    #[error("the secret does not belong to this signer of this group")]
    Mismatch,
}
