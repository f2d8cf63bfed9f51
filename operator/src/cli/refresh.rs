//! `refresh`: the administrator's word that this operator takes part in a refresh of all shares.

use anyhow::Context as _;
use operator::{admin::Request, refresh::Begun};
use serde_json::json;

use super::{Own, Reply};

pub(super) fn refresh(own: &Own, anew: bool) -> anyhow::Result<Reply> {
    let answer = own.ask(&Request::Refresh { anew })?;
    let begun: Begun = serde_json::from_value(answer)
        .context("the running operator is another version than this command")?;
    let (epoch, text) = match begun {
        Begun::Now(epoch) => (
            epoch,
            format!(
                "The refresh to epoch {epoch} has begun here. It goes on once the administrator of every operator has \
                 run this; 'status' shows who is missing."
            ),
        ),
        Begun::Before(epoch) => (
            epoch,
            format!("The refresh to epoch {epoch} is under way; 'status' shows who is missing."),
        ),
        Begun::Finished(epoch) => (
            epoch,
            format!(
                "The new share of epoch {epoch} is on disk. It waits until all operators have signed for it. If others \
                 have given this attempt up, run this again with --anew."
            ),
        ),
    };
    Ok(Reply {
        text,
        json: json!({ "epoch": epoch, "begun": begun }),
    })
}
