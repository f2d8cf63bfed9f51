//! The genesis certificate on disk: one a database, never replaced.

use protocol::vault::GenesisCertificate;
use storage::{Changes, CommitError, ReadError, Store, Table};

/// The certificate's table.
pub const CERTIFICATE: Table<(), GenesisCertificate> = Table::new("genesis_certificate", 1);

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
pub fn save(store: &Store, certificate: &GenesisCertificate) -> Result<(), CommitError> {
    let mut changes = Changes::new();
    changes.put(&CERTIFICATE, &(), certificate);
    store.commit(changes)
}
