//! `drawbridge-testnet`: a local network of processes, and a scenario on it. Started by `testnet/run.sh`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use testnet::{
    network::{LocalNetwork, Size, proof_keys},
    scenario::{
        self, Scenario, Story,
        big_batch::{self, Numbers},
    },
};

/// Starts bitcoind (regtest), a coordinator and operators, generates the key, creates the genesis, plays a
/// scenario with real wallets, and stays up until Ctrl-C.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Stop everything after the scenario; exit 0 only if accounts, payouts and treasury >= supply hold.
    #[arg(long)]
    once: bool,
    /// Number of operators (n).
    #[arg(long, default_value_t = 5)]
    operators: usize,
    /// Signers needed (t).
    #[arg(long, default_value_t = 3)]
    threshold: u16,
    /// What to play.
    #[arg(long, value_enum, default_value_t = Scenario::Basic)]
    scenario: Scenario,
    /// Deposits in the batch of scenario big-batch.
    #[arg(long, default_value_t = 500)]
    deposits: usize,
    /// Withdrawals in the batch of scenario big-batch.
    #[arg(long, default_value_t = 500)]
    withdrawals: usize,
    /// Write a report in JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder for data and logs; a new one under testnet/run when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Arguments {
    fn numbers(&self) -> Numbers {
        Numbers {
            deposits: self.deposits,
            withdrawals: self.withdrawals,
        }
    }
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "what the command is for")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let story = Story::default();
    let dir = match arguments.dir.clone() {
        Some(dir) => dir,
        None => PathBuf::from("testnet/run").join(format!("{}", std::process::id())),
    };
    story.doing("proof keys (made once for this machine: about a minute)");
    let keys = tokio::task::spawn_blocking(|| proof_keys(|_| {})).await??;
    story.done(format!("proof keys ready: {}", proof::SETUP_LABEL));
    story.doing("starting bitcoind and the nodes");
    let size = Size {
        operators: arguments.operators,
        threshold: arguments.threshold,
    };
    let extras = match arguments.scenario {
        Scenario::BigBatch => arguments.numbers().extras(),
        scenario => scenario.extras(),
    };
    let mut network = LocalNetwork::start_with(&dir, size, &keys, extras).await?;
    story.done(format!(
        "bitcoind, 1 coordinator and {} operators run; logs in {}",
        size.operators,
        network.dir.join("logs").display()
    ));
    let result = tokio::select! {
        result = play(&mut network, &arguments, &story) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    story.end();
    if let Ok(()) = &result
        && !arguments.once
    {
        println!("\n  The network stays up: Ctrl-C stops it. A block is mined every 10 s.");
        stay(&mut network).await;
    }
    let stubborn = network.stop().await;
    result.with_context(|| {
        format!(
            "the scenario failed; logs are in {}",
            network.dir.join("logs").display()
        )
    })?;
    if !stubborn.is_empty() {
        bail!("these did not stop by themselves: {}", stubborn.join(", "));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what the command is for")]
async fn play(
    network: &mut LocalNetwork,
    arguments: &Arguments,
    story: &Story,
) -> anyhow::Result<()> {
    scenario::found(network, story).await?;
    let report = match arguments.scenario {
        Scenario::BigBatch => big_batch::play(network, arguments.numbers(), story).await?,
        scenario => scenario::play(network, scenario, story).await?,
    };
    story.end();
    println!("{}", report.table());
    let url = network.client.url().as_str().trim_end_matches('/');
    println!(
        "  REST API      {url}/v1/status\n  API pages     {url}/docs\n  metrics       {url}/metrics"
    );
    println!("  logs          {}", network.dir.join("logs").display());
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(())
}

/// Mines now and then until Ctrl-C.
async fn stay(network: &mut LocalNetwork) {
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return,
            () = tokio::time::sleep(std::time::Duration::from_secs(10)) => {
                if let Err(error) = network.bitcoind.mine(1).await {
                    tracing::warn!(%error, "no block was mined");
                }
            }
        }
    }
}
