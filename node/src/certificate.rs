//! The certificates on disk: the genesis', never replaced, and that of the latest epoch of the shares.

use protocol::{epoch::EpochCertificate, vault::GenesisCertificate};
use storage::{Changes, CommitError, ReadError, Store, Table};

/// The certificate's table.
pub const CERTIFICATE: Table<(), GenesisCertificate> = Table::new("genesis_certificate", 1);

/// The table of the latest epoch's certificate.
pub const EPOCH: Table<(), EpochCertificate> = Table::new("epoch_certificate", 1);

/// The certificate, once there is one.
///
/// # Errors
/// A damaged database.
pub fn load(store: &Store) -> Result<Option<GenesisCertificate>, ReadError> {
    store.get(&CERTIFICATE, &())
}

/// Stores the certificate. The caller has checked it with `Vault::open`.
///
/// # Errors
/// A failed safety write: the caller stops (S11).
#[track_caller]
pub fn save(store: &Store, certificate: &GenesisCertificate) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&CERTIFICATE, &(), certificate);
    store.commit(changes)
}

/// The certificate of the latest epoch; `None` for shares of key generation.
///
/// # Errors
/// A damaged database.
pub fn load_epoch(store: &Store) -> Result<Option<EpochCertificate>, ReadError> {
    store.get(&EPOCH, &())
}

/// Stores an epoch's certificate. The caller has checked it with [`EpochCertificate::verify`], and that its epoch comes
/// after that of the one in the database.
///
/// # Errors
/// A failed safety write: the caller stops (S11).
#[track_caller]
pub fn save_epoch(store: &Store, certificate: &EpochCertificate) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&EPOCH, &(), certificate);
    store.commit(changes)
}
