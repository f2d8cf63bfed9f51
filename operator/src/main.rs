//! `drawbridge-operator`: holds one share of a vault's key, verifies batches, signs what it has verified.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use operator::{
    run,
    settings::{self, Settings},
};
use tracing_subscriber::EnvFilter;

/// One operator of a Drawbridge vault.
///
/// Start with `init`, put the printed entry into the vault's roster, fill in the settings file, and `run`.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a folder with a new identity and a settings file that explains itself.
    Init {
        /// The folder; it is made if it is not there. Nothing in it is overwritten.
        folder: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print this operator's public identity, as the roster needs it.
    Show {
        /// The settings file.
        #[arg(long, short, default_value = settings::FILE_NAME)]
        settings: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take part: generate the key, verify and sign, until SIGINT or SIGTERM.
    ///
    /// The passphrase of the key files comes from the settings' passphrase_file, or from the variable
    /// DRAWBRIDGE_PASSPHRASE, or is asked for. RUST_LOG chooses what is logged to stderr.
    Run {
        /// The settings file.
        #[arg(long, short, default_value = settings::FILE_NAME)]
        settings: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Init { folder, json } => init(&folder, json),
        Command::Show { settings, json } => {
            let settings = Settings::load(&settings)?;
            let identity = node::files::load_identity(&settings.identity)?;
            print_identity(&identity.public().to_string(), &settings.listen, json);
            Ok(())
        }
        Command::Run { settings } => start(&settings),
    }
}

fn init(folder: &Path, json: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("can't make the folder {}", folder.display()))?;
    let file = folder.join(settings::FILE_NAME);
    if file.exists() {
        bail!("{} is there already; nothing was changed", file.display());
    }
    let identity = node::files::create_identity(&folder.join("identity"))?;
    std::fs::write(&file, settings::template())
        .with_context(|| format!("can't write {}", file.display()))?;
    print_identity(
        &identity.public().to_string(),
        &["/ip4/YOUR.ADDRESS/tcp/9000".to_owned()],
        json,
    );
    Ok(())
}

#[allow(clippy::print_stdout, reason = "this is what the command is for")]
fn print_identity(key: &str, addresses: &[String], json: bool) {
    if json {
        println!(
            "{}",
            serde_json::json!({ "key": key, "addresses": addresses })
        );
    } else {
        println!("# For the vault's roster:");
        println!("[[operators]]\nname = \"\"\nkey = \"{key}\"\naddresses = {addresses:?}");
    }
}

fn start(path: &Path) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let settings = Settings::load(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Ok(run::run(settings, shutdown()?).await?) })
}

/// Ready at SIGINT or SIGTERM.
fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
