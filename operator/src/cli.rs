//! The `drawbridge-operator` command: arguments in, one reply or one error line out. Each command has its file; those
//! that concern a running operator ask it through its admin socket.

mod backup;
mod decide;
mod export;
mod init;
mod policy;
mod refresh;
mod repair;
mod status;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use node::harden::harden;
use operator::{
    admin::{self, Request},
    run,
    settings::{self, Settings},
};
use serde_json::{Value, json};

use backup::BackupSecret;

/// One operator of a Drawbridge vault.
///
/// Start with `init`, put the printed entry into the vault's roster, fill in the settings file, and `run`. The other
/// commands ask the running operator through the socket in its data folder, so they need the same user, or root.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Print JSON: the reply on stdout, an error on stderr.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Which operator.
#[derive(Args)]
struct Own {
    /// The settings file.
    #[arg(long, short, default_value = settings::FILE_NAME, env = "DRAWBRIDGE_OPERATOR_SETTINGS")]
    settings: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Make a folder with a new identity, and settings and policy files that explain themselves.
    Init {
        /// The folder; it is made if it is not there. Nothing in it is overwritten.
        folder: PathBuf,
    },
    /// Print this operator's public identity, as the roster needs it.
    Show(Own),
    /// Take part: generate the key, verify and sign, until SIGINT or SIGTERM.
    ///
    /// The passphrase of the key files comes from the settings' passphrase_file, or from the variable
    /// DRAWBRIDGE_PASSPHRASE, or is asked for. RUST_LOG chooses what is logged to stderr.
    Run(Own),
    /// What the running operator is doing: chain, peers, sequence number, last verdicts, sessions, nonces.
    Status(Own),
    /// Stop signing, also over restarts, until 'resume'. Everything else goes on.
    Pause {
        #[command(flatten)]
        own: Own,
        /// Why; coordinators and their users see it.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Sign again after a pause.
    Resume(Own),
    /// Sign again after an alarm (S14), once you know what has happened and the other operators agree.
    ///
    /// Refused while an unknown transaction in the chain spends the treasury.
    ClearAlarm {
        #[command(flatten)]
        own: Own,
        /// What was found; it goes into the log.
        #[arg(long)]
        reason: String,
    },
    /// What this operator is willing to sign.
    #[command(subcommand)]
    Policy(policy::Command),
    /// List the operations that wait for approval, and the decisions about those that are not final yet.
    Pending(Own),
    /// Let a withdrawal that waits be signed. It still has to keep to every other limit.
    Approve {
        /// Its id, as 'pending' shows it.
        operation: String,
        #[command(flatten)]
        own: Own,
    },
    /// Sign no batch with this operation, whether it waits or not. 'approve' takes it back.
    Reject {
        /// Its id.
        operation: String,
        #[command(flatten)]
        own: Own,
    },
    /// Write this operator's key share and identity into one new file, encrypted under a passphrase of its own.
    Backup {
        /// The file. It must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        own: Own,
        #[command(flatten)]
        secret: BackupSecret,
        /// Take the passphrase though it is the node's own.
        #[arg(long)]
        same_passphrase: bool,
    },
    /// Open a backup, check its share against its group, and say what it is. Changes nothing.
    VerifyBackup {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        secret: BackupSecret,
    },
    /// Lay out an operator's folder from a backup, on another host or after the loss of this one.
    ///
    /// The operator must run in one place only. It signs no batch at first: what it signed before is not in a backup
    /// (S7), so it waits until the treasury has moved on, or for the vault's replacement delay.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The folder. It must not be there yet.
        folder: PathBuf,
        #[command(flatten)]
        secret: BackupSecret,
        /// A file with the passphrase that the restored share is to have, readable by its owner only. Without it the
        /// passphrase comes from the variable DRAWBRIDGE_PASSPHRASE, or is asked for.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Make all operators' key shares anew, for the same key: shares that were lost or stolen before are of no use
    /// afterwards, and neither are backups.
    ///
    /// It begins once the administrators of all operators have run this, and signs again with new shares once all have
    /// certified them; 'status' shows who is missing. The vault goes on signing meanwhile.
    Refresh {
        #[command(flatten)]
        own: Own,
        /// Give up an attempt that was finished here and that others have given up, and begin another.
        #[arg(long)]
        anew: bool,
    },
    /// Get this operator's lost key share back from the other operators, onto a host with a new identity.
    ///
    /// Before: 'init' a folder, have every node's roster name the new key, with the old one as founding_key, and
    /// 'run' this operator. Then the administrators of as many operators as sign must approve the new key.
    #[command(args_conflicts_with_subcommands = true)]
    Repair {
        #[command(flatten)]
        own: Own,
        #[command(subcommand)]
        command: Option<repair::Command>,
    },
    /// Write the operator's own ledger (accounts, balances, nonces, supply) into a new JSON file, checked against the
    /// digest on the chain.
    ExportLedger {
        /// The file. It must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        own: Own,
    },
}

/// What a command says: for people, and for programs.
struct Reply {
    text: String,
    json: Value,
}

impl Own {
    fn load(&self) -> anyhow::Result<Settings> {
        Ok(Settings::load(&self.settings)?)
    }

    /// Asks the running operator.
    fn ask(&self, request: &Request) -> anyhow::Result<Value> {
        let socket = self.load()?.data_dir.join(admin::SOCKET);
        Ok(admin::ask(&socket, request)?)
    }
}

/// Parses, runs, prints. Exit code 0, 1 for an error, 2 for wrong usage (clap's).
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    // Before anything secret is read, by whichever command.
    let done = harden()
        .map_err(anyhow::Error::from)
        .and_then(|()| execute(arguments.command));
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(reply)) => {
            let text = if arguments.json {
                format!("{:#}", reply.json)
            } else {
                reply.text
            };
            let written = writeln!(io::stdout().lock(), "{}", text.trim_end());
            // A reader that has gone away, such as `head`, is no error of ours.
            written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            let line = line_of(&error);
            let text = if arguments.json {
                json!({ "error": { "message": line } }).to_string()
            } else {
                format!("error: {line}")
            };
            // There is nowhere left to report to when stderr is closed.
            let _ = writeln!(io::stderr().lock(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<Option<Reply>> {
    match command {
        Command::Init { folder } => init::init(&folder).map(Some),
        Command::Show(own) => init::show(&own.load()?).map(Some),
        Command::Run(own) => start(own.load()?).map(|()| None),
        Command::Status(own) => status::status(&own).map(Some),
        Command::Pause { own, reason } => decide::pause(&own, reason).map(Some),
        Command::Resume(own) => decide::resume(&own).map(Some),
        Command::ClearAlarm { own, reason } => decide::clear_alarm(&own, reason).map(Some),
        Command::Policy(command) => policy::policy(&command).map(Some),
        Command::Pending(own) => decide::pending(&own).map(Some),
        Command::Approve { operation, own } => decide::approve(&own, operation).map(Some),
        Command::Reject { operation, own } => decide::reject(&own, operation).map(Some),
        Command::Backup {
            file,
            own,
            secret,
            same_passphrase,
        } => backup::backup(&own, &file, &secret, same_passphrase).map(Some),
        Command::VerifyBackup { file, secret } => backup::verify(&file, &secret).map(Some),
        Command::Restore {
            file,
            folder,
            secret,
            passphrase_file,
        } => backup::restore(&file, &folder, &secret, passphrase_file.as_deref()).map(Some),
        Command::Refresh { own, anew } => refresh::refresh(&own, anew).map(Some),
        Command::Repair { own, command: None } => repair::repair(&own).map(Some),
        Command::Repair {
            command: Some(repair::Command::Approve { operator, own, yes }),
            ..
        } => repair::approve(&own, &operator, yes).map(Some),
        Command::ExportLedger { file, own } => export::export_ledger(&own, &file).map(Some),
    }
}

/// An error and its causes in one line; causes that an error has told already are left out.
fn line_of(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if line.is_empty() {
            line = words;
        } else if !line.contains(&words) {
            line.push_str(": ");
            line.push_str(&words);
        }
    }
    line
}

fn start(settings: Settings) -> anyhow::Result<()> {
    node::log::init(node::log::OF_A_NODE);
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
