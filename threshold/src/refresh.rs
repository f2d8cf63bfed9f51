//! Refresh: new shares for the same key, after which old and new shares do not combine.
//!
//! ```text
//!  all n, each with its share of epoch e ── dkg::Machine over polynomials that are zero at 0 ──► shares of a later epoch
//!                                           (same messages, echoes, confirmations and blame)      GROUP as before
//! ```
//!
//! A share that was stolen, or lies in an old backup, is of no use afterwards: t shares of one epoch are
//! needed. What no refresh can undo: t - 1 operators that are bad while it runs know by how much every share
//! changed (t - 1 points and the zero determine each polynomial), so to them an old share of one more
//! operator is worth a new one. That is the t - 1 that the scheme bears in any epoch (Herzberg et al., 1995,
//! section 2).

use crate::dkg::{Ceremony, CeremonyError, Machine, Scheme, Seed};
use crate::{KeyShare, hash};

/// The refresh of `share` to `epoch`, as all n take part in it. The group's key, epoch, transcript and verifying
/// shares are bound into it with `context`, so that no message of key generation, or of another refresh, fits.
///
/// # Errors
/// [`CeremonyError::Epoch`] unless `epoch` comes after the share's.
pub fn ceremony(
    share: &KeyShare,
    epoch: u32,
    context: &[u8; 32],
) -> Result<Ceremony, CeremonyError> {
    let group = share.group();
    if epoch <= group.epoch() {
        let own = group.epoch();
        return Err(CeremonyError::Epoch { epoch, own });
    }
    Ok(Ceremony {
        me: share.signer(),
        signers: group.signers().collect(),
        threshold: group.threshold(),
        context: hash::tagged(
            "drawbridge/refresh",
            [&group.digest()[..], &epoch.to_be_bytes(), context],
        ),
    })
}

/// This participant's side of it, started or resumed: the same share, epoch, context and seed make the same
/// messages.
///
/// # Errors
/// [`CeremonyError`] if there can be no such refresh.
pub fn machine(
    share: &KeyShare,
    epoch: u32,
    context: &[u8; 32],
    seed: &Seed,
) -> Result<Machine, CeremonyError> {
    let ceremony = ceremony(share, epoch, context)?;
    Machine::start(ceremony, Scheme::refresh(share, epoch), seed)
}
