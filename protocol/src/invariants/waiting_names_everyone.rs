use std::collections::BTreeSet;

use super::Violation;
use crate::signing::{Scheme, Session};

/// A session that has not ended accounts for each of its signers, and waits for a reason: too few are ready,
/// or it holds back an attempt for better ones.
///
/// # Errors
/// [`Violation`].
pub fn waiting_names_everyone<S: Scheme>(session: &Session<S>) -> Result<(), Violation> {
    let Some(waiting) = session.waiting() else {
        return Ok(());
    };
    let violation = |what: String| {
        Err(Violation {
            invariant: "waiting_names_everyone",
            what,
        })
    };
    let named: BTreeSet<_> = waiting
        .ready
        .iter()
        .chain(waiting.pending.keys())
        .chain(&waiting.unheard)
        .chain(waiting.refused.keys())
        .chain(&waiting.blamed)
        .collect();
    if named.len() != session.signers().len() {
        return violation(format!(
            "{} of {} signers are accounted for",
            named.len(),
            session.signers().len()
        ));
    }
    if waiting.ready.len() >= session.needed() && !session.is_holding() {
        return violation(format!(
            "{} signers are ready and nothing starts",
            waiting.ready.len()
        ));
    }
    Ok(())
}
