//! `drawbridge-coordinator`: the binary.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use node::files;
use tokio_util::sync::CancellationToken;

/// Coordinator of a Drawbridge vault: forms batches, proves them, has them signed, publishes them.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes this node's identity and prints its public key, for the roster.
    Init {
        /// The data folder, made if it is not there.
        #[arg(long, default_value = "coordinator-data")]
        data_dir: PathBuf,
    },
    /// Checks the settings file and the files that it names.
    Check {
        /// The settings file.
        #[arg(long, default_value = "coordinator.toml")]
        settings: PathBuf,
    },
    /// Checks evidence that an operator has sent a bad share, with no trust in whoever shows it. Exit code 0 only
    /// if all of it holds.
    CheckEvidence {
        /// An answer of GET /v1/blame/{id}, or a list of such, in JSON.
        file: PathBuf,
        /// The roster, to know the operators by.
        #[arg(long, default_value = "roster.toml")]
        roster: PathBuf,
    },
    /// Takes back the alarm (S14) of a coordinator that is stopped, once you know what has happened and the operators
    /// agree.
    ClearAlarm {
        /// The settings file.
        #[arg(long, default_value = "coordinator.toml")]
        settings: PathBuf,
        /// Why, for the audit log.
        #[arg(long, default_value = "none was given")]
        reason: String,
    },
    /// Makes an administrator's token for `/v1/admin`, and prints it once, with the lines that the settings file needs.
    AdminToken {
        /// Who it is for; the audit log names it.
        #[arg(long)]
        label: String,
    },
    /// Runs the coordinator until SIGINT or SIGTERM.
    Run {
        /// The settings file.
        #[arg(long, default_value = "coordinator.toml")]
        settings: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Before the identity is read.
    node::harden::harden()?;
    node::log::init(node::log::OF_A_NODE);
    match Arguments::parse().command {
        Command::Init { data_dir } => {
            std::fs::create_dir_all(&data_dir)
                .with_context(|| format!("can't make {}", data_dir.display()))?;
            let identity = files::create_identity(&data_dir.join("identity"))?;
            say(&identity.public().to_string());
            Ok(())
        }
        Command::Check { settings } => {
            let settings = coordinator::settings::Settings::load(&settings)?;
            let parameters = files::load_parameters(&settings.parameters)?;
            settings.fees.check(parameters.network)?;
            files::load_roster(&settings.roster)?;
            files::load_identity(&settings.data_dir.join("identity"))?;
            say("the settings are good");
            Ok(())
        }
        Command::CheckEvidence { file, roster } => {
            let roster = files::load_roster(&roster)?;
            for line in coordinator::blame::check_file(&file, &roster)? {
                say(&line);
            }
            Ok(())
        }
        Command::ClearAlarm { settings, reason } => {
            let alarm = coordinator::run::clear_alarm(&settings, &reason)?;
            say(&alarm.map_or("there is no alarm".to_owned(), |alarm| {
                format!("the alarm is cleared; it was: {alarm}")
            }));
            Ok(())
        }
        Command::AdminToken { label } => {
            let new = coordinator::token::make(&label)?;
            say(&format!("token, kept nowhere: {}", new.secret));
            say("for the end of the settings file:");
            say("[[admin_tokens]]");
            say(&format!("label = \"{}\"", new.entry.label));
            say(&format!("hash = \"{}\"", hex::encode(new.entry.hash)));
            Ok(())
        }
        Command::Run { settings } => {
            let stop = CancellationToken::new();
            tokio::spawn(stop_on_signal(stop.clone()));
            coordinator::run::run(&settings, stop).await
        }
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::info!("stopping");
        }
        _ => tracing::error!("signals can't be caught; stopping"),
    }
    stop.cancel();
}

/// The one line of output that scripts read.
#[allow(clippy::print_stdout, reason = "the command's result")]
fn say(line: &str) {
    println!("{line}");
}
