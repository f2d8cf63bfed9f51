//! Messages at the edge: one encoding, and bounds that a sender can't exceed.
#![allow(clippy::unwrap_used)]

use protocol::message::{Answer, MAX_REASON_BYTES, MessageError, Refusal, Rule, decode, encode};

#[test]
fn a_refusal_beyond_its_bounds_is_no_message() {
    let honest = encode(&Answer::Refused(Refusal::new(
        Rule::S3,
        "x".repeat(MAX_REASON_BYTES),
    )));
    assert!(decode::<Answer>(&honest).is_ok());
    for reason in ["x".repeat(MAX_REASON_BYTES + 1), "\u{1b}[2J".to_owned()] {
        let hostile = Answer::Refused(Refusal {
            rule: Rule::S3,
            operations: Vec::new(),
            reason,
        });
        let error = decode::<Answer>(&encode(&hostile)).unwrap_err();
        assert_eq!(error, MessageError::Encoding);
    }
}

#[test]
fn an_own_refusal_is_cut_to_its_bounds() {
    let refusal = Refusal::new(Rule::S1, format!("a\nb{}", "é".repeat(MAX_REASON_BYTES)));
    assert!(refusal.reason.starts_with("a b"));
    assert!(refusal.reason.len() <= MAX_REASON_BYTES);
}
