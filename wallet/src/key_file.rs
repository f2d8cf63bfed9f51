//! The secrets of a wallet and the file that keeps them: `threshold::seal` with purpose "wallet".
//!
//! ```text
//! plaintext: version 1 │ network magic 4 │ account secret 32 │ refund secret 32
//! ```

use std::fmt;
use std::path::PathBuf;

use bitcoin::p2p::Magic;
use bitcoin::secp256k1::{Keypair, Secp256k1, SecretKey};
use bitcoin::{Network, XOnlyPublicKey};
use ledger::AccountSecret;
use rand::{RngCore as _, rngs::OsRng};
use threshold::seal::{self, SealError};
use zeroize::Zeroizing;

use crate::folder::{Folder, FolderError, Identity};

/// The key file's name in the wallet's folder.
pub const KEY_FILE: &str = "wallet.key";
/// What the sealed container is bound to.
const PURPOSE: &str = "wallet";
const VERSION: u8 = 1;
const PLAINTEXT_BYTES: usize = 1 + 4 + 32 + 32;

/// Why a key file can't be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is one already.
    #[error("{path} exists already and is not overwritten; choose another folder with --wallet", path = .0.display())]
    Exists(PathBuf),
    /// No passphrase.
    #[error("the passphrase is empty; choose one that nobody guesses")]
    EmptyPassphrase,
    /// Not the passphrase that it was made with.
    #[error("wrong passphrase for {path}", path = .0.display())]
    WrongPassphrase(PathBuf),
    /// The end is missing.
    #[error("{path} is truncated; restore it from a backup", path = .0.display())]
    Truncated(PathBuf),
    /// Changed, or something else.
    #[error("{path} is no usable key file; restore it from a backup", path = path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: SealError,
    },
    /// Decrypts, but does not hold a wallet's keys.
    #[error("{path} does not hold a wallet's keys ({reason})", path = path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The keys could not be sealed.
    #[error("the keys could not be encrypted")]
    Seal(#[source] SealError),
    /// The folder or a file in it.
    #[error(transparent)]
    Folder(FolderError),
}

impl From<FolderError> for KeyFileError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Exists(path) => Self::Exists(path),
            error => Self::Folder(error),
        }
    }
}

/// Account secret and refund secret. Both are wiped from memory when dropped; `Debug` shows neither.
pub struct Secrets {
    network: Network,
    account: AccountSecret,
    refund: Zeroizing<[u8; 32]>,
    refund_key: XOnlyPublicKey,
}

impl Secrets {
    /// Fresh secrets from the operating system's randomness.
    pub fn generate(network: Network) -> Self {
        let account = AccountSecret::generate(&mut OsRng);
        loop {
            let mut refund = Zeroizing::new([0; 32]);
            OsRng.fill_bytes(refund.as_mut_slice());
            // One in 2^128 tries is no secp256k1 scalar.
            if let Some(refund_key) = refund_public(&refund) {
                return Self {
                    network,
                    account,
                    refund,
                    refund_key,
                };
            }
        }
    }

    /// The network that the keys are for.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The account's secret.
    pub fn account(&self) -> &AccountSecret {
        &self.account
    }

    /// The refund key's public half.
    pub fn refund_key(&self) -> XOnlyPublicKey {
        self.refund_key
    }

    /// Runs `use_key` with the refund key pair, and wipes the pair afterwards.
    pub(crate) fn with_refund_keypair<T>(&self, use_key: impl FnOnce(&Keypair) -> T) -> Option<T> {
        let mut pair =
            Keypair::from_seckey_slice(&Secp256k1::new(), self.refund.as_slice()).ok()?;
        let result = use_key(&pair);
        pair.non_secure_erase();
        Some(result)
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity {
            network: self.network,
            account: self.account.public().to_address(self.network),
        }
    }

    fn to_plaintext(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(PLAINTEXT_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.network.magic().to_bytes());
        bytes.extend_from_slice(self.account.to_bytes().as_slice());
        bytes.extend_from_slice(self.refund.as_slice());
        bytes
    }

    fn from_plaintext(bytes: &[u8]) -> Result<Self, &'static str> {
        let (&[version], rest) = bytes.split_first_chunk::<1>().ok_or("empty")?;
        if version != VERSION {
            return Err("unknown version");
        }
        let (magic, rest) = rest.split_first_chunk::<4>().ok_or("too short")?;
        let network = Network::from_magic(Magic::from_bytes(*magic)).ok_or("unknown network")?;
        let (account, rest) = rest.split_first_chunk::<32>().ok_or("too short")?;
        let account = AccountSecret::from_bytes(account).map_err(|_| "bad account secret")?;
        let refund: &[u8; 32] = rest.try_into().map_err(|_| "wrong length")?;
        let refund = Zeroizing::new(*refund);
        let refund_key = refund_public(&refund).ok_or("bad refund secret")?;
        Ok(Self {
            network,
            account,
            refund,
            refund_key,
        })
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets(of {})", self.account.public())
    }
}

fn refund_public(secret: &[u8; 32]) -> Option<XOnlyPublicKey> {
    let mut secret = SecretKey::from_slice(secret).ok()?;
    let (key, _) = secret.x_only_public_key(&Secp256k1::new());
    secret.non_secure_erase();
    Some(key)
}

/// Seals `secrets` into a new key file.
///
/// # Errors
/// [`KeyFileError::Exists`] when there is one.
pub(crate) fn write_new(
    folder: &Folder,
    secrets: &Secrets,
    passphrase: &str,
) -> Result<(), KeyFileError> {
    if passphrase.is_empty() {
        return Err(KeyFileError::EmptyPassphrase);
    }
    let path = folder.path().join(KEY_FILE);
    if path.exists() {
        return Err(KeyFileError::Exists(path));
    }
    let sealed =
        seal::seal(&secrets.to_plaintext(), passphrase, PURPOSE).map_err(KeyFileError::Seal)?;
    Ok(folder.write_new(KEY_FILE, &sealed)?)
}

/// Opens the folder's key file.
pub(crate) fn read(folder: &Folder, passphrase: &str) -> Result<Secrets, KeyFileError> {
    let path = folder.path().join(KEY_FILE);
    let sealed = folder.read_bytes(KEY_FILE)?;
    let plaintext = match seal::open(&sealed, passphrase, PURPOSE) {
        Ok(plaintext) => plaintext,
        Err(SealError::WrongPassphrase) => return Err(KeyFileError::WrongPassphrase(path)),
        Err(SealError::Truncated) => return Err(KeyFileError::Truncated(path)),
        Err(source) => return Err(KeyFileError::Unusable { path, source }),
    };
    Secrets::from_plaintext(&plaintext).map_err(|reason| KeyFileError::Content { path, reason })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Wallet;

    fn key_file(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("w").join(KEY_FILE)
    }

    fn created() -> (tempfile::TempDir, Wallet) {
        let dir = tempfile::tempdir().unwrap();
        let wallet = Wallet::create(dir.path().join("w"), "pass", Network::Regtest).unwrap();
        (dir, wallet)
    }

    #[test]
    fn a_key_file_opens_to_the_keys_that_it_was_made_from() {
        let (dir, wallet) = created();
        let again = Wallet::open(dir.path().join("w"), "pass").unwrap();
        assert_eq!(again.address(), wallet.address());
        assert_eq!(again.refund_key(), wallet.refund_key());
        assert_eq!(again.network(), Network::Regtest);
        let signing = again
            .secrets
            .with_refund_keypair(|pair| pair.x_only_public_key().0);
        assert_eq!(signing, Some(wallet.refund_key()));
        let identity = again.folder().identity().unwrap();
        assert_eq!(identity.account, wallet.address());
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_a_truncated_and_a_damaged_file() {
        let (dir, _) = created();
        let folder = dir.path().join("w");
        let error = Wallet::open(&folder, "Pass").unwrap_err();
        assert!(matches!(error, KeyFileError::WrongPassphrase(_)), "{error}");

        let whole = fs::read(key_file(&dir)).unwrap();
        for keep in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
            fs::write(key_file(&dir), &whole[..keep]).unwrap();
            let error = Wallet::open(&folder, "pass").unwrap_err();
            assert!(
                matches!(error, KeyFileError::Truncated(_)),
                "{keep}: {error}"
            );
        }
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        fs::write(key_file(&dir), &damaged).unwrap();
        let error = Wallet::open(&folder, "pass").unwrap_err();
        assert!(matches!(error, KeyFileError::Unusable { .. }), "{error}");
        fs::write(key_file(&dir), &whole).unwrap();
        Wallet::open(&folder, "pass").unwrap();
    }

    #[test]
    fn a_key_file_is_never_overwritten() {
        let (dir, wallet) = created();
        let before = fs::read(key_file(&dir)).unwrap();
        let error = Wallet::create(dir.path().join("w"), "other", Network::Regtest).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists(_)), "{error}");
        // Nor by a race that the first look does not see.
        let error = wallet.folder().write_new(KEY_FILE, b"x").unwrap_err();
        assert!(matches!(error, FolderError::Exists(_)), "{error}");
        assert_eq!(fs::read(key_file(&dir)).unwrap(), before);
    }

    #[test]
    fn an_empty_passphrase_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = Wallet::create(dir.path().join("w"), "", Network::Regtest).unwrap_err();
        assert!(matches!(error, KeyFileError::EmptyPassphrase));
        assert!(!key_file(&dir).exists());
    }

    #[cfg(unix)]
    #[test]
    fn files_that_others_can_read_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, _) = created();
        let folder = dir.path().join("w");
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&key_file(&dir)), 0o600);
        for (path, open, shut) in [
            (key_file(&dir), 0o640, 0o600),
            (folder.clone(), 0o750, 0o700),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let error = Wallet::open(&folder, "pass").unwrap_err();
            assert!(
                matches!(error, KeyFileError::Folder(FolderError::Permissions { .. })),
                "{error}"
            );
            fs::set_permissions(&path, fs::Permissions::from_mode(shut)).unwrap();
        }
        Wallet::open(&folder, "pass").unwrap();
    }

    #[test]
    fn a_key_file_of_another_purpose_or_content_is_refused() {
        let (dir, wallet) = created();
        let folder = dir.path().join("w");
        let write = |plaintext: &[u8], purpose: &str| {
            let sealed = seal::seal_at(seal::Cost::Fast, plaintext, "pass", purpose).unwrap();
            fs::write(key_file(&dir), sealed).unwrap();
            Wallet::open(&folder, "pass").unwrap_err()
        };
        let good = wallet.secrets.to_plaintext();
        let error = write(&good, "key share");
        assert!(matches!(error, KeyFileError::Unusable { .. }), "{error}");
        let mut other_version = good.to_vec();
        other_version[0] = 9;
        let mut zero_secret = good.to_vec();
        zero_secret[37..].fill(0);
        for bad in [&other_version, &zero_secret, &good[..68].to_vec()] {
            let error = write(bad, PURPOSE);
            assert!(matches!(error, KeyFileError::Content { .. }), "{error}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secrets = Secrets::generate(Network::Regtest);
        let text = format!("{secrets:?}");
        assert!(!text.contains(&hex::encode(secrets.refund.as_slice())));
        assert!(!text.contains(&hex::encode(secrets.account.to_bytes().as_slice())));
    }
}
