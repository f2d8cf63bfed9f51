//! Epochs of the operators' shares: watches what they hold, has all n certify a refresh that all have finished, and
//! changes to a certified epoch.
//!
//! ```text
//! Epoch from all n --equal new groups--> claim --n new shares--> certificate --gossip--> operators change, this node too
//!        '--a certificate that verifies under GROUP (also gossiped by another coordinator)------------------^
//! ```
//!
//! The key is the same at every epoch; what changes is the group that shares are verified and added up by.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bitcoin::secp256k1::schnorr;
use node::certificate;
use p2p::Network;
use protocol::{
    epoch::{EpochCertificate, EpochClaim},
    message::{Answer, Ask, Gossip, Subject, decode, encode},
    reputation::Standing,
    roster::Roster,
};
use storage::Changes;
use threshold::{GroupInfo, sign};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    gossip::{self, Outcome, Task},
    live::Live,
    pipeline::{Pipeline, StageError},
    records::GROUP,
};

/// How often operators are asked.
const WATCH: Duration = Duration::from_secs(2);
/// A claim that all n have not signed after this long gives way to batches.
const CLAIM_TIME: Duration = Duration::from_secs(30);
/// Pause before a claim that was not signed is proposed again.
const CLAIM_PAUSE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Found {
    certificate: Option<EpochCertificate>,
    /// A later group that all n hold shares of.
    finished: Option<GroupInfo>,
    /// When a claim may be proposed again, after one that was not signed.
    not_before: Option<Instant>,
}

impl Found {
    /// The group that may be claimed now.
    fn claimable(&self) -> Option<&GroupInfo> {
        let waits = |until| Instant::now() < until;
        self.finished
            .as_ref()
            .filter(|_| !self.not_before.is_some_and(waits))
    }
}

/// What is known of later epochs, for the pipeline to act on.
#[derive(Clone)]
pub struct Epochs {
    found: Arc<Mutex<Found>>,
    live: watch::Receiver<Live>,
    wake: Arc<Notify>,
}

impl Epochs {
    /// Nothing yet.
    pub fn new(live: watch::Receiver<Live>, wake: Arc<Notify>) -> Self {
        Self {
            found: Arc::default(),
            live,
            wake,
        }
    }

    /// Somebody shows a certificate. It counts if it is of a later epoch of this vault and verifies.
    pub fn offer(&self, certificate: EpochCertificate) {
        let vault = self.live.borrow().vault.clone();
        let Some(vault) = vault else { return };
        let epoch = certificate.group.epoch();
        let known = self.certified().unwrap_or(0).max(vault.group().epoch());
        if epoch <= known {
            return;
        }
        if let Err(error) = certificate.verify(&vault) {
            tracing::warn!(%error, epoch, "an epoch certificate was refused");
            return;
        }
        self.lock().certificate = Some(certificate);
        self.wake.notify_one();
    }

    /// The latest epoch that a certificate was shown for.
    fn certified(&self) -> Option<u32> {
        let found = self.lock();
        let certificate = found.certificate.as_ref();
        certificate.map(|certificate| certificate.group.epoch())
    }

    /// Whether a certificate for a later epoch than this is here.
    pub fn is_over(&self, epoch: u32) -> bool {
        self.certified().is_some_and(|certified| certified > epoch)
    }

    /// Whether a batch that is signed with shares of this epoch should give way: to the next epoch, or to the claim that
    /// brings it.
    pub fn wants_way(&self, epoch: u32) -> bool {
        let later = |group: &GroupInfo| group.epoch() > epoch;
        self.is_over(epoch) || self.lock().claimable().is_some_and(later)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the operators until `stop` is set.
pub async fn watch(network: Network, roster: Arc<Roster>, epochs: Epochs, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            () = stop.cancelled() => return,
        }
        if epochs.live.borrow().vault.is_none() {
            continue;
        }
        let finished = ask(&network, &roster, &epochs).await;
        let found = finished.is_some();
        epochs.lock().finished = finished;
        if found {
            epochs.wake.notify_one();
        }
    }
}

/// Hands on certificates, and gives the latest group that all n hold uncertified shares of.
async fn ask(network: &Network, roster: &Roster, epochs: &Epochs) -> Option<GroupInfo> {
    let connected = network.connected();
    let asks = roster
        .operators
        .iter()
        .filter(|member| connected.contains(&member.key))
        .map(|member| network.ask(member.key, encode(&Ask::Epoch)));
    let answers = futures::future::join_all(asks).await;
    let mut all = Vec::new();
    for answer in answers.into_iter().flatten() {
        if let Ok(Answer::Epoch {
            certificate,
            pending,
        }) = decode(&answer)
        {
            if let Some(certificate) = certificate {
                epochs.offer(certificate);
            }
            all.push(pending);
        }
    }
    if all.len() < roster.operators.len() {
        return None;
    }
    let first = all.first()?.iter();
    first
        .filter(|group| all.iter().all(|pending| pending.contains(group)))
        .max_by_key(|group| group.epoch())
        .cloned()
}

/// Changes to a certified epoch, or has a finished refresh certified. Gives whether there was anything to do.
///
/// # Errors
/// [`StageError`]; what was found is looked for again.
pub async fn run(pipeline: &mut Pipeline) -> Result<bool, StageError> {
    let own = pipeline.vault.group().epoch();
    let (certificate, finished) = {
        let mut found = pipeline.epochs.lock();
        (found.certificate.take(), found.claimable().cloned())
    };
    if let Some(certificate) = certificate.filter(|found| found.group.epoch() > own) {
        change(pipeline, certificate).await?;
        return Ok(true);
    }
    let Some(group) = finished.filter(|group| {
        group.epoch() > own && group.group_key() == pipeline.vault.group().group_key()
    }) else {
        return Ok(false);
    };
    let Some(certificate) = certify(pipeline, group).await else {
        pipeline.epochs.lock().not_before = Instant::now().checked_add(CLAIM_PAUSE);
        return Ok(false);
    };
    if let Err(error) = pipeline
        .network
        .publish(encode(&Gossip::Epoch(certificate.clone())))
        .await
    {
        tracing::warn!(%error, "the epoch was not gossiped; operators will ask for it");
    }
    change(pipeline, certificate).await?;
    Ok(true)
}

/// The certificate of a group, signed by all n with their new shares.
async fn certify(pipeline: &Pipeline, group: GroupInfo) -> Option<EpochCertificate> {
    let vault = pipeline.vault.id();
    let claim = EpochClaim::new(vault, &group);
    pipeline.say(format!("all operators certify epoch {}", claim.epoch));
    let task = Task {
        subject: Subject::Epoch(claim),
        messages: vec![sign::Message {
            digest: claim.digest(),
            tweak: sign::Tweak::Untweaked,
        }],
        group: group.clone(),
        needed: pipeline.roster.operators.len(),
        roster: pipeline.roster.clone(),
        standing: Standing::default(),
        me: pipeline.me,
        store: pipeline.store.clone(),
        pool: None,
    };
    let (stop, epochs, begin) = (
        pipeline.stop.clone(),
        pipeline.epochs.clone(),
        Instant::now(),
    );
    let own = pipeline.vault.group().epoch();
    let report = gossip::run(
        &pipeline.network,
        &pipeline.sessions,
        task,
        || stop.is_cancelled() || epochs.is_over(own) || begin.elapsed() > CLAIM_TIME,
        |refusals, waiting| {
            let waits_for = gossip::describe(waiting, &pipeline.roster);
            pipeline.say(format!(
                "all operators certify epoch {}: {waits_for}",
                claim.epoch
            ));
            !refusals.is_empty()
        },
    )
    .await;
    pipeline.say("idle".into());
    let report = report?;
    for (operator, refusal) in &report.refusals {
        tracing::warn!(%operator, %refusal, "an operator refuses the epoch");
    }
    let signature: schnorr::Signature = match &report.outcome {
        Outcome::Signed { signatures, .. } => *signatures.first()?,
        Outcome::Refused => return None,
    };
    Some(EpochCertificate {
        vault,
        group,
        signature,
    })
}

/// The record of the group and the certificate change together, then what is in memory.
async fn change(pipeline: &mut Pipeline, certificate: EpochCertificate) -> Result<(), StageError> {
    let vault = pipeline
        .vault
        .at_epoch(&certificate)
        .map_err(|error| StageError::Fault(error.to_string()))?;
    let epoch = certificate.group.epoch();
    let mut changes = Changes::new();
    changes.put(&GROUP, &(), &certificate.group);
    changes.put(&certificate::EPOCH, &(), &certificate);
    pipeline.commit(changes).await?;
    let vault = Arc::new(vault);
    pipeline.vault = vault.clone();
    pipeline.live.send_modify(|live| {
        live.key = Some(Arc::new(vault.key().clone()));
        live.vault = Some(vault);
    });
    tracing::info!(epoch, "the operators' shares are of a new epoch");
    Ok(())
}
