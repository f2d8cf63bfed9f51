//! The certificates from the pinned root down to the document's signer (RFC 5280 section 6, as far as section 3.2.3
//! of AWS's attestation process needs it). No revocation lists: AWS says not to use them, and the signer's certificate lives
//! for hours only.

use std::{collections::BTreeSet, time::Duration};

use p384::ecdsa::{DerSignature, VerifyingKey, signature::Verifier as _};
use sha2::{Digest as _, Sha256};
use x509_cert::{
    Certificate, Version,
    der::{Decode as _, Reader as _, SliceReader, asn1::ObjectIdentifier, oid::AssociatedOid as _},
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage},
    },
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};

use super::statement::Statement;
use crate::{CertificateError, VerifyError};

/// ecdsa-with-SHA384 (RFC 5758).
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// id-ecPublicKey (RFC 5480).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// secp384r1 (RFC 5480).
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Deepest nesting of a certificate's parts; theirs is 8.
const MAX_DEPTH: u8 = 16;
/// Bits of a tag (X.690 section 8.1.2): constructed of parts; a number in further bytes.
const CONSTRUCTED: u8 = 0x20;
const LONG_TAG: u8 = 0x1f;

/// Whose signature the document must have.
pub(super) struct Signer {
    pub key: VerifyingKey,
    /// When the first certificate of the chain ends, Unix ms.
    pub expires_ms: u64,
}

/// A certificate with what this file needs of it.
struct Parsed<'b> {
    certificate: Certificate,
    /// The bytes under its signature, as they came.
    signed: &'b [u8],
    key: VerifyingKey,
    constraints: Option<BasicConstraints>,
    usage: Option<KeyUsage>,
}

/// Follows the statement's certificates from the root to the signer.
pub(super) fn verify(
    statement: &Statement,
    root: &[u8; 32],
    now_ms: u64,
) -> Result<Signer, VerifyError> {
    let first = statement.bundle.first();
    let first = first.ok_or(VerifyError::Field("cabundle"))?;
    let found = Sha256::digest(first);
    if found.as_slice() != root {
        return Err(VerifyError::Root {
            found: hex::encode(found),
        });
    }
    let authorities = statement.bundle.len();
    let chain = statement.bundle.iter().chain([&statement.certificate]);
    let mut issuer: Option<Parsed> = None;
    let mut expires_ms = u64::MAX;
    for (position, der) in chain.enumerate() {
        let at = |problem| VerifyError::Certificate { position, problem };
        let parsed = Parsed::read(der).map_err(at)?;
        let ends_ms = parsed.check_time(now_ms).map_err(at)?;
        // The root has signed itself.
        parsed
            .check_issuer(issuer.as_ref().unwrap_or(&parsed))
            .map_err(at)?;
        match authorities.saturating_sub(position).checked_sub(1) {
            Some(following) => parsed.check_authority(following),
            None => parsed.check_signer(),
        }
        .map_err(at)?;
        expires_ms = expires_ms.min(ends_ms);
        issuer = Some(parsed);
    }
    let signer = issuer.ok_or(VerifyError::Field("certificate"))?;
    Ok(Signer {
        key: signer.key,
        expires_ms,
    })
}

/// Whether every length stays within what holds it. The decoder takes memory for a string of any length up to 256 MiB
/// before it looks whether so many bytes are there.
fn lengths_hold(mut der: &[u8], depth: u8) -> bool {
    while let Some((tag, rest)) = der.split_first() {
        let Some((content, rest)) = content(rest) else {
            return false;
        };
        if tag & LONG_TAG == LONG_TAG {
            return false;
        }
        let is_nested = tag & CONSTRUCTED != 0;
        if is_nested && !(depth > 0 && lengths_hold(content, depth.saturating_sub(1))) {
            return false;
        }
        der = rest;
    }
    true
}

/// Splits behind a length and as many bytes (X.690 section 8.1.3, definite forms only).
fn content(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let Some(bytes) = first.checked_sub(0x80) else {
        return rest.split_at_checked(usize::from(*first));
    };
    if bytes == 0 {
        return None;
    }
    let (length, rest) = rest.split_at_checked(usize::from(bytes))?;
    let length = length.iter().try_fold(0_usize, |sum, byte| {
        sum.checked_mul(256)?.checked_add(usize::from(*byte))
    })?;
    rest.split_at_checked(length)
}

impl<'b> Parsed<'b> {
    fn read(der: &'b [u8]) -> Result<Self, CertificateError> {
        let bad = |_| CertificateError::Encoding;
        if !lengths_hold(der, MAX_DEPTH) {
            return Err(CertificateError::Encoding);
        }
        let certificate = Certificate::from_der(der).map_err(bad)?;
        let signed = signed_part(der).map_err(bad)?;
        let body = &certificate.tbs_certificate;
        if body.version != Version::V3 {
            return Err(CertificateError::Encoding);
        }
        for algorithm in [&body.signature, &certificate.signature_algorithm] {
            if !is_ecdsa_sha384(algorithm) {
                return Err(CertificateError::Algorithm);
            }
        }
        let key = public_key(&body.subject_public_key_info).ok_or(CertificateError::PublicKey)?;
        let extensions = body.extensions.as_deref().unwrap_or_default();
        check_extensions(extensions)?;
        let constraints = body.get::<BasicConstraints>().map_err(bad)?;
        let usage = body.get::<KeyUsage>().map_err(bad)?;
        Ok(Self {
            signed,
            key,
            constraints: constraints.map(|(_, constraints)| constraints),
            usage: usage.map(|(_, usage)| usage),
            certificate,
        })
    }

    /// When it ends, Unix ms.
    fn check_time(&self, now_ms: u64) -> Result<u64, CertificateError> {
        let validity = &self.certificate.tbs_certificate.validity;
        let now = Duration::from_millis(now_ms);
        let end = validity.not_after.to_unix_duration();
        if now < validity.not_before.to_unix_duration() {
            Err(CertificateError::NotYetValid)
        } else if now > end {
            Err(CertificateError::Expired)
        } else {
            Ok(u64::try_from(end.as_millis()).unwrap_or(u64::MAX))
        }
    }

    fn check_issuer(&self, issuer: &Self) -> Result<(), CertificateError> {
        let (own, above) = (&self.certificate, &issuer.certificate.tbs_certificate);
        if own.tbs_certificate.issuer != above.subject {
            return Err(CertificateError::Issuer);
        }
        let signature = own.signature.as_bytes();
        signature
            .and_then(|bytes| DerSignature::from_bytes(bytes).ok())
            .and_then(|signature| issuer.key.verify(self.signed, &signature).ok())
            .ok_or(CertificateError::Signature)
    }

    /// May it issue certificates, with that many other authorities below it?
    fn check_authority(&self, following: usize) -> Result<(), CertificateError> {
        let constraints = self.constraints.as_ref().filter(|basic| basic.ca);
        let constraints = constraints.ok_or(CertificateError::NotAuthority)?;
        if constraints
            .path_len_constraint
            .is_some_and(|allowed| following > usize::from(allowed))
        {
            return Err(CertificateError::PathLength);
        }
        match &self.usage {
            Some(usage) if usage.key_cert_sign() => Ok(()),
            _ => Err(CertificateError::KeyUsage),
        }
    }

    /// May it sign documents?
    fn check_signer(&self) -> Result<(), CertificateError> {
        let constraints = self.constraints.as_ref();
        if constraints.is_some_and(|basic| basic.ca || basic.path_len_constraint.is_some()) {
            return Err(CertificateError::Authority);
        }
        match &self.usage {
            Some(usage) if usage.digital_signature() => Ok(()),
            _ => Err(CertificateError::KeyUsage),
        }
    }
}

/// The bytes of the part that is signed. They are not encoded anew: what was signed is what came.
fn signed_part(der: &[u8]) -> x509_cert::der::Result<&[u8]> {
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|inner| {
        let signed = inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        Ok(signed)
    })
}

fn is_ecdsa_sha384(algorithm: &AlgorithmIdentifierOwned) -> bool {
    algorithm.oid == ECDSA_SHA384 && algorithm.parameters.is_none()
}

fn public_key(info: &SubjectPublicKeyInfoOwned) -> Option<VerifyingKey> {
    let algorithm = &info.algorithm;
    let curve = algorithm.parameters.as_ref()?;
    let curve: ObjectIdentifier = curve.decode_as().ok()?;
    if algorithm.oid != EC_PUBLIC_KEY || curve != P384 {
        return None;
    }
    VerifyingKey::from_sec1_bytes(info.subject_public_key.as_bytes()?).ok()
}

/// Every critical extension must be one that is checked here, and none may appear twice.
fn check_extensions(extensions: &[Extension]) -> Result<(), CertificateError> {
    let mut seen = BTreeSet::new();
    for extension in extensions {
        let id = extension.extn_id;
        if !seen.insert(id) {
            return Err(CertificateError::DuplicateExtension);
        }
        if extension.critical && id != BasicConstraints::OID && id != KeyUsage::OID {
            return Err(CertificateError::CriticalExtension(id.to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_goes_beyond_what_holds_it_is_found() {
        for good in [
            &[][..],
            &[0x05, 0],
            &[0x30, 4, 0x04, 2, 7, 7],
            &[0x30, 0x81, 2, 0x05, 0],
            &[0x30, 0],
        ] {
            assert!(lengths_hold(good, MAX_DEPTH), "{good:02x?}");
        }
        for bad in [
            &[0x04][..],
            // 256 MiB of octets that are not there, on their own and in a sequence.
            &[0x04, 0x84, 0x0f, 0xff, 0xff, 0xff],
            &[0x30, 6, 0x04, 0x84, 0x0f, 0xff, 0xff, 0xff],
            // A part that is longer than the whole.
            &[0x30, 2, 0x04, 1, 7],
            // Indefinite, far too long, a long tag.
            &[0x30, 0x80, 0, 0],
            &[0x04, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x1f, 0x81, 1, 0],
        ] {
            assert!(!lengths_hold(bad, MAX_DEPTH), "{bad:02x?}");
        }
        let deep = |levels: u8| {
            (0..levels).rev().fold(Vec::new(), |inner: Vec<u8>, _| {
                let length = u8::try_from(inner.len()).unwrap();
                [&[0x30, length], inner.as_slice()].concat()
            })
        };
        assert!(lengths_hold(&deep(MAX_DEPTH), MAX_DEPTH));
        assert!(!lengths_hold(&deep(MAX_DEPTH + 2), MAX_DEPTH));
    }
}
