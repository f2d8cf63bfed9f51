//! The member's side: learns the group, finds helpers, and begins runs until one gives the share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    identity::{Identity, PeerKey, Signed},
    message::{Answer, Ask},
    repair::{self, DELTA_DOMAIN, RepairAnswer, RepairAsk, RunDelta, RunSplit, SPLIT_DOMAIN},
    roster::Roster,
};
use rand::{RngCore as _, rngs::OsRng};
use threshold::{
    GroupInfo, KeyShare, SignerId,
    repair::{Fault, Member, Run, RunId},
};

/// A run that has not given a share after this long is given up, in ms: somebody is silent.
const RUN_TIME_MS: u64 = 20_000;
/// Pause between two runs in ms, longer than what helpers ask for.
const RUN_PAUSE_MS: u64 = 1_500;

struct Running {
    member: Member,
    /// As their authors signed them, to be relayed.
    splits: BTreeMap<SignerId, Signed<RunSplit>>,
    /// Whom each helper says it waits for.
    waits: BTreeMap<SignerId, Vec<SignerId>>,
    began_ms: u64,
}

/// A repair of the own share. Nothing of it is stored: after a restart another run begins.
pub struct Repairing {
    roster: Arc<Roster>,
    identity: Arc<Identity>,
    me: SignerId,
    /// What each operator says that the group is.
    groups: BTreeMap<PeerKey, GroupInfo>,
    group: Option<GroupInfo>,
    ready: BTreeSet<SignerId>,
    /// What those said that do not help.
    refused: BTreeMap<PeerKey, String>,
    /// Who has spoiled a run, and how. Not asked again.
    blamed: BTreeMap<SignerId, Fault>,
    /// How often somebody was silent, or said to be.
    suspicion: BTreeMap<SignerId, u32>,
    running: Option<Running>,
    last_ms: Option<u64>,
}

/// Where a repair is, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// In words.
    pub stage: &'static str,
    /// Operators that are waited for.
    pub missing: BTreeSet<SignerId>,
    /// What those said that do not help.
    pub refused: BTreeMap<PeerKey, String>,
    /// Who has spoiled a run, and how.
    pub blamed: BTreeMap<SignerId, String>,
}

impl Repairing {
    /// For the operator `me` of the roster.
    pub fn new(roster: Arc<Roster>, identity: Arc<Identity>, me: SignerId) -> Self {
        Self {
            roster,
            identity,
            me,
            groups: BTreeMap::new(),
            group: None,
            ready: BTreeSet::new(),
            refused: BTreeMap::new(),
            blamed: BTreeMap::new(),
            suspicion: BTreeMap::new(),
            running: None,
            last_ms: None,
        }
    }

    /// What to ask of whom, now.
    pub fn questions(&mut self, now_ms: u64, connected: &BTreeSet<PeerKey>) -> Vec<(PeerKey, Ask)> {
        self.give_up_if_stuck(now_ms);
        self.begin_if_ready(now_ms);
        let own = self.identity.public();
        let others = connected.iter().filter(|peer| {
            let signer = self.roster.signer(peer);
            **peer != own && signer.is_some_and(|signer| !self.blamed.contains_key(&signer))
        });
        if self.group.is_none() {
            return others.map(|peer| (*peer, Ask::Group)).collect();
        }
        let Some(running) = &self.running else {
            let ready = Ask::Repair(RepairAsk::Ready);
            return others.map(|peer| (*peer, ready.clone())).collect();
        };
        let splits = match running.member.splits() {
            Some(_) => running.splits.values().cloned().collect(),
            None => Vec::new(),
        };
        let ask = Ask::Repair(RepairAsk::Run {
            run: running.member.run().clone(),
            splits,
        });
        // Those that have given their sum, too: one that has restarted must know the run to serve the others.
        let helpers = others.filter(|peer| {
            let signer = self.roster.signer(peer);
            signer.is_some_and(|signer| running.member.run().helpers.contains(&signer))
        });
        helpers.map(|peer| (*peer, ask.clone())).collect()
    }

    /// Takes an answer in; `run` is what the question was about. Gives the share when that was the last part of it; it
    /// fits the verifying share that the group has for this operator.
    pub fn take(&mut self, from: &PeerKey, run: Option<RunId>, answer: Answer) -> Option<KeyShare> {
        let signer = self.roster.signer(from).filter(|id| *id != self.me)?;
        // Late answers in a run that was given up say nothing of the one that is under way.
        if run.is_some() && run != self.run_id() {
            return None;
        }
        match answer {
            Answer::Group(Some(group)) => {
                self.take_group(*from, group);
                None
            }
            Answer::Refused(refusal) => {
                self.refused.insert(*from, refusal.reason);
                self.ready.remove(&signer);
                if run.is_some() {
                    self.give_up(&BTreeSet::from([signer]));
                }
                None
            }
            Answer::Repair(answer) => {
                self.refused.remove(from);
                let taken = self.take_repair(from, signer, answer);
                taken.unwrap_or_else(|fault| {
                    self.blame(fault);
                    None
                })
            }
            _ => None,
        }
    }

    /// t equal answers: one of them at least is an honest operator's.
    fn take_group(&mut self, from: PeerKey, group: GroupInfo) {
        let fits = group.contains(self.me)
            && group.threshold() == self.roster.threshold
            && group.signers().eq(self.roster.signers());
        if !fits || self.group.is_some() {
            return;
        }
        self.groups.insert(from, group.clone());
        let equal = self.groups.values().filter(|other| **other == group);
        if equal.count() >= usize::from(self.roster.threshold) {
            tracing::info!(group_key = %group.group_key(), epoch = group.epoch(), "the group is known");
            self.group = Some(group);
        }
    }

    fn take_repair(
        &mut self,
        from: &PeerKey,
        signer: SignerId,
        answer: RepairAnswer,
    ) -> Result<Option<KeyShare>, Fault> {
        if answer == RepairAnswer::Ready {
            self.ready.insert(signer);
            return Ok(None);
        }
        let Some(running) = self.running.as_mut() else {
            return Ok(None);
        };
        if !running.member.run().helpers.contains(&signer) {
            return Ok(None);
        }
        match answer {
            RepairAnswer::Ready => {}
            RepairAnswer::Split(signed) => {
                let (by, body) = signed
                    .verify(SPLIT_DOMAIN)
                    .map_err(|_| Fault::Split(signer))?;
                if by != *from || body.run != running.member.run().id() {
                    return Err(Fault::Split(signer));
                }
                running.member.take_split(signer, body.split.clone())?;
                running.splits.insert(signer, signed);
            }
            RepairAnswer::Waiting(for_whom) => {
                running.waits.insert(signer, for_whom);
            }
            RepairAnswer::Accusation(signed) => return Err(self.judge(signer, &signed)),
            RepairAnswer::Sum(sigma) => {
                running.member.take_sigma(signer, sigma)?;
                return running.member.share();
            }
        }
        Ok(None)
    }

    /// The evidence must be signed by the accused, for this run and for the accuser.
    fn judge(&self, accuser: SignerId, signed: &Signed<RunDelta>) -> Fault {
        let Some(running) = &self.running else {
            return Fault::FalseAccusation(accuser);
        };
        let run = running.member.run();
        match signed.verify(DELTA_DOMAIN) {
            Ok((by, body)) if body.run == run.id() && body.to == accuser => {
                match self.roster.signer(&by) {
                    Some(accused) => running.member.judge(accuser, accused, &body.delta),
                    None => Fault::FalseAccusation(accuser),
                }
            }
            _ => Fault::FalseAccusation(accuser),
        }
    }

    fn run_id(&self) -> Option<RunId> {
        let running = self.running.as_ref()?;
        Some(running.member.run().id())
    }

    fn blame(&mut self, fault: Fault) {
        tracing::error!(%fault, "the repair was spoiled; it begins again without the culprit");
        match fault.culprit() {
            Some(culprit) => {
                self.ready.remove(&culprit);
                self.blamed.insert(culprit, fault);
            }
            // All parts were right for a group that was not: those who said so are not believed again.
            None => self.groups.clear(),
        }
        self.give_up(&BTreeSet::new());
    }

    fn give_up_if_stuck(&mut self, now_ms: u64) {
        let Some(running) = &self.running else { return };
        if now_ms.saturating_sub(running.began_ms) < RUN_TIME_MS {
            return;
        }
        let mut silent = running.member.missing();
        let waits = running.waits.iter();
        silent.extend(
            waits
                .filter(|(waiting, _)| running.member.missing().contains(waiting))
                .flat_map(|(_, for_whom)| for_whom),
        );
        tracing::warn!(?silent, "the repair was given up: no answer");
        self.give_up(&silent);
    }

    /// The next run prefers others, and asks again which group it is.
    fn give_up(&mut self, suspects: &BTreeSet<SignerId>) {
        for suspect in suspects {
            let count = self.suspicion.entry(*suspect).or_insert(0);
            *count = count.saturating_add(1);
        }
        self.running = None;
        self.group = None;
        self.groups.clear();
    }

    /// Fixes t helpers, those first that have been silent least often.
    fn begin_if_ready(&mut self, now_ms: u64) {
        let pause = |last| now_ms.saturating_sub(last) < RUN_PAUSE_MS;
        if self.running.is_some() || self.last_ms.is_some_and(pause) {
            return;
        }
        let Some(group) = &self.group else { return };
        let mut ready: Vec<SignerId> = self.ready.iter().copied().collect();
        ready.sort_by_key(|id| (self.suspicion.get(id).copied().unwrap_or(0), *id));
        let needed = usize::from(group.threshold());
        if ready.len() < needed {
            return;
        }
        let mut fresh = [0; 32];
        OsRng.fill_bytes(&mut fresh);
        let run = Run {
            member: self.me,
            helpers: ready.into_iter().take(needed).collect(),
            group: group.digest(),
            context: repair::context(&self.identity.public(), &fresh),
        };
        match Member::new(group.clone(), run) {
            Ok(member) => {
                tracing::info!(run = ?member.run().id(), helpers = ?member.run().helpers, "the repair begins");
                self.last_ms = Some(now_ms);
                self.running = Some(Running {
                    member,
                    splits: BTreeMap::new(),
                    waits: BTreeMap::new(),
                    began_ms: now_ms,
                });
            }
            Err(error) => tracing::error!(%error, "the repair can't begin"),
        }
    }

    /// Where it is.
    pub fn shown(&self) -> Shown {
        let (stage, missing) = if self.group.is_none() {
            let silent = |id: &SignerId| {
                let key = self.roster.operator(*id).map(|operator| operator.key);
                key.is_some_and(|key| !self.groups.contains_key(&key))
            };
            ("asking which group it is", self.others(&silent))
        } else if let Some(running) = &self.running {
            ("a run is under way", running.member.missing())
        } else {
            let unready = |id: &SignerId| !self.ready.contains(id);
            (
                "waiting for operators whose administrators approve",
                self.others(&unready),
            )
        };
        Shown {
            stage,
            missing,
            refused: self.refused.clone(),
            blamed: self
                .blamed
                .iter()
                .map(|(id, fault)| (*id, fault.to_string()))
                .collect(),
        }
    }

    fn others(&self, which: &dyn Fn(&SignerId) -> bool) -> BTreeSet<SignerId> {
        let others = self.roster.signers().into_iter();
        others.filter(|id| *id != self.me && which(id)).collect()
    }
}
