//! `pause`, `resume`, `pending`, `approve` and `reject`.

use std::fmt::Write as _;

use anyhow::Context as _;
use node::clock;
use operator::{
    admin::Request,
    decisions::{Listed, Listing, Verdict},
};

use super::{Own, Reply};

pub(super) fn pause(own: &Own, reason: String) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::Pause { reason })?;
    let text = "Signing is paused, also over restarts. 'resume' ends it. Shares that are out already stay out.";
    Ok(Reply {
        text: text.to_owned(),
        json,
    })
}

pub(super) fn resume(own: &Own) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::Resume {})?;
    let text = if json.is_null() {
        "Signing was not paused."
    } else {
        "Signing goes on."
    };
    Ok(Reply {
        text: text.to_owned(),
        json,
    })
}

pub(super) fn clear_alarm(own: &Own, reason: String) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::ClearAlarm { reason })?;
    let text = match json.as_str() {
        None => "There is no alarm.".to_owned(),
        Some(alarm) => format!("The alarm is cleared, and signing goes on. It was: {alarm}"),
    };
    Ok(Reply { text, json })
}

pub(super) fn approve(own: &Own, operation: String) -> anyhow::Result<Reply> {
    let text = format!(
        "{operation} is approved. It is signed with a later batch, once enough other operators agree."
    );
    let json = own.ask(&Request::Approve { operation })?;
    Ok(Reply { text, json })
}

pub(super) fn reject(own: &Own, operation: String) -> anyhow::Result<Reply> {
    let text = format!("{operation} is rejected: this operator signs no batch with it.");
    let json = own.ask(&Request::Reject { operation })?;
    Ok(Reply { text, json })
}

pub(super) fn pending(own: &Own) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::Pending {})?;
    let listing: Listing = serde_json::from_value(json.clone())
        .context("the running operator is another version than this command")?;
    Ok(Reply {
        text: words(&listing, clock::now_ms()),
        json,
    })
}

fn words(listing: &Listing, now_ms: u64) -> String {
    if listing.pending.is_empty() && listing.decided.is_empty() {
        return "nothing waits for approval".to_owned();
    }
    let mut text = String::new();
    for row in listing.pending.iter().chain(&listing.decided) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line(row, now_ms));
    }
    text
}

fn line(row: &Listed, now_ms: u64) -> String {
    let verdict = match row.verdict {
        None => "waits",
        Some(Verdict::Approved) => "approved",
        Some(Verdict::Rejected) => "rejected",
    };
    let about = row.about.as_ref().map(|about| {
        format!(
            "  {} of {} sat to {}, batch {}, seen {} s ago",
            about.kind,
            about.amount_sat,
            about.destination,
            about.batch,
            now_ms.saturating_sub(about.first_seen_ms) / 1_000
        )
    });
    format!("{}  {verdict}{}", row.operation, about.unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use operator::decisions::About;

    use super::*;

    #[test]
    fn what_waits_is_told_with_amount_destination_and_batch() {
        let row = |verdict: Option<Verdict>, about: Option<About>| Listed {
            operation: "ab".repeat(32),
            verdict,
            decided_ms: None,
            about,
        };
        let about = About {
            kind: "withdrawal".to_owned(),
            amount_sat: 120_000,
            destination: "bcrt1qabc".to_owned(),
            first_seen_ms: 1_000,
            batch: 7,
        };
        let listing = Listing {
            pending: vec![row(None, Some(about))],
            decided: vec![row(Some(Verdict::Rejected), None)],
        };
        let text = words(&listing, 13_000);
        let id = "ab".repeat(32);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                format!(
                    "{id}  waits  withdrawal of 120000 sat to bcrt1qabc, batch 7, seen 12 s ago"
                ),
                format!("{id}  rejected"),
            ]
        );
        assert!(words(&Listing::default(), 0).contains("nothing waits"));
    }
}
