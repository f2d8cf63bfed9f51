//! What the operators' refusals mean for a batch: whether it can still be signed, waits, or goes on without the
//! operations that were named.
//!
//! With n operators of which t sign, nothing is signed while n - t + 1 refuse, and nothing is left out before that: fewer
//! can't keep an operation out, whatever they say. Leaving operations out helps only if those who refuse without a name
//! are fewer than that.
//!
//! Nor does one refusal that names everything take everything out: as many refusals as may stand are set aside, those
//! that name most first, and of what they name only that stays out which somebody else names too.

use std::collections::{BTreeMap, BTreeSet};

use ledger::OperationId;
use protocol::{
    identity::PeerKey,
    message::{Refusal, Rule},
    roster::Roster,
};
use threshold::SignerId;

/// Longest reason kept with a request, in bytes.
const MAX_REASON_BYTES: usize = 600;

/// What to do with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weighed {
    /// Enough operators may still sign.
    Possible,
    /// Too many refuse for reasons that lie in no operation. They judge anew whenever it is proposed again.
    Wait {
        /// Who and why.
        reason: String,
        /// Whether another batch of the same operations could do better: with another fee, or other top-ups.
        reform: bool,
    },
    /// Go on without these.
    LeaveOut(BTreeMap<OperationId, LeftOut>),
}

/// An operation that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Who and why.
    pub reason: String,
    /// So many say that the ledger can never take it that one honest operator is among them.
    pub is_final: bool,
}

/// Weighs what was refused. `operations` are those of the batch.
pub fn weigh(
    roster: &Roster,
    refusals: &[(PeerKey, Refusal)],
    operations: &BTreeSet<OperationId>,
) -> Weighed {
    let enough = enough(roster);
    if refusals.len() < enough {
        return Weighed::Possible;
    }
    let mut named: BTreeMap<OperationId, Vec<&(PeerKey, Refusal)>> = BTreeMap::new();
    let mut unnamed = Vec::new();
    for entry in refusals {
        let ids: BTreeSet<_> = entry.1.operations.iter().collect();
        let ids: Vec<_> = ids
            .into_iter()
            .filter(|id| operations.contains(id))
            .collect();
        if ids.is_empty() {
            unnamed.push(entry);
        }
        for id in ids {
            named.entry(*id).or_default().push(entry);
        }
    }
    if unnamed.len() >= enough {
        let stay = unnamed.iter().filter(|(_, refusal)| stays(refusal.rule));
        return Weighed::Wait {
            reform: stay.count() < enough,
            reason: describe(roster, &unnamed),
        };
    }
    let heeded = heeded(
        refusals,
        enough.saturating_sub(1).saturating_sub(unnamed.len()),
    );
    named.retain(|id, by| by.len() > 1 || heeded.contains(id));
    // One honest operator among them: as many as can stop a batch, and more than may be bad.
    let all_wrong = enough.max(roster.threshold.into());
    let left_out = named.into_iter().map(|(id, by)| {
        let bad = by.iter().filter(|(_, refusal)| is_final(refusal.rule));
        let left_out = LeftOut {
            is_final: bad.count() >= all_wrong,
            reason: format!(
                "held by {} of the operators: {}",
                by.len(),
                describe(roster, &by)
            ),
        };
        (id, left_out)
    });
    Weighed::LeaveOut(left_out.collect())
}

/// So many operators can keep anything from being signed.
pub fn enough(roster: &Roster) -> usize {
    let needed = usize::from(roster.threshold);
    roster
        .operators
        .len()
        .saturating_sub(needed)
        .saturating_add(1)
}

/// Whether a batch formed anew can be signed though these may have given a share for the one before: whoever has refuses
/// another for long (S7). With enough of them that one may be signed yet.
pub fn others_suffice(roster: &Roster, promised: &BTreeSet<SignerId>) -> bool {
    let needed = usize::from(roster.threshold);
    let others = roster.operators.len().saturating_sub(promised.len());
    promised.len() < needed && others >= needed
}

/// What those name who are not set aside: `aside` refusals may stand and the batch is signed all the same.
fn heeded(refusals: &[(PeerKey, Refusal)], aside: usize) -> BTreeSet<OperationId> {
    let mut naming: Vec<&[OperationId]> = refusals
        .iter()
        .map(|(_, refusal)| refusal.operations.as_slice())
        .filter(|named| !named.is_empty())
        .collect();
    naming.sort_by_key(|named| std::cmp::Reverse(named.len()));
    naming.into_iter().skip(aside).flatten().copied().collect()
}

/// Rules that speak of the operation and the ledger, which are the same for every honest operator.
fn is_final(rule: Rule) -> bool {
    matches!(rule, Rule::S3 | Rule::S4)
}

/// Rules under which any other batch would be refused as well.
fn stays(rule: Rule) -> bool {
    matches!(rule, Rule::S6 | Rule::S7 | Rule::S12 | Rule::S14)
}

/// Who refuses and why; those who say the same together.
fn describe(roster: &Roster, refusals: &[&(PeerKey, Refusal)]) -> String {
    let mut said: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (by, refusal) in refusals {
        let member = roster.operators.iter().find(|member| member.key == *by);
        let name = member.map_or("an operator", |member| member.name.as_str());
        said.entry(refusal.to_string()).or_default().push(name);
    }
    let parts = said.into_iter().map(|(why, mut names)| {
        names.sort_unstable();
        format!("{}: {why}", names.join(", "))
    });
    let mut text = parts.collect::<Vec<_>>().join("; ");
    text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use protocol::roster::Member;

    use super::*;

    fn key(n: u8) -> PeerKey {
        PeerKey([n; 32])
    }

    fn id(n: u8) -> OperationId {
        OperationId([n; 32])
    }

    /// Three of five: three refusals are too many.
    pub(crate) fn roster() -> Roster {
        let member = |n: u8| Member {
            name: format!("operator-{n}"),
            key: key(n),
            founding_key: None,
            addresses: Vec::new(),
        };
        Roster {
            threshold: 3,
            operators: (1..=5).map(member).collect(),
            coordinators: Vec::new(),
            attestation: Default::default(),
        }
    }

    fn weigh_all(refusals: &[(u8, Rule, &[u8])]) -> Weighed {
        let refusals: Vec<_> = refusals
            .iter()
            .map(|(by, rule, ids)| {
                let ids = ids.iter().map(|n| id(*n));
                (key(*by), Refusal::new(*rule, "no").of_all(ids))
            })
            .collect();
        weigh(&roster(), &refusals, &(1..=9).map(id).collect())
    }

    fn left_out(weighed: Weighed) -> BTreeMap<OperationId, LeftOut> {
        match weighed {
            Weighed::LeaveOut(left_out) => left_out,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_is_formed_anew_only_if_those_who_have_promised_nothing_can_sign_it() {
        let promised = |count: u8| (1..=count).map(|n| SignerId::derive(&[n; 32])).collect();
        assert!(others_suffice(&roster(), &promised(0)));
        assert!(others_suffice(&roster(), &promised(2)));
        assert!(!others_suffice(&roster(), &promised(3)));
        // With enough to sign it as it is, however many others there are.
        let mut few = roster();
        few.threshold = 2;
        assert!(!others_suffice(&few, &promised(2)));
        assert!(others_suffice(&few, &promised(1)));
    }

    #[test]
    fn fewer_than_can_stop_a_batch_leave_nothing_out() {
        let two = [(1, Rule::S6, &[1_u8][..]), (2, Rule::S3, &[1])];
        assert_eq!(weigh_all(&two), Weighed::Possible);
        assert_eq!(weigh_all(&[]), Weighed::Possible);
    }

    #[test]
    fn enough_is_left_out_for_the_rest_to_be_signed() {
        let out = left_out(weigh_all(&[
            (1, Rule::S6, &[1]),
            (2, Rule::S6, &[1, 1, 2]),
            (3, Rule::S2, &[3]),
        ]));
        // Only the second would refuse the rest, and four are enough.
        assert_eq!(out.keys().copied().collect::<Vec<_>>(), [id(1), id(3)]);
        assert!(out[&id(1)].reason.contains("held by 2 of the operators"));
        assert!(
            out[&id(1)]
                .reason
                .contains("operator-1, operator-2: S6: no")
        );
        assert!(out.values().all(|out| !out.is_final));
    }

    #[test]
    fn a_liar_that_names_everything_takes_out_only_what_others_name_too() {
        let out = left_out(weigh_all(&[
            (1, Rule::S6, &[1, 2, 3, 4, 5, 6, 7]),
            (2, Rule::S6, &[4]),
            (3, Rule::S6, &[4]),
        ]));
        assert_eq!(out.keys().copied().collect::<Vec<_>>(), [id(4)]);
    }

    #[test]
    fn as_many_as_may_be_bad_refuse_nothing_for_good() {
        // Four of five: two can stop a batch, and three may be bad.
        let roster = Roster {
            threshold: 4,
            ..roster()
        };
        let all = (1..=9).map(id).collect();
        let refusal = |by| (key(by), Refusal::new(Rule::S3, "no").of(id(1)));
        let three = left_out(weigh(&roster, &[1, 2, 3].map(refusal), &all));
        assert!(!three[&id(1)].is_final);
        let four = left_out(weigh(&roster, &[1, 2, 3, 4].map(refusal), &all));
        assert!(four[&id(1)].is_final);
    }

    #[test]
    fn only_what_enough_operators_call_bad_for_the_ledger_is_refused_for_good() {
        let out = left_out(weigh_all(&[
            (1, Rule::S3, &[1, 2]),
            (2, Rule::S4, &[1, 2]),
            (3, Rule::S3, &[1]),
            (4, Rule::S6, &[2]),
        ]));
        assert!(out[&id(1)].is_final);
        assert!(!out[&id(2)].is_final, "a policy is nobody else's");
        let policies = left_out(weigh_all(&[
            (1, Rule::S6, &[1]),
            (2, Rule::S6, &[1]),
            (3, Rule::S6, &[1]),
        ]));
        assert!(!policies[&id(1)].is_final);
    }

    #[test]
    fn a_batch_waits_for_those_who_name_nothing_if_nothing_else_helps() {
        let paused = [
            (1, Rule::S6, &[][..]),
            (2, Rule::S6, &[]),
            (3, Rule::S7, &[]),
            (4, Rule::S6, &[1]),
        ];
        let Weighed::Wait { reason, reform } = weigh_all(&paused) else {
            panic!("it goes on")
        };
        assert!(
            reason.contains("operator-1, operator-2: S6: no"),
            "{reason}"
        );
        assert!(!reform, "any other batch would wait as well");

        // Two who name nothing leave three who can sign the rest.
        let mixed = [
            (1, Rule::S6, &[][..]),
            (2, Rule::S6, &[]),
            (4, Rule::S6, &[1]),
        ];
        assert_eq!(left_out(weigh_all(&mixed)).len(), 1);
    }

    #[test]
    fn names_of_other_operations_do_not_count() {
        let strange = [
            (1, Rule::S5, &[77_u8][..]),
            (2, Rule::S5, &[]),
            (3, Rule::S6, &[99]),
        ];
        let waits = weigh_all(&strange);
        assert!(matches!(waits, Weighed::Wait { reform: true, .. }));
    }
}
