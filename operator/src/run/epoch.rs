//! New shares: questions to the other operators during a refresh, the claim that all n sign, its certificate, and the
//! change from one epoch to the next.
//!
//! ```text
//! refresh finished --> share on disk, a safe of its own --claim signed--> certificate (gossip, or asked for)
//!                                                                              | on disk
//!                                                                              v
//!                          share renamed over the old --> key, vault, machine and safe are of the new epoch
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use node::certificate;
use protocol::{
    epoch::EpochCertificate,
    identity::{PeerKey, Signed},
    message::{Answer, Ask, MAX_PENDING, Refusal, Rule},
    signer,
};
use threshold::{GroupInfo, KeyShare, dkg};

use super::{Event, Node, Open, RunError, blocking, lock};
use crate::{
    promises,
    refresh::{Begun, Refresh, RefreshError},
    status,
    vault::{KeySafe, Reading},
    verify::Verified,
};

/// Heartbeats between questions for a certificate that nothing here waits for: some 10 s.
const EPOCH_TICKS: u32 = 40;

/// An operator's answer about a refresh.
pub(super) type RefreshAnswer = Result<(u32, Vec<Signed<dkg::Message>>), Refusal>;

impl Node {
    /// Looks for what a refresh has left, once there is a share that signs.
    pub(super) fn open_refresh(&mut self, share: &KeyShare) -> Result<(), RunError> {
        let (refresh, shares) = blocking(|| {
            Refresh::open(
                self.keys.clone(),
                self.roster.clone(),
                self.identity.clone(),
                self.generation.context(),
                share,
            )
        })?;
        self.refresh = Some(refresh);
        self.pending = shares
            .into_iter()
            .map(|(epoch, share)| (epoch, new_safe(share, self.nonce_pool)))
            .collect();
        Ok(())
    }

    /// The administrator asks for a refresh.
    ///
    /// # Errors
    /// What keeps it from starting, in words.
    pub(super) fn begin_refresh(&mut self, anew: bool) -> Result<Begun, String> {
        if self.open.is_none() {
            return Err("the vault has no genesis certificate yet; refresh after it".into());
        }
        let refresh = self
            .refresh
            .as_mut()
            .ok_or("this operator holds no key share")?;
        let begun = blocking(|| refresh.begin(anew)).map_err(|error| in_words(&error))?;
        tracing::info!(
            ?begun,
            "the administrator has asked for a refresh of the key shares"
        );
        self.show();
        Ok(begun)
    }

    /// Asks every connected operator from whom something is missing.
    pub(super) fn ask_refresh(&mut self) {
        let Some(refresh) = &self.refresh else { return };
        let Some(ask) = refresh.question() else {
            return;
        };
        let connected = self.peers.operators();
        for peer in refresh.wanted().intersection(&connected) {
            if self.admits(peer).is_err() || !self.asking_refresh.insert(*peer) {
                continue;
            }
            let (peers, peer, ask) = (self.peers.clone(), *peer, ask.clone());
            self.spawn(async move {
                let answer = match peers.ask(peer, &ask).await {
                    Ok(Answer::Refresh { epoch, messages }) => Some(Ok((epoch, messages))),
                    Ok(Answer::Refused(refusal)) => Some(Err(refusal)),
                    Ok(_) => None,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "no refresh messages");
                        None
                    }
                };
                Some(Event::Refresh(peer, answer))
            });
        }
    }

    pub(super) fn answer_refresh(
        &mut self,
        peer: &PeerKey,
        base: &[u8; 32],
        epoch: u32,
    ) -> Result<Answer, Refusal> {
        self.admits(peer)?;
        let refresh = self.refresh.as_mut();
        let refresh =
            refresh.ok_or_else(|| Refusal::new(Rule::S12, "this operator holds no key share"))?;
        blocking(|| refresh.answer(peer, base, epoch))
    }

    pub(super) fn take_refresh(
        &mut self,
        peer: PeerKey,
        answer: Option<RefreshAnswer>,
    ) -> Result<(), RunError> {
        self.asking_refresh.remove(&peer);
        let answer = answer.filter(|_| self.admits(&peer).is_ok());
        let Some(refresh) = &mut self.refresh else {
            return Ok(());
        };
        let share = match answer {
            None => None,
            Some(Err(refusal)) => {
                refresh.refused(peer, &refusal);
                None
            }
            Some(Ok((epoch, messages))) => blocking(|| refresh.take(&peer, epoch, &messages))?,
        };
        if let Some(share) = share {
            let epoch = share.group().epoch();
            tracing::info!(
                epoch,
                "refresh finished; the new share is on disk beside the old, until all have signed for it"
            );
            let safe = new_safe(share, self.nonce_pool);
            self.pending.insert(epoch, safe);
            self.tell_epochs();
            self.show();
        }
        Ok(())
    }

    /// Tells the signing machine which shares there are.
    pub(super) fn tell_epochs(&mut self) {
        let Some(safe) = &self.safe else { return };
        let own = lock(safe).group().epoch();
        let pending = self.pending_groups();
        let pending = pending
            .iter()
            .map(|(epoch, group)| (*epoch, group.digest()))
            .collect();
        self.step(signer::Input::Epochs { own, pending });
    }

    fn pending_groups(&self) -> BTreeMap<u32, GroupInfo> {
        let refresh = self.refresh.as_ref();
        refresh
            .map(|refresh| refresh.pending().clone())
            .unwrap_or_default()
    }

    /// The group of a later epoch that this operator holds a share of.
    pub(super) fn pending_group(&self, epoch: u32) -> Option<GroupInfo> {
        self.refresh.as_ref()?.pending().get(&epoch).cloned()
    }

    /// The share that signs this: a new one for its own certificate, else the one that is certified.
    pub(super) fn safe_for(&self, verified: &Verified) -> Option<Arc<Mutex<KeySafe>>> {
        match verified {
            Verified::Epoch(epoch) => self.pending.get(&epoch.claim().epoch).cloned(),
            Verified::Batch(_) | Verified::Genesis(_) => self.safe.clone(),
        }
    }

    /// What this operator knows of epochs.
    pub(super) fn epochs(&self) -> Answer {
        let pending = self.pending_groups();
        Answer::Epoch {
            certificate: self.epoch_certificate.clone(),
            pending: pending.into_values().rev().take(MAX_PENDING).collect(),
        }
    }

    /// Asks around for a certificate: while a new share waits for one, and now and then in case this operator was
    /// away.
    pub(super) fn ask_epochs_in_turn(&self) {
        if !self.pending.is_empty() || self.ticks.is_multiple_of(EPOCH_TICKS) {
            self.ask_epochs();
        }
    }

    fn ask_epochs(&self) {
        if self.open.is_none() {
            return;
        }
        for peer in self.peers.connected() {
            let peers = self.peers.clone();
            self.spawn(async move {
                match peers.ask(peer, &Ask::Epoch).await {
                    Ok(Answer::Epoch {
                        certificate: Some(certificate),
                        ..
                    }) => Some(Event::Epoch(certificate)),
                    _ => None,
                }
            });
        }
    }

    /// Somebody shows the certificate of an epoch. What it does not verify for changes nothing.
    pub(super) fn learn_epoch(&mut self, certificate: EpochCertificate) -> Result<(), RunError> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let epoch = certificate.group.epoch();
        let known = self.epoch_certificate.as_ref();
        let known = known.map_or(0, |certificate| certificate.group.epoch());
        if epoch <= known {
            return Ok(());
        }
        if let Err(error) = certificate.verify(&open.vault) {
            tracing::warn!(%error, epoch, "an epoch certificate was refused");
            return Ok(());
        }
        blocking(|| {
            if let Err(error) = certificate::save_epoch(&self.store, &certificate) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.epoch_certificate = Some(certificate);
        self.change_epoch()
    }

    /// Changes to the certified epoch, if the share of it is here. Without it, this operator can't sign any more: its
    /// share is of an epoch that is over.
    pub(super) fn change_epoch(&mut self) -> Result<(), RunError> {
        let (Some(certificate), Some(open)) = (&self.epoch_certificate, self.open.clone()) else {
            return Ok(());
        };
        let group = &certificate.group;
        let epoch = group.epoch();
        let own = self.safe.as_ref().map(|safe| lock(safe).group().epoch());
        if own.is_none_or(|own| own >= epoch) {
            return Ok(());
        }
        let Some(refresh) = self
            .refresh
            .as_mut()
            .filter(|refresh| refresh.pending().get(&epoch) == Some(group))
        else {
            tracing::error!(
                epoch,
                "the key share is out of date: the vault is at an epoch that this operator has no share of"
            );
            self.lose_share();
            return Ok(());
        };
        let vault = match open.vault.at_epoch(certificate) {
            Ok(vault) => Arc::new(vault),
            Err(error) => {
                tracing::error!(%error, "the epoch certificate does not fit the vault");
                return Ok(());
            }
        };
        blocking(|| refresh.promote(epoch))?;
        self.safe = self.pending.remove(&epoch);
        self.pending.retain(|later, _| *later > epoch);
        self.key = Some(Arc::new(vault.key().clone()));
        self.open = Some(Open { vault, ..open });
        self.tell_epochs();
        self.end_repairs(epoch);
        tracing::info!(
            epoch,
            "the shares of a new epoch sign from now on; the old share is deleted. Make a new backup, and destroy the old ones"
        );
        self.show();
        Ok(())
    }

    /// A refresh under way, for the status.
    pub(super) fn show_refresh(&self) -> Option<status::Refresh> {
        let refresh = self.refresh.as_ref()?;
        let (epoch, progress) = refresh.progress()?;
        let finished = refresh.pending().contains_key(&epoch);
        let stage = if finished {
            "certificate".to_owned()
        } else {
            format!("{:?}", progress.stage).to_lowercase()
        };
        let unwilling = refresh.unwilling().iter();
        Some(status::Refresh {
            epoch,
            stage,
            missing: self.names_of(&progress.missing),
            unwilling: unwilling
                .map(|(peer, reason)| (self.name_of(peer), reason.clone()))
                .collect(),
            failure: progress.failure.as_ref().map(ToString::to_string),
        })
    }

    /// Why this operator's share is of no use any more: it was away, or restored from a backup that is older than a
    /// refresh.
    pub(super) fn outdated_share(&self) -> Option<String> {
        let certified = self.epoch_certificate.as_ref()?.group.epoch();
        let own = self.key.as_ref()?.group().epoch();
        (self.safe.is_none() && own < certified).then(|| {
            format!(
                "the key share is of epoch {own}, and the vault is at epoch {certified}: it comes from before a refresh \
                 that this operator did not take part in, or from a backup made before it. Shares of two epochs do not \
                 combine; have this one repaired"
            )
        })
    }

    /// The share is of no use any more.
    fn lose_share(&mut self) {
        self.safe = None;
        self.refresh = None;
        self.pending.clear();
        self.show();
    }
}

/// A share with the room for nonces that this operator's settings give it. It hands out none before it signs batches.
pub(super) fn new_safe(share: KeyShare, nonce_pool: usize) -> Arc<Mutex<KeySafe>> {
    let safe = KeySafe::with_pool(share, Reading::now(), nonce_pool);
    Arc::new(Mutex::new(safe))
}

/// An error with its causes, in one line.
fn in_words(error: &RefreshError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
