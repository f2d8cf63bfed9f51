use std::collections::BTreeSet;

use threshold::SignerId;

use super::Violation;
use crate::signing::{Scheme, Session};

/// Whoever is blamed has sent a bad share.
///
/// # Errors
/// [`Violation`].
pub fn no_honest_signer_is_blamed<S: Scheme>(
    session: &Session<S>,
    honest: &BTreeSet<SignerId>,
) -> Result<(), Violation> {
    match session.blamed().intersection(honest).next() {
        None => Ok(()),
        Some(signer) => Err(Violation {
            invariant: "no_honest_signer_is_blamed",
            what: format!("{signer} is honest and was blamed"),
        }),
    }
}
