//! What must hold when a scenario is over, and what is reported of it.

use anyhow::{Context as _, ensure};
use bitcoin::{Address, Amount, OutPoint, Txid};
use protocol::api::Page;
use serde_json::json;

use super::Scenario;
use crate::{
    network::LocalNetwork,
    report::{Batch, Report},
};

/// What an account must hold in the end.
pub(super) struct Holding {
    pub(super) name: &'static str,
    pub(super) address: String,
    pub(super) sats: u64,
}

/// What must hold in the end.
pub(super) async fn check(
    network: &LocalNetwork,
    holdings: &[Holding],
    payouts: &[(Address, u64)],
) -> anyhow::Result<()> {
    let mut sum = 0_u64;
    for holding in holdings {
        let account = network
            .client
            .account(&holding.address)
            .await?
            .context("no account")?;
        ensure!(
            account.balance_sat == holding.sats,
            "{} holds {} sat, not {}",
            holding.name,
            account.balance_sat,
            holding.sats
        );
        sum = sum.saturating_add(account.balance_sat);
    }
    for (address, sats) in payouts {
        let received: f64 = network
            .bitcoind
            .miner()
            .call(
                "getreceivedbyaddress",
                &[json!(address.to_string()), json!(1)],
            )
            .await?;
        let received = Amount::from_btc(received)?;
        ensure!(
            received == Amount::from_sat(*sats),
            "{address} received {received}, not {sats} sat"
        );
    }
    let vault = network.client.vault().await?;
    ensure!(
        vault.supply_sat == sum,
        "the supply is {} sat, the balances add up to {sum}",
        vault.supply_sat
    );
    let treasury: OutPoint = vault.treasury.context("no treasury")?.parse()?;
    let output = network
        .bitcoind
        .rpc()
        .unspent_output(treasury, false)
        .await?
        .context("treasury is not on the chain")?;
    ensure!(
        output.value.to_sat() == vault.treasury_sat,
        "the chain has another treasury amount"
    );
    ensure!(
        output.value.to_sat() >= vault.supply_sat,
        "the treasury does not cover the supply"
    );
    Ok(())
}

/// The report of a scenario that has ended well.
///
/// # Errors
/// A batch that is not what it should be.
pub(super) async fn report(network: &LocalNetwork, scenario: Scenario) -> anyhow::Result<Report> {
    let vault = network.client.vault().await?;
    let mut batches = network.client.batches(&Page::default()).await?.items;
    batches.sort_by_key(|batch| batch.sequence);
    let (deposits, payouts) = match scenario {
        // A withdrawal that is held comes in a batch of its own.
        Scenario::PauseAndApprove => (2, 1),
        // What is left of a dissolved batch does not wait for the deposits' confirmations.
        Scenario::DoubleSpentDeposit => (0, 1),
        // Deposits and operations come back one after the other, and may be in two batches.
        Scenario::TotalLoss => (2, 0),
        // Whoever dies, batches are what was at hand then.
        Scenario::CrashEverywhere | Scenario::DiskFull => (0, 0),
        _ => (2, 2),
    };
    let busy = batches.iter().any(|batch| {
        // Treasury and deposits in; treasury, commitment and the payouts out.
        batch.inputs > deposits && batch.outputs >= 2 + payouts
    });
    ensure!(
        busy,
        "no batch has {deposits} deposits and {payouts} withdrawals"
    );
    for batch in &batches {
        let txid: Txid = batch
            .txid
            .clone()
            .context("a batch without a transaction")?
            .parse()?;
        ensure!(
            batch.height.is_some(),
            "batch {} ({txid}) is not in a block",
            batch.sequence
        );
    }
    Ok(Report {
        scenario: scenario.name().to_owned(),
        operators: network.operators.len(),
        threshold: vault.threshold,
        deposits: 5,
        transfers: 1,
        withdrawals: 2,
        batches: batches.iter().map(Batch::from).collect(),
        treasury_sat: vault.treasury_sat,
        supply_sat: vault.supply_sat,
        pooled_batches: network.pooled_batches().await?,
        evidence: Vec::new(),
    })
}
