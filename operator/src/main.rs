//! `drawbridge-operator`: holds one share of a vault's key, verifies batches, signs what it has verified.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
