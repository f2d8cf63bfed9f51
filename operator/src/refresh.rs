//! Refresh: carries the messages of `threshold::refresh` between operators, and keeps the new share beside the old one
//! until the certificate of the new epoch is here.
//!
//! ```text
//! administrator's word --> seed on disk --> Machine <--asks every operator that it misses something from
//!                                              | finished: all n confirmed one transcript
//!                                              v
//!                 new share on disk beside the old --signed claim of all n--> certificate --> renamed over the old
//! ```
//!
//! All n take part or nothing comes of it. Every attempt leads to an epoch of its own: an attempt that failed, or that
//! nobody certified, is never taken up again under the same number, and the highest certified epoch is the vault's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    identity::{Identity, PeerKey, Signed},
    message::{Answer, Ask, REFRESH_DOMAIN, Refusal, Rule},
    roster::Roster,
};
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use threshold::{
    GroupInfo, KeyShare, ShareError,
    dkg::{CeremonyError, Machine, Message, Progress, Reject, Seed, Stage},
    refresh,
};

use crate::keys::{KeyFileError, KeyFiles, RefreshSeed};

/// Messages in one answer: one of each kind.
const MAX_MESSAGES: usize = 4;
/// How far another operator's word can raise the number of the epoch after the administrator has asked for a refresh:
/// attempts that others know of and this operator has not finished.
const MAX_SKIP: u32 = 16;

/// Why a refresh can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is nothing to refresh.
    #[error("this operator holds no key share")]
    NoShare,
    /// The share on disk is another than the one in use.
    #[error("the key share on disk is not the one in use; restart the node")]
    OtherShare,
    /// A key file.
    #[error("a key file can't be used")]
    Keys(#[from] KeyFileError),
    /// No such refresh.
    #[error("the refresh can't start")]
    Ceremony(#[from] CeremonyError),
    /// The share does not read back.
    #[error("the new key share does not read back")]
    Share(#[from] ShareError),
    /// Numbers have run out.
    #[error("there are no more epochs")]
    NoMoreEpochs,
}

/// How the administrator's word was taken, with the epoch that the refresh leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begun {
    /// It has begun.
    Now(u32),
    /// It was under way.
    Before(u32),
    /// It is finished here and waits for the certificate.
    Finished(u32),
}

/// A refresh under way.
struct Running {
    epoch: u32,
    /// The highest epoch that others can raise it to.
    limit: u32,
    machine: Machine,
    /// The new share is on disk.
    has_share: bool,
}

/// This operator's part in refreshes.
pub struct Refresh {
    keys: Arc<KeyFiles>,
    roster: Arc<Roster>,
    identity: Arc<Identity>,
    context: [u8; 32],
    /// The group that is refreshed: of the share that signs.
    base: GroupInfo,
    /// Shares on disk that wait for a certificate.
    pending: BTreeMap<u32, GroupInfo>,
    running: Option<Running>,
    /// What operators said who take no part.
    unwilling: BTreeMap<PeerKey, String>,
}

impl Refresh {
    /// For the share that signs. Resumes a refresh that was under way, and gives the shares of later epochs.
    ///
    /// # Errors
    /// [`RefreshError`].
    pub fn open(
        keys: Arc<KeyFiles>,
        roster: Arc<Roster>,
        identity: Arc<Identity>,
        context: [u8; 32],
        share: &KeyShare,
    ) -> Result<(Self, BTreeMap<u32, KeyShare>), RefreshError> {
        let base = share.group().clone();
        let mut shares = keys.load_pending()?;
        shares.retain(|epoch, pending| {
            *epoch > base.epoch() && pending.group().group_key() == base.group_key()
        });
        let pending: BTreeMap<u32, GroupInfo> = shares
            .iter()
            .map(|(epoch, share)| (*epoch, share.group().clone()))
            .collect();
        let seed = keys.load_refresh()?;
        let running = match seed {
            Some(seed) if seed.base == base.digest() => {
                let machine = refresh::machine(share, seed.epoch, &context, &seed.seed)?;
                Some(Running {
                    epoch: seed.epoch,
                    limit: seed.epoch.saturating_add(MAX_SKIP),
                    machine,
                    has_share: pending.contains_key(&seed.epoch),
                })
            }
            // Of a share that another has replaced.
            Some(_) => {
                keys.delete_refresh()?;
                None
            }
            None => None,
        };
        let refresh = Self {
            keys,
            roster,
            identity,
            context,
            base,
            pending,
            running,
            unwilling: BTreeMap::new(),
        };
        Ok((refresh, shares))
    }

    /// The administrator asks for a refresh. One that is under way goes on, unless it has failed or the
    /// administrator wants it `anew`.
    ///
    /// # Errors
    /// [`RefreshError`]; nothing has changed then.
    pub fn begin(&mut self, anew: bool) -> Result<Begun, RefreshError> {
        if let Some(running) = self.running.as_ref().filter(|_| !anew) {
            match running.machine.progress().stage {
                Stage::Stopped => {}
                _ if running.has_share => return Ok(Begun::Finished(running.epoch)),
                _ => return Ok(Begun::Before(running.epoch)),
            }
        }
        let last_pending = self.pending.keys().next_back().copied().unwrap_or(0);
        let tried = self.running.as_ref().map_or(0, |running| running.epoch);
        let epoch = self.base.epoch().max(last_pending).max(tried);
        let epoch = epoch.checked_add(1).ok_or(RefreshError::NoMoreEpochs)?;
        self.start(epoch, epoch.saturating_add(MAX_SKIP))?;
        self.unwilling.clear();
        Ok(Begun::Now(epoch))
    }

    /// A fresh seed on disk, then the machine.
    fn start(&mut self, epoch: u32, limit: u32) -> Result<(), RefreshError> {
        let share = self.keys.load_share()?.ok_or(RefreshError::NoShare)?;
        if *share.group() != self.base {
            return Err(RefreshError::OtherShare);
        }
        let seed = RefreshSeed {
            base: self.base.digest(),
            epoch,
            seed: Seed::random(&mut OsRng),
        };
        self.keys.save_refresh(&seed)?;
        self.running = Some(Running {
            epoch,
            limit,
            machine: refresh::machine(&share, epoch, &self.context, &seed.seed)?,
            has_share: false,
        });
        Ok(())
    }

    /// The epoch that is refreshed to, and where that stands; `None` when no refresh is under way.
    pub fn progress(&self) -> Option<(u32, Progress)> {
        let running = self.running.as_ref()?;
        Some((running.epoch, running.machine.progress()))
    }

    /// Operators that take no part, and what they said.
    pub fn unwilling(&self) -> &BTreeMap<PeerKey, String> {
        &self.unwilling
    }

    /// Groups of later epochs whose shares are on disk.
    pub fn pending(&self) -> &BTreeMap<u32, GroupInfo> {
        &self.pending
    }

    /// Whom to ask next: those from whom something is missing.
    pub fn wanted(&self) -> BTreeSet<PeerKey> {
        let missing = self
            .progress()
            .map(|(_, progress)| progress.missing)
            .unwrap_or_default();
        let own = self.identity.public();
        missing
            .into_iter()
            .filter_map(|signer| self.roster.operator(signer))
            .map(|member| member.key)
            .filter(|key| *key != own)
            .collect()
    }

    /// What to ask them.
    pub fn question(&self) -> Option<Ask> {
        let running = self.running.as_ref()?;
        Some(Ask::Refresh {
            base: self.base.digest(),
            epoch: running.epoch,
        })
    }

    /// The answer to an operator that asks. It may hold a secret for that operator, so it must go to nobody
    /// else.
    ///
    /// # Errors
    /// A [`Refusal`] if this operator takes no part in such a refresh.
    pub fn answer(
        &mut self,
        peer: &PeerKey,
        base: &[u8; 32],
        epoch: u32,
    ) -> Result<Answer, Refusal> {
        let signer = self
            .roster
            .signer(peer)
            .ok_or_else(|| refuse("a refresh is for operators"))?;
        if *base != self.base.digest() {
            let own = self.base.epoch();
            return Err(refuse(format!(
                "this operator's share is of epoch {own} and another group"
            )));
        }
        self.follow(peer, epoch);
        let running = self.running.as_ref().ok_or_else(|| {
            refuse("this operator's administrator has not asked for a refresh yet")
        })?;
        let messages = if running.epoch == epoch {
            running.machine.messages_for(signer)
        } else {
            Vec::new()
        };
        Ok(Answer::Refresh {
            epoch: running.epoch,
            messages: messages
                .into_iter()
                .map(|message| self.identity.sign(REFRESH_DOMAIN, message))
                .collect(),
        })
    }

    /// An operator takes no part, and says why.
    pub fn refused(&mut self, peer: PeerKey, refusal: &Refusal) {
        self.unwilling.insert(peer, refusal.reason.clone());
    }

    /// Takes what `from` has answered. Gives the new share when that finished the refresh; it is on disk then.
    ///
    /// # Errors
    /// [`RefreshError`] when seed or share can't be written. Bad messages are logged, and change nothing.
    pub fn take(
        &mut self,
        from: &PeerKey,
        epoch: u32,
        messages: &[Signed<Message>],
    ) -> Result<Option<KeyShare>, RefreshError> {
        self.unwilling.remove(from);
        self.follow(from, epoch);
        let (Some(running), Some(signer)) = (&mut self.running, self.roster.signer(from)) else {
            return Ok(None);
        };
        if running.epoch != epoch {
            return Ok(None);
        }
        for message in messages.iter().take(MAX_MESSAGES) {
            match message.verify(REFRESH_DOMAIN) {
                Ok((by, message)) if by == *from => {
                    match running.machine.receive(signer, message.clone()) {
                        Ok(()) => {}
                        Err(Reject::Stopped(failure)) => {
                            tracing::error!(%from, %failure, culprits = ?failure.culprits(), "the refresh has stopped");
                        }
                        Err(reject) => tracing::warn!(%from, %reject, "refresh message refused"),
                    }
                }
                _ => tracing::warn!(%from, "refresh message with another's signature"),
            }
        }
        let Some(share) = running.machine.finished().filter(|_| !running.has_share) else {
            return Ok(None);
        };
        self.keys.save_pending(share)?;
        running.has_share = true;
        self.pending.insert(running.epoch, share.group().clone());
        Ok(Some(KeyShare::from_secret_bytes(
            &share.to_secret_bytes()?,
        )?))
    }

    /// Another operator has begun again, under a higher number: goes along, unless this one's share is finished.
    fn follow(&mut self, peer: &PeerKey, epoch: u32) {
        let Some(running) = self.running.as_ref() else {
            return;
        };
        if running.has_share || epoch <= running.epoch || epoch > running.limit {
            return;
        }
        let limit = running.limit;
        tracing::info!(%peer, epoch, "another operator has begun the refresh again; going along");
        if let Err(error) = self.start(epoch, limit) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the refresh can't begin again"
            );
        }
    }

    /// The certificate of `epoch` is on disk: its share becomes the one that signs, and what led there goes.
    ///
    /// # Errors
    /// [`RefreshError`] when a file can't be renamed or deleted; doing it again is safe.
    pub fn promote(&mut self, epoch: u32) -> Result<(), RefreshError> {
        let Some(group) = self.pending.get(&epoch).cloned() else {
            return Err(RefreshError::NoShare);
        };
        self.keys.promote(epoch)?;
        self.keys.delete_refresh()?;
        self.pending.retain(|later, _| *later > epoch);
        self.base = group;
        self.running = None;
        self.unwilling.clear();
        Ok(())
    }
}

/// Before anything else at start: a crash may have come between the certificate and the rename.
///
/// # Errors
/// [`KeyFileError`].
pub fn settle(keys: &KeyFiles, certified: &GroupInfo) -> Result<(), KeyFileError> {
    let epoch = certified.epoch();
    let own = keys.load_share()?;
    if own.is_some_and(|share| share.group().epoch() >= epoch) {
        return Ok(());
    }
    match keys.load_pending()?.get(&epoch) {
        Some(pending) if pending.group() == certified => keys.promote(epoch),
        _ => Ok(()),
    }
}

fn refuse(reason: impl Into<String>) -> Refusal {
    Refusal::new(Rule::S12, reason)
}

#[cfg(test)]
mod tests;
