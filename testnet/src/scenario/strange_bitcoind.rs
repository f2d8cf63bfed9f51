//! The Bitcoin node is exchanged for one of another network, then for one that is still syncing: every node stops at the
//! first, whatever else it was doing, and waits for the second.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Network};
use wallet::{Wallet, send::SendOptions};

use super::{STEP, Story, WALLET_PASSPHRASE, mine_until};
use crate::network::{LocalNetwork, Node};

/// Between two looks at a node that should stop.
const LOOK: Duration = Duration::from_millis(200);
/// What a node says of a Bitcoin node of another network.
const STOPS: &str = "bitcoind is on network signet, but regtest is configured";
/// What a coordinator says while its Bitcoin node is syncing.
const WAITS: &str = "catching up with the chain";
/// A node whose tip is older than this many seconds takes itself for one that is still syncing.
const MAX_TIP_AGE: &str = "-maxtipage=1";

/// Both, and back to the right one.
pub(super) async fn come_and_go(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    for node in nodes(network) {
        seen.push(node.log_length()?);
    }
    network.bitcoind.stop().await?;
    network.bitcoind.be_on(Network::Signet, &[]);
    network.bitcoind.restart().await?;
    for (node, seen) in nodes(network).zip(seen) {
        see_it_stop(node, seen).await?;
    }
    story.done(format!(
        "bitcoind is of another network; every node stopped by itself: {STOPS}"
    ));
    for node in nodes(network) {
        let seen = node.log_length()?;
        node.start()?;
        see_it_stop(node, seen).await?;
    }
    story.done("none of them starts with it");

    network.bitcoind.stop().await?;
    network.bitcoind.be_on(Network::Regtest, &[MAX_TIP_AGE]);
    network.bitcoind.restart().await?;
    for node in nodes(network) {
        node.start()?;
    }
    let alice = Wallet::open(network.dir.join("wallets/alice"), WALLET_PASSPHRASE)?;
    let refusal = network
        .wait_for(
            "a refusal while bitcoind is syncing",
            STEP,
            async |network| {
                let (to, amount) = (alice.address(), Amount::from_sat(1_000));
                let options = SendOptions::default();
                let sent = alice.transfer(&network.client, &to, amount, options).await;
                let Err(error) = sent else {
                    anyhow::bail!("an operation was taken while bitcoind is syncing");
                };
                let text = format!("{:#}", anyhow::Error::from(error));
                Ok(text.contains(WAITS).then_some(text))
            },
        )
        .await?;
    ensure!(
        !network.client.is_ready().await.unwrap_or(false),
        "the coordinator is ready, and refuses because it is not"
    );
    story.done(format!(
        "bitcoind is still syncing; the coordinator takes no operation: {refusal}"
    ));
    // A block that is late already does not end bitcoind's syncing: then the next one does.
    mine_until(network, "readiness", async |network| {
        let is_ready = network.client.is_ready().await.unwrap_or(false);
        Ok(is_ready.then_some(()))
    })
    .await?;
    story.done("bitcoind is at the tip; all go on by themselves");
    Ok(())
}

fn nodes(network: &mut LocalNetwork) -> impl Iterator<Item = &mut Node> {
    network
        .operators
        .iter_mut()
        .chain([&mut network.coordinator])
}

async fn see_it_stop(node: &mut Node, seen: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    while node.is_running() {
        ensure!(begin.elapsed() < STEP, "{} did not stop", node.name);
        tokio::time::sleep(LOOK).await;
    }
    node.said_since(seen)?
        .iter()
        .find(|line| line.contains(STOPS))
        .with_context(|| format!("{} did not say why it stopped", node.name))?;
    Ok(())
}
