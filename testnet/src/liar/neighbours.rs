//! Lies that are caught today because a rule beside their own happens to stop them. They are refused, and nothing is
//! lost; but who changes that other rule should know that they lean on it.

use super::lie::{Kind, Layer};

const NOTES: [(Layer, &str, &str); 17] = [
    (
        Layer::Inputs,
        "doubled operation",
        "S3 sees the same operation id; S2 would see the same outpoint",
    ),
    (
        Layer::Inputs,
        "treasury as deposit",
        "S2 sees one outpoint twice; alone, its script would not be a deposit address's",
    ),
    (
        Layer::Inputs,
        "terms of another refund key",
        "S2 compares the address; that the refund key is free to choose is no rule's concern",
    ),
    (
        Layer::Inputs,
        "top-ups out of order",
        "S1 builds no such transaction; S2 does not ask for the order",
    ),
    (
        Layer::Outputs,
        "dust output",
        "S1: no operation pays it; S3 asks only about withdrawals",
    ),
    (
        Layer::Outputs,
        "non-standard output",
        "S1: no operation pays it; S3 asks only about withdrawals",
    ),
    (
        Layer::Fee,
        "fee beyond all money",
        "S1 builds no such transaction, so S5 is not asked",
    ),
    (
        Layer::Ledger,
        "dust payout",
        "S3; the replay of S4 would refuse it too, the circuit would not",
    ),
    (
        Layer::Ledger,
        "non-standard payout",
        "S3; the replay of S4 would refuse it too, the circuit would not",
    ),
    (
        Layer::Ledger,
        "expired operation",
        "S3; the replay of S4 would refuse it too, the circuit would not",
    ),
    (
        Layer::Ledger,
        "leaf out of turn",
        "the replay alone: an operator that leaves it out, as only an enclave build may, would sign this",
    ),
    (
        Layer::Ledger,
        "second leaf",
        "the replay alone: an operator that leaves it out, as only an enclave build may, would sign this",
    ),
    (
        Layer::Ledger,
        "payout without burn",
        "S1: the ledger is right; it is the transaction that pays too much",
    ),
    (
        Layer::Ledger,
        "two proofs for one chunk",
        "S4's digests, before the number of proofs is compared",
    ),
    (
        Layer::Ledger,
        "no proof",
        "S4's digests, before the number of proofs is compared",
    ),
    (
        Layer::Ledger,
        "non-canonical digest",
        "S4 compares bytes with those of the replay; nothing decodes it",
    ),
    (
        Layer::Sequence,
        "candidate of another vault",
        "S3 is the first to compare the vault; txid and proofs would not fit either",
    ),
];

/// The kind with its note, if it leans on another rule.
pub fn noted(kind: Kind) -> Kind {
    let found = NOTES
        .iter()
        .find(|(layer, name, _)| *layer == kind.layer && *name == kind.name);
    match found {
        Some((_, _, note)) if kind.note.is_empty() => kind.note(note),
        _ => kind,
    }
}
