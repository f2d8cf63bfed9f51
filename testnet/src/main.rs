//! `drawbridge-testnet`: a local network of processes, and a scenario on it. Started by `testnet/run.sh`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Parser;
use testnet::{
    hosts::{self, Hosts, Kind, Transport},
    line::Quality,
    network::{Extras, LocalNetwork, Size, proof_keys},
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
    /// Where the nodes live. Namespaces: each on a host of its own (needs root, iproute2 and /dev/net/tun; elsewhere
    /// relays delay the connections instead). The first batch is signed with delay and loss, the rest without, and the
    /// round trips are counted.
    #[arg(long, value_enum, default_value_t = Kind::Loopback)]
    hosts: Kind,
    /// What the nodes talk over.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    transport: Transport,
    /// Have operators hand out nonces ahead of time, so that a batch is signed in one round trip.
    #[arg(long)]
    nonce_pool: bool,
    /// One-way delay between hosts.
    #[arg(long, default_value = "100ms", value_parser = milliseconds)]
    delay: Duration,
    /// Packets lost between hosts.
    #[arg(long, default_value = "1%", value_parser = percent)]
    loss: f64,
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

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").unwrap_or(text);
    let number = number.parse().map_err(|_| "write it as 100ms".to_owned())?;
    Ok(Duration::from_millis(number))
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let number = number.parse().map_err(|_| "write it as 1%".to_owned())?;
    if (0.0..100.0).contains(&number) {
        Ok(number)
    } else {
        Err("from 0% to below 100%".to_owned())
    }
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "what the command is for")]
async fn main() -> anyhow::Result<()> {
    node::log::init("warn");
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
    let extras = Extras {
        nonce_pool: arguments.nonce_pool,
        ..extras
    };
    let count = size
        .operators
        .saturating_add(extras.coordinators)
        .saturating_add(1);
    let quality = Quality {
        delay: arguments.delay,
        loss_percent: arguments.loss,
    };
    let hosts = Hosts::new(arguments.hosts, arguments.transport, count, quality)?;
    story.done(hosts.description.clone());
    let mut network = LocalNetwork::start_on(hosts, &dir, size, &keys, extras).await?;
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
    if arguments.nonce_pool {
        println!(
            "  {} of {} batches signed with nonces from the pool",
            report.pooled_batches,
            report.batches.len()
        );
    }
    if network.hosts.are_apart() {
        println!(
            "{}",
            hosts::round_trips(&report, &network.hosts, arguments.delay)
        );
    }
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
