//! Signed operations: taken in once, and where they are.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use bitcoin::Network;
use ledger::{Operation, OperationError, OperationId};
use protocol::{
    api::{FieldError, OperationDocument, OperationRequest, RequestStatus},
    request::UserRequest,
};

use super::{
    Route, Shared,
    extract::{Body, Segment, bad_account},
    problem::{Code, Failure},
    vault_of, waits,
};
use crate::{
    live::Reader,
    queue::{self, AcceptError},
    records::{BATCHES, OPERATIONS, OperationRecord},
};

/// Takes a signed operation. 202 says that it is stored here and at other nodes, and waits for a batch; sending the same again
/// changes nothing and answers 200 with where it is.
#[utoipa::path(post, path = "/v1/operations", tag = "operations",
    request_body = OperationRequest,
    responses(
        (status = 202, description = "Stored; it waits for a batch", body = OperationDocument),
        (status = 200, description = "Was stored before", body = OperationDocument)))]
async fn submit(
    State(api): State<Shared>,
    Body(request): Body<OperationRequest>,
) -> Result<(StatusCode, Json<OperationDocument>), Failure> {
    let operation = parse(api.reader.parameters.network, request)?;
    operation
        .check_form()
        .map_err(|error| refused_by_ledger(&error))?;
    let request = UserRequest::Signed(operation.clone());
    let answer = api.look(move |reader| accept(reader, operation)).await?;
    api.reader.copies.make(request).await?;
    Ok(answer)
}

fn accept(
    reader: &Reader,
    operation: Operation,
) -> Result<(StatusCode, Json<OperationDocument>), Failure> {
    let id = operation.id(&vault_of(reader)?.id());
    let before = reader.store.get(&OPERATIONS, &id.0)?;
    let record = queue::accept(reader, operation).map_err(|error| refused(&error))?;
    // A refused operation that is sent again is queued anew.
    let is_repeat = before.is_some_and(|before| before.progress.status != RequestStatus::Refused);
    let status = if is_repeat {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, Json(document(reader, id, &record)?)))
}

/// Text to types. What the ledger says about them comes later.
///
/// # Errors
/// A [`Failure`] that names the field.
fn parse(network: Network, request: OperationRequest) -> Result<Operation, Failure> {
    request.operation(network).map_err(|error| match &error {
        FieldError::Recipient(error) => bad_account(error),
        FieldError::Address(error) => Failure::because(Code::InvalidAddress, error),
        FieldError::Network(_) => Failure::because(Code::WrongNetwork, &error),
        FieldError::Signature(error) => Failure::because(Code::MalformedSignature, error),
    })
}

fn refused(error: &AcceptError) -> Failure {
    let code = match error {
        AcceptError::NoGenesis => Code::NoGenesis,
        AcceptError::NotCurrent => Code::NotCurrent,
        AcceptError::FeeTooLow { .. } => Code::FeeTooLow,
        AcceptError::NonceTaken { .. } => Code::NonceTaken,
        AcceptError::TooMany => Code::TooManyWaiting,
        AcceptError::Operation(error) => return refused_by_ledger(error),
        AcceptError::QueueFull => Code::QueueFull,
        AcceptError::Storage(reason) => {
            tracing::error!(reason, "an operation could not be stored");
            return Failure::new(
                Code::Storage,
                "the operation was not accepted; send it again later",
            );
        }
    };
    Failure::because(code, error)
}

fn refused_by_ledger(error: &OperationError) -> Failure {
    let code = match error {
        OperationError::UnknownSender(_) => Code::UnknownSender,
        OperationError::StaleNonce { .. } => Code::StaleNonce,
        OperationError::FutureNonce { .. } => Code::FutureNonce,
        OperationError::InsufficientBalance { .. } => Code::InsufficientBalance,
        OperationError::Expired { .. } => Code::Expired,
        OperationError::BadSignature => Code::BadSignature,
        OperationError::Overflow => Code::Overflow,
        OperationError::Dust { .. } => Code::BelowDust,
        OperationError::NonStandardScript => Code::NonStandardScript,
        OperationError::LedgerFull => Code::LedgerFull,
        OperationError::ZeroAmount => Code::ZeroAmount,
    };
    Failure::because(code, error)
}

/// A signed operation and where it is, by its id.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "Operation id, 64 hex digits")),
    responses((status = 200, description = "The operation", body = OperationDocument)))]
async fn one(
    State(api): State<Shared>,
    Segment(id): Segment,
) -> Result<Json<OperationDocument>, Failure> {
    let id: OperationId = id
        .parse()
        .map_err(|_| Failure::new(Code::InvalidParameter, "an operation id has 64 hex digits"))?;
    let found = api.look(move |reader| {
        let record = reader.store.get(&OPERATIONS, &id.0)?.ok_or_else(|| {
            let detail = "a deposit has its place at /v1/deposits/{txid:vout}";
            Failure::new(Code::UnknownOperation, detail)
        })?;
        document(reader, id, &record)
    });
    found.await.map(Json)
}

fn document(
    reader: &Reader,
    id: OperationId,
    record: &OperationRecord,
) -> Result<OperationDocument, Failure> {
    let progress = &record.progress;
    let batch = match progress.sequence {
        Some(sequence) => reader.store.get(&BATCHES, &sequence.0)?,
        None => None,
    };
    let operation =
        OperationRequest::of(reader.parameters.network, &record.operation).ok_or_else(|| {
            tracing::error!(%id, "a deposit is among the signed operations");
            Failure::new(Code::Internal, "the record of this operation is damaged")
        })?;
    Ok(OperationDocument {
        operation_id: id.to_string(),
        operation,
        status: progress.status,
        safe_to_credit: progress.status == RequestStatus::Final,
        reason: waits::why(reader, progress, None),
        sequence: progress.sequence.map(|sequence| sequence.0),
        txid: batch
            .and_then(|batch| batch.txid())
            .map(|txid| txid.to_string()),
        steps: progress.steps.clone(),
    })
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    let submit_codes = [
        Code::WrongNetwork,
        Code::InvalidAccount,
        Code::InvalidAddress,
        Code::MalformedSignature,
        Code::UnknownSender,
        Code::StaleNonce,
        Code::FutureNonce,
        Code::NonceTaken,
        Code::TooManyWaiting,
        Code::InsufficientBalance,
        Code::Expired,
        Code::BadSignature,
        Code::BelowDust,
        Code::NonStandardScript,
        Code::FeeTooLow,
        Code::ZeroAmount,
        Code::Overflow,
        Code::LedgerFull,
        Code::NoGenesis,
        Code::NotCurrent,
        Code::QueueFull,
        Code::TooFewCopies,
        Code::Storage,
    ];
    let one_codes = [
        Code::InvalidParameter,
        Code::UnknownOperation,
        Code::Storage,
    ];
    vec![
        Route::new("/v1/operations", post(submit), &submit_codes).with_body(),
        Route::new("/v1/operations/{id}", get(one), &one_codes),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(submit, one))]
pub(super) struct Doc;
