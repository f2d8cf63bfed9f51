//! Keeps what shows that an operator has sent a bad share (`protocol::blame`), and checks what others show.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use node::clock::now_ms;
use protocol::{
    api::{BlameDocument, BlameList},
    blame::{Evidence, Fault},
    identity::PeerKey,
    message::Subject,
    roster::Roster,
};
use storage::{Changes, Direction, ReadError, Store};

use crate::{
    pipeline::commit,
    records::{BLAMES, BlameRecord, EVIDENCE},
};

/// Pieces of evidence kept against one operator; the oldest gives way. A piece is as large as a sign request.
pub const MAX_PER_OPERATOR: usize = 4;
/// Counts bad shares.
pub const BLAMES_TOTAL: &str = "drawbridge_blames_total";
/// Pieces of evidence in the database.
pub const KEPT: &str = "drawbridge_evidence";
/// Largest file that [`check_file`] reads, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Writes evidence durably. What does not convince this coordinator itself is not kept; a failed write stops the
/// process (S11).
pub async fn keep(store: &Store, roster: &Roster, subject: &Subject, evidence: Evidence) {
    // FROST's own check of every share: seconds, for many inputs.
    let fault = match tokio::task::block_in_place(|| evidence.check(roster)) {
        Ok(fault) => fault,
        Err(error) => {
            tracing::error!(%error, "a signer was blamed without evidence; a fault of this coordinator");
            return;
        }
    };
    let member = roster.members().find(|member| member.key == fault.operator);
    let name = member.map_or_else(|| fault.operator.to_string(), |member| member.name.clone());
    tracing::warn!(operator = name, session = %fault.session, attempt = fault.attempt, fault = %fault.kind, "evidence kept");
    metrics::counter!(BLAMES_TOTAL, "operator" => name).increment(1);
    let written = match changes(store, subject, &fault, &evidence) {
        Ok(changes) => commit(store, changes)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = written {
        tracing::error!(error, "evidence was not kept");
    }
}

/// What keeping a piece changes.
///
/// # Errors
/// A damaged database.
pub fn changes(
    store: &Store,
    subject: &Subject,
    fault: &Fault,
    evidence: &Evidence,
) -> Result<Changes, ReadError> {
    let mut changes = Changes::new();
    let earlier = of_operator(store, &fault.operator)?;
    let id = evidence.id();
    if earlier.iter().any(|(_, record)| record.evidence == id) {
        return Ok(changes);
    }
    let number = earlier
        .last()
        .map_or(0, |(number, _)| number.saturating_add(1));
    let surplus = earlier
        .len()
        .saturating_add(1)
        .saturating_sub(MAX_PER_OPERATOR);
    for (number, record) in earlier.iter().take(surplus) {
        changes.delete(&BLAMES, &(fault.operator.0, *number));
        changes.delete(&EVIDENCE, &record.evidence.0);
    }
    let record = BlameRecord {
        evidence: id,
        at_ms: now_ms(),
        sequence: match subject {
            Subject::Batch(candidate) => Some(candidate.sequence),
            Subject::Genesis(_) | Subject::Epoch(_) => None,
        },
        session: fault.session,
        attempt: fault.attempt,
        kind: fault.kind,
    };
    changes.put(&BLAMES, &(fault.operator.0, number), &record);
    changes.put(&EVIDENCE, &id.0, evidence);
    Ok(changes)
}

/// What is kept against one operator, oldest first.
fn of_operator(store: &Store, operator: &PeerKey) -> Result<Vec<(u64, BlameRecord)>, ReadError> {
    let range = (operator.0, 0)..=(operator.0, u64::MAX);
    let rows = store.iter(&BLAMES, range, Direction::Forward, MAX_PER_OPERATOR)?;
    rows.map(|row| row.map(|((_, number), record)| (number, record)))
        .collect()
}

/// What is kept against the operators, newest first.
///
/// # Errors
/// A damaged database.
pub fn kept(store: &Store, roster: &Roster) -> Result<Vec<(PeerKey, BlameRecord)>, ReadError> {
    let mut all = Vec::new();
    for member in &roster.operators {
        let records = of_operator(store, &member.key)?;
        all.extend(records.into_iter().map(|(_, record)| (member.key, record)));
    }
    all.sort_by_key(|(_, record)| std::cmp::Reverse(record.at_ms));
    Ok(all)
}

/// How many pieces are kept against each operator that there are any against, in the roster's order.
///
/// # Errors
/// A damaged database.
pub fn counts(store: &Store, roster: &Roster) -> Result<Vec<(PeerKey, usize)>, ReadError> {
    let operators = roster.operators.iter();
    let counts = operators.map(|member| Ok((member.key, of_operator(store, &member.key)?.len())));
    let counts: Vec<_> = counts.collect::<Result<_, ReadError>>()?;
    Ok(counts.into_iter().filter(|(_, count)| *count > 0).collect())
}

/// Checks the evidence in a file: an answer of `GET /v1/blame/{id}`, or a list of such. Needs no trust in
/// whoever wrote it. Gives a line for each piece.
///
/// # Errors
/// The first piece that shows nothing, or shows something else than the file says.
pub fn check_file(file: &Path, roster: &Roster) -> anyhow::Result<Vec<String>> {
    let unreadable = || format!("can't read {}", file.display());
    let size = fs::metadata(file).with_context(unreadable)?.len();
    ensure!(
        size <= MAX_FILE_BYTES,
        "{} has more than {MAX_FILE_BYTES} bytes",
        file.display()
    );
    let text = fs::read_to_string(file).with_context(unreadable)?;
    let documents = match serde_json::from_str::<BlameList>(&text) {
        Ok(list) => list.items,
        Err(_) => vec![
            serde_json::from_str::<BlameDocument>(&text)
                .context("the file is no answer of GET /v1/blame/{id}")?,
        ],
    };
    ensure!(!documents.is_empty(), "there is no evidence in the file");
    documents
        .iter()
        .map(|document| check_document(document, roster))
        .collect()
}

fn check_document(document: &BlameDocument, roster: &Roster) -> anyhow::Result<String> {
    let id = &document.id;
    let shown = document
        .evidence
        .as_ref()
        .with_context(|| format!("blame {id} comes without evidence: save /v1/blame/{id}"))?;
    let evidence = Evidence::decode(&hex::decode(&shown.encoded)?)?;
    let fault = evidence
        .check(roster)
        .with_context(|| format!("blame {id} shows nothing"))?;
    let member = roster.members().find(|member| member.key == fault.operator);
    let name = member.map_or("?", |member| &member.name);
    ensure!(
        fault.operator.to_string() == document.operator_key,
        "the evidence is against {name} ({}), not against {}",
        fault.operator,
        document.operator_key
    );
    Ok(format!(
        "{name} ({}) sent a bad share in attempt {} of session {}: {}",
        fault.operator, fault.attempt, fault.session, fault.kind
    ))
}
