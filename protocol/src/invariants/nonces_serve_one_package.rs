use std::collections::HashMap;

use threshold::{SignerId, sign::PackageHash};

use super::Violation;

/// S9 as seen from outside: which package each signer's nonces have served. `N` names nonces.
#[derive(Debug)]
pub struct Nonces<N>(HashMap<(SignerId, N), PackageHash>);

impl<N> Default for Nonces<N> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<N: std::hash::Hash + Eq + std::fmt::Debug> Nonces<N> {
    /// A share for `package`, made with these nonces, has left its signer.
    ///
    /// # Errors
    /// [`Violation`] if they have served another package.
    pub fn served(
        &mut self,
        signer: SignerId,
        nonces: N,
        package: PackageHash,
    ) -> Result<(), Violation> {
        let what = format!("{nonces:?} of {signer} serve a second package");
        match self.0.insert((signer, nonces), package) {
            Some(other) if other != package => Err(Violation {
                invariant: "nonces_serve_one_package",
                what,
            }),
            _ => Ok(()),
        }
    }
}
