//! `status`: what a running operator shows, in words.

use std::fmt::Write as _;

use anyhow::Context as _;
use node::clock;
use operator::{
    admin::Request,
    status::{self, Status, Verdict},
};

use super::{Own, Reply};

pub(super) fn status(own: &Own) -> anyhow::Result<Reply> {
    let json = own.ask(&Request::Status {})?;
    let status: Status = serde_json::from_value(json.clone())
        .context("the running operator is another version than this command")?;
    Ok(Reply {
        text: words(&status, clock::now_ms()),
        json,
    })
}

fn words(status: &Status, now_ms: u64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line("operator", format!("{} ({})", status.name, status.identity));
    line(
        "stage",
        status.why_not_ready(now_ms).map_or_else(
            || format!("{}; ready to sign", status.stage),
            |why| format!("{}; not ready: {why}", status.stage),
        ),
    );
    if let Some(alarm) = &status.alarm {
        line("ALARM", alarm.clone());
    }
    if let Some(paused) = &status.paused {
        line("paused", paused.clone());
    }
    if let Some(problem) = &status.policy_problem {
        line("POLICY", format!("the file is not in force: {problem}"));
    }
    if status.pending > 0 {
        line(
            "pending",
            format!("{} operations wait for approval", status.pending),
        );
    }
    if let Some(quarantine) = &status.quarantine {
        line("quarantine", quarantine.reason.clone());
    }
    if let Some(progress) = &status.key_generation {
        let waits_for = progress.missing.join(", ");
        line(
            "ceremony",
            format!("{}; waits for {waits_for}", progress.stage),
        );
        if let Some(failure) = &progress.failure {
            line("FAILED", failure.clone());
        }
    }
    if let Some(refresh) = &status.refresh {
        line("refresh", refresh_words(refresh));
        if let Some(failure) = &refresh.failure {
            line("FAILED", failure.clone());
        }
    }
    if let Some(repair) = &status.repair {
        line("repair", repair_words(repair));
    }
    if let Some(why) = &status.refresh_due {
        line("REFRESH", format!("is due: {why}"));
    }
    if let Some(vault) = &status.vault {
        line("vault", vault.clone());
    }
    if let (Some(key), Some(epoch)) = (&status.group_key, status.epoch) {
        line("group key", format!("{key}, epoch {epoch}"));
    }
    if let Some(address) = &status.vault_address {
        line("address", address.clone());
    }
    if let (Some(sequence), Some(treasury), Some(supply)) =
        (status.sequence, status.treasury_sat, status.supply_sat)
    {
        line(
            "batch",
            format!("{sequence}; treasury {treasury} sat, supply {supply} sat"),
        );
    }
    line("chain", chain(status));
    line("peers", peers(status));
    if !status.attested.is_empty() {
        line("attested", attested(status));
    }
    line(
        "signing",
        format!(
            "{} open sessions, nonces for {}",
            status.sessions, status.nonces
        ),
    );
    line(
        "verdicts",
        if status.verdicts.is_empty() {
            "none yet".to_owned()
        } else {
            "newest first".to_owned()
        },
    );
    for verdict in &status.verdicts {
        let _ = writeln!(text, "  {}", verdict_line(verdict, now_ms));
    }
    text
}

/// How many of the other operators are attested, and why the rest is not.
fn attested(status: &Status) -> String {
    let all = &status.attested;
    let missing: Vec<_> = all.iter().filter(|peer| !peer.attested).collect();
    let mut text = format!("{} of {}", all.len() - missing.len(), all.len());
    for peer in missing {
        let problem = peer.problem.as_deref();
        let _ = write!(text, "; {}: {}", peer.name, problem.unwrap_or("not yet"));
    }
    text
}

fn refresh_words(refresh: &status::Refresh) -> String {
    let mut words = format!("to epoch {}: {}", refresh.epoch, refresh.stage);
    if !refresh.missing.is_empty() {
        let _ = write!(words, "; waits for {}", refresh.missing.join(", "));
    }
    for (name, reason) in &refresh.unwilling {
        let _ = write!(words, "; {name}: {reason}");
    }
    words
}

fn repair_words(repair: &status::Repair) -> String {
    let mut words = repair.stage.clone();
    if !repair.missing.is_empty() {
        let _ = write!(words, "; waits for {}", repair.missing.join(", "));
    }
    for (name, reason) in &repair.refused {
        let _ = write!(words, "; {name} refuses: {reason}");
    }
    for (name, fault) in &repair.blamed {
        let _ = write!(words, "; {name} is left out: {fault}");
    }
    words
}

fn chain(status: &Status) -> String {
    let tip = status.tip.as_deref().unwrap_or("no block taken in yet");
    if status.bitcoind_reachable {
        format!(
            "followed to {} of {} ({tip})",
            status.height, status.bitcoind_height
        )
    } else {
        format!(
            "followed to {} ({tip}); the own Bitcoin node does not answer",
            status.height
        )
    }
}

fn peers(status: &Status) -> String {
    let mut words = format!("{} connected", status.connected.len());
    if !status.connected.is_empty() {
        let _ = write!(words, ": {}", status.connected.join(", "));
    }
    if !status.missing.is_empty() {
        let _ = write!(words, "; missing: {}", status.missing.join(", "));
    }
    words
}

fn verdict_line(verdict: &Verdict, now_ms: u64) -> String {
    let age_s = now_ms.saturating_sub(verdict.at_ms) / 1_000;
    let mut line = format!(
        "{age_s:>6} s ago  {} of {}: {}",
        verdict.subject, verdict.coordinator, verdict.result
    );
    if let (Some(rule), Some(reason)) = (&verdict.rule, &verdict.reason) {
        let _ = write!(line, ", {rule}: {reason}");
    }
    if !verdict.operations.is_empty() {
        let _ = write!(line, " (operation {})", verdict.operations.join(", "));
    }
    if verdict.times > 1 {
        let _ = write!(line, " ({} times)", verdict.times);
    }
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn a_refusal_is_told_with_rule_reason_operation_and_count() {
        let status = Status {
            name: "operator-3".to_owned(),
            alarm: Some("the treasury is gone".to_owned()),
            verdicts: VecDeque::from([Verdict {
                at_ms: 1_000,
                times: 3,
                coordinator: "coordinator-1".to_owned(),
                subject: "batch 7".to_owned(),
                result: "refused".to_owned(),
                rule: Some("S5".to_owned()),
                operations: vec!["abcd".to_owned()],
                reason: Some("the fee is too high".to_owned()),
                ..Verdict::default()
            }]),
            ..Status::starting()
        };
        let text = words(&status, 13_000);
        for part in [
            "operator-3",
            "ALARM       the treasury is gone",
            "12 s ago  batch 7 of coordinator-1: refused, S5: the fee is too high (operation abcd) (3 times)",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_status_reads_back_as_it_was_written() {
        let status = Status {
            sequence: Some(4),
            missing: vec!["operator-2".to_owned()],
            ..Status::starting()
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }
}
