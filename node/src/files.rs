//! The files that nodes start from: roster and vault parameters (the same for all), identity (own).

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    panic::Location,
    path::{Path, PathBuf},
};

use failpoint::Deed;
use protocol::{
    identity::Identity,
    parameters::{Parameters, ParametersError},
    roster::{Roster, RosterError},
};
use rand::RngCore as _;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Largest settings file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is larger than any such file can be.
    #[error("{0} is too large for a settings file")]
    TooLarge(PathBuf),
    /// It is not the TOML expected; the message names line and field.
    #[error("{path}: {message}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The roster can't be used.
    #[error("{path}")]
    Roster {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RosterError,
    },
    /// The parameters can't be used.
    #[error("{path}")]
    Parameters {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParametersError,
    },
    /// Others can get at a secret.
    #[error("{path} is open to others (mode {mode:o}): chmod {wanted:o} {path}")]
    Permissions {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// Not 64 hex digits.
    #[error("{0} is no identity file: it must hold 64 hex digits")]
    Identity(PathBuf),
}

/// Reads a TOML file. Types refuse unknown fields.
///
/// # Errors
/// [`FileError`] that names the file.
pub fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    parse_toml(path, &read(path)?)
}

/// Reads TOML that came from the file at `path`.
///
/// # Errors
/// [`FileError::Toml`], which names the file.
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error| FileError::Toml {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// Reads and checks a roster.
///
/// # Errors
/// [`FileError`].
pub fn load_roster(path: &Path) -> Result<Roster, FileError> {
    let roster: Roster = load_toml(path)?;
    roster.validate().map_err(|source| FileError::Roster {
        path: path.to_owned(),
        source,
    })?;
    Ok(roster)
}

/// Reads and checks vault parameters.
///
/// # Errors
/// [`FileError`].
pub fn load_parameters(path: &Path) -> Result<Parameters, FileError> {
    let parameters: Parameters = load_toml(path)?;
    parameters
        .validate()
        .map_err(|source| FileError::Parameters {
            path: path.to_owned(),
            source,
        })?;
    Ok(parameters)
}

/// Reads the identity; refuses a file that others can read.
///
/// # Errors
/// [`FileError`].
pub fn load_identity(path: &Path) -> Result<Identity, FileError> {
    check_private(path)?;
    let text = Zeroizing::new(read(path)?);
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), secret.as_mut_slice())
        .map_err(|_| FileError::Identity(path.to_owned()))?;
    Ok(Identity::from_secret(&secret))
}

/// Makes a new identity; refuses to overwrite a file.
///
/// # Errors
/// [`FileError`].
pub fn create_identity(path: &Path) -> Result<Identity, FileError> {
    let mut secret = Zeroizing::new([0; 32]);
    rand::rngs::OsRng.fill_bytes(secret.as_mut_slice());
    let identity = Identity::from_secret(&secret);
    save_identity(path, &identity)?;
    Ok(identity)
}

/// Writes an identity; refuses to overwrite a file.
///
/// # Errors
/// [`FileError`].
pub fn save_identity(path: &Path, identity: &Identity) -> Result<(), FileError> {
    let secret = identity.secret_bytes();
    let mut text = Zeroizing::new([0; 65]);
    if let Some((digits, end)) = text.split_first_chunk_mut::<64>() {
        // 64 digits are what 32 bytes need.
        let _ = hex::encode_to_slice(secret.as_slice(), digits);
        end.fill(b'\n');
    }
    write_new(path, text.as_slice())
}

/// Writes a new file for its owner only, and returns once it is there to stay, whole; refuses to overwrite one.
///
/// # Errors
/// [`FileError::Io`], of kind `AlreadyExists` when there is one.
#[track_caller]
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let place = Location::caller();
    failpoint::before(Deed::File, place);
    let fresh = beside(path);
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match renameat_with(CWD, &fresh, CWD, path, RenameFlags::NOREPLACE) {
            // This file system can't; a link fails too when its target is there.
            Err(Errno::INVAL) => fs::hard_link(&fresh, path),
            renamed => Ok(renamed?),
        }
    };
    let written = write();
    // After a link or a failure. What can't be removed is as private as the file itself.
    let _ = fs::remove_file(&fresh);
    written.map_err(io)?;
    sync_folder_of(path).map_err(io)?;
    failpoint::after(Deed::File, place);
    Ok(())
}

/// A name in the same folder that nobody else uses.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}", rand::rngs::OsRng.next_u64()))
}

/// Makes what has been made, renamed or linked in the folder of `path` outlive a power cut.
///
/// # Errors
/// What the system said.
pub fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes a folder, with those above it, for its owner only. One that is there is left as it is.
///
/// # Errors
/// [`FileError::Permissions`] when one that is there is open to others, or when it can't be made.
pub fn create_private_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::Io {
            path: path.to_owned(),
            source,
        })?;
    check_private(path)
}

/// Refuses a file or folder that group or others can read, write or enter.
///
/// # Errors
/// [`FileError::Permissions`], or when the file can't be looked at.
pub fn check_private(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(FileError::Permissions {
            path: path.to_owned(),
            mode,
            wanted: if metadata.is_dir() { 0o700 } else { 0o600 },
        })
    }
}

/// The text of a settings file.
///
/// # Errors
/// [`FileError`] when it can't be read, or is too large for one.
pub fn read(path: &Path) -> Result<String, FileError> {
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(io)?.len() > MAX_FILE_BYTES {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    fs::read_to_string(path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_file_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let made = create_identity(&path).unwrap();
        assert_eq!(load_identity(&path).unwrap().public(), made.public());
        assert!(matches!(create_identity(&path), Err(FileError::Io { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            load_identity(&path),
            Err(FileError::Permissions { mode: 0o644, .. })
        ));
    }

    #[test]
    fn a_truncated_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        create_identity(&path).unwrap();
        fs::write(&path, "abcd").unwrap();
        assert!(matches!(load_identity(&path), Err(FileError::Identity(_))));
    }

    #[test]
    fn an_unknown_field_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.toml");
        let mut text = toml::to_string(&Parameters::defaults(bitcoin::Network::Regtest)).unwrap();
        fs::write(&path, &text).unwrap();
        load_parameters(&path).unwrap();
        text.insert_str(0, "surprise = 1\n");
        fs::write(&path, &text).unwrap();
        let error = load_parameters(&path).unwrap_err().to_string();
        assert!(error.contains("surprise"), "{error}");
    }
}
