//! The honest session once more, with nonces that the operator has handed out ahead of time (S9): each entry is for one
//! coordinator and one request.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use protocol::message::{Answer, Ask, encode};
use threshold::{SignerId, sign::Commitments};

use super::{Round1, S9, S12, Table, kind};
use crate::liar::wire::{EPOCH, Wire};

impl Table<'_> {
    /// Entries of the pool, for what they are not for; one honest request with an entry in between.
    pub(super) async fn entries(
        &mut self,
        round1: &Round1,
        next: &Commitments,
    ) -> anyhow::Result<()> {
        let stage = self.stage;
        // Off unless the network was started with `--nonce-pool`.
        let Some(own) = self.entry(&stage.wire).await? else {
            return Ok(());
        };
        let theirs = self.entry(&stage.second).await?;
        let theirs = theirs.context("an entry for one coordinator and none for the other")?;
        let good = self.with_entry(round1, &own)?;
        let no_such = "no such nonces were handed out";
        for (name, changed, entry) in [
            (
                "entry of another coordinator",
                "nonces that the operator has handed out to the second liar",
                &theirs,
            ),
            (
                "entry never handed out",
                "the commitments of the operator's last answer, as an entry of its pool",
                next,
            ),
        ] {
            let package = self.with_entry(round1, entry)?;
            self.ask_pooled(kind(name, changed, S9, no_such), 2, package)
                .await;
        }
        let in_the_open = kind(
            "entry in an ordinary request",
            "an entry of the pool in place of the session's commitments",
            S9,
            "not those of these nonces",
        );
        self.ask(in_the_open, self.victim, self.session, 2, good.clone())
            .await;
        self.entry_twice(&own).await;

        let answer = self.sign_pooled(2, good.clone()).await?;
        if !matches!(answer, Answer::Shares(_)) {
            bail!("an honest request with an entry of the pool got no shares: {answer:?}");
        }
        stage.note(&self.victim.key).await?;
        let mut other_set = good.clone();
        let replaced = other_set
            .iter_mut()
            .find(|(signer, _)| **signer != self.victim.signer)
            .context("a package of one")?;
        *replaced.1 = next.clone();
        for (name, changed, attempt, package) in [
            (
                "entry used, next attempt",
                "an entry that has served a share, under the next number",
                3,
                good,
            ),
            (
                "entry used, another set",
                "the same, with another signer's commitments changed: the attack on FROST",
                2,
                other_set,
            ),
        ] {
            self.ask_pooled(kind(name, changed, S9, no_such), attempt, package)
                .await;
        }
        Ok(())
    }

    /// What the operator hands out to a coordinator, as many of an entry's pairs as the honest batch has inputs; `None` if it
    /// hands out nothing.
    async fn entry(&self, coordinator: &Wire) -> anyhow::Result<Option<Commitments>> {
        let ask = Ask::Pool { epoch: EPOCH };
        let answer = coordinator.ask(self.victim.key, &ask).await?;
        let entries = match answer {
            Answer::Pool(entries) => entries,
            Answer::Refused(_) => return Ok(None),
            other => bail!("neither nonces nor a refusal: {other:?}"),
        };
        let inputs = self.stage.transaction.messages()?.len();
        let entry = entries.first().and_then(|entry| entry.first(inputs));
        entry.context("the operator's pool is empty").map(Some)
    }

    /// The package of the honest session with these commitments of the operator.
    fn with_entry(
        &self,
        round1: &Round1,
        entry: &Commitments,
    ) -> anyhow::Result<BTreeMap<SignerId, Commitments>> {
        let mut package = self.package(round1)?;
        package.insert(self.victim.signer, entry.clone());
        Ok(package)
    }

    async fn sign_pooled(
        &self,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
    ) -> anyhow::Result<Answer> {
        let ask = Ask::SignPooled {
            subject: self.stage.proposal.subject(),
            epoch: EPOCH,
            attempt,
            commitments,
        };
        self.stage.wire.ask(self.victim.key, &ask).await
    }

    async fn ask_pooled(
        &mut self,
        kind: crate::liar::Kind,
        attempt: u32,
        commitments: BTreeMap<SignerId, Commitments>,
    ) {
        let answer = self.sign_pooled(attempt, commitments).await;
        self.take(kind, self.victim, answer).await;
    }

    /// As often as there must be signers: a decoder that keeps the last of equal keys would not notice.
    async fn entry_twice(&mut self, own: &Commitments) {
        let mut bytes = encode(&Ask::SignPooled {
            subject: self.stage.proposal.subject(),
            epoch: EPOCH,
            attempt: 2,
            commitments: BTreeMap::new(),
        });
        // An empty map is one byte, its length; the map is what the request ends with.
        if let Some(length) = bytes.last_mut() {
            *length = u8::try_from(self.needed).unwrap_or(u8::MAX);
        }
        let entry = postcard::to_stdvec(&(self.victim.signer, own)).unwrap_or_default();
        bytes.extend(entry.repeat(self.needed));
        let kind = kind(
            "entry twice in one package",
            "the operator's entry of the pool as often as there must be signers",
            S12,
            "encoding",
        );
        let answer = self.stage.wire.ask_bytes(self.victim.key, bytes).await;
        self.take(kind, self.victim, answer).await;
    }
}
