//! Restoring: from an opened backup to an operator's folder on another host. The folder appears whole or not at
//! all, and a folder that is there is never touched.
//!
//! ```text
//! FOLDER/operator.toml            the default settings, with the height to begin at
//! FOLDER/identity
//! FOLDER/data/key-share.sealed    under the node's passphrase
//! ```
//!
//! The policy (S6) is not laid out: the operator's own is to be put there, and the start fails without one, rather than go
//! on with limits that nobody chose. There is no database: the first start finds a share whose promises it can't know, and is quarantined (S7).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use node::files::{self, FileError};
use threshold::seal::Cost;
use zeroize::Zeroizing;

use crate::{
    backup::Backup,
    keys::{KeyFileError, KeyFiles},
    settings,
};

/// The folder of database and key files in the restored folder, as the settings' template names it.
const DATA: &str = "data";
/// The identity file, likewise.
const IDENTITY: &str = "identity";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something.
    #[error("{0} is there already; nothing was changed. Restore into a folder that does not exist")]
    Exists(PathBuf),
    /// A file can't be written.
    #[error("a file can't be written")]
    File(#[from] FileError),
    /// The share can't be sealed or written.
    #[error("the key share can't be written")]
    Keys(#[from] KeyFileError),
    /// The folder can't be put in place.
    #[error("{path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Lays out `folder` from a backup. Returns once it is there to stay.
///
/// # Errors
/// [`RestoreError`]; `folder` does not exist then, unless it did before.
pub fn restore(
    backup: &Backup,
    folder: &Path,
    passphrase: Zeroizing<String>,
    cost: Cost,
) -> Result<(), RestoreError> {
    // A link to nowhere counts as something too.
    if fs::symlink_metadata(folder).is_ok() {
        return Err(RestoreError::Exists(folder.to_owned()));
    }
    let io = |source| RestoreError::Io {
        path: folder.to_owned(),
        source,
    };
    let fresh = files::beside(folder);
    let laid_out = lay_out(backup, &fresh, passphrase, cost)
        .and_then(|()| fs::rename(&fresh, folder).map_err(io));
    if laid_out.is_err() {
        // The sealed share and the identity must not stay behind under a name that nobody knows.
        let _ = fs::remove_dir_all(&fresh);
    }
    laid_out?;
    files::sync_folder_of(folder).map_err(io)
}

fn lay_out(
    backup: &Backup,
    folder: &Path,
    passphrase: Zeroizing<String>,
    cost: Cost,
) -> Result<(), RestoreError> {
    let data = folder.join(DATA);
    files::create_private_folder(&data)?;
    files::create_private_folder(folder)?;
    files::save_identity(&folder.join(IDENTITY), &backup.identity)?;
    KeyFiles::new(data, passphrase, cost).save_share(&backup.share)?;
    let settings = settings::restored_template(backup.facts.genesis_height);
    files::write_new(&folder.join(settings::FILE_NAME), settings.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backup, settings::Settings, testing};

    fn passphrase() -> Zeroizing<String> {
        Zeroizing::new("correct horse".to_owned())
    }

    #[test]
    fn a_restored_folder_is_the_operators_and_starts_at_the_genesis() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("operator");
        let backup = testing::backup();
        restore(&backup, &folder, passphrase(), Cost::Fast).unwrap();
        let settings = Settings::load(&folder.join(settings::FILE_NAME)).unwrap();
        assert_eq!(settings.scan_from, testing::GENESIS_HEIGHT);
        let identity = files::load_identity(&settings.identity).unwrap();
        assert_eq!(identity.public(), testing::identity(0).public());
        files::check_private(&settings.data_dir).unwrap();
        files::check_private(&folder).unwrap();
        let keys = KeyFiles::new(settings.data_dir, passphrase(), Cost::Fast);
        assert_eq!(
            keys.load_share()
                .unwrap()
                .unwrap()
                .to_secret_bytes()
                .unwrap(),
            testing::share(0).to_secret_bytes().unwrap()
        );
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_folder_that_is_there_is_not_touched_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let backup = testing::backup();
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(matches!(
            restore(&backup, &empty, passphrase(), Cost::Fast),
            Err(RestoreError::Exists(_))
        ));
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
        // A name that the disk does not take.
        let long = dir.path().join("x".repeat(300));
        assert!(restore(&backup, &long, passphrase(), Cost::Fast).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_backup_goes_to_a_file_and_comes_back_as_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup");
        backup::write(&file, &testing::backup(), "another horse", Cost::Fast).unwrap();
        let read = backup::read(&file, "another horse").unwrap();
        let folder = dir.path().join("operator");
        restore(&read, &folder, passphrase(), Cost::Fast).unwrap();
        let keys = KeyFiles::new(folder.join(DATA), passphrase(), Cost::Fast);
        assert!(keys.load_share().unwrap().is_some());
    }
}
