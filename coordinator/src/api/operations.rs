//! Signed operations: taken in once, and where they are.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use bitcoin::{Address, Amount, Network, Script, ScriptBuf, address::NetworkUnchecked};
use ledger::{AccountIndex, Operation, OperationError, OperationId, SequenceNumber, Signature};
use protocol::{
    api::{OperationDocument, OperationRequest, RequestStatus},
    request::UserRequest,
};

use super::{
    Route, Shared,
    extract::{Body, Segment, account_key},
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
pub fn parse(network: Network, request: OperationRequest) -> Result<Operation, Failure> {
    Ok(match request {
        OperationRequest::Transfer {
            sender,
            nonce,
            amount_sat,
            fee_sat,
            recipient,
            last_valid,
            signature,
        } => Operation::Transfer {
            sender: AccountIndex(sender),
            nonce,
            amount: Amount::from_sat(amount_sat),
            fee: Amount::from_sat(fee_sat),
            recipient: account_key(network, &recipient)?,
            last_valid: SequenceNumber(last_valid),
            signature: parse_signature(&signature)?,
        },
        OperationRequest::Withdraw {
            sender,
            nonce,
            amount_sat,
            fee_sat,
            address,
            last_valid,
            signature,
        } => Operation::Withdraw {
            sender: AccountIndex(sender),
            nonce,
            amount: Amount::from_sat(amount_sat),
            fee: Amount::from_sat(fee_sat),
            script_pubkey: parse_address(network, &address)?,
            last_valid: SequenceNumber(last_valid),
            signature: parse_signature(&signature)?,
        },
    })
}

fn parse_signature(text: &str) -> Result<Signature, Failure> {
    text.parse()
        .map_err(|error: ledger::DecodeError| Failure::because(Code::MalformedSignature, &error))
}

fn parse_address(network: Network, text: &str) -> Result<ScriptBuf, Failure> {
    let address: Address<NetworkUnchecked> =
        text.parse()
            .map_err(|error: bitcoin::address::ParseError| {
                Failure::because(Code::InvalidAddress, &error)
            })?;
    if !address.is_valid_for_network(network) {
        let detail = format!("the Bitcoin address is not for {network}");
        return Err(Failure::new(Code::WrongNetwork, detail));
    }
    Ok(address.assume_checked().script_pubkey())
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
    let operation = request(reader.parameters.network, &record.operation).ok_or_else(|| {
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

/// An operation as it was sent; `None` for a deposit, which nobody sends.
fn request(network: Network, operation: &Operation) -> Option<OperationRequest> {
    match operation {
        Operation::Deposit { .. } => None,
        Operation::Transfer {
            sender,
            nonce,
            amount,
            fee,
            recipient,
            last_valid,
            signature,
        } => Some(OperationRequest::Transfer {
            sender: sender.0,
            nonce: *nonce,
            amount_sat: amount.to_sat(),
            fee_sat: fee.to_sat(),
            recipient: recipient.to_address(network),
            last_valid: last_valid.0,
            signature: signature.to_string(),
        }),
        Operation::Withdraw {
            sender,
            nonce,
            amount,
            fee,
            script_pubkey,
            last_valid,
            signature,
        } => Some(OperationRequest::Withdraw {
            sender: sender.0,
            nonce: *nonce,
            amount_sat: amount.to_sat(),
            fee_sat: fee.to_sat(),
            address: address(network, script_pubkey),
            last_valid: last_valid.0,
            signature: signature.to_string(),
        }),
    }
}

/// Standard scripts have addresses; any other is shown as hex.
fn address(network: Network, script: &Script) -> String {
    Address::from_script(script, network)
        .map_or_else(|_| script.to_hex_string(), |address| address.to_string())
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
