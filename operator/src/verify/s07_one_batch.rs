//! S7: once a share is out for a batch, another candidate for its sequence number is signed only if it is the same
//! batch with a higher fee; or a different batch once the first can no longer confirm, or has stayed unconfirmed for
//! the replacement delay.
//!
//! The rule itself is `protocol::signer::judge`. It is asked here, so that a coordinator learns at its proposal that it
//! has to wait, and again by the signing machine at the sign request, because a promise may have been given in
//! between.

use protocol::{
    message::{Refusal, Rule},
    signer,
};

use super::{Evidence, Standing};

pub(super) fn check(evidence: &Evidence, standing: &Standing) -> Result<(), Refusal> {
    // A promise names the body by its hash: one of another body would promise nothing.
    if evidence.body.hash() != evidence.candidate.body {
        return Err(Refusal::new(
            Rule::S7,
            "the candidate names another body by its hash",
        ));
    }
    signer::judge(
        standing.promise.as_ref(),
        &evidence.candidate,
        evidence.body.batch(),
        standing.height,
        evidence.vault.parameters().replacement_delay.into(),
    )
    .map(|_| ())
}

/// Whether this operator has signed this batch, or this transaction, before, whoever has proved it: the candidate can only
/// be a fee bump of it, or the same again. One for less, once the promise binds no longer, is a promise of its own.
pub(super) fn is_bump(evidence: &Evidence, standing: &Standing) -> bool {
    let Some(promise) = &standing.promise else {
        return false;
    };
    let candidate = &evidence.candidate;
    if promise.txid == candidate.txid {
        return true;
    }
    let delay = u32::from(evidence.vault.parameters().replacement_delay);
    let binds = standing.height.saturating_sub(promise.height) < delay;
    promise.batch == evidence.body.batch() && (binds || candidate.fee > promise.fee)
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;
    use protocol::{
        batch::{BatchHash, BodyHash},
        signer::Promise,
    };

    use super::*;
    use crate::verify::fixture::{self, Users};

    fn promised(evidence: &Evidence) -> Promise {
        Promise {
            sequence: evidence.candidate.sequence,
            parent: evidence.candidate.parent,
            batch: evidence.body.batch(),
            body: evidence.candidate.body,
            fee: evidence.candidate.fee,
            txid: evidence.candidate.txid,
            height: evidence.standing.height,
        }
    }

    #[test]
    fn another_batch_waits_for_the_replacement_delay() {
        let mut evidence = fixture::without_proofs(&Users::new());
        check(&evidence, &evidence.standing).unwrap();
        let mut promise = promised(&evidence);
        promise.batch = BatchHash([9; 32]);
        promise.txid = evidence.head.outpoint.txid;
        evidence.standing.promise = Some(promise);
        let refusal = check(&evidence, &evidence.standing).unwrap_err();
        assert_eq!(refusal.rule, Rule::S7);
        assert!(refusal.operations.is_empty());
        assert!(!is_bump(&evidence, &evidence.standing));
        let delay = evidence.vault.parameters().replacement_delay;
        evidence.standing.height += u32::from(delay);
        check(&evidence, &evidence.standing).unwrap();
    }

    #[test]
    fn a_batch_under_other_proofs_is_no_other_batch() {
        let mut evidence = fixture::without_proofs(&Users::new());
        let mut promise = promised(&evidence);
        promise.body = BodyHash([9; 32]);
        evidence.standing.promise = Some(promise.clone());
        check(&evidence, &evidence.standing).unwrap();
        assert!(is_bump(&evidence, &evidence.standing));
        // Nor is a higher fee for it, however late; for less it is, once the promise binds no longer.
        promise.txid = evidence.head.outpoint.txid;
        promise.fee -= Amount::ONE_SAT;
        let delay = u32::from(evidence.vault.parameters().replacement_delay);
        for (more, waited, is_still) in [(0, 0, true), (0, delay, true), (2, delay, false)] {
            let mut standing = evidence.standing.clone();
            standing.height += waited;
            promise.fee += Amount::from_sat(more);
            standing.promise = Some(promise.clone());
            check(&evidence, &standing).unwrap();
            assert_eq!(is_bump(&evidence, &standing), is_still);
        }
    }

    #[test]
    fn a_body_under_another_ones_name_is_refused() {
        let mut evidence = fixture::without_proofs(&Users::new());
        evidence.candidate.body = BodyHash([9; 32]);
        let refusal = check(&evidence, &evidence.standing).unwrap_err();
        assert_eq!(refusal.rule, Rule::S7);
        assert!(refusal.reason.contains("another body"));
    }

    #[test]
    fn the_same_batch_again_is_a_bump_if_it_pays_more() {
        let mut evidence = fixture::without_proofs(&Users::new());
        let mut promise = promised(&evidence);
        evidence.standing.promise = Some(promise.clone());
        check(&evidence, &evidence.standing).unwrap();
        assert!(is_bump(&evidence, &evidence.standing));
        promise.txid = evidence.head.outpoint.txid;
        evidence.standing.promise = Some(promise.clone());
        let refusal = check(&evidence, &evidence.standing).unwrap_err();
        assert_eq!(refusal.rule, Rule::S7);
        promise.fee -= Amount::ONE_SAT;
        evidence.standing.promise = Some(promise);
        check(&evidence, &evidence.standing).unwrap();
    }
}
