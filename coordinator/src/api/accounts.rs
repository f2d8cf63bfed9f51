//! Accounts with their Merkle paths.

use axum::{Json, extract::State, routing::get};
use ledger::AccountKey;
use protocol::api::{AccountDocument, MAX_PAGE};
use storage::Direction;

use super::{
    Route, Shared,
    extract::{Segment, account_key},
    no_genesis,
    problem::{Code, Failure},
    with_history,
};
use crate::{live::Reader, records::PENDING};

/// Balance, nonce and Merkle path of an account after the latest confirmed batch. The path leads to a
/// root that, with the supply, opens the digest in that batch's OP_RETURN.
#[utoipa::path(get, path = "/v1/accounts/{address}", tag = "accounts",
    params(("address" = String, Path, description = "The account's address")),
    responses((status = 200, description = "The account", body = AccountDocument)))]
async fn one(
    State(api): State<Shared>,
    Segment(address): Segment,
) -> Result<Json<AccountDocument>, Failure> {
    let key = account_key(api.reader.parameters.network, &address)?;
    api.look(move |reader| document(reader, key))
        .await
        .map(Json)
}

fn document(reader: &Reader, key: AccountKey) -> Result<AccountDocument, Failure> {
    let look = with_history(reader, |history| {
        if !history.is_current() {
            let detail = "this coordinator lacks the data of a confirmed batch and is fetching it";
            return Err(Failure::new(Code::NotCurrent, detail));
        }
        let ledger = history.ledger();
        let found = ledger.account_by_key(&key);
        let found = found.and_then(|(index, account)| Some((index, account, ledger.path(index)?)));
        let (index, account, path) = found.ok_or_else(|| {
            let detail = "the account gets its leaf with its first deposit or transfer";
            Failure::new(Code::UnknownAccount, detail)
        })?;
        Ok(AccountDocument {
            account: key.to_address(reader.parameters.network),
            index: index.0,
            balance_sat: account.balance.to_sat(),
            nonce: account.nonce,
            sequence: history.head().commitment.sequence.0,
            root: ledger.state().root.to_string(),
            path: path
                .siblings()
                .iter()
                .map(|level| level.iter().map(ToString::to_string).collect())
                .collect(),
            pending: Vec::new(),
        })
    });
    let mut document = look.ok_or_else(|| no_genesis(&reader.live.borrow().phase))??;
    let index = document.index;
    let range = (index, 0)..=(index, u64::MAX);
    for row in reader
        .store
        .iter(&PENDING, range, Direction::Forward, MAX_PAGE)?
    {
        let (_, id) = row?;
        document.pending.push(hex::encode(id));
    }
    Ok(document)
}

/// The endpoints in here.
pub(super) fn routes() -> Vec<Route> {
    let codes = [
        Code::InvalidParameter,
        Code::WrongNetwork,
        Code::InvalidAccount,
        Code::UnknownAccount,
        Code::NoGenesis,
        Code::NotCurrent,
        Code::Storage,
    ];
    vec![Route::new("/v1/accounts/{address}", get(one), &codes)]
}

/// For the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(one))]
pub(super) struct Doc;
