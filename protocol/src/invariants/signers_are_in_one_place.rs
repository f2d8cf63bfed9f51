use super::Violation;
use crate::signing::{Scheme, Session};

/// Nobody is both ready and pending, nobody who was blamed is either, whoever is pending belongs to the
/// attempt it is pending in, and no more attempts are kept than can be under way.
///
/// # Errors
/// [`Violation`].
pub fn signers_are_in_one_place<S: Scheme>(session: &Session<S>) -> Result<(), Violation> {
    let violation = |what: String| {
        Err(Violation {
            invariant: "signers_are_in_one_place",
            what,
        })
    };
    for signer in session.ready() {
        if session.pending().contains_key(signer) {
            return violation(format!("{signer} is ready and pending"));
        }
    }
    for signer in session.blamed() {
        if session.pending().contains_key(signer) || session.ready().any(|ready| ready == signer) {
            return violation(format!("{signer} was blamed and takes part"));
        }
    }
    for (signer, attempt) in session.pending() {
        if !session.is_in_attempt(*signer, *attempt) {
            return violation(format!(
                "{signer} is pending in attempt {attempt}, which is gone"
            ));
        }
    }
    let most = session.signers().len().saturating_sub(session.needed());
    if session.open_attempts() > most.saturating_add(1) {
        return violation(format!("{} attempts are kept", session.open_attempts()));
    }
    Ok(())
}
