//! Where the passphrase comes from: a file, the environment, or the terminal.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::CliError;

/// Instead of a prompt.
const VARIABLE: &str = "DRAWBRIDGE_PASSPHRASE";
/// Longest passphrase file.
const MAX_BYTES: u64 = 4096;

/// The passphrase of a wallet that is there.
pub fn ask(file: Option<&Path>) -> Result<Zeroizing<String>, CliError> {
    match given(file)? {
        Some(passphrase) => Ok(passphrase),
        None => prompt("Passphrase: "),
    }
}

/// The passphrase of a wallet that is being made: typed twice.
pub fn choose(file: Option<&Path>) -> Result<Zeroizing<String>, CliError> {
    if let Some(passphrase) = given(file)? {
        return Ok(passphrase);
    }
    let first = prompt("New passphrase: ")?;
    if *first != *prompt("The same again: ")? {
        return Err(CliError::PassphrasesDiffer);
    }
    Ok(first)
}

fn given(file: Option<&Path>) -> Result<Option<Zeroizing<String>>, CliError> {
    let Some(path) = file else {
        return Ok(std::env::var(VARIABLE).ok().map(Zeroizing::new));
    };
    let mut text = Zeroizing::new(String::new());
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|source| CliError::PassphraseFile {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(Zeroizing::new(
        text.lines().next().unwrap_or_default().to_owned(),
    )))
}

fn prompt(words: &str) -> Result<Zeroizing<String>, CliError> {
    rpassword::prompt_password(words)
        .map(Zeroizing::new)
        .map_err(CliError::NoTerminal)
}
