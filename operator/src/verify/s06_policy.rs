//! S6: the operator's own policy: limits on withdrawals in a batch and in a rolling window, the largest single one,
//! blocked scripts, confirmations of deposits by amount, approval of large withdrawals, rejected operations, pause.
//!
//! A refusal names every operation that stands in the way, so that a coordinator can leave them out and go on with the
//! rest at once. Only the pause names none.

use std::{cell::LazyCell, fmt};

use bitcoin::Amount;
use ledger::{Operation, OperationId};
use protocol::message::{Refusal, Rule};

use super::{Evidence, Standing};
use crate::{
    decisions::{Decisions, Verdict},
    policy::{Policy, Withdrawals},
};

/// Why an operation is not signed now. In the order in which they are named in a refusal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Objection {
    Rejected,
    Blocked,
    AboveLargest(Amount),
    Held(Amount),
    Young { confirmations: u32, needed: u32 },
    BatchLimit,
    WindowLimit(u32),
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected => f.write_str("rejected by this operator's administrator"),
            Self::Blocked => f.write_str("pays an output that this operator blocks"),
            Self::AboveLargest(largest) => {
                write!(f, "above this operator's largest withdrawal of {largest}")
            }
            Self::Held(above) => write!(
                f,
                "a withdrawal above {above} waits for this operator's approval"
            ),
            Self::Young {
                confirmations,
                needed,
            } => write!(
                f,
                "the deposit has {confirmations} of the {needed} confirmations that this operator asks for"
            ),
            Self::BatchLimit => {
                f.write_str("above this operator's limit on withdrawals in one batch")
            }
            Self::WindowLimit(blocks) => write!(
                f,
                "above this operator's limit on withdrawals within {blocks} blocks"
            ),
        }
    }
}

/// Sats and number of withdrawals, against two limits.
struct Room {
    sats: u64,
    count: u64,
    most_sats: Option<u64>,
    most_count: Option<u64>,
}

impl Room {
    /// Adds a withdrawal if it fits.
    fn take(&mut self, amount: Amount) -> bool {
        let sats = self.sats.saturating_add(amount.to_sat());
        let count = self.count.saturating_add(1);
        let fits = self.most_sats.is_none_or(|most| sats <= most)
            && self.most_count.is_none_or(|most| count <= most);
        if fits {
            (self.sats, self.count) = (sats, count);
        }
        fits
    }
}

pub(super) fn check_pause(decisions: &Decisions) -> Result<(), Refusal> {
    match decisions.pause() {
        None => Ok(()),
        Some(pause) => Err(Refusal::new(Rule::S6, pause.describe())),
    }
}

pub(super) fn check(evidence: &Evidence, standing: &Standing) -> Result<(), Refusal> {
    let objections = objections(evidence, standing);
    if objections.is_empty() {
        return Ok(());
    }
    let mut reasons: Vec<&Objection> = objections.iter().map(|(_, why)| why).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    let operations = objections.iter().map(|(id, _)| *id);
    Err(Refusal::new(Rule::S6, reasons.join("; ")).of_all(operations))
}

/// The operations that wait for approval.
pub(super) fn held(evidence: &Evidence, standing: &Standing) -> Vec<(OperationId, Operation)> {
    let body = &evidence.body;
    let held = |operation: &&Operation| {
        let id = operation.id(&body.vault);
        matches!(
            objection(
                evidence,
                standing,
                standing.decisions.verdict(&id),
                operation
            ),
            Some(Objection::Held(_))
        )
    };
    body.operations
        .iter()
        .filter(held)
        .map(|operation| (operation.id(&body.vault), operation.clone()))
        .collect()
}

fn objections(evidence: &Evidence, standing: &Standing) -> Vec<(OperationId, Objection)> {
    let body = &evidence.body;
    let policy: &Policy = &standing.policy;
    let limits: &Withdrawals = policy.withdrawals();
    let mut batch = Room {
        sats: 0,
        count: 0,
        most_sats: limits.batch_sat,
        most_count: limits.batch_count,
    };
    let mut window = Room {
        sats: standing.recent.withdrawn.to_sat(),
        count: standing.recent.withdrawals,
        most_sats: limits.window_sat,
        most_count: limits.window_count,
    };
    let mut found = Vec::new();
    for operation in &body.operations {
        // It costs some hashes: it is not computed where nothing was decided and nothing stands against anything.
        let id = LazyCell::new(|| operation.id(&body.vault));
        let verdict = if standing.decisions.decided().is_empty() {
            None
        } else {
            standing.decisions.verdict(&id)
        };
        let own = objection(evidence, standing, verdict, operation);
        // What is left out for a reason of its own takes no room from the others.
        let objection = own.or_else(|| match operation {
            Operation::Withdraw { amount, .. } if !batch.take(*amount) => {
                Some(Objection::BatchLimit)
            }
            Operation::Withdraw { amount, .. } if !window.take(*amount) => {
                Some(Objection::WindowLimit(policy.window_blocks()))
            }
            _ => None,
        });
        found.extend(objection.map(|objection| (*id, objection)));
    }
    found
}

/// What stands against an operation whatever else is in the batch.
fn objection(
    evidence: &Evidence,
    standing: &Standing,
    verdict: Option<Verdict>,
    operation: &Operation,
) -> Option<Objection> {
    let policy: &Policy = &standing.policy;
    if verdict == Some(Verdict::Rejected) {
        return Some(Objection::Rejected);
    }
    match operation {
        Operation::Transfer { .. } => None,
        Operation::Deposit { outpoint, .. } => {
            let output = evidence.outputs.get(outpoint)?;
            let needed = policy.confirmations(output.value);
            // Blocks that came after the look at the output.
            let since = standing.height.saturating_sub(evidence.standing.height);
            let confirmations = output.confirmations.saturating_add(since);
            (confirmations < needed).then_some(Objection::Young {
                confirmations,
                needed,
            })
        }
        Operation::Withdraw {
            amount,
            script_pubkey,
            ..
        } => {
            let limits = policy.withdrawals();
            if policy.is_blocked(script_pubkey) {
                return Some(Objection::Blocked);
            }
            if let Some(largest) = limits.largest_sat.map(Amount::from_sat)
                && *amount > largest
            {
                return Some(Objection::AboveLargest(largest));
            }
            let above = limits.hold_above_sat.map(Amount::from_sat)?;
            (policy.holds(*amount) && verdict != Some(Verdict::Approved))
                .then_some(Objection::Held(above))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        testing,
        verify::fixture::{self, Users},
    };

    /// The honest batch, a policy without limits, and the id of its withdrawal of 20,000 sats.
    fn setting() -> (Evidence, OperationId) {
        let mut evidence = fixture::without_proofs(&Users::new());
        set(&mut evidence, "");
        let id = evidence.body.operations[3].id(&evidence.body.vault);
        (evidence, id)
    }

    /// These limits on withdrawals and no others.
    fn set(evidence: &mut Evidence, limits: &str) {
        evidence.standing.policy = Arc::new(testing::policy(limits, ""));
    }

    fn refusal(evidence: &Evidence) -> Option<Refusal> {
        check(evidence, &evidence.standing).err()
    }

    #[test]
    fn each_limit_on_a_withdrawal_lets_through_what_is_at_it_and_names_what_is_above() {
        let (mut evidence, id) = setting();
        for (at, above, words) in [
            ("largest_sat = 20_000", "largest_sat = 19_999", "largest"),
            (
                "hold_above_sat = 20_000",
                "hold_above_sat = 19_999",
                "approval",
            ),
            ("batch_sat = 20_000", "batch_sat = 19_999", "one batch"),
            ("batch_count = 1", "batch_count = 0", "one batch"),
            ("window_sat = 20_000", "window_sat = 19_999", "144 blocks"),
            ("window_count = 1", "window_count = 0", "144 blocks"),
        ] {
            set(&mut evidence, at);
            assert_eq!(refusal(&evidence), None, "{at}");
            set(&mut evidence, above);
            let refusal = refusal(&evidence).unwrap();
            assert_eq!(refusal.rule, Rule::S6);
            assert_eq!(refusal.operations, [id], "{above}");
            assert!(refusal.reason.contains(words), "{above}: {refusal}");
        }
    }

    #[test]
    fn what_the_window_holds_already_counts() {
        let (mut evidence, id) = setting();
        set(&mut evidence, "window_sat = 50_000\nwindow_count = 3");
        evidence.standing.recent.withdrawn = Amount::from_sat(30_000);
        evidence.standing.recent.withdrawals = 2;
        assert_eq!(refusal(&evidence), None);
        evidence.standing.recent.withdrawn = Amount::from_sat(30_001);
        assert_eq!(refusal(&evidence).unwrap().operations, [id]);
        evidence.standing.recent.withdrawn = Amount::ZERO;
        evidence.standing.recent.withdrawals = 3;
        assert_eq!(refusal(&evidence).unwrap().operations, [id]);
    }

    #[test]
    fn limits_name_the_withdrawals_that_do_not_fit_and_no_others() {
        let (mut evidence, first) = setting();
        let more = |amount: u64| {
            let mut operation = evidence.body.operations[3].clone();
            if let Operation::Withdraw { amount: sats, .. } = &mut operation {
                *sats = Amount::from_sat(amount);
            }
            operation
        };
        let more = [more(15_000), more(5_000), more(90_000)];
        let ids = more
            .clone()
            .map(|operation| operation.id(&evidence.body.vault));
        evidence.body.operations.extend(more);
        // 20,000 and 5,000 fit; 15,000 and 90,000 do not.
        set(&mut evidence, "batch_sat = 30_000");
        assert_eq!(refusal(&evidence).unwrap().operations, [ids[0], ids[2]]);
        // What is held takes no room.
        set(&mut evidence, "batch_sat = 20_000\nhold_above_sat = 15_000");
        let refusal = refusal(&evidence).unwrap();
        assert_eq!(refusal.operations, [first, ids[2]]);
        assert_eq!(
            held(&evidence, &evidence.standing)
                .iter()
                .map(|(id, _)| *id)
                .collect::<Vec<_>>(),
            [first, ids[2]]
        );
    }

    #[test]
    fn approval_lifts_the_hold_and_no_other_limit() {
        let (mut evidence, id) = setting();
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        let operation = evidence.body.operations[3].clone();
        decisions
            .wait(&store, vec![(id, operation)], evidence.body.sequence, 0)
            .unwrap();
        decisions.approve(&store, id, 0).unwrap();
        evidence.standing.decisions = Arc::new(decisions);
        set(&mut evidence, "hold_above_sat = 0");
        assert_eq!(refusal(&evidence), None);
        assert!(held(&evidence, &evidence.standing).is_empty());
        set(&mut evidence, "hold_above_sat = 0\nlargest_sat = 19_999");
        assert_eq!(refusal(&evidence).unwrap().operations, [id]);
    }

    #[test]
    fn a_rejected_operation_of_any_kind_is_refused_by_name() {
        let (evidence, _) = setting();
        let (_folder, store) = testing::store();
        for operation in &evidence.body.operations {
            let id = operation.id(&evidence.body.vault);
            let mut decisions = Decisions::default();
            decisions.reject(&store, id, 0).unwrap();
            let mut evidence = evidence.clone();
            evidence.standing.decisions = Arc::new(decisions);
            let refusal = refusal(&evidence).unwrap();
            assert_eq!(refusal.operations, [id]);
            assert!(refusal.reason.contains("rejected"));
        }
    }

    #[test]
    fn a_payment_to_a_blocked_output_is_refused_by_name() {
        let (mut evidence, id) = setting();
        let script = fixture::payout_script().to_hex_string();
        let blocked = format!("blocked = [\"{script}\"]");
        evidence.standing.policy = Arc::new(testing::policy("", &blocked));
        assert_eq!(refusal(&evidence).unwrap().operations, [id]);
    }

    #[test]
    fn a_large_deposit_waits_for_more_confirmations() {
        let (mut evidence, _) = setting();
        let id = evidence.body.operations[0].id(&evidence.body.vault);
        let tier = |sats: u64, confirmations: u32| {
            let tier =
                format!("deposits = [{{ from_sat = {sats}, confirmations = {confirmations} }}]");
            Arc::new(testing::policy("", &tier))
        };
        // The deposits hold 101,000 and 51,000 sats.
        evidence.standing.policy = tier(101_000, fixture::DEPTH + 1);
        let refusal = refusal(&evidence).unwrap();
        assert_eq!(refusal.operations, [id]);
        assert!(refusal.reason.contains("2 of the 3 confirmations"));
        // A block later it is deep enough.
        let mut later = evidence.standing.clone();
        later.height += 1;
        check(&evidence, &later).unwrap();
        evidence.standing.policy = tier(101_001, fixture::DEPTH + 1);
        check(&evidence, &evidence.standing).unwrap();
    }

    #[test]
    fn a_pause_names_no_operation() {
        let (_folder, store) = testing::store();
        let mut decisions = Decisions::default();
        check_pause(&decisions).unwrap();
        decisions
            .pause_signing(&store, "a drill".to_owned(), 0)
            .unwrap();
        let refusal = check_pause(&decisions).unwrap_err();
        assert_eq!((refusal.rule, refusal.operations.len()), (Rule::S6, 0));
        assert!(refusal.reason.contains("a drill"));
        decisions.resume(&store).unwrap();
        check_pause(&decisions).unwrap();
    }
}
