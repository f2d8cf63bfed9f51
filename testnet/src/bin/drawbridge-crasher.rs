//! `drawbridge-crasher`: a coordinator or an operator that dies wherever it can, for tests. Started by the scenario
//! `crash-everywhere`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use testnet::crasher::{Crasher, Crashes, Role};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A node of a local network with its own key and folder, which aborts at each point that nobody has claimed.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes part, until SIGTERM or the next point.
    Run {
        /// The node's settings file.
        #[arg(long)]
        settings: PathBuf,
        /// What it is.
        #[arg(long, value_enum)]
        role: Role,
        /// Folder of the claims of all nodes of that role.
        #[arg(long)]
        claims: PathBuf,
        /// Die at one point in so many.
        #[arg(long, default_value_t = 1)]
        one_in: u64,
        /// Chooses them.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    node::harden::harden()?;
    node::log::init(node::log::OF_A_NODE);
    let Command::Run {
        settings,
        role,
        claims,
        one_in,
        seed,
    } = Arguments::parse().command;
    let crasher = Crasher::new(claims, Crashes { one_in, seed });
    failpoint::set(move |point| crasher.reach(point))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        let _ = terminate.recv().await;
    };
    match role {
        Role::Operator => {
            let settings = operator::settings::Settings::load(&settings)?;
            operator::run::run(settings, shutdown).await?;
        }
        Role::Coordinator => {
            let stop = CancellationToken::new();
            let stopping = stop.clone();
            tokio::spawn(async move {
                shutdown.await;
                stopping.cancel();
            });
            coordinator::run::run(&settings, stop).await?;
        }
    }
    Ok(())
}
