//! A backup: everything that makes an operator this operator and can't be had from anybody else, in one sealed file
//! under a passphrase of its own. Ledger, batches and certificate are not in it: they come from chain and peers.
//!
//! ```text
//! plaintext: format 1 │ facts length 4 │ facts (public) │ identity 32 │ key share (threshold's own format)
//! ```
//!
//! What was promised with the share (S7) can't be in a backup: the next promise would make it false. A restored
//! operator is quarantined instead (`protocol::signer::Quarantine`).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use bitcoin::Network;
use ledger::VaultId;
use node::files::{self, FileError};
use protocol::identity::{Identity, PeerKey};
use serde::{Deserialize, Serialize};
use threshold::{
    GroupKey, KeyShare, ShareError, SignerId,
    seal::{self, Cost, SealError},
};
use zeroize::Zeroizing;

/// What a sealed file must be for to open as a backup.
pub const PURPOSE: &str = "operator-backup";
const FORMAT: u8 = 1;
const IDENTITY_BYTES: usize = 32;
/// Largest backup that is read, in bytes.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// What a backup is of; nothing secret, but sealed with the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When it was made, in Unix ms.
    pub created_ms: u64,
    /// Version of the program that made it.
    pub version: String,
    /// The operator's name in the roster then.
    pub name: String,
    /// Its public identity.
    pub identity: PeerKey,
    /// Its FROST identifier.
    pub signer: SignerId,
    /// The network.
    pub network: Network,
    /// GROUP.
    pub group_key: GroupKey,
    /// The share's epoch: a refresh makes backups of earlier ones useless.
    pub epoch: u32,
    /// Signers needed (t).
    pub threshold: u16,
    /// Signers in all (n).
    pub signers: usize,
    /// `Roster::hash`.
    #[serde(with = "hex::serde")]
    pub roster_hash: [u8; 32],
    /// `Parameters::hash`.
    #[serde(with = "hex::serde")]
    pub parameters_hash: [u8; 32],
    /// The vault, if it had its genesis.
    pub vault: Option<VaultId>,
    /// Height of the genesis output's block, if it was known: where a restored operator begins to follow.
    pub genesis_height: Option<u32>,
}

/// An opened backup.
pub struct Backup {
    /// What it is of.
    pub facts: Facts,
    /// The operator's identity.
    pub identity: Identity,
    /// Its key share.
    pub share: KeyShare,
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// Why a backup can't be written or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of that name is there.
    #[error("{0} is there already and is not overwritten")]
    Exists(PathBuf),
    /// It can't be put in place.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not open: wrong passphrase, damaged, truncated, of another version, or for another purpose.
    #[error("{path}: {source}")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Which of these.
        source: SealError,
    },
    /// It opens, and was written by another version of this program.
    #[error(
        "{path}: backup format {format} is unknown to this version; use the version that wrote it, or a later one"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        format: u8,
    },
    /// It opens, and does not hold what a backup holds.
    #[error("{0} opens, but holds no backup")]
    Content(PathBuf),
    /// Its share can't be used.
    #[error("{path}: {source}")]
    Share {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ShareError,
    },
    /// Its parts are not of one operator.
    #[error("{path} contradicts itself: {what}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which parts differ.
        what: &'static str,
    },
}

/// Seals a backup into a new file. Returns once it is there to stay.
///
/// # Errors
/// [`BackupError`]; nothing is overwritten.
pub fn write(
    path: &Path,
    backup: &Backup,
    passphrase: &str,
    cost: Cost,
) -> Result<(), BackupError> {
    backup.check(path)?;
    let plaintext = backup.encode(path)?;
    let sealed = seal::seal_at(cost, &plaintext, passphrase, PURPOSE).map_err(|source| {
        BackupError::Sealed {
            path: path.to_owned(),
            source,
        }
    })?;
    match files::write_new(path, &sealed) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(BackupError::Exists(path.to_owned()))
        }
        written => Ok(written?),
    }
}

/// Opens a backup and checks it: the share belongs to its signer and group, and the facts are those of the share.
///
/// # Errors
/// [`BackupError`] tells what is wrong.
pub fn read(path: &Path, passphrase: &str) -> Result<Backup, BackupError> {
    let io = |source| BackupError::Io {
        path: path.to_owned(),
        source,
    };
    let sealed = |source| BackupError::Sealed {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(io)?.len() > MAX_FILE_BYTES {
        return Err(sealed(SealError::TooLong));
    }
    let file = fs::read(path).map_err(io)?;
    let plaintext = seal::open(&file, passphrase, PURPOSE).map_err(sealed)?;
    let backup = Backup::decode(path, &plaintext)?;
    backup.check(path)?;
    Ok(backup)
}

impl Backup {
    fn check(&self, path: &Path) -> Result<(), BackupError> {
        let (facts, group) = (&self.facts, self.share.group());
        for (same, what) in [
            (
                self.identity.public() == facts.identity,
                "the identity is not the one it says",
            ),
            (
                self.share.signer() == facts.signer,
                "the share is another signer's",
            ),
            (
                group.group_key() == facts.group_key && group.epoch() == facts.epoch,
                "the share is of another key or epoch than it says",
            ),
            (
                group.threshold() == facts.threshold && group.signers().len() == facts.signers,
                "the share is of another group size than it says",
            ),
        ] {
            if !same {
                return Err(BackupError::Mismatch {
                    path: path.to_owned(),
                    what,
                });
            }
        }
        Ok(())
    }

    fn encode(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        let content = || BackupError::Content(path.to_owned());
        let facts = postcard::to_stdvec(&self.facts).map_err(|_| content())?;
        let length = u32::try_from(facts.len()).map_err(|_| content())?;
        let identity = self.identity.secret_bytes();
        let share = self
            .share
            .to_secret_bytes()
            .map_err(|source| BackupError::Share {
                path: path.to_owned(),
                source,
            })?;
        // Reserved at once: a vector that grows leaves copies of the secrets behind.
        let size = [1, 4, facts.len(), IDENTITY_BYTES, share.len()]
            .into_iter()
            .fold(0, usize::saturating_add);
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        bytes.push(FORMAT);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&facts);
        bytes.extend_from_slice(identity.as_slice());
        bytes.extend_from_slice(&share);
        Ok(bytes)
    }

    fn decode(path: &Path, bytes: &[u8]) -> Result<Self, BackupError> {
        let content = || BackupError::Content(path.to_owned());
        let (&format, rest) = bytes.split_first().ok_or_else(content)?;
        if format != FORMAT {
            return Err(BackupError::Format {
                path: path.to_owned(),
                format,
            });
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(content)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| content())?;
        let (facts, rest) = rest.split_at_checked(length).ok_or_else(content)?;
        let (identity, share) = rest
            .split_first_chunk::<IDENTITY_BYTES>()
            .ok_or_else(content)?;
        let Ok((facts, [])) = postcard::take_from_bytes(facts) else {
            return Err(content());
        };
        Ok(Self {
            facts,
            identity: Identity::from_secret(identity),
            share: KeyShare::from_secret_bytes(share).map_err(|source| BackupError::Share {
                path: path.to_owned(),
                source,
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::{self, backup};

    const PASSPHRASE: &str = "another horse";

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        write(&path, &backup(), PASSPHRASE, Cost::Fast).unwrap();
        (dir, path)
    }

    fn seal_error(path: &Path, passphrase: &str) -> SealError {
        match read(path, passphrase) {
            Err(BackupError::Sealed { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    }

    /// Seals a plaintext as a backup, whatever it is.
    fn seal_plain(path: &Path, plaintext: &[u8], purpose: &str) {
        let file = seal::seal_at(Cost::Fast, plaintext, PASSPHRASE, purpose).unwrap();
        fs::write(path, file).unwrap();
    }

    #[test]
    fn a_backup_gives_back_identity_share_and_facts() {
        let (_dir, path) = written();
        let (read, made) = (read(&path, PASSPHRASE).unwrap(), backup());
        assert_eq!(read.facts, made.facts);
        assert_eq!(read.identity.secret_bytes(), made.identity.secret_bytes());
        assert_eq!(
            read.share.to_secret_bytes().unwrap(),
            made.share.to_secret_bytes().unwrap()
        );
    }

    #[test]
    fn a_backup_is_private_and_never_overwritten() {
        let (_dir, path) = written();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = fs::read(&path).unwrap();
        assert!(matches!(
            write(&path, &backup(), PASSPHRASE, Cost::Fast),
            Err(BackupError::Exists(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_a_damaged_and_a_truncated_file() {
        let (_dir, path) = written();
        let whole = fs::read(&path).unwrap();
        assert_eq!(seal_error(&path, "wrong horse"), SealError::WrongPassphrase);
        for length in [0, 3, 60, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(seal_error(&path, PASSPHRASE), SealError::Truncated);
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(seal_error(&path, PASSPHRASE), SealError::Damaged);
        let mut later = whole;
        later[4] = 9;
        fs::write(&path, &later).unwrap();
        assert_eq!(seal_error(&path, PASSPHRASE), SealError::Version(9));
    }

    #[test]
    fn a_sealed_file_for_another_purpose_is_no_backup() {
        let (_dir, path) = written();
        let plaintext = backup().encode(&path).unwrap();
        seal_plain(&path, &plaintext, "key-share");
        let error = read(&path, PASSPHRASE).unwrap_err().to_string();
        assert!(
            error.contains("for \"key-share\", not for \"operator-backup\""),
            "{error}"
        );
    }

    #[test]
    fn another_format_and_nonsense_are_told_apart() {
        let (_dir, path) = written();
        let plaintext = backup().encode(&path).unwrap();
        let mut later = plaintext.to_vec();
        later[0] = 2;
        seal_plain(&path, &later, PURPOSE);
        assert!(matches!(
            read(&path, PASSPHRASE),
            Err(BackupError::Format { format: 2, .. })
        ));
        let mut absurd = plaintext.to_vec();
        absurd[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        for nonsense in [&[][..], &[FORMAT], &plaintext[..40], &absurd] {
            seal_plain(&path, nonsense, PURPOSE);
            assert!(matches!(
                read(&path, PASSPHRASE),
                Err(BackupError::Content(_))
            ));
        }
        seal_plain(&path, &plaintext[..plaintext.len() - 1], PURPOSE);
        assert!(matches!(
            read(&path, PASSPHRASE),
            Err(BackupError::Share { .. })
        ));
    }

    #[test]
    fn parts_of_two_operators_make_no_backup() {
        let (_dir, path) = written();
        let other_identity = Backup {
            identity: testing::identity(1),
            ..backup()
        };
        let other_share = Backup {
            share: testing::own_share(1),
            ..backup()
        };
        let mut other_epoch = backup();
        other_epoch.facts.epoch += 1;
        for wrong in [other_identity, other_share, other_epoch] {
            seal_plain(&path, &wrong.encode(&path).unwrap(), PURPOSE);
            assert!(matches!(
                read(&path, PASSPHRASE),
                Err(BackupError::Mismatch { .. })
            ));
        }
    }

    #[test]
    fn printing_what_holds_a_secret_does_not_print_it() {
        let backup = backup();
        let seed = threshold::dkg::Seed::from_bytes(&[0xab; 32]);
        let printed = format!(
            "{backup:?} {:?} {:?} {seed:?}",
            backup.identity, backup.share
        );
        let share = backup.share.to_secret_bytes().unwrap();
        let identity = backup.identity.secret_bytes();
        for secret in [&share[33..65], identity.as_slice(), &[0xab; 32]] {
            // A few bytes in a row would already be too much.
            let part = &secret[4..12];
            let numbers = format!("{part:?}");
            assert!(!printed.contains(&hex::encode(part)));
            assert!(!printed.contains(numbers.trim_matches(['[', ']'])));
        }
        assert!(printed.contains("KeyShare") && printed.contains("Identity("));
    }

    #[test]
    fn a_share_that_is_not_its_signers_does_not_open() {
        let (_dir, path) = written();
        let plaintext = backup().encode(&path).unwrap();
        let share = backup().share.to_secret_bytes().unwrap();
        // The scalar comes after the share's format byte and signer.
        let scalar = plaintext.len() - share.len() + 33;
        let mut changed = plaintext.to_vec();
        changed[scalar + 31] ^= 1;
        seal_plain(&path, &changed, PURPOSE);
        assert!(matches!(
            read(&path, PASSPHRASE),
            Err(BackupError::Share {
                source: ShareError::Mismatch,
                ..
            })
        ));
    }
}
