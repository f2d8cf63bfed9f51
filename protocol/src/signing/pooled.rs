//! A first attempt with commitments that were handed out ahead of time.

use std::collections::BTreeMap;

use threshold::SignerId;

use super::{Effect, Reject, Scheme, Session};

impl<S: Scheme> Session<S> {
    /// The entries of a pool count as ready, for this attempt only: in another one they would be asked for without the
    /// proposal. Signers of poor standing are left out, as there is nothing to wait for.
    pub(super) fn pooled(
        &mut self,
        mut entries: BTreeMap<SignerId, S::Commitments>,
    ) -> Result<Vec<Effect<S>>, Reject> {
        if self.started > 0 || self.ready().len() > 0 {
            return Err(Reject::Begun);
        }
        entries.retain(|signer, commitments| {
            self.admit(*signer).is_ok()
                && !self.refused.contains_key(signer)
                && !self.standing.is_poor(signer)
                && self.scheme.fits(commitments)
        });
        if entries.len() < self.needed {
            return Err(Reject::TooFew(entries.len(), self.needed));
        }
        for (signer, commitments) in entries {
            self.make_ready(signer, commitments);
        }
        let chosen = self.choose();
        let (attempt, commitments) = self.start(&chosen);
        self.ready.clear();
        self.pooled = Some(attempt);
        Ok(vec![Effect::Pooled {
            attempt,
            commitments,
        }])
    }
}
