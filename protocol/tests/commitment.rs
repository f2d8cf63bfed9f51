//! The OP_RETURN commitment has one script.
#![allow(clippy::unwrap_used)]

use bitcoin::{Amount, ScriptBuf};
use ledger::SequenceNumber;
use protocol::transaction::Commitment;

fn commitment() -> Commitment {
    Commitment {
        sequence: SequenceNumber(7),
        supply: Amount::from_sat(123_456),
        digest: [0xab; 32],
    }
}

#[test]
fn a_commitment_reads_back() {
    assert_eq!(
        Commitment::parse(&commitment().script()),
        Some(commitment())
    );
}

#[test]
fn another_magic_version_or_length_is_no_commitment() {
    let script = commitment().script();
    // OP_RETURN, the length of the push, magic, version.
    for at in 0..7 {
        let mut other = script.to_bytes();
        *other.get_mut(at).unwrap() ^= 1;
        assert_eq!(Commitment::parse(&ScriptBuf::from_bytes(other)), None);
    }
}

#[test]
fn the_same_bytes_pushed_otherwise_are_no_commitment() {
    let script = commitment().script().to_bytes();
    let (op_return, rest) = script.split_first().unwrap();
    let (length, payload) = rest.split_first().unwrap();
    // OP_PUSHDATA1, OP_PUSHDATA2, OP_PUSHDATA4.
    for push in [
        vec![0x4c, *length],
        vec![0x4d, *length, 0],
        vec![0x4e, *length, 0, 0, 0],
    ] {
        let other = [&[*op_return], push.as_slice(), payload].concat();
        assert_eq!(Commitment::parse(&ScriptBuf::from_bytes(other)), None);
    }
}
