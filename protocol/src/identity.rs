//! Who a node is: an Ed25519 key, named in the roster, that also gives its libp2p peer id.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// A node's public identity: an Ed25519 public key, 32 bytes (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerKey(#[serde(with = "hex::serde")] pub [u8; 32]);

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PeerKey({})",
            hex::encode(self.0.get(..4).unwrap_or_default())
        )
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::str::FromStr for PeerKey {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = hex::decode(text).map_err(|_| IdentityError::Encoding)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| IdentityError::Encoding)?;
        VerifyingKey::from_bytes(&bytes).map_err(|_| IdentityError::Encoding)?;
        Ok(Self(bytes))
    }
}

/// A node's secret identity. Zeroized on drop by `ed25519-dalek`.
pub struct Identity(SigningKey);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.public())
    }
}

impl Identity {
    /// From the 32 secret bytes of RFC 8032 section 5.1.5.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The 32 secret bytes (S10).
    pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> PeerKey {
        PeerKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `body` for others to keep as evidence.
    pub fn sign<T: Serialize>(&self, domain: &str, body: T) -> Signed<T> {
        let signature = self.0.sign(&signed_bytes(domain, &body)).to_bytes();
        Signed {
            body,
            by: self.public(),
            signature: signature.to_vec(),
        }
    }
}

/// A body with its author's signature: evidence that the author said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// What was said. Read it through [`Signed::verify`].
    body: T,
    /// Who says to have said it.
    by: PeerKey,
    /// Ed25519 signature, 64 bytes.
    signature: Vec<u8>,
}

impl<T: Serialize + DeserializeOwned> Signed<T> {
    /// The author and the body, if the signature under `domain` is the author's.
    ///
    /// # Errors
    /// [`IdentityError::Signature`] when it is not.
    pub fn verify(&self, domain: &str) -> Result<(PeerKey, &T), IdentityError> {
        let key = VerifyingKey::from_bytes(&self.by.0).map_err(|_| IdentityError::Encoding)?;
        let signature = ed25519_dalek::Signature::from_slice(&self.signature)
            .map_err(|_| IdentityError::Signature)?;
        key.verify_strict(&signed_bytes(domain, &self.body), &signature)
            .map_err(|_| IdentityError::Signature)?;
        Ok((self.by, &self.body))
    }
}

/// Postcard never fails on our own bounded types; an empty body would only fail to verify.
fn signed_bytes<T: Serialize>(domain: &str, body: &T) -> Vec<u8> {
    let mut bytes = format!("drawbridge/{domain}\0").into_bytes();
    bytes.extend(postcard::to_stdvec(body).unwrap_or_default());
    bytes
}

/// What can be wrong with an identity or its signature.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not 32 bytes of hex that decode to a curve point.
    #[error("not an Ed25519 public key (64 hex digits)")]
    Encoding,
    /// The signature is not the author's.
    #[error("signature does not verify")]
    Signature,
}
