//! An own certificate authority in the shape of AWS's, and documents that it signs: as the real ones, until a test
//! changes one thing.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{str::FromStr as _, time::Duration};

use attestation::{
    Attest, Claim,
    nitro::{Expected, Fingerprint, Image, Pcr},
    socket::AttestError,
};
use minicbor::Encoder;
use p384::ecdsa::{DerSignature, Signature, SigningKey, VerifyingKey, signature::Signer as _};
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    der::{
        Encode as _,
        asn1::{Any, BitString, ObjectIdentifier, OctetString, UtcTime},
        oid::AssociatedOid,
    },
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage, KeyUsages},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
    time::{Time, Validity},
};

/// ecdsa-with-SHA384.
pub const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
/// ecdsa-with-SHA256.
pub const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
/// secp384r1.
pub const P384: &str = "1.3.132.0.34";
/// secp256k1.
pub const SECP256K1: &str = "1.3.132.0.10";
/// COSE's number for ES384.
pub const ES384: i64 = -35;
/// How long the enclave's certificate lives, in seconds, as AWS has it.
pub const LEAF_LIFE_S: u64 = 3 * 3_600;

/// One certificate to be made: what AWS has at its place, until a test changes it.
#[derive(Clone)]
pub struct Plan {
    pub subject: String,
    /// The issuer's subject if `None`.
    pub issuer: Option<String>,
    pub version: Version,
    pub not_before_s: u64,
    pub not_after_s: u64,
    pub basic: Option<BasicConstraints>,
    pub usage: Option<KeyUsage>,
    /// Further extensions: object identifier, critical.
    pub extra: Vec<(&'static str, bool)>,
    pub algorithm: &'static str,
    pub curve: &'static str,
    /// Somebody else's key signs it.
    pub forged: bool,
}

/// A chain to be made.
#[derive(Clone)]
pub struct Chain {
    /// From the root to the enclave's own.
    pub plans: Vec<Plan>,
}

/// A chain that was made.
pub struct Issued {
    /// From the root to the enclave's own, in DER.
    pub certificates: Vec<Vec<u8>>,
    /// The enclave's.
    pub key: SigningKey,
}

fn authority(name: &str, now_s: u64, life_s: u64, path_length: Option<u8>) -> Plan {
    Plan {
        subject: format!("CN={name},OU=AWS,O=Amazon,C=US"),
        issuer: None,
        version: Version::V3,
        not_before_s: now_s - 3_600,
        not_after_s: now_s + life_s,
        basic: Some(BasicConstraints {
            ca: true,
            path_len_constraint: path_length,
        }),
        usage: Some(KeyUsage(
            KeyUsages::DigitalSignature | KeyUsages::KeyCertSign | KeyUsages::CRLSign,
        )),
        extra: vec![],
        algorithm: ECDSA_SHA384,
        curve: P384,
        forged: false,
    }
}

impl Chain {
    /// As AWS has it: root, region, zone, instance, enclave.
    pub fn like_aws(now_s: u64) -> Self {
        let day = 86_400;
        let mut leaf = authority("enclave", now_s, LEAF_LIFE_S, None);
        leaf.basic = Some(BasicConstraints {
            ca: false,
            path_len_constraint: None,
        });
        leaf.usage = Some(KeyUsage(
            KeyUsages::DigitalSignature | KeyUsages::NonRepudiation,
        ));
        Self {
            plans: vec![
                authority("root", now_s, 3_650 * day, None),
                authority("region", now_s, 20 * day, Some(2)),
                authority("zone", now_s, 5 * day, Some(1)),
                authority("instance", now_s, day, Some(0)),
                leaf,
            ],
        }
    }

    /// Changes one certificate, counted from the root.
    #[must_use]
    pub fn with(mut self, position: usize, change: impl FnOnce(&mut Plan)) -> Self {
        change(&mut self.plans[position]);
        self
    }

    pub fn issue(&self) -> Issued {
        let mut issuer: Option<(String, SigningKey)> = None;
        let mut certificates = Vec::new();
        for (number, plan) in self.plans.iter().enumerate() {
            let key = SigningKey::random(&mut OsRng);
            let (name, signer) = issuer.unwrap_or_else(|| (plan.subject.clone(), key.clone()));
            let signer = if plan.forged {
                SigningKey::random(&mut OsRng)
            } else {
                signer
            };
            let name = plan.issuer.clone().unwrap_or(name);
            certificates.push(plan.sign(number, &name, key.verifying_key(), &signer));
            issuer = Some((plan.subject.clone(), key));
        }
        Issued {
            certificates,
            key: issuer.unwrap().1,
        }
    }
}

impl Plan {
    fn sign(
        &self,
        number: usize,
        issuer: &str,
        key: &VerifyingKey,
        signer: &SigningKey,
    ) -> Vec<u8> {
        let algorithm = AlgorithmIdentifierOwned {
            oid: oid(self.algorithm),
            parameters: None,
        };
        let time = |s| Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(s)).unwrap());
        let point = key.to_encoded_point(false);
        let body = TbsCertificate {
            version: self.version,
            serial_number: SerialNumber::from(u32::try_from(number).unwrap() + 1),
            signature: algorithm.clone(),
            issuer: Name::from_str(issuer).unwrap(),
            validity: Validity {
                not_before: time(self.not_before_s),
                not_after: time(self.not_after_s),
            },
            subject: Name::from_str(&self.subject).unwrap(),
            subject_public_key_info: SubjectPublicKeyInfoOwned {
                algorithm: AlgorithmIdentifierOwned {
                    oid: oid("1.2.840.10045.2.1"),
                    parameters: Some(Any::from(oid(self.curve))),
                },
                subject_public_key: BitString::from_bytes(point.as_bytes()).unwrap(),
            },
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions()),
        };
        let signature: DerSignature = signer.sign(&body.to_der().unwrap());
        let certificate = Certificate {
            tbs_certificate: body,
            signature_algorithm: algorithm,
            signature: BitString::from_bytes(signature.as_bytes()).unwrap(),
        };
        certificate.to_der().unwrap()
    }

    fn extensions(&self) -> Vec<Extension> {
        let basic = self.basic.as_ref().map(|basic| extension(basic, true));
        let usage = self.usage.as_ref().map(|usage| extension(usage, true));
        let extra = self.extra.iter().map(|(id, critical)| Extension {
            extn_id: oid(id),
            critical: *critical,
            // A NULL.
            extn_value: OctetString::new([5, 0]).unwrap(),
        });
        basic.into_iter().chain(usage).chain(extra).collect()
    }
}

fn extension<T: AssociatedOid + x509_cert::der::Encode>(value: &T, critical: bool) -> Extension {
    Extension {
        extn_id: T::OID,
        critical,
        extn_value: OctetString::new(value.to_der().unwrap()).unwrap(),
    }
}

fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new(text).unwrap()
}

impl Issued {
    /// What the roster would name as the root.
    pub fn root(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(&self.certificates[0]).into())
    }

    /// A document as the hypervisor would make it.
    pub fn document(&self, claim: &Claim, made_ms: u64) -> Document {
        let (leaf, bundle) = self.certificates.split_last().unwrap();
        Document {
            module: "i-0123456789abcdef0-enc0123456789abcdef".to_owned(),
            digest: "SHA384",
            timestamp_ms: made_ms,
            pcrs: (0..16).map(|number| (number, pcr(number))).collect(),
            certificate: leaf.clone(),
            bundle: bundle.to_vec(),
            public_key: None,
            user_data: Some(claim.key.to_vec()),
            nonce: Some(claim.nonce.to_vec()),
            indefinite: false,
            extra: vec![],
            tag: None,
            protected: algorithm_header(ES384),
            unprotected: vec![0xa0],
            key: self.key.clone(),
        }
    }
}

/// A measurement of the image that the tests expect: nothing but its number plus one, so that none is zero.
pub fn pcr(number: u8) -> Vec<u8> {
    vec![number + 1; 48]
}

/// The image with [`pcr`]s.
pub fn image() -> Image {
    let of = |number| Pcr(pcr(number).try_into().unwrap());
    Image {
        pcr0: of(0),
        pcr1: of(1),
        pcr2: of(2),
        pcr8: None,
    }
}

/// A requirement that documents of this chain meet.
pub fn expected(root: Fingerprint) -> Expected {
    Expected {
        max_age_s: 600,
        root: Some(root),
        images: vec![image()],
    }
}

/// A protected header with an algorithm.
pub fn algorithm_header(algorithm: i64) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    encoder
        .map(1)
        .unwrap()
        .i64(1)
        .unwrap()
        .i64(algorithm)
        .unwrap();
    encoder.into_writer()
}

/// A document to be made.
#[derive(Clone)]
pub struct Document {
    pub module: String,
    pub digest: &'static str,
    pub timestamp_ms: u64,
    /// In this order, doubles and all.
    pub pcrs: Vec<(u8, Vec<u8>)>,
    pub certificate: Vec<u8>,
    pub bundle: Vec<Vec<u8>>,
    pub public_key: Option<Vec<u8>>,
    pub user_data: Option<Vec<u8>>,
    pub nonce: Option<Vec<u8>>,
    /// The encoding of some years ago: a map whose end is marked.
    pub indefinite: bool,
    /// Further fields with the value null.
    pub extra: Vec<&'static str>,
    pub tag: Option<u64>,
    pub protected: Vec<u8>,
    /// Encoded.
    pub unprotected: Vec<u8>,
    pub key: SigningKey,
}

impl Document {
    /// Changes one thing before it is signed.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn statement(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        let e = &mut encoder;
        if self.indefinite {
            e.begin_map().unwrap();
        } else {
            e.map(9 + self.extra.len() as u64).unwrap();
        }
        e.str("module_id").unwrap().str(&self.module).unwrap();
        e.str("digest").unwrap().str(self.digest).unwrap();
        e.str("timestamp").unwrap().u64(self.timestamp_ms).unwrap();
        e.str("pcrs").unwrap().map(self.pcrs.len() as u64).unwrap();
        for (number, pcr) in &self.pcrs {
            e.u8(*number).unwrap().bytes(pcr).unwrap();
        }
        e.str("certificate")
            .unwrap()
            .bytes(&self.certificate)
            .unwrap();
        e.str("cabundle")
            .unwrap()
            .array(self.bundle.len() as u64)
            .unwrap();
        for certificate in &self.bundle {
            e.bytes(certificate).unwrap();
        }
        for (name, value) in [
            ("public_key", &self.public_key),
            ("user_data", &self.user_data),
            ("nonce", &self.nonce),
        ] {
            e.str(name).unwrap();
            match value {
                Some(value) => e.bytes(value).unwrap(),
                None => e.null().unwrap(),
            };
        }
        for name in &self.extra {
            e.str(name).unwrap().null().unwrap();
        }
        if self.indefinite {
            e.end().unwrap();
        }
        encoder.into_writer()
    }

    /// Signed and whole.
    pub fn bytes(&self) -> Vec<u8> {
        let statement = self.statement();
        let mut signed = Encoder::new(Vec::new());
        signed
            .array(4)
            .unwrap()
            .str("Signature1")
            .unwrap()
            .bytes(&self.protected)
            .unwrap()
            .bytes(&[])
            .unwrap()
            .bytes(&statement)
            .unwrap();
        let signature: Signature = self.key.sign(signed.writer());
        self.assemble(&statement, &signature.to_bytes())
    }

    /// Whole, with a statement and a signature that need not fit.
    pub fn assemble(&self, statement: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        if let Some(tag) = self.tag {
            encoder.tag(minicbor::data::Tag::new(tag)).unwrap();
        }
        encoder.array(4).unwrap().bytes(&self.protected).unwrap();
        encoder.writer_mut().extend_from_slice(&self.unprotected);
        encoder.bytes(statement).unwrap().bytes(signature).unwrap();
        encoder.into_writer()
    }
}

/// An enclave of an own chain: makes a document for whatever key it is asked about, at this machine's time.
pub struct Enclave {
    pub issued: Issued,
}

impl Enclave {
    pub fn new() -> Self {
        Self {
            issued: Chain::like_aws(now_ms() / 1_000).issue(),
        }
    }
}

impl Attest for Enclave {
    fn attest(&self, claim: &Claim) -> Result<Vec<u8>, AttestError> {
        Ok(self.issued.document(claim, now_ms()).bytes())
    }
}

/// This machine's time, Unix ms.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_millis().try_into().unwrap()
}
