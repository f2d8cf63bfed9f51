//! A lost share: the administrator's approvals, this operator's help to others, and the repair of its own.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use node::clock;
use protocol::{
    identity::{PeerKey, Signed},
    message::{Answer, Ask, Refusal, Rule},
    repair::{RepairAnswer, RepairAsk, RunDelta},
    roster::Member,
};
use threshold::{
    KeyShare, SignerId,
    repair::{Run, RunId},
};

use super::{Event, Node, RunError, blocking, lock};
use crate::{
    promises,
    repair::{self, Approval, Candidate, OwnRepair, Repairing},
    status,
    vault::KeySafe,
};

impl Node {
    /// Whom an approval would be for.
    ///
    /// # Errors
    /// Why there is nothing to approve, in words.
    pub(super) fn repair_candidate(&self, name_or_key: &str) -> Result<Candidate, String> {
        let safe = self
            .safe
            .as_ref()
            .ok_or("this operator holds no key share itself")?;
        let epoch = lock(safe).group().epoch();
        let member = self.find_member(name_or_key)?;
        let approval = self.approval(member, epoch);
        Ok(Candidate {
            name: member.name.clone(),
            key: member.key.to_string(),
            founding_key: member.founding().to_string(),
            signer: member.signer().to_string(),
            epoch,
            approved: self.approvals.get(&member.key) == Some(&approval),
        })
    }

    fn find_member(&self, name_or_key: &str) -> Result<&Member, String> {
        let found: Vec<&Member> = self
            .roster
            .operators
            .iter()
            .filter(|member| member.name == name_or_key || member.key.to_string() == name_or_key)
            .collect();
        match found.as_slice() {
            [member] if member.key == self.identity.public() => {
                Err("that is this operator itself".into())
            }
            [member] => Ok(member),
            [] => Err(format!(
                "no operator of the roster is called {name_or_key}, or has that key"
            )),
            _ => Err(format!(
                "several operators of the roster are called {name_or_key}: give the key"
            )),
        }
    }

    fn approval(&self, member: &Member, epoch: u32) -> Approval {
        Approval {
            signer: member.signer(),
            epoch,
        }
    }

    /// The administrator approves that the holder of this key may have its share repaired, at this epoch.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn approve_repair(&mut self, key: &str, epoch: u32) -> Result<Candidate, String> {
        let candidate = self.repair_candidate(key)?;
        if candidate.epoch != epoch || candidate.key != key {
            return Err("the roster or the epoch has changed meanwhile; look again".into());
        }
        let member = self.find_member(key)?;
        let (key, approval) = (member.key, self.approval(member, epoch));
        blocking(|| {
            if let Err(error) = repair::save_approval(&self.store, &key, &approval) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.approvals.insert(key, approval);
        tracing::warn!(name = %candidate.name, %key, epoch, "the administrator has approved the repair of a share");
        self.show();
        Ok(Candidate {
            approved: true,
            ..candidate
        })
    }

    /// The share that helps a member, if the administrator has approved that member at this epoch.
    fn safe_to_help(&self, member: &PeerKey) -> Result<Arc<Mutex<KeySafe>>, Refusal> {
        self.admits(member)?;
        let refuse = |reason: &str| Refusal::new(Rule::S12, reason);
        let signer = self.roster.signer(member);
        let signer = signer.ok_or_else(|| refuse("a repair is for operators"))?;
        let safe = self.safe.clone();
        let safe = safe.ok_or_else(|| refuse("this operator holds no key share itself"))?;
        let epoch = lock(&safe).group().epoch();
        let approval = self.approvals.get(member);
        if approval != Some(&Approval { signer, epoch }) {
            return Err(refuse(
                "this operator's administrator has not approved that key: 'drawbridge-operator repair approve'",
            ));
        }
        Ok(safe)
    }

    /// A member asks for help.
    pub(super) fn help(
        &mut self,
        member: &PeerKey,
        ask: RepairAsk,
    ) -> Result<RepairAnswer, Refusal> {
        let safe = self.safe_to_help(member)?;
        let now = clock::now_ms();
        blocking(|| {
            self.helping
                .answer(now, member, ask, |run| lock(&safe).help(run))
        })
    }

    /// Another helper asks for its δ.
    pub(super) fn give_delta(
        &mut self,
        peer: &PeerKey,
        run: &Run,
    ) -> Result<Signed<RunDelta>, Refusal> {
        let member = self.roster.operator(run.member);
        let member = member
            .ok_or_else(|| Refusal::new(Rule::S12, "that member is not in the roster"))?
            .key;
        self.safe_to_help(&member)?;
        self.admits(peer)?;
        self.helping.delta(peer, run)
    }

    /// Asks the other helpers of open runs for what is missing.
    pub(super) fn ask_deltas(&mut self) {
        let connected = self.peers.operators();
        for (peer, run) in self.helping.wanted() {
            let id = run.id();
            let open = connected.contains(&peer) && self.admits(&peer).is_ok();
            if !open || !self.asking_deltas.insert((peer, id)) {
                continue;
            }
            let peers = self.peers.clone();
            self.spawn(async move {
                let delta = match peers.ask(peer, &Ask::Delta(run)).await {
                    Ok(Answer::Delta(delta)) => Some(delta),
                    _ => None,
                };
                Some(Event::Delta(peer, id, delta))
            });
        }
    }

    pub(super) fn take_delta(&mut self, peer: PeerKey, id: RunId, delta: Option<Signed<RunDelta>>) {
        self.asking_deltas.remove(&(peer, id));
        if let Some(delta) = delta {
            self.helping.take_delta(&peer, &id, delta);
        }
    }

    /// The administrator asks for the repair of the own share.
    ///
    /// # Errors
    /// Why there is nothing to repair, in words.
    pub(super) fn begin_repair(&mut self) -> Result<(), String> {
        if self.safe.is_some() {
            return Err("this operator holds its key share; there is nothing to repair".into());
        }
        if self.repairing.is_some() {
            return Ok(());
        }
        blocking(|| {
            if let Err(error) = repair::save_own(&self.store, &OwnRepair::Asked) {
                promises::stop_on_failed_write(&error);
            }
            self.generation.give_up()
        })
        .map_err(|error| error.to_string())?;
        self.own_repair = Some(OwnRepair::Asked);
        tracing::warn!("the administrator has asked for the repair of this operator's share");
        self.start_repairing();
        self.show();
        Ok(())
    }

    /// Goes on with the repair that was asked for, if the share is still lost.
    pub(super) fn start_repairing(&mut self) {
        if let Some(safe) = self
            .safe
            .as_ref()
            .filter(|_| self.own_repair == Some(OwnRepair::Asked))
        {
            // A crash came between the share and this note; or a backup was restored, which is as old as it is.
            let epoch = lock(safe).group().epoch();
            let done = OwnRepair::Done { epoch };
            if let Err(error) = repair::save_own(&self.store, &done) {
                promises::stop_on_failed_write(&error);
            }
            self.own_repair = Some(done);
        }
        if self.safe.is_some() || self.own_repair != Some(OwnRepair::Asked) {
            return;
        }
        if let Some(me) = self.roster.signer(&self.identity.public()) {
            let (roster, identity) = (self.roster.clone(), self.identity.clone());
            self.repairing = Some(Repairing::new(roster, identity, me));
        }
    }

    /// Asks what the repair of the own share needs next.
    pub(super) fn ask_repair(&mut self) {
        let mut connected = self.peers.operators();
        connected.retain(|peer| self.admits(peer).is_ok());
        let Some(repairing) = &mut self.repairing else {
            return;
        };
        let questions = repairing.questions(clock::now_ms(), &connected);
        for (peer, ask) in questions {
            if !self.asking_repair.insert(peer) {
                continue;
            }
            let peers = self.peers.clone();
            let run = match &ask {
                Ask::Repair(RepairAsk::Run { run, .. }) => Some(run.id()),
                _ => None,
            };
            self.spawn(async move {
                let answer = peers.ask(peer, &ask).await.ok();
                Some(Event::Repair(peer, run, answer.map(Box::new)))
            });
        }
    }

    pub(super) fn take_repair(
        &mut self,
        peer: PeerKey,
        run: Option<RunId>,
        answer: Option<Box<Answer>>,
    ) -> Result<(), RunError> {
        self.asking_repair.remove(&peer);
        let (Some(repairing), Some(answer)) = (&mut self.repairing, answer) else {
            return Ok(());
        };
        match blocking(|| repairing.take(&peer, run, *answer)) {
            Some(share) => self.repaired(share),
            None => Ok(()),
        }
    }

    /// The share is back: sealed on disk, then in use.
    fn repaired(&mut self, share: KeyShare) -> Result<(), RunError> {
        let epoch = share.group().epoch();
        // Before the share can sign anything.
        self.check_promises(share.group().group_key())?;
        let done = OwnRepair::Done { epoch };
        blocking(|| -> Result<(), RunError> {
            self.keys.save_share(&share)?;
            if let Err(error) = repair::save_own(&self.store, &done) {
                promises::stop_on_failed_write(&error);
            }
            Ok(())
        })?;
        self.own_repair = Some(done);
        self.repairing = None;
        tracing::warn!(
            epoch,
            "the share was repaired, checked and written down. A refresh should follow: whoever has the lost one can use it until then"
        );
        self.use_share(share)?;
        self.ask_certificate();
        self.show();
        Ok(())
    }

    /// A new epoch has begun: approvals of earlier ones have ended, and runs of their shares.
    pub(super) fn end_repairs(&mut self, epoch: u32) {
        self.helping.forget();
        let ended = self
            .approvals
            .iter()
            .filter(|(_, approval)| approval.epoch < epoch);
        let ended: Vec<PeerKey> = ended.map(|(key, _)| *key).collect();
        if ended.is_empty() {
            return;
        }
        blocking(|| {
            if let Err(error) = repair::delete_approvals(&self.store, &ended) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.approvals.retain(|key, _| !ended.contains(key));
    }

    /// Why a refresh should follow; `None` if nothing asks for one.
    pub(super) fn refresh_due(&self) -> Option<String> {
        let safe = self.safe.as_ref()?;
        let epoch = lock(safe).group().epoch();
        if self.own_repair == Some(OwnRepair::Done { epoch }) {
            return Some(
                "this operator's share was repaired: whoever has the lost one can use it until a refresh".into(),
            );
        }
        let repaired = self
            .approvals
            .iter()
            .filter(|(_, approval)| approval.epoch == epoch)
            .map(|(key, _)| *key)
            .collect::<BTreeSet<_>>();
        let names = self.names(&repaired);
        (!names.is_empty()).then(|| {
            format!(
                "the repair of {} was approved: whoever has the lost share can use it until a refresh",
                names.join(", ")
            )
        })
    }

    /// The repair of the own share, for the status.
    pub(super) fn show_repair(&self) -> Option<status::Repair> {
        let shown = self.repairing.as_ref()?.shown();
        let name = |signer: &SignerId| {
            let operator = self.roster.operator(*signer);
            operator.map_or_else(|| signer.to_string(), |operator| operator.name.clone())
        };
        Some(status::Repair {
            stage: shown.stage.to_owned(),
            missing: self.names_of(&shown.missing),
            refused: shown
                .refused
                .iter()
                .map(|(peer, reason)| (self.name_of(peer), reason.clone()))
                .collect(),
            blamed: shown
                .blamed
                .iter()
                .map(|(signer, fault)| (name(signer), fault.clone()))
                .collect(),
        })
    }

    /// Names of operators by their FROST identifiers.
    pub(super) fn names_of(&self, signers: &BTreeSet<SignerId>) -> Vec<String> {
        let members = signers
            .iter()
            .filter_map(|signer| self.roster.operator(*signer));
        members.map(|member| member.name.clone()).collect()
    }
}
