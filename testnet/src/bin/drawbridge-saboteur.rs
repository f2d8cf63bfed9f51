//! `drawbridge-saboteur`: an operator that misbehaves in round 2, for tests. Started by the scenarios that need one.

use std::{path::PathBuf, sync::Arc};

use clap::{Parser, Subcommand};
use operator::{run, settings::Settings};
use testnet::saboteur::{Fault, Saboteur};
use tokio::signal::unix::{SignalKind, signal};

/// An operator of a local network with its own key and folder, and one fault.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes part, until SIGTERM.
    Run {
        /// The operator's settings file.
        #[arg(long)]
        settings: PathBuf,
        /// What is wrong with it.
        #[arg(long, value_enum)]
        fault: Fault,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    node::log::init("info");
    let Command::Run { settings, fault } = Arguments::parse().command;
    let settings = Settings::load(&settings)?;
    let identity = node::files::load_identity(&settings.identity)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        let _ = terminate.recv().await;
    };
    run::run_with(settings, Arc::new(Saboteur::new(fault, identity)), shutdown).await?;
    Ok(())
}
