//! Secrets at rest: a passphrase, Argon2id (RFC 9106) and XChaCha20-Poly1305.
//!
//! ```text
//! magic 4 │ version 1 │ memory KiB 4 │ passes 4 │ salt 16 │ nonce 24 │ body length 4 │ purpose length 1, purpose
//!         └────────────────────── all authenticated with the body ──────────────────────┘
//! body (ciphertext and 16-byte tag) │ checksum 8
//! ```
//!
//! The checksum (first bytes of SHA-256) is no protection: it tells a damaged file from a wrong
//! passphrase, which an operator must not confuse. The purpose binds a file to its use, so that a
//! wallet key does not open as a key share even under the same passphrase.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::{RngCore as _, rngs::OsRng};
use zeroize::{Zeroize as _, Zeroizing};

use crate::hash;

const MAGIC: &[u8; 4] = b"DBSL";
const VERSION: u8 = 1;
const SALT_LEN: usize = 16;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const CHECKSUM_LEN: usize = 8;
const KEY_LEN: usize = 32;

/// The longest purpose, in bytes.
pub const MAX_PURPOSE: usize = 64;
/// The longest plaintext, in bytes: key shares and wallet keys are far smaller.
pub const MAX_PLAINTEXT: usize = 1024 * 1024;
/// The most memory that opening a file may ask for, in KiB; a header asking for more is refused.
pub const MAX_MEMORY_KIB: u32 = 256 * 1024;
/// The most passes that opening a file may ask for.
pub const MAX_PASSES: u32 = 16;

/// How much work a guess of the passphrase costs. Stored in the header as memory and passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// 64 MiB and 3 passes, the memory-constrained choice of RFC 9106 section 4: some 0.2 s.
    Standard,
    /// 64 KiB and 1 pass, for tests and throw-away networks. No protection for a weak passphrase.
    Fast,
}

impl Cost {
    fn memory_and_passes(self) -> (u32, u32) {
        match self {
            Self::Standard => (64 * 1024, 3),
            Self::Fast => (64, 1),
        }
    }
}

/// Encrypts `plaintext` under `passphrase` for `purpose` at [`Cost::Standard`].
///
/// # Errors
/// [`SealError::TooLong`] beyond [`MAX_PLAINTEXT`] or [`MAX_PURPOSE`].
pub fn seal(plaintext: &[u8], passphrase: &str, purpose: &str) -> Result<Vec<u8>, SealError> {
    seal_at(Cost::Standard, plaintext, passphrase, purpose)
}

/// As [`seal`], at a chosen cost.
///
/// # Errors
/// As [`seal`].
pub fn seal_at(
    cost: Cost,
    plaintext: &[u8],
    passphrase: &str,
    purpose: &str,
) -> Result<Vec<u8>, SealError> {
    let purpose_len = u8::try_from(purpose.len()).map_err(|_| SealError::TooLong)?;
    if plaintext.len() > MAX_PLAINTEXT || purpose.len() > MAX_PURPOSE {
        return Err(SealError::TooLong);
    }
    let body_len = plaintext.len().saturating_add(TAG_LEN);
    let body_len = u32::try_from(body_len).map_err(|_| SealError::TooLong)?;
    let (memory_kib, passes) = cost.memory_and_passes();
    let mut salt = [0; SALT_LEN];
    let mut nonce = [0; NONCE_LEN];
    OsRng.fill_bytes(&mut salt);
    OsRng.fill_bytes(&mut nonce);

    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    file.push(VERSION);
    file.extend_from_slice(&memory_kib.to_le_bytes());
    file.extend_from_slice(&passes.to_le_bytes());
    file.extend_from_slice(&salt);
    file.extend_from_slice(&nonce);
    file.extend_from_slice(&body_len.to_le_bytes());
    file.push(purpose_len);
    file.extend_from_slice(purpose.as_bytes());

    let key = derive_key(passphrase, &salt, memory_kib, passes)?;
    let body = XChaCha20Poly1305::new(key.as_slice().into())
        .encrypt(
            XNonce::from_slice(&nonce),
            Payload {
                msg: plaintext,
                aad: &file,
            },
        )
        .map_err(|_| SealError::TooLong)?;
    file.extend_from_slice(&body);
    let checksum = checksum(&file);
    file.extend_from_slice(&checksum);
    Ok(file)
}

/// Decrypts what [`seal`] made for the same purpose.
///
/// Nothing that the header asks for is done before it is known to be within bounds.
///
/// # Errors
/// [`SealError`] tells a wrong passphrase from a damaged, foreign or absurd file.
pub fn open(file: &[u8], passphrase: &str, purpose: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let Parsed {
        header,
        memory_kib,
        passes,
        salt,
        nonce,
        found,
        body,
    } = parse(file)?;
    if found != purpose.as_bytes() {
        return Err(SealError::Purpose {
            expected: purpose.to_owned(),
            found: String::from_utf8_lossy(found).into_owned(),
        });
    }
    let key = derive_key(passphrase, &salt, memory_kib, passes)?;
    XChaCha20Poly1305::new(key.as_slice().into())
        .decrypt(
            XNonce::from_slice(&nonce),
            Payload {
                msg: body,
                aad: header,
            },
        )
        .map(Zeroizing::new)
        .map_err(|_| SealError::WrongPassphrase)
}

/// A sealed file, cut into its parts; bounds and checksum hold.
struct Parsed<'a> {
    header: &'a [u8],
    memory_kib: u32,
    passes: u32,
    salt: [u8; SALT_LEN],
    nonce: [u8; NONCE_LEN],
    found: &'a [u8],
    body: &'a [u8],
}

fn parse(file: &[u8]) -> Result<Parsed<'_>, SealError> {
    let mut rest = file;
    if take::<4>(&mut rest)? != *MAGIC {
        return Err(SealError::NotSealed);
    }
    let [version] = take::<1>(&mut rest)?;
    if version != VERSION {
        return Err(SealError::Version(version));
    }
    let memory_kib = u32::from_le_bytes(take(&mut rest)?);
    let passes = u32::from_le_bytes(take(&mut rest)?);
    let salt = take::<SALT_LEN>(&mut rest)?;
    let nonce = take::<NONCE_LEN>(&mut rest)?;
    let body_len = u32::from_le_bytes(take(&mut rest)?);
    let [purpose_len] = take::<1>(&mut rest)?;
    let (found, rest) = rest
        .split_at_checked(usize::from(purpose_len))
        .ok_or(SealError::Truncated)?;
    let header_len = file.len().saturating_sub(rest.len());
    let header = file.get(..header_len).ok_or(SealError::Truncated)?;
    let body_len = usize::try_from(body_len).map_err(|_| SealError::Truncated)?;
    let (body, sum) = rest
        .split_at_checked(body_len)
        .ok_or(SealError::Truncated)?;
    if sum.len() < CHECKSUM_LEN {
        return Err(SealError::Truncated);
    }
    let end = header_len.saturating_add(body_len);
    if sum != checksum(file.get(..end).ok_or(SealError::Truncated)?) {
        return Err(SealError::Damaged);
    }
    let memory = Params::MIN_M_COST..=MAX_MEMORY_KIB;
    if !memory.contains(&memory_kib) || !(1..=MAX_PASSES).contains(&passes) {
        return Err(SealError::Cost { memory_kib, passes });
    }
    Ok(Parsed {
        header,
        memory_kib,
        passes,
        salt,
        nonce,
        found,
        body,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], SealError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(SealError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = hash::tagged("drawbridge/seal/checksum", [bytes]);
    digest.first_chunk().copied().unwrap_or_default()
}

fn derive_key(
    passphrase: &str,
    salt: &[u8; SALT_LEN],
    memory_kib: u32,
    passes: u32,
) -> Result<Zeroizing<[u8; KEY_LEN]>, SealError> {
    let absurd = |_| SealError::Cost { memory_kib, passes };
    let params = Params::new(memory_kib, passes, 1, Some(KEY_LEN)).map_err(absurd)?;
    let mut memory = vec![Block::default(); params.block_count()];
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let done = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(
            passphrase.as_bytes(),
            salt,
            key.as_mut_slice(),
            &mut memory,
        )
        .map_err(|_| SealError::TooLong);
    memory.iter_mut().for_each(Block::zeroize);
    done.map(|()| key)
}

/// Why something was not sealed or not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Plaintext, purpose or passphrase is too long.
    #[error("too long to seal")]
    TooLong,
    /// The file ends too early.
    #[error("the sealed file is truncated")]
    Truncated,
    /// The file is something else.
    #[error("not a sealed file")]
    NotSealed,
    /// Written by another version of this program.
    #[error("sealed file version {0} is unknown to this version")]
    Version(u8),
    /// Bytes were changed since it was written.
    #[error("the sealed file is damaged")]
    Damaged,
    /// The file holds something else than what was asked for.
    #[error("the sealed file is for \"{found}\", not for \"{expected}\"")]
    Purpose {
        /// What the caller wanted.
        expected: String,
        /// What the header says.
        found: String,
    },
    /// The header asks for more work than any honest file, or for less than the algorithm allows.
    #[error(
        "the sealed file asks for {memory_kib} KiB and {passes} passes, which is out of bounds"
    )]
    Cost {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
    },
    /// The passphrase is wrong, or somebody changed the file and its checksum on purpose.
    #[error("wrong passphrase")]
    WrongPassphrase,
}
