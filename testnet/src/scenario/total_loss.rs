//! The coordinator's disk is lost while requests wait. It starts with an empty one, and ledger, batches, deposit
//! addresses and waiting requests come back from the operators and the chain.

use std::fs;

use anyhow::{Context as _, ensure};
use protocol::api::{Page, RequestStatus};
use wallet::Wallet;

use super::{Holding, STEP, Story, WALLET_PASSPHRASE, pay, until_deposits};
use crate::network::LocalNetwork;

/// Who is given a deposit address before the loss and pays after it.
const DAVE: &str = "dave";
/// What he pays, in sats.
const PAYS: u64 = 60_000;

/// Gives Dave his address.
pub(super) async fn address(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<Vec<Holding>> {
    let folder = network.dir.join("wallets").join(DAVE);
    let wallet = Wallet::create(folder, WALLET_PASSPHRASE, network.parameters.network)?;
    let backup = wallet.deposit_address(&network.client).await?;
    let address = backup.bitcoin_address()?;
    fs::write(network.dir.join("dave's address"), address.to_string())?;
    story.done(format!(
        "{DAVE} is given the address {address}, and does not pay yet"
    ));
    let fee = network.parameters.deposit_fee.to_sat();
    Ok(vec![Holding {
        name: DAVE,
        address: wallet.address(),
        sats: PAYS.saturating_sub(fee),
    }])
}

/// Kills the coordinator, deletes its database, and starts it; then Dave pays.
pub(super) async fn lose(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let before = network.client.batches(&Page::default()).await?.items;
    let confirmed = before.first().context("a batch before the loss")?;
    network.coordinator.kill().await?;
    let settings = network.coordinator.settings().parent();
    let database = settings.context("a folder")?.join("data").join("db");
    ensure!(database.is_dir(), "{} is not there", database.display());
    fs::remove_dir_all(&database)?;
    story.done(
        "the coordinator is killed (SIGKILL) with requests waiting, and its database deleted",
    );
    network.coordinator.start()?;
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let is_ready = network.client.is_ready().await.unwrap_or(false);
            Ok(is_ready.then_some(()))
        })
        .await?;
    let sequence = confirmed.sequence;
    let again = network
        .wait_for("the first batch's record", STEP, async |network| {
            Ok(network.client.batch(sequence).await.ok())
        })
        .await?;
    ensure!(
        again.txid == confirmed.txid && again.operations == confirmed.operations,
        "batch {sequence} is another one now"
    );
    story.done(format!(
        "it is back with an empty disk: vault, ledger and batch {sequence} came from the operators and the chain"
    ));

    let text = fs::read_to_string(network.dir.join("dave's address"))?;
    let address = text.parse::<bitcoin::Address<_>>()?.assume_checked();
    let outpoint = pay(network, &address, PAYS).await?;
    story.done(format!("{DAVE} pays to his address"));
    until_deposits(network, &[outpoint], RequestStatus::Confirmed, story).await?;
    story.done(format!("{DAVE} is credited: his address was not lost"));
    Ok(())
}
