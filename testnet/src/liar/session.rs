//! Lies in the talk about a proposal that is good: who signs, with whose nonces, how often, and what else is
//! signed for the same sequence number (S7, S9, S12). Each is told to one operator, which goes on with the honest
//! session afterwards.

mod candidates;
mod commitments;
mod pooled;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bitcoin::{
    TapSighashType,
    hashes::Hash as _,
    sighash::{Prevouts, SighashCache},
};
use protocol::{
    blame::ROUND2_DOMAIN,
    identity::PeerKey,
    message::{Answer, Ask, Refusal, Rule, SessionId, Subject, encode},
};
use threshold::{
    SignerId,
    sign::{self, Commitments, Message, Package, Shares},
};

use super::{
    encoding::{finding, refused_question},
    lie::{Answered, Finding, Kind, Layer},
    stage::Stage,
    wire::{Operator, Said},
};

const S7: &[Rule] = &[Rule::S7];
const S9: &[Rule] = &[Rule::S9];
const S12: &[Rule] = &[Rule::S12];
/// Longer than nonces live (`operator::vault::NONCE_LIFE_MS`).
const EXPIRED: Duration = Duration::from_secs(62);
/// The first round of a repeated proposal that the wire has not used by itself.
const ROUND: u32 = 100;

type Round1 = BTreeMap<PeerKey, Commitments>;

const fn kind(
    name: &'static str,
    changed: &'static str,
    rules: &'static [Rule],
    says: &'static str,
) -> Kind {
    Kind::new(Layer::Session, name, changed, rules, says)
}

/// The honest proposal with round 1 of all operators, from the beginning of the lies.
pub struct Honest {
    round1: Round1,
    since: Instant,
}

/// Proposes honestly; every operator must accept.
///
/// # Errors
/// When one does not: then its refusals of lies would mean nothing.
pub async fn propose(stage: &Stage, subject: &Subject, round: u32) -> anyhow::Result<Round1> {
    stage
        .wire
        .propose(subject, round)
        .await?
        .into_iter()
        .map(|(operator, said)| match said {
            Said::Accepted(commitments) => Ok((operator, commitments)),
            Said::Refused(refusal) => {
                bail!("an honest proposal was refused by {operator}: {refusal}")
            }
        })
        .collect()
}

impl Honest {
    /// Proposes the honest batch and leaves it at that.
    ///
    /// # Errors
    /// When an operator does not accept it.
    pub async fn open(stage: &Stage) -> anyhow::Result<Self> {
        if let Some(body) = &stage.proposal.body {
            stage
                .wire
                .serve(stage.proposal.candidate.body, body.clone());
        }
        Ok(Self {
            round1: propose(stage, &stage.proposal.subject(), 0).await?,
            since: Instant::now(),
        })
    }
}

/// The honest session at the operator that is lied to.
struct Table<'a> {
    stage: &'a Stage,
    session: SessionId,
    /// Who is lied to.
    victim: &'a Operator,
    /// The others, in roster order.
    others: &'a [Operator],
    /// Signers needed.
    needed: usize,
    findings: Vec<Finding>,
}

/// All of them, in the one order in which they work.
///
/// # Errors
/// When an operator does not go on with what is honest.
pub async fn play(stage: &Stage, honest: Honest) -> anyhow::Result<Vec<Finding>> {
    let (victim, others) = stage.wire.operators.split_first().context("no operators")?;
    let mut table = Table {
        stage,
        session: stage.proposal.subject().session(&stage.wire.me),
        victim,
        others,
        needed: stage.standing.vault.roster().threshold.into(),
        findings: Vec::new(),
    };
    table.wrong_roles().await;
    table.flood().await;
    table.before_accept().await;
    // Proofs take their time: before the clock of any nonces runs.
    let rivals = table.rivals().await?;
    table.expired(&honest).await;
    let round1 = propose(stage, &stage.proposal.subject(), ROUND).await?;
    table.other_commitments(&round1).await?;
    table.other_sessions(&round1, &honest.round1).await?;
    let rivals = table.propose_rivals(rivals).await?;
    let (shares, next) = table.honest_share(&round1).await?;
    table.share_is_for_nothing_else(&round1, &shares)?;
    table.once_more(&round1, &shares, &next).await?;
    table.entries(&round1, &next).await?;
    table.no_second(rivals).await?;
    Ok(table.findings)
}

impl Table<'_> {
    /// Asks for shares and expects a refusal.
    async fn ask(
        &mut self,
        kind: Kind,
        operator: &Operator,
        session: SessionId,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
    ) {
        let answer = self
            .stage
            .wire
            .sign(operator.key, session, attempt, commitments)
            .await;
        self.take(kind, operator, answer).await;
    }

    async fn take(&mut self, kind: Kind, operator: &Operator, answer: anyhow::Result<Answer>) {
        let judged = async {
            let mut answered = match answer? {
                Answer::Refused(refusal) => Answered::refused(&kind, &refusal),
                Answer::Shares(_) => Answered::wrong("A SHARE"),
                _ => Answered::wrong("ANSWERED"),
            };
            answered.change = self.stage.moved(&operator.key).await?;
            Ok(vec![answered])
        };
        let judged = judged.await;
        self.findings.push(finding(kind, judged));
    }

    /// The victim and the first others, as many as must sign, with these commitments.
    fn package(&self, round1: &Round1) -> anyhow::Result<BTreeMap<SignerId, Commitments>> {
        std::iter::once(self.victim)
            .chain(self.others)
            .take(self.needed)
            .map(|operator| {
                let commitments = round1.get(&operator.key).context("no round 1")?;
                Ok((operator.signer, commitments.clone()))
            })
            .collect()
    }

    /// What a coordinator has no business to ask.
    async fn wrong_roles(&mut self) {
        let candidate = stage_candidate(self.stage);
        let body = self.stage.proposal.body.clone().unwrap_or_default();
        let refusal = Refusal::new(Rule::S1, "said the liar");
        let cases = [
            (
                kind(
                    "batch data to keep",
                    "S8's question, by a coordinator",
                    S12,
                    "for operators",
                ),
                Ask::Keep { candidate, body },
            ),
            (
                kind(
                    "vote by a coordinator",
                    "a refusal, sent to an operator",
                    S12,
                    "is an operator",
                ),
                Ask::Refuse {
                    session: self.session,
                    refusal,
                },
            ),
            (
                kind(
                    "key generation by a coordinator",
                    "a question for the secret messages of key generation",
                    S12,
                    "for operators",
                ),
                Ask::Dkg { context: [0; 32] },
            ),
        ];
        for (kind, ask) in cases {
            let answers = refused_question(self.stage, &kind, encode(&ask)).await;
            self.findings.push(finding(kind, answers));
        }
    }

    /// Nonces that nobody used for a minute.
    async fn expired(&mut self, honest: &Honest) {
        tokio::time::sleep_until((honest.since + EXPIRED).into()).await;
        let Ok(package) = self.package(&honest.round1) else {
            return;
        };
        let kind = self::kind(
            "expired nonces",
            "commitments of more than a minute ago",
            S9,
            "used up or expired",
        );
        self.ask(kind, self.victim, self.session, 1, package).await;
    }

    /// One honest sign request to one operator: fewer than must sign, so no signature comes of it.
    async fn honest_share(&self, round1: &Round1) -> anyhow::Result<(Shares, Commitments)> {
        let package = self.package(round1)?;
        let stage = self.stage;
        let before = stage.pages.read(&self.victim.key).await?;
        let answer = stage
            .wire
            .sign(self.victim.key, self.session, 1, package)
            .await?;
        let Answer::Shares(signed) = answer else {
            bail!("an honest sign request got no shares: {answer:?}");
        };
        let (_, said) = signed.verify(ROUND2_DOMAIN)?;
        let (shares, next) = (said.shares.clone(), said.next.clone());
        let after = stage.pages.read(&self.victim.key).await?;
        ensure!(
            after.promises == before.promises.saturating_add(1)
                && after.state_digest != before.state_digest,
            "a share left without a promise that shows: {after:?}"
        );
        stage.note(&self.victim.key).await?;
        Ok((shares, next))
    }

    /// The sighash type is in no message: what an operator signs is the default type of its own transaction.
    fn share_is_for_nothing_else(
        &mut self,
        round1: &Round1,
        shares: &Shares,
    ) -> anyhow::Result<()> {
        let kind = self::kind("another sighash type", "the operator's share, taken as one for each other sighash type", S9, "")
            .note("no message names a sighash type, so there is nothing to refuse: the share verifies for the default type only");
        let verifies = |messages: Vec<Message>| -> anyhow::Result<bool> {
            let package = Package {
                messages,
                commitments: self.package(round1)?,
            };
            let group = self.stage.standing.vault.group();
            Ok(sign::verify_shares(group, &package, self.victim.signer, shares).is_ok())
        };
        ensure!(
            verifies(self.stage.transaction.messages()?)?,
            "the honest share does not verify"
        );
        let mut good_for = Vec::new();
        for other in [
            TapSighashType::All,
            TapSighashType::None,
            TapSighashType::Single,
            TapSighashType::AllPlusAnyoneCanPay,
            TapSighashType::NonePlusAnyoneCanPay,
            TapSighashType::SinglePlusAnyoneCanPay,
        ] {
            if verifies(messages(self.stage, other)?)? {
                good_for.push(other.to_string());
            }
        }
        let answered = Answered::other(
            "S9",
            "the share is good for SIGHASH_DEFAULT and no other".to_owned(),
            good_for.is_empty(),
        );
        self.findings.push(Finding::new(kind, None, vec![answered]));
        Ok(())
    }
}

fn stage_candidate(stage: &Stage) -> protocol::batch::Candidate {
    stage.proposal.candidate.clone()
}

/// What would be signed with another sighash type.
fn messages(stage: &Stage, kind: TapSighashType) -> anyhow::Result<Vec<Message>> {
    let transaction = &stage.transaction;
    let mut cache = SighashCache::new(&transaction.unsigned);
    let prevouts = Prevouts::All(&transaction.prevouts);
    transaction
        .tweaks
        .iter()
        .enumerate()
        .map(|(index, tweak)| {
            let sighash = cache.taproot_key_spend_signature_hash(index, &prevouts, kind)?;
            Ok(Message {
                digest: sighash.to_byte_array(),
                tweak: *tweak,
            })
        })
        .collect()
}
