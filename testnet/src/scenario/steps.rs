//! What scenarios do and wait for, step by step.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bitcoin::{Address, Amount, OutPoint, Txid};
use ledger::OperationId;
use protocol::api::{BatchDocument, BatchStatus, RequestStatus};
use wallet::{
    client::Client,
    send::{SendError, Sent},
};

use super::{BLOCK_EVERY, STEP, Story, User};
use crate::network::LocalNetwork;

/// Between two tries of a user.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until a batch is somewhere; no block is mined meanwhile.
pub(super) async fn until_batch(
    network: &mut LocalNetwork,
    sequence: u64,
    status: BatchStatus,
) -> anyhow::Result<BatchDocument> {
    let what = format!("batch {sequence} to be {status:?}");
    network
        .wait_for(&what, STEP, async |network| {
            let batch = network.client.batch(sequence).await.ok();
            Ok(batch.filter(|batch| batch.status == status))
        })
        .await
}

/// Waits until coordinator and operators hold this batch for the latest one in the chain.
pub(super) async fn until_all_at(network: &mut LocalNetwork, sequence: u64) -> anyhow::Result<()> {
    let what = format!("all nodes to be at batch {sequence}");
    network
        .wait_for(&what, STEP, async |network| {
            let Ok(status) = network.client.status().await else {
                return Ok(None);
            };
            let mut all = status.sequence == sequence;
            for node in &network.operators {
                let status = node.ask(&["status"]).await.ok();
                let own = status.and_then(|status| status.get("sequence")?.as_u64());
                all &= own == Some(sequence);
            }
            Ok(all.then_some(()))
        })
        .await
}

/// Waits until coordinator and operators have stopped with an alarm of these words. Gives the coordinator's.
pub(super) async fn until_all_alarmed(
    network: &mut LocalNetwork,
    words: &str,
) -> anyhow::Result<String> {
    network
        .wait_for("the alarm at all nodes", STEP, async |network| {
            let shown = network.client.status().await.ok();
            let alarm = shown.and_then(|status| status.alarm);
            let Some(alarm) = alarm.filter(|alarm| alarm.contains(words)) else {
                return Ok(None);
            };
            for node in &network.operators {
                let shown = node.ask(&["status"]).await.ok();
                let own = shown
                    .as_ref()
                    .and_then(|status| status.get("alarm")?.as_str());
                if !own.is_some_and(|own| own.contains(words)) {
                    return Ok(None);
                }
            }
            Ok(Some(alarm))
        })
        .await
}

/// Waits until a transaction is in the node's mempool.
pub(super) async fn until_in_mempool(network: &mut LocalNetwork, txid: Txid) -> anyhow::Result<()> {
    network
        .wait_for("the transaction in the mempool", STEP, async |network| {
            let entry = network.bitcoind.rpc().mempool_entry(txid).await?;
            Ok(entry.map(|_| ()))
        })
        .await
}

/// Waits until the coordinator takes requests.
pub(super) async fn until_ready(network: &mut LocalNetwork) -> anyhow::Result<()> {
    network
        .wait_for("readiness", STEP, async |network| {
            let is_ready = network.client.is_ready().await.unwrap_or(false);
            Ok(is_ready.then_some(()))
        })
        .await
}

/// Pays an address. Gives the output.
pub(super) async fn pay(
    network: &mut LocalNetwork,
    address: &Address,
    sats: u64,
) -> anyhow::Result<OutPoint> {
    let value = Amount::from_sat(sats);
    let txid = network.bitcoind.fund(address, value).await?;
    let transaction = network
        .bitcoind
        .rpc()
        .transaction(txid, None)
        .await?
        .context("own payment not found")?;
    let vout = transaction
        .output
        .iter()
        .position(|output| output.script_pubkey == address.script_pubkey())
        .context("own payment has no such output")?;
    Ok(OutPoint::new(txid, u32::try_from(vout)?))
}

/// Pays a user's new deposit address. A coordinator that can't have it copied just now is asked again.
pub(super) async fn deposit(
    network: &mut LocalNetwork,
    user: &mut User,
    sats: u64,
    story: &Story,
) -> anyhow::Result<OutPoint> {
    let wallet = &user.wallet;
    let backup = network
        .wait_for("a deposit address", STEP, async |network| {
            Ok(wallet.deposit_address(&network.client).await.ok())
        })
        .await?;
    let address = backup.bitcoin_address()?;
    let outpoint = pay(network, &address, sats).await?;
    user.expected = user
        .expected
        .saturating_add(sats.saturating_sub(network.parameters.deposit_fee.to_sat()));
    story.done(format!("{} deposits {sats} sat to {address}", user.name));
    Ok(outpoint)
}

/// An operation that is sent as a careful user does: when it is unknown what became of it, the coordinator is asked before
/// it is sent again.
#[derive(Default)]
pub(super) struct Sending {
    unsure: BTreeSet<OperationId>,
}

impl Sending {
    /// One try. `None` if it was not taken; the node may be away, catching up, or unable to have it copied just now.
    pub(super) async fn attempt(
        &mut self,
        client: &Client,
        send: impl Future<Output = Result<Sent, SendError>>,
    ) -> anyhow::Result<Option<OperationId>> {
        for id in &self.unsure {
            if client.operation(&id.to_string()).await.is_ok() {
                return Ok(Some(*id));
            }
        }
        match send.await {
            Ok(sent) => Ok(Some(sent.id)),
            Err(SendError::Unanswered { id, .. }) => {
                self.unsure.insert(id);
                Ok(None)
            }
            Err(SendError::OtherOperation { ours, theirs }) => {
                bail!("sent {ours}, answered {theirs}")
            }
            Err(_) => Ok(None),
        }
    }
}

/// Sends an operation until it is taken.
pub(super) async fn send(
    client: &Client,
    mut send: impl AsyncFnMut() -> Result<Sent, SendError>,
) -> anyhow::Result<OperationId> {
    let begin = Instant::now();
    let mut sending = Sending::default();
    loop {
        if let Some(id) = sending.attempt(client, send()).await? {
            return Ok(id);
        }
        ensure!(begin.elapsed() < STEP, "an operation was not taken");
        tokio::time::sleep(LOOK).await;
    }
}

/// Mines a block from time to time until the check gives a value.
pub(super) async fn mine_until<T>(
    network: &mut LocalNetwork,
    what: &str,
    mut check: impl AsyncFnMut(&mut LocalNetwork) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let mut last = Instant::now();
    network
        .wait_for(what, STEP, async |network| {
            if let Some(value) = check(network).await? {
                return Ok(Some(value));
            }
            if last.elapsed() > BLOCK_EVERY {
                network.bitcoind.mine(1).await?;
                last = Instant::now();
            }
            Ok(None)
        })
        .await
}

pub(super) async fn until_deposits(
    network: &mut LocalNetwork,
    deposits: &[OutPoint],
    status: RequestStatus,
    story: &Story,
) -> anyhow::Result<()> {
    for outpoint in deposits {
        let id = outpoint.to_string();
        mine_until(network, "a deposit", async |network| {
            show_phase(network, story).await;
            let Ok(deposit) = network.client.deposit(&id).await else {
                return Ok(None);
            };
            ensure!(
                deposit.status != RequestStatus::Refused,
                "deposit {id} was refused: {:?}",
                deposit.reason
            );
            Ok((deposit.status >= status).then_some(()))
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn until_final(
    network: &mut LocalNetwork,
    id: &str,
    story: &Story,
) -> anyhow::Result<()> {
    mine_until(network, "an operation", async |network| {
        show_phase(network, story).await;
        let Ok(operation) = network.client.operation(id).await else {
            return Ok(None);
        };
        ensure!(
            operation.status != RequestStatus::Refused,
            "operation {id} was refused: {:?}",
            operation.reason
        );
        Ok((operation.status == RequestStatus::Final).then_some(()))
    })
    .await
}

pub(super) async fn show_phase(network: &LocalNetwork, story: &Story) {
    if let Ok(status) = network.client.status().await {
        story.doing(status.phase);
    }
}
