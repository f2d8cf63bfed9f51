//! Before the first batch: learns the group from the operators, finds the output that funds the vault, and
//! has all n operators certify it.
//!
//! ```text
//! Group from all n, equal --> vault address --payment, deep enough--> genesis --n shares--> certificate
//! ```

use std::{collections::HashSet, sync::Arc, time::Duration};

use bitcoin::{Amount, OutPoint};
use chain::{
    follow::{ChainEvent, Follower},
    position::Position,
    rpc::BitcoinRpc,
    scan,
};
use node::certificate;
use p2p::Network;
use protocol::{
    identity::PeerKey,
    message::{Answer, Ask, Gossip, Subject, decode, encode},
    parameters::Parameters,
    reputation::Standing,
    roster::Roster,
    signing::Waiting,
    transaction::TREASURY_DUST,
    vault::{GenesisCertificate, Vault, VaultKey},
};
use storage::{Changes, Store};
use threshold::{GroupInfo, sign};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    gossip::{self, Outcome, Sessions, Task},
    live::Live,
    pipeline::StageError,
    rebuild,
    records::{GENESIS_SEARCH, GROUP},
};

/// How often operators and chain are asked.
const POLL: Duration = Duration::from_millis(500);
/// Between two questions to all whether they know a genesis, while one is being made.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What genesis needs.
pub struct Founding<'a> {
    /// The database.
    pub store: &'a Store,
    /// The network.
    pub network: &'a Network,
    /// Where the network's events find the session.
    pub sessions: &'a Sessions,
    /// Own Bitcoin node.
    pub rpc: &'a BitcoinRpc,
    /// The agreed parameters.
    pub parameters: &'a Parameters,
    /// The agreed roster.
    pub roster: Arc<Roster>,
    /// Hash of the verifying key.
    pub verifying_key_hash: [u8; 32],
    /// This coordinator.
    pub me: PeerKey,
    /// What is known now.
    pub live: &'a watch::Sender<Live>,
    /// Set on shutdown.
    pub stop: &'a CancellationToken,
}

impl Founding<'_> {
    /// The vault: from the database, else by founding it. `None` on shutdown.
    ///
    /// # Errors
    /// [`StageError`] that no waiting mends.
    pub async fn vault(&self) -> Result<Option<Vault>, StageError> {
        let Some(group) = self.group().await? else {
            return Ok(None);
        };
        let key = VaultKey::new(group, self.parameters.clone(), (*self.roster).clone())?;
        let address = key
            .address()
            .map(|address| address.to_string())
            .unwrap_or_default();
        self.live.send_modify(|live| {
            live.key = Some(Arc::new(key.clone()));
            live.phase = format!("waiting for the genesis payment to {address}");
        });
        if let Some(found) = certificate::load(self.store)? {
            return Ok(Some(Vault::open(key, found, self.verifying_key_hash)?));
        }
        if let Some(vault) = self.founded_before(&key).await? {
            return Ok(Some(vault));
        }
        tracing::info!(%address, "key generation is finished; fund the vault to create its genesis");
        tokio::select! {
            founded = self.found(key.clone()) => founded,
            // This coordinator may have lost its disk, and nobody who knows was there a moment ago.
            known = self.until_known(&key) => known.map(Some),
        }
    }

    /// From the payment to the certificate.
    async fn found(&self, key: VaultKey) -> Result<Option<Vault>, StageError> {
        let Some((outpoint, amount)) = self.funding(&key).await? else {
            return Ok(None);
        };
        let Some(certificate) = self.certify(&key, outpoint, amount).await? else {
            return Ok(None);
        };
        let vault = Vault::open(key, certificate.clone(), self.verifying_key_hash)?;
        let store = self.store.clone();
        let kept = certificate.clone();
        tokio::task::spawn_blocking(move || certificate::save(&store, &kept))
            .await
            .map_err(|error| StageError::Fault(error.to_string()))??;
        if let Err(error) = self
            .network
            .publish(encode(&Gossip::Genesis(certificate)))
            .await
        {
            tracing::warn!(%error, "the genesis was not gossiped; operators will ask for it");
        }
        Ok(Some(vault))
    }

    async fn until_known(&self, key: &VaultKey) -> Result<Vault, StageError> {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            if let Some(vault) = self.founded_before(key).await? {
                return Ok(vault);
            }
        }
    }

    /// The vault as other nodes know it: this coordinator has lost its disk, or is new. All n operators have signed the
    /// certificate; the height of the genesis is what this node's own chain says.
    async fn founded_before(&self, key: &VaultKey) -> Result<Option<Vault>, StageError> {
        for peer in self.network.connected() {
            let Some((found, height)) = rebuild::certificate(self.network, peer).await else {
                continue;
            };
            let vault = match Vault::open(key.clone(), found.clone(), self.verifying_key_hash) {
                Ok(vault) => vault,
                Err(error) => {
                    tracing::warn!(%peer, %error, "a node's genesis certificate is not this vault's");
                    continue;
                }
            };
            let Some(height) = height else { continue };
            match self
                .is_in_block(vault.genesis_output().outpoint, height)
                .await
            {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(%peer, height, "the genesis is not in the block that a node names");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%peer, height, %error, "the block that a node names for the genesis can't be read");
                    continue;
                }
            }
            rebuild::save(self.store, &found, height)?;
            tracing::info!(%peer, height, "the genesis certificate came from another node");
            return Ok(Some(vault));
        }
        Ok(None)
    }

    async fn is_in_block(&self, outpoint: OutPoint, height: u32) -> Result<bool, StageError> {
        let Some(hash) = self.rpc.block_hash_at(height).await? else {
            return Ok(false);
        };
        let block = self.rpc.block(hash).await?;
        Ok(block
            .txdata
            .iter()
            .any(|transaction| transaction.compute_txid() == outpoint.txid))
    }

    /// The group, as all n operators say.
    async fn group(&self) -> Result<Option<GroupInfo>, StageError> {
        if let Some(group) = self.store.get(&GROUP, &())? {
            return Ok(Some(group));
        }
        loop {
            if let Some(group) = self.ask_group().await {
                let mut changes = Changes::new();
                changes.put(&GROUP, &(), &group);
                if self.store.get(&GENESIS_SEARCH, &())?.is_none() {
                    changes.put(&GENESIS_SEARCH, &(), &self.rpc.chain_info().await?.blocks);
                }
                self.store.commit(changes)?;
                return Ok(Some(group));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.stop.cancelled() => return Ok(None),
            }
        }
    }

    async fn ask_group(&self) -> Option<GroupInfo> {
        let asks = self
            .roster
            .operators
            .iter()
            .map(|member| self.network.ask(member.key, encode(&Ask::Group)));
        let answers = futures::future::join_all(asks).await;
        let groups: Vec<GroupInfo> = answers
            .into_iter()
            .filter_map(|answer| match decode(&answer.ok()?) {
                Ok(Answer::Group(group)) => group,
                _ => None,
            })
            .collect();
        let finished = groups.len();
        self.live.send_modify(|live| {
            live.phase = format!(
                "key generation: {finished} of {} operators have finished",
                self.roster.operators.len()
            );
        });
        let first = groups.first()?;
        if finished < self.roster.operators.len() {
            return self.certified(&groups).await;
        }
        if groups.iter().any(|group| group != first)
            && groups
                .iter()
                .all(|group| group.group_key() == first.group_key())
        {
            tracing::info!("the operators are on their way to a new epoch; waiting for all");
            return None;
        }
        if groups.iter().any(|group| group != first) {
            tracing::error!(
                "operators name different group keys; key generation has to be repeated"
            );
            return None;
        }
        Some(first.clone())
    }

    /// Once there is a genesis, not all operators have to be there: t equal answers are at least one honest one's, and
    /// the certificate shows that key generation had finished.
    async fn certified(&self, groups: &[GroupInfo]) -> Option<GroupInfo> {
        let threshold = usize::from(self.roster.threshold);
        let is_said =
            |group: &&GroupInfo| groups.iter().filter(|other| other == group).count() >= threshold;
        let group = groups.iter().find(is_said)?;
        let parameters = self.parameters.clone();
        let key = VaultKey::new(group.clone(), parameters, (*self.roster).clone()).ok()?;
        for peer in self.network.connected() {
            if let Some((found, _)) = rebuild::certificate(self.network, peer).await
                && Vault::open(key.clone(), found, self.verifying_key_hash).is_ok()
            {
                return Some(group.clone());
            }
        }
        None
    }

    /// The first payment to the vault that is deep enough.
    async fn funding(&self, key: &VaultKey) -> Result<Option<(OutPoint, Amount)>, StageError> {
        let start = self.store.get(&GENESIS_SEARCH, &())?.unwrap_or(0);
        let mut follower = Follower::new(
            self.rpc.clone(),
            self.parameters.network,
            Position::starting_at(start),
        );
        let watched = HashSet::from([key.script_pubkey().clone()]);
        let mut found = Vec::new();
        loop {
            let step = tokio::select! {
                step = follower.next() => step?,
                () = self.stop.cancelled() => return Ok(None),
            };
            let ChainEvent::Connected { height, block, .. } = step.event else {
                found.clear();
                follower = Follower::new(
                    self.rpc.clone(),
                    self.parameters.network,
                    Position::starting_at(start),
                );
                continue;
            };
            self.live.send_modify(|live| live.height = height);
            found.extend(
                scan::find_deposits(&block, &watched)
                    .into_iter()
                    .filter(|output| output.value >= TREASURY_DUST && !output.coinbase)
                    .map(|output| (output.outpoint, output.value)),
            );
            for (outpoint, value) in &found {
                let unspent = self.rpc.unspent_output(*outpoint, false).await?;
                if unspent.is_some_and(|output| {
                    output.confirmations >= self.parameters.genesis_confirmations
                }) {
                    return Ok(Some((*outpoint, *value)));
                }
            }
        }
    }

    /// The certificate, signed by all n.
    async fn certify(
        &self,
        key: &VaultKey,
        outpoint: OutPoint,
        amount: Amount,
    ) -> Result<Option<GenesisCertificate>, StageError> {
        let genesis = key.genesis(outpoint, amount, self.verifying_key_hash);
        self.live.send_modify(|live| {
            live.phase = format!("all operators certify the genesis {outpoint}")
        });
        loop {
            let task = Task {
                subject: Subject::Genesis(genesis.clone()),
                messages: vec![sign::Message {
                    digest: genesis.digest(),
                    tweak: sign::Tweak::Untweaked,
                }],
                group: key.group().clone(),
                needed: self.roster.operators.len(),
                roster: self.roster.clone(),
                standing: Standing::default(),
                me: self.me,
                store: self.store.clone(),
                pool: None,
            };
            let wait = |waiting: &Waiting| {
                let waits_for = gossip::describe(waiting, &self.roster);
                self.live.send_modify(|live| {
                    live.phase =
                        format!("all operators certify the genesis {outpoint}: {waits_for}");
                });
            };
            // Every operator has to sign: one refusal is too many.
            let report = gossip::run(
                self.network,
                self.sessions,
                task,
                || self.stop.is_cancelled(),
                |refusals, waiting| {
                    wait(waiting);
                    !refusals.is_empty()
                },
            )
            .await;
            let Some(report) = report else {
                return Ok(None);
            };
            if let Outcome::Signed { signatures, .. } = &report.outcome
                && let [signature] = signatures.as_slice()
            {
                return Ok(Some(GenesisCertificate {
                    genesis,
                    signature: *signature,
                }));
            }
            for (operator, refusal) in &report.refusals {
                tracing::warn!(%operator, %refusal, "an operator refuses the genesis");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
