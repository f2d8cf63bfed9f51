//! A node's disk runs full: it stops before anything leaves it that is not on disk (S11), says what to do, does not start
//! without room, and goes on from where it was once there is some.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use wallet::Wallet;

use super::{STEP, Story, WALLET_PASSPHRASE};
use crate::{
    bitcoind::Bitcoind,
    network::{Extras, LocalNetwork, Node},
};

/// Of the disks of the coordinator and of operator-1, in MiB.
const DISK_MIB: u32 = 24;
/// Room for a start, and not for the log that RocksDB would like to lay out ahead of its first write.
const LEFT_FOR_A_START: u64 = 2 * 1024 * 1024;
/// Between two looks at a node that should stop.
const LOOK: Duration = Duration::from_millis(200);
/// What a node says when its disk is full, while it runs and when it starts.
const STOPS: &str = "a safety write failed; stopping (S11)";
const FULL: &str = "the disk is full";

/// A network with two small disks.
pub(super) fn extras() -> Extras {
    Extras {
        small_disks: Some(DISK_MIB),
        ..Extras::default()
    }
}

/// Operator-1 can't write its promise for the first batch; the others sign it.
pub(super) async fn operator(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let first = network.operators.first_mut().context("an operator")?;
    let seen = nearly_fill(first).await?;
    network
        .wait_for("operator-1's return", STEP, async |network| {
            let node = network.operators.first().context("an operator")?;
            Ok(node.ask(&["status"]).await.ok().map(|_| ()))
        })
        .await?;
    let first = network.operators.first_mut().context("an operator")?;
    disk(first)?.fill(0)?;
    story.done("operator-1's disk is full, while a batch is under way");
    see_it_stop(&mut network.bitcoind, first, seen, story).await?;
    story.done("operator-1 runs again, with room on its disk");
    Ok(())
}

/// The coordinator can't write the second batch, whose operations it has accepted.
pub(super) async fn coordinator(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let folder = network.dir.join("wallets/dave");
    let dave = Wallet::create(folder, WALLET_PASSPHRASE, network.parameters.network)?;
    let seen = nearly_fill(&mut network.coordinator).await?;
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let ready = network.client.is_ready().await.unwrap_or(false);
            Ok(ready.then_some(()))
        })
        .await?;
    disk(&network.coordinator)?.fill(0)?;
    story.done("the coordinator's disk is full, with accepted operations in its queue");
    see_it_stop(&mut network.bitcoind, &mut network.coordinator, seen, story).await?;
    network
        .wait_for("dave's deposit address", STEP, async |network| {
            Ok(dave.deposit_address(&network.client).await.ok())
        })
        .await?;
    story.done("the coordinator runs again, and takes requests");
    Ok(())
}

fn disk(node: &Node) -> anyhow::Result<&crate::small_disk::SmallDisk> {
    node.disk().context("the node has no small disk")
}

/// A start with little room. Gives how long the log is.
async fn nearly_fill(node: &mut Node) -> anyhow::Result<usize> {
    node.stop().await;
    disk(node)?.fill(LEFT_FOR_A_START)?;
    let seen = node.log_length()?;
    node.start()?;
    Ok(seen)
}

/// It stops by itself, and again at its start, both with the reason; with room it starts.
async fn see_it_stop(
    bitcoind: &mut Bitcoind,
    node: &mut Node,
    seen: usize,
    story: &Story,
) -> anyhow::Result<()> {
    until_ended(bitcoind, node).await?;
    let said = node.said_since(seen)?;
    let line = said.iter().find(|line| line.contains(STOPS));
    let line = line.with_context(|| format!("{} did not say why it stopped", node.name))?;
    ensure!(line.contains(FULL), "{} says: {line}", node.name);
    story.done(format!("{} stopped by itself: {}", node.name, plain(line)));

    let seen = node.log_length()?;
    disk(node)?.fill(0)?;
    node.start()?;
    until_ended(bitcoind, node).await?;
    let said = node.said_since(seen)?;
    let line = said.iter().find(|line| line.contains(FULL));
    let line = line.with_context(|| format!("{} started, or did not say why not", node.name))?;
    story.done(format!("{} does not start: {}", node.name, plain(line)));

    disk(node)?.make_room()?;
    node.start()
}

/// Mines meanwhile: a page of the log that was begun still takes some small writes, and each block is one.
async fn until_ended(bitcoind: &mut Bitcoind, node: &mut Node) -> anyhow::Result<()> {
    let begin = Instant::now();
    while node.is_running() {
        ensure!(begin.elapsed() < STEP, "{} did not stop", node.name);
        bitcoind.mine(1).await?;
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// A line of a log without its colours.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text
}
