//! Batches: transaction, proofs, signers, and the time that each stage took.

use axum::{Json, extract::State, routing::get};
use ledger::OperationId;
use node::history::kept_body;
use protocol::{
    api::{BatchDocument, BatchList, CandidateDocument, Page, RefusalDocument},
    batch::Body,
    identity::PeerKey,
    message::Refusal,
};
use storage::Direction;

use super::{
    Route, Shared,
    extract::{Query, Segment, limit_of},
    name_of,
    problem::{Code, Failure},
};
use crate::{
    live::Reader,
    records::{BATCHES, BatchRecord, Request, SignedCandidate},
};

/// A page of batches ends before its limit when its batches hold this many operations.
const MAX_LISTED_OPERATIONS: usize = 2_000;

/// How much of a batch is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Without transaction, digests and proofs.
    Summary,
    /// All of it.
    Full,
}

/// Lists the batches, newest first, without their transactions, digests and proofs. A page may be
/// shorter than its limit; go on while there is a `next`.
#[utoipa::path(get, path = "/v1/batches", tag = "batches",
    params(
        ("limit" = Option<usize>, Query, description = "At most this many, up to 100; 20 when absent"),
        ("after" = Option<u64>, Query, description = "Continue after this sequence number")),
    responses((status = 200, description = "A part of the list", body = BatchList)))]
async fn list(
    State(api): State<Shared>,
    Query(page): Query<Page>,
) -> Result<Json<BatchList>, Failure> {
    let limit = limit_of(&page)?;
    if page.account.is_some() {
        return Err(Failure::new(Code::InvalidQuery, "batches have no account"));
    }
    let after = page
        .after
        .as_deref()
        .map(|text| parse_sequence(text, Code::InvalidQuery))
        .transpose()?;
    api.look(move |reader| list_of(reader, after, limit))
        .await
        .map(Json)
}

fn list_of(reader: &Reader, after: Option<u64>, limit: usize) -> Result<BatchList, Failure> {
    use std::ops::Bound::{Excluded, Unbounded};
    let end = after.map_or(Unbounded, Excluded);
    // One more tells whether there is a next page.
    let wanted = limit.saturating_add(1);
    let rows = reader
        .store
        .iter(&BATCHES, (Unbounded, end), Direction::Back, wanted)?;
    let mut items: Vec<BatchDocument> = Vec::new();
    let mut operations = 0_usize;
    let mut next = None;
    for row in rows {
        let (_, record) = row?;
        if items.len() >= limit || operations >= MAX_LISTED_OPERATIONS {
            next = items.last().map(|last| last.sequence.to_string());
            break;
        }
        operations = operations.saturating_add(record.operations.len());
        items.push(document(reader, &record, Detail::Summary)?);
    }
    Ok(BatchList { items, next })
}

/// One batch, by its sequence number.
#[utoipa::path(get, path = "/v1/batches/{sequence}", tag = "batches",
    params(("sequence" = u64, Path, description = "Sequence number; the first batch is 1")),
    responses((status = 200, description = "The batch", body = BatchDocument)))]
async fn one(
    State(api): State<Shared>,
    Segment(sequence): Segment,
) -> Result<Json<BatchDocument>, Failure> {
    let sequence = parse_sequence(&sequence, Code::InvalidParameter)?;
    let found = api.look(move |reader| {
        let record = reader.store.get(&BATCHES, &sequence)?.ok_or_else(|| {
            Failure::new(
                Code::UnknownBatch,
                format!("batch {sequence} was not formed here"),
            )
        })?;
        document(reader, &record, Detail::Full)
    });
    found.await.map(Json)
}

fn parse_sequence(text: &str, code: Code) -> Result<u64, Failure> {
    text.parse()
        .map_err(|_| Failure::new(code, "a sequence number is a decimal number"))
}

/// A batch for people.
pub(super) fn document(
    reader: &Reader,
    record: &BatchRecord,
    detail: Detail,
) -> Result<BatchDocument, Failure> {
    let body = match record.body.filter(|_| detail == Detail::Full) {
        Some(hash) => kept_body(&reader.store, &hash)?,
        None => None,
    };
    let body = body.map(|bytes| Body::decode(&bytes)).transpose();
    let body = body.map_err(|error| Failure::internal(&error))?;
    let transaction = record
        .transaction
        .as_ref()
        .filter(|_| detail == Detail::Full);
    let names = |keys: &[PeerKey]| keys.iter().map(|key| name_of(reader, key)).collect();
    let (inputs, outputs) = record.shape;
    Ok(BatchDocument {
        sequence: record.sequence.0,
        status: record.status,
        reason: record.reason.clone(),
        body_hash: record.body.map(|hash| hash.to_string()).unwrap_or_default(),
        txid: record.txid().map(|txid| txid.to_string()),
        transaction: transaction.map(bitcoin::consensus::encode::serialize_hex),
        height: record.height,
        inputs,
        outputs,
        operations: operation_ids(reader, record),
        digests: body
            .iter()
            .flat_map(|body| &body.digests)
            .map(hex::encode)
            .collect(),
        proofs: body
            .iter()
            .flat_map(|body| &body.proofs)
            .map(hex::encode)
            .collect(),
        signers: names(&record.signers),
        blamed: names(&record.blamed),
        refusals: record
            .refusals
            .iter()
            .map(|(by, why)| refusal(reader, by, why))
            .collect(),
        attempts: record.attempts,
        signing_ms: record.signing_ms,
        fee_sat: record.fee.to_sat(),
        candidates: record.candidates.iter().map(candidate).collect(),
        fee_bump: record
            .bump_failure
            .as_ref()
            .map(|failure| failure.reason.clone()),
        treasury_sat: record.treasury.to_sat(),
        supply_sat: record.supply.to_sat(),
        stage_ms: record.stage_ms.clone(),
    })
}

fn candidate(signed: &SignedCandidate) -> CandidateDocument {
    CandidateDocument {
        txid: signed.candidate.txid.to_string(),
        fee_sat: signed.candidate.fee.to_sat(),
        height: signed.height,
        at_ms: signed.at_ms,
    }
}

/// Ids in ledger order. Those of signed operations are known; a deposit's has to be computed.
fn operation_ids(reader: &Reader, record: &BatchRecord) -> Vec<String> {
    let Some(vault) = reader.live.borrow().vault.as_ref().map(|vault| vault.id()) else {
        return Vec::new();
    };
    let id = |(request, operation): (&Request, &ledger::Operation)| -> OperationId {
        match request {
            Request::Signed(id) => *id,
            Request::Deposit(_) => operation.id(&vault),
        }
    };
    record
        .requests
        .iter()
        .zip(&record.operations)
        .map(id)
        .map(|id| id.to_string())
        .collect()
}

/// A refusal for people.
pub(super) fn refusal(reader: &Reader, by: &PeerKey, why: &Refusal) -> RefusalDocument {
    RefusalDocument {
        operator: name_of(reader, by),
        rule: format!("{:?}", why.rule),
        operation_ids: why.operations.iter().map(ToString::to_string).collect(),
        reason: why.reason.clone(),
    }
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new(
            "/v1/batches",
            get(list),
            &[Code::InvalidQuery, Code::Storage],
        ),
        Route::new(
            "/v1/batches/{sequence}",
            get(one),
            &[Code::InvalidParameter, Code::UnknownBatch, Code::Storage],
        ),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(list, one))]
pub(super) struct Doc;
