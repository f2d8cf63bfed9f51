//! Deposit addresses and the deposits that were paid to them.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use bitcoin::{OutPoint, Txid, XOnlyPublicKey, hashes::Hash as _};
use ledger::AccountKey;
use protocol::{
    api::{
        DepositAddressDocument, DepositAddressRequest, DepositDocument, DepositList, Page, Terms,
    },
    deposit::DepositTerms,
    request::UserRequest,
    vault::Vault,
};
use storage::{Direction, ReadError};

use super::{
    Route, Shared,
    extract::{Body, Query, Segment, account_key, limit_of},
    problem::{Code, Failure},
    vault_of, waits,
};
use crate::{
    detect,
    live::Reader,
    records::{DEPOSITS, DEPOSITS_OF, DepositRecord, TERMS},
};

/// Gives the deposit address of an account and a refund key, the same one every time. The coordinator
/// watches it from then on, and other nodes know it too; derive it yourself and compare before you pay.
#[utoipa::path(post, path = "/v1/deposit-addresses", tag = "deposits",
    request_body = DepositAddressRequest,
    responses((status = 200, description = "The address is watched", body = DepositAddressDocument)))]
async fn create_address(
    State(api): State<Shared>,
    Body(request): Body<DepositAddressRequest>,
) -> Result<Json<DepositAddressDocument>, Failure> {
    let network = api.reader.parameters.network;
    let account = account_key(network, &request.account)?;
    let refund: XOnlyPublicKey = request.refund_key.parse().map_err(|_| {
        let detail = "expected the 64 hex digits of an x-only public key (BIP-340), on the curve";
        Failure::new(Code::InvalidRefundKey, detail)
    })?;
    let vault = vault_of(&api.reader)?;
    let terms = DepositTerms::offered(vault.id(), &api.reader.parameters, account, refund);
    let offered = terms
        .address(&vault.group_key())
        .map_err(|error| Failure::because(Code::InvalidRefundKey, &error))?;
    let address = offered
        .address(network)
        .map_err(|error| Failure::internal(&error))?;
    let kept = offered.clone();
    api.look(move |reader| Ok(reader.shown.keep(&kept, None)?))
        .await?;
    api.reader
        .copies
        .make(UserRequest::Terms(terms.clone()))
        .await?;
    api.reader.wake.notify_one();
    Ok(Json(DepositAddressDocument {
        terms: Terms {
            vault_id: terms.vault.to_string(),
            account: account.to_address(network),
            refund_key: refund.to_string(),
            refund_delay_blocks: terms.refund_delay,
            min_deposit_sat: terms.min_deposit.to_sat(),
            deposit_fee_sat: terms.fee.to_sat(),
        },
        terms_hash: offered.terms.hash().to_string(),
        descriptor: offered.descriptor.to_string(),
        address: address.to_string(),
    }))
}

/// Lists the deposits seen on the chain, by outpoint, those of one account if one is given.
#[utoipa::path(get, path = "/v1/deposits", tag = "deposits", params(Page),
    responses((status = 200, description = "A part of the list", body = DepositList)))]
async fn list(
    State(api): State<Shared>,
    Query(page): Query<Page>,
) -> Result<Json<DepositList>, Failure> {
    let limit = limit_of(&page)?;
    let network = api.reader.parameters.network;
    let account = page
        .account
        .as_deref()
        .map(|text| account_key(network, text))
        .transpose()?;
    let after = page.after.as_deref().map(parse_outpoint).transpose();
    let after = after.map_err(|failure| Failure::new(Code::InvalidQuery, failure.detail))?;
    api.look(move |reader| list_of(reader, account, after, limit))
        .await
        .map(Json)
}

fn list_of(
    reader: &Reader,
    account: Option<AccountKey>,
    after: Option<OutPoint>,
    limit: usize,
) -> Result<DepositList, Failure> {
    // One more tells whether there is a next page.
    let wanted = limit.saturating_add(1);
    let mut rows: Vec<DepositRecord> = match account {
        None => after_of(reader, after, wanted)?,
        Some(account) => of_account(reader, account, after, wanted)?,
    };
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows
        .last()
        .filter(|_| has_more)
        .map(|row| row.outpoint.to_string());
    let items = rows
        .iter()
        .map(|row| document(reader, row))
        .collect::<Result<_, _>>()?;
    Ok(DepositList { items, next })
}

fn after_of(
    reader: &Reader,
    after: Option<OutPoint>,
    limit: usize,
) -> Result<Vec<DepositRecord>, ReadError> {
    use std::ops::Bound::{Excluded, Unbounded};
    let start = after.map_or(Unbounded, Excluded);
    let rows = reader
        .store
        .iter(&DEPOSITS, (start, Unbounded), Direction::Forward, limit)?;
    rows.map(|row| row.map(|(_, record)| record)).collect()
}

fn of_account(
    reader: &Reader,
    account: AccountKey,
    after: Option<OutPoint>,
    limit: usize,
) -> Result<Vec<DepositRecord>, ReadError> {
    use std::ops::Bound::{Excluded, Included};
    let key = account.to_bytes();
    let first = OutPoint {
        txid: Txid::from_byte_array([0; 32]),
        vout: 0,
    };
    let last = OutPoint {
        txid: Txid::from_byte_array([u8::MAX; 32]),
        vout: u32::MAX,
    };
    let start = after.map_or(Included((key, first)), |after| Excluded((key, after)));
    let range = (start, Included((key, last)));
    let mut rows = Vec::new();
    for row in reader
        .store
        .iter(&DEPOSITS_OF, range, Direction::Forward, limit)?
    {
        let ((_, outpoint), ()) = row?;
        rows.extend(reader.store.get(&DEPOSITS, &outpoint)?);
    }
    Ok(rows)
}

/// One deposit, by `txid:vout`.
#[utoipa::path(get, path = "/v1/deposits/{outpoint}", tag = "deposits",
    params(("outpoint" = String, Path, description = "txid:vout")),
    responses((status = 200, description = "The deposit", body = DepositDocument)))]
async fn one(
    State(api): State<Shared>,
    Segment(outpoint): Segment,
) -> Result<Json<DepositDocument>, Failure> {
    let outpoint = parse_outpoint(&outpoint)?;
    let found = api.look(move |reader| {
        let record = reader.store.get(&DEPOSITS, &outpoint)?.ok_or_else(|| {
            let detail = "no block with a payment of this outpoint to a deposit address was seen";
            Failure::new(Code::UnknownDeposit, detail)
        })?;
        document(reader, &record)
    });
    found.await.map(Json)
}

fn parse_outpoint(text: &str) -> Result<OutPoint, Failure> {
    text.parse().map_err(|_| {
        let detail = "expected txid:vout: 64 hex digits, a colon and a decimal number";
        Failure::new(Code::InvalidParameter, detail)
    })
}

fn document(reader: &Reader, record: &DepositRecord) -> Result<DepositDocument, Failure> {
    let terms = reader.store.get(&TERMS, &record.terms.0)?.ok_or_else(|| {
        tracing::error!(outpoint = %record.outpoint, "the terms of a deposit are not stored");
        Failure::new(Code::Internal, "the terms of this deposit are missing")
    })?;
    let vault = reader.live.borrow().vault.clone();
    let operation = detect::operation(record, &terms);
    let id = |vault: &Vault| {
        operation
            .as_ref()
            .map(|operation| operation.id(&vault.id()).to_string())
    };
    let progress = &record.progress;
    Ok(DepositDocument {
        outpoint: record.outpoint.to_string(),
        operation_id: vault.as_deref().and_then(id),
        account: terms.account.to_address(reader.parameters.network),
        terms_hash: record.terms.to_string(),
        value_sat: record.value.to_sat(),
        credited_sat: terms.credited(record.value).map(|amount| amount.to_sat()),
        height: record.height,
        status: progress.status,
        reason: waits::why(reader, progress, Some(record.height)),
        sequence: progress.sequence.map(|sequence| sequence.0),
        steps: progress.steps.clone(),
    })
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    let address = [
        Code::WrongNetwork,
        Code::InvalidAccount,
        Code::InvalidRefundKey,
        Code::NoGenesis,
        Code::Full,
        Code::TooFewCopies,
        Code::Storage,
    ];
    let list_codes = [
        Code::InvalidQuery,
        Code::WrongNetwork,
        Code::InvalidAccount,
        Code::Storage,
    ];
    let one_codes = [Code::InvalidParameter, Code::UnknownDeposit, Code::Storage];
    vec![
        Route::new("/v1/deposit-addresses", post(create_address), &address).with_body(),
        Route::new("/v1/deposits", get(list), &list_codes),
        Route::new("/v1/deposits/{outpoint}", get(one), &one_codes),
    ]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(create_address, list, one))]
pub(super) struct Doc;
