//! Other proposals beside the honest one: too many at a time, one that is asked for too early, and good ones for the
//! sequence number that a share is out for (S7).

use std::collections::BTreeMap;

use anyhow::ensure;
use bitcoin::Amount;
use protocol::{
    batch::Body,
    message::{Rule, SessionId, Subject},
};
use threshold::{SignerId, sign::Commitments};

use super::{S7, S9, Table, kind, propose};
use crate::liar::{
    coins::Deposit,
    draft::{Draft, Proofs},
    encoding::finding,
    lie::{Answered, Finding, Kind, Lie, one_less, one_more},
    stage::{Stage, credit},
    wire::Said,
};

/// Proposals of a flood; more than an operator verifies at a time.
const FLOOD: u64 = 7;

impl Table<'_> {
    /// More proposals than an operator verifies at a time, each of which takes it seconds; and an honest one of
    /// another coordinator meanwhile.
    pub(super) async fn flood(&mut self) {
        let kind = super::kind(
            "flood",
            "more slow proposals at once than an operator verifies, while another coordinator proposes honestly",
            &[Rule::S2, Rule::S12],
            "",
        )
        .note("bounded by coordinator: what is too much is refused under S12, the rest under S2; the other one is accepted");
        let stage = self.stage;
        let told = async {
            let mut draft = stage.honest.clone();
            set_first(&mut draft, credit(&stage.coins.young)?, &stage.coins.young);
            let first = draft
                .seal(&stage.standing, Proofs::Kept, &stage.proofs())
                .await?;
            stage
                .wire
                .serve(first.candidate.body, first.body.clone().unwrap_or_default());
            let subjects: Vec<Subject> = (0..FLOOD)
                .map(|more| {
                    let mut candidate = first.candidate.clone();
                    let fee = candidate.fee.to_sat().saturating_add(more);
                    candidate.fee = Amount::from_sat(fee);
                    Subject::Batch(candidate)
                })
                .collect();
            let honest = stage.proposal.subject();
            let body = stage.proposal.body.clone().unwrap_or_default();
            stage.second.serve(stage.proposal.candidate.body, body);
            let (flood, other) = tokio::join!(
                futures::future::try_join_all(
                    subjects
                        .iter()
                        .map(|subject| stage.wire.propose(subject, 0))
                ),
                stage.second.propose(&honest, 0),
            );
            let accepted = other?
                .values()
                .all(|said| matches!(said, Said::Accepted(_)));
            let mut answers = Vec::new();
            for (operator, said) in flood?.into_iter().flatten() {
                let mut answer = match said {
                    Said::Refused(refusal) => Answered::refused(&kind, &refusal),
                    Said::Accepted(_) => Answered::wrong("ACCEPTED"),
                };
                answer.is_expected &= accepted;
                answer.change = stage.moved(&operator).await?;
                answers.push(answer);
            }
            ensure!(
                answers.iter().any(|answer| answer.found == "S12"),
                "everything was verified at once"
            );
            Ok(answers)
        };
        let told = told.await;
        self.findings.push(finding(kind, told));
    }

    /// A sign request while the operator still verifies: it waits for a confirmation that does not come.
    pub(super) async fn before_accept(&mut self) {
        let kind = super::kind(
            "sign request before accept",
            "a sign request while the operator still verifies",
            &[Rule::S8, Rule::S9],
            "",
        )
        .note(
            "S9 today: nothing verified is at hand yet, so S8 in the signing machine is not asked",
        );
        let stage = self.stage;
        let told = async {
            let mut draft = stage.honest.clone();
            let (operation, young) = (credit(&stage.coins.young)?, &stage.coins.young);
            set_first(&mut draft, operation, young);
            // Not what the flood has proposed: the same bytes again are no new message.
            draft.fee = draft.fee.checked_add(draft.fee).unwrap_or(draft.fee);
            let proposal = draft
                .seal(&stage.standing, Proofs::Kept, &stage.proofs())
                .await?;
            let subject = proposal.subject();
            stage
                .wire
                .serve(proposal.candidate.body, proposal.body.unwrap_or_default());
            let before = stage.pages.read(&self.victim.key).await?.sessions;
            stage.wire.propose_and_go_on(&subject).await?;
            stage
                .pages
                .until(&self.victim.key, "the session", |page| {
                    page.sessions > before
                })
                .await?;
            let session = subject.session(&stage.wire.me);
            let answer = stage
                .wire
                .sign(self.victim.key, session, 1, BTreeMap::new())
                .await?;
            stage
                .pages
                .until(&self.victim.key, "the end of the session", |page| {
                    page.sessions == before
                })
                .await?;
            Ok(answer)
        };
        let answer = told.await;
        self.take(kind, self.victim, answer).await;
    }

    /// Makes what must not be signed once a share is out: good batches.
    pub(super) async fn rivals(&self) -> anyhow::Result<Vec<Rival>> {
        let stage = self.stage;
        let mut rivals = Vec::new();
        for (lie, late_kind, change) in rival_lies(stage) {
            let kept = stage.proofs();
            let proposal = lie.draft.seal(&stage.standing, lie.proofs, &kept).await?;
            let body = proposal.body.clone().unwrap_or_default();
            let proofs = Body::decode(&body)?.proofs;
            stage.wire.serve(proposal.candidate.body, body);
            let mut draft = lie.draft.clone();
            change(&mut draft, stage);
            // Operations are as they were, and so is the body.
            let late = draft.seal(&stage.standing, Proofs::Kept, &proofs).await?;
            ensure!(
                late.candidate.body == proposal.candidate.body,
                "the late proposal has another body"
            );
            rivals.push(Rival {
                kind: lie.kind,
                subject: proposal.subject(),
                late_kind,
                late: late.subject(),
            });
        }
        Ok(rivals)
    }

    /// Proposes them while no share is out, so everybody accepts them. Gives what a sign request for each would name.
    pub(super) async fn propose_rivals(&self, rivals: Vec<Rival>) -> anyhow::Result<Vec<Proposed>> {
        let mut proposed = Vec::new();
        for rival in rivals {
            let round1 = propose(self.stage, &rival.subject, 0).await?;
            proposed.push(Proposed {
                session: rival.subject.session(&self.stage.wire.me),
                package: self.package(&round1)?,
                rival,
            });
        }
        Ok(proposed)
    }

    /// A share is out for the honest batch: none of the others is signed, nor accepted again.
    pub(super) async fn no_second(&mut self, rivals: Vec<Proposed>) -> anyhow::Result<()> {
        let stage = self.stage;
        if let Some(rival) = rivals.first() {
            let crossed = kind(
                "another message, same nonces",
                "commitments made for one transaction in the session of another",
                S9,
                "not those of these nonces",
            )
            .note("a sign request names no message: each operator makes its own, so nonces of another session are all that can be crossed");
            let package = rival.package.clone();
            self.ask(crossed, self.victim, self.session, 2, package)
                .await;
        }
        for proposed in rivals {
            let Proposed {
                rival,
                session,
                package,
            } = proposed;
            let kind = rival.kind.note(
                "accepted before the share left; refused at the sign request, where the promise is",
            );
            self.ask(kind, self.victim, session, 1, package).await;
            let kind = rival.late_kind;
            let mut answers = Vec::new();
            for (operator, said) in stage.wire.propose(&rival.late, 0).await? {
                let is_victim = operator == self.victim.key;
                let mut answer = match said {
                    Said::Refused(refusal) if is_victim => Answered::refused(&kind, &refusal),
                    Said::Accepted(_) if is_victim => Answered::wrong("ACCEPTED"),
                    // The others have signed nothing, and may.
                    Said::Accepted(_) => continue,
                    Said::Refused(refusal) => {
                        Answered::other("REFUSED", refusal.to_string(), false)
                    }
                };
                answer.change = stage.moved(&operator).await?;
                answers.push(answer);
            }
            self.findings.push(Finding::new(kind, None, answers));
        }
        Ok(())
    }
}

/// A good batch for the same sequence number.
pub(super) struct Rival {
    kind: Kind,
    subject: Subject,
    /// The same body once more, in another transaction.
    late_kind: Kind,
    late: Subject,
}

/// One that all operators have accepted.
pub(super) struct Proposed {
    rival: Rival,
    session: SessionId,
    package: BTreeMap<SignerId, Commitments>,
}

/// How a late proposal differs from its rival.
type Change = fn(&mut Draft, &Stage);

fn rival_lies(stage: &Stage) -> [(Lie, Kind, Change); 3] {
    let wait = "another has to wait";
    let pay_more = "must pay more";
    let lie = |kind| Lie::new(kind, &stage.honest);
    [
        (
            lie(kind(
                "second candidate",
                "another batch for a sequence number that has a share",
                S7,
                wait,
            ))
            .draft(|draft| {
                draft.operations.pop();
            })
            .remade(),
            kind(
                "second candidate, proposed late",
                "another batch, proposed when the share is out",
                S7,
                wait,
            ),
            |draft, _| draft.fee = one_more(draft.fee),
        ),
        (
            lie(kind(
                "replacement with a lower fee",
                "the same batch with one sat less of a fee",
                S7,
                pay_more,
            ))
            .draft(|draft| draft.fee = one_less(draft.fee)),
            kind(
                "lower fee, proposed late",
                "the same batch with a lower fee, proposed when the share is out",
                S7,
                pay_more,
            ),
            |draft, _| draft.fee = one_less(draft.fee),
        ),
        (
            lie(kind(
                "replacement with the same fee",
                "the same batch and fee in another transaction, without the top-up",
                S7,
                pay_more,
            ))
            .draft(|draft| draft.top_ups.clear()),
            kind(
                "same fee, proposed late",
                "the same batch and fee with another top-up, proposed when the share is out",
                S7,
                pay_more,
            ),
            |draft, stage| {
                let [_, other] = stage.coins.top_ups;
                draft.top_ups = vec![other];
            },
        ),
    ]
}

fn set_first(draft: &mut Draft, operation: ledger::Operation, deposit: &Deposit) {
    if let (Some(first), Some(terms), Some(value)) = (
        draft.operations.first_mut(),
        draft.terms.first_mut(),
        draft.values.first_mut(),
    ) {
        *first = operation;
        terms.clone_from(&deposit.terms);
        *value = deposit.value;
    }
}
