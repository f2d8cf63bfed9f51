//! What can be wrong with a document: one variant a check.

/// The check that a document failed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// Larger than any document can be.
    #[error("{bytes} bytes; a document has at most {}", crate::MAX_DOCUMENT_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not the CBOR that a document consists of.
    #[error("not a document: {0}")]
    Encoding(&'static str),
    /// A part of the statement has a size or value that the specification does not allow.
    #[error("the field {0} is missing, appears twice, or is out of bounds")]
    Field(&'static str),
    /// The statement has a field that the specification does not know.
    #[error("the statement has a field that is not known")]
    UnknownField,
    /// Bytes follow the document or its statement.
    #[error("bytes follow the end")]
    Trailing,
    /// The signature's algorithm is not ES384.
    #[error("the signature's algorithm is {0}, not ES384 (-35)")]
    Algorithm(i64),
    /// The signer demands that a header be understood which this verifier does not know.
    #[error("a critical header that is not known")]
    CriticalHeader,
    /// A header beside the algorithm.
    #[error("a header that is not known")]
    UnknownHeader,
    /// The measurements are not made with SHA-384.
    #[error("the measurements are not SHA-384")]
    Digest,
    /// The chain starts at another root.
    #[error("the root certificate's SHA-256 is {found}, which is not the one expected")]
    Root {
        /// In hex.
        found: String,
    },
    /// A certificate of the chain.
    #[error("certificate {position} of the chain (0 is the root): {problem}")]
    Certificate {
        /// Counted from the root.
        position: usize,
        /// What is wrong with it.
        problem: CertificateError,
    },
    /// The document's signature is not the last certificate's.
    #[error("the signature does not verify")]
    Signature,
    /// The enclave's host can read its memory and its console.
    #[error("the enclave runs in debug mode: its measurements are zero")]
    Debug,
    /// Another image than those expected.
    #[error("PCR{0} is not what any of the expected images has")]
    Measurement(u8),
    /// Made too long ago.
    #[error("made {age_s} s ago; {max_age_s} s are allowed")]
    Stale {
        /// Its age.
        age_s: u64,
        /// What the requirement allows.
        max_age_s: u64,
    },
    /// Made later than this machine's clock says, beyond what clocks differ.
    #[error("made {ahead_s} s in the future of this machine's clock")]
    Future {
        /// How far.
        ahead_s: u64,
    },
    /// An answer to another question.
    #[error("the nonce is not the one asked for")]
    Nonce,
    /// Another's document, or one that names no key.
    #[error("it does not name the operator's identity key")]
    Key,
}

/// What is wrong with a certificate (RFC 5280, and section 3.2.3 of AWS's attestation process).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CertificateError {
    /// Not a DER certificate of version 3.
    #[error("not an X.509 v3 certificate in DER")]
    Encoding,
    /// Signed otherwise than with ECDSA and SHA-384.
    #[error("not signed with ECDSA and SHA-384")]
    Algorithm,
    /// The key is not on P-384.
    #[error("its key is not on the curve P-384")]
    PublicKey,
    /// Its time has not come.
    #[error("not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// It names another issuer than the certificate before it.
    #[error("its issuer is not the subject of the certificate before it")]
    Issuer,
    /// The certificate before it has not signed it.
    #[error("its signature is not of the certificate before it")]
    Signature,
    /// It may not issue certificates, and one follows it.
    #[error("it may not issue certificates")]
    NotAuthority,
    /// More authorities follow it than it allows.
    #[error("more certificates follow it than its path length allows")]
    PathLength,
    /// The last one may issue certificates: a document would be signed with an authority's key.
    #[error("it is an authority's, and not for signing documents")]
    Authority,
    /// It may not sign what it has signed.
    #[error("its key usage does not allow this signature")]
    KeyUsage,
    /// Its issuer demands that something be understood which this verifier does not know.
    #[error("a critical extension that is not known: {0}")]
    CriticalExtension(String),
    /// Two answers to one question.
    #[error("an extension appears twice")]
    DuplicateExtension,
}
