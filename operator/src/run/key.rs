//! From key generation to the open vault: questions to the other operators, the share, the certificate.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use chain::{FollowError, Follower};
use ledger::SequenceNumber;
use node::{
    certificate, clock,
    history::{self, History},
};
use protocol::{
    batch::{Body, BodyHash},
    identity::{PeerKey, Signed},
    message::{Answer, Ask},
    signer::{self, Quarantine},
    transaction::Treasury,
    vault::{GenesisCertificate, Vault, VaultKey},
};
use threshold::{GroupKey, KeyShare, dkg};
use tokio::sync::mpsc;

use super::{Event, MAX_STEPS, Node, Open, RunError, blocking, epoch::new_safe, fatal, lock};
use crate::{books::Books, promises};

/// Pause before a chain that can't be followed is reported, so that a supervisor does not spin.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

impl Node {
    /// Asks every connected operator from whom something is missing. One without the attestation that the roster
    /// requires counts as not there.
    pub(super) fn ask_dkg(&mut self) {
        let connected = self.peers.operators();
        for peer in self.generation.wanted().intersection(&connected) {
            if self.admits(peer).is_err() || !self.asking_dkg.insert(*peer) {
                continue;
            }
            let (peers, peer) = (self.peers.clone(), *peer);
            let ask = Ask::Dkg {
                context: self.generation.context(),
            };
            self.spawn(async move {
                let messages = match peers.ask(peer, &ask).await {
                    Ok(Answer::Dkg(messages)) => Some(messages),
                    Ok(Answer::Refused(refusal)) => {
                        tracing::warn!(%peer, %refusal, "no part in this key generation");
                        None
                    }
                    Ok(_) => None,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "no key generation messages");
                        None
                    }
                };
                Some(Event::Dkg(peer, messages))
            });
        }
    }

    pub(super) fn take_dkg(
        &mut self,
        peer: &PeerKey,
        messages: Option<Vec<Signed<dkg::Message>>>,
    ) -> Result<(), RunError> {
        self.asking_dkg.remove(peer);
        let Some(messages) = messages.filter(|_| self.admits(peer).is_ok()) else {
            return Ok(());
        };
        if let Some(share) = blocking(|| self.generation.take(peer, &messages))? {
            let key = share.group().group_key();
            tracing::info!(group_key = %key, "key generation finished; the share is on disk");
            blocking(|| {
                if let Err(error) = promises::save_complete(&self.store, key) {
                    promises::stop_on_failed_write(&error);
                }
            });
            self.use_share(share)?;
            self.show();
        }
        Ok(())
    }

    /// A share that finds no promises of its key in the database has come from a backup.
    pub(super) fn check_promises(&mut self, key: GroupKey) -> Result<(), RunError> {
        if !promises::are_complete(&self.store, key)? {
            self.lose_promises(key);
        }
        Ok(())
    }

    /// The share has come from elsewhere: what was promised with it is not known here, and the quarantine begins (S7).
    pub(super) fn lose_promises(&mut self, key: GroupKey) {
        tracing::warn!(
            "this operator was restored or repaired: it signs no batch before its quarantine is over (S7)"
        );
        let lost_ms = clock::now_ms();
        blocking(|| {
            if let Err(error) = promises::save_lost(&self.store, key, lost_ms) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.state.quarantine = Some(Quarantine::Syncing { lost_ms });
    }

    /// The time in the tip's block, if the own chain is followed to the tip of an own node that is itself at the
    /// network's.
    pub(super) fn caught_up(&self) -> Option<u64> {
        let node = self.node_status.borrow();
        let is_caught_up = self.open.is_some()
            && node.reachable
            && !node.initial_block_download
            && node.blocks >= node.headers
            && self.state.height >= node.blocks;
        is_caught_up.then_some(node.tip_time)
    }

    /// The share is on disk: from now on this operator knows its vault's script.
    pub(super) fn use_share(&mut self, share: KeyShare) -> Result<(), RunError> {
        self.open_refresh(&share)?;
        let group = share.group().clone();
        let key = VaultKey::new(group, (*self.parameters).clone(), (*self.roster).clone())?;
        self.key = Some(Arc::new(key));
        self.safe = Some(new_safe(share, self.nonce_pool));
        self.tell_epochs();
        Ok(())
    }

    /// Asks around for the certificate, until it is known.
    pub(super) fn ask_certificate(&self) {
        if self.key.is_none() || self.open.is_some() {
            return;
        }
        for peer in self.peers.connected() {
            let peers = self.peers.clone();
            self.spawn(async move {
                match peers.ask(peer, &Ask::Genesis).await {
                    Ok(Answer::Genesis(Some(certificate))) => Some(Event::Certificate(certificate)),
                    _ => None,
                }
            });
        }
    }

    /// Somebody shows a certificate. What does not fit this operator's own key is of no use.
    pub(super) fn learn_certificate(
        &mut self,
        certificate: &GenesisCertificate,
    ) -> Result<(), RunError> {
        let Some(key) = self.key.as_ref().filter(|_| self.open.is_none()) else {
            return Ok(());
        };
        let hash = self.verifying_key.hash().0;
        if let Err(error) = Vault::open((**key).clone(), certificate.clone(), hash) {
            tracing::warn!(%error, "a genesis certificate was refused");
            return Ok(());
        }
        blocking(|| {
            if let Err(error) = certificate::save(&self.store, certificate) {
                promises::stop_on_failed_write(&error);
            }
        });
        self.use_certificate(certificate)?;
        blocking(|| self.generation.finish())?;
        self.show();
        Ok(())
    }

    /// Opens the vault and follows its treasury.
    pub(super) fn use_certificate(
        &mut self,
        certificate: &GenesisCertificate,
    ) -> Result<(), RunError> {
        let Some(key) = &self.key else { return Ok(()) };
        let vault = Arc::new(Vault::open(
            (**key).clone(),
            certificate.clone(),
            self.verifying_key.hash().0,
        )?);
        let outpoint = vault.genesis_output().outpoint;
        let seen = self.genesis.filter(|genesis| genesis.outpoint == outpoint);
        let start = seen.map_or(self.scan_from, |genesis| genesis.height);
        let history =
            blocking(|| History::open(self.store.clone(), vault.clone(), start)).map_err(fatal)?;
        let follower = Follower::new(
            self.rpc.clone(),
            self.parameters.network,
            history.position().clone(),
        );
        self.node_status = follower.status();
        let (steps, received) = mpsc::channel(MAX_STEPS);
        tokio::spawn(follow(follower, steps));
        self.steps = Some(received);
        let books = Books::new(history, self.store.clone(), vault.clone());
        tracing::info!(vault = %vault.id(), genesis = %outpoint, start, "the vault is open");
        self.open = Some(Open {
            vault,
            books: Arc::new(Mutex::new(books)),
        });
        self.chain_moved();
        self.change_epoch()
    }

    /// Tells the machine where the chain is.
    pub(super) fn chain_moved(&mut self) {
        let Some(open) = &self.open else { return };
        let (head, height) = {
            let books = lock(&open.books);
            (books.history.head(), books.history.height())
        };
        let lost = self.lost_body(&head);
        self.step(signer::Input::Chain {
            head: Some(head),
            height,
        });
        self.step(signer::Input::Lost(lost));
    }

    /// The body that was signed on the treasury and can't be confirmed any more (S7): the payment of a deposit in it left
    /// the chain, and something else has spent its coins, as deep as a deposit must be.
    fn lost_body(&self, head: &Treasury) -> Option<BodyHash> {
        let books = lock(&self.open.as_ref()?.books);
        let depth = self.parameters.deposit_confirmations;
        let lost: BTreeMap<_, _> = books.history.all_lost(depth).into_iter().collect();
        if lost.is_empty() {
            return None;
        }
        let next = SequenceNumber(head.commitment.sequence.0.saturating_add(1));
        let promise = self.state.promises.get(&(next, head.outpoint))?;
        let kept = blocking(|| history::kept_body(&self.store, &promise.body));
        let body = Body::decode(&kept.ok()??).ok()?;
        let (deposit, by) = body
            .deposits()
            .find_map(|(outpoint, _)| Some((outpoint, lost.get(&outpoint.txid)?.by)))?;
        if self.state.lost != Some(promise.body) {
            tracing::warn!(sequence = next.0, %deposit, %by, "the batch that was signed can't be confirmed any more: a deposit in it was double-spent (S7)");
        }
        Some(promise.body)
    }
}

async fn follow(mut follower: Follower, steps: mpsc::Sender<Result<chain::Step, FollowError>>) {
    loop {
        let step = follower.next().await;
        let failed = step.is_err();
        if failed {
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
        if steps.send(step).await.is_err() || failed {
            return;
        }
    }
}
