//! The operator's machine: S7, S8, S9 and S14, without keys or network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use ledger::{SequenceNumber, VaultId};
use protocol::{
    batch::{BatchHash, BodyHash, Candidate},
    epoch::EpochClaim,
    identity::PeerKey,
    message::{Refusal, Rule, SessionId, Subject},
    signer::{
        Effect, Input, MAX_ANSWERS, MAX_SESSIONS, Promise, Quarantine, RECEIPT_WAIT_MS, Signable,
        State, judge,
    },
    transaction::{Commitment, Treasury},
};

const COORDINATOR: PeerKey = PeerKey([1; 32]);
const PEER: PeerKey = PeerKey([2; 32]);

fn outpoint(byte: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([byte; 32]), 0)
}

fn head() -> Treasury {
    let commitment = Commitment {
        sequence: SequenceNumber(4),
        supply: Amount::ZERO,
        digest: [0; 32],
    };
    Treasury {
        outpoint: outpoint(4),
        value: Amount::from_sat(1_000),
        commitment,
    }
}

fn candidate(body: u8, fee: u64) -> Candidate {
    Candidate {
        vault: VaultId([0; 32]),
        sequence: SequenceNumber(5),
        parent: outpoint(4),
        body: BodyHash([body; 32]),
        top_ups: Vec::new(),
        fee: Amount::from_sat(fee),
        txid: Txid::from_byte_array([body ^ u8::try_from(fee % 251).unwrap(); 32]),
    }
}

fn state() -> State {
    let mut state = State::default();
    state.replacement_delay = 12;
    state
        .step(
            0,
            Input::Chain {
                head: Some(head()),
                height: 100,
            },
        )
        .unwrap();
    state
}

/// The batch of [`candidate`]: one a body.
fn batch(candidate: &Candidate) -> BatchHash {
    BatchHash(candidate.body.0)
}

fn verified(state: &State, id: SessionId) -> Input {
    let session = state.session(&id).unwrap();
    let batch = match &session.subject {
        Subject::Batch(candidate) => Some(batch(candidate)),
        Subject::Genesis(_) | Subject::Epoch(_) => None,
    };
    Input::Verified { session: id, batch }
}

fn accepted(state: &mut State, subject: &Subject) {
    let id = subject.session(&COORDINATOR);
    state
        .step(
            0,
            Input::Proposed {
                from: COORDINATOR,
                subject: subject.clone(),
            },
        )
        .unwrap();
    state.step(0, verified(state, id)).unwrap();
    state
        .step(
            0,
            Input::Stored {
                session: id,
                reachable: BTreeSet::new(),
            },
        )
        .unwrap();
}

#[test]
fn a_share_waits_for_verification_storage_and_receipts() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    let sign = Input::SignRequested {
        from: COORDINATOR,
        session: id,
        epoch: 0,
        attempt: 1,
    };
    assert_eq!(state.step(0, sign.clone()).unwrap_err().rule, Rule::S9);
    state
        .step(
            0,
            Input::Proposed {
                from: COORDINATOR,
                subject,
            },
        )
        .unwrap();
    assert_eq!(state.step(0, sign.clone()).unwrap_err().rule, Rule::S8);
    state.step(0, verified(&state, id)).unwrap();
    let reachable = BTreeSet::from([PEER]);
    let effects = state
        .step(
            0,
            Input::Stored {
                session: id,
                reachable: reachable.clone(),
            },
        )
        .unwrap();
    assert_eq!(effects, [Effect::PassOn(id, reachable)]);
    assert_eq!(state.step(0, sign.clone()).unwrap_err().rule, Rule::S8);
    assert!(
        state
            .step(RECEIPT_WAIT_MS - 1, Input::Tick)
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        state.step(1, Input::Receipt(id, PEER)).unwrap(),
        [Effect::Accept(id, COORDINATOR)]
    );
    assert_eq!(state.step(1, sign).unwrap().len(), 1);
}

#[test]
fn a_refused_proposal_is_judged_anew_when_it_is_proposed_again() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    let proposed = Input::Proposed {
        from: COORDINATOR,
        subject: subject.clone(),
    };
    let refusal = Refusal::new(Rule::S6, "paused");
    for _ in 0..3 {
        let effects = state.step(0, proposed.clone()).unwrap();
        assert_eq!(effects, [Effect::Verify(id, COORDINATOR, subject.clone())]);
        let refused = Input::Refused(id, refusal.clone());
        let effects = state.step(0, refused).unwrap();
        assert_eq!(effects, [Effect::Refuse(id, COORDINATOR, refusal.clone())]);
    }
    // The same after it was accepted, when it is refused before a share is out.
    accepted(&mut state, &subject);
    let refused = Input::Refused(id, refusal.clone());
    let effects = state.step(0, refused).unwrap();
    assert_eq!(effects, [Effect::Refuse(id, COORDINATOR, refusal)]);
    let sign = Input::SignRequested {
        from: COORDINATOR,
        session: id,
        epoch: 0,
        attempt: 1,
    };
    assert_eq!(state.step(0, sign).unwrap_err().rule, Rule::S9);
    let effects = state.step(0, proposed).unwrap();
    assert_eq!(effects, [Effect::Verify(id, COORDINATOR, subject)]);
}

#[test]
fn silence_of_the_others_ends_the_wait_for_receipts() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    state
        .step(
            0,
            Input::Proposed {
                from: COORDINATOR,
                subject,
            },
        )
        .unwrap();
    state.step(0, verified(&state, id)).unwrap();
    state
        .step(
            0,
            Input::Stored {
                session: id,
                reachable: BTreeSet::from([PEER]),
            },
        )
        .unwrap();
    assert_eq!(
        state.step(RECEIPT_WAIT_MS, Input::Tick).unwrap(),
        [Effect::Accept(id, COORDINATOR)]
    );
}

#[test]
fn sign_requests_belong_to_their_coordinator_and_only_go_up_between_proposals() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    accepted(&mut state, &subject);
    let ask = |from, attempt| Input::SignRequested {
        from,
        session: id,
        epoch: 0,
        attempt,
    };
    assert_eq!(state.step(0, ask(PEER, 1)).unwrap_err().rule, Rule::S12);
    for attempt in 1..=MAX_ANSWERS {
        state.step(0, ask(COORDINATOR, attempt)).unwrap();
    }
    let before = state.clone();
    for attempt in [0, 1, MAX_ANSWERS, MAX_ANSWERS + 1, u32::MAX] {
        let refusal = state.step(0, ask(COORDINATOR, attempt)).unwrap_err();
        assert_eq!(refusal.rule, Rule::S9);
    }
    assert_eq!(state, before, "a refusal changes nothing");
    state
        .step(
            0,
            Input::Proposed {
                from: COORDINATOR,
                subject,
            },
        )
        .unwrap();
    state.step(0, ask(COORDINATOR, 1)).unwrap();
}

#[test]
fn a_coordinator_that_has_restarted_begins_its_attempts_anew() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    accepted(&mut state, &subject);
    let ask = |attempt| Input::SignRequested {
        from: COORDINATOR,
        session: id,
        epoch: 0,
        attempt,
    };
    for attempt in 1..5 {
        state.step(0, ask(attempt)).unwrap();
    }
    let proposed = Input::Proposed {
        from: COORDINATOR,
        subject,
    };
    assert_eq!(
        state.step(0, proposed).unwrap(),
        [Effect::Accept(id, COORDINATOR)]
    );
    assert!(matches!(
        state.step(0, ask(1)).unwrap().as_slice(),
        [Effect::PromiseAndSign(_)]
    ));
}

#[test]
fn a_coordinator_that_proposes_much_pushes_out_its_own_sessions_only() {
    let mut state = state();
    let propose = |state: &mut State, now, from, fee| {
        let subject = Subject::Batch(candidate(1, fee));
        let id = subject.session(&from);
        state.step(now, Input::Proposed { from, subject }).unwrap();
        id
    };
    // The oldest of all is somebody else's.
    let other = propose(&mut state, 0, PEER, 1);
    let most = u64::try_from(MAX_SESSIONS).unwrap();
    let flood: Vec<_> = (1..=2 * most)
        .map(|n| propose(&mut state, n, COORDINATOR, n))
        .collect();
    assert_eq!(state.sessions(), MAX_SESSIONS);
    assert!(state.session(&other).is_some());
    assert!(state.session(&flood[0]).is_none());
    let late = propose(&mut state, 3 * most, PEER, 2);
    assert!(state.session(&other).is_some() && state.session(&late).is_some());
}

#[test]
fn the_digest_shows_a_promise_and_no_refusal() {
    let mut state = state();
    let before = state.digest();
    let subject = Subject::Batch(candidate(1, 10));
    let mut late = candidate(2, 10);
    late.sequence = SequenceNumber(9);
    let refused = Input::Proposed {
        from: COORDINATOR,
        subject: Subject::Batch(late),
    };
    state.step(0, refused).unwrap_err();
    accepted(&mut state, &subject);
    assert_eq!(state.digest(), before);
    let request = Input::SignRequested {
        from: COORDINATOR,
        session: subject.session(&COORDINATOR),
        epoch: 0,
        attempt: 1,
    };
    state.step(0, request).unwrap();
    assert_ne!(state.digest(), before);
}

#[test]
fn only_the_next_batch_on_the_latest_treasury_is_looked_at() {
    let mut state = state();
    let propose = |candidate| Input::Proposed {
        from: COORDINATOR,
        subject: Subject::Batch(candidate),
    };
    let old = Candidate {
        sequence: SequenceNumber(4),
        ..candidate(1, 10)
    };
    let future = Candidate {
        sequence: SequenceNumber(6),
        ..candidate(1, 10)
    };
    let elsewhere = Candidate {
        parent: outpoint(3),
        ..candidate(1, 10)
    };
    assert_eq!(state.step(0, propose(old)).unwrap_err().rule, Rule::S4);
    assert_eq!(state.step(0, propose(future)).unwrap_err().rule, Rule::S4);
    assert_eq!(
        state.step(0, propose(elsewhere)).unwrap_err().rule,
        Rule::S2
    );
    assert_eq!(state.sessions(), 0);
}

#[test]
fn another_batch_waits_and_the_same_batch_must_pay_more() {
    let judge = |promise: Option<&Promise>, candidate: &Candidate, height| {
        judge(promise, candidate, batch(candidate), height, 12)
    };
    let first = judge(None, &candidate(1, 10), 100).unwrap();
    assert_eq!(judge(Some(&first), &candidate(1, 10), 101).unwrap(), first);
    let bumped = judge(Some(&first), &candidate(1, 11), 101).unwrap();
    assert_eq!((bumped.fee, bumped.height), (Amount::from_sat(11), 100));
    assert_eq!(
        judge(Some(&bumped), &candidate(1, 10), 101)
            .unwrap_err()
            .rule,
        Rule::S7
    );
    assert_eq!(
        judge(Some(&first), &candidate(2, 99), 111)
            .unwrap_err()
            .rule,
        Rule::S7
    );
    assert!(judge(Some(&first), &candidate(2, 99), 112).is_ok());
}

#[test]
fn an_unknown_spend_of_the_treasury_stops_signing() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    accepted(&mut state, &subject);
    state.step(0, Input::Alarm("unknown spend".into())).unwrap();
    assert_eq!(state.sessions(), 0);
    let again = Input::Proposed {
        from: COORDINATOR,
        subject,
    };
    assert_eq!(state.step(0, again).unwrap_err().rule, Rule::S14);
}

#[test]
fn a_new_head_ends_sessions_for_the_old_one() {
    let mut state = state();
    accepted(&mut state, &Subject::Batch(candidate(1, 10)));
    let commitment = Commitment {
        sequence: SequenceNumber(5),
        ..head().commitment
    };
    let next = Treasury {
        outpoint: outpoint(5),
        commitment,
        ..head()
    };
    state
        .step(
            0,
            Input::Chain {
                head: Some(next),
                height: 101,
            },
        )
        .unwrap();
    assert_eq!(state.sessions(), 0);
}

#[test]
fn a_block_that_leaves_the_chain_has_batches_verified_anew() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    accepted(&mut state, &subject);
    state.step(0, chain(head(), 101)).unwrap();
    assert!(state.session(&id).is_some());
    state.step(0, chain(head(), 100)).unwrap();
    assert!(state.session(&id).is_none());
    accepted(&mut state, &subject);
    assert!(state.session(&id).is_some());
}

#[test]
fn a_batch_with_other_proofs_is_the_same_batch() {
    let first = candidate(1, 10);
    let name = batch(&first);
    let promise = judge(None, &first, name, 100, 12).unwrap();
    let proven_anew = Candidate {
        body: BodyHash([9; 32]),
        ..first
    };
    let again = judge(Some(&promise), &proven_anew, name, 101, 12).unwrap();
    assert_eq!((again.txid, again.height), (promise.txid, 100));
    assert_eq!(again.body, proven_anew.body, "what is kept with this share");
    // A higher fee for it is a replacement, whoever's proofs go with it; a lower one is not.
    for body in [1, 9] {
        let bump = Candidate {
            body: BodyHash([body; 32]),
            ..candidate(1, 11)
        };
        let bumped = judge(Some(&again), &bump, name, 101, 12).unwrap();
        assert_eq!((bumped.txid, bumped.height), (bump.txid, 100));
        let back = |height| judge(Some(&bumped), &proven_anew, name, height, 12);
        assert_eq!(back(111).unwrap_err().rule, Rule::S7);
        // As long as that, any other batch would be signed, and binds from then on.
        assert_eq!(back(112).unwrap().height, 112);
    }
}

#[test]
fn the_same_transaction_as_another_batch_changes_no_promise() {
    let first = candidate(1, 10);
    let promise = judge(None, &first, batch(&first), 100, 12).unwrap();
    let other = BatchHash([77; 32]);
    let again = judge(Some(&promise), &first, other, 101, 12);
    assert_eq!(again, Ok(promise.clone()));
    // So a higher fee for what was promised is a bump still, and for the other it is not.
    let bump = candidate(1, 11);
    assert!(judge(Some(&promise), &bump, batch(&bump), 102, 12).is_ok());
    assert!(judge(Some(&promise), &bump, other, 102, 12).is_err());
}

#[test]
fn a_promise_outlives_a_reorganisation() {
    let mut state = state();
    let first = Subject::Batch(candidate(1, 10));
    accepted(&mut state, &first);
    let ask = |subject: &Subject| Input::SignRequested {
        from: COORDINATOR,
        session: subject.session(&COORDINATOR),
        epoch: 0,
        attempt: 1,
    };
    state.step(0, ask(&first)).unwrap();
    // The batch confirms, the next one is signed, and then both leave the chain.
    let commitment = Commitment {
        sequence: SequenceNumber(5),
        ..head().commitment
    };
    let next = Treasury {
        outpoint: outpoint(5),
        commitment,
        ..head()
    };
    let chain = |head, height| Input::Chain {
        head: Some(head),
        height,
    };
    state.step(0, chain(next, 101)).unwrap();
    let second = Subject::Batch(Candidate {
        sequence: SequenceNumber(6),
        parent: outpoint(5),
        ..candidate(3, 10)
    });
    accepted(&mut state, &second);
    state.step(0, ask(&second)).unwrap();
    state.step(0, chain(head(), 100)).unwrap();
    let other = Subject::Batch(candidate(2, 99));
    accepted(&mut state, &other);
    assert_eq!(state.step(0, ask(&other)).unwrap_err().rule, Rule::S7);
}

fn chain(head: Treasury, height: u32) -> Input {
    Input::Chain {
        head: Some(head),
        height,
    }
}

/// The treasury after `head`.
fn next_head() -> Treasury {
    Treasury {
        outpoint: outpoint(5),
        commitment: Commitment {
            sequence: SequenceNumber(5),
            ..head().commitment
        },
        ..head()
    }
}

fn propose(state: &mut State, candidate: Candidate) -> Result<Vec<Effect>, Rule> {
    let proposed = Input::Proposed {
        from: COORDINATOR,
        subject: Subject::Batch(candidate),
    };
    state.step(0, proposed).map_err(|refusal| refusal.rule)
}

const LOST: Quarantine = Quarantine::Syncing { lost_ms: 5_000 };
/// The first tip that is younger than that.
const CAUGHT_UP: Input = Input::CaughtUp { tip_time: 6 };

#[test]
fn an_operator_without_its_promises_signs_nothing_before_it_has_caught_up() {
    let mut state = state();
    state.quarantine = Some(LOST);
    // However many batches and blocks go by: this is history being followed, not time passing.
    state.step(0, chain(next_head(), 5_000)).unwrap();
    let sixth = Candidate {
        sequence: SequenceNumber(6),
        parent: outpoint(5),
        ..candidate(1, 10)
    };
    assert_eq!(propose(&mut state, sixth), Err(Rule::S7));
    assert_eq!(state.sessions(), 0);
}

#[test]
fn a_tip_that_is_older_than_the_loss_does_not_begin_the_quarantine() {
    let mut state = state();
    state.quarantine = Some(LOST);
    // A stale node: it has caught up as far as it knows, and a batch may have been promised on a later treasury.
    for tip_time in [0, 4, 5] {
        let stale = Input::CaughtUp { tip_time };
        assert!(state.step(0, stale).unwrap().is_empty());
    }
    state.step(0, chain(head(), 1_000)).unwrap();
    assert_eq!(state.quarantine, Some(LOST));
    assert_eq!(propose(&mut state, candidate(1, 10)), Err(Rule::S7));
    // The loss and the tip are compared at their full resolution, and the delay counts from the younger tip.
    let began = Quarantine::Since {
        sequence: SequenceNumber(4),
        treasury: outpoint(4),
        height: 1_000,
    };
    let caught_up = state.step(0, CAUGHT_UP).unwrap();
    assert_eq!(caught_up, [Effect::Quarantined(began)]);
    assert_eq!(propose(&mut state, candidate(1, 10)), Err(Rule::S7));
}

#[test]
fn a_quarantine_lasts_for_the_replacement_delay() {
    let mut state = state();
    state.quarantine = Some(LOST);
    let began = Quarantine::Since {
        sequence: SequenceNumber(4),
        treasury: outpoint(4),
        height: 100,
    };
    let caught_up = state.step(0, CAUGHT_UP).unwrap();
    assert_eq!(caught_up, [Effect::Quarantined(began)]);
    state.step(0, chain(head(), 111)).unwrap();
    // Only the first time counts.
    assert!(state.step(0, CAUGHT_UP).unwrap().is_empty());
    let refusal = state
        .step(
            0,
            Input::Proposed {
                from: COORDINATOR,
                subject: Subject::Batch(candidate(1, 10)),
            },
        )
        .unwrap_err();
    assert_eq!(refusal.rule, Rule::S7);
    assert!(refusal.reason.contains("height 112"), "{refusal}");
    assert!(refusal.reason.contains("in 1 blocks"), "{refusal}");
    state.step(0, chain(head(), 112)).unwrap();
    assert_eq!(state.quarantined(), None);
    assert!(propose(&mut state, candidate(1, 10)).is_ok());
}

#[test]
fn a_quarantine_ends_with_its_treasury_and_returns_with_it() {
    let mut state = state();
    state.quarantine = Some(LOST);
    state.step(0, CAUGHT_UP).unwrap();
    state.step(0, chain(next_head(), 101)).unwrap();
    assert_eq!(state.quarantined(), None);
    let sixth = Candidate {
        sequence: SequenceNumber(6),
        parent: outpoint(5),
        ..candidate(1, 10)
    };
    assert!(propose(&mut state, sixth).is_ok());
    // A reorganisation brings the treasury back for which the lost promise was made.
    state.step(0, chain(head(), 101)).unwrap();
    assert_eq!(propose(&mut state, candidate(1, 10)), Err(Rule::S7));
}

#[test]
fn a_quarantine_is_asked_again_at_the_sign_request() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    accepted(&mut state, &subject);
    state.quarantine = Some(LOST);
    let ask = Input::SignRequested {
        from: COORDINATOR,
        session: subject.session(&COORDINATOR),
        epoch: 0,
        attempt: 1,
    };
    assert_eq!(state.step(0, ask).unwrap_err().rule, Rule::S7);
}

#[test]
fn an_operator_that_knows_its_promises_is_never_quarantined() {
    let mut state = state();
    assert!(state.step(0, CAUGHT_UP).unwrap().is_empty());
    assert_eq!(state.quarantine, None);
}

const CLAIM: EpochClaim = EpochClaim {
    vault: VaultId([0; 32]),
    epoch: 1,
    group: [7; 32],
};

fn epochs(own: u32, pending: &[(u32, [u8; 32])]) -> Input {
    Input::Epochs {
        own,
        pending: pending.iter().copied().collect(),
    }
}

fn sign(subject: &Subject, epoch: u32) -> Input {
    Input::SignRequested {
        from: COORDINATOR,
        session: subject.session(&COORDINATOR),
        epoch,
        attempt: 1,
    }
}

#[test]
fn an_epoch_is_signed_for_with_the_own_new_share_only() {
    let mut state = state();
    let subject = Subject::Epoch(CLAIM);
    let proposed = Input::Proposed {
        from: COORDINATOR,
        subject: subject.clone(),
    };
    // No new share; one of another group; one of another epoch; and an epoch that is over.
    for input in [
        epochs(0, &[]),
        epochs(0, &[(1, [8; 32])]),
        epochs(0, &[(2, [7; 32])]),
        epochs(1, &[(2, [7; 32])]),
    ] {
        state.step(0, input).unwrap();
        let before = state.clone();
        let refusal = state.step(0, proposed.clone()).unwrap_err();
        assert_eq!(refusal.rule, Rule::S12);
        assert_eq!(state, before);
    }
    state.step(0, epochs(0, &[(1, [7; 32])])).unwrap();
    accepted(&mut state, &subject);
    let refusal = state.step(0, sign(&subject, 0)).unwrap_err();
    assert_eq!(
        refusal.rule,
        Rule::S9,
        "an old share does not sign for new ones"
    );
    let effects = state.step(0, sign(&subject, 1)).unwrap();
    let [Effect::PromiseAndSign(grant)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(*grant.promise(), Signable::Epoch(CLAIM));
}

#[test]
fn an_epoch_is_not_certified_before_the_genesis_nor_after_an_alarm() {
    let proposed = Input::Proposed {
        from: COORDINATOR,
        subject: Subject::Epoch(CLAIM),
    };
    let mut young = State::default();
    young.step(0, epochs(0, &[(1, [7; 32])])).unwrap();
    assert_eq!(young.step(0, proposed.clone()).unwrap_err().rule, Rule::S2);
    let mut alarmed = state();
    alarmed.step(0, epochs(0, &[(1, [7; 32])])).unwrap();
    alarmed.step(0, Input::Alarm("theft".to_owned())).unwrap();
    assert_eq!(alarmed.step(0, proposed).unwrap_err().rule, Rule::S14);
}

#[test]
fn a_session_is_of_the_epoch_it_was_accepted_in() {
    let mut state = state();
    let batch = Subject::Batch(candidate(1, 10));
    let claim = Subject::Epoch(CLAIM);
    state.step(0, epochs(0, &[(1, [7; 32])])).unwrap();
    accepted(&mut state, &batch);
    accepted(&mut state, &claim);
    let refusal = state.step(0, sign(&batch, 1)).unwrap_err();
    assert_eq!(refusal.rule, Rule::S9);
    assert!(refusal.reason.contains("epoch 0, not 1"), "{refusal}");
    // Another finished refresh does not end a session of the old share.
    state
        .step(0, epochs(0, &[(1, [7; 32]), (2, [8; 32])]))
        .unwrap();
    assert_eq!(state.sessions(), 2);
    state.step(0, sign(&batch, 0)).unwrap();
    // The certificate of epoch 1 ends both: one share is deleted, the other needs no claim any more.
    state.step(0, epochs(1, &[(2, [8; 32])])).unwrap();
    assert_eq!(state.sessions(), 0);
    let refusal = state.step(0, sign(&batch, 0)).unwrap_err();
    assert_eq!(refusal.rule, Rule::S9);
    // Proposed again it is signed with the new share, and the promise of the old one still holds (S7).
    accepted(&mut state, &batch);
    state.step(0, sign(&batch, 1)).unwrap();
    let other = Subject::Batch(candidate(2, 99));
    accepted(&mut state, &other);
    assert_eq!(state.step(0, sign(&other, 1)).unwrap_err().rule, Rule::S7);
    assert_eq!(state.pending, BTreeMap::from([(2, [8; 32])]));
}

#[test]
fn another_batch_is_signed_at_once_if_the_first_can_no_longer_confirm() {
    let mut state = state();
    let sign = |subject: &Subject, attempt| Input::SignRequested {
        from: COORDINATOR,
        session: subject.session(&COORDINATOR),
        epoch: 0,
        attempt,
    };
    let first = candidate(1, 10);
    let (body, second) = (first.body, candidate(2, 10));
    let (first, second) = (Subject::Batch(first), Subject::Batch(second));
    accepted(&mut state, &first);
    state.step(0, sign(&first, 1)).unwrap();
    accepted(&mut state, &second);
    let refused = state.step(0, sign(&second, 1)).unwrap_err();
    assert_eq!(refused.rule, Rule::S7);
    // Of another body it says nothing, and it can be taken back.
    for lost in [Some(protocol::batch::BodyHash([77; 32])), Some(body), None] {
        state.step(0, Input::Lost(lost)).unwrap();
        let judged = state.clone().step(0, sign(&second, 1));
        assert_eq!(judged.is_ok(), lost == Some(body), "{lost:?}");
    }
}

fn pooled(subject: &Subject) -> Input {
    Input::SignPooled {
        from: COORDINATOR,
        subject: subject.clone(),
    }
}

#[test]
fn a_pooled_request_waits_for_verification_storage_and_receipts_too() {
    let mut state = state();
    let subject = Subject::Batch(candidate(1, 10));
    let id = subject.session(&COORDINATOR);
    let effects = state.step(0, pooled(&subject)).unwrap();
    assert_eq!(effects, [Effect::Verify(id, COORDINATOR, subject.clone())]);
    // The proposal that comes beside it, and the same once more, hurry nothing.
    let proposal = Input::Proposed {
        from: COORDINATOR,
        subject: subject.clone(),
    };
    assert!(state.step(0, proposal).unwrap().is_empty());
    assert!(state.step(0, pooled(&subject)).unwrap().is_empty());
    assert_eq!(state.step(0, sign(&subject, 0)).unwrap_err().rule, Rule::S8);
    state.step(0, verified(&state, id)).unwrap();
    let reachable = BTreeSet::from([PEER]);
    let stored = Input::Stored {
        session: id,
        reachable,
    };
    state.step(0, stored).unwrap();
    assert_eq!(state.step(0, sign(&subject, 0)).unwrap_err().rule, Rule::S8);
    assert_eq!(
        state.step(1, Input::Receipt(id, PEER)).unwrap(),
        [Effect::Pooled(id, COORDINATOR)]
    );
    let granted = state.step(1, sign(&subject, 0)).unwrap();
    assert!(matches!(granted[..], [Effect::PromiseAndSign(_)]));
    // From then on it is a session as any other.
    let again = Input::Proposed {
        from: COORDINATOR,
        subject,
    };
    assert_eq!(
        state.step(2, again).unwrap(),
        [Effect::Accept(id, COORDINATOR)]
    );
}

#[test]
fn a_pooled_request_gets_nothing_that_an_ordinary_one_does_not() {
    let mut state = state();
    let first = Subject::Batch(candidate(1, 10));
    accepted(&mut state, &first);
    state.step(0, sign(&first, 0)).unwrap();
    // The attempt has had its answer, and this request does not make attempts count anew.
    let id = first.session(&COORDINATOR);
    assert_eq!(
        state.step(0, pooled(&first)).unwrap(),
        [Effect::Pooled(id, COORDINATOR)]
    );
    assert_eq!(state.step(0, sign(&first, 0)).unwrap_err().rule, Rule::S9);
    // Another batch for the same treasury still has to wait (S7).
    let second = Subject::Batch(candidate(2, 10));
    state.step(0, pooled(&second)).unwrap();
    let id = second.session(&COORDINATOR);
    state.step(0, verified(&state, id)).unwrap();
    let stored = Input::Stored {
        session: id,
        reachable: BTreeSet::new(),
    };
    assert_eq!(
        state.step(0, stored).unwrap(),
        [Effect::Pooled(id, COORDINATOR)]
    );
    assert_eq!(state.step(0, sign(&second, 0)).unwrap_err().rule, Rule::S7);
    // Nor is anything looked at that would not be as a proposal.
    let mut elsewhere = candidate(3, 10);
    elsewhere.parent = outpoint(99);
    let elsewhere = Subject::Batch(elsewhere);
    assert_eq!(
        state.step(0, pooled(&elsewhere)).unwrap_err().rule,
        Rule::S2
    );
    state.step(0, Input::Alarm("gone".to_owned())).unwrap();
    assert_eq!(state.step(0, pooled(&first)).unwrap_err().rule, Rule::S14);
}
