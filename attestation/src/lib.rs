//! Attestation: evidence that whoever holds a public key is a known program in a machine that its own host can't
//! look into.
//!
//! ```text
//! who wants to know                                       who is asked
//!   nonce, key ------------------------------------------> Attest (socket --> helper --> platform)
//!   Verify (nitro) <--------------------- document -------'
//!     '--> Evidence, good until it expires
//! ```
//!
//! What a document is and who makes it is the platform's; here is the verification of AWS Nitro Enclaves' documents.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod nitro;
mod requirement;
pub mod socket;
mod verify;

pub use requirement::{Requirement, RequirementError};
pub use verify::{CertificateError, VerifyError};

/// Largest signed statement of a document, in bytes (section 3.1 of AWS's attestation process).
pub const MAX_STATEMENT_BYTES: usize = 16 * 1024;
/// Largest document in bytes: the statement, its headers and its signature.
pub const MAX_DOCUMENT_BYTES: usize = MAX_STATEMENT_BYTES + 256;

/// What a document has to be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The public key that the attested program holds: Ed25519, 32 bytes.
    pub key: [u8; 32],
    /// The verifier's challenge, fresh for every question, so that no old document can answer it.
    pub nonce: [u8; 32],
}

/// What a document that was verified says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The platform's name for the machine.
    pub module: String,
    /// When the document was made, Unix ms.
    pub made_ms: u64,
    /// When it is too old or a certificate of it ends, whichever is first, Unix ms.
    pub expires_ms: u64,
}

/// Gives documents about the program that it stands in.
pub trait Attest: Send + Sync {
    /// A document for `claim`. May wait for the platform.
    ///
    /// # Errors
    /// [`socket::AttestError`] when there is none to be had.
    fn attest(&self, claim: &Claim) -> Result<Vec<u8>, socket::AttestError>;
}

/// Checks documents.
pub trait Verify: Send + Sync {
    /// Takes `document` as an answer to `claim` at the time `now_ms` (Unix ms), or says what is wrong with it.
    ///
    /// # Errors
    /// The first check that failed.
    fn verify(&self, document: &[u8], claim: &Claim, now_ms: u64) -> Result<Evidence, VerifyError>;
}
