//! Raw requests become typed values here, once; what does not fit becomes a problem document.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request, rejection::BytesRejection},
    http::{HeaderMap, header, request::Parts},
};
use bitcoin::Network;
use ledger::{AccountKey, AddressError};
use protocol::api::{MAX_PAGE, MAX_REQUEST_BYTES, Page};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::problem::{Code, Failure};

/// Longest time that a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries in a list when the client does not say.
const DEFAULT_PAGE: usize = 20;

/// A JSON body, bounded in size and time.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        if !is_json(request.headers()) {
            let detail = "send the header Content-Type: application/json";
            return Err(Failure::new(Code::UnsupportedMediaType, detail));
        }
        let bytes = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state))
            .await
            .map_err(|_| Failure::new(Code::BodyTimeout, "send the whole body at once"))?
            .map_err(unreadable)?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| match error.classify() {
                Category::Data => Failure::new(Code::InvalidBody, error.to_string()),
                Category::Syntax | Category::Eof | Category::Io => {
                    Failure::new(Code::MalformedBody, error.to_string())
                }
            })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn unreadable(rejection: BytesRejection) -> Failure {
    if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("a body has at most {MAX_REQUEST_BYTES} bytes");
        Failure::new(Code::BodyTooLarge, detail)
    } else {
        Failure::new(Code::MalformedBody, "the body broke off")
    }
}

/// The query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| Failure::new(Code::InvalidQuery, rejection.body_text()))
    }
}

/// The one variable part of a path.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(value)| Self(value))
            .map_err(|rejection| Failure::new(Code::InvalidParameter, rejection.body_text()))
    }
}

/// How many entries a page may have.
pub fn limit_of(page: &Page) -> Result<usize, Failure> {
    match page.limit {
        None => Ok(DEFAULT_PAGE),
        Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        Some(limit) => Err(Failure::new(
            Code::InvalidQuery,
            format!("limit is {limit}, must be 1 to {MAX_PAGE}"),
        )),
    }
}

/// An account's address of the vault's network.
pub fn account_key(network: Network, address: &str) -> Result<AccountKey, Failure> {
    AccountKey::from_address(network, address).map_err(|error| bad_account(&error))
}

/// Why an account's address is none.
pub fn bad_account(error: &AddressError) -> Failure {
    match error {
        AddressError::Network { .. } => Failure::because(Code::WrongNetwork, error),
        AddressError::Checksum
        | AddressError::Prefix { .. }
        | AddressError::Length
        | AddressError::Key(_) => Failure::because(Code::InvalidAccount, error),
    }
}
