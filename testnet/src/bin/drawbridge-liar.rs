//! `drawbridge-liar`: a lying coordinator, for tests. Started by the scenario `lying-coordinator`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use testnet::liar;

/// Takes an honest proposal, changes one thing at a time, and proposes it to the operators of a local network.
/// Prints a table; exits 0 only if every lie was refused as expected and changed nothing.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The settings file (TOML).
    #[arg(long)]
    settings: PathBuf,
    /// Write the table in JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "what the command is for")]
async fn main() -> anyhow::Result<()> {
    node::log::init("info");
    let arguments = Arguments::parse();
    let settings = liar::settings::Settings::load(&arguments.settings)?;
    let table = liar::run(&settings).await?;
    println!("{table}");
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&table)?)
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    liar::wait_out_the_promise(&settings).await?;
    let bad = table.bad().len();
    if bad > 0 {
        bail!("{bad} lies were not refused as expected");
    }
    Ok(())
}
