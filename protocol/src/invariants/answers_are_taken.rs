use threshold::SignerId;

use super::Violation;
use crate::signing::{Scheme, Session};

/// Nobody is waited for in an attempt after its answer to that attempt was taken, however late it came.
///
/// # Errors
/// [`Violation`].
pub fn answers_are_taken<S: Scheme>(
    session: &Session<S>,
    from: SignerId,
    attempt: u32,
) -> Result<(), Violation> {
    if session.pending().get(&from) != Some(&attempt) {
        return Ok(());
    }
    Err(Violation {
        invariant: "answers_are_taken",
        what: format!("{from} has answered attempt {attempt} and is still waited for"),
    })
}
