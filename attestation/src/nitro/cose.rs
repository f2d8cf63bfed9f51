//! COSE_Sign1 (RFC 9052 section 4.2) with ES384 (RFC 9053 section 2.1), as the Nitro hypervisor makes it.

use minicbor::{Decoder, Encoder, data::Type};
use p384::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};

use super::cbor::{self, bad};
use crate::{MAX_DOCUMENT_BYTES, MAX_STATEMENT_BYTES, VerifyError};

/// COSE's number for ECDSA with SHA-384.
const ES384: i64 = -35;
/// Header label of the algorithm.
const ALGORITHM: i64 = 1;
/// Header label of the list of headers that must be understood.
const CRITICAL: i64 = 2;
/// The CBOR tag of a COSE_Sign1; it may be left out.
const TAG: u64 = 18;

/// A signed payload, in the bytes in which it came.
pub(super) struct Sign1<'b> {
    protected: &'b [u8],
    /// What is signed.
    pub payload: &'b [u8],
    signature: Signature,
}

impl<'b> Sign1<'b> {
    /// Takes the structure apart. Nothing is verified yet but that it is signed with ES384 and asks for nothing
    /// unknown.
    pub fn parse(document: &'b [u8]) -> Result<Self, VerifyError> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(VerifyError::TooLarge {
                bytes: document.len(),
            });
        }
        let mut decoder = Decoder::new(document);
        if decoder.datatype().map_err(bad)? == Type::Tag
            && decoder.tag().map_err(bad)?.as_u64() != TAG
        {
            return Err(VerifyError::Encoding("the tag is not COSE_Sign1's"));
        }
        if decoder.array().map_err(bad)? != Some(4) {
            return Err(VerifyError::Encoding("not an array of four"));
        }
        let protected = decoder.bytes().map_err(bad)?;
        check_headers(protected)?;
        // What is not signed can be changed on the way, so there is nothing to be told in it.
        cbor::map(&mut decoder, |_| Err(VerifyError::UnknownHeader))?;
        let payload = decoder.bytes().map_err(bad)?;
        if payload.len() > MAX_STATEMENT_BYTES {
            return Err(VerifyError::TooLarge {
                bytes: payload.len(),
            });
        }
        let signature = decoder.bytes().map_err(bad)?;
        cbor::end(&decoder)?;
        Ok(Self {
            protected,
            payload,
            signature: Signature::from_slice(signature).map_err(|_| VerifyError::Signature)?,
        })
    }

    /// Is it signed with this key?
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), VerifyError> {
        let signed = signed_bytes(self.protected, self.payload)
            .map_err(|_| VerifyError::Encoding("the signed bytes can't be made"))?;
        key.verify(&signed, &self.signature)
            .map_err(|_| VerifyError::Signature)
    }
}

/// The algorithm, and nothing else.
fn check_headers(protected: &[u8]) -> Result<(), VerifyError> {
    let mut decoder = Decoder::new(protected);
    let mut algorithm = None;
    cbor::map(&mut decoder, |decoder| {
        match decoder.i64().map_err(|_| VerifyError::UnknownHeader)? {
            ALGORITHM => {
                let value = decoder.i64().map_err(bad)?;
                match algorithm.replace(value) {
                    None => Ok(()),
                    Some(_) => Err(VerifyError::Encoding("the algorithm appears twice")),
                }
            }
            CRITICAL => Err(VerifyError::CriticalHeader),
            _ => Err(VerifyError::UnknownHeader),
        }
    })?;
    cbor::end(&decoder)?;
    match algorithm {
        Some(ES384) => Ok(()),
        Some(other) => Err(VerifyError::Algorithm(other)),
        None => Err(VerifyError::Encoding("no algorithm is named")),
    }
}

/// `Sig_structure` of RFC 9052 section 4.4, without external data.
fn signed_bytes(
    protected: &[u8],
    payload: &[u8],
) -> Result<Vec<u8>, minicbor::encode::Error<std::convert::Infallible>> {
    let mut encoder = Encoder::new(Vec::new());
    encoder
        .array(4)?
        .str("Signature1")?
        .bytes(protected)?
        .bytes(&[])?
        .bytes(payload)?;
    Ok(encoder.into_writer())
}
