//! The wallet's folder: who may read it, and how files get into it whole.
//!
//! ```text
//! wallet.key          secrets, sealed (key_file)         mode 0600
//! wallet.json         network and account, for commands that need no secret
//! vault.json          the pinned vault
//! deposits/HASH.json  backup of each deposit address that was shown
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bitcoin::Network;
use rand::{RngCore as _, rngs::OsRng};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest file that is read: none of ours comes near it.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Most deposit backups that are looked through.
pub const MAX_BACKUPS: usize = 10_000;
/// The public part.
const IDENTITY_FILE: &str = "wallet.json";
/// Backups of deposit addresses.
const DEPOSITS_DIR: &str = "deposits";
/// Permission bits of group and others.
#[cfg(unix)]
const OTHERS: u32 = 0o077;

/// What of a wallet is no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Bitcoin network.
    pub network: Network,
    /// The account's address.
    pub account: String,
}

/// Why a folder or a file in it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no such file or folder.
    #[error("{path} does not exist; make a wallet with 'drawbridge new-key', or name another folder with --wallet", path = .0.display())]
    Missing(PathBuf),
    /// There is such a file and it must not be overwritten.
    #[error("{path} exists already and is not overwritten; choose another folder with --wallet", path = .0.display())]
    Exists(PathBuf),
    /// Others may read or write it.
    #[error("{path} has mode {mode:03o}, so others can get at it; run: chmod {wanted:03o} {path}", path = path.display())]
    Permissions {
        /// What.
        path: PathBuf,
        /// As it is.
        mode: u32,
        /// As it should be.
        wanted: u32,
    },
    /// Longer than any file of a wallet.
    #[error("{path} is too long to be a wallet's file", path = .0.display())]
    TooLong(PathBuf),
    /// The content is not what it should be.
    #[error("{path} is damaged ({reason}); restore it from a backup", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The public part is another wallet's.
    #[error("{path} does not belong to the key file beside it; remove it and try again", path = .0.display())]
    Foreign(PathBuf),
    /// The file system refused.
    #[error("{action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A folder that only its owner can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, or takes one that is there.
    ///
    /// # Errors
    /// [`FolderError::Permissions`] when others can read it.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        make_private_dir(&path)?;
        Self::open(path)
    }

    /// Takes a folder that is there.
    ///
    /// # Errors
    /// [`FolderError::Missing`], or [`FolderError::Permissions`] when others can read it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        let metadata =
            fs::metadata(&path).map_err(|source| missing_or(source, "cannot open", &path))?;
        if !metadata.is_dir() {
            return Err(FolderError::Missing(path));
        }
        check_private(&path, &metadata, 0o700)?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Network and account, without a passphrase.
    ///
    /// # Errors
    /// [`FolderError::Missing`] when there is no wallet.
    pub fn identity(&self) -> Result<Identity, FolderError> {
        self.read_json(IDENTITY_FILE)
    }

    pub(crate) fn save_identity(&self, identity: &Identity) -> Result<(), FolderError> {
        self.save_json(IDENTITY_FILE, identity)
    }

    /// The public part is written again if it was lost, and must otherwise be the key file's.
    pub(crate) fn check_or_save_identity(&self, identity: &Identity) -> Result<(), FolderError> {
        match self.identity() {
            Ok(found) if found == *identity => Ok(()),
            Ok(_) => Err(FolderError::Foreign(self.path.join(IDENTITY_FILE))),
            Err(FolderError::Missing(_)) => self.save_identity(identity),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn read_bytes(&self, name: &str) -> Result<Vec<u8>, FolderError> {
        let path = self.path.join(name);
        let file = File::open(&path).map_err(|source| missing_or(source, "cannot read", &path))?;
        let metadata = file.metadata().map_err(io("cannot read", &path))?;
        check_private(&path, &metadata, 0o600)?;
        let mut bytes = Vec::new();
        let mut bounded = file.take(MAX_FILE_BYTES.saturating_add(1));
        bounded
            .read_to_end(&mut bytes)
            .map_err(io("cannot read", &path))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
            return Err(FolderError::TooLong(path));
        }
        Ok(bytes)
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, FolderError> {
        let bytes = self.read_bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|error| FolderError::Damaged {
            path: self.path.join(name),
            reason: error.to_string(),
        })
    }

    pub(crate) fn save_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let text = serde_json::to_string_pretty(value).map_err(|error| FolderError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let staged = self.stage(text.as_bytes())?;
        fs::rename(&staged, &path).map_err(io("cannot write", &path))?;
        self.sync()
    }

    /// Writes a file that must not be there yet. It appears whole or not at all.
    pub(crate) fn write_new(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let staged = self.stage(bytes)?;
        // Unlike a rename, a link fails when its target exists.
        let linked = fs::hard_link(&staged, &path);
        fs::remove_file(&staged).map_err(io("cannot remove", &staged))?;
        match linked {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(FolderError::Exists(path))
            }
            Err(source) => Err(io("cannot write", &path)(source)),
        }
    }

    pub(crate) fn save_backup<T: Serialize>(
        &self,
        name: &str,
        value: &T,
    ) -> Result<(), FolderError> {
        make_private_dir(&self.path.join(DEPOSITS_DIR))?;
        self.save_json(&format!("{DEPOSITS_DIR}/{name}.json"), value)
    }

    /// All deposit backups, in the order of their names.
    pub(crate) fn backups<T: DeserializeOwned>(&self) -> Result<Vec<T>, FolderError> {
        let dir = self.path.join(DEPOSITS_DIR);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io("cannot read", &dir)(source)),
        };
        let mut names = Vec::new();
        for entry in entries.take(MAX_BACKUPS) {
            let name = entry.map_err(io("cannot read", &dir))?.file_name();
            if let Some(name) = name.to_str().filter(|name| name.ends_with(".json")) {
                names.push(format!("{DEPOSITS_DIR}/{name}"));
            }
        }
        names.sort();
        names.iter().map(|name| self.read_json(name)).collect()
    }

    /// Writes and syncs a file under a name that nobody else uses.
    fn stage(&self, bytes: &[u8]) -> Result<PathBuf, FolderError> {
        let path = self.path.join(format!(".staged-{:016x}", OsRng.next_u64()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(io("cannot write", &path))?;
        Ok(path)
    }

    fn sync(&self) -> Result<(), FolderError> {
        let synced = File::open(&self.path).and_then(|dir| dir.sync_all());
        synced.map_err(io("cannot sync", &self.path))
    }
}

fn make_private_dir(path: &Path) -> Result<(), FolderError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io("cannot make", path))
}

#[cfg(unix)]
fn check_private(path: &Path, metadata: &fs::Metadata, wanted: u32) -> Result<(), FolderError> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    if mode & OTHERS != 0 {
        return Err(FolderError::Permissions {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &fs::Metadata, _: u32) -> Result<(), FolderError> {
    Ok(())
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io {
        action,
        path,
        source,
    }
}

fn missing_or(source: std::io::Error, action: &'static str, path: &Path) -> FolderError {
    if source.kind() == ErrorKind::NotFound {
        FolderError::Missing(path.to_owned())
    } else {
        io(action, path)(source)
    }
}
