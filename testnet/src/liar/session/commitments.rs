//! The honest session, asked for shares with packages, numbers and sessions that are not the honest ones.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use protocol::{
    blame::ROUND2_DOMAIN,
    message::{Answer, SessionId},
};
use threshold::{
    SignerId,
    sign::{Commitments, Shares},
};

use super::{Round1, S9, S12, Table, kind};
use crate::liar::{
    encoding::open_sign_request,
    lie::{Answered, Finding},
    wire::EPOCH,
};

/// Bytes of a pair of nonce commitments.
const PAIR: usize = 66;

impl Table<'_> {
    /// The right session, with a package that is not what round 1 gave.
    pub(super) async fn other_commitments(&mut self, round1: &Round1) -> anyhow::Result<()> {
        let good = self.package(round1)?;
        let (me, session) = (self.victim, self.session);
        let mine = good.get(&me.signer).context("no round 1")?.clone();
        let (other, others) = good
            .iter()
            .find(|(signer, _)| **signer != me.signer)
            .context("a package of one")?;
        let with = |change: &dyn Fn(&mut BTreeMap<SignerId, Commitments>)| {
            let mut package = good.clone();
            change(&mut package);
            package
        };
        let not_these = "not those of these nonces";
        let unusable = "unusable";
        let stranger = SignerId::derive(&self.stage.wire.me.0);
        let short = first_pair(&mine)?;
        let everyone_else: BTreeMap<_, _> = self
            .others
            .iter()
            .take(self.needed)
            .filter_map(|operator| Some((operator.signer, round1.get(&operator.key)?.clone())))
            .collect();
        ensure!(
            everyone_else.len() == self.needed,
            "there must be one operator more than must sign"
        );
        let cases = [
            (
                kind(
                    "commitments swapped",
                    "two signers' commitments exchanged",
                    S9,
                    not_these,
                ),
                with(&|package| {
                    package.insert(me.signer, others.clone());
                    package.insert(*other, mine.clone());
                }),
            ),
            (
                kind(
                    "commitments replaced",
                    "another signer's commitments as the operator's own",
                    S9,
                    not_these,
                ),
                with(&|package| {
                    package.insert(me.signer, others.clone());
                }),
            ),
            (
                kind(
                    "too few signers",
                    "one signer less than must sign",
                    S12,
                    "are needed",
                ),
                with(&|package| {
                    package.remove(other);
                }),
            ),
            (
                kind("no signers", "a sign request for nobody", S12, "are needed"),
                BTreeMap::new(),
            ),
            (
                kind(
                    "without the operator",
                    "a sign request to an operator that is not among its signers",
                    S9,
                    "no commitments",
                ),
                everyone_else,
            ),
            (
                kind(
                    "stranger among the signers",
                    "an identifier that is nobody's share",
                    S9,
                    unusable,
                ),
                with(&|package| {
                    package.remove(other);
                    package.insert(stranger, others.clone());
                }),
            ),
            (
                kind(
                    "commitments for one input",
                    "the operator's commitments for the first input only",
                    S9,
                    unusable,
                ),
                with(&|package| {
                    package.insert(me.signer, short.clone());
                }),
            ),
            (
                kind(
                    "another's for one input",
                    "another signer's commitments for the first input only",
                    S9,
                    unusable,
                ),
                with(&|package| {
                    package.insert(*other, short.clone());
                }),
            ),
        ];
        for (kind, package) in cases {
            self.ask(kind, me, session, 1, package).await;
        }
        for (name, changed, attempt) in [
            ("attempt zero", "a sign request with attempt number 0", 0),
            (
                "attempt beyond all",
                "a sign request with attempt number 2^32 - 1",
                u32::MAX,
            ),
        ] {
            let kind = super::kind(name, changed, S9, "does not follow");
            self.ask(kind, me, session, attempt, good.clone()).await;
        }
        self.twice(&mine).await;
        let kind = kind(
            "another share epoch",
            "a sign request for the shares that a refresh would make",
            S9,
            "epoch",
        );
        let answer = self
            .stage
            .wire
            .sign_in(me.key, session, EPOCH.saturating_add(1), 1, good)
            .await;
        self.take(kind, me, answer).await;
        Ok(())
    }

    /// A map on the wire may hold a key twice; a decoder that keeps the last would not notice.
    async fn twice(&mut self, mine: &Commitments) {
        let entry = postcard::to_stdvec(&(self.victim.signer, mine)).unwrap_or_default();
        let entries = u8::try_from(self.needed).unwrap_or(u8::MAX);
        let mut bytes = open_sign_request(self.session, 1, entries);
        bytes.extend(entry.repeat(self.needed));
        let kind = super::kind(
            "operator twice",
            "the operator's entry as often as there must be signers",
            S12,
            "encoding",
        );
        let answer = self.stage.wire.ask_bytes(self.victim.key, bytes).await;
        self.take(kind, self.victim, answer).await;
    }

    /// Good commitments, in a session that is not theirs.
    pub(super) async fn other_sessions(
        &mut self,
        round1: &Round1,
        old: &Round1,
    ) -> anyhow::Result<()> {
        let good = self.package(round1)?;
        let me = self.victim;
        let kind_unknown = kind(
            "unknown session",
            "a session that was never proposed",
            S9,
            "not known here",
        );
        self.ask(kind_unknown, me, SessionId([0x88; 32]), 1, good.clone())
            .await;
        let kind_theirs = kind(
            "session of another coordinator",
            "the first liar's session, asked for by the second",
            S12,
            "another coordinator's",
        );
        let answer = self
            .stage
            .second
            .sign(me.key, self.session, 1, good.clone())
            .await;
        self.take(kind_theirs, me, answer).await;
        let kind_old = kind(
            "commitments of before",
            "commitments from before they expired and were made anew",
            S9,
            "not those of these nonces",
        );
        self.ask(kind_old, me, self.session, 1, self.package(old)?)
            .await;
        Ok(())
    }

    /// After a share: the same request, other requests with its number, and numbers that go back.
    pub(super) async fn once_more(
        &mut self,
        round1: &Round1,
        shares: &Shares,
        next: &Commitments,
    ) -> anyhow::Result<()> {
        let me = self.victim;
        let good = self.package(round1)?;
        let replayed = kind(
            "sign request replayed",
            "the very same sign request again",
            S9,
            "",
        )
        .note("not refused: the same answer again, and no second share from the nonces");
        let answer = self
            .stage
            .wire
            .sign(me.key, self.session, 1, good.clone())
            .await?;
        let is_same = matches!(
            &answer,
            Answer::Shares(signed) if signed
                .verify(ROUND2_DOMAIN)
                .is_ok_and(|(_, again)| again.shares == *shares && again.next == *next)
        );
        let mut answered = Answered::other("S9", "the same answer".to_owned(), is_same);
        answered.change = self.stage.moved(&me.key).await?;
        self.findings
            .push(Finding::new(replayed, None, vec![answered]));

        let mut other_set = good.clone();
        other_set.retain(|signer, _| *signer == me.signer);
        for operator in self.others.iter().rev().take(self.needed.saturating_sub(1)) {
            let commitments = round1.get(&operator.key).context("no round 1")?;
            other_set.insert(operator.signer, commitments.clone());
        }
        let not_these = "not those of these nonces";
        let mut fresh = good.clone();
        fresh.insert(me.signer, next.clone());
        for (kind, attempt, package) in [
            (
                kind(
                    "another set, same nonces",
                    "other signers with the nonces that have served a share: the attack on FROST",
                    S9,
                    not_these,
                ),
                1,
                other_set.clone(),
            ),
            (
                kind(
                    "another set, next attempt",
                    "the same under the next number",
                    S9,
                    not_these,
                ),
                2,
                other_set,
            ),
            (
                kind(
                    "nonces used",
                    "the same signers and commitments under the next number",
                    S9,
                    not_these,
                ),
                2,
                good,
            ),
            (
                kind(
                    "attempt going back",
                    "fresh commitments under the number that had its answer",
                    S9,
                    "does not follow",
                ),
                1,
                fresh,
            ),
        ] {
            self.ask(kind, me, self.session, attempt, package).await;
        }
        Ok(())
    }
}

/// The commitments for the first input only.
fn first_pair(commitments: &Commitments) -> anyhow::Result<Commitments> {
    let bytes: Vec<u8> = postcard::from_bytes(&postcard::to_stdvec(commitments)?)?;
    let pair = bytes.get(..PAIR).context("no commitments")?;
    Ok(Commitments::try_from(pair.to_vec())?)
}
