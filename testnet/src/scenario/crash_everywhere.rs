//! Every node dies once at every point where it writes, sends or submits anything ([`crate::crasher`]), from key generation
//! on, and is started again; users go on meanwhile. In the end nothing may be lost or paid twice.

use std::{cell::Cell, collections::BTreeSet, path::Path, time::Instant};

use anyhow::{Context as _, ensure};
use bitcoin::{Address, Amount, OutPoint};
use ledger::OperationId;
use protocol::api::{BatchStatus, Page, RequestStatus};
use wallet::{
    Wallet,
    client::Client,
    send::{SendError, SendOptions, Sent},
};

use super::{
    BLOCK_EVERY, Holding, STEP, Story, User, WALLET_PASSPHRASE, check, deposit, report,
    steps::Sending, until_ready,
};
use crate::{
    crasher::{self, Crashes, Role},
    network::{Extras, LocalNetwork},
    report::Report,
};

/// Rounds that are played at least: each has its own mishap beside the crashes.
const MIN_ROUNDS: u32 = 5;
/// And at most.
const MAX_ROUNDS: u32 = 30;
/// What each user deposits in each round.
const DEPOSIT: u64 = 100_000;
/// What alice pays bob in each round, and what bob and carol withdraw.
const TRANSFER: u64 = 1_000;
const WITHDRAWALS: [u64; 2] = [5_000, 6_000];
/// Folders whose code is looked through for points that nobody has reached.
const SOURCES: [&str; 3] = ["coordinator/src", "operator/src", "node/src"];
/// How a point looks in the source.
const MARKS: [&str; 9] = [
    ".commit(changes",
    "commit(&",
    "commit(store",
    "keep(&store",
    ".ask(",
    ".publish(",
    ".tell(",
    "reply.send(",
    "submit(&",
];
/// What only looks so.
const NO_MARKS: [&str; 4] = [
    "sessions.tell(",
    "admission.ask(",
    "sign::commit(",
    "asked.reply",
];

/// A network whose nodes die at these points.
pub fn extras(crashes: Crashes) -> Extras {
    Extras {
        crashes: Some(crashes),
        ..Extras::default()
    }
}

/// Rounds of requests until no node has died in one. The nodes have been dying since their first start.
///
/// # Errors
/// What went wrong, or does not hold.
pub async fn play(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<Report> {
    play_rounds(network, MIN_ROUNDS, story).await
}

/// As [`play`], with at least so many rounds.
///
/// # Errors
/// What went wrong, or does not hold.
pub async fn play_rounds(
    network: &mut LocalNetwork,
    at_least: u32,
    story: &Story,
) -> anyhow::Result<Report> {
    let mut users = Vec::new();
    for name in ["alice", "bob", "carol"] {
        let folder = network.dir.join("wallets").join(name);
        let wallet = Wallet::create(folder, WALLET_PASSPHRASE, network.parameters.network)?;
        users.push(User {
            name,
            wallet,
            expected: 0,
        });
    }
    let mut payouts = Vec::new();
    let mut requests = Requests::default();
    requests.tell_deaths(network, story);
    for round in 1..=MAX_ROUNDS {
        let before = network.deaths.len();
        play_round(
            network,
            &mut users,
            round,
            &mut requests,
            &mut payouts,
            story,
        )
        .await?;
        requests.tell_deaths(network, story);
        let quiet = network.deaths.len() == before;
        story.done(format!(
            "round {round}: {} deaths so far, everything confirmed",
            network.deaths.len()
        ));
        ensure!(
            quiet || round < MAX_ROUNDS,
            "nodes still die at new points after {MAX_ROUNDS} rounds"
        );
        if (quiet || at_least < MIN_ROUNDS) && round >= at_least {
            break;
        }
    }
    requests.until(network, RequestStatus::Final, story).await?;
    // What is looked at from here on must not die on the way.
    for node in network
        .operators
        .iter_mut()
        .chain([&mut network.coordinator])
    {
        node.stop().await;
        node.spare();
        node.start()?;
    }
    until_ready(network).await?;
    let holdings: Vec<Holding> = users.iter().map(User::holding).collect();
    check(network, &holdings, &payouts).await?;
    see_digests(network).await?;
    story.done("accounts, payouts on the chain, treasury >= supply, and every node's digest hold");
    summarize(network, story)?;
    let mut report = report(network, super::Scenario::CrashEverywhere).await?;
    report.deposits = requests.deposits.len();
    report.withdrawals = payouts.len();
    report.transfers = requests.operations.len().saturating_sub(payouts.len());
    Ok(report)
}

/// What users have asked for so far.
#[derive(Default)]
struct Requests {
    deposits: Vec<OutPoint>,
    operations: Vec<OperationId>,
    /// Deaths that were told.
    told: Cell<usize>,
}

impl Requests {
    /// Prints the deaths since the last time.
    fn tell_deaths(&self, network: &LocalNetwork, story: &Story) {
        let deaths = network.deaths.iter().enumerate();
        for (number, (name, point)) in deaths.skip(self.told.get()) {
            let number = number.saturating_add(1);
            story.done(format!("death {number}: {name}, {point}"));
        }
        self.told.set(network.deaths.len());
    }

    /// Mines and waits until all are there.
    async fn until(
        &self,
        network: &mut LocalNetwork,
        status: RequestStatus,
        story: &Story,
    ) -> anyhow::Result<()> {
        let mut mined = Instant::now();
        let mut there = BTreeSet::new();
        network
            .wait_for("all requests", STEP, async |network| {
                self.tell_deaths(network, story);
                if let Ok(shown) = network.client.status().await {
                    story.doing(format!(
                        "{} deaths so far; {}",
                        network.deaths.len(),
                        shown.phase
                    ));
                }
                if mined.elapsed() > BLOCK_EVERY {
                    network.bitcoind.mine(1).await?;
                    mined = Instant::now();
                }
                for outpoint in &self.deposits {
                    let id = outpoint.to_string();
                    if there.contains(&id) {
                        continue;
                    }
                    let Ok(shown) = network.client.deposit(&id).await else {
                        return Ok(None);
                    };
                    ensure!(
                        shown.status != RequestStatus::Refused,
                        "deposit {id} was refused: {:?}",
                        shown.reason
                    );
                    if shown.status < status {
                        return Ok(None);
                    }
                    there.insert(id);
                }
                for id in &self.operations {
                    let id = id.to_string();
                    if there.contains(&id) {
                        continue;
                    }
                    let Ok(shown) = network.client.operation(&id).await else {
                        return Ok(None);
                    };
                    ensure!(
                        shown.status != RequestStatus::Refused,
                        "operation {id} was refused: {:?}",
                        shown.reason
                    );
                    if shown.status < status {
                        return Ok(None);
                    }
                    there.insert(id);
                }
                Ok(Some(()))
            })
            .await
    }
}

async fn play_round(
    network: &mut LocalNetwork,
    users: &mut [User],
    round: u32,
    requests: &mut Requests,
    payouts: &mut Vec<(Address, u64)>,
    story: &Story,
) -> anyhow::Result<()> {
    for user in users.iter_mut() {
        let outpoint = deposit(network, user, DEPOSIT, story).await?;
        requests.deposits.push(outpoint);
    }
    network
        .bitcoind
        .mine(network.parameters.deposit_confirmations)
        .await?;
    if round > 1
        && let [alice, bob, carol] = users
    {
        let fees = network
            .wait_for("fees", STEP, async |network| {
                Ok(network.client.fees().await.ok())
            })
            .await?;
        let to = bob.wallet.address();
        let amount = Amount::from_sat(TRANSFER);
        let id = send(network, async |client| {
            let options = SendOptions::default();
            alice.wallet.transfer(client, &to, amount, options).await
        })
        .await?;
        requests.operations.push(id);
        alice.expected = alice
            .expected
            .saturating_sub(TRANSFER.saturating_add(fees.transfer_fee_sat));
        bob.expected = bob.expected.saturating_add(TRANSFER);
        for (user, sats) in [bob, carol].into_iter().zip(WITHDRAWALS) {
            let payout = network.bitcoind.new_address().await?;
            let (to, amount) = (payout.to_string(), Amount::from_sat(sats));
            let id = send(network, async |client| {
                let options = SendOptions::default();
                user.wallet.withdraw(client, &to, amount, options).await
            })
            .await?;
            requests.operations.push(id);
            payouts.push((payout, sats));
            user.expected = user
                .expected
                .saturating_sub(sats.saturating_add(fees.withdraw_fee_sat));
        }
    }
    mishap(network, round, story).await?;
    requests
        .until(network, RequestStatus::Confirmed, story)
        .await
}

/// What else befalls the network in a round.
async fn mishap(network: &mut LocalNetwork, round: u32, story: &Story) -> anyhow::Result<()> {
    match round {
        2 => {
            for arguments in [["pause", "--reason", "a look"].as_slice(), &["resume"]] {
                ask_all(network, arguments).await?;
            }
            story.done("all operators were paused and resumed");
        }
        3 => {
            ask_all(network, &["refresh"]).await?;
            network
                .wait_for("the new epoch", STEP, async |network| {
                    let vault = network.client.vault().await.ok();
                    Ok(vault.filter(|vault| vault.epoch == Some(1)).map(|_| ()))
                })
                .await?;
            story.done("all operators have new shares");
        }
        4 => {
            network.bitcoind.forget_mempool().await?;
            story.done("bitcoind was restarted without its mempool");
        }
        5 => {
            let batches = network
                .wait_for("batches", STEP, async |network| {
                    let batches = network.client.batches(&Page::default()).await.ok();
                    Ok(batches.map(|list| list.items))
                })
                .await?;
            let confirmed = batches
                .iter()
                .filter(|b| b.status == BatchStatus::Confirmed);
            let tip = network.bitcoind.rpc().chain_info().await?.blocks;
            let height = confirmed
                .filter_map(|batch| batch.height)
                .max()
                .map_or(tip, |height| height.max(tip.saturating_sub(1)));
            let block = network.bitcoind.rpc().block_hash_at(height).await?;
            network
                .bitcoind
                .invalidate(block.context("a block")?)
                .await?;
            let depth = tip.saturating_sub(height).saturating_add(2);
            network.bitcoind.mine_only(depth, &[]).await?;
            story.done(format!("the blocks from {height} on were reorganised away"));
        }
        _ => {}
    }
    Ok(())
}

/// Has every operator do something, until it says that it has.
async fn ask_all(network: &mut LocalNetwork, arguments: &[&str]) -> anyhow::Result<()> {
    let what = arguments.join(" ");
    for place in 0..network.operators.len() {
        network
            .wait_for(&what, STEP, async |network| {
                let node = network.operators.get(place).context("an operator")?;
                Ok(node.ask(arguments).await.ok().map(|_| ()))
            })
            .await?;
    }
    Ok(())
}

/// Sends an operation until it is taken, while nodes die and rise.
async fn send(
    network: &mut LocalNetwork,
    mut send: impl AsyncFnMut(&Client) -> Result<Sent, SendError>,
) -> anyhow::Result<OperationId> {
    let mut sending = Sending::default();
    network
        .wait_for("an operation to be taken", STEP, async |network| {
            let client = &network.client;
            sending.attempt(client, send(client)).await
        })
        .await
}

/// The operators have the coordinator's ledger: their own replay gives the digest of the treasury's commitment.
async fn see_digests(network: &mut LocalNetwork) -> anyhow::Result<()> {
    let sequence = network.client.status().await?.sequence;
    super::until_all_at(network, sequence).await?;
    for node in &network.operators {
        let file = network.dir.join(format!("{}-ledger.json", node.name));
        // The export is checked against the digest on the chain.
        node.ask(&["export-ledger", &file.to_string_lossy()])
            .await?;
    }
    Ok(())
}

/// How many points were tried, and which were not.
fn summarize(network: &LocalNetwork, story: &Story) -> anyhow::Result<()> {
    let dir = network.dir.join("crashes");
    let mut lines = BTreeSet::new();
    for role in [Role::Coordinator, Role::Operator] {
        let (died, spared) = crasher::reached(&dir, role)?;
        story.done(format!(
            "{}: died at {} points; {} others were reached and are not in the sample",
            role.name(),
            died.len(),
            spared.len()
        ));
        lines.extend(
            died.iter()
                .chain(&spared)
                .filter_map(|point| point.rsplit(' ').next().map(str::to_owned)),
        );
    }
    ensure!(!network.deaths.is_empty(), "nobody has died");
    let never = unreached(&lines)?;
    story.done(format!(
        "{} lines that write, send or submit were not reached by this story, and are not tried:",
        never.len()
    ));
    for line in never {
        story.done(format!("    {line}"));
    }
    Ok(())
}

/// Lines of the source that look like a point and are not among those reached. Empty where there is no source.
fn unreached(reached: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let Some(root) = Path::new(env!("CARGO_MANIFEST_DIR")).parent() else {
        return Ok(Vec::new());
    };
    let mut never = Vec::new();
    for folder in SOURCES {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries {
                let path = entry?.path();
                // The command line asks a running operator; the other names are tests.
                let is_other = ["cli", "cli.rs", "tests.rs", "testing.rs", "fixture.rs"]
                    .iter()
                    .any(|name| path.ends_with(name));
                if is_other {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(root)?.display().to_string();
                let text = std::fs::read_to_string(&path)?;
                never.extend(
                    points_in(&text)
                        .into_iter()
                        .map(|(line, code)| (format!("{name}:{line}"), code))
                        .filter(|(place, _)| !reached.contains(place))
                        .map(|(place, code)| format!("{place}  {code}")),
                );
            }
        }
    }
    never.sort();
    Ok(never)
}

/// Numbers and text of the lines that look like a point, tests and functions that hand their caller's line on aside.
fn points_in(text: &str) -> Vec<(usize, &str)> {
    let mut points = Vec::new();
    let mut until: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        if let Some(end) = &until {
            if line == end {
                until = None;
            }
            continue;
        }
        if let Some(indent) = line.strip_suffix("#[track_caller]") {
            until = Some(format!("{indent}}}"));
            continue;
        }
        let code = line.trim();
        let is_other = code.starts_with("//") || NO_MARKS.iter().any(|words| code.contains(words));
        if !is_other && !code.contains("fn ") && MARKS.iter().any(|mark| code.contains(mark)) {
            points.push((index.saturating_add(1), code));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_look_like_a_point_are_found_but_not_those_that_only_hand_on() {
        let text = "fn a() {\n    store.commit(changes)?;\n}\n#[track_caller]\nfn b() {\n    \
                    store.commit(changes)\n}\nfn c() {\n    // x.publish(y)\n    peers.tell(&gossip)\n}\n\
                    #[cfg(test)]\nmod tests { fn d() { store.commit(changes) } }\n";
        let lines: Vec<usize> = points_in(text).into_iter().map(|point| point.0).collect();
        assert_eq!(lines, [2, 10]);
    }
}
