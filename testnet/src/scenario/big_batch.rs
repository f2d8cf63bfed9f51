//! One batch with hundreds of deposits and withdrawals: accounts are funded by small batches first, then the coordinator
//! is told to wait for all requests of the large one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bitcoin::{Address, Amount};
use protocol::api::{BatchDocument, BatchStatus, Page, RequestStatus};
use wallet::{Wallet, send::SendOptions};

use super::{Holding, STEP, Story, WALLET_PASSPHRASE, check, deposit, mine_until, until_deposits};
use crate::{
    bitcoind,
    network::{Extras, LocalNetwork},
    report::{Batch, Report},
    scenario::{Scenario, User},
};

/// Withdrawals of one account: fewer than may wait at once.
const PER_ACCOUNT: usize = 50;
/// What each withdrawal pays, in sats.
const PAYOUT: u64 = 10_000;
/// Payments to deposit addresses between two blocks: a node relays chains of 25 unconfirmed ones.
const ROUNDS_A_BLOCK: usize = 20;
/// The coordinator waits for all requests for this long.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// How long proving may take.
const PROVING: Duration = Duration::from_secs(3 * 3_600);
/// How often the coordinator is asked meanwhile: its answer names every operation, and costs it something.
const LOOK: Duration = Duration::from_secs(2);
/// The accounts' name, and their folders'.
const NAMES: &str = "account";

/// How large the batch is.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Deposits in it.
    pub deposits: usize,
    /// Withdrawals in it.
    pub withdrawals: usize,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            deposits: 500,
            withdrawals: 500,
        }
    }
}

impl Numbers {
    fn total(self) -> usize {
        self.deposits.saturating_add(self.withdrawals)
    }

    fn accounts(self) -> usize {
        self.withdrawals.div_ceil(PER_ACCOUNT).max(1)
    }

    /// The network that it needs.
    pub fn extras(self) -> Extras {
        Extras {
            max_operations: Some(u16::try_from(self.total()).unwrap_or(u16::MAX).max(64)),
            ..Extras::default()
        }
    }
}

/// Plays it on an open vault, checks that every withdrawal is paid and the treasury covers the supply, and reports.
///
/// # Errors
/// What went wrong, or does not hold.
pub async fn play(
    network: &mut LocalNetwork,
    numbers: Numbers,
    story: &Story,
) -> anyhow::Result<Report> {
    ensure!(
        numbers.deposits > 0 && numbers.withdrawals > 0,
        "a big batch has deposits and withdrawals"
    );
    let mut users = fund(network, numbers, story).await?;
    network.set_batching(numbers.total(), PATIENCE).await?;
    network
        .wait_for("the coordinator's return", STEP, async |network| {
            let ready = network.client.is_ready().await.unwrap_or(false);
            Ok(ready.then_some(()))
        })
        .await?;
    story.done(format!(
        "the coordinator waits for {} requests now",
        numbers.total()
    ));
    pay_in(network, &mut users, numbers.deposits, story).await?;
    let payouts = withdraw(network, &mut users, numbers.withdrawals, story).await?;
    let batch = until_broadcast(network, story).await?;
    mine_until(network, "the batch", async |network| {
        let batch = network.client.batch(batch.sequence).await?;
        Ok((batch.status == BatchStatus::Final).then_some(()))
    })
    .await?;
    story.done("the batch is final");
    let batch = network.client.batch(batch.sequence).await?;
    ensure!(
        batch.inputs == numbers.deposits.saturating_add(1)
            && batch.outputs == numbers.withdrawals.saturating_add(2),
        "the batch has {} inputs and {} outputs",
        batch.inputs,
        batch.outputs
    );
    story.doing("checking accounts, payouts and reserves");
    let holdings: Vec<Holding> = users.iter().map(User::holding).collect();
    check(network, &holdings, &payouts).await?;
    story.done(format!(
        "all {} withdrawals are paid on the chain, all accounts hold what they should, and treasury >= supply",
        payouts.len()
    ));
    report(network, numbers).await
}

/// Accounts with enough for their withdrawals.
async fn fund(
    network: &mut LocalNetwork,
    numbers: Numbers,
    story: &Story,
) -> anyhow::Result<Vec<User>> {
    let fee = network.client.fees().await?.withdraw_fee_sat;
    let each = PAYOUT
        .saturating_add(fee)
        .saturating_mul(u64::try_from(PER_ACCOUNT)?);
    let sats = each.saturating_add(network.parameters.deposit_fee.to_sat());
    let mut users = Vec::new();
    let mut outpoints = Vec::new();
    for number in 1..=numbers.accounts() {
        let folder = network.dir.join(format!("wallets/{NAMES}-{number}"));
        let wallet = Wallet::create(folder, WALLET_PASSPHRASE, network.parameters.network)?;
        let mut user = User {
            name: NAMES,
            wallet,
            expected: 0,
        };
        outpoints.push(deposit(network, &mut user, sats, story).await?);
        users.push(user);
    }
    let confirmations = network.parameters.deposit_confirmations;
    network.bitcoind.mine(confirmations).await?;
    until_deposits(network, &outpoints, RequestStatus::Final, story).await?;
    story.done(format!("{} accounts funded", users.len()));
    Ok(users)
}

/// The deposits of the batch, and the confirmations that they need.
async fn pay_in(
    network: &mut LocalNetwork,
    users: &mut [User],
    deposits: usize,
    story: &Story,
) -> anyhow::Result<()> {
    let parameters = network.parameters.clone();
    let (sats, fee) = (
        parameters.min_deposit.to_sat(),
        parameters.deposit_fee.to_sat(),
    );
    let mut addresses = Vec::new();
    for user in users.iter() {
        let backup = user.wallet.deposit_address(&network.client).await?;
        addresses.push(backup.bitcoin_address()?);
    }
    let mut paid = 0_usize;
    for round in 1.. {
        let now = addresses.len().min(deposits.saturating_sub(paid));
        if now == 0 {
            break;
        }
        let to: Vec<_> = addresses
            .iter()
            .take(now)
            .map(|address| (address, Amount::from_sat(sats)))
            .collect();
        bitcoind::send(&network.bitcoind.miner(), &to).await?;
        for user in users.iter_mut().take(now) {
            user.expected = user.expected.saturating_add(sats.saturating_sub(fee));
        }
        paid = paid.saturating_add(now);
        if round % ROUNDS_A_BLOCK == 0 {
            network.bitcoind.mine(1).await?;
        }
        story.progress("deposits", paid, deposits);
    }
    let confirmations = parameters.deposit_confirmations;
    network.bitcoind.mine(confirmations).await?;
    let wanted = u64::try_from(deposits)?;
    network
        .wait_for("the deposits in the queue", STEP, async |network| {
            let status = network.client.status().await.ok();
            Ok(status.filter(|status| status.queued >= wanted).map(|_| ()))
        })
        .await?;
    story.end_progress();
    story.done(format!(
        "{deposits} deposits of {sats} sat wait in the queue"
    ));
    Ok(())
}

/// The withdrawals of the batch, each to an address of its own.
async fn withdraw(
    network: &mut LocalNetwork,
    users: &mut [User],
    withdrawals: usize,
    story: &Story,
) -> anyhow::Result<Vec<(Address, u64)>> {
    let fee = network.client.fees().await?.withdraw_fee_sat;
    let client = network.client.clone();
    let mut payouts = Vec::new();
    for number in 0..withdrawals {
        let user = users
            .get_mut(number / PER_ACCOUNT)
            .context("an account too few")?;
        let address = network.bitcoind.new_address().await?;
        user.wallet
            .withdraw(
                &client,
                &address.to_string(),
                Amount::from_sat(PAYOUT),
                SendOptions::default(),
            )
            .await?;
        user.expected = user.expected.saturating_sub(PAYOUT.saturating_add(fee));
        payouts.push((address, PAYOUT));
        story.progress("withdrawals", payouts.len(), withdrawals);
    }
    story.end_progress();
    story.done(format!("{withdrawals} withdrawals of {PAYOUT} sat sent"));
    Ok(payouts)
}

/// No block is mined meanwhile: proving takes many minutes, and a deposit's refund opens after so many blocks.
async fn until_broadcast(
    network: &mut LocalNetwork,
    story: &Story,
) -> anyhow::Result<BatchDocument> {
    let begin = Instant::now();
    let mut last = None;
    let mut told = 0;
    let batch = network
        .wait_for("the batch on the network", PROVING, async |network| {
            if last.is_some_and(|last: Instant| last.elapsed() < LOOK) {
                return Ok(None);
            }
            last = Some(Instant::now());
            let Ok(status) = network.client.status().await else {
                return Ok(None);
            };
            if let Some((done, of)) = chunks(&status.phase) {
                story.progress("chunks proven", done, of);
                let tenth = done.saturating_mul(10).checked_div(of).unwrap_or(0);
                if tenth > told {
                    told = tenth;
                    story.done(format!("{done} of {of} chunks proven"));
                }
            } else {
                story.end_progress();
                story.doing(status.phase);
            }
            Ok(status
                .batch
                .filter(|batch| batch.status >= BatchStatus::Broadcast))
        })
        .await?;
    story.end_progress();
    story.done(format!(
        "batch {} proven, signed and broadcast, {} s after the last request: {} inputs, {} outputs",
        batch.sequence,
        begin.elapsed().as_secs(),
        batch.inputs,
        batch.outputs
    ));
    Ok(batch)
}

/// Out of the coordinator's phase, "proving batch 2: 3 of 125 chunks".
fn chunks(phase: &str) -> Option<(usize, usize)> {
    let rest = phase.strip_prefix("proving batch ")?;
    let (_, rest) = rest.split_once(": ")?;
    let (done, of) = rest.strip_suffix(" chunks")?.split_once(" of ")?;
    Some((done.parse().ok()?, of.parse().ok()?))
}

async fn report(network: &LocalNetwork, numbers: Numbers) -> anyhow::Result<Report> {
    let vault = network.client.vault().await?;
    let mut batches = network.client.batches(&Page::default()).await?.items;
    batches.sort_by_key(|batch| batch.sequence);
    Ok(Report {
        scenario: Scenario::BigBatch.name().to_owned(),
        operators: network.operators.len(),
        threshold: vault.threshold,
        deposits: numbers.deposits.saturating_add(numbers.accounts()),
        transfers: 0,
        withdrawals: numbers.withdrawals,
        batches: batches.iter().map(Batch::from).collect(),
        treasury_sat: vault.treasury_sat,
        supply_sat: vault.supply_sat,
        pooled_batches: network.pooled_batches().await?,
        evidence: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn the_phase_tells_how_many_chunks_are_proven() {
        assert_eq!(chunks("proving batch 2: 3 of 125 chunks"), Some((3, 125)));
        assert_eq!(chunks("signing batch 2: waiting"), None);
    }
}
