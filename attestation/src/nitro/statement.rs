//! What the hypervisor states: which image, when, and what the enclave asked to have in it (sections 2.2 and 3.2.2
//! of AWS's attestation process).

use std::collections::BTreeMap;

use minicbor::{Decoder, data::Type};

use super::cbor::{self, bad};
use crate::VerifyError;

/// Longest module id in bytes. AWS names no bound.
const MAX_MODULE_BYTES: usize = 256;
/// Largest certificate in bytes.
const MAX_CERTIFICATE_BYTES: usize = 1_024;
/// Most certificates above the signer's. AWS has four.
const MAX_BUNDLE: usize = 8;
/// Number of the highest measurement.
const MAX_PCR: u8 = 31;
/// Largest `public_key`, `user_data` and `nonce` in bytes.
const MAX_USER_BYTES: usize = 1_024;
/// A SHA-384 in bytes.
const PCR_BYTES: usize = 48;

/// A statement. It is worth something when its signature has been verified with the key of its own certificate, and that
/// certificate with the root.
#[derive(Debug)]
pub(super) struct Statement<'b> {
    pub module: &'b str,
    pub timestamp_ms: u64,
    pub pcrs: BTreeMap<u8, &'b [u8]>,
    /// The signer's.
    pub certificate: &'b [u8],
    /// From the root down to the signer's issuer.
    pub bundle: Vec<&'b [u8]>,
    pub public_key: Option<&'b [u8]>,
    pub user_data: Option<&'b [u8]>,
    pub nonce: Option<&'b [u8]>,
}

/// The fields as they come, in any order.
#[derive(Default)]
struct Fields<'b> {
    module_id: Option<&'b str>,
    digest: Option<&'b str>,
    timestamp: Option<u64>,
    pcrs: Option<BTreeMap<u8, &'b [u8]>>,
    certificate: Option<&'b [u8]>,
    cabundle: Option<Vec<&'b [u8]>>,
    public_key: Option<Option<&'b [u8]>>,
    user_data: Option<Option<&'b [u8]>>,
    nonce: Option<Option<&'b [u8]>>,
}

impl<'b> Statement<'b> {
    pub fn parse(payload: &'b [u8]) -> Result<Self, VerifyError> {
        let mut decoder = Decoder::new(payload);
        let mut fields = Fields::default();
        cbor::map(&mut decoder, |decoder| fields.read(decoder))?;
        cbor::end(&decoder)?;
        let needed = VerifyError::Field;
        if fields.digest.ok_or(needed("digest"))? != "SHA384" {
            return Err(VerifyError::Digest);
        }
        Ok(Self {
            module: fields.module_id.ok_or(needed("module_id"))?,
            timestamp_ms: fields.timestamp.ok_or(needed("timestamp"))?,
            pcrs: fields.pcrs.ok_or(needed("pcrs"))?,
            certificate: fields.certificate.ok_or(needed("certificate"))?,
            bundle: fields.cabundle.ok_or(needed("cabundle"))?,
            public_key: fields.public_key.flatten(),
            user_data: fields.user_data.flatten(),
            nonce: fields.nonce.flatten(),
        })
    }
}

impl<'b> Fields<'b> {
    fn read(&mut self, decoder: &mut Decoder<'b>) -> Result<(), VerifyError> {
        match decoder.str().map_err(bad)? {
            "module_id" => {
                let module = decoder.str().map_err(bad)?;
                let fits = (1..=MAX_MODULE_BYTES).contains(&module.len());
                set(&mut self.module_id, fits.then_some(module), "module_id")
            }
            "digest" => {
                let digest = decoder.str().map_err(bad)?;
                set(&mut self.digest, Some(digest), "digest")
            }
            "timestamp" => {
                let time = decoder.u64().map_err(bad)?;
                set(&mut self.timestamp, (time > 0).then_some(time), "timestamp")
            }
            "pcrs" => set(&mut self.pcrs, Some(pcrs(decoder)?), "pcrs"),
            "certificate" => {
                let certificate = bytes(decoder, 1, MAX_CERTIFICATE_BYTES)?;
                set(&mut self.certificate, certificate, "certificate")
            }
            "cabundle" => set(&mut self.cabundle, Some(bundle(decoder)?), "cabundle"),
            "public_key" => set(&mut self.public_key, user(decoder)?, "public_key"),
            "user_data" => set(&mut self.user_data, user(decoder)?, "user_data"),
            "nonce" => set(&mut self.nonce, user(decoder)?, "nonce"),
            _ => Err(VerifyError::UnknownField),
        }
    }
}

/// Takes a value that is in its bounds, once.
fn set<T>(slot: &mut Option<T>, value: Option<T>, name: &'static str) -> Result<(), VerifyError> {
    match value {
        Some(value) if slot.is_none() => {
            *slot = Some(value);
            Ok(())
        }
        _ => Err(VerifyError::Field(name)),
    }
}

/// A byte string, if its length is in the bounds.
fn bytes<'b>(
    decoder: &mut Decoder<'b>,
    min: usize,
    max: usize,
) -> Result<Option<&'b [u8]>, VerifyError> {
    let bytes = decoder.bytes().map_err(bad)?;
    Ok(Some(bytes).filter(|bytes| (min..=max).contains(&bytes.len())))
}

/// What the enclave may have put in: absent, null and empty mean the same.
fn user<'b>(decoder: &mut Decoder<'b>) -> Result<Option<Option<&'b [u8]>>, VerifyError> {
    if decoder.datatype().map_err(bad)? == Type::Null {
        decoder.null().map_err(bad)?;
        return Ok(Some(None));
    }
    let bytes = bytes(decoder, 0, MAX_USER_BYTES)?;
    Ok(bytes.map(|bytes| Some(bytes).filter(|bytes| !bytes.is_empty())))
}

fn pcrs<'b>(decoder: &mut Decoder<'b>) -> Result<BTreeMap<u8, &'b [u8]>, VerifyError> {
    let mut pcrs = BTreeMap::new();
    cbor::map(decoder, |decoder| {
        let number = decoder.u8().map_err(bad)?;
        let pcr = bytes(decoder, PCR_BYTES, PCR_BYTES)?.ok_or(VerifyError::Field("pcrs"))?;
        if number > MAX_PCR || pcrs.insert(number, pcr).is_some() {
            return Err(VerifyError::Field("pcrs"));
        }
        Ok(())
    })?;
    Ok(pcrs)
}

fn bundle<'b>(decoder: &mut Decoder<'b>) -> Result<Vec<&'b [u8]>, VerifyError> {
    let mut bundle = Vec::new();
    cbor::array(decoder, |decoder| {
        let certificate = bytes(decoder, 1, MAX_CERTIFICATE_BYTES)?;
        bundle.push(certificate.ok_or(VerifyError::Field("cabundle"))?);
        if bundle.len() > MAX_BUNDLE {
            return Err(VerifyError::Field("cabundle"));
        }
        Ok(())
    })?;
    Ok(bundle)
}
