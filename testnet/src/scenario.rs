//! What is played on the local network, with real wallets on a real chain: two batches, and what a scenario
//! does during the first and between the two. Each scenario has a file of its own under `scenario/`.

pub mod big_batch;
mod bitcoind_down;
pub mod crash_everywhere;
mod deep_reorg;
mod disk_full;
mod double_spent_deposit;
mod ending;
mod faulty;
mod fee_bump;
mod kill;
mod lost_share;
mod lying_coordinator;
mod mempool_eviction;
mod pause_and_approve;
mod refresh;
mod reorg;
mod restore;
mod steps;
mod strange_bitcoind;
mod stuck_deposit;
mod total_loss;
mod unknown_spend;

use std::time::{Duration, Instant};

use bitcoin::{Address, Amount};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::api::RequestStatus;
use wallet::{Wallet, send::SendOptions};

use ending::{Holding, check, report};
use steps::{
    deposit, mine_until, pay, send, until_all_alarmed, until_all_at, until_batch, until_deposits,
    until_final, until_in_mempool, until_ready,
};

use crate::{
    crasher::Crashes,
    network::{Extras, GENESIS, LocalNetwork},
    report::Report,
    saboteur::Fault,
};

/// How long one step may take; proving on a busy machine is slow.
const STEP: Duration = Duration::from_secs(300);
/// Between two blocks while something waits for confirmations.
const BLOCK_EVERY: Duration = Duration::from_millis(1_500);
/// Passphrase of the wallets.
pub const WALLET_PASSPHRASE: &str = "local wallets only";

/// Which scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Three users deposit, one pays another, two withdraw.
    Basic,
    /// The basic scenario, with the coordinator killed between two stages of a batch.
    KillCoordinator,
    /// The basic scenario, with an operator killed between accept and sign.
    KillOperator,
    /// The basic scenario, with an operator lost between the batches and restored from its backup elsewhere.
    Restore,
    /// The basic scenario, with operators that pause, and that hold a large withdrawal until it is approved.
    PauseAndApprove,
    /// The basic scenario, with a coordinator that lies to all operators between the two batches.
    LyingCoordinator,
    /// The basic scenario, with new shares for all operators between the batches, one of which dies in the middle.
    Refresh,
    /// The basic scenario, with an operator lost between the batches and its share repaired by the others.
    LostShare,
    /// The basic scenario, with both batches, and the deposits of the first, reorganised out of the chain.
    Reorg,
    /// The basic scenario, with the first batch's transaction vanishing from the mempool, twice.
    MempoolEviction,
    /// The basic scenario, with blocks that pass the second batch over until its fee is raised, and a reorganisation
    /// after which the cheaper of its transactions is in the chain.
    FeeBump,
    /// The basic scenario, with a further deposit in the second batch that is double-spent in a reorganisation.
    DoubleSpentDeposit,
    /// The basic scenario, with a further deposit in the second batch whose payment leaves the chain in a reorganisation,
    /// and is not mined again for a long time.
    StuckDeposit,
    /// The basic scenario, with n - t operators (at most four) that accept and then never answer a sign request.
    FourSilent,
    /// The basic scenario, with n - t operators (at most four) that send wrong shares and are blamed.
    BadShares,
    /// The basic scenario, with n - t operators (at most four) that answer sign requests seconds late.
    SlowSigners,
    /// The basic scenario, with a signer killed in round 2, its promise on disk and its shares made.
    KillSignerMidRound,
    /// The basic scenario, with the coordinator killed between its sign request and the aggregation.
    KillCoordinatorMidRound,
    /// One batch with --deposits deposits and --withdrawals withdrawals. Proving takes about 5 s for 8 operations.
    BigBatch,
    /// The basic scenario, with the first batch reorganised out of the chain after it was final.
    DeepReorg,
    /// The basic scenario, after which as many key shares as sign are abused to steal the treasury.
    UnknownSpend,
    /// The basic scenario, with the coordinator's disk lost while requests wait, and rebuilt from the operators and the
    /// chain.
    TotalLoss,
    /// Deposits, transfers, withdrawals, a refresh, a reorganisation and more, while each node is killed once at every
    /// point where it writes, sends or submits anything, and started again. Takes about ten minutes.
    CrashEverywhere,
    /// The basic scenario, with operator-1's disk full in the first batch, and the coordinator's in the second. Needs the
    /// right to mount.
    DiskFull,
    /// The basic scenario, with bitcoind stopped for a while in the middle of the first batch.
    BitcoindDown,
    /// The basic scenario, with bitcoind exchanged between the batches for one of another network, and then for one that is
    /// still syncing.
    StrangeBitcoind,
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::KillCoordinator => "kill-coordinator",
            Self::KillOperator => "kill-operator",
            Self::Restore => "restore",
            Self::PauseAndApprove => "pause-and-approve",
            Self::Refresh => "refresh",
            Self::LostShare => "lost-share",
            Self::TotalLoss => "total-loss",
            Self::LyingCoordinator => "lying-coordinator",
            Self::Reorg => "reorg",
            Self::MempoolEviction => "mempool-eviction",
            Self::FeeBump => "fee-bump",
            Self::DoubleSpentDeposit => "double-spent-deposit",
            Self::StuckDeposit => "stuck-deposit",
            Self::FourSilent => "four-silent",
            Self::BadShares => "bad-shares",
            Self::SlowSigners => "slow-signers",
            Self::KillSignerMidRound => "kill-signer-mid-round",
            Self::KillCoordinatorMidRound => "kill-coordinator-mid-round",
            Self::BigBatch => "big-batch",
            Self::DeepReorg => "deep-reorg",
            Self::UnknownSpend => "unknown-spend",
            Self::BitcoindDown => "bitcoind-down",
            Self::StrangeBitcoind => "strange-bitcoind",
            Self::CrashEverywhere => "crash-everywhere",
            Self::DiskFull => "disk-full",
        }
    }

    /// What its network needs beside the usual.
    pub fn extras(self) -> Extras {
        match self {
            Self::LyingCoordinator => lying_coordinator::EXTRAS,
            Self::FeeBump => fee_bump::EXTRAS,
            Self::BigBatch => big_batch::Numbers::default().extras(),
            Self::DiskFull => disk_full::extras(),
            Self::CrashEverywhere => crash_everywhere::extras(Crashes::EVERYWHERE),
            _ => Extras::default(),
        }
    }
}

/// Prints each step with its time.
pub struct Story {
    start: Instant,
    bar: ProgressBar,
}

impl Default for Story {
    fn default() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            start: Instant::now(),
            bar,
        }
    }
}

impl Story {
    /// What is going on now.
    pub fn doing(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// How much is done of what is going on now.
    pub fn progress(&self, what: impl Into<String>, done: usize, of: usize) {
        if self.bar.length().is_none()
            && let Ok(style) = ProgressStyle::with_template(
                "{spinner} {msg} [{bar:40}] {pos}/{len} ({elapsed}, {eta} left)",
            )
        {
            self.bar.set_style(style);
            self.bar.reset_elapsed();
        }
        self.bar.set_message(what.into());
        self.bar.set_length(u64::try_from(of).unwrap_or(u64::MAX));
        self.bar
            .set_position(u64::try_from(done).unwrap_or(u64::MAX));
    }

    /// From here on it is not known how much there is to do.
    pub fn end_progress(&self) {
        self.bar.unset_length();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            self.bar.set_style(style);
        }
    }

    /// What has been done.
    pub fn done(&self, what: impl AsRef<str>) {
        let line = format!(
            "{:>7.1} s  {}",
            self.start.elapsed().as_secs_f64(),
            what.as_ref()
        );
        self.bar.suspend(|| {
            #[allow(clippy::print_stdout, reason = "what the command is for")]
            {
                println!("{line}");
            }
        });
    }

    /// Shows a text of several lines as it is.
    pub fn tell(&self, text: &str) {
        self.bar.suspend(|| {
            #[allow(clippy::print_stdout, reason = "what the command is for")]
            {
                println!("{text}");
            }
        });
    }

    /// Ends the display.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

struct User {
    name: &'static str,
    wallet: Wallet,
    /// What the account must hold in the end.
    expected: u64,
}

impl User {
    fn holding(&self) -> Holding {
        Holding {
            name: self.name,
            address: self.wallet.address(),
            sats: self.expected,
        }
    }
}

/// Key generation and genesis: from started processes to an open vault.
///
/// # Errors
/// What did not happen in time.
pub async fn found(network: &mut LocalNetwork, story: &Story) -> anyhow::Result<()> {
    story.doing("operators generate the vault's key");
    let address = network
        .wait_for("key generation", STEP, async |network| {
            Ok(network
                .client
                .vault()
                .await
                .ok()
                .and_then(|vault| vault.address))
        })
        .await?;
    story.done(format!("key generated; the vault is {address}"));
    let address: Address = address.parse::<Address<_>>()?.assume_checked();
    let txid = network.bitcoind.fund(&address, GENESIS).await?;
    network
        .bitcoind
        .mine(network.parameters.genesis_confirmations)
        .await?;
    story.doing("all operators certify the genesis");
    let vault = network
        .wait_for("genesis", STEP, async |network| {
            let vault = network.client.vault().await.ok();
            Ok(vault.and_then(|vault| vault.vault_id))
        })
        .await?;
    story.done(format!(
        "genesis {txid} certified by all operators; vault id {vault}"
    ));
    until_ready(network).await
}

/// Plays a scenario on an open vault, checks what must hold, and reports.
///
/// # Errors
/// What went wrong, or does not hold.
pub async fn play(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<Report> {
    if scenario == Scenario::CrashEverywhere {
        return crash_everywhere::play(network, story).await;
    }
    if scenario == Scenario::BigBatch {
        return big_batch::play(network, big_batch::Numbers::default(), story).await;
    }
    let wallets = network.dir.join("wallets");
    let mut users = Vec::new();
    for name in ["alice", "bob", "carol"] {
        let wallet = Wallet::create(
            wallets.join(name),
            WALLET_PASSPHRASE,
            network.parameters.network,
        )?;
        users.push(User {
            name,
            wallet,
            expected: 0,
        });
    }
    let [alice, bob, carol] = users.as_mut_slice() else {
        anyhow::bail!("three users")
    };

    story.doing("three users deposit");
    let first = [
        deposit(network, alice, 500_000, story).await?,
        deposit(network, bob, 300_000, story).await?,
        deposit(network, carol, 200_000, story).await?,
    ];
    let mut others = before_first_batch(network, scenario, story).await?;
    network
        .bitcoind
        .mine(network.parameters.deposit_confirmations)
        .await?;
    during_first_batch(network, scenario, story).await?;
    until_deposits(network, &first, RequestStatus::Confirmed, story).await?;
    story.done("three deposits credited in one batch");
    if network.hosts.are_apart() {
        network.hosts.bring_together();
        story.done("from here on without delay and loss, to tell what is computing");
    }
    between_batches(network, scenario, story).await?;
    let plot = match scenario {
        Scenario::DoubleSpentDeposit | Scenario::StuckDeposit => {
            Some(double_spent_deposit::deposit(network, story).await?)
        }
        _ => None,
    };

    story.doing("two more deposits, a transfer and two withdrawals");
    let second = [
        deposit(network, alice, 100_000, story).await?,
        deposit(network, carol, 150_000, story).await?,
    ];
    let payout_bob = network.bitcoind.new_address().await?;
    let payout_carol = network.bitcoind.new_address().await?;
    let fees = network.client.fees().await?;
    network
        .bitcoind
        .mine(network.parameters.deposit_confirmations)
        .await?;
    // Side by side: all of it is to be in one batch.
    let client = network.client.clone();
    let (options, to_bob) = (SendOptions::default(), bob.wallet.address());
    let (bob_takes, carol_takes) = (payout_bob.to_string(), payout_carol.to_string());
    let sent = futures::try_join!(
        send(&client, async || {
            let amount = Amount::from_sat(50_000);
            let wallet = &alice.wallet;
            wallet.transfer(&client, &to_bob, amount, options).await
        }),
        send(&client, async || {
            let amount = Amount::from_sat(120_000);
            let wallet = &bob.wallet;
            wallet.withdraw(&client, &bob_takes, amount, options).await
        }),
        send(&client, async || {
            let amount = Amount::from_sat(80_000);
            let wallet = &carol.wallet;
            let sent = wallet.withdraw(&client, &carol_takes, amount, options);
            sent.await
        }),
    )?;
    alice.expected = alice
        .expected
        .saturating_sub(50_000 + fees.transfer_fee_sat);
    bob.expected = (bob.expected + 50_000).saturating_sub(120_000 + fees.withdraw_fee_sat);
    carol.expected = carol
        .expected
        .saturating_sub(80_000 + fees.withdraw_fee_sat);
    story.done("alice pays bob 50,000 sat; bob withdraws 120,000 and carol 80,000 sat");
    during_second_batch(network, scenario, story).await?;
    match &plot {
        Some(plot) if scenario == Scenario::StuckDeposit => {
            others.push(stuck_deposit::wait_out(network, plot, story).await?);
        }
        Some(plot) => double_spent_deposit::double_spend(network, plot, story).await?,
        None => {}
    }
    until_deposits(network, &second, RequestStatus::Final, story).await?;
    for id in <[_; 3]>::from(sent) {
        until_final(network, &id.to_string(), story).await?;
    }
    story.done("everything is final");

    let holdings: Vec<Holding> = users.iter().map(User::holding).chain(others).collect();
    check(
        network,
        &holdings,
        &[(payout_bob, 120_000), (payout_carol, 80_000)],
    )
    .await?;
    story.done("accounts, payouts on the chain, and treasury >= supply hold");
    afterwards(network, scenario, story).await?;
    let evidence = match scenario {
        Scenario::BadShares => faulty::check_evidence(network, story).await?,
        _ => Vec::new(),
    };
    let report = report(network, scenario).await?;
    Ok(Report { evidence, ..report })
}

/// What a scenario does before the first batch: accounts of its own, that are in it too.
async fn before_first_batch(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<Vec<Holding>> {
    match scenario {
        Scenario::LyingCoordinator => return lying_coordinator::accomplice(network, story).await,
        Scenario::FourSilent => faulty::begin(network, Fault::Silent, story).await?,
        Scenario::SlowSigners => faulty::begin(network, Fault::Slow, story).await?,
        Scenario::BadShares => {
            faulty::begin_with_no_choice(network, Fault::BadShares, story).await?
        }
        Scenario::KillSignerMidRound => faulty::begin_alone(network, story).await?,
        Scenario::KillCoordinatorMidRound => faulty::begin_slow(network, story).await?,
        Scenario::TotalLoss => return total_loss::address(network, story).await,
        _ => {}
    }
    Ok(Vec::new())
}

/// What a scenario does while the first batch is under way.
async fn during_first_batch(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<()> {
    match scenario {
        Scenario::KillCoordinator => kill::coordinator(network, story).await,
        Scenario::KillOperator => kill::operator(network, story).await,
        Scenario::BitcoindDown => bitcoind_down::for_a_while(network, story).await,
        Scenario::DiskFull => disk_full::operator(network, story).await,
        Scenario::Reorg => reorg::deposits_and_batch(network, story).await,
        Scenario::MempoolEviction => mempool_eviction::twice(network, story).await,
        Scenario::BadShares => faulty::see_blame(network, story).await,
        Scenario::KillSignerMidRound => faulty::kill_signer(network, story).await,
        Scenario::KillCoordinatorMidRound => faulty::kill_coordinator(network, story).await,
        _ => Ok(()),
    }
}

/// What a scenario does between the first batch and the second.
async fn between_batches(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<()> {
    match scenario {
        Scenario::LyingCoordinator => lying_coordinator::lies(network, story).await,
        Scenario::Restore => restore::restore(network, story).await,
        Scenario::Refresh => refresh::refresh(network, story).await,
        Scenario::LostShare => lost_share::repair(network, story).await,
        Scenario::KillSignerMidRound => faulty::bring_back(network, story).await,
        Scenario::PauseAndApprove => pause_and_approve::pause(network, story).await,
        Scenario::DeepReorg => deep_reorg::stop_and_clear(network, story).await,
        Scenario::FeeBump => fee_bump::top_up(network, story).await,
        Scenario::StrangeBitcoind => strange_bitcoind::come_and_go(network, story).await,
        _ => Ok(()),
    }
}

/// What a scenario does while the second batch is under way; no block is mined meanwhile.
async fn during_second_batch(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<()> {
    match scenario {
        Scenario::Restore => restore::see_quarantine(network, story).await,
        Scenario::TotalLoss => total_loss::lose(network, story).await,
        Scenario::DiskFull => disk_full::coordinator(network, story).await,
        Scenario::PauseAndApprove => pause_and_approve::resume_and_approve(network, story).await,
        Scenario::Reorg => reorg::batch(network, story).await,
        Scenario::FeeBump => fee_bump::pass_over(network, story).await,
        _ => Ok(()),
    }
}

/// What a scenario looks at once everything is final.
async fn afterwards(
    network: &mut LocalNetwork,
    scenario: Scenario,
    story: &Story,
) -> anyhow::Result<()> {
    match scenario {
        Scenario::Restore => restore::see_signature(network, story).await,
        Scenario::FourSilent | Scenario::BadShares => faulty::see_signers(network, story).await,
        Scenario::Refresh => refresh::see_signatures(network, story).await,
        Scenario::LostShare => lost_share::see_signature(network, story).await,
        Scenario::PauseAndApprove => pause_and_approve::see_decisions(network, story).await,
        Scenario::UnknownSpend => unknown_spend::steal(network, story).await,
        Scenario::FeeBump => fee_bump::see_confirmed(network, story).await,
        _ => Ok(()),
    }
}
