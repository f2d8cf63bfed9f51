use super::Violation;
use crate::signing::{Scheme, Session};

/// At most n - t + 1 attempts (ROAST), and one more for each signer that has given up its place
/// in an attempt.
///
/// # Errors
/// [`Violation`].
pub fn attempts_are_bounded<S: Scheme>(session: &Session<S>) -> Result<(), Violation> {
    let failures = session.signers().len().saturating_sub(session.needed());
    let bound = u64::try_from(failures)
        .unwrap_or(u64::MAX)
        .saturating_add(u64::from(session.renewals()))
        .saturating_add(1);
    if u64::from(session.attempts()) <= bound {
        return Ok(());
    }
    Err(Violation {
        invariant: "attempts_are_bounded",
        what: format!(
            "{} attempts of {} of {} signers with {} renewals; the bound is {bound}",
            session.attempts(),
            session.needed(),
            session.signers().len(),
            session.renewals()
        ),
    })
}
