//! Lies about a batch's place in the chain of treasuries (S2, S4), and batches that are none (S3).

use bitcoin::OutPoint;
use ledger::{Operation, SequenceNumber, VaultId};
use protocol::{
    message::{Rule, Subject},
    vault::Genesis,
};

use super::{
    lie::{Answered, Finding, Kind, Layer, Lie},
    stage::Stage,
};

const S2: &[Rule] = &[Rule::S2];
const S3: &[Rule] = &[Rule::S3];
const S4: &[Rule] = &[Rule::S4];
/// Another vault than any.
const ELSEWHERE: VaultId = VaultId([0x44; 32]);

const fn kind(
    name: &'static str,
    changed: &'static str,
    rules: &'static [Rule],
    says: &'static str,
) -> Kind {
    Kind::new(Layer::Sequence, name, changed, rules, says)
}

/// All that are proposals of a batch.
pub fn lies(stage: &Stage) -> Vec<Lie> {
    let honest = &stage.honest;
    let next = stage.standing.next().0;
    let at = |name, changed, number: u64| {
        Lie::new(kind(name, changed, S4, "does not follow"), honest)
            .draft(|draft| draft.sequence = SequenceNumber(number))
    };
    let lie = |name, changed, rules, says| Lie::new(kind(name, changed, rules, says), honest);
    let many = usize::from(stage.standing.vault.parameters().max_operations).saturating_add(1);
    let mut early = at(
        "number after next",
        "a batch one ahead of the operators' chain",
        next.saturating_add(1),
    );
    early.kind = early.kind.note(
        "not refused at once: the own node may be a block behind; it waits, bounded, and opens no session",
    );
    vec![
        at(
            "old number",
            "the sequence number of the latest confirmed batch",
            next.saturating_sub(1),
        ),
        at("number of the genesis", "sequence number 0", 0),
        at(
            "future number",
            "a sequence number far ahead",
            next.saturating_add(1_000),
        ),
        at("last number", "sequence number 2^64 - 1", u64::MAX),
        early,
        lie("empty batch", "a batch without operations", S3, "empty").draft(|draft| {
            draft.operations.clear();
            draft.terms.clear();
            draft.values.clear();
        }),
        lie(
            "body of another number",
            "a body with the sequence number after the candidate's",
            S3,
            "the body is batch",
        )
        .twist(|proposal| {
            proposal.with_body(|body| {
                body.sequence = SequenceNumber(body.sequence.0.saturating_add(1))
            });
        }),
        lie(
            "body of another vault",
            "a body that names another vault",
            S3,
            "another vault",
        )
        .twist(|proposal| proposal.with_body(|body| body.vault = ELSEWHERE)),
        lie(
            "candidate of another vault",
            "a candidate that names another vault",
            S3,
            "another vault",
        )
        .twist(|proposal| proposal.candidate.vault = ELSEWHERE),
        lie(
            "too many operations",
            "one operation more than the parameters allow",
            S3,
            "operations, more than",
        )
        .twist(move |proposal| {
            proposal.with_body(|body| {
                body.terms.clear();
                body.operations
                    .retain(|operation| !matches!(operation, Operation::Deposit { .. }));
                body.operations = body.operations.iter().cycle().take(many).cloned().collect();
            });
        }),
    ]
}

/// A vault has one genesis.
pub async fn geneses(stage: &Stage) -> Vec<Finding> {
    let own = stage.standing.vault.genesis_output().clone();
    let other = Genesis {
        outpoint: OutPoint::new(own.outpoint.txid, own.outpoint.vout.saturating_add(7)),
        ..own.clone()
    };
    let cases = [
        (
            kind(
                "genesis again",
                "the genesis certificate's claim, after the genesis",
                S2,
                "has its genesis",
            ),
            own,
        ),
        (
            kind(
                "another genesis",
                "a second genesis for the key",
                S2,
                "has its genesis",
            ),
            other,
        ),
    ];
    let mut findings = Vec::new();
    for (kind, genesis) in cases {
        let told: anyhow::Result<Vec<Answered>> =
            stage.put_subject(&kind, &Subject::Genesis(genesis)).await;
        findings.push(match told {
            Ok(answers) => Finding::new(kind, None, answers),
            Err(error) => Finding::failed(kind, None, &error),
        });
    }
    findings
}
