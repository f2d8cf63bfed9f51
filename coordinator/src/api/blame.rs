//! Bad shares, with what anybody needs to check them.

use std::collections::BTreeMap;

use axum::{Json, extract::State, routing::get};
use protocol::{
    api::{BlameDocument, BlameList, EvidenceDocument},
    blame::{Evidence, EvidenceId, FaultKind, ROUND2_DOMAIN},
    identity::PeerKey,
};

use super::{
    Route, Shared,
    extract::Segment,
    name_of,
    problem::{Code, Failure},
};
use crate::{
    blame::kept,
    live::Reader,
    records::{BlameRecord, EVIDENCE},
};

/// Lists the bad shares for which there is evidence, newest first.
#[utoipa::path(get, path = "/v1/blame", tag = "batches",
    responses((status = 200, description = "All that is kept, without the evidence itself", body = BlameList)))]
async fn list(State(api): State<Shared>) -> Result<Json<BlameList>, Failure> {
    let all = |reader: &Reader| {
        let kept = kept(&reader.store, &reader.roster)?;
        let items = kept.iter();
        Ok(BlameList {
            items: items
                .map(|(operator, record)| document(reader, operator, record, None))
                .collect(),
        })
    };
    api.look(all).await.map(Json)
}

/// One bad share with its evidence: the signed statement, the package, the share. Save the answer and run
/// `drawbridge-coordinator check-evidence` on it.
#[utoipa::path(get, path = "/v1/blame/{id}", tag = "batches",
    params(("id" = String, Path, description = "The blame's id, as the list has it")),
    responses((status = 200, description = "The blame with its evidence", body = BlameDocument)))]
async fn one(
    State(api): State<Shared>,
    Segment(id): Segment,
) -> Result<Json<BlameDocument>, Failure> {
    let id: EvidenceId = id
        .parse()
        .map_err(|_| Failure::new(Code::InvalidParameter, "an id is 64 hex digits"))?;
    let look = move |reader: &Reader| {
        let unknown = || {
            let detail = "there was none, or newer evidence against the operator has replaced it";
            Failure::new(Code::UnknownBlame, detail)
        };
        let kept = kept(&reader.store, &reader.roster)?;
        let found = kept.iter().find(|(_, record)| record.evidence == id);
        let (operator, record) = found.ok_or_else(unknown)?;
        let evidence = reader.store.get(&EVIDENCE, &id.0)?.ok_or_else(unknown)?;
        Ok(document(reader, operator, record, Some(&evidence)))
    };
    api.look(look).await.map(Json)
}

fn document(
    reader: &Reader,
    operator: &PeerKey,
    record: &BlameRecord,
    evidence: Option<&Evidence>,
) -> BlameDocument {
    let input = match record.kind {
        FaultKind::Share(input) => Some(input),
        FaultKind::Count => None,
    };
    BlameDocument {
        id: record.evidence.to_string(),
        operator: name_of(reader, operator),
        operator_key: operator.to_string(),
        at_ms: record.at_ms,
        sequence: record.sequence.map(|sequence| sequence.0),
        session: record.session.to_string(),
        attempt: record.attempt,
        fault: record.kind.to_string(),
        input,
        evidence: evidence.map(|evidence| show(reader, operator, input, evidence)),
    }
}

fn show(
    reader: &Reader,
    operator: &PeerKey,
    input: Option<usize>,
    evidence: &Evidence,
) -> EvidenceDocument {
    let said = evidence.statement.verify(ROUND2_DOMAIN).ok();
    let said = said.map(|(_, said)| said);
    let message = input.and_then(|input| evidence.messages.get(input));
    let commitments: BTreeMap<String, String> = evidence
        .commitments
        .iter()
        .filter_map(|(signer, commitments)| {
            let pair = commitments.pair_bytes(input?)?;
            Some((signer.to_string(), hex::encode(pair)))
        })
        .collect();
    let signer = reader.roster.signer(operator);
    EvidenceDocument {
        encoded: hex::encode(evidence.encode()),
        group_key: evidence.group.group_key().to_x_only().to_string(),
        epoch: evidence.group.epoch(),
        package: said.map_or_else(String::new, |said| said.package.to_string()),
        inputs: evidence.messages.len(),
        message: message.map(|message| hex::encode(message.digest)),
        commitments,
        signer: signer.map_or_else(String::new, |signer| signer.to_string()),
        share: said
            .zip(input)
            .and_then(|(said, input)| said.shares.share_bytes(input))
            .map(hex::encode),
    }
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("/v1/blame", get(list), &[Code::Storage]),
        Route::new(
            "/v1/blame/{id}",
            get(one),
            &[Code::InvalidParameter, Code::UnknownBlame, Code::Storage],
        ),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, one))]
pub(super) struct Doc;
