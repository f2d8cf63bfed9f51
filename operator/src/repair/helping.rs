//! The helpers' side: answers members that the administrator has approved, and gives other helpers their δ.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use protocol::{
    identity::{Identity, PeerKey, Signed},
    message::{Refusal, Rule},
    repair::{DELTA_DOMAIN, RepairAnswer, RepairAsk, RunDelta, RunSplit, SPLIT_DOMAIN},
    roster::Roster,
};
use threshold::{
    SignerId,
    repair::{BadDelta, Helper, Run, RunError, RunId, Splits},
};

/// Runs that are remembered; an older one gives way, and begins anew if its member still asks.
const MAX_RUNS: usize = 4;
/// A member can begin a run this often, in ms.
const RUN_PAUSE_MS: u64 = 1_000;

struct Active {
    member: PeerKey,
    run: Run,
    helper: Helper,
    /// A δ that its author had not committed to, signed.
    evidence: Option<Signed<RunDelta>>,
    began_ms: u64,
}

/// This operator's runs as a helper. Nothing of them is stored.
pub struct Helping {
    roster: Arc<Roster>,
    identity: Arc<Identity>,
    runs: VecDeque<Active>,
}

impl Helping {
    /// Without a run.
    pub fn new(roster: Arc<Roster>, identity: Arc<Identity>) -> Self {
        Self {
            roster,
            identity,
            runs: VecDeque::new(),
        }
    }

    /// Answers a member that is approved. `help` makes this operator's part of a run from its share.
    ///
    /// # Errors
    /// A [`Refusal`] under S12.
    pub fn answer(
        &mut self,
        now_ms: u64,
        member: &PeerKey,
        ask: RepairAsk,
        help: impl FnOnce(Run) -> Result<Helper, RunError>,
    ) -> Result<RepairAnswer, Refusal> {
        let (run, splits) = match ask {
            RepairAsk::Ready => return Ok(RepairAnswer::Ready),
            RepairAsk::Run { run, splits } => (run, splits),
        };
        if self.roster.signer(member) != Some(run.member) {
            return Err(refuse("this run repairs another operator's share"));
        }
        let id = run.id();
        if !self.runs.iter().any(|active| active.run == run) {
            self.begin(now_ms, *member, run, help)?;
        }
        let splits = self.check_splits(&id, &splits)?;
        let identity = self.identity.clone();
        let Some(active) = self.active(&id) else {
            return Err(refuse("this run is not known here any more"));
        };
        let Some(splits) = splits else {
            let split = active.helper.split().clone();
            let split = RunSplit { run: id, split };
            return Ok(RepairAnswer::Split(identity.sign(SPLIT_DOMAIN, split)));
        };
        active
            .helper
            .agree(&splits)
            .map_err(|who| refuse(format!("the split of {who} is missing or wrong")))?;
        Ok(if let Some(evidence) = &active.evidence {
            RepairAnswer::Accusation(evidence.clone())
        } else if let Some(sigma) = active.helper.sigma() {
            RepairAnswer::Sum(sigma)
        } else {
            RepairAnswer::Waiting(active.helper.missing().into_iter().collect())
        })
    }

    fn begin(
        &mut self,
        now_ms: u64,
        member: PeerKey,
        run: Run,
        help: impl FnOnce(Run) -> Result<Helper, RunError>,
    ) -> Result<(), Refusal> {
        let latest = self.runs.iter().filter(|active| active.member == member);
        let latest = latest.map(|active| active.began_ms).max();
        if latest.is_some_and(|latest| now_ms.saturating_sub(latest) < RUN_PAUSE_MS) {
            return Err(refuse("a run has begun a moment ago; wait a second"));
        }
        let helper = help(run.clone()).map_err(|error| refuse(error.to_string()))?;
        tracing::info!(%member, run = ?run.id(), "helping to repair a share");
        if self.runs.len() >= MAX_RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(Active {
            member,
            run,
            helper,
            evidence: None,
            began_ms: now_ms,
        });
        Ok(())
    }

    /// Opens the splits that a member relays: each signed by its author, for this run. `None` if there are none yet.
    fn check_splits(
        &self,
        id: &RunId,
        signed: &[Signed<RunSplit>],
    ) -> Result<Option<Splits>, Refusal> {
        if signed.is_empty() {
            return Ok(None);
        }
        if signed.len() > self.roster.operators.len() {
            return Err(refuse("more splits than operators"));
        }
        let mut splits = BTreeMap::new();
        for signed in signed {
            let (by, body) = signed
                .verify(SPLIT_DOMAIN)
                .map_err(|error| refuse(error.to_string()))?;
            let signer = self.roster.signer(&by);
            let signer = signer.ok_or_else(|| refuse("a split by nobody in the roster"))?;
            if body.run != *id {
                return Err(refuse("a split of another run"));
            }
            splits.insert(signer, body.split.clone());
        }
        Ok(Some(splits))
    }

    /// What another helper of a run gets. Only in runs that the member has begun here.
    ///
    /// # Errors
    /// A [`Refusal`] under S12.
    pub fn delta(&mut self, peer: &PeerKey, run: &Run) -> Result<Signed<RunDelta>, Refusal> {
        let to = self.roster.signer(peer);
        let to = to.ok_or_else(|| refuse("a repair is for operators"))?;
        let id = run.id();
        let active = self
            .active(&id)
            .ok_or_else(|| refuse("this run is not known here; its member has to ask first"))?;
        let delta = active.helper.delta_for(to);
        let delta =
            delta.ok_or_else(|| refuse("the operator that asks does not help in this run"))?;
        let delta = RunDelta {
            run: id,
            to,
            delta: delta.clone(),
        };
        Ok(self.identity.sign(DELTA_DOMAIN, delta))
    }

    /// Whom to ask next for a δ, and in which run.
    pub fn wanted(&self) -> Vec<(PeerKey, Run)> {
        let open = self.runs.iter().filter(|active| active.evidence.is_none());
        open.flat_map(|active| {
            let missing = active.helper.missing().into_iter();
            missing
                .filter_map(|signer| self.roster.operator(signer))
                .map(|operator| (operator.key, active.run.clone()))
        })
        .collect()
    }

    /// Takes a δ in. One that its author has signed and not committed to is kept as evidence, for the member.
    pub fn take_delta(&mut self, from: &PeerKey, run: &RunId, signed: Signed<RunDelta>) {
        let me = self.roster.signer(&self.identity.public());
        let (Some(signer), Some(me)) = (self.roster.signer(from), me) else {
            return;
        };
        let body = match signed.verify(DELTA_DOMAIN) {
            Ok((by, body)) if by == *from && body.run == *run && body.to == me => body.clone(),
            _ => {
                tracing::warn!(%from, "a repair message that is not for this run, or another's");
                return;
            }
        };
        let Some(active) = self.active(run) else {
            return;
        };
        match active.helper.receive(signer, body.delta) {
            Ok(()) => {}
            Err(error @ BadDelta::Wrong(_)) => {
                tracing::error!(%from, %error, "a repair was spoiled; the member will be shown the evidence");
                active.evidence = Some(signed);
            }
            Err(error) => tracing::warn!(%from, %error, "repair message refused"),
        }
    }

    /// Forgets all runs: the share has changed.
    pub fn forget(&mut self) {
        self.runs.clear();
    }

    /// The members that runs are known of.
    pub fn members(&self) -> impl Iterator<Item = SignerId> + '_ {
        self.runs.iter().map(|active| active.run.member)
    }

    fn active(&mut self, id: &RunId) -> Option<&mut Active> {
        self.runs.iter_mut().find(|active| active.run.id() == *id)
    }
}

fn refuse(reason: impl Into<String>) -> Refusal {
    Refusal::new(Rule::S12, reason)
}
