//! Where a passphrase comes from: a private file, the environment, or the terminal. Every copy that is made here is
//! wiped; what the environment holds stays there as long as the process does, so a file is better.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use node::files::{self, FileError};
use zeroize::Zeroizing;

/// The environment variable with the passphrase of the node's key files.
pub const NODE_VARIABLE: &str = "DRAWBRIDGE_PASSPHRASE";
/// The environment variable with the passphrase of a backup.
pub const BACKUP_VARIABLE: &str = "DRAWBRIDGE_BACKUP_PASSPHRASE";
/// Shortest passphrase that is taken, in bytes.
const MIN_BYTES: usize = 8;
/// Longest one, in bytes.
const MAX_BYTES: usize = 1_024;

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// No way to get one.
    #[error(
        "no passphrase for {what}: give {option}, or set the variable {variable}, or use a terminal"
    )]
    None {
        /// What it is for.
        what: &'static str,
        /// How to name a file.
        option: &'static str,
        /// The variable.
        variable: &'static str,
    },
    /// Too easy to guess.
    #[error("the passphrase for {0} is shorter than {MIN_BYTES} bytes")]
    Short(&'static str),
    /// Not a passphrase.
    #[error("the passphrase for {0} is longer than {MAX_BYTES} bytes")]
    Long(&'static str),
    /// Typed differently the second time.
    #[error("the two passphrases differ; nothing was written")]
    Differ,
    /// The file is open to others.
    #[error(transparent)]
    Permissions(#[from] FileError),
    /// The file can't be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where one passphrase may come from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What it is for, in words.
    pub what: &'static str,
    /// A file with it, readable by its owner only.
    pub file: Option<&'a Path>,
    /// How to name that file, for the error.
    pub option: &'static str,
    /// The environment variable.
    pub variable: &'static str,
}

impl Source<'_> {
    /// The passphrase of something that is there.
    ///
    /// # Errors
    /// [`PassphraseError`] that says where to put it.
    pub fn get(&self) -> Result<Zeroizing<String>, PassphraseError> {
        match self.given()? {
            Some(passphrase) => self.checked(passphrase),
            None => self.checked(self.prompt("Passphrase of")?),
        }
    }

    /// The passphrase of something that is being made: typed twice where it is typed.
    ///
    /// # Errors
    /// [`PassphraseError`].
    pub fn choose(&self) -> Result<Zeroizing<String>, PassphraseError> {
        if let Some(passphrase) = self.given()? {
            return self.checked(passphrase);
        }
        let first = self.checked(self.prompt("New passphrase for")?)?;
        if *first != *self.prompt("The same again, for")? {
            return Err(PassphraseError::Differ);
        }
        Ok(first)
    }

    fn given(&self) -> Result<Option<Zeroizing<String>>, PassphraseError> {
        let Some(path) = self.file else {
            return Ok(std::env::var(self.variable).ok().map(Zeroizing::new));
        };
        files::check_private(path)?;
        // Room for all of it: a string that grows leaves copies behind.
        let room = MAX_BYTES.saturating_add(4);
        let mut text = Zeroizing::new(String::with_capacity(room));
        File::open(path)
            .and_then(|file| {
                let bounded = u64::try_from(room).unwrap_or(u64::MAX);
                file.take(bounded).read_to_string(&mut text)
            })
            .map_err(|source| PassphraseError::File {
                path: path.to_owned(),
                source,
            })?;
        let end = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(end);
        Ok(Some(text))
    }

    fn checked(&self, passphrase: Zeroizing<String>) -> Result<Zeroizing<String>, PassphraseError> {
        match passphrase.len() {
            ..MIN_BYTES => Err(PassphraseError::Short(self.what)),
            MIN_BYTES..=MAX_BYTES => Ok(passphrase),
            _ => Err(PassphraseError::Long(self.what)),
        }
    }

    fn prompt(&self, words: &str) -> Result<Zeroizing<String>, PassphraseError> {
        rpassword::prompt_password(format!("{words} {}: ", self.what))
            .map(Zeroizing::new)
            .map_err(|_| PassphraseError::None {
                what: self.what,
                option: self.option,
                variable: self.variable,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Zeroizing<String>, PassphraseError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passphrase");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let source = Source {
            what: "a test",
            file: Some(&file),
            option: "a file",
            variable: "DRAWBRIDGE_NOT_SET",
        };
        source.choose()
    }

    #[test]
    fn a_passphrase_file_must_be_private_and_of_a_sensible_length() {
        let passphrase = read("correct horse battery\n", 0o600).unwrap();
        assert_eq!(passphrase.as_str(), "correct horse battery");
        assert!(matches!(
            read("correct horse battery\n", 0o644),
            Err(PassphraseError::Permissions(FileError::Permissions {
                mode: 0o644,
                ..
            }))
        ));
        assert!(matches!(
            read("short\n", 0o600),
            Err(PassphraseError::Short(_))
        ));
        assert_eq!(
            read(&"x".repeat(MAX_BYTES), 0o600).unwrap().len(),
            MAX_BYTES
        );
        for length in [MAX_BYTES + 1, MAX_BYTES + 100] {
            assert!(matches!(
                read(&"x".repeat(length), 0o600),
                Err(PassphraseError::Long(_))
            ));
        }
    }
}
