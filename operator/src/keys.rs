//! The operator's secrets on disk (S10): its key share, until the genesis the seed of key generation, and during
//! a refresh its seed and the new share. All are sealed under the passphrase, readable by their owner only, and
//! written whole or not at all.
//!
//! ```text
//! key-share.sealed             the share that signs
//! key-share-epoch-N.sealed     a share of a later epoch, until its certificate is here: then renamed over the other
//! dkg-seed.sealed              until the genesis certificate
//! refresh-seed.sealed          from the administrator's word until the certificate of the new epoch
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    panic::Location,
    path::{Path, PathBuf},
};

use failpoint::Deed;
use node::files::{self, FileError};
use threshold::{
    KeyShare, ShareError,
    dkg::{CeremonyId, Seed},
    seal::{self, Cost, SealError},
};
use zeroize::Zeroizing;

const SHARE_FILE: &str = "key-share.sealed";
const SHARE_PURPOSE: &str = "key-share";
const SEED_FILE: &str = "dkg-seed.sealed";
const SEED_PURPOSE: &str = "dkg-seed";
const PENDING_PREFIX: &str = "key-share-epoch-";
const SEALED: &str = ".sealed";
const REFRESH_FILE: &str = "refresh-seed.sealed";
const REFRESH_PURPOSE: &str = "refresh-seed";
/// Shares of uncertified epochs that are kept: each is a refresh that all n finished and nobody certified.
const MAX_PENDING: usize = 64;
/// Largest sealed file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 2 << 20;

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read it.
    #[error(transparent)]
    Permissions(#[from] FileError),
    /// The passphrase is wrong, or the file is truncated or damaged.
    #[error("{path}: {source}")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// Which of these.
        source: SealError,
    },
    /// It opens, but holds no key share.
    #[error("{path}: {source}")]
    Share {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ShareError,
    },
    /// It opens, but holds no seed.
    #[error("{0} holds no seed")]
    Seed(PathBuf),
    /// The seed has been used for another roster, threshold or set of parameters.
    #[error(
        "{0} was made for another roster, threshold or set of vault parameters; a polynomial serves one \
         ceremony only. Move the file away if that ceremony is given up by everybody"
    )]
    OtherCeremony(PathBuf),
    /// Too many refreshes ended without a certificate.
    #[error(
        "{0} holds shares of {MAX_PENDING} refreshes that nobody certified; find out who does not sign for a new epoch"
    )]
    Pending(PathBuf),
    /// There is another share of that epoch.
    #[error("{0} is a share of the same epoch and another refresh; nothing was changed")]
    OtherShare(PathBuf),
}

/// What a refresh needs to go on after a restart. That it is there is the administrator's word.
pub struct RefreshSeed {
    /// [`threshold::GroupInfo::digest`] of the group that is refreshed.
    pub base: [u8; 32],
    /// The epoch that it leads to.
    pub epoch: u32,
    /// Makes the polynomial.
    pub seed: Seed,
}

/// Where the secrets are, and how they open.
pub struct KeyFiles {
    folder: PathBuf,
    passphrase: Zeroizing<String>,
    cost: Cost,
}

impl KeyFiles {
    /// Key files in `folder`, which exists.
    pub fn new(folder: PathBuf, passphrase: Zeroizing<String>, cost: Cost) -> Self {
        Self {
            folder,
            passphrase,
            cost,
        }
    }

    /// The key share; `None` before key generation has finished.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load_share(&self) -> Result<Option<KeyShare>, KeyFileError> {
        self.load_share_from(self.folder.join(SHARE_FILE))
    }

    fn load_share_from(&self, path: PathBuf) -> Result<Option<KeyShare>, KeyFileError> {
        let Some(secret) = self.open(&path, SHARE_PURPOSE)? else {
            return Ok(None);
        };
        let share = KeyShare::from_secret_bytes(&secret)
            .map_err(|source| KeyFileError::Share { path, source })?;
        Ok(Some(share))
    }

    /// Writes the key share. Returns once it is there to stay.
    ///
    /// # Errors
    /// [`KeyFileError`].
    #[track_caller]
    pub fn save_share(&self, share: &KeyShare) -> Result<(), KeyFileError> {
        self.save_share_to(self.folder.join(SHARE_FILE), share)
    }

    #[track_caller]
    fn save_share_to(&self, path: PathBuf, share: &KeyShare) -> Result<(), KeyFileError> {
        let secret = share
            .to_secret_bytes()
            .map_err(|source| KeyFileError::Share {
                path: path.clone(),
                source,
            })?;
        self.write(&path, &secret, SHARE_PURPOSE)
    }

    /// The shares of later epochs that wait for a certificate.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load_pending(&self) -> Result<BTreeMap<u32, KeyShare>, KeyFileError> {
        let mut pending = BTreeMap::new();
        for epoch in self.pending_epochs()? {
            if let Some(share) = self.load_share_from(self.pending_path(epoch))? {
                pending.insert(epoch, share);
            }
        }
        Ok(pending)
    }

    /// Writes the share of a later epoch beside the one that signs. Returns once it is there to stay.
    /// A share that is there already stays as it is.
    ///
    /// # Errors
    /// [`KeyFileError::OtherShare`] if that one is of another refresh, and the others.
    #[track_caller]
    pub fn save_pending(&self, share: &KeyShare) -> Result<(), KeyFileError> {
        let path = self.pending_path(share.group().epoch());
        if let Some(kept) = self.load_share_from(path.clone())? {
            return if kept.group() == share.group() {
                Ok(())
            } else {
                Err(KeyFileError::OtherShare(path))
            };
        }
        if self.pending_epochs()?.len() >= MAX_PENDING {
            return Err(KeyFileError::Pending(self.folder.clone()));
        }
        self.save_share_to(path, share)
    }

    /// Makes the share of a certified epoch the one that signs: it is renamed over the old one. Then shares of
    /// epochs before it go, too. After a crash at any point one of the two is there, and this can be
    /// done again.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    #[track_caller]
    pub fn promote(&self, epoch: u32) -> Result<(), KeyFileError> {
        let path = self.pending_path(epoch);
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| KeyFileError::Io { path, source }
        };
        let place = Location::caller();
        failpoint::before(Deed::File, place);
        fs::rename(&path, self.folder.join(SHARE_FILE)).map_err(io(&path))?;
        self.sync_folder().map_err(io(&self.folder))?;
        failpoint::after(Deed::File, place);
        for earlier in self.pending_epochs()?.into_iter().filter(|e| *e < epoch) {
            let path = self.pending_path(earlier);
            fs::remove_file(&path).map_err(io(&path))?;
        }
        self.sync_folder().map_err(io(&self.folder))
    }

    fn pending_path(&self, epoch: u32) -> PathBuf {
        self.folder.join(format!("{PENDING_PREFIX}{epoch}{SEALED}"))
    }

    fn pending_epochs(&self) -> Result<Vec<u32>, KeyFileError> {
        let list = || -> io::Result<Vec<u32>> {
            let mut epochs = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let name = entry?.file_name();
                let epoch = name.to_str().and_then(|name| {
                    name.strip_prefix(PENDING_PREFIX)?
                        .strip_suffix(SEALED)?
                        .parse::<u32>()
                        .ok()
                });
                epochs.extend(epoch);
            }
            epochs.sort_unstable();
            Ok(epochs)
        };
        list().map_err(|source| KeyFileError::Io {
            path: self.folder.clone(),
            source,
        })
    }

    fn sync_folder(&self) -> io::Result<()> {
        fs::File::open(&self.folder)?.sync_all()
    }

    /// The refresh that is under way; `None` if there is none.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load_refresh(&self) -> Result<Option<RefreshSeed>, KeyFileError> {
        let path = self.folder.join(REFRESH_FILE);
        let Some(secret) = self.open(&path, REFRESH_PURPOSE)? else {
            return Ok(None);
        };
        let parts = || {
            let (base, rest) = secret.split_first_chunk::<32>()?;
            let (epoch, seed) = rest.split_first_chunk::<4>()?;
            Some(RefreshSeed {
                base: *base,
                epoch: u32::from_be_bytes(*epoch),
                seed: Seed::from_bytes(seed.try_into().ok()?),
            })
        };
        parts().map(Some).ok_or(KeyFileError::Seed(path))
    }

    /// Writes what a refresh needs, in place of an earlier one. Returns once it is there to stay.
    ///
    /// # Errors
    /// [`KeyFileError`].
    #[track_caller]
    pub fn save_refresh(&self, refresh: &RefreshSeed) -> Result<(), KeyFileError> {
        let mut secret = Zeroizing::new(Vec::with_capacity(68));
        secret.extend_from_slice(&refresh.base);
        secret.extend_from_slice(&refresh.epoch.to_be_bytes());
        secret.extend_from_slice(refresh.seed.secret_bytes());
        self.write(&self.folder.join(REFRESH_FILE), &secret, REFRESH_PURPOSE)
    }

    /// Ends a refresh: its epoch is certified, or another one's.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    #[track_caller]
    pub fn delete_refresh(&self) -> Result<(), KeyFileError> {
        self.delete(REFRESH_FILE)
    }

    /// The seed of one ceremony; `None` if there is none.
    ///
    /// # Errors
    /// [`KeyFileError::OtherCeremony`] if there is one of another ceremony.
    pub fn load_seed(&self, ceremony: &CeremonyId) -> Result<Option<Seed>, KeyFileError> {
        let path = self.folder.join(SEED_FILE);
        let Some(secret) = self.open(&path, SEED_PURPOSE)? else {
            return Ok(None);
        };
        let (Some(made_for), Some(seed), 64) = (
            secret.first_chunk::<32>(),
            secret.last_chunk::<32>(),
            secret.len(),
        ) else {
            return Err(KeyFileError::Seed(path));
        };
        if *made_for != ceremony.0 {
            return Err(KeyFileError::OtherCeremony(path));
        }
        Ok(Some(Seed::from_bytes(seed)))
    }

    /// Writes the seed of one ceremony. Returns once it is there to stay.
    ///
    /// # Errors
    /// [`KeyFileError`].
    #[track_caller]
    pub fn save_seed(&self, ceremony: &CeremonyId, seed: &Seed) -> Result<(), KeyFileError> {
        let mut secret = Zeroizing::new(Vec::with_capacity(64));
        secret.extend_from_slice(&ceremony.0);
        secret.extend_from_slice(seed.secret_bytes());
        self.write(&self.folder.join(SEED_FILE), &secret, SEED_PURPOSE)
    }

    /// Deletes the seed, once all n operators have shown by the genesis certificate that they hold
    /// their shares.
    ///
    /// # Errors
    /// [`KeyFileError::Io`].
    #[track_caller]
    pub fn delete_seed(&self) -> Result<(), KeyFileError> {
        self.delete(SEED_FILE)
    }

    #[track_caller]
    fn delete(&self, name: &str) -> Result<(), KeyFileError> {
        let path = self.folder.join(name);
        let place = Location::caller();
        failpoint::before(Deed::File, place);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KeyFileError::Io { path, source })
            }
            _ => {
                failpoint::after(Deed::File, place);
                Ok(())
            }
        }
    }

    fn open(&self, path: &Path, purpose: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyFileError> {
        let io = |source| KeyFileError::Io {
            path: path.to_owned(),
            source,
        };
        match fs::metadata(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io(source)),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(KeyFileError::Sealed {
                    path: path.to_owned(),
                    source: SealError::TooLong,
                });
            }
            Ok(_) => files::check_private(path)?,
        }
        let file = fs::read(path).map_err(io)?;
        seal::open(&file, &self.passphrase, purpose)
            .map(Some)
            .map_err(|source| KeyFileError::Sealed {
                path: path.to_owned(),
                source,
            })
    }

    /// A new file beside the old one, synced, then renamed over it, and the folder synced: after a crash
    /// there is the old file or the new one.
    #[track_caller]
    fn write(&self, path: &Path, secret: &[u8], purpose: &str) -> Result<(), KeyFileError> {
        let sealed =
            seal::seal_at(self.cost, secret, &self.passphrase, purpose).map_err(|source| {
                KeyFileError::Sealed {
                    path: path.to_owned(),
                    source,
                }
            })?;
        let fresh = path.with_extension("new");
        let place = Location::caller();
        failpoint::before(Deed::File, place);
        let write = || {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            self.sync_folder()
        };
        write().map_err(|source| KeyFileError::Io {
            path: path.to_owned(),
            source,
        })?;
        failpoint::after(Deed::File, place);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing;

    fn files(folder: &Path, passphrase: &str) -> KeyFiles {
        KeyFiles::new(
            folder.to_owned(),
            Zeroizing::new(passphrase.to_owned()),
            Cost::Fast,
        )
    }

    #[test]
    fn a_share_survives_its_file_and_opens_with_its_passphrase_only() {
        let dir = tempfile::tempdir().unwrap();
        let share = testing::share(0);
        files(dir.path(), "correct horse")
            .save_share(share)
            .unwrap();
        let read = files(dir.path(), "correct horse")
            .load_share()
            .unwrap()
            .unwrap();
        assert_eq!(
            read.to_secret_bytes().unwrap(),
            share.to_secret_bytes().unwrap()
        );
        let error = files(dir.path(), "wrong horse").load_share().unwrap_err();
        assert!(matches!(
            &error,
            KeyFileError::Sealed {
                source: SealError::WrongPassphrase,
                ..
            }
        ));
        assert!(error.to_string().contains("wrong passphrase"), "{error}");
    }

    #[test]
    fn a_truncated_share_is_told_from_a_wrong_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let keys = files(dir.path(), "correct horse");
        keys.save_share(testing::share(0)).unwrap();
        let path = dir.path().join(SHARE_FILE);
        let whole = fs::read(&path).unwrap();
        for length in [0, 3, 40, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = keys.load_share().unwrap_err();
            assert!(
                matches!(
                    &error,
                    KeyFileError::Sealed {
                        source: SealError::Truncated,
                        ..
                    }
                ),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn a_share_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = files(dir.path(), "correct horse");
        keys.save_share(testing::share(0)).unwrap();
        let path = dir.path().join(SHARE_FILE);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = keys.load_share().unwrap_err();
        assert!(matches!(
            error,
            KeyFileError::Permissions(FileError::Permissions { mode: 0o640, .. })
        ));
    }

    #[test]
    fn a_seed_serves_one_ceremony() {
        let dir = tempfile::tempdir().unwrap();
        let keys = files(dir.path(), "correct horse");
        let (this, other) = (CeremonyId([1; 32]), CeremonyId([2; 32]));
        assert!(keys.load_seed(&this).unwrap().is_none());
        let seed = Seed::random(&mut rand::rngs::OsRng);
        keys.save_seed(&this, &seed).unwrap();
        assert_eq!(
            keys.load_seed(&this).unwrap().unwrap().secret_bytes(),
            seed.secret_bytes()
        );
        assert!(matches!(
            keys.load_seed(&other),
            Err(KeyFileError::OtherCeremony(_))
        ));
        keys.delete_seed().unwrap();
        keys.delete_seed().unwrap();
        assert!(keys.load_seed(&other).unwrap().is_none());
    }

    #[test]
    fn a_seed_file_is_no_share_file() {
        let dir = tempfile::tempdir().unwrap();
        let keys = files(dir.path(), "correct horse");
        keys.save_seed(&CeremonyId([1; 32]), &Seed::random(&mut rand::rngs::OsRng))
            .unwrap();
        fs::rename(dir.path().join(SEED_FILE), dir.path().join(SHARE_FILE)).unwrap();
        let error = keys.load_share().unwrap_err();
        assert!(matches!(
            error,
            KeyFileError::Sealed {
                source: SealError::Purpose { .. },
                ..
            }
        ));
    }
}
