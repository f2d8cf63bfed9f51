//! What the loop shows of itself: the status, its gauges, and the last verdicts.

use std::collections::BTreeSet;

use node::clock;
use protocol::{
    identity::PeerKey,
    message::{Refusal, SessionId, Subject},
    signer::Quarantine,
};
use threshold::dkg;

use super::{Node, lock};
use crate::{
    decisions::Pause,
    status::{self, Status, Verdict},
};

impl Node {
    /// Renews what the status pages and the admin socket show.
    pub(super) fn show(&self) {
        let shown = self.shown();
        metrics::gauge!("operator_ready").set(if shown.not_ready.is_none() { 1.0 } else { 0.0 });
        metrics::gauge!("operator_alarm").set(if shown.alarm.is_some() { 1.0 } else { 0.0 });
        metrics::gauge!("operator_paused").set(if shown.paused.is_some() { 1.0 } else { 0.0 });
        metrics::gauge!("operator_pending").set(count(shown.pending));
        metrics::gauge!("operator_height").set(f64::from(shown.height));
        metrics::gauge!("operator_peers").set(count(shown.connected.len()));
        metrics::gauge!("operator_sessions").set(count(shown.sessions));
        metrics::gauge!("operator_nonces").set(count(shown.nonces));
        self.status.send_replace(shown);
    }

    fn shown(&self) -> Status {
        let node = self.node_status.borrow().clone();
        let head = self.state.head;
        let alarm = self.state.alarm.clone();
        let (stage, waits_for) = self.stage();
        let quarantine = self
            .state
            .quarantined()
            .map(|now| self.describe_quarantine(now));
        let paused = self.decisions.pause().map(Pause::describe);
        let waits_for = self
            .outdated_share()
            .or(waits_for.map(str::to_owned))
            .or(paused.clone())
            .or(quarantine.as_ref().map(|now| now.reason.clone()));
        let own = self.identity.public();
        let connected = self.peers.connected();
        let others = self.roster.members().filter(|member| member.key != own);
        let missing = others.filter(|member| !connected.contains(&member.key));
        let refresh_due = self.refresh_due();
        let safe = self.safe.as_ref().map(|safe| lock(safe));
        let (followed_from, tip) = self.followed();
        let progress = self.generation.progress().filter(|_| safe.is_none());
        Status {
            shown_ms: clock::now_ms(),
            name: self.name_of(&own),
            identity: own.to_string(),
            stage: stage.to_owned(),
            not_ready: alarm
                .as_ref()
                .map(|alarm| format!("signing has stopped: {alarm}"))
                .or(waits_for),
            alarm,
            quarantine,
            key_generation: progress.map(|progress| self.show_progress(&progress)),
            refresh: self.show_refresh(),
            repair: self.show_repair(),
            refresh_due,
            group_key: self.key.as_ref().map(|key| key.group_key().to_string()),
            epoch: safe.as_ref().map(|safe| safe.group().epoch()),
            vault_address: self
                .key
                .as_ref()
                .and_then(|key| key.address())
                .map(|address| address.to_string()),
            vault: self.open.as_ref().map(|open| open.vault.id().to_string()),
            sequence: head.map(|head| head.commitment.sequence.0),
            treasury_sat: head.map(|head| head.value.to_sat()),
            supply_sat: head.map(|head| head.commitment.supply.to_sat()),
            height: self.state.height,
            tip,
            followed_from,
            bitcoind_reachable: node.reachable,
            bitcoind_height: node.blocks,
            missing: missing.map(|member| member.name.clone()).collect(),
            connected: self.names(&connected),
            attested: self.show_attested(),
            sessions: self.state.sessions(),
            nonces: safe.as_ref().map_or(0, |safe| safe.nonces()),
            promises: self.state.promises.len(),
            state_digest: hex::encode(self.state.digest()),
            paused,
            pending: self.decisions.waiting().len(),
            policy_problem: self.policy.problem().map(str::to_owned),
            verdicts: self.verdicts.clone(),
            ..Status::starting()
        }
    }

    /// The first height and the last block of the own chain.
    fn followed(&self) -> (Option<u32>, Option<String>) {
        let Some(open) = &self.open else {
            return (None, None);
        };
        let books = lock(&open.books);
        let position = books.history.position();
        let tip = position.tip().map(|tip| tip.hash.to_string());
        (Some(position.start()), tip)
    }

    /// Where this operator is, and what it waits for before it can sign.
    fn stage(&self) -> (&'static str, Option<&'static str>) {
        if self.safe.is_none() && self.generation.progress().is_none() {
            let why = "this operator holds no share of the vault's key: restore a backup, or 'drawbridge-operator repair'";
            return ("share lost", Some(why));
        }
        let node = self.node_status.borrow();
        let Some(open) = &self.open else {
            return if self.safe.is_none() {
                ("key generation", Some("key generation is not finished"))
            } else {
                ("genesis", Some("there is no genesis certificate yet"))
            };
        };
        let is_current = lock(&open.books).history.is_current();
        if !node.reachable {
            ("syncing", Some("the own Bitcoin node does not answer"))
        } else if self.state.height < node.blocks || !is_current {
            ("syncing", Some("the history has not caught up"))
        } else {
            ("open", None)
        }
    }

    fn describe_quarantine(&self, quarantine: Quarantine) -> status::Quarantine {
        match quarantine {
            Quarantine::Syncing { .. } => status::Quarantine {
                until_height: None,
                reason:
                    "restored or repaired: signs nothing before it has caught up with the chain, to a block younger than that"
                        .to_owned(),
            },
            Quarantine::Since {
                sequence, height, ..
            } => {
                let end = height.saturating_add(self.state.replacement_delay);
                status::Quarantine {
                    until_height: Some(end),
                    reason: format!(
                        "restored or repaired: signs from height {end} on, in {} blocks, or once batch {} has confirmed",
                        end.saturating_sub(self.state.height),
                        sequence.0.saturating_add(1)
                    ),
                }
            }
        }
    }

    fn show_progress(&self, progress: &dkg::Progress) -> status::KeyGeneration {
        let missing = progress
            .missing
            .iter()
            .filter_map(|signer| self.roster.operator(*signer));
        status::KeyGeneration {
            stage: format!("{:?}", progress.stage).to_lowercase(),
            missing: missing.map(|member| member.name.clone()).collect(),
            failure: progress.failure.as_ref().map(ToString::to_string),
        }
    }

    pub(super) fn names(&self, keys: &BTreeSet<PeerKey>) -> Vec<String> {
        let members = self
            .roster
            .members()
            .filter(|member| keys.contains(&member.key));
        members.map(|member| member.name.clone()).collect()
    }

    /// A member's name in the roster; the key of anybody else.
    pub(super) fn name_of(&self, key: &PeerKey) -> String {
        self.roster
            .members()
            .find(|member| member.key == *key)
            .map_or_else(|| key.to_string(), |member| member.name.clone())
    }

    /// Shows what came of an open session.
    pub(super) fn note_session(&mut self, id: SessionId, verdict: Result<&str, &Refusal>) {
        let session = self.state.session(&id);
        if let Some((from, subject)) =
            session.map(|session| (session.coordinator, session.subject.clone()))
        {
            self.note_verdict(id, &from, &subject, verdict);
        }
    }

    /// Shows what came of a proposal or a sign request.
    pub(super) fn note_verdict(
        &mut self,
        session: SessionId,
        from: &PeerKey,
        subject: &Subject,
        verdict: Result<&str, &Refusal>,
    ) {
        let refusal = verdict.err();
        let noted = Verdict {
            at_ms: clock::now_ms(),
            times: 1,
            coordinator: self.name_of(from),
            session: session.to_string(),
            subject: describe(subject),
            result: verdict.unwrap_or("refused").to_owned(),
            rule: refusal.map(|refusal| format!("{:?}", refusal.rule)),
            operations: refusal
                .iter()
                .flat_map(|refusal| &refusal.operations)
                .map(ToString::to_string)
                .collect(),
            reason: refusal.map(|refusal| refusal.reason.clone()),
        };
        status::note(&mut self.verdicts, noted);
    }
}

/// A subject in a word or two.
pub(super) fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Genesis(genesis) => format!("genesis {}", genesis.outpoint),
        Subject::Batch(candidate) => format!("batch {}", candidate.sequence),
        Subject::Epoch(claim) => format!("epoch {}", claim.epoch),
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
