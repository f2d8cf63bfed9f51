//! `policy show` and `policy check`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use node::files;
use operator::{
    admin::Request,
    policy::{Policy, Shown},
};
use serde_json::json;

use super::{Own, Reply};

/// About the policy.
#[derive(Subcommand)]
pub(super) enum Command {
    /// The policy that is in force in the running operator.
    Show(Own),
    /// Say whether a policy file would be taken. Needs no running operator.
    Check {
        /// The file; the one that the settings name when absent.
        file: Option<PathBuf>,
        #[command(flatten)]
        own: Own,
    },
}

pub(super) fn policy(command: &Command) -> anyhow::Result<Reply> {
    match command {
        Command::Show(own) => show(own),
        Command::Check { file, own } => check(own, file.clone()),
    }
}

fn show(own: &Own) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::Policy {})?;
    let shown: Shown = serde_json::from_value(json.clone())
        .context("the running operator is another version than this command")?;
    let mut text = format!(
        "# {}\n{}",
        shown.path.display(),
        toml::to_string(&shown.policy)?
    );
    if let Some(problem) = shown.problem {
        text.push_str(&format!(
            "\nThis is an earlier policy. The file, as it is now, is not in force: {problem}"
        ));
    }
    Ok(Reply { text, json })
}

fn check(own: &Own, file: Option<PathBuf>) -> anyhow::Result<Reply> {
    let settings = own.load()?;
    let parameters = files::load_parameters(&settings.parameters)?;
    let file = file.unwrap_or(settings.policy);
    let policy = Policy::load(&file, &parameters)?;
    Ok(Reply {
        text: format!("{} can be used", file.display()),
        json: json!({ "file": file.display().to_string(), "policy": policy.file() }),
    })
}
