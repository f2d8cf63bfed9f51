//! The `drawbridge` command: arguments in, one reply or one error line out.

mod args;
mod commands;
mod error;
mod passphrase;
mod progress;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use serde_json::Value;

use args::Arguments;
use error::CliError;

/// What a command says: for people, and for programs.
struct Reply {
    text: String,
    json: Value,
}

/// Parses, runs, prints. Exit code 0, 1 for an error, 2 for wrong usage (clap's).
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.common.json;
    match execute(&arguments) {
        Ok(reply) => {
            let text = if json {
                format!("{:#}", reply.json)
            } else {
                reply.text
            };
            let written = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
            // A reader that has gone away, such as `head`, is no error of ours.
            written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            let text = if json {
                error.to_json().to_string()
            } else {
                format!("error: {}", error.line())
            };
            // There is nowhere left to report to when stderr is closed.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> Result<Reply, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(commands::execute(arguments))
}
