//! Documents of AWS Nitro Enclaves: a COSE_Sign1 over a statement of the Nitro hypervisor, with the certificates from
//! the signer's up to AWS's root in it. Source: "Nitro Enclaves Attestation Process" in
//! aws/aws-nitro-enclaves-nsm-api, RFC 9052 (COSE), RFC 8949 (CBOR), RFC 5280 (certificates).
//!
//! ```text
//! document --cose--> signed bytes --statement--> certificates --chain--> signer's key
//!                        '--------------- signature checked with it <--------'
//!                    statement: image, time, nonce, key --> Evidence
//! ```

mod cbor;
mod chain;
mod cose;
mod statement;

use serde::{Deserialize, Serialize};

use crate::{Claim, Evidence, RequirementError, Verify, VerifyError};
use statement::Statement;

/// SHA-256 of the DER of AWS's root certificate for its commercial partitions (`AWS_NitroEnclaves_Root-G1`,
/// subject `CN=aws.nitro-enclaves`, valid to 2049), as AWS publishes it in "Verifying the root of trust".
pub const AWS_ROOT_G1: [u8; 32] = [
    0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31,
    0x7e, 0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
];
/// Most images that may be expected at a time: the present one, the next one, and some variants.
pub const MAX_IMAGES: usize = 8;
/// Shortest age that may be required, in seconds: a document travels, and clocks differ.
pub const MIN_AGE_S: u64 = 60;
/// Longest age that may be allowed, in seconds. The signer's certificate ends after three hours or so anyway.
pub const MAX_AGE_S: u64 = 86_400;
/// How far the platform's clock may be ahead of this machine's.
const MAX_AHEAD_MS: u64 = 60_000;
/// The DER of an Ed25519 public key is this and the 32 bytes (RFC 8410).
const ED25519_DER: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A measurement: SHA-384, in hex where people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pcr(#[serde(with = "hex::serde")] pub [u8; 48]);

/// The SHA-256 of a root certificate's DER, in hex where people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(#[serde(with = "hex::serde")] pub [u8; 32]);

/// What `nitro-cli build-enclave` measures of one enclave image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The whole image.
    pub pcr0: Pcr,
    /// Kernel and boot ramdisk.
    pub pcr1: Pcr,
    /// The application.
    pub pcr2: Pcr,
    /// The certificate with which the image was signed, if that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcr8: Option<Pcr>,
}

/// What a document has to show. It is its own verifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Oldest document that is taken, in seconds, [`MIN_AGE_S`] to [`MAX_AGE_S`].
    pub max_age_s: u64,
    /// The root certificate; AWS's ([`AWS_ROOT_G1`]) if left out. Another one is for other partitions of AWS, and
    /// for rehearsals and tests with an own chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Fingerprint>,
    /// The images of which one must be running, 1 to [`MAX_IMAGES`]. During an upgrade the old and the new one.
    pub images: Vec<Image>,
}

impl Image {
    /// The measurements that count, by their number.
    fn pcrs(&self) -> impl Iterator<Item = (u8, Pcr)> {
        let always = [(0, self.pcr0), (1, self.pcr1), (2, self.pcr2)];
        always.into_iter().chain(self.pcr8.map(|pcr| (8, pcr)))
    }
}

impl Expected {
    /// Checks that an enclave could meet it.
    ///
    /// # Errors
    /// [`RequirementError`].
    pub fn validate(&self) -> Result<(), RequirementError> {
        if !(1..=MAX_IMAGES).contains(&self.images.len()) {
            return Err(RequirementError::Images);
        }
        let mut pcrs = self.images.iter().flat_map(Image::pcrs);
        if pcrs.any(|(_, pcr)| pcr.0 == [0; 48]) {
            return Err(RequirementError::DebugImage);
        }
        if !(MIN_AGE_S..=MAX_AGE_S).contains(&self.max_age_s) {
            return Err(RequirementError::Age(self.max_age_s));
        }
        Ok(())
    }

    /// One of the expected images, measurement by measurement. The error names the first measurement at which no
    /// image is left.
    fn check_image(&self, statement: &Statement) -> Result<(), VerifyError> {
        let mut left: Vec<&Image> = self.images.iter().collect();
        for number in [0, 1, 2, 8] {
            let found = statement.pcrs.get(&number).copied();
            if number != 8 && found.is_some_and(|pcr| pcr.iter().all(|byte| *byte == 0)) {
                return Err(VerifyError::Debug);
            }
            left.retain(|image| {
                let mut wanted = image.pcrs().filter(|(n, _)| *n == number);
                wanted.all(|(_, pcr)| found == Some(pcr.0.as_slice()))
            });
            if left.is_empty() {
                return Err(VerifyError::Measurement(number));
            }
        }
        Ok(())
    }

    fn check_time(&self, made_ms: u64, now_ms: u64) -> Result<(), VerifyError> {
        let ahead = made_ms.saturating_sub(now_ms);
        if ahead > MAX_AHEAD_MS {
            return Err(VerifyError::Future {
                ahead_s: ahead / 1_000,
            });
        }
        let age_ms = now_ms.saturating_sub(made_ms);
        if age_ms > self.max_age_s.saturating_mul(1_000) {
            return Err(VerifyError::Stale {
                age_s: age_ms / 1_000,
                max_age_s: self.max_age_s,
            });
        }
        Ok(())
    }
}

impl Verify for Expected {
    fn verify(&self, document: &[u8], claim: &Claim, now_ms: u64) -> Result<Evidence, VerifyError> {
        let signed = cose::Sign1::parse(document)?;
        let statement = Statement::parse(signed.payload)?;
        let root = self.root.map_or(AWS_ROOT_G1, |root| root.0);
        let signer = chain::verify(&statement, &root, now_ms)?;
        signed.verify(&signer.key)?;
        // From here on the statement is the platform's.
        self.check_image(&statement)?;
        self.check_time(statement.timestamp_ms, now_ms)?;
        if statement.nonce != Some(claim.nonce.as_slice()) {
            return Err(VerifyError::Nonce);
        }
        check_key(&statement, &claim.key)?;
        let too_old_ms = statement
            .timestamp_ms
            .saturating_add(self.max_age_s.saturating_mul(1_000));
        Ok(Evidence {
            module: statement.module.to_owned(),
            made_ms: statement.timestamp_ms,
            expires_ms: too_old_ms.min(signer.expires_ms),
        })
    }
}

/// The key stands as its 32 bytes or as DER, in `user_data` or in `public_key`. If both are used, both must name it,
/// so that no document says two things.
fn check_key(statement: &Statement, key: &[u8; 32]) -> Result<(), VerifyError> {
    let der = [ED25519_DER.as_slice(), key.as_slice()].concat();
    let mut named = [statement.user_data, statement.public_key]
        .into_iter()
        .flatten()
        .peekable();
    let is_named = named.peek().is_some();
    if is_named && named.all(|field| field == key || field == der) {
        Ok(())
    } else {
        Err(VerifyError::Key)
    }
}
