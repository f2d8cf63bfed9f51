//! What the liar knows before it lies. It starts from an empty disk, as any coordinator can: group, certificate and
//! batches come from the operators, the treasury from its own Bitcoin node.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bitcoin::OutPoint;
use chain::BitcoinRpc;
use ledger::{Ledger, SequenceNumber};
use proof::{ChunkProof, Keys, ProvingKey, prove_chunk};
use protocol::{
    batch::{Body, Candidate},
    identity::PeerKey,
    message::{Answer, Ask},
    parameters::Parameters,
    roster::Roster,
    transaction::{Commitment, Treasury},
    vault::{Vault, VaultKey},
};
use tokio::sync::Semaphore;

use super::wire::Wire;

/// Most batches that the liar replays: it is meant for young vaults.
const MAX_BATCHES: u64 = 1_000;

/// The vault, its ledger and its treasury; and the means to prove.
pub struct Standing {
    /// The vault.
    pub vault: Arc<Vault>,
    /// The treasury that the next batch spends.
    pub head: Treasury,
    /// The ledger there.
    pub ledger: Ledger,
    /// The confirmed batches, from the first on.
    pub past: Vec<(Candidate, Body)>,
    keys: Arc<ProvingKey>,
    /// A proof takes all cores: one at a time.
    proving: Semaphore,
}

impl Standing {
    /// Learns everything from one operator.
    ///
    /// # Errors
    /// When it does not answer, or its answers don't fit together.
    pub async fn learn(
        wire: &Wire,
        from: PeerKey,
        rpc: &BitcoinRpc,
        roster: Roster,
        parameters: Parameters,
        keys: Keys,
    ) -> anyhow::Result<Self> {
        let Answer::Group(Some(group)) = wire.ask(from, &Ask::Group).await? else {
            bail!("no group is known");
        };
        let Answer::Genesis(Some(certificate)) = wire.ask(from, &Ask::Genesis).await? else {
            bail!("no genesis is certified");
        };
        let key = VaultKey::new(group, parameters, roster)?;
        let vault = Arc::new(Vault::open(key, certificate, keys.verifying.hash().0)?);
        let mut ledger = Ledger::new();
        let mut past = Vec::new();
        for sequence in (1..MAX_BATCHES).map(SequenceNumber) {
            let Answer::Batch(batch) = wire.ask(from, &Ask::Batch(sequence)).await? else {
                bail!("no answer about batch {sequence}");
            };
            let Some((candidate, body)) = batch else {
                break;
            };
            let body = Body::decode(&body)?;
            ledger
                .apply_batch(&body.operations, &vault.id(), sequence)
                .map_err(|(index, error)| {
                    anyhow::anyhow!("operation {index} of batch {sequence}: {error}")
                })?;
            past.push((candidate, body));
        }
        let (last, _) = past
            .last()
            .context("the vault has no batch yet: there is nothing to lie about")?;
        let outpoint = OutPoint::new(last.txid, 0);
        let output = rpc
            .unspent_output(outpoint, false)
            .await?
            .context("the treasury is not on the chain")?;
        ensure!(
            output.script_pubkey == *vault.script_pubkey(),
            "the treasury pays another script"
        );
        let head = Treasury {
            outpoint,
            value: output.value,
            commitment: Commitment {
                sequence: last.sequence,
                supply: ledger.supply(),
                digest: ledger.digest().to_bytes(),
            },
        };
        Ok(Self {
            vault,
            head,
            ledger,
            past,
            keys: Arc::new(keys.proving),
            proving: Semaphore::new(1),
        })
    }

    /// The sequence number of the next batch.
    pub fn next(&self) -> SequenceNumber {
        SequenceNumber(self.head.commitment.sequence.0.saturating_add(1))
    }

    /// Proves chunks, one after the other.
    ///
    /// # Errors
    /// When the circuit refuses one: what it claims breaks a rule that is proven.
    pub async fn prove(
        &self,
        chunks: Vec<ledger::ChunkWitness>,
    ) -> anyhow::Result<Vec<ChunkProof>> {
        let _turn = self.proving.acquire().await?;
        let keys = self.keys.clone();
        tokio::task::spawn_blocking(move || {
            chunks
                .iter()
                .map(|chunk| Ok(prove_chunk(&keys, chunk)?))
                .collect()
        })
        .await?
    }
}
