//! `init` and `show`: a new operator, and its entry for the roster.

use std::path::Path;

use anyhow::{Context as _, bail};
use node::files;
use operator::{
    policy,
    settings::{self, Settings},
};
use serde_json::json;

use super::Reply;

pub(super) fn init(folder: &Path) -> anyhow::Result<Reply> {
    files::create_private_folder(folder)?;
    let file = folder.join(settings::FILE_NAME);
    if file.exists() {
        bail!("{} is there already; nothing was changed", file.display());
    }
    let identity = files::create_identity(&folder.join("identity"))?;
    for (name, text) in [
        (policy::FILE_NAME, policy::template()),
        (settings::FILE_NAME, settings::template()),
    ] {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(entry(
        &identity.public().to_string(),
        &["/ip4/YOUR.ADDRESS/tcp/9000".to_owned()],
    ))
}

pub(super) fn show(settings: &Settings) -> anyhow::Result<Reply> {
    let identity = files::load_identity(&settings.identity)?;
    Ok(entry(&identity.public().to_string(), &settings.listen))
}

/// What goes into the roster.
fn entry(key: &str, addresses: &[String]) -> Reply {
    Reply {
        text: format!(
            "# For the vault's roster:\n[[operators]]\nname = \"\"\nkey = \"{key}\"\naddresses = {addresses:?}"
        ),
        json: json!({ "key": key, "addresses": addresses }),
    }
}
